"""What is asked of a server besides memories, as calls: sessions, users, keys, audit log, limits, health, snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

from qilbee_core import InvalidError
from qilbeedb import account_wire as wire
from qilbeedb.calls import answered, body_of
from qilbeedb.exchange import Call, Effect, Reply, Tokens
from qilbeedb.wire import Answer, HealthAnswer, Nothing, Request, SnapshotAnswer

T = TypeVar("T")
A = TypeVar("A", bound=Answer)

_V1 = "/api/v1"
_ABSENT = frozenset({int(HTTPStatus.NOT_FOUND)})
_REFUSED = frozenset({int(HTTPStatus.UNAUTHORIZED)})
_UNHEALTHY = frozenset({int(HTTPStatus.SERVICE_UNAVAILABLE)})


class AgentsAnswer(Answer):
    """Whose memories there are."""

    agents: list[str]


def health() -> Call[HealthAnswer]:
    """Whether the server takes writes; one that says it does not has answered too."""
    return Call(method="GET", path="/health", read=answered(HealthAnswer, _itself), expected=_UNHEALTHY, is_public=True)


def agents() -> Call[list[str]]:
    """The agents that the caller may see."""
    return _get("/agents", answered(AgentsAnswer, lambda told: told.agents))


# Sessions


def login(username: str, password: str) -> Call[Tokens]:
    """Begin a session."""
    return _session("login", wire.LoginBody(username=username, password=password))


def refresh(shown: Tokens) -> Call[Tokens]:
    """Go on with a session. After a lost answer the tokens shown are good for another time."""
    return _session("refresh", wire.RefreshBody(refresh_token=shown.refresh or ""))


def _session(verb: str, body: Request) -> Call[Tokens]:
    return Call(
        method="POST",
        path=f"{_V1}/auth/{verb}",
        body=body_of(body),
        read=answered(wire.Login, lambda told: Tokens.given(told.access_token, told.refresh_token, told.expires_in)),
        effect=Effect.ONCE,
        is_public=True,
    )


def logout() -> Call[None]:
    """End the session; one that has ended already is as good."""
    return Call(method="POST", path=f"{_V1}/auth/logout", read=_nothing, effect=Effect.ONCE, expected=_REFUSED)


def revoke(token: str) -> Call[None]:
    """End the session of a token."""
    return _post(f"{_V1}/auth/revoke", wire.RevokeBody(token=token), _nothing, Effect.ONCE)


def revoke_all(user_id: str, reason: str | None) -> Call[None]:
    """End all sessions of a user."""
    return _post(f"{_V1}/auth/revoke-all", wire.RevokeAllBody(user_id=user_id, reason=reason), _nothing, Effect.ONCE)


def change_password(current: str, new: str) -> Call[None]:
    """Give oneself another password."""
    body = wire.PasswordBody(current_password=current, new_password=new)
    return _post(f"{_V1}/auth/password", body, _nothing, Effect.EACH)


# Users


def create_user(body: wire.NewUserBody) -> Call[wire.UserInfo]:
    """Make a user."""
    return _post(f"{_V1}/users", body, answered(wire.UserInfo, _itself), Effect.EACH)


def list_users() -> Call[list[wire.UserInfo]]:
    """All users."""
    return _get(f"{_V1}/users", answered(wire.UsersAnswer, lambda told: told.users))


def get_user(user_id: str) -> Call[wire.UserInfo]:
    """One user."""
    return _get(f"{_V1}/users/{_quoted(user_id)}", answered(wire.UserInfo, _itself))


def update_user(user_id: str, body: wire.UserChangesBody) -> Call[wire.UserInfo]:
    """Change a user."""
    return _put(f"{_V1}/users/{_quoted(user_id)}", body, answered(wire.UserInfo, _itself))


def update_roles(user_id: str, body: wire.RolesBody) -> Call[wire.UserInfo]:
    """Give a user other roles."""
    return _put(f"{_V1}/users/{_quoted(user_id)}/roles", body, answered(wire.UserInfo, _itself))


def delete_user(user_id: str) -> Call[bool]:
    """Remove a user."""
    return _delete(f"{_V1}/users/{_quoted(user_id)}")


# API keys


def create_key(body: wire.NewKeyBody) -> Call[wire.NewKey]:
    """Make a key."""
    return _post(f"{_V1}/api-keys", body, answered(wire.NewKey, _itself), Effect.EACH)


def list_keys(*, everybodys: bool) -> Call[list[wire.KeyInfo]]:
    """Keys."""
    query = {"all": "true"} if everybodys else {}
    return _get(f"{_V1}/api-keys", answered(wire.KeysAnswer, lambda told: told.keys), query)


def delete_key(key_id: str) -> Call[bool]:
    """Revoke a key."""
    return _delete(f"{_V1}/api-keys/{_quoted(key_id)}")


# The audit log


def audit_logs(
    given: Mapping[str, str | int | None], start_time: datetime | None, end_time: datetime | None
) -> Call[list[wire.AuditEvent]]:
    """What happened."""
    query = {name: value for name, value in given.items() if value is not None}
    for name, moment in (("start_time", start_time), ("end_time", end_time)):
        if moment is not None:
            if not isinstance(moment, datetime):
                raise InvalidError(f"{name} is {type(moment).__name__}, not a datetime", remedy="give a datetime")
            query[name] = moment.isoformat()
    return _get(f"{_V1}/audit-logs", answered(wire.EventsAnswer, lambda told: told.events), query)


# Lockouts


def locked_accounts() -> Call[list[wire.LockedUser]]:
    """Who cannot log in now."""
    return _get(f"{_V1}/lockouts", answered(wire.LockedUsersAnswer, lambda told: told.locked_users))


def lockout_status(username: str) -> Call[wire.LockoutStatus]:
    """How a name stands."""
    return _get(f"{_V1}/lockouts/{_quoted(username)}", answered(wire.LockoutAnswer, lambda told: told.status))


def lock_account(username: str, reason: str | None) -> Call[None]:
    """Let a user not log in."""
    path = f"{_V1}/lockouts/{_quoted(username)}/lock"
    return _post(path, wire.LockBody(reason=reason), _nothing, Effect.ONCE)


def unlock_account(username: str) -> Call[None]:
    """Let a user log in again."""
    path = f"{_V1}/lockouts/{_quoted(username)}"
    return Call(method="DELETE", path=path, read=_nothing, effect=Effect.ONCE)


# Rate limits


def create_policy(body: wire.NewPolicyBody) -> Call[wire.PolicyInfo]:
    """Make a rate limit."""
    return _post(f"{_V1}/rate-limits", body, answered(wire.PolicyInfo, _itself), Effect.EACH)


def list_policies() -> Call[list[wire.PolicyInfo]]:
    """All rate limits."""
    return _get(f"{_V1}/rate-limits", answered(wire.PoliciesAnswer, lambda told: told.policies))


def get_policy(policy_id: str) -> Call[wire.PolicyInfo]:
    """One rate limit."""
    return _get(f"{_V1}/rate-limits/{_quoted(policy_id)}", answered(wire.PolicyInfo, _itself))


def update_policy(policy_id: str, body: wire.PolicyChangesBody) -> Call[wire.PolicyInfo]:
    """Change a rate limit."""
    return _put(f"{_V1}/rate-limits/{_quoted(policy_id)}", body, answered(wire.PolicyInfo, _itself))


def delete_policy(policy_id: str) -> Call[bool]:
    """Remove a rate limit."""
    return _delete(f"{_V1}/rate-limits/{_quoted(policy_id)}")


# The store


def take_snapshot() -> Call[SnapshotAnswer]:
    """Copy the store."""
    return _post("/admin/snapshot", Nothing(), answered(SnapshotAnswer, _itself), Effect.EACH)


def _get(path: str, read: Callable[[Reply], T], query: Mapping[str, str | int] | None = None) -> Call[T]:
    return Call(method="GET", path=path, read=read, query=query or {})


def _post(path: str, body: Request, read: Callable[[Reply], T], effect: Effect) -> Call[T]:
    return Call(method="POST", path=path, body=body_of(body), read=read, effect=effect)


def _put(path: str, body: Request, read: Callable[[Reply], T]) -> Call[T]:
    return Call(method="PUT", path=path, body=body_of(body), read=read, effect=Effect.ONCE)


def _delete(path: str) -> Call[bool]:
    """Whether there was one. Where an answer was lost and there is none now, this call has removed it."""
    return Call(
        method="DELETE",
        path=path,
        read=lambda reply: reply.status != HTTPStatus.NOT_FOUND or reply.is_repeat,
        effect=Effect.ONCE,
        expected=_ABSENT,
    )


def _itself(told: A) -> A:
    return told


def _nothing(_: Reply) -> None:
    return None


def _quoted(id: str) -> str:
    return quote(str(id), safe="")
