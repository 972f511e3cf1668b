"""The audit log: what happened, in order, each event chained to those before by its hash.

Whoever changes, removes, adds or swaps events behind the server's back breaks the chain. Who can rewrite all of it can
make a new one: note its end (a number and a hash) somewhere else now and then, and let :func:`verify` look for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Struct

from qilbee_core import JSON, CorruptRecordError
from qilbeedb.account_wire import AuditEvent, Result
from qilbeedb.accounts.caller import Caller
from qilbeedb.accounts.tables import AUDIT, AUDIT_HEAD, AuditHead, Event, Tables, chained

__all__ = ["AuditReport", "event_of", "moment", "query", "verify"]

_TEXT_CHARACTERS_MAX = 256
_PROBLEMS_MAX = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AuditReport(Struct, frozen=True, kw_only=True):
    """What :func:`verify` found: how many events there are, the end to note down, and what is wrong."""

    events: int
    hash: str
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether the chain is whole."""
        return not self.problems


def moment(time_us: int) -> datetime:
    """A time of a row."""
    return _EPOCH + timedelta(microseconds=time_us)


def event_of(
    event_type: str,
    caller: Caller,
    now_us: int,
    *,
    action: str,
    resource: str = "",
    result: Result = "success",
    user_id: str | None = None,
    username: str | None = None,
    metadata: dict[str, JSON] | None = None,
) -> Event:
    """An event, about the caller where no other user is named."""
    principal = caller.principal
    if principal is not None and principal.user_id and user_id is None and username is None:
        user_id, username = principal.user_id, principal.username
    return Event(
        event_type=event_type,
        timestamp_us=now_us,
        user_id=user_id,
        username=username,
        action=action,
        resource=_plain(resource),
        result=result,
        ip_address=_plain(caller.address),
        user_agent=_plain(caller.user_agent),
        metadata=metadata or {},
    )


def _plain(text: str) -> str:
    """Text of a stranger: cut, and without what would command a terminal or not encode."""
    return "".join(character if character.isprintable() else "?" for character in text[:_TEXT_CHARACTERS_MAX])


def query(
    tables: Tables,
    *,
    limit: int,
    event_type: str | None = None,
    user_id: str | None = None,
    username: str | None = None,
    result: str | None = None,
    ip_address: str | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
) -> list[AuditEvent]:
    """The newest events that are as asked for, the newest first; from ``start_time`` on, and before ``end_time``."""
    wanted = {
        name: value
        for name, value in (
            ("event_type", event_type),
            ("user_id", user_id),
            ("username", username),
            ("result", result),
            ("ip_address", ip_address),
        )
        if value is not None
    }
    found: list[AuditEvent] = []
    for number, row in tables.scan(AUDIT, reverse=True):
        event = msgspec.msgpack.decode(row.event, type=Event)
        timestamp = moment(event.timestamp_us)
        if len(found) >= limit or (start_time is not None and timestamp < start_time):
            break  # the log is in order
        if end_time is not None and timestamp >= end_time:
            continue
        if all(getattr(event, name) == value for name, value in wanted.items()):
            fields = msgspec.structs.asdict(event)
            del fields["timestamp_us"]
            found.append(AuditEvent(event_id=number, timestamp=timestamp, **fields))
    return found


def verify(tables: Tables, known: tuple[int, str] | None = None) -> AuditReport:
    """Walk the whole log and compare. ``known`` is an end that was noted down: number and hash (hexadecimal)."""
    problems: list[str] = []
    head, count = AuditHead(), 0
    known_hash: str | None = None if known is None or known[0] else bytes(32).hex()
    for number, problem, found, event in _rows(tables):
        count += 1
        if problem is not None:
            problems.append(problem)
        elif number != head.number + 1:
            problems.append(f"after event {head.number} comes {number}")
        elif found != chained(head.hash, event):
            problems.append(f"event {number} is not what was recorded, or not in its place")
        if len(problems) >= _PROBLEMS_MAX:
            break
        head = AuditHead(number, found)  # goes on from what is there, so that one break is told once
        if known is not None and number == known[0]:
            known_hash = found.hex()
    else:
        end = tables.get(AUDIT_HEAD) or AuditHead()
        if (end.number, end.hash) != (head.number, head.hash):
            problems.append(f"the log ends with event {head.number}, and should end with {end.number}")
        if known is not None and known_hash != known[1].lower():
            what = "is not there" if known_hash is None else "has another hash"
            problems.append(f"event {known[0]}, whose hash was noted down, {what}")
    return AuditReport(events=count, hash=head.hash.hex(), problems=problems)


def _rows(tables: Tables) -> Iterator[tuple[int, str | None, bytes, bytes]]:
    """Number, what is wrong with the row, its hash, and the bytes of its event."""
    rows = tables.rows.scan(AUDIT.prefix)
    number = 0
    while True:
        try:
            name, value = next(rows)
            number = int(name.removeprefix(AUDIT.prefix), 16)
            row = AUDIT.decode(name, value)
        except StopIteration:
            return
        except (CorruptRecordError, ValueError) as error:
            number += 1
            yield number, f"the row of event {number} cannot be read: {error}", b"", b""
            continue
        yield number, None, row.hash, bytes(row.event)
