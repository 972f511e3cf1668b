"""API keys: for programs. A key is shown once; what is stored does not open anything."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import asdict

from qilbee_core import AuthenticationError, ConflictError, InvalidError, NotFoundError, Store
from qilbeedb.account_wire import KeyInfo, NewKey
from qilbeedb.accounts.audit import event_of, moment
from qilbeedb.accounts.caller import Caller
from qilbeedb.accounts.permissions import KEY_PERMISSIONS, Permission, permissions_of
from qilbeedb.accounts.tables import KEYS, USERS, ApiKey, Change, Tables
from qilbeedb.accounts.tokens import KEY_PREFIX, digest_of, new_key
from qilbeedb.accounts.users import check_agents

__all__ = ["Keys"]

KEYS_PER_USER_MAX = 100
DAYS_MAX = 3650
_DAY_US = 24 * 3600 * 1_000_000
_NAME_CHARACTERS_MAX = 100


class Keys:
    """Makes, shows and revokes keys. Each change is durable when it returns, and in the audit log."""

    def __init__(self, store: Store, tables: Tables) -> None:
        self._store = store
        self._tables = tables

    def create(
        self,
        caller: Caller,
        user_id: str,
        name: str,
        *,
        expires_in_days: int | None = None,
        agents: Sequence[str] | None = None,
        permissions: Sequence[str] | None = None,
    ) -> NewKey:
        """A key of a user, limited to ``agents`` and ``permissions`` where they are given.

        Without ``permissions`` it may do what the user may with memories, and nothing with accounts. Where another key
        makes it, it opens no more than that one, and no longer: what is left out is as there.
        """
        if not 1 <= len(name) <= _NAME_CHARACTERS_MAX or not name.isprintable():
            raise InvalidError(
                "that is no name for a key", remedy=f"use 1 to {_NAME_CHARACTERS_MAX} characters of text"
            )
        if expires_in_days is not None and not 1 <= expires_in_days <= DAYS_MAX:
            raise InvalidError(f"expires_in_days is {expires_in_days}", remedy=f"use 1 to {DAYS_MAX}, or leave it out")
        limited = check_agents(self._store, agents)
        verbs: tuple[str, ...] | None = (
            None if permissions is None else tuple(sorted(_permission(each) for each in set(permissions)))
        )
        if limited is not None and Permission.ADMIN in (verbs or ()):
            raise InvalidError(
                "a key that administers cannot be limited to some agents, for it could lift that itself",
                remedy="leave out agents, or the permission admin",
            )
        key_id = str(uuid.uuid4())
        text = new_key(key_id)

        def plan(change: Change) -> ApiKey:
            user = change.get(USERS, user_id)
            if user is None:
                raise NotFoundError("there is no such user", remedy="check the id")
            lacking = set(verbs or ()).difference(permissions_of(user.roles))
            if limited is not None and user.agents is not None:
                lacking |= {*limited} - {*user.agents}
            if lacking:
                raise InvalidError(
                    f"{user.username} has not got {', '.join(sorted(lacking))}", remedy="a key has no more than he has"
                )
            expires_us = None if expires_in_days is None else change.now_us + expires_in_days * _DAY_US
            opens = _Opens(limited, verbs, expires_us)
            if caller.principal is not None and caller.principal.api_key_id is not None:
                opens = _within(opens, change.get(KEYS, caller.principal.api_key_id))
            if sum(key.user_id == user_id for _, key in self._tables.scan(KEYS)) >= KEYS_PER_USER_MAX:
                raise ConflictError(f"{user.username} has {KEYS_PER_USER_MAX} keys", remedy="revoke those not in use")
            prefix = text[: len(KEY_PREFIX) + 8]
            key = ApiKey(
                user_id, digest_of(text), prefix, name, change.now_us, opens.until_us, opens.agents, opens.permissions
            )
            change.put(KEYS, key_id, key)
            _record(change, caller, "api_key_created", key_id, key, user.username)
            return key

        return NewKey(key=text, **asdict(_info(key_id, self._tables.change(plan, durable=True))))

    def all(self, user_id: str | None = None) -> list[KeyInfo]:
        """The keys of a user, or of all, the oldest first."""
        found = [
            _info(key_id, key) for key_id, key in self._tables.scan(KEYS) if user_id is None or key.user_id == user_id
        ]
        return sorted(found, key=lambda info: (info.created_at, info.id))

    def revoke(self, caller: Caller, key_id: str, user_id: str | None = None) -> None:
        """Let a key, of that user if one is named, open nothing from now on; NotFoundError."""

        def plan(change: Change) -> None:
            key = change.get(KEYS, key_id)
            if key is None or (user_id is not None and key.user_id != user_id):
                raise NotFoundError("there is no such API key", remedy="GET /api/v1/api-keys lists them with their ids")
            user = self._tables.get(USERS, key.user_id)
            change.delete(KEYS, key_id)
            _record(change, caller, "api_key_revoked", key_id, key, None if user is None else user.username)

        self._tables.change(plan, durable=True)


class _Opens(NamedTuple):
    """What a key opens, and until when; None: no limit of its own."""

    agents: tuple[str, ...] | None
    permissions: tuple[str, ...] | None
    until_us: int | None


def _within(asked: _Opens, maker: ApiKey | None) -> _Opens:
    """What a key opens that another one makes; InvalidError for more than that one does."""
    if maker is None:
        raise AuthenticationError("the API key was revoked", remedy="use another key")
    most = sorted(KEY_PERMISSIONS) if maker.permissions is None else maker.permissions
    lacking = {*(asked.permissions or ())} - {*most}
    if maker.agents is not None:
        lacking |= {*(asked.agents or ())} - {*maker.agents}
    if lacking:
        raise InvalidError(
            f"the key that makes it has not got {', '.join(sorted(lacking))}", remedy="log in to make a key with more"
        )
    if maker.expires_us is not None and (asked.until_us or 0) > maker.expires_us:
        raise InvalidError("the key that makes it ends sooner", remedy="log in to make a key that lasts longer")
    usual = tuple(each for each in most if each in KEY_PERMISSIONS)
    return _Opens(
        maker.agents if asked.agents is None else asked.agents,
        usual if asked.permissions is None else asked.permissions,
        maker.expires_us if asked.until_us is None else asked.until_us,
    )


def _permission(text: str) -> Permission:
    try:
        found = Permission(text)
    except ValueError:
        found = Permission.PUBLIC
    if found is Permission.PUBLIC:
        known = ", ".join(each for each in Permission if each is not Permission.PUBLIC)
        raise InvalidError(f"there is no permission {text!r}", remedy=f"the permissions are {known}")
    return found


def _info(key_id: str, key: ApiKey) -> KeyInfo:
    return KeyInfo(
        id=key_id,
        prefix=key.prefix,
        name=key.name,
        user_id=key.user_id,
        created_at=moment(key.created_us),
        expires_at=None if key.expires_us is None else moment(key.expires_us),
        agents=key.agents,
        permissions=key.permissions,
    )


def _record(change: Change, caller: Caller, event_type: str, key_id: str, key: ApiKey, username: str | None) -> None:
    change.record(
        event_of(
            event_type,
            caller,
            change.now_us,
            action=event_type.replace("_", " "),
            resource=f"api-key/{key_id}",
            metadata={"target": username, "name": key.name, "prefix": key.prefix},
        )
    )
