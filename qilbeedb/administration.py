"""Users, keys, the audit log, limits and snapshots of a server: the verbs of administrators, blocking and for asyncio.

They ask the server each time and keep nothing. An embedded database has none of it and answers InvalidError.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from msgspec import UNSET, UnsetType

from qilbeedb import account_calls
from qilbeedb.account_wire import (
    AuditEvent,
    EndpointType,
    KeyInfo,
    LockedUser,
    LockoutStatus,
    NewKey,
    NewKeyBody,
    NewPolicyBody,
    NewUserBody,
    PolicyChangesBody,
    PolicyInfo,
    Result,
    RolesBody,
    UserChangesBody,
    UserInfo,
)
from qilbeedb.exchange import Call
from qilbeedb.wire import SnapshotAnswer

__all__ = ["Administration", "AsyncAdministration"]

T = TypeVar("T")


class Administration:
    """What :class:`~qilbeedb.QilbeeDB` asks of a server besides memories."""

    @abstractmethod
    def _run(self, call: Call[T]) -> T:
        """The answer to a call."""

    # Sessions

    def revoke_token(self, token: str) -> None:
        """End the session of an access or refresh token."""
        self._run(account_calls.revoke(token))

    def revoke_all_tokens(self, user_id: str, reason: str | None = None) -> None:
        """End all sessions of a user."""
        self._run(account_calls.revoke_all(user_id, reason))

    def change_password(self, current_password: str, new_password: str) -> None:
        """Give oneself another password, which ends all one's sessions: log in again."""
        self._run(account_calls.change_password(current_password, new_password))

    # Users

    def create_user(
        self,
        username: str,
        password: str,
        email: str | None = None,
        roles: Sequence[str] = ("Read",),
        agents: Sequence[str] | None = None,
    ) -> UserInfo:
        """Make a user. ``agents`` limits him to those. ConflictError where the name is taken."""
        return self._run(
            account_calls.create_user(
                NewUserBody(username=username, password=password, email=email, roles=roles, agents=agents)
            )
        )

    def list_users(self) -> list[UserInfo]:
        """All users, by name."""
        return self._run(account_calls.list_users())

    def get_user(self, user_id: str) -> UserInfo:
        """One user; NotFoundError where there is none."""
        return self._run(account_calls.get_user(user_id))

    def update_user(
        self,
        user_id: str,
        *,
        password: str | UnsetType = UNSET,
        email: str | UnsetType | None = UNSET,
        roles: Sequence[str] | UnsetType = UNSET,
        agents: Sequence[str] | UnsetType | None = UNSET,
        is_active: bool | UnsetType = UNSET,
    ) -> UserInfo:
        """Change what is given of a user, and give him as he is now."""
        changes = UserChangesBody(password=password, email=email, roles=roles, agents=agents, is_active=is_active)
        return self._run(account_calls.update_user(user_id, changes))

    def update_user_roles(self, user_id: str, roles: Sequence[str]) -> UserInfo:
        """Give a user other roles, from his next request on."""
        return self._run(account_calls.update_roles(user_id, RolesBody(roles=roles)))

    def delete_user(self, user_id: str) -> bool:
        """Remove a user, with his keys; False where there is none."""
        return self._run(account_calls.delete_user(user_id))

    # API keys

    def create_api_key(
        self,
        name: str,
        *,
        expires_in_days: int | None = None,
        agents: Sequence[str] | None = None,
        permissions: Sequence[str] | None = None,
    ) -> NewKey:
        """Make an API key for oneself; its ``key`` is shown this once. It may do no more than its user may."""
        body = NewKeyBody(name=name, expires_in_days=expires_in_days, agents=agents, permissions=permissions)
        return self._run(account_calls.create_key(body))

    def list_api_keys(self, *, everybodys: bool = False) -> list[KeyInfo]:
        """One's own keys, or as an administrator everybody's; the oldest first."""
        return self._run(account_calls.list_keys(everybodys=everybodys))

    def delete_api_key(self, key_id: str) -> bool:
        """Revoke a key at once; False where there is none."""
        return self._run(account_calls.delete_key(key_id))

    # The audit log

    def get_audit_logs(
        self,
        *,
        event_type: str | None = None,
        user_id: str | None = None,
        username: str | None = None,
        result: Result | None = None,
        ip_address: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        limit: int = 100,
    ) -> list[AuditEvent]:
        """What happened, the newest first: all that is as given, with ``start_time <= time < end_time``."""
        given = {
            "event_type": event_type,
            "user_id": user_id,
            "username": username,
            "result": result,
            "ip_address": ip_address,
            "limit": limit,
        }
        return self._run(account_calls.audit_logs(given, start_time, end_time))

    # Lockouts

    def get_locked_accounts(self) -> list[LockedUser]:
        """Who cannot log in now."""
        return self._run(account_calls.locked_accounts())

    def get_lockout_status(self, username: str) -> LockoutStatus:
        """How many attempts a user has left, or until when he is locked out."""
        return self._run(account_calls.lockout_status(username))

    def lock_account(self, username: str, reason: str | None = None) -> None:
        """Let a user not log in until he is unlocked."""
        self._run(account_calls.lock_account(username, reason))

    def unlock_account(self, username: str) -> None:
        """Let a user log in again."""
        self._run(account_calls.unlock_account(username))

    # Rate limits

    def create_rate_limit_policy(
        self, name: str, endpoint_type: EndpointType, max_requests: int, window_secs: int, enabled: bool = True
    ) -> PolicyInfo:
        """Allow each caller ``max_requests`` in ``window_secs`` seconds.

        ``endpoint_type`` is Login, ApiKeyCreation, UserManagement, GeneralApi, or ``{"Custom": path}``.
        """
        body = NewPolicyBody(
            name=name,
            endpoint_type=endpoint_type,
            max_requests=max_requests,
            window_secs=window_secs,
            enabled=enabled,
        )
        return self._run(account_calls.create_policy(body))

    def list_rate_limit_policies(self) -> list[PolicyInfo]:
        """All rate limits, the oldest first."""
        return self._run(account_calls.list_policies())

    def get_rate_limit_policy(self, policy_id: str) -> PolicyInfo:
        """One rate limit; NotFoundError where there is none."""
        return self._run(account_calls.get_policy(policy_id))

    def update_rate_limit_policy(
        self,
        policy_id: str,
        *,
        name: str | UnsetType = UNSET,
        endpoint_type: EndpointType | UnsetType = UNSET,
        max_requests: int | UnsetType = UNSET,
        window_secs: int | UnsetType = UNSET,
        enabled: bool | UnsetType = UNSET,
    ) -> PolicyInfo:
        """Change what is given of a rate limit, and give it as it is now."""
        changes = PolicyChangesBody(
            name=name,
            endpoint_type=endpoint_type,
            max_requests=max_requests,
            window_secs=window_secs,
            enabled=enabled,
        )
        return self._run(account_calls.update_policy(policy_id, changes))

    def delete_rate_limit_policy(self, policy_id: str) -> bool:
        """Remove a rate limit; False where there is none."""
        return self._run(account_calls.delete_policy(policy_id))

    # The store

    def take_snapshot(self) -> SnapshotAnswer:
        """Copy the store of a server while it is open, to where its settings say; gives the path there, and its bytes.

        It may take longer than other calls: give a ``timeout`` that it fits in, or OutcomeUnknownError is raised while
        the server still copies. NotFoundError where ``server.snapshot_directory`` is not set.
        """
        return self._run(account_calls.take_snapshot())


class AsyncAdministration:
    """The same for :class:`~qilbeedb.AsyncQilbeeDB`, awaited."""

    @abstractmethod
    async def _run(self, call: Call[T]) -> T:
        """The answer to a call."""

    # Sessions

    async def revoke_token(self, token: str) -> None:
        """End the session of an access or refresh token."""
        await self._run(account_calls.revoke(token))

    async def revoke_all_tokens(self, user_id: str, reason: str | None = None) -> None:
        """End all sessions of a user."""
        await self._run(account_calls.revoke_all(user_id, reason))

    async def change_password(self, current_password: str, new_password: str) -> None:
        """Give oneself another password, which ends all one's sessions: log in again."""
        await self._run(account_calls.change_password(current_password, new_password))

    # Users

    async def create_user(
        self,
        username: str,
        password: str,
        email: str | None = None,
        roles: Sequence[str] = ("Read",),
        agents: Sequence[str] | None = None,
    ) -> UserInfo:
        """Make a user. ``agents`` limits him to those. ConflictError where the name is taken."""
        return await self._run(
            account_calls.create_user(
                NewUserBody(username=username, password=password, email=email, roles=roles, agents=agents)
            )
        )

    async def list_users(self) -> list[UserInfo]:
        """All users, by name."""
        return await self._run(account_calls.list_users())

    async def get_user(self, user_id: str) -> UserInfo:
        """One user; NotFoundError where there is none."""
        return await self._run(account_calls.get_user(user_id))

    async def update_user(
        self,
        user_id: str,
        *,
        password: str | UnsetType = UNSET,
        email: str | UnsetType | None = UNSET,
        roles: Sequence[str] | UnsetType = UNSET,
        agents: Sequence[str] | UnsetType | None = UNSET,
        is_active: bool | UnsetType = UNSET,
    ) -> UserInfo:
        """Change what is given of a user, and give him as he is now."""
        changes = UserChangesBody(password=password, email=email, roles=roles, agents=agents, is_active=is_active)
        return await self._run(account_calls.update_user(user_id, changes))

    async def update_user_roles(self, user_id: str, roles: Sequence[str]) -> UserInfo:
        """Give a user other roles, from his next request on."""
        return await self._run(account_calls.update_roles(user_id, RolesBody(roles=roles)))

    async def delete_user(self, user_id: str) -> bool:
        """Remove a user, with his keys; False where there is none."""
        return await self._run(account_calls.delete_user(user_id))

    # API keys

    async def create_api_key(
        self,
        name: str,
        *,
        expires_in_days: int | None = None,
        agents: Sequence[str] | None = None,
        permissions: Sequence[str] | None = None,
    ) -> NewKey:
        """Make an API key for oneself; its ``key`` is shown this once. It may do no more than its user may."""
        body = NewKeyBody(name=name, expires_in_days=expires_in_days, agents=agents, permissions=permissions)
        return await self._run(account_calls.create_key(body))

    async def list_api_keys(self, *, everybodys: bool = False) -> list[KeyInfo]:
        """One's own keys, or as an administrator everybody's; the oldest first."""
        return await self._run(account_calls.list_keys(everybodys=everybodys))

    async def delete_api_key(self, key_id: str) -> bool:
        """Revoke a key at once; False where there is none."""
        return await self._run(account_calls.delete_key(key_id))

    # The audit log

    async def get_audit_logs(
        self,
        *,
        event_type: str | None = None,
        user_id: str | None = None,
        username: str | None = None,
        result: Result | None = None,
        ip_address: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        limit: int = 100,
    ) -> list[AuditEvent]:
        """What happened, the newest first: all that is as given, with ``start_time <= time < end_time``."""
        given = {
            "event_type": event_type,
            "user_id": user_id,
            "username": username,
            "result": result,
            "ip_address": ip_address,
            "limit": limit,
        }
        return await self._run(account_calls.audit_logs(given, start_time, end_time))

    # Lockouts

    async def get_locked_accounts(self) -> list[LockedUser]:
        """Who cannot log in now."""
        return await self._run(account_calls.locked_accounts())

    async def get_lockout_status(self, username: str) -> LockoutStatus:
        """How many attempts a user has left, or until when he is locked out."""
        return await self._run(account_calls.lockout_status(username))

    async def lock_account(self, username: str, reason: str | None = None) -> None:
        """Let a user not log in until he is unlocked."""
        await self._run(account_calls.lock_account(username, reason))

    async def unlock_account(self, username: str) -> None:
        """Let a user log in again."""
        await self._run(account_calls.unlock_account(username))

    # Rate limits

    async def create_rate_limit_policy(
        self, name: str, endpoint_type: EndpointType, max_requests: int, window_secs: int, enabled: bool = True
    ) -> PolicyInfo:
        """Allow each caller ``max_requests`` in ``window_secs`` seconds.

        ``endpoint_type`` is Login, ApiKeyCreation, UserManagement, GeneralApi, or ``{"Custom": path}``.
        """
        body = NewPolicyBody(
            name=name,
            endpoint_type=endpoint_type,
            max_requests=max_requests,
            window_secs=window_secs,
            enabled=enabled,
        )
        return await self._run(account_calls.create_policy(body))

    async def list_rate_limit_policies(self) -> list[PolicyInfo]:
        """All rate limits, the oldest first."""
        return await self._run(account_calls.list_policies())

    async def get_rate_limit_policy(self, policy_id: str) -> PolicyInfo:
        """One rate limit; NotFoundError where there is none."""
        return await self._run(account_calls.get_policy(policy_id))

    async def update_rate_limit_policy(
        self,
        policy_id: str,
        *,
        name: str | UnsetType = UNSET,
        endpoint_type: EndpointType | UnsetType = UNSET,
        max_requests: int | UnsetType = UNSET,
        window_secs: int | UnsetType = UNSET,
        enabled: bool | UnsetType = UNSET,
    ) -> PolicyInfo:
        """Change what is given of a rate limit, and give it as it is now."""
        changes = PolicyChangesBody(
            name=name,
            endpoint_type=endpoint_type,
            max_requests=max_requests,
            window_secs=window_secs,
            enabled=enabled,
        )
        return await self._run(account_calls.update_policy(policy_id, changes))

    async def delete_rate_limit_policy(self, policy_id: str) -> bool:
        """Remove a rate limit; False where there is none."""
        return await self._run(account_calls.delete_policy(policy_id))

    # The store

    async def take_snapshot(self) -> SnapshotAnswer:
        """Copy the store of a server while it is open, to where its settings say; gives the path there, and its bytes.

        It may take longer than other calls: give a ``timeout`` that it fits in, or OutcomeUnknownError is raised while
        the server still copies. NotFoundError where ``server.snapshot_directory`` is not set.
        """
        return await self._run(account_calls.take_snapshot())
