"""The rows of accounts: their names, their forms, and how they are changed. docs/format.md is the record.

Every change is a plan over a :class:`Change`: what it reads is expected unchanged when it is written, so that several
processes on one engine lose none of each other's updates; where one was quicker, the plan is made again. What a plan
records for the audit log goes into the same atomic write.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from qilbee_core import AccountRows, ConflictError, CorruptRecordError, StorageError, Store
from qilbeedb.account_wire import Result
from qilbeedb.wire import JSONObject

__all__ = [
    "FAILURES",
    "KEYS",
    "LOCKS",
    "POLICIES",
    "SEEN",
    "SESSIONS",
    "USERNAMES",
    "USERS",
    "ApiKey",
    "AuditHead",
    "AuditRow",
    "Change",
    "Event",
    "Failures",
    "Lock",
    "Policy",
    "Session",
    "Table",
    "Tables",
    "User",
    "chained",
]

T = TypeVar("T")
V = TypeVar("V")

_ATTEMPTS_MAX = 64
_BACKOFF_S_MAX = 0.02


class User(Struct, frozen=True, array_like=True):
    """Somebody who may log in. A higher ``version`` ends all sessions that began under a lower one."""

    username: str
    email: str | None
    roles: tuple[str, ...]
    agents: tuple[str, ...] | None
    active: bool
    created_us: int
    updated_us: int
    version: int
    password_hash: str


class Session(Struct, frozen=True, array_like=True):
    """A login: it is good as long as its row is there. Digests are SHA-256 of refresh tokens."""

    user_id: str
    version: int
    created_us: int
    expires_us: int
    current: bytes
    issued: bytes = b""


class ApiKey(Struct, frozen=True, array_like=True):
    """A key of a user, by its digest."""

    user_id: str
    digest: bytes
    prefix: str
    name: str
    created_us: int
    expires_us: int | None
    agents: tuple[str, ...] | None
    permissions: tuple[str, ...] | None


class Lock(Struct, frozen=True, array_like=True):
    """An administrator's lock of a user."""

    username: str | None
    since_us: int
    reason: str


class Failures(Struct, frozen=True, array_like=True):
    """Failed logins under one name from one address."""

    username: str | None
    failed: int
    until_us: int
    times: int
    last_us: int


class Policy(Struct, frozen=True, array_like=True):
    """A rate limit."""

    id: str
    name: str
    endpoint_type: str
    path: str | None
    max_requests: int
    window_s: int
    enabled: bool
    created_us: int
    updated_us: int
    created_by: str | None


class Event(Struct, frozen=True, kw_only=True):
    """What the audit log says of one thing that happened."""

    event_type: str
    timestamp_us: int
    user_id: str | None
    username: str | None
    action: str
    resource: str
    result: Result
    ip_address: str
    user_agent: str
    metadata: JSONObject


class AuditHead(Struct, frozen=True, array_like=True):
    """Where the audit log ends."""

    number: int = 0
    hash: bytes = bytes(32)
    timestamp_us: int = 0


class AuditRow(Struct, frozen=True, array_like=True):
    """One event, as its bytes, and the hash that chains it to those before."""

    hash: bytes
    event: msgspec.Raw


def chained(previous: bytes, event: bytes) -> bytes:
    """The hash of an event behind one with the hash ``previous``."""
    return hashlib.sha256(previous + event).digest()


class Table(Generic[T]):
    """Rows of one form, under names that begin alike."""

    def __init__(self, prefix: str, kind: type[T]) -> None:
        self.prefix = prefix
        self.encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(kind)

    def name(self, id: str) -> str:
        """The name of one row."""
        return self.prefix + id

    def decode(self, name: str, value: bytes) -> T:
        """The row, or CorruptRecordError."""
        try:
            return self._decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptRecordError(f"row {name!r} of the accounts is not of its form: {error}") from error


USERS = Table("user/", User)
USERNAMES = Table("username/", str)
SEEN = Table("seen/", int)
SESSIONS = Table("session/", Session)
KEYS = Table("key/", ApiKey)
LOCKS = Table("locked/", Lock)
FAILURES = Table("failed/", Failures)
POLICIES = Table("policies", tuple[Policy, ...])
AUDIT_HEAD = Table("audit", AuditHead)
AUDIT = Table("audit/", AuditRow)


class Change:
    """What one change has read and wants to write."""

    def __init__(self, rows: AccountRows, now_us: int) -> None:
        self.now_us = now_us
        self.events: list[Event] = []
        self.writes: dict[str, bytes | None] = {}
        self.expects: dict[str, bytes | None] = {}
        self._rows = rows

    def get(self, table: Table[T], id: str = "") -> T | None:
        """The row as it is now, which nobody else may change until this is written."""
        name = table.name(id)
        if name not in self.expects:
            self.expects[name] = self._rows.get(name)
        value = self.expects[name]
        return None if value is None else table.decode(name, value)

    def put(self, table: Table[T], id: str, row: T) -> None:
        """Set the row."""
        self.writes[table.name(id)] = table.encode(row)

    def delete(self, table: Table[T], id: str) -> None:
        """Remove the row if it is there."""
        self.writes[table.name(id)] = None

    def record(self, event: Event) -> None:
        """Have the audit log say so."""
        self.events.append(event)

    def chain(self) -> None:
        """Put what was recorded behind the end of the audit log."""
        head = self.get(AUDIT_HEAD) or AuditHead()
        for event in self.events:
            timestamp_us = max(event.timestamp_us, head.timestamp_us)  # a clock may be set back, the log is in order
            raw = msgspec.msgpack.encode(msgspec.structs.replace(event, timestamp_us=timestamp_us))
            head = AuditHead(head.number + 1, chained(head.hash, raw), timestamp_us)
            self.put(AUDIT, f"{head.number:016x}", AuditRow(head.hash, msgspec.Raw(raw)))
        self.put(AUDIT_HEAD, "", head)


class Tables:
    """The rows of one store, read as what they are."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.rows = store.account_rows()
        self.clock_ns: Callable[[], int] = time.time_ns
        """The time now, in nanoseconds since the Unix epoch: the one clock of accounts."""

    def now_us(self) -> int:
        """The time now, in microseconds since the Unix epoch."""
        return self.clock_ns() // 1000

    def get(self, table: Table[T], id: str = "") -> T | None:
        """One row, or None."""
        name = table.name(id)
        value = self.rows.get(name)
        return None if value is None else table.decode(name, value)

    def scan(self, table: Table[T], prefix: str = "", *, reverse: bool = False) -> Iterator[tuple[str, T]]:
        """All rows of a table whose ids begin with ``prefix``, by id."""
        for name, value in self.rows.scan(table.name(prefix), reverse=reverse):
            yield name[len(table.prefix) :], table.decode(name, value)

    def flush(self) -> None:
        """Return once a power cut can take back nothing of what is there."""
        self._store.flush()

    def change(self, plan: Callable[[Change], V], *, durable: bool = False) -> V:
        """Write what ``plan`` wants, and give what it gave. It is called again where another writer was quicker.

        ``durable`` returns only once a power cut cannot take it back.
        """
        for attempt in range(_ATTEMPTS_MAX):
            change = Change(self.rows, self.now_us())
            value = plan(change)
            if change.events:
                change.chain()
            if not change.writes:
                return value
            try:
                self.rows.write(change.writes, change.expects, durable=durable)
                return value
            except ConflictError:
                time.sleep(random.uniform(0, min(_BACKOFF_S_MAX, 0.0005 * 2**attempt)))  # noqa: S311
        raise StorageError(
            f"{_ATTEMPTS_MAX} attempts to change the accounts met other writers", remedy="try again in a moment"
        )
