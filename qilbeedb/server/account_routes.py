"""The routes of accounts: sessions, users, API keys, the audit log, lockouts, rate limits.

Each handler awaits a verb of :class:`~qilbeedb.accounts.Accounts` in its own threads: most of them hash a password or
wait for the disk.
"""

from __future__ import annotations

from datetime import UTC, datetime

from qilbeedb.account_wire import (
    AuditQuery,
    DoneAnswer,
    EventsAnswer,
    KeyQuery,
    KeysAnswer,
    LockBody,
    LockedUsersAnswer,
    LockoutAnswer,
    Login,
    LoginBody,
    NewKey,
    NewKeyBody,
    NewPolicyBody,
    NewUserBody,
    PasswordBody,
    PoliciesAnswer,
    PolicyChangesBody,
    PolicyInfo,
    RefreshBody,
    RevokeAllBody,
    RevokeBody,
    RolesBody,
    UserChangesBody,
    UserInfo,
    UsersAnswer,
)
from qilbeedb.accounts import Permission, audit
from qilbeedb.server.route import Call, Route, route
from qilbeedb.wire import Nothing

__all__ = ["ACCOUNT_ROUTES"]


# --- sessions


async def login(call: Call[LoginBody]) -> Login:
    """Begin a session with a name and a password."""
    accounts = call.accounts
    return await accounts.run(accounts.sessions.login, call.caller, call.body.username, call.body.password)


async def refresh(call: Call[RefreshBody]) -> Login:
    """Go on with a session: a new access token, and the next refresh token."""
    accounts = call.accounts
    return await accounts.run(accounts.sessions.refresh, call.caller, call.body.refresh_token)


async def logout(call: Call[Nothing]) -> DoneAnswer:
    """End this session."""
    accounts = call.accounts
    await accounts.run(accounts.sessions.logout, call.caller)
    return DoneAnswer(message="logged out")


async def revoke(call: Call[RevokeBody]) -> DoneAnswer:
    """End the session of a token: one's own, or as an administrator anybody's."""
    accounts = call.accounts
    await accounts.run(accounts.sessions.revoke, call.caller, call.body.token)
    return DoneAnswer(message="the session of this token has ended")


async def revoke_all(call: Call[RevokeAllBody]) -> DoneAnswer:
    """End all sessions of a user."""
    accounts = call.accounts
    await accounts.run(accounts.users.end_sessions, call.caller, call.body.user_id, call.body.reason)
    return DoneAnswer(message="all sessions of this user have ended")


async def change_password(call: Call[PasswordBody]) -> DoneAnswer:
    """Give oneself another password, which ends all one's sessions."""
    accounts = call.accounts
    await accounts.run(
        accounts.sessions.change_password, call.caller, call.body.current_password, call.body.new_password
    )
    return DoneAnswer(message="the password is changed, log in with it")


# --- users


async def create_user(call: Call[NewUserBody]) -> UserInfo:
    """Make a user."""
    accounts, body = call.accounts, call.body
    return await accounts.run(
        accounts.users.create,
        call.caller,
        body.username,
        body.password,
        email=body.email,
        roles=body.roles,
        agents=body.agents,
    )


async def list_users(call: Call[Nothing]) -> UsersAnswer:
    """All users."""
    accounts = call.accounts
    return UsersAnswer(users=await accounts.run(accounts.users.all))


async def get_user(call: Call[Nothing]) -> UserInfo:
    """One user."""
    accounts = call.accounts
    return await accounts.run(accounts.users.get, call.parameters["id"])


async def update_user(call: Call[UserChangesBody]) -> UserInfo:
    """Change a user."""
    accounts, body = call.accounts, call.body
    return await accounts.run(
        accounts.users.update,
        call.caller,
        call.parameters["id"],
        password=body.password,
        email=body.email,
        roles=body.roles,
        agents=body.agents,
        is_active=body.is_active,
    )


async def set_roles(call: Call[RolesBody]) -> UserInfo:
    """Give a user other roles."""
    accounts = call.accounts
    return await accounts.run(accounts.users.update, call.caller, call.parameters["id"], roles=call.body.roles)


async def delete_user(call: Call[Nothing]) -> DoneAnswer:
    """Remove a user, and his keys."""
    accounts = call.accounts
    await accounts.run(accounts.users.delete, call.caller, call.parameters["id"])
    return DoneAnswer(message="the user is removed")


# --- API keys


async def create_key(call: Call[NewKeyBody]) -> NewKey:
    """Make an API key for oneself. It is shown this once."""
    accounts, body = call.accounts, call.body
    return await accounts.run(
        accounts.keys.create,
        call.caller,
        call.principal.user_id,
        body.name,
        expires_in_days=body.expires_in_days,
        agents=body.agents,
        permissions=body.permissions,
    )


async def list_keys(call: Call[KeyQuery]) -> KeysAnswer:
    """One's API keys, or as an administrator everybody's."""
    accounts, principal = call.accounts, call.principal
    everybodys = call.body.all and principal.may(Permission.ADMIN)
    return KeysAnswer(keys=await accounts.run(accounts.keys.all, None if everybodys else principal.user_id))


async def revoke_key(call: Call[Nothing]) -> DoneAnswer:
    """Revoke one of one's API keys, or as an administrator anybody's."""
    accounts, principal = call.accounts, call.principal
    user_id = None if principal.may(Permission.ADMIN) else principal.user_id
    await accounts.run(accounts.keys.revoke, call.caller, call.parameters["id"], user_id)
    return DoneAnswer(message="the key is revoked")


# --- the audit log


async def audit_logs(call: Call[AuditQuery]) -> EventsAnswer:
    """What happened, the newest first."""
    accounts, asked = call.accounts, call.body
    events = await accounts.run(
        audit.query,
        accounts.tables,
        limit=asked.limit,
        event_type=asked.event_type,
        user_id=asked.user_id,
        username=asked.username,
        result=asked.result,
        ip_address=asked.ip_address,
        start_time=_in_utc(asked.start_time),
        end_time=_in_utc(asked.end_time),
    )
    return EventsAnswer(events=events, count=len(events), limit=asked.limit)


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


# --- lockouts


async def locked_users(call: Call[Nothing]) -> LockedUsersAnswer:
    """Who cannot log in now."""
    accounts = call.accounts
    found = await accounts.run(accounts.locked_users)
    return LockedUsersAnswer(locked_users=found, count=len(found))


async def lockout(call: Call[Nothing]) -> LockoutAnswer:
    """How one name stands."""
    accounts, username = call.accounts, call.parameters["username"]
    return LockoutAnswer(username=username, status=await accounts.run(accounts.lockout, username))


async def lock(call: Call[LockBody]) -> DoneAnswer:
    """Let a user not log in until he is unlocked."""
    accounts, username = call.accounts, call.parameters["username"]
    await accounts.run(accounts.lock, call.caller, username, call.body.reason or "")
    return DoneAnswer(message=f"{username!r} is locked")


async def unlock(call: Call[Nothing]) -> DoneAnswer:
    """Let a user log in again."""
    accounts, username = call.accounts, call.parameters["username"]
    await accounts.run(accounts.unlock, call.caller, username)
    return DoneAnswer(message=f"{username!r} is unlocked")


# --- rate limits


async def create_policy(call: Call[NewPolicyBody]) -> PolicyInfo:
    """Make a rate limit."""
    accounts, body = call.accounts, call.body
    return await accounts.run(
        accounts.policies.create,
        call.caller,
        name=body.name,
        endpoint_type=body.endpoint_type,
        max_requests=body.max_requests,
        window_secs=body.window_secs,
        enabled=body.enabled,
    )


async def list_policies(call: Call[Nothing]) -> PoliciesAnswer:
    """All rate limits."""
    accounts = call.accounts
    return PoliciesAnswer(policies=await accounts.run(accounts.policies.all))


async def get_policy(call: Call[Nothing]) -> PolicyInfo:
    """One rate limit."""
    accounts = call.accounts
    return await accounts.run(accounts.policies.get, call.parameters["id"])


async def update_policy(call: Call[PolicyChangesBody]) -> PolicyInfo:
    """Change a rate limit."""
    accounts, body = call.accounts, call.body
    return await accounts.run(
        accounts.policies.update,
        call.caller,
        call.parameters["id"],
        name=body.name,
        endpoint_type=body.endpoint_type,
        max_requests=body.max_requests,
        window_secs=body.window_secs,
        enabled=body.enabled,
    )


async def delete_policy(call: Call[Nothing]) -> DoneAnswer:
    """Remove a rate limit."""
    accounts = call.accounts
    await accounts.run(accounts.policies.delete, call.caller, call.parameters["id"])
    return DoneAnswer(message="the rate limit is removed")


_AUTH, _USERS, _KEYS = "/api/v1/auth", "/api/v1/users", "/api/v1/api-keys"
_LOCKOUTS, _RATES = "/api/v1/lockouts", "/api/v1/rate-limits"
_PUBLIC, _SELF, _ADMIN = Permission.PUBLIC, Permission.SELF, Permission.ADMIN
_LOGIN, _USER = "Login", "UserManagement"

ACCOUNT_ROUTES: tuple[Route, ...] = (
    route("POST", f"{_AUTH}/login", _PUBLIC, login, "Log in", LoginBody, Login, rate=_LOGIN),
    route("POST", f"{_AUTH}/refresh", _PUBLIC, refresh, "Refresh a session", RefreshBody, Login, rate=_LOGIN),
    route("POST", f"{_AUTH}/logout", _SELF, logout, "Log out", Nothing, DoneAnswer),
    route("POST", f"{_AUTH}/revoke", _SELF, revoke, "Revoke a token", RevokeBody, DoneAnswer),
    route("POST", f"{_AUTH}/revoke-all", _ADMIN, revoke_all, "Revoke all tokens of a user", RevokeAllBody, DoneAnswer),
    route(
        "POST",
        f"{_AUTH}/password",
        _SELF,
        change_password,
        "Change a password",
        PasswordBody,
        DoneAnswer,
        rate=_LOGIN,
    ),
    route("POST", _USERS, _ADMIN, create_user, "Make a user", NewUserBody, UserInfo, status=201, rate=_USER),
    route("GET", _USERS, _ADMIN, list_users, "List users", Nothing, UsersAnswer, rate=_USER),
    route("GET", f"{_USERS}/{{id}}", _ADMIN, get_user, "Show a user", Nothing, UserInfo, rate=_USER),
    route("PUT", f"{_USERS}/{{id}}", _ADMIN, update_user, "Change a user", UserChangesBody, UserInfo, rate=_USER),
    route("PUT", f"{_USERS}/{{id}}/roles", _ADMIN, set_roles, "Give a user roles", RolesBody, UserInfo, rate=_USER),
    route("DELETE", f"{_USERS}/{{id}}", _ADMIN, delete_user, "Remove a user", Nothing, DoneAnswer, rate=_USER),
    route("POST", _KEYS, _SELF, create_key, "Make an API key", NewKeyBody, NewKey, status=201, rate="ApiKeyCreation"),
    route("GET", _KEYS, _SELF, list_keys, "List API keys", KeyQuery, KeysAnswer),
    route("DELETE", f"{_KEYS}/{{id}}", _SELF, revoke_key, "Revoke an API key", Nothing, DoneAnswer),
    route("GET", "/api/v1/audit-logs", _ADMIN, audit_logs, "Show the audit log", AuditQuery, EventsAnswer),
    route("GET", _LOCKOUTS, _ADMIN, locked_users, "List locked users", Nothing, LockedUsersAnswer),
    route("GET", f"{_LOCKOUTS}/{{username}}", _ADMIN, lockout, "Show a lockout", Nothing, LockoutAnswer),
    route("DELETE", f"{_LOCKOUTS}/{{username}}", _ADMIN, unlock, "Unlock a user", Nothing, DoneAnswer),
    route("POST", f"{_LOCKOUTS}/{{username}}/lock", _ADMIN, lock, "Lock a user", LockBody, DoneAnswer),
    route("POST", _RATES, _ADMIN, create_policy, "Make a rate limit", NewPolicyBody, PolicyInfo, status=201),
    route("GET", _RATES, _ADMIN, list_policies, "List rate limits", Nothing, PoliciesAnswer),
    route("GET", f"{_RATES}/{{id}}", _ADMIN, get_policy, "Show a rate limit", Nothing, PolicyInfo),
    route("PUT", f"{_RATES}/{{id}}", _ADMIN, update_policy, "Change a rate limit", PolicyChangesBody, PolicyInfo),
    route("DELETE", f"{_RATES}/{{id}}", _ADMIN, delete_policy, "Remove a rate limit", Nothing, DoneAnswer),
)
