"""Users: who may log in, and with which roles."""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterable, Sequence

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from qilbee_core import ConflictError, InvalidError, NotFoundError, Store
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts.audit import event_of, moment
from qilbeedb.accounts.caller import Caller
from qilbeedb.accounts.passwords import hash_password
from qilbeedb.accounts.permissions import check_roles
from qilbeedb.accounts.tables import KEYS, SEEN, USERNAMES, USERS, Change, Tables, User

__all__ = ["Users", "administers", "check_agents", "folded"]

_USERNAME = re.compile(r"[\w.@+-]{1,64}")
_EMAIL = re.compile(r"[^\s@]{1,64}@[^\s@]{1,189}")
_AGENTS_MAX = 1000
_TRIED_CHARACTERS_MAX = 256
"""What is longer is no name, whatever its end."""


def folded(username: str) -> str:
    """What two names have in common that people would take for one.

    >>> folded("Ann") == folded("ann"), folded("Straße")
    (True, 'strasse')
    """
    return unicodedata.normalize("NFKC", username[:_TRIED_CHARACTERS_MAX]).casefold()


def check_agents(store: Store, agents: Iterable[str] | None) -> tuple[str, ...] | None:
    """The agents, in the form in which the store knows them; InvalidError for a name that no agent can have."""
    if agents is None:
        return None
    found = tuple(sorted({store.agent_memory(agent).agent_id for agent in agents}))
    if len(found) > _AGENTS_MAX:
        raise InvalidError(f"{len(found)} agents are named, at most {_AGENTS_MAX} fit", remedy="leave agents out")
    return found


class Users:
    """Makes, shows, changes and removes users. Each change is durable when it returns, and in the audit log."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables = tables

    def create(
        self,
        caller: Caller,
        username: str,
        password: str,
        *,
        email: str | None = None,
        roles: Sequence[str] = ("Read",),
        agents: Sequence[str] | None = None,
    ) -> UserInfo:
        """A new user; ConflictError where the name is taken, in whatever case."""
        if not _USERNAME.fullmatch(username):
            raise InvalidError("that is no username", remedy="use 1 to 64 letters, digits and . _ @ + -")
        _check_email(email)
        found, limited = check_roles(roles), check_agents(self._store, agents)
        _check_limited(found, limited)
        password_hash = hash_password(password)
        user_id = str(uuid.uuid4())

        def plan(change: Change) -> User:
            if change.get(USERNAMES, folded(username)) is not None:
                raise ConflictError(f"there is a user {username!r} already", remedy="take another name")
            now_us = change.now_us
            user = User(username, email, found, limited, True, now_us, now_us, 1, password_hash)
            change.put(USERNAMES, folded(username), user_id)
            change.put(USERS, user_id, user)
            _record(change, caller, "user_created", user_id, username, roles=list(found))
            return user

        return self._info(user_id, self._tables.change(plan, durable=True))

    def all(self) -> list[UserInfo]:
        """All users, by name."""
        found = [self._info(user_id, user) for user_id, user in self._tables.scan(USERS)]
        return sorted(found, key=lambda info: info.username)

    def get(self, user_id: str) -> UserInfo:
        """One user, or NotFoundError."""
        user = self._tables.get(USERS, user_id)
        if user is None:
            raise _unknown()
        return self._info(user_id, user)

    def named(self, username: str) -> UserInfo:
        """The user of that name, or NotFoundError."""
        user_id = self._tables.get(USERNAMES, folded(username))
        if user_id is None:
            raise NotFoundError(f"there is no user {username!r}", remedy="check the name; qilbee user list shows them")
        return self.get(user_id)

    def update(
        self,
        caller: Caller,
        user_id: str,
        *,
        password: str | UnsetType = UNSET,
        email: str | UnsetType | None = UNSET,
        roles: Sequence[str] | UnsetType = UNSET,
        agents: Sequence[str] | UnsetType | None = UNSET,
        is_active: bool | UnsetType = UNSET,
    ) -> UserInfo:
        """Change what is given. A new password, or no longer to be active, ends all sessions of the user.

        ConflictError where nobody would be left who can administer.
        """
        given: dict[str, object] = {}
        if email is not UNSET:
            _check_email(email)
            given["email"] = email
        if roles is not UNSET:
            given["roles"] = check_roles(roles)
        if agents is not UNSET:
            given["agents"] = check_agents(self._store, agents)
        if is_active is not UNSET:
            given["active"] = is_active
        changed = sorted(given) if password is UNSET else sorted([*given, "password"])
        if password is not UNSET:
            given["password_hash"] = hash_password(password)

        def plan(change: Change) -> User:
            before = change.get(USERS, user_id)
            if before is None:
                raise _unknown()
            ends_sessions = "password_hash" in given or given.get("active") is False
            user = replace(
                before,
                **given,
                updated_us=change.now_us,
                version=before.version + 1 if ends_sessions else before.version,
            )
            _check_limited(user.roles, user.agents)
            if administers(before) and not administers(user):
                self._need_another_admin(change, user_id)
            change.put(USERS, user_id, user)
            _record(change, caller, "user_updated", user_id, user.username, changed=list(changed))
            return user

        return self._info(user_id, self._tables.change(plan, durable=True))

    def end_sessions(self, caller: Caller, user_id: str, reason: str | None = None) -> None:
        """Let no session of a user go on that has begun so far."""

        def plan(change: Change) -> None:
            user = change.get(USERS, user_id)
            if user is None:
                raise _unknown()
            change.put(USERS, user_id, replace(user, version=user.version + 1))
            _record(change, caller, "tokens_revoked", user_id, user.username, reason=reason)

        self._tables.change(plan, durable=True)

    def delete(self, caller: Caller, user_id: str) -> None:
        """Remove a user and his keys; NotFoundError, or ConflictError for the last who can administer."""

        def plan(change: Change) -> None:
            user = change.get(USERS, user_id)
            if user is None:
                raise _unknown()
            if administers(user):
                self._need_another_admin(change, user_id)
            change.delete(USERS, user_id)
            change.delete(USERNAMES, folded(user.username))
            change.delete(SEEN, user_id)
            for key_id, key in self._tables.scan(KEYS):
                if key.user_id == user_id:
                    change.delete(KEYS, key_id)
            _record(change, caller, "user_deleted", user_id, user.username)

        self._tables.change(plan, durable=True)

    def _need_another_admin(self, change: Change, user_id: str) -> None:
        for other_id, _ in self._tables.scan(USERS):
            # Read again through the change, which then expects him to stay what he is.
            if other_id != user_id and (other := self._tables.get(USERS, other_id)) is not None and administers(other):
                found = change.get(USERS, other_id)
                if found is not None and administers(found):
                    return
        raise ConflictError("nobody else could administer this server", remedy="make somebody else an Admin first")

    def _info(self, user_id: str, user: User) -> UserInfo:
        seen_us = self._tables.get(SEEN, user_id)
        return UserInfo(
            id=user_id,
            username=user.username,
            email=user.email,
            roles=user.roles,
            agents=user.agents,
            is_active=user.active,
            created_at=moment(user.created_us),
            updated_at=moment(user.updated_us),
            last_login=None if seen_us is None else moment(seen_us),
        )


def administers(user: User) -> bool:
    """Whether he may log in and administer: one such user is always left."""
    return user.active and "Admin" in user.roles


def _check_limited(roles: Sequence[str], agents: Sequence[str] | None) -> None:
    if agents is not None and "Admin" in roles:
        raise InvalidError(
            "an Admin cannot be limited to some agents, for he could lift that himself",
            remedy="give another role, or leave agents out",
        )


def _check_email(email: str | None) -> None:
    if email is not None and not _EMAIL.fullmatch(email):
        raise InvalidError("that is no email address", remedy="leave it out, or write it like ann@example.org")


def _unknown() -> NotFoundError:
    return NotFoundError("there is no such user", remedy="GET /api/v1/users lists them with their ids")


def _record(
    change: Change, caller: Caller, event_type: str, user_id: str, username: str, **metadata: str | list[str] | None
) -> None:
    told = {key: value for key, value in metadata.items() if value is not None}
    change.record(
        event_of(
            event_type,
            caller,
            change.now_us,
            action=event_type.replace("_", " "),
            resource=f"user/{user_id}",
            metadata={"target": username, **told},
        )
    )
