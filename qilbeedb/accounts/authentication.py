"""Who makes a request: told from an access token or an API key, in microseconds, with nothing believed from before.

What took long is remembered under the digest of the credential: that the signature is good, or the digest of the key.
Whether the session, the key and the user are still what they were is looked at each time: while nobody has written to
the accounts, or while their rows are byte by byte the same, so is what follows from them. So what any process has
revoked is revoked with the next request.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

from qilbee_core import AuthenticationError, InvalidError
from qilbeedb.accounts.permissions import KEY_PERMISSIONS, Permission, Principal
from qilbeedb.accounts.tables import KEYS, SESSIONS, USERS, Tables, User
from qilbeedb.accounts.tokens import KEY_PREFIX, Tokens, digest_of, is_same

__all__ = ["Authenticator"]

_KNOWN_MAX = 10_000
_CREDENTIAL_CHARACTERS_MAX = 2048


class _Known(NamedTuple):
    """A credential that was good, the rows that made it so (as of a version of all), and what follows from them."""

    version: int | None
    expires_us: int
    row_name: str
    row: bytes
    user_name: str
    user_row: bytes
    principal: Principal


class Authenticator:
    """Tells principals from credentials."""

    def __init__(self, tables: Tables, tokens: Tokens) -> None:
        self._tables = tables
        self._tokens = tokens
        self._rows = tables.rows
        self._get = tables.rows.get
        self._known: dict[bytes, _Known] = {}

    def authenticate(self, authorization: str | None, api_key: str | None) -> Principal:
        """Who comes with the headers ``Authorization`` and ``X-API-Key``; AuthenticationError where neither is good."""
        if api_key is not None:
            return self._checked(api_key.strip())
        if authorization is None:
            raise AuthenticationError(
                "no credentials came with the request",
                remedy="log in and send Authorization: Bearer <access token>, or send X-API-Key",
            )
        scheme, _, credential = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            return self._checked(credential.strip())
        if scheme.lower() == "basic":
            raise AuthenticationError(
                "HTTP Basic is not supported, for each request would cost a password hash",
                remedy="POST /api/v1/auth/login once and send its access token, or use an API key",
            )
        raise AuthenticationError("the scheme of Authorization is unknown", remedy="use Bearer, or X-API-Key")

    def _checked(self, credential: str) -> Principal:
        if len(credential) > _CREDENTIAL_CHARACTERS_MAX:
            raise AuthenticationError("the credential is too long to be one of this server")
        digest = digest_of(credential)
        known = self._known.get(digest)
        version = self._rows.version  # before the rows are read
        if known is None or version is None or known.version != version:
            known = self._remembered(digest, self._read(credential, digest, known, version))
        if known.expires_us <= self._tables.now_us():
            raise AuthenticationError("the credential has expired")
        return known.principal

    def _remembered(self, digest: bytes, known: _Known) -> _Known:
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[digest] = known
        return known

    def _read(self, credential: str, digest: bytes, known: _Known | None, version: int | None) -> _Known:
        if (
            known is not None
            and self._get(known.row_name) == known.row
            and self._get(known.user_name) == known.user_row
        ):
            return known._replace(version=version)
        self._known.pop(digest, None)
        if credential.startswith(KEY_PREFIX):
            return self._read_key(credential, digest, version)
        claims = self._tokens.read(credential)
        name = SESSIONS.name(claims.sid)
        row = self._get(name)
        session = None if row is None else SESSIONS.decode(name, row)
        if row is None or session is None or session.user_id != claims.sub:
            raise AuthenticationError("the session has ended")
        user_name, user_row, user = self._user(session.user_id)
        if user.version != session.version:
            raise AuthenticationError("the session has ended")
        principal = Principal(
            user_id=session.user_id,
            username=user.username,
            roles=user.roles,
            agents=None if user.agents is None else frozenset(user.agents),
            session_id=claims.sid,
        )
        expires_us = min(claims.exp * 1_000_000, session.expires_us)
        return _Known(version, expires_us, name, row, user_name, user_row, principal)

    def _read_key(self, credential: str, digest: bytes, version: int | None) -> _Known:
        wrong = AuthenticationError("the API key is not one of this server, or was revoked", remedy="use another key")
        try:
            key_id = str(uuid.UUID(hex=credential.removeprefix(KEY_PREFIX).partition("_")[0]))
        except ValueError:
            raise wrong from None
        name = KEYS.name(key_id)
        row = self._get(name)
        key = None if row is None else KEYS.decode(name, row)
        if row is None or key is None or not is_same(key.digest, digest):
            raise wrong
        user_name, user_row, user = self._user(key.user_id)
        limits = [frozenset(agents) for agents in (user.agents, key.agents) if agents is not None]
        given = KEY_PERMISSIONS if key.permissions is None else map(Permission, key.permissions)
        principal = Principal(
            user_id=key.user_id,
            username=user.username,
            roles=user.roles,
            agents=frozenset.intersection(*limits) if limits else None,
            permissions=frozenset(given),
            api_key_id=key_id,
        )
        expires_us = (1 << 63) if key.expires_us is None else key.expires_us
        return _Known(version, expires_us, name, row, user_name, user_row, principal)

    def _user(self, user_id: str) -> tuple[str, bytes, User]:
        try:
            name = USERS.name(user_id)
            row = self._get(name)
        except InvalidError:
            row = None
        user = None if row is None else USERS.decode(name, row)
        if row is None or user is None or not user.active:
            raise AuthenticationError("the user is not there, or not active", remedy="ask an administrator")
        return name, row, user
