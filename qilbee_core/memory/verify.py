"""Walking a whole store and comparing everything with everything else."""

from __future__ import annotations

from contextlib import suppress

from msgspec import Struct

from qilbee_core.envelope import unframe
from qilbee_core.errors import DataError, ProviderNotFoundError
from qilbee_core.ids import format_id
from qilbee_core.interfaces import Snapshot
from qilbee_core.keys import AgentKeys, ParsedKey, Space, parse, range_of
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import count_episode, parse_change, read_head
from qilbee_core.memory.relevance import Order, vitality

__all__ = ["Problem", "VerifyReport", "verify"]

_RESERVED = (Space.STATE, Space.EXPIRY, Space.TERMS, Space.VECTOR, Space.PLAN, Space.ACCOUNT)
PROBLEMS_MAX = 1000


class Problem(Struct, frozen=True, kw_only=True):
    """One broken invariant: what it is called, where, and in words.

    ``derived`` says that ``repair()`` mends it.
    """

    invariant: str
    family: str
    agent_id: str | None
    key: bytes
    message: str
    derived: bool


class VerifyReport(Struct, frozen=True, kw_only=True):
    """What :meth:`Store.verify` found; at most 1000 problems are kept of each walk."""

    agents: int
    episodes: int
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(context: Context) -> VerifyReport:
    """Walk one snapshot of the store."""
    snapshot = context.backend.snapshot()
    try:
        walk = _Walk(context, snapshot)
        walk.catalog()
        walk.strangers()
        agents = sorted(agent_ids(snapshot))
        for agent_id in agents:
            walk.agent(agent_id)
        return VerifyReport(agents=len(agents), episodes=walk.episodes, problems=walk.problems)
    finally:
        snapshot.close()


def agent_ids(snapshot: Snapshot) -> set[str]:
    """Every agent that any key of the store belongs to, found by skipping from one to the next."""
    found: set[str] = set()
    for space in Space:
        if space in (Space.CATALOG, Space.ACCOUNT, Space.EXPIRY):
            continue
        start, stop = range_of(bytes((space,)))
        while (row := next(snapshot.scan(start, stop), None)) is not None:
            try:
                agent_id = parse(row[0]).agent_id
            except DataError:
                start = row[0] + b"\x00"  # named as a stranger
                continue
            if agent_id is not None:
                found.add(agent_id)
                start = AgentKeys(agent_id).range(space)[1]
    return found


class _Walk:
    """The problems found so far, and how to look for more."""

    def __init__(self, context: Context, snapshot: Snapshot) -> None:
        self.problems: list[Problem] = []
        self.episodes = 0
        self._context = context
        self._snapshot = snapshot

    def _report(self, invariant: str, key: bytes, message: str, *, derived: bool = False) -> None:
        if len(self.problems) >= PROBLEMS_MAX:
            return
        parsed: ParsedKey | None = None
        with suppress(DataError):
            parsed = parse(key)
        self.problems.append(
            Problem(
                invariant=invariant,
                family="" if parsed is None else parsed.space.name,
                agent_id=None if parsed is None else parsed.agent_id,
                key=key,
                message=message,
                derived=derived,
            )
        )

    def catalog(self) -> None:
        """Every entry in use is there as it was written, and there is no other."""
        expected = self._context.catalog.entries()
        for key, value in self._snapshot.scan(*range_of(bytes((Space.CATALOG,)))):
            if key not in expected:
                self._report("catalog-entry-unknown", key, f"entry {key[1:]!r} is of no known kind")
            elif value != expected.pop(key):
                self._report("catalog-entry-altered", key, f"entry {key[1:]!r} is not what was written", derived=True)
        for key in expected:
            if self._snapshot.get(key) is None:
                self._report("catalog-entry-missing", key, f"entry {key[1:]!r} is missing", derived=True)

    def strangers(self) -> None:
        """Every key belongs to a family, is of its form, and of one that this release writes."""
        start = b""
        for space in Space:
            low, high = range_of(bytes((space,)))
            for key, _ in self._snapshot.scan(start, low):
                self._report("key-unknown", key, f"key {key.hex()} belongs to no family")
            start = high
            if space is Space.CATALOG:
                continue
            for key, _ in self._snapshot.scan(low, high):
                try:
                    parse(key)
                except DataError as error:
                    self._report("key-malformed", key, error.message)
                    continue
                if space in _RESERVED:
                    self._report("key-reserved", key, f"this release writes no {space.name} keys")
        for key, _ in self._snapshot.scan(start):
            self._report("key-unknown", key, f"key {key.hex()} belongs to no family")

    def agent(self, agent_id: str) -> None:
        """The head equals a recount; every derived row has its episode and every episode its rows."""
        keys = AgentKeys(agent_id)
        head = self._head(keys)
        recount = Head()
        for key, value in self._snapshot.scan(*keys.range(Space.EPISODE)):
            id_bytes = key[-16:]
            recount.newest_id = id_bytes
            document = self._open(key, value)
            if document is None:
                continue
            self.episodes += 1
            self._episode(keys, id_bytes, document)
            count_episode(recount, key, value, document, self._context.orders)
        if head is None:
            if any(recount.newest_id):
                self._report("head-missing", keys.head, f"agent {agent_id!r} has episodes and no head", derived=True)
        else:
            if head.counts() != recount.counts():
                self._report(
                    "head-counts",
                    keys.head,
                    f"the head of agent {agent_id!r} says {head.counts()}, a recount {recount.counts()}",
                    derived=True,
                )
            if head.newest_id < recount.newest_id or head.transaction_us < recount.transaction_us:
                self._report(
                    "head-clocks", keys.head, f"episodes of agent {agent_id!r} are beyond its head", derived=True
                )
        self._vitalities(keys)
        self._marks(keys)
        self._histories(keys)
        self._changes(keys, head or recount)

    def _head(self, keys: AgentKeys) -> Head | None:
        value = self._snapshot.get(keys.head)
        if value is None:
            return None
        try:
            return read_head(self._snapshot, keys, value, self._context.records, self._context.orders)
        except DataError as error:
            self._report("head-corrupt", keys.head, error.message, derived=True)
            return None

    def _open(self, key: bytes, value: bytes) -> EpisodeDocument | None:
        try:
            return EpisodeDocument.from_fields(self._context.records.open(key, value))
        except (DataError, ProviderNotFoundError) as error:
            self._report("record-corrupt" if isinstance(error, DataError) else "record-unreadable", key, str(error))
            return None

    def _place(self, document: EpisodeDocument) -> tuple[Order, int]:
        order = self._context.orders[document.memory_type]
        return order, vitality(order, document.strength, document.decay_start_us())

    def _episode(self, keys: AgentKeys, id_bytes: bytes, document: EpisodeDocument) -> None:
        order, place = self._place(document)
        expected = keys.vitality(order.number, place, id_bytes)
        if self._snapshot.get(expected) is None:
            self._report(
                "vitality-missing",
                expected,
                f"episode {format_id(id_bytes)} is not in its relevance order",
                derived=True,
            )
        if document.idempotency_digest:
            mark = keys.idempotency_key(bytes.fromhex(document.idempotency_digest))
            if self._snapshot.get(mark) is None:
                self._report(
                    "key-missing",
                    mark,
                    f"the idempotency key of episode {format_id(id_bytes)} is missing",
                    derived=True,
                )
        version = document
        while version.previous_us:
            history_key = keys.history(id_bytes, version.previous_us)
            value = self._snapshot.get(history_key)
            if value is None:
                self._report("history-missing", history_key, f"a version of episode {format_id(id_bytes)} is missing")
                return
            opened = self._open(history_key, value)
            if opened is None or opened.previous_us >= version.previous_us:
                return
            version = opened

    def _current(self, keys: AgentKeys, id_bytes: bytes) -> EpisodeDocument | None:
        key = keys.episode(id_bytes)
        value = self._snapshot.get(key)
        if value is None:
            return None
        try:
            return EpisodeDocument.from_fields(self._context.records.open(key, value))
        except (DataError, ProviderNotFoundError):
            return None  # reported with the episodes

    def _vitalities(self, keys: AgentKeys) -> None:
        for key, value in self._snapshot.scan(*keys.range(Space.VITALITY)):
            document = self._current(keys, key[-16:])
            if document is None:
                self._report("vitality-orphan", key, "a place in the relevance order has no episode", derived=True)
                continue
            order, place = self._place(document)
            if key != keys.vitality(order.number, place, key[-16:]):
                self._report("vitality-wrong", key, "a place in the relevance order is not its episode's", derived=True)
            if value:
                self._report("vitality-altered", key, "a place in the relevance order holds a value", derived=True)

    def _marks(self, keys: AgentKeys) -> None:
        for key, value in self._snapshot.scan(*keys.range(Space.KEY)):
            try:
                document = self._current(keys, unframe(key, value))
            except DataError as error:
                self._report("key-corrupt", key, error.message, derived=True)
                continue
            if document is None or document.idempotency_digest != key[-16:].hex():
                self._report("key-orphan", key, "an idempotency key has no episode", derived=True)

    def _histories(self, keys: AgentKeys) -> None:
        for key, value in self._snapshot.scan(*keys.range(Space.HISTORY)):
            id_bytes, transaction_us = key[-24:-8], int.from_bytes(key[-8:], "big")
            version = self._open(key, value)
            if version is None:
                continue
            current = self._snapshot.get(keys.episode(id_bytes))
            if current is None:
                self._report("history-orphan", key, f"a version of episode {format_id(id_bytes)}, which is gone")
            elif version.transaction_us != transaction_us or not self._is_reached(keys, id_bytes, transaction_us):
                self._report("history-wrong", key, f"episode {format_id(id_bytes)} has no such version")

    def _is_reached(self, keys: AgentKeys, id_bytes: bytes, transaction_us: int) -> bool:
        version = self._current(keys, id_bytes)
        while version is not None and version.previous_us > transaction_us:
            key = keys.history(id_bytes, version.previous_us)
            value = self._snapshot.get(key)
            try:
                version = None if value is None else EpisodeDocument.from_fields(self._context.records.open(key, value))
            except (DataError, ProviderNotFoundError):
                version = None
        return version is None or version.previous_us == transaction_us

    def _changes(self, keys: AgentKeys, head: Head) -> None:
        expected = head.trimmed + 1
        for key, value in self._snapshot.scan(*keys.range(Space.CHANGE)):
            sequence = int.from_bytes(key[-8:], "big")
            if sequence != expected:
                self._report(
                    "change-order", key, f"entry {sequence} of the change log, where {expected} is due", derived=True
                )
            expected = sequence + 1
            try:
                parse_change(key, value)
            except DataError as error:
                self._report("change-corrupt", key, error.message, derived=True)
        if expected != head.sequence + 1:
            self._report(
                "change-order",
                keys.change(expected),
                f"the change log ends before {expected}, the head says {head.sequence}",
                derived=True,
            )
