"""What goes over the wire about accounts. Keys are as they are written here, in snake case; moments are ISO 8601.

The values that :mod:`qilbeedb.accounts` gives are the answers: a client decodes the same classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from qilbeedb.wire import Answer, JSONObject, Limit, Request

__all__ = [
    "AuditEvent",
    "AuditQuery",
    "DoneAnswer",
    "EndpointType",
    "EventsAnswer",
    "KeyInfo",
    "KeyQuery",
    "KeysAnswer",
    "LockBody",
    "LockedUser",
    "LockedUsersAnswer",
    "LockoutAnswer",
    "LockoutStatus",
    "Login",
    "LoginBody",
    "NewKey",
    "NewKeyBody",
    "NewPolicyBody",
    "NewUserBody",
    "PasswordBody",
    "PoliciesAnswer",
    "PolicyChangesBody",
    "PolicyInfo",
    "RefreshBody",
    "Result",
    "RevokeAllBody",
    "RevokeBody",
    "RolesBody",
    "UserChangesBody",
    "UserInfo",
    "UsersAnswer",
]

Result = Literal["success", "failure", "unauthorized", "forbidden"]
EndpointType = str | dict[str, str]
"""Login, ApiKeyCreation, GeneralApi, UserManagement, or ``{"Custom": path}``."""

Text = Annotated[str, Meta(max_length=4096)]
"""Longer than anything that is taken: a bound on what is looked at."""
Names = Annotated[Sequence[Annotated[str, Meta(max_length=255)]], Meta(max_length=1000)]


# --- sessions


class LoginBody(Request, rename=None):
    """Who logs in."""

    username: Text
    password: Text


class RefreshBody(Request, rename=None):
    """The refresh token of a session."""

    refresh_token: Text


class Login(Answer, rename=None):
    """The tokens of a session, and for how many seconds they are good."""

    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    username: str
    user_id: str


class RevokeBody(Request, rename=None):
    """An access or refresh token of the session to end."""

    token: Text


class RevokeAllBody(Request, rename=None):
    """The user whose sessions end."""

    user_id: Text
    reason: Text | None = None


class PasswordBody(Request, rename=None):
    """One's own new password, and the one until now."""

    current_password: Text
    new_password: Text


class DoneAnswer(Answer, rename=None):
    """It is done."""

    message: str
    success: bool = True


# --- users


class NewUserBody(Request, rename=None):
    """A user to make. ``agents`` limits him to those."""

    username: Text
    password: Text
    email: Text | None = None
    roles: Names = ("Read",)
    agents: Names | None = None


class UserChangesBody(Request, rename=None):
    """What to change of a user; what is left out stays."""

    password: Text | UnsetType = UNSET
    email: Text | UnsetType | None = UNSET
    roles: Names | UnsetType = UNSET
    agents: Names | UnsetType | None = UNSET
    is_active: bool | UnsetType = UNSET


class RolesBody(Request, rename=None):
    """The roles of a user from now on."""

    roles: Names


class UserInfo(Answer, rename=None):
    """A user. ``agents`` are those he is limited to; None: none of them is closed to him."""

    id: str
    username: str
    email: str | None
    roles: tuple[str, ...]
    agents: tuple[str, ...] | None
    is_active: bool
    created_at: datetime
    updated_at: datetime
    last_login: datetime | None


class UsersAnswer(Answer, rename=None):
    """All users, by name."""

    users: list[UserInfo]


# --- API keys


class NewKeyBody(Request, rename=None):
    """A key to make. It has no more than its user has, and of that only what is named here.

    Without ``permissions`` it may do with memories what its user may, and nothing with accounts.
    """

    name: Text
    expires_in_days: int | None = None
    agents: Names | None = None
    permissions: Names | None = None


class KeyQuery(Request, rename=None):
    """``all``: those of every user, for administrators."""

    all: bool = False


class KeyInfo(Answer, rename=None):
    """A key as it is listed."""

    id: str
    prefix: str
    name: str
    user_id: str
    created_at: datetime
    expires_at: datetime | None
    agents: tuple[str, ...] | None
    permissions: tuple[str, ...] | None


class NewKey(KeyInfo, rename=None):
    """A key that was just made: the only time that ``key`` is told."""

    key: str


class KeysAnswer(Answer, rename=None):
    """Keys, the oldest first."""

    keys: list[KeyInfo]


# --- the audit log


class AuditQuery(Request, rename=None):
    """Which events: those that have all that is given, from ``start_time`` on and before ``end_time``."""

    event_type: Text | None = None
    user_id: Text | None = None
    username: Text | None = None
    result: Result | None = None
    ip_address: Text | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    limit: Limit = 100


class AuditEvent(Answer, rename=None):
    """Something that happened. ``event_id`` is its number in the log, in hexadecimal."""

    event_id: str
    event_type: str
    timestamp: datetime
    user_id: str | None
    username: str | None
    action: str
    resource: str
    result: Result
    ip_address: str
    user_agent: str
    metadata: JSONObject


class EventsAnswer(Answer, rename=None):
    """Events, the newest first."""

    events: list[AuditEvent]
    count: int
    limit: int


# --- lockouts


class LockBody(Request, rename=None):
    """Why a user is locked."""

    reason: Text | None = None


class LockoutStatus(Answer, rename=None):
    """How a name stands, from the address that stands worst."""

    locked: bool
    failed_attempts: int
    remaining_attempts: int
    lockout_expires: datetime | None
    lockout_remaining_seconds: int | None
    lockout_count: int
    lockout_reason: str | None


class LockoutAnswer(Answer, rename=None):
    """How one name stands."""

    username: str
    status: LockoutStatus


class LockedUser(LockoutStatus, rename=None):
    """A user who cannot log in now."""

    username: str


class LockedUsersAnswer(Answer, rename=None):
    """Who cannot log in now, by name."""

    locked_users: list[LockedUser]
    count: int


# --- rate limits


class NewPolicyBody(Request, rename=None):
    """A rate limit to make: so many requests in so many seconds, for each caller by himself."""

    name: Text
    endpoint_type: EndpointType
    max_requests: int
    window_secs: int
    enabled: bool = True


class PolicyChangesBody(Request, rename=None):
    """What to change of a rate limit; what is left out stays."""

    name: Text | UnsetType = UNSET
    endpoint_type: EndpointType | UnsetType = UNSET
    max_requests: int | UnsetType = UNSET
    window_secs: int | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class PolicyInfo(Answer, rename=None):
    """A rate limit."""

    id: str
    name: str
    endpoint_type: EndpointType
    max_requests: int
    window_secs: int
    enabled: bool
    created_at: datetime
    updated_at: datetime
    created_by: str | None


class PoliciesAnswer(Answer, rename=None):
    """All rate limits, the oldest first."""

    policies: list[PolicyInfo]
