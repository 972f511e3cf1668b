"""The accounts of a server: who may use it, how they prove it, and what they did. No HTTP in here.

All of it lives in the store that it guards and survives what the store survives. What takes away a right, and what is
shown only once, is on disk before it is acknowledged: a power cut brings no revoked session, old password or removed
user back. Logins, counts of failures and other events of the audit log may lose their last interval to one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from qilbee_core import JSON, ConflictError, QilbeeError, SettingsError, Store
from qilbeedb.account_wire import LockedUser, LockoutStatus, Result
from qilbeedb.accounts.addresses import client_of
from qilbeedb.accounts.audit import event_of
from qilbeedb.accounts.authentication import Authenticator
from qilbeedb.accounts.caller import Caller
from qilbeedb.accounts.keys import Keys
from qilbeedb.accounts.lockouts import Lockouts
from qilbeedb.accounts.permissions import Principal
from qilbeedb.accounts.policies import Policies
from qilbeedb.accounts.rates import RateLimits
from qilbeedb.accounts.sessions import Sessions
from qilbeedb.accounts.settings import AccountSettings
from qilbeedb.accounts.tables import USERNAMES, USERS, Change, Event, Tables
from qilbeedb.accounts.tokens import SECRET_BYTES, Tokens, load_secret
from qilbeedb.accounts.users import Users, administers, folded
from qilbeedb.exceptions import UnavailableError

__all__ = ["Accounts"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FIRST_ADMIN = "admin"
SECRET_NAME = "accounts.secret"  # noqa: S105
_THREADS = 2
_WAITING_MAX = 100
_REFUSALS_PER_MINUTE = 60
_SWEEP_INTERVAL_US = 3600 * 1_000_000
_SYSTEM = Caller(address="", user_agent="qilbee")


class Accounts:
    """Users, sessions, API keys, lockouts, rate limits and the audit log of one store; made by :meth:`open`."""

    def __init__(self, store: Store, settings: AccountSettings, secret: bytes) -> None:
        tables = Tables(store)
        tokens = Tokens(secret, settings.access_token_s)
        self.tables = tables
        self.users = Users(store, tables)
        self.keys = Keys(store, tables)
        self.policies = Policies(tables)
        self.rates = RateLimits(tables.rows)
        self._tokens = tokens
        self._lockouts = Lockouts(tables, settings)
        self.sessions = Sessions(tables, tokens, self._lockouts, settings)
        self._authenticator = Authenticator(tables, tokens)
        self.first_password: str | None = None
        """The password of the first administrator where it was made up just now. Nothing else knows it."""
        self._pool = ThreadPoolExecutor(_THREADS, "qilbee-accounts")
        self._places = threading.BoundedSemaphore(_WAITING_MAX)
        self._refusals: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._refusals_lock = threading.Lock()
        self._swept_us = tables.now_us()

    @classmethod
    def open(
        cls,
        store: Store,
        settings: AccountSettings | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """The accounts of a store. At its first start a secret, an administrator and some rate limits are made.

        The administrator is called ``admin``. His password is that of ``QILBEE_ADMIN_PASSWORD`` in ``environ`` (by
        default the environment of this process), or of ``settings.admin_password_file``, or a random one, which
        ``first_password`` tells once.
        """
        settings = settings or AccountSettings()
        accounts = cls(store, settings, _secret(store, settings))
        accounts.policies.begin()
        if not any(administers(user) for _, user in accounts.tables.scan(USERS)):
            accounts._make_first_admin(settings, os.environ if environ is None else environ)
        accounts.sessions.sweep()
        return accounts

    def close(self) -> None:
        """Finish what has begun. The store stays open. Idempotent."""
        self._pool.shutdown()

    # --- for every request: quick, without waiting

    def authenticate(self, authorization: str | None, api_key: str | None) -> Principal:
        """Who comes with these headers; AuthenticationError. What was revoked, by any process, is refused at once."""
        return self._authenticator.authenticate(authorization, api_key)

    def check_rate(self, endpoint_type: str, principal: Principal | None, address: str, path: str = "") -> None:
        """Count a request of the caller, or of the address where nobody is known; RateLimitedError."""
        policies = self.rates.policies(endpoint_type, path)
        if policies:
            caller = f"address:{client_of(address)}" if principal is None else principal.rate_key
            for policy in policies:
                self.rates.count(policy, caller)

    def refused(self, caller: Caller, result: Result, resource: str) -> None:
        """Have the audit log say, in a moment, that a request was refused. A crowd from one address is summed up."""
        key, minute = f"{result} {client_of(caller.address)}", self.tables.now_us() // 60_000_000
        with self._refusals_lock:
            then, count = self._refusals.pop(key, (minute, 0))
            dropped = max(0, count - _REFUSALS_PER_MINUTE) if then != minute else 0
            count = 1 if then != minute else count + 1
            self._refusals[key] = (minute, count)
            if len(self._refusals) > _WAITING_MAX * 100:
                self._refusals.popitem(last=False)
        if count <= _REFUSALS_PER_MINUTE and self._places.acquire(blocking=False):
            metadata: dict[str, JSON] = {"not_recorded_before": dropped} if dropped else {}
            try:
                future = self._pool.submit(self._record_refusal, caller, result, resource, metadata)
                future.add_done_callback(self._leave)
            except RuntimeError:  # closed meanwhile
                self._leave()

    def _record_refusal(self, caller: Caller, result: Result, resource: str, metadata: dict[str, JSON]) -> None:
        try:
            self.record(result, caller, "request", resource, result=result, metadata=metadata)
        except QilbeeError as error:
            log.warning("a refused request is not in the audit log: %s", error)

    # --- for all else: may wait for the disk or for a password hash

    async def run(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a verb of accounts from an event loop, in one of two threads; UnavailableError if too many wait."""
        if not self._places.acquire(blocking=False):
            raise UnavailableError(
                f"{_WAITING_MAX} requests about accounts wait already", remedy="wait a few seconds and try again"
            )
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, partial(verb, *args, **kwargs))
        except BaseException:
            self._leave()
            raise
        future.add_done_callback(self._leave)
        now_us = self.tables.now_us()
        if now_us - self._swept_us > _SWEEP_INTERVAL_US:
            self._swept_us = now_us
            self._pool.submit(self._sweep)
        return await future

    def _leave(self, _: object = None) -> None:
        self._places.release()

    def _sweep(self) -> None:
        try:
            self.sessions.sweep()
        except QilbeeError as error:
            log.warning("what has expired is still there: %s", error)

    def record(
        self,
        event_type: str,
        caller: Caller,
        action: str,
        resource: str = "",
        *,
        result: Result = "success",
        metadata: dict[str, JSON] | None = None,
    ) -> None:
        """Have the audit log say that something happened. Never hand it what somebody stored, or a credential."""

        def plan(change: Change) -> None:
            change.record(
                event_of(
                    event_type,
                    caller,
                    change.now_us,
                    action=action,
                    resource=resource,
                    result=result,
                    metadata=metadata,
                )
            )

        self.tables.change(plan)

    def locked_users(self) -> list[LockedUser]:
        """Everybody who cannot log in now, by name."""
        return self._lockouts.locked()

    def lockout(self, username: str) -> LockoutStatus:
        """How a name stands, also one that nobody has."""
        return self._lockouts.status(self._tokens.digest_of_name(folded(username)))

    def lock(self, caller: Caller, username: str, reason: str = "") -> None:
        """Let a user neither log in nor refresh until he is unlocked; NotFoundError where there is none of that name.

        His access tokens go on until they expire: disable him, or end his sessions, to stop him at once.
        """
        name = self.users.named(username).username

        def plan(change: Change) -> None:
            self._lockouts.lock(change, self._tokens.digest_of_name(folded(name)), name, reason)
            change.record(_about(change, caller, "account_locked", name, reason))

        self.tables.change(plan, durable=True)

    def unlock(self, caller: Caller, username: str) -> None:
        """Forget locks and failures under a name; NotFoundError where there are none."""

        def plan(change: Change) -> None:
            self._lockouts.unlock(change, self._tokens.digest_of_name(folded(username)), username)
            user_id = change.get(USERNAMES, folded(username))
            change.record(_about(change, caller, "account_unlocked", None if user_id is None else username, ""))

        self.tables.change(plan, durable=True)

    def _make_first_admin(self, settings: AccountSettings, environ: Mapping[str, str]) -> None:
        password = environ.get("QILBEE_ADMIN_PASSWORD") or None
        if password is None and settings.admin_password_file is not None:
            password = _password_in(Path(settings.admin_password_file))
        made_up = secrets.token_urlsafe(18) if password is None else None
        try:
            self.users.create(_SYSTEM, FIRST_ADMIN, password or made_up or "", roles=["Admin"])
        except ConflictError as error:  # or another process starts on the same engine
            log.warning("no administrator was made: %s", error)
            return
        self.first_password = made_up


def _about(change: Change, caller: Caller, event_type: str, username: str | None, reason: str) -> Event:
    metadata: dict[str, JSON] = {"target": username, "reason": reason} if reason else {"target": username}
    return event_of(event_type, caller, change.now_us, action=event_type.replace("_", " "), metadata=metadata)


def _secret(store: Store, settings: AccountSettings) -> bytes:
    if settings.secret_file is not None:
        return load_secret(Path(settings.secret_file))
    if store.settings.storage.dsn is not None:
        raise SettingsError(
            "each server of this database needs the secret that signs tokens, and it is in none of them",
            remedy="give accounts.secret_file, with the same 32 bytes for each server; the first one makes it",
        )
    if store.directory is None:
        return secrets.token_bytes(SECRET_BYTES)  # what it signs ends with the store, which keeps nothing either
    return load_secret(store.directory / SECRET_NAME)


def _password_in(path: Path) -> str:
    try:
        return path.read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read the password in {path}: {error}", remedy="check accounts.admin_password_file"
        ) from error
