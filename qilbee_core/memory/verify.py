"""Walking a whole store and comparing everything with everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from qilbee_core.envelope import unframe
from qilbee_core.episode import MEMORY_TYPES
from qilbee_core.errors import CorruptRecordError, DataError, InvalidError, ProviderNotFoundError
from qilbee_core.ids import format_id, parse_id
from qilbee_core.interfaces import Snapshot, SupportsPages
from qilbee_core.keys import AgentKeys, ParsedKey, Space, parse, range_of
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import NEVER_US, Head
from qilbee_core.memory.log import ChangeKind, count_episode, count_retired, parse_change, read_head
from qilbee_core.memory.past import last_rows
from qilbee_core.memory.readahead import ReadAhead
from qilbee_core.memory.state import State, decode_state, first_state, standings
from qilbee_core.memory.terms import NO_ID, Cursor, cursor_key, decode_cursor, row_key, row_of_document, seal_row
from qilbee_core.memory.undo import decode_undo, undo_us
from qilbee_core.memory.vectors import decode_vector_cursor, encoded_text, is_vector_of, vector_cursor_key
from qilbee_core.records import Records
from qilbee_core.search.analysis import LANGUAGES, analyser

__all__ = ["INVARIANTS", "Problem", "VerifyReport", "agent_ids", "read_episode", "verify"]

INVARIANTS = {
    "engine-damaged": False,
    "key-unknown": False,
    "key-malformed": False,
    "catalog-entry-missing": True,
    "catalog-entry-altered": True,
    "catalog-entry-unknown": False,
    "record-corrupt": False,
    "record-unreadable": False,
    "episode-missing": False,
    "history-missing": False,
    "history-orphan": False,
    "history-wrong": False,
    "head-missing": True,
    "head-corrupt": True,
    "head-counts": True,
    "head-clocks": True,
    "state-corrupt": True,
    "state-orphan": True,
    "state-wrong": True,
    "vitality-missing": True,
    "vitality-orphan": True,
    "vitality-wrong": True,
    "expiry-missing": True,
    "expiry-orphan": True,
    "expiry-wrong": True,
    "mark-missing": True,
    "mark-orphan": True,
    "mark-corrupt": True,
    "change-order": True,
    "change-corrupt": True,
    "change-wrong": True,
    "terms-missing": True,
    "terms-orphan": True,
    "terms-wrong": True,
    "terms-cursor": True,
    "vector-missing": True,
    "vector-orphan": True,
    "vector-wrong": True,
    "vector-cursor": True,
    "undo-corrupt": True,
    "undo-orphan": True,
    "account-corrupt": False,
}
"""The names of all that can be wrong, and whether repair() mends it. docs/format.md says what each means."""

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
    """What :meth:`Store.verify` found; the first 1000 problems are kept."""

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
        walk = _Walk(context, ReadAhead(snapshot) if isinstance(context.backend, SupportsPages) else snapshot)
        walk.attempt(walk.catalog)
        walk.attempt(walk.strangers)
        walk.attempt(walk.agents)
        walk.attempt(walk.accounts)
        return VerifyReport(agents=walk.agent_count, episodes=walk.episode_count, problems=walk.problems)
    finally:
        snapshot.close()


def agent_ids(snapshot: Snapshot) -> set[str]:
    """Every agent that any key of the store belongs to, found by skipping from one to the next."""
    found: set[str] = set()
    for space in Space:
        if space in (Space.CATALOG, Space.ACCOUNT):
            continue
        start, stop = range_of(bytes((space,)))
        with suppress(CorruptRecordError):  # the engine cannot read on, which strangers() meets too
            while (row := next(snapshot.scan(start, stop), None)) is not None:
                after = row[0] + b"\x00"
                with suppress(CorruptRecordError):  # of no form: a stranger
                    agent_id = parse(row[0]).agent_id
                    assert agent_id is not None, "a family of agents"
                    found.add(agent_id)
                    after = max(after, AgentKeys(agent_id).range(space)[1])
                start = after
    return found


class _Form(Struct, array_like=True):
    """The types and bounds of a document's fields: another program may have written them, with a good checksum."""

    episode_type: str
    content: dict[str, Any]
    transaction_us: int
    metadata: dict[str, Any] = {}
    memory_type: Annotated[int, Meta(ge=0, lt=len(MEMORY_TYPES))] = 0
    strength: Annotated[float, Meta(ge=0, le=1)] = 1.0
    reinforced_us: int = 0
    idempotency_digest: Annotated[str, Meta(pattern="^([0-9a-f]{32})?$")] = ""
    origin: str = ""
    previous_us: int = 0
    expires_us: Annotated[int, Meta(ge=0, lt=NEVER_US)] = 0
    ended_us: Annotated[int, Meta(ge=0, lt=NEVER_US)] = 0
    superseded_by: str = ""
    pinned: bool = False


def read_episode(records: Records, key: bytes, value: bytes) -> EpisodeDocument:
    """The document of an episode or of a version of it, trusted with nothing; else CorruptRecordError."""
    parsed = parse(key)
    fields = records.open(key, value)
    try:
        parse_id(format_id(parsed.id_bytes))
        form = msgspec.convert(fields, _Form)
        if form.superseded_by:
            parse_id(form.superseded_by)
        if form.ended_us and parsed.space is Space.EPISODE:
            raise InvalidError("it was retired")
    except (InvalidError, msgspec.ValidationError) as error:
        raise CorruptRecordError(f"record {key.hex()} is no episode's: {error}") from error
    return EpisodeDocument.from_fields(fields)


class _Walk:
    """What was found so far, and how to look for more."""

    def __init__(self, context: Context, snapshot: Snapshot) -> None:
        self.problems: list[Problem] = []
        self.agent_count = 0
        self.episode_count = 0
        self._context = context
        self._snapshot = snapshot
        self._has_states = True
        """Whether any episode of the present agent has one: where not, none is looked for."""
        self._whole = True
        """Whether all that the head of the present agent counts can be read."""
        self._layout = Head()
        """A head with the orders of relevance that the present agent is in."""

    def attempt(self, walk: Callable[[], None], key: bytes = b"") -> None:
        """Do one part of the walk; where the engine itself cannot read on, say so and let the others go on."""
        try:
            walk()
        except DataError as error:
            self._report("engine-damaged", key, error.message)

    def _report(self, invariant: str, key: bytes, message: str) -> None:
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
                derived=INVARIANTS[invariant],
            )
        )

    def catalog(self) -> None:
        """Every entry in use is there as it was written, and there is no other."""
        expected = self._context.catalog.entries()
        for key, value in self._snapshot.scan(*range_of(bytes((Space.CATALOG,)))):
            if key not in expected:
                self._report("catalog-entry-unknown", key, f"entry {key[1:]!r} is none that this store was opened with")
            elif value != expected.pop(key):
                self._report("catalog-entry-altered", key, f"entry {key[1:]!r} is not what was written")
        for key in expected:
            if self._snapshot.get(key) is None:
                self._report("catalog-entry-missing", key, f"entry {key[1:]!r} is missing")

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
        for key, _ in self._snapshot.scan(start):
            self._report("key-unknown", key, f"key {key.hex()} belongs to no family")

    def accounts(self) -> None:
        """Each row of the server's accounts is what was written; what it says is the server's business."""
        for key, value in self._snapshot.scan(*range_of(bytes((Space.ACCOUNT,)))):
            try:
                parse(key)
            except DataError:
                continue  # a stranger
            try:
                unframe(key, value)
            except CorruptRecordError as error:
                self._report("account-corrupt", key, error.message)

    def agents(self) -> None:
        """Each agent by itself."""
        for agent_id in sorted(agent_ids(self._snapshot)):
            self.agent_count += 1
            keys = AgentKeys(agent_id)
            self._layout = self._layout_of(keys)
            self._has_states = True
            with suppress(DataError):  # the engine cannot read on: reported with the states
                self._has_states = next(self._snapshot.scan(*keys.range(Space.STATE)), None) is not None
            for walk in (
                self._episodes_and_head,
                self._states,
                self._vitalities,
                self._expiries,
                self._marks,
                self._histories,
                self._changes,
                self._terms,
                self._vectors,
                self._undos,
            ):
                self.attempt(partial(walk, keys), keys.head)

    def _layout_of(self, keys: AgentKeys) -> Head:
        layout = Head(self._context.catalog.wanted)
        with suppress(DataError):  # reported with the episodes
            head = Head.decode(keys.head, self._snapshot.get(keys.head) or b"")
            for numbers in (head.orders, head.reindex.orders if head.reindex else head.orders):
                self._context.orders_of(numbers)
            layout.orders, layout.reindex = head.orders, head.reindex
        return layout

    def _rows(self, keys: AgentKeys, space: Space, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The agent's rows of one family, without those of no proper form, which are strangers."""
        for key, value in self._snapshot.scan(*keys.range(space), reverse=reverse):
            try:
                parse(key)
            except DataError:
                continue
            yield key, value

    def _episodes_and_head(self, keys: AgentKeys) -> None:
        """Every episode has its derived rows, and the head equals a recount."""
        self._whole = True
        recount = Head(self._layout.orders)
        recount.reindex = self._layout.reindex
        for key, value in self._rows(keys, Space.EPISODE):
            recount.newest_id = key[-16:]
            document = self._open(key, value)
            if document is not None:
                self.episode_count += 1
                is_known, state = self._state(keys, key[-16:])
                if is_known:
                    self._episode(keys, key, document, state)
                    count_episode(recount, key, value, document, state, self._context.orders_of)
                self._whole &= is_known
        for id_bytes, document in self._retired(keys):
            self._end_and_mark(keys, id_bytes, document, pinned=document.pinned)
            count_retired(recount, id_bytes, document)
        if (stored := self._snapshot.get(keys.head)) is None:
            if any(recount.newest_id) or next(self._rows(keys, Space.HISTORY), None) is not None:
                self._report("head-missing", keys.head, "an agent has episodes and no head")
            return
        try:
            head = read_head(self._snapshot, keys, stored, self._context.records, self._context.orders_of)
        except DataError as error:
            self._report("head-corrupt", keys.head, error.message)
            return
        except ProviderNotFoundError:
            return  # a record that the log moves the head on by, which is named
        if self._whole and head.counts() != recount.counts():
            self._report("head-counts", keys.head, f"the head says {head.counts()}, a recount {recount.counts()}")
        if head.newest_id < recount.newest_id or head.transaction_us < recount.transaction_us:
            self._report("head-clocks", keys.head, "an episode is newer than the newest that the head knows of")
        if head.expiry_us > recount.expiry_us:
            self._report("head-clocks", keys.head, "an episode expires before the first that the head knows of")

    def _episode(self, keys: AgentKeys, key: bytes, document: EpisodeDocument, state: State | None) -> None:
        id_bytes = key[-16:]
        name = f"episode {format_id(id_bytes)}"
        for place in self._places(keys, id_bytes, document, state):
            if self._snapshot.get(place) is None:
                self._report("vitality-missing", place, f"{name} is not in its relevance order")
        self._end_and_mark(keys, id_bytes, document, pinned=state is not None and state.pinned)
        if document.previous_us:
            version = keys.history(id_bytes, document.previous_us)
            if self._snapshot.get(version) is None:
                self._report("history-missing", version, f"the version that {name} replaced is missing")

    def _end_and_mark(self, keys: AgentKeys, id_bytes: bytes, document: EpisodeDocument, *, pinned: bool) -> None:
        name = f"episode {format_id(id_bytes)}"
        if document.expires_us and not pinned:
            expiry = keys.expiry(document.expires_us, id_bytes)
            if self._snapshot.get(expiry) is None:
                self._report("expiry-missing", expiry, f"{name} is not among those that expire")
        if document.idempotency_digest:
            mark = keys.idempotency_key(bytes.fromhex(document.idempotency_digest))
            if self._snapshot.get(mark) is None:
                self._report("mark-missing", mark, f"the idempotency key of {name} is missing")

    def _retired(self, keys: AgentKeys) -> Iterator[tuple[bytes, EpisodeDocument]]:
        """Each retired episode that can be read, and its last version."""
        for key, value in last_rows(self._snapshot, keys):
            with suppress(DataError):  # reported with the histories
                try:
                    document = read_episode(self._context.records, key, value)
                except ProviderNotFoundError:
                    self._whole = False
                    continue
                if document.ended_us:
                    yield key[-24:-8], document

    def _open(self, key: bytes, value: bytes) -> EpisodeDocument | None:
        """What a record holds; where that cannot be told, it is reported."""
        try:
            return read_episode(self._context.records, key, value)
        except ProviderNotFoundError as error:
            self._whole = False
            self._report("record-unreadable", key, str(error))
        except DataError as error:
            self._report("record-corrupt", key, error.message)
        return None

    def _state(self, keys: AgentKeys, id_bytes: bytes) -> tuple[bool, State | None]:
        """Whether it can be told which state an episode has, and which."""
        key = keys.state(id_bytes)
        value = self._snapshot.get(key) if self._has_states else None
        with suppress(DataError):  # reported with the states
            return True, None if value is None else decode_state(key, value)
        return False, None

    def _places(self, keys: AgentKeys, id_bytes: bytes, document: EpisodeDocument, state: State | None) -> list[bytes]:
        places = standings(self._layout, self._context.orders_of, id_bytes, document, state)
        return [keys.vitality(order.number, place, id_bytes) for order, place in places]

    def _exists(self, keys: AgentKeys, id_bytes: bytes) -> bool:
        return self._snapshot.get(keys.episode(id_bytes)) is not None

    def _current(self, keys: AgentKeys, id_bytes: bytes) -> tuple[bool, EpisodeDocument | None]:
        """Whether an episode is there, and what it holds now, where that can be told."""
        key = keys.episode(id_bytes)
        if (value := self._snapshot.get(key)) is None:
            return False, None
        with suppress(DataError, ProviderNotFoundError):  # reported with the episodes
            return True, read_episode(self._context.records, key, value)
        return True, None

    def _kept(self, keys: AgentKeys, id_bytes: bytes) -> tuple[bool, EpisodeDocument | None]:
        """The same of an episode that may have been retired."""
        exists, document = self._current(keys, id_bytes)
        if not exists:
            row = next(self._snapshot.scan(*keys.history_range(id_bytes), reverse=True), None)
            exists = row is not None
            if row is not None:
                with suppress(DataError, ProviderNotFoundError):  # reported with the histories
                    last = read_episode(self._context.records, *row)
                    exists, document = last.ended_us > 0, last
        return exists, document

    def _states(self, keys: AgentKeys) -> None:
        """Every state is that of an episode, and says something else than its record."""
        for key, value in self._rows(keys, Space.STATE):
            id_bytes = key[-16:]
            exists, document = self._current(keys, id_bytes)
            try:
                state = decode_state(key, value)
            except DataError as error:
                self._report("state-corrupt", key, error.message)
                continue
            if not exists:
                self._report("state-orphan", key, f"episode {format_id(id_bytes)} is gone, its state is not")
            elif document is not None and state == first_state(document):
                self._report(
                    "state-wrong", key, f"the state of episode {format_id(id_bytes)} says what its record says"
                )

    def _vitalities(self, keys: AgentKeys) -> None:
        """Every place in the relevance order is its episode's."""
        leaving = self._layout.reindex.leaving if self._layout.reindex else ()
        for key, value in self._rows(keys, Space.VITALITY):
            if key[-25] in leaving:
                continue  # nobody goes by it any more
            id_bytes = key[-16:]
            exists, document = self._current(keys, id_bytes)
            is_known, state = self._state(keys, id_bytes)
            if not exists:
                self._report("vitality-orphan", key, f"episode {format_id(id_bytes)} is gone, its place is not")
            elif document is None or not is_known:
                continue
            elif key not in self._places(keys, id_bytes, document, state) or value:
                self._report("vitality-wrong", key, f"this is not the place of episode {format_id(id_bytes)}")

    def _expiries(self, keys: AgentKeys) -> None:
        """Whatever is to expire does so at its time, and is not pinned."""
        for key, value in self._rows(keys, Space.EXPIRY):
            id_bytes = key[-16:]
            exists, document = self._kept(keys, id_bytes)
            is_known, state = self._state(keys, id_bytes)
            if not exists:
                self._report("expiry-orphan", key, f"episode {format_id(id_bytes)} is gone, its expiry is not")
            elif document is None or not is_known:
                continue
            elif key != keys.expiry(document.expires_us, id_bytes) or value or (state or first_state(document)).pinned:
                self._report("expiry-wrong", key, f"episode {format_id(id_bytes)} does not expire then")

    def _marks(self, keys: AgentKeys) -> None:
        """Every idempotency key stands for the episode that was stored with it."""
        for key, value in self._rows(keys, Space.KEY):
            try:
                id_bytes = unframe(key, value)
            except DataError as error:
                self._report("mark-corrupt", key, error.message)
                continue
            exists, document = self._kept(keys, id_bytes)
            if not exists:
                self._report("mark-orphan", key, f"episode {format_id(id_bytes)} is gone, its idempotency key is not")
            elif document is not None and document.idempotency_digest != key[-16:].hex():
                self._report("mark-orphan", key, f"episode {format_id(id_bytes)} was not stored under this key")

    def _histories(self, keys: AgentKeys) -> None:
        """The earlier versions of an episode are a chain: each says when the one before it was recorded."""
        rows = self._rows(keys, Space.HISTORY, reverse=True)
        for id_bytes, versions in groupby(rows, key=lambda row: row[0][-24:-8]):
            name = f"episode {format_id(id_bytes)}"
            is_there, current = self._current(keys, id_bytes)
            exists = is_there or self._kept(keys, id_bytes)[0]
            # Newest first. None: the link to the next one cannot be read, so it is taken on trust.
            due = None if current is None else current.previous_us
            following_us = NEVER_US if current is None else current.transaction_us
            for number, (key, value) in enumerate(versions):
                version = self._open(key, value)
                recorded_us = int.from_bytes(key[-8:], "big")
                if not exists:
                    self._report("history-orphan", key, f"{name} is gone, this version of it is not")
                elif due is not None and recorded_us > due:
                    self._report("history-wrong", key, f"{name} never was of this version")
                    continue
                elif due is not None and recorded_us < due and number:
                    self._report("history-missing", keys.history(id_bytes, due), f"a version of {name} is missing")
                due = None if version is None else version.previous_us
                if version is not None and version.transaction_us != recorded_us:
                    self._report("history-wrong", key, f"this version of {name} was recorded at another time")
                if version is not None and version.ended_us and not recorded_us < version.ended_us <= following_us:
                    self._report("history-wrong", key, f"this version of {name} did not end then")
                following_us = recorded_us
            if due and exists:
                self._report("history-missing", keys.history(id_bytes, due), f"a version of {name} is missing")

    def _changes(self, keys: AgentKeys) -> None:
        """The log goes from where it was trimmed to the head, forward in time, and ends in what is there."""
        try:
            head = Head.decode(keys.head, self._snapshot.get(keys.head) or b"")
        except DataError:
            head = None  # reported
        due = None if head is None else head.trimmed + 1
        recorded_us = 0
        unexplained: dict[bytes, tuple[bytes, ChangeKind]] = {}
        for key, value in self._rows(keys, Space.CHANGE):
            sequence = int.from_bytes(key[-8:], "big")
            if due is not None and sequence != due:
                self._report("change-order", key, f"entry {sequence} of the change log, where {due} is due")
            due = sequence + 1
            try:
                change = parse_change(key, value)
            except DataError as error:
                self._report("change-corrupt", key, error.message)
                continue
            if change.transaction_us <= recorded_us:
                self._report("change-wrong", key, f"entry {sequence} of the change log is not later than the last")
            recorded_us = change.transaction_us
            for id_bytes in change.ids:
                if self._agrees(keys, id_bytes, change.kind):
                    unexplained.pop(id_bytes, None)
                else:
                    unexplained[id_bytes] = key, change.kind
        for id_bytes, (key, kind) in unexplained.items():
            if kind is ChangeKind.DELETE:
                self._report("change-wrong", key, f"episode {format_id(id_bytes)} is there; it was deleted here")
            else:
                self._report("episode-missing", keys.episode(id_bytes), f"episode {format_id(id_bytes)} is gone")
        if head is not None and due is not None and due <= head.sequence:
            self._report("change-order", keys.change(due), f"the change log lacks {due} to {head.sequence}")

    def _agrees(self, keys: AgentKeys, id_bytes: bytes, kind: ChangeKind) -> bool:
        """Whether what is there of an episode can be what an operation has left."""
        if kind is ChangeKind.RETIRE:
            return self._kept(keys, id_bytes)[0]
        if kind is ChangeKind.DELETE:
            return not self._kept(keys, id_bytes)[0]
        return self._exists(keys, id_bytes)

    def _undos(self, keys: AgentKeys) -> None:
        """Whatever an undo is to bring back was retired by that consolidation."""
        for key, value in self._rows(keys, Space.PLAN):
            try:
                row = decode_undo(key, value)
            except DataError as error:
                self._report("undo-corrupt", key, error.message)
                continue
            for id_bytes in row.gone():
                exists, document = self._kept(keys, id_bytes)
                if not exists or (document is not None and document.ended_us != undo_us(key)):
                    self._report("undo-orphan", key, f"episode {format_id(id_bytes)} cannot be brought back by this")
            if not row.gone() and not row.created:
                self._report("undo-orphan", key, "there is nothing that this would undo")

    def _terms(self, keys: AgentKeys) -> None:
        """Every row of search terms is what its episode says, and up to the cursor none is missing."""
        cursor = self._cursor(keys)
        language = analyser(cursor.language) if cursor is not None and cursor.language in LANGUAGES else None
        missing = self._rows_due(keys, cursor) if language is not None else set()
        for key, value in self._rows(keys, Space.TERMS):
            if key == cursor_key(keys):
                continue
            id_bytes = key[-16:]
            name = f"episode {format_id(id_bytes)}"
            exists, document = self._current(keys, id_bytes)
            if not exists:
                self._report("terms-orphan", key, f"{name} is gone, its search terms are not")
                continue
            missing.discard(id_bytes)
            if language is None or key != row_key(keys, id_bytes):
                self._report("terms-orphan", key, f"the search terms of {name} belong to no cursor")
            elif document is not None and value != seal_row(
                key, row_of_document(keys.agent[1:].decode(), id_bytes, document, language)
            ):
                self._report("terms-wrong", key, f"the search terms of {name} are not what it says")
        for id_bytes in sorted(missing):
            self._report("terms-missing", row_key(keys, id_bytes), f"the terms of {format_id(id_bytes)} are missing")

    def _vectors(self, keys: AgentKeys) -> None:
        """Every vector is of what its episode says, by a model that is kept, and up to its cursor none is missing."""
        catalog = self._context.catalog
        dimensions = {number: catalog.model(number).dimensions for number in catalog.vectors.kept}
        missing = {number: self._vectors_due(keys, number) for number in dimensions}
        for key, value in self._rows(keys, Space.VECTOR):
            number, id_bytes = key[-17], key[-16:]
            name = f"episode {format_id(id_bytes)}"
            if number not in dimensions:
                self._report("vector-orphan", key, f"this vector is of model {number}, of which none are kept")
                continue
            if id_bytes == NO_ID:
                continue
            exists, document = self._current(keys, id_bytes)
            if not exists:
                self._report("vector-orphan", key, f"{name} is gone, its vector is not")
                continue
            missing[number].discard(id_bytes)
            if document is not None and not is_vector_of(key, value, dimensions[number], encoded_text(document)):
                self._report("vector-wrong", key, f"the vector of {name} is not of what it says")
        for number, ids in missing.items():
            for id_bytes in sorted(ids):
                self._report("vector-missing", keys.vector(number, id_bytes), f"{format_id(id_bytes)} has no vector")

    def _vectors_due(self, keys: AgentKeys, number: int) -> set[bytes]:
        """The episodes that must have a vector of a model by now; what is wrong with its cursor is reported."""
        key = vector_cursor_key(keys, number)
        if (value := self._snapshot.get(key)) is None:
            return set()
        try:
            cursor = decode_vector_cursor(key, value)
        except DataError as error:
            self._report("vector-cursor", key, error.message)
            return set()
        head, end = self._ends(keys)
        if head is not None and cursor.generation == head.generation and cursor.sequence > end:
            self._report("vector-cursor", key, f"vectors go to {cursor.sequence}, the change log to {end}")
        return self._rows_due(keys, Cursor(cursor.generation, cursor.sequence, 0, ""))

    def _cursor(self, keys: AgentKeys) -> Cursor | None:
        """Up to where the search terms of an agent go; what is wrong with it is reported."""
        key = cursor_key(keys)
        if (value := self._snapshot.get(key)) is None:
            return None
        try:
            cursor = decode_cursor(key, value)
        except DataError as error:
            self._report("terms-cursor", key, error.message)
            return None
        head, end = self._ends(keys)
        if head is not None and cursor.generation == head.generation and cursor.sequence > end:
            self._report("terms-cursor", key, f"search terms go to {cursor.sequence}, the change log to {end}")
        if cursor.language not in LANGUAGES:
            self._report("terms-cursor", key, f"the search terms are in {cursor.language!r}, which this release lacks")
        return cursor

    def _ends(self, keys: AgentKeys) -> tuple[Head | None, int]:
        """The head, where it can be read, and the sequence that the change log ends with."""
        with suppress(DataError):  # reported with the episodes
            head = Head.decode(keys.head, self._snapshot.get(keys.head) or b"")
            newest = next(self._rows(keys, Space.CHANGE, reverse=True), None)
            return head, head.sequence if newest is None else int.from_bytes(newest[0][-8:], "big")
        return None, 0

    def _rows_due(self, keys: AgentKeys, cursor: Cursor | None) -> set[bytes]:
        """The episodes that must have what a cursor covers by now, if they can be read."""
        head, end = self._ends(keys)
        if head is None or cursor is None or cursor.generation != head.generation:
            return set()  # all are to be made anew
        if not head.trimmed <= cursor.sequence <= end:
            return set()
        due: set[bytes] = set()
        for key, _ in self._rows(keys, Space.EPISODE):
            if cursor.built is not None and key[-16:] > cursor.built:
                break
            if self._current(keys, key[-16:])[1] is not None:
                due.add(key[-16:])
        done = cursor.done
        for key, value in self._snapshot.scan(keys.change(cursor.sequence + 1), keys.range(Space.CHANGE)[1]):
            with suppress(DataError):
                due.difference_update(parse_change(key, value).ids[done:])
            done = 0
        return due
