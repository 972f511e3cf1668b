"""Keeping search in step with what is stored: rows in the store, postings in RAM, both by following the change log.

One thread for each store makes the rows, some milliseconds behind the stores. It works in parts: a part reads some
entries of the log and the records that they name, and writes their rows together with the cursor that moves over them,
in one batch that expects the records as they were read. Where one of them has changed meanwhile, nothing is written and
the part is done again: an episode that was deleted in between leaves no row. A crash loses no work and repeats none.

The index of an agent in RAM is made of all its rows when it is first searched, and then follows the log too. A search
begins with doing what is pending, so it finds whatever was stored before. There are never more than PENDING_MAX
episodes pending of one agent: beyond that whoever stores does a part himself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from math import inf
from typing import Literal, NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from qilbee_core.batch import DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    DataError,
    ProviderNotFoundError,
    QilbeeError,
    StorageError,
    StoreClosedError,
)
from qilbee_core.keys import AgentKeys, Space, parse, range_of
from qilbee_core.memory.commit import Agent, Context, Position
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind, parse_change
from qilbee_core.memory.terms import (
    NO_ID,
    Cursor,
    cursor_key,
    decode_cursor,
    open_row,
    row_key,
    row_of_document,
    seal_row,
)
from qilbee_core.search.analysis import ANALYSER_VERSION, analyser
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.lexicon import lexicon
from qilbee_core.search.rows import Row

__all__ = ["PENDING_MAX", "Indexing", "Pending"]

log = logging.getLogger(__name__)

T = TypeVar("T")

PENDING_MAX = 10_000
"""Episodes of one agent that a search may find unindexed, and has to index first."""

_HELP_EPISODES = 8
"""In a part that delays whoever stores."""
_WORK_EPISODES = 32
"""In a part of the thread."""
_DRAIN_EPISODES = 256
"""In a part that a search waits for: the larger, the less each costs."""
_SLICE_S = 0.0004
"""After so long the thread pauses, so that others get the interpreter now, and not after its interval of 5 ms."""
_PAUSE_S = 0.0001
_POLL_S = 0.02
_POLLS_IDLE = 50
"""So often the thread looks in vain for work before it waits to be woken, which costs the caller some microseconds."""
_RETRY_S = 1.0
_ATTEMPTS_MAX = 64


class _Step(NamedTuple):
    """One id of the change log, and where the log was followed to with it. None: nothing is to do for the entry."""

    id_bytes: bytes | None
    sequence: int
    done: int


class _Place(NamedTuple):
    """Up to where an index in RAM has followed the change log."""

    generation: int
    sequence: int
    done: int


class _Progress(NamedTuple):
    """What a part has come to: the log is covered up to there (-1: not before all rows are made), and ends there."""

    covered: int
    end: int


class Pending(Struct, frozen=True, kw_only=True):
    """What is indexed of one agent, and what is not yet; in episodes."""

    indexed: int
    pending: int
    ram_bytes: int


class _Search:
    """What search holds of one agent in RAM. Everything under its lock."""

    __slots__ = ("agent", "index", "lock", "place", "ram_bytes", "reloads")

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.lock = threading.Lock()
        self.index: AgentIndex | None = None
        self.place = _Place(0, 0, 0)
        self.reloads = 0
        self.ram_bytes = 0

    def drop(self) -> None:
        """Let go of the index; the next search makes it anew."""
        self.index, self.ram_bytes = None, 0


class Indexing:
    """The search indexes of all agents of one open store, and the thread that keeps them in step."""

    def __init__(
        self,
        context: Context,
        mode: Literal["background", "inline", "off"],
        language: str,
        *,
        ram_bytes_max: int,
        read_only: bool = False,
    ) -> None:
        self.mode = mode
        self.language = language
        self.ram_bytes_max = ram_bytes_max
        self._context = context
        self._analyser = analyser(language)
        self._searches: OrderedDict[str, _Search] = OrderedDict()
        self._searches_lock = threading.Lock()
        self._pid = os.getpid()
        self._queue: deque[Agent] = deque()
        self._stuck: list[Agent] = []
        self._told = ""
        self._sleeps = False
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.writes = mode != "off" and not read_only
        """Whether rows are written; else an index is in RAM alone."""
        self.unindexed_max: float = inf
        """From so many on whoever stores has to help()."""
        if self.writes:
            self.unindexed_max = 1 if mode == "inline" else PENDING_MAX
        self._works = threading.Lock()
        """Held by the thread for each part, and by whoever wants that it reads nothing meanwhile."""
        context.follows_log = self.writes
        if self.writes and mode == "background":
            context.index_soon = self._index_soon
            self._thread = threading.Thread(target=self._run, name="qilbee-search", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop, and let go of what is in RAM. What is pending is done when the store is open again. Idempotent."""
        self._closing.set()
        self._woken.set()
        if self._thread is not None and os.getpid() == self._pid:
            self._thread.join()
        with self._searches_lock:
            self._searches.clear()

    # --- for those who write

    def help(self, agent: Agent, episodes: int = 1) -> None:
        """Index about as many as were just stored, since too many wait. A failure is not the caller's, who is done."""
        search = self._search_of(agent)
        if not search.lock.acquire(blocking=False):
            return  # somebody is at it, and an event loop must not wait for him
        try:
            while episodes > 0 and agent.unindexed >= self.unindexed_max:
                part = min(max(episodes, _HELP_EPISODES), _DRAIN_EPISODES)
                if self._do_part(search, part) is None:
                    return
                episodes -= part
        except QilbeeError as error:
            self._tell(agent, error)
        finally:
            search.lock.release()

    def refresh(self, agent: Agent, ids: Iterable[bytes]) -> None:
        """Take what was changed or removed out of RAM at once, and not when the log is followed up to there.

        What was stored again since then is there again: under the lock, what is read now cannot be undone.
        """
        search = self._searches.get(agent.id)
        if search is not None and search.lock.acquire(blocking=False):  # else whoever has it follows the log
            try:
                if search.index is not None:
                    for id_bytes in ids:
                        value = self._context.backend.get(agent.keys.episode(id_bytes))
                        _put(search.index, id_bytes, None if value is None else self._row(agent, id_bytes, value))
            finally:
                search.lock.release()

    def cleared(self, agent: Agent) -> None:
        """Take all that an agent has in RAM out of it."""
        with self._searches_lock:
            self._searches.pop(agent.id, None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this lasts, the thread reads nothing: an open scan keeps files that are to be erased."""
        with self._works:
            yield

    # --- for those who search

    def ask(self, agent: Agent, question: Callable[[AgentIndex], T]) -> T:
        """The answer of an index of all that is stored at the moment, without what has expired."""
        if self._closing.is_set() or os.getpid() != self._pid:
            raise StoreClosedError("the store is closed")
        search = self._search_of(agent, keep=True)
        with search.lock:
            index = self._index_now(search)
            answer = question(index)
            search.ram_bytes = index.ram_bytes if search.index is index else 0
        self._make_room(search)
        return answer

    def build(self) -> None:
        """Do all that is pending now, of every agent."""
        for agent in self._behind() if self.writes else ():
            search = self._search_of(agent)
            with search.lock:
                self._drain(search, self._context.position(agent))

    def pending(self, agent: Agent) -> Pending:
        """Count what is indexed of an agent and what is not yet."""
        context, keys = self._context, agent.keys
        search = self._searches.get(agent.id)
        ram_bytes = search.ram_bytes if search is not None else 0
        head = context.head(agent)
        position = context.position(agent)
        if head is None or position is None:
            return Pending(indexed=0, pending=0, ram_bytes=ram_bytes)
        cursor = self._cursor(keys, position, context.backend.get(cursor_key(keys)))
        if cursor is None:
            return Pending(indexed=0, pending=head.episodes, ram_bytes=ram_bytes)
        waiting: set[bytes] = set()
        with suppress(DataError):
            steps = self._steps(keys, cursor.sequence, cursor.done)
            waiting = {step.id_bytes for step in steps if step.id_bytes is not None}
        if cursor.built is not None:
            start, stop = keys.episode(cursor.built) + b"\x00", keys.range(Space.EPISODE)[1]
            waiting.update(key[-16:] for key, _ in context.backend.scan(start, stop))
        ids = sorted(waiting)
        there = context.backend.get_many([keys.episode(id_bytes) for id_bytes in ids])
        rows = context.backend.get_many([row_key(keys, id_bytes) for id_bytes in ids])
        missing = sum(record is not None and row is None for record, row in zip(there, rows, strict=True))
        return Pending(indexed=head.episodes - missing, pending=missing, ram_bytes=ram_bytes)

    def figures(self) -> dict[str, int]:
        """Figures of the whole store, by name."""
        with self._searches_lock:
            opened = [search for search in self._searches.values() if search.index is not None]
        waiting = sum(agent.unindexed for agent in self._context.agents_in_use()) if self.writes else 0
        return {
            "pending": waiting,
            "indexes_in_ram": len(opened),
            "indexed_in_ram": sum(len(search.index or ()) for search in opened),
            "ram_bytes": sum(search.ram_bytes for search in opened),
            "ram_bytes_max": self.ram_bytes_max,
        }

    # --- indexes in RAM

    def _search_of(self, agent: Agent, *, keep: bool = False) -> _Search:
        """What is known of an agent, or a new one, which is kept for whoever searches; others need none."""
        with self._searches_lock:
            search = self._searches.get(agent.id)
            if search is None or search.agent is not agent:
                search = _Search(agent)
                if keep:
                    self._searches[agent.id] = search
            if keep:
                self._searches.move_to_end(agent.id)
            return search

    def _make_room(self, used: _Search) -> None:
        """Drop the indexes that were used longest ago, while there are too many bytes of them."""
        with self._searches_lock:
            total = sum(search.ram_bytes for search in self._searches.values())
            for search in list(self._searches.values()):
                if total <= self.ram_bytes_max:
                    break
                if search is not used and search.index is not None and search.lock.acquire(blocking=False):
                    total -= search.ram_bytes
                    search.drop()
                    search.lock.release()
            for search in list(self._searches.values()):
                if search is not used and search.index is None and not search.lock.locked():
                    del self._searches[search.agent.id]

    def _index_now(self, search: _Search) -> AgentIndex:
        """The index of all that was stored before the call."""
        agent, context = search.agent, self._context
        position = context.position(agent)
        if position is None:
            search.drop()
            return AgentIndex(lexicon(self.language))
        if self.writes and context.durability.failure is None:
            try:
                self._drain(search, position)
            except StoreClosedError:
                raise
            except StorageError as error:  # it can be searched all the same
                self._tell(agent, error)
        if search.index is None or search.place.generation != position.generation or search.reloads != context.reloads:
            search.drop()
            self._open(search)
        index = self._follow(search)
        position = context.position(agent)
        if position is not None and position.expiry_us <= (now_us := context.now_us()):
            for key, _ in context.backend.scan(*agent.keys.due_range(now_us)):
                index.remove(key[-16:])
        return index

    def _open(self, search: _Search) -> None:
        """Make the index of the rows that are stored; where they are not all there, of the episodes."""
        agent, context = search.agent, self._context
        keys = agent.keys
        reloads = context.reloads
        position = context.position(agent)
        index = AgentIndex(lexicon(self.language))
        if position is None:
            search.index, search.place, search.reloads = index, _Place(0, 0, 0), reloads
            return
        stored = context.backend.scan(*keys.row_range(ANALYSER_VERSION))
        first = next(stored, None)
        cursor = None if first is None or first[0] != cursor_key(keys) else self._cursor(keys, position, first[1])
        if cursor is None or cursor.built is not None:
            place = _Place(position.generation, position.sequence, 0)
            records = context.backend.scan(*keys.range(Space.EPISODE))
            made = ((key[-16:], self._row(agent, key[-16:], value)) for key, value in records)
            index.load([(id_bytes, row) for id_bytes, row in made if row is not None])
        else:
            place = _Place(cursor.generation, cursor.sequence, cursor.done)
            index.load(list(self._opened(agent, stored)))
        search.index, search.place, search.reloads = index, place, reloads

    def _opened(self, agent: Agent, stored: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Row]]:
        for key, value in stored:
            id_bytes = key[-16:]
            try:
                yield id_bytes, open_row(key, value)
            except DataError:  # named by verify(); its episode can tell
                record = self._context.backend.get(agent.keys.episode(id_bytes))
                row = None if record is None else self._row(agent, id_bytes, record)
                if row is not None:
                    yield id_bytes, row

    def _follow(self, search: _Search) -> AgentIndex:
        """Bring an index up to the end of the log, without writing."""
        agent, context = search.agent, self._context
        for _ in range(_ATTEMPTS_MAX):
            position, place, index = context.position(agent), search.place, search.index
            if index is not None and position is None:
                return index  # cleared just now
            if index is not None and position is not None and place.generation == position.generation:
                if place == (position.generation, position.sequence, 0):
                    return index
                with suppress(DataError):  # a log that cannot be followed leaves it to the episodes
                    steps = self._steps(agent.keys, place.sequence, place.done)
                    while part := list(islice(steps, _DRAIN_EPISODES)):
                        ids = [step.id_bytes for step in part if step.id_bytes is not None]
                        records = context.backend.get_many([agent.keys.episode(id_bytes) for id_bytes in ids])
                        for id_bytes, record in zip(ids, records, strict=True):
                            _put(index, id_bytes, None if record is None else self._row(agent, id_bytes, record))
                        search.place = _Place(place.generation, part[-1].sequence, part[-1].done)
                if search.place.sequence >= position.sequence:
                    return index
            self._open(search)
        raise StorageError(f"search cannot keep up with those who write to agent {agent.id!r}", remedy="try again")

    # --- rows in the store

    def _drain(self, search: _Search, position: Position | None) -> None:
        """Do all that was pending at ``position``."""
        if position is None:
            return
        conflicts = 0
        while True:
            try:
                progress = self._do_part(search, _DRAIN_EPISODES)
            except ConflictError:
                conflicts += 1
                if conflicts == _ATTEMPTS_MAX:
                    raise StorageError("the indexer met other writers all the time", remedy="try again") from None
                continue
            if progress is None or progress.covered >= min(position.sequence, progress.end):
                return

    def _do_part(self, search: _Search, episodes_max: int, *, pause: bool = False) -> _Progress | None:
        """Make the next rows; None where nothing is left to do. ConflictError where somebody wrote meanwhile."""
        agent, context = search.agent, self._context
        keys, backend = agent.keys, context.backend
        position = context.position(agent)
        if position is None:
            search.drop()
            return None if context.all_indexed(agent, None) else _Progress(-1, 0)
        key = cursor_key(keys)
        stored = backend.get(key)
        cursor = self._cursor(keys, position, stored)
        part = None if cursor is None else self._part(keys, cursor, position, episodes_max)
        expects = [Expect(key, stored)]
        operations: list[Operation] = []
        if cursor is None or part is None:
            # What the log cannot tell any more, the episodes can.
            cursor = Cursor(position.generation, position.sequence, 0, self.language, NO_ID)
            expects.append(Expect(keys.head, backend.get(keys.head)))
            operations.append(DeleteRange(*keys.range(Space.TERMS)))
            search.drop()
        elif not agent.indexed:
            self._count(agent, cursor)
        if cursor.built is not None:
            start, stop = keys.episode(cursor.built) + b"\x00", keys.range(Space.EPISODE)[1]
            records = list(islice(backend.scan(start, stop), episodes_max))
            pairs: list[tuple[bytes, bytes | None]] = [(key[-16:], value) for key, value in records]
            moved = replace(cursor, built=None if len(records) < episodes_max else pairs[-1][0])
            ids = []
        else:
            if not part:
                return None if context.all_indexed(agent, position) else _Progress(cursor.sequence, position.sequence)
            ids = [step.id_bytes for step in part if step.id_bytes is not None]
            pairs = list(zip(ids, backend.get_many([keys.episode(id_bytes) for id_bytes in ids]), strict=True))
            moved = replace(cursor, sequence=part[-1].sequence, done=part[-1].done)
        rows = self._rows(agent, pairs, operations, expects, pause=pause)
        operations.append(Put(key, moved.encode(key)))
        context.write_rows(agent, WriteBatch(operations, expects), moved.sequence, len(ids))
        if search.index is not None and search.place == (cursor.generation, cursor.sequence, cursor.done):
            for id_bytes, row in rows:
                _put(search.index, id_bytes, row)
            search.place = _Place(moved.generation, moved.sequence, moved.done)
        if moved == Cursor(position.generation, position.sequence, 0, self.language) and context.all_indexed(
            agent, position
        ):
            return None
        return _Progress(moved.sequence if moved.built is None else -1, position.sequence)

    def _rows(
        self,
        agent: Agent,
        pairs: list[tuple[bytes, bytes | None]],
        operations: list[Operation],
        expects: list[Expect],
        *,
        pause: bool,
    ) -> list[tuple[bytes, Row | None]]:
        """The rows of these records, and how to write them."""
        keys = agent.keys
        rows: list[tuple[bytes, Row | None]] = []
        until_s = time.perf_counter() + _SLICE_S
        for id_bytes, value in pairs:
            if pause and time.perf_counter() > until_s:
                time.sleep(_PAUSE_S)
                until_s = time.perf_counter() + _SLICE_S
            row = None if value is None else self._row(agent, id_bytes, value)
            if row is not None:
                key = row_key(keys, id_bytes)
                expects.append(Expect(keys.episode(id_bytes), value))
                operations.append(Put(key, seal_row(key, row)))
            rows.append((id_bytes, row))
        return rows

    def _row(self, agent: Agent, id_bytes: bytes, value: bytes) -> Row | None:
        """The row of a record; None where that cannot be read, which verify() names."""
        try:
            document = EpisodeDocument.from_fields(self._context.records.open(agent.keys.episodes + id_bytes, value))
        except (DataError, ProviderNotFoundError):
            return None
        return row_of_document(agent.id, id_bytes, document, self._analyser)

    def _cursor(self, keys: AgentKeys, position: Position, value: bytes | None) -> Cursor | None:
        """The cursor, where there is one that leads on."""
        with suppress(DataError):
            if value is not None and (cursor := decode_cursor(cursor_key(keys), value)).holds(position, self.language):
                return cursor
        return None

    def _part(self, keys: AgentKeys, cursor: Cursor, position: Position, episodes_max: int) -> list[_Step] | None:
        """What the log says next; None where it cannot be followed."""
        if cursor.built is not None:
            return []
        with suppress(DataError):
            part = list(islice(self._steps(keys, cursor.sequence, cursor.done), episodes_max))
            if part or cursor.sequence == position.sequence:
                return part
        return None

    def _steps(self, keys: AgentKeys, sequence: int, done: int) -> Iterator[_Step]:
        """What the log says behind a place; CorruptRecordError where it has a gap or cannot be read."""
        for key, value in self._context.backend.scan(keys.change(sequence + 1), keys.range(Space.CHANGE)[1]):
            sequence += 1
            if key != keys.change(sequence):
                raise CorruptRecordError(f"the change log lacks {sequence}", remedy="repair()")
            change = parse_change(key, value)
            if change.kind is ChangeKind.STATE:  # the text is the same
                yield _Step(None, sequence, 0)
            else:
                last = len(change.ids) - 1
                for number, id_bytes in enumerate(change.ids[done:], done):
                    yield _Step(id_bytes, sequence, 0) if number == last else _Step(id_bytes, sequence - 1, number + 1)
            done = 0

    def _count(self, agent: Agent, cursor: Cursor) -> None:
        """Count what an earlier process has left."""
        counted = 0
        with suppress(DataError):
            counted = sum(step.id_bytes is not None for step in self._steps(agent.keys, cursor.sequence, cursor.done))
        with agent.lock:
            agent.indexed = cursor.sequence
            agent.unindexed = max(agent.unindexed, counted)

    # --- the thread

    def _index_soon(self, agent: Agent) -> None:
        self._queue.append(agent)
        if self._sleeps:
            self._woken.set()

    def _run(self) -> None:
        try:
            for agent in self._behind():  # what an earlier process has left
                self._queue.append(agent)
            idle = 0
            retry_s = 0.0
            while not self._closing.is_set():
                if self._stuck and time.monotonic() >= retry_s:
                    self._queue.extend(self._stuck)
                    self._stuck.clear()
                    retry_s = time.monotonic() + _RETRY_S
                if self._queue:
                    idle = 0
                    self._round()
                elif idle < _POLLS_IDLE or self._stuck:
                    idle += 1
                    self._closing.wait(_POLL_S)
                else:
                    self._sleep()
                    idle = 0
                    self._closing.wait(_POLL_S)  # more of the same is likely to come: take it together
        except StoreClosedError:
            pass

    def _sleep(self) -> None:
        self._sleeps = True
        if not self._queue:  # after the flag: whoever comes in between sees it
            self._woken.wait()
        self._sleeps = False
        self._woken.clear()

    def _round(self) -> None:
        """A part for each agent that has something pending."""
        for _ in range(len(self._queue)):
            if self._closing.is_set():
                return
            agent = self._queue.popleft()
            try:
                if self._work(agent):
                    self._queue.append(agent)
            except StoreClosedError:
                raise
            except ConflictError:
                self._queue.append(agent)
            except QilbeeError as error:
                self._tell(agent, error)
                self._stuck.append(agent)
            time.sleep(_PAUSE_S)

    def _work(self, agent: Agent) -> bool:
        """One part; whether there may be more to do."""
        search = self._search_of(agent)
        if not search.lock.acquire(blocking=False):
            return True  # whoever has it does the same
        try:
            with self._works:
                return self._do_part(search, _WORK_EPISODES, pause=True) is not None
        finally:
            search.lock.release()

    def _behind(self) -> Iterator[Agent]:
        """The agents of whom something is pending; those whose head cannot be read are left to repair()."""
        start, stop = range_of(bytes((Space.AGENT,)))
        while not self._closing.is_set():
            found = []
            with self._works:
                heads = list(islice(self._context.backend.scan(start, stop), _HELP_EPISODES))
                for key, value in heads:
                    with suppress(DataError):
                        agent_id = parse(key).agent_id
                        if agent_id is not None and self._is_behind(AgentKeys(agent_id), value):
                            found.append(self._context.agent(agent_id))
            yield from found
            if not heads:
                return
            time.sleep(_PAUSE_S)
            start = heads[-1][0] + b"\x00"

    def _is_behind(self, keys: AgentKeys, head_value: bytes) -> bool:
        backend, head = self._context.backend, Head.decode(keys.head, head_value)
        newest = next(backend.scan(*keys.range(Space.CHANGE), reverse=True), None)
        sequence = head.sequence if newest is None else int.from_bytes(newest[0][-8:], "big")
        position = Position(head.generation, sequence, head.trimmed, head.expiry_us)
        cursor = self._cursor(keys, position, backend.get(cursor_key(keys)))
        return cursor is None or (cursor.sequence, cursor.done, cursor.built) != (sequence, 0, None)

    def _tell(self, agent: Agent, error: Exception) -> None:
        """Log a failure, and not again while it is the same."""
        if (text := f"search terms of agent {agent.id!r} are not written yet: {error}") != self._told:
            self._told = text
            log.warning("%s", text)


def _put(index: AgentIndex, id_bytes: bytes, row: Row | None) -> None:
    if row is None:
        index.remove(id_bytes)
    else:
        index.add(id_bytes, row)
