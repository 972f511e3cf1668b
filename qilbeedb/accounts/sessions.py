"""Logging in and out: a session begins with a password and goes on with refresh tokens.

A session is a row. Whoever removes it has revoked all its tokens, at once and after a restart. A refresh gives the next
refresh token; the one before stays good until the next is first used, for the answer may have been lost. Any other one
of the session, used up or made up, is a theft: it ends the session for the thief and for the robbed, who logs in again.
"""

from __future__ import annotations

import uuid
from functools import partial

from msgspec.structs import replace

from qilbee_core import AuthenticationError, InvalidError, PermissionDeniedError
from qilbeedb.account_wire import Login
from qilbeedb.accounts.addresses import is_loopback
from qilbeedb.accounts.audit import event_of
from qilbeedb.accounts.caller import Caller
from qilbeedb.accounts.lockouts import Lockouts, is_forgotten
from qilbeedb.accounts.passwords import check_password, hash_password, verify_password
from qilbeedb.accounts.permissions import Permission, Principal
from qilbeedb.accounts.settings import AccountSettings
from qilbeedb.accounts.tables import FAILURES, SEEN, SESSIONS, USERNAMES, USERS, Change, Session, Tables, User
from qilbeedb.accounts.tokens import Tokens, digest_of, is_same, new_refresh
from qilbeedb.accounts.users import folded

__all__ = ["Sessions"]


class Sessions:
    """Begins, goes on with and ends sessions."""

    def __init__(self, tables: Tables, tokens: Tokens, lockouts: Lockouts, settings: AccountSettings) -> None:
        self._tables = tables
        self._tokens = tokens
        self._lockouts = lockouts
        self._settings = settings

    def login(self, caller: Caller, username: str, password: str) -> Login:
        """Begin a session; takes as long as a password hash.

        AuthenticationError for a wrong password, and just the same for a user who is not there or not active.
        RateLimitedError after too many of them.
        """
        user_id, user = self._verified(caller, username, password)
        session_id = str(uuid.uuid4())
        refresh = new_refresh(session_id)

        def plan(change: Change) -> Session | None:
            found = change.get(USERS, user_id)
            if found is None or found.version != user.version or not found.active:
                return None  # changed while the password was hashed
            expires_us = change.now_us + self._settings.refresh_token_s * 1_000_000
            session = Session(user_id, found.version, change.now_us, expires_us, digest_of(refresh))
            change.put(SESSIONS, session_id, session)
            change.put(SEEN, user_id, change.now_us)
            self._lockouts.succeeded(change, self._tokens.digest_of_name(folded(username)), caller.address)
            change.record(
                event_of("login", caller, change.now_us, action="login", user_id=user_id, username=user.username)
            )
            return session

        session = self._tables.change(plan)
        if session is None:
            raise _wrong()
        return self._tokens_of(session_id, session, user, refresh)

    def _verified(self, caller: Caller, username: str, password: str) -> tuple[str, User]:
        """The user, if that is his password. Each way to a refusal does the same work: its time must not tell which."""
        digest = self._tokens.digest_of_name(folded(username))
        user_id = self._user_id(username)
        user = None if user_id is None else self._tables.get(USERS, user_id)
        is_home = is_loopback(caller.address) and user is not None and "Admin" in user.roles
        if not is_home:
            self._lockouts.check(digest, caller.address)
        matches = verify_password(None if user is None else user.password_hash, password)
        if user is None or user_id is None or not (matches and user.active):
            self._tables.change(lambda change: self._failed(change, caller, digest, user_id, user, counts=not is_home))
            raise _wrong()
        return user_id, user

    def _user_id(self, username: str) -> str | None:
        try:
            return self._tables.get(USERNAMES, folded(username))
        except InvalidError:  # of a form that no name has
            return None

    def _failed(
        self, change: Change, caller: Caller, digest: str, user_id: str | None, user: User | None, *, counts: bool
    ) -> None:
        # A name that nobody has is not written down: it may be a password that was typed into the wrong field.
        username = None if user is None else user.username
        is_locked = counts and self._lockouts.failed(change, digest, caller.address, username)
        change.record(
            event_of(
                "login_failed",
                caller,
                change.now_us,
                action="login",
                result="failure",
                user_id=user_id,
                username=username,
                metadata={"locked": True} if is_locked else {},
            )
        )

    def refresh(self, caller: Caller, refresh_token: str) -> Login:
        """Go on with a session; AuthenticationError where it has ended, or the token was used up."""
        session_id, given = refresh_token.partition(".")[0], digest_of(refresh_token)
        following = new_refresh(session_id)

        def plan(change: Change) -> tuple[Session, User] | None:
            session = self._live_session(change, session_id)
            if session is None:
                return None
            user = change.get(USERS, session.user_id)
            if user is None or not user.active or user.version != session.version:
                return None
            if session.issued and is_same(given, session.issued):
                session = replace(session, current=given, issued=digest_of(following))
            elif is_same(given, session.current):
                session = replace(session, issued=digest_of(following))
            else:
                change.delete(SESSIONS, session_id)
                change.record(
                    event_of(
                        "refresh_token_reused",
                        caller,
                        change.now_us,
                        action="refresh",
                        result="unauthorized",
                        user_id=session.user_id,
                        username=user.username,
                        metadata={"session": "revoked"},
                    )
                )
                return None
            self._check_unlocked(user, caller)
            change.put(SESSIONS, session_id, session)
            return session, user

        found = self._tables.change(plan, durable=True)
        if found is None:
            raise AuthenticationError("this refresh token is not good any more", remedy="log in again")
        return self._tokens_of(session_id, *found, following)

    def _check_unlocked(self, user: User, caller: Caller) -> None:
        if not (is_loopback(caller.address) and "Admin" in user.roles):
            self._lockouts.check_lock(self._tokens.digest_of_name(folded(user.username)))

    def _live_session(self, change: Change, session_id: str) -> Session | None:
        try:
            session = change.get(SESSIONS, session_id)
        except InvalidError:  # of a form that no id has
            return None
        return None if session is None or session.expires_us <= change.now_us else session

    def logout(self, caller: Caller) -> None:
        """End the session of the caller."""
        principal = _known(caller)
        if principal.session_id is None:
            raise InvalidError("an API key has no session", remedy="revoke the key instead")
        self._end(caller, principal.session_id, "logout")

    def revoke(self, caller: Caller, token: str) -> None:
        """End the session of an access or refresh token: one's own, or as an administrator anybody's.

        A session that has ended already is no error.
        """
        session_id = self._tokens.read(token).sid if token.count(".") == 2 else token.partition(".")[0]
        self._end(caller, session_id, "token_revoked")

    def _end(self, caller: Caller, session_id: str, event_type: str) -> None:
        principal = _known(caller)

        def plan(change: Change) -> bool:
            session = self._live_session(change, session_id)
            if session is None:
                return False
            if session.user_id != principal.user_id and not principal.may(Permission.ADMIN):
                raise PermissionDeniedError("that is the session of another user")
            change.delete(SESSIONS, session_id)
            change.record(
                event_of(event_type, caller, change.now_us, action=event_type.replace("_", " "), resource="session")
            )
            return True

        if not self._tables.change(plan, durable=True):
            self._tables.flush()  # whoever has ended it may not have seen that become durable

    def change_password(self, caller: Caller, current: str, new: str) -> None:
        """Give oneself another password, which ends all one's sessions; AuthenticationError if the old one is wrong."""
        principal = _known(caller)
        check_password(new)
        user_id, _ = self._verified(caller, principal.username, current)
        password_hash = hash_password(new)

        def plan(change: Change) -> None:
            user = change.get(USERS, user_id)
            if user is None:
                raise _wrong()
            change.put(
                USERS,
                user_id,
                replace(user, password_hash=password_hash, version=user.version + 1, updated_us=change.now_us),
            )
            change.record(event_of("password_changed", caller, change.now_us, action="password changed"))

        self._tables.change(plan, durable=True)

    def sweep(self) -> None:
        """Remove what has expired: sessions, and failures that count no more."""
        now_us = self._tables.now_us()
        for session_id, session in self._tables.scan(SESSIONS):
            if session.expires_us <= now_us:
                self._tables.change(partial(Change.delete, table=SESSIONS, id=session_id))
        for place, failures in self._tables.scan(FAILURES):
            if is_forgotten(failures, now_us):
                self._tables.change(partial(_forget, place=place))

    def _tokens_of(self, session_id: str, session: Session, user: User, refresh: str) -> Login:
        now_us = self._tables.now_us()
        return Login(
            access_token=self._tokens.issue(session.user_id, session_id, now_us // 1_000_000),
            token_type="Bearer",  # noqa: S106
            expires_in=self._tokens.access_token_s,
            refresh_token=refresh,
            refresh_expires_in=max(0, session.expires_us - now_us) // 1_000_000,
            username=user.username,
            user_id=session.user_id,
        )


def _forget(change: Change, place: str) -> None:
    failures = change.get(FAILURES, place)
    if failures is not None and is_forgotten(failures, change.now_us):
        change.delete(FAILURES, place)


def _known(caller: Caller) -> Principal:
    if caller.principal is None:
        raise AuthenticationError("nobody is logged in")
    return caller.principal


def _wrong() -> AuthenticationError:
    return AuthenticationError("the username or the password is wrong", remedy="check both and try again")
