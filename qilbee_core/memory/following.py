"""Making rows of search terms by following the change log of an agent, a part at a time.

A part reads some entries of the log and the records that they name, and writes their rows together with the cursor
that moves over them, in one batch that expects the records as they were read. Where one of them has changed meanwhile,
nothing is written and the part is done again: an episode that was deleted in between leaves no row. A crash loses no
work and repeats none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from qilbee_core.batch import DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.errors import CorruptRecordError, DataError, ProviderNotFoundError
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind, parse_change
from qilbee_core.memory.resident import Agent, Position
from qilbee_core.memory.terms import NO_ID, Cursor, cursor_key, decode_cursor, row_key, row_of_document, seal_row
from qilbee_core.search.analysis import analyser
from qilbee_core.search.rows import Row

__all__ = ["PAUSE_S", "Followed", "Made", "Rows", "Step"]

SLICE_S = 0.0004
"""After so long the thread pauses, so that others get the interpreter now, and not after its interval of 5 ms."""
PAUSE_S = 0.0001


class Step(NamedTuple):
    """One id of the change log, and where the log was followed to with it. None: nothing is to do for the entry."""

    id_bytes: bytes | None
    sequence: int
    done: int


class Followed(NamedTuple):
    """Up to where something has followed the change log: to an entry, and so many ids of the next one."""

    generation: int
    sequence: int
    done: int


class Made(NamedTuple):
    """What a part has come to."""

    before: Followed | None
    """Where it began; None where all rows are made anew, so that what is known in RAM may not follow."""
    after: Followed
    rows: list[tuple[bytes, Row | None]]
    """Of each id that it has come by; None where there is no episode."""
    covered: int
    """The log is covered up to there; -1: not before all rows are made."""
    end: int
    """Where the log ended."""
    is_all: bool
    """Nothing is left to do."""


class Rows:
    """The rows of all agents of one store."""

    def __init__(self, context: Context, language: str) -> None:
        self.language = language
        self._context = context
        self._analyser = analyser(language)

    def make(self, agent: Agent, episodes_max: int, *, pause: bool = False) -> Made:
        """Make the next rows. ConflictError where somebody wrote meanwhile: nothing was done."""
        context, keys, backend = self._context, agent.keys, self._context.backend
        position = context.position(agent)
        if position is None:
            return Made(None, Followed(0, 0, 0), [], -1, 0, context.all_indexed(agent, None))
        key = cursor_key(keys)
        stored = backend.get(key)
        cursor = self.cursor(keys, position, stored)
        part = None if cursor is None else self._part(keys, cursor, position, episodes_max)
        expects = [Expect(key, stored)]
        operations: list[Operation] = []
        before = None
        if cursor is None or part is None:
            # What the log cannot tell any more, the episodes can.
            cursor = Cursor(position.generation, position.sequence, 0, self.language, NO_ID)
            expects.append(Expect(keys.head, backend.get(keys.head)))
            operations.append(DeleteRange(*keys.range(Space.TERMS)))
        else:
            before = Followed(cursor.generation, cursor.sequence, cursor.done)
            if not agent.indexed:
                self._count(agent, cursor)
        if cursor.built is not None:
            start, stop = keys.episode(cursor.built) + b"\x00", keys.range(Space.EPISODE)[1]
            records = list(islice(backend.scan(start, stop), episodes_max))
            pairs: list[tuple[bytes, bytes | None]] = [(key[-16:], value) for key, value in records]
            moved = replace(cursor, built=None if len(records) < episodes_max else pairs[-1][0])
            named = 0
        else:
            if not part:
                assert before is not None
                is_all = context.all_indexed(agent, position)
                return Made(before, before, [], cursor.sequence, position.sequence, is_all)
            ids = [step.id_bytes for step in part if step.id_bytes is not None]
            pairs = list(zip(ids, backend.get_many([keys.episode(id_bytes) for id_bytes in ids]), strict=True))
            moved = replace(cursor, sequence=part[-1].sequence, done=part[-1].done)
            named = len(ids)
        rows = self._rows(agent, pairs, operations, expects, pause=pause)
        operations.append(Put(key, moved.encode(key)))
        context.write_rows(agent, WriteBatch(operations, expects), moved.sequence, named)
        at_end = moved == Cursor(position.generation, position.sequence, 0, self.language)
        return Made(
            before,
            Followed(moved.generation, moved.sequence, moved.done),
            rows,
            moved.sequence if moved.built is None else -1,
            position.sequence,
            at_end and context.all_indexed(agent, position),
        )

    def row(self, agent: Agent, id_bytes: bytes, value: bytes) -> Row | None:
        """The row of a record; None where that cannot be read, which verify() names."""
        try:
            document = EpisodeDocument.from_fields(self._context.records.open(agent.keys.episodes + id_bytes, value))
        except (DataError, ProviderNotFoundError):
            return None
        return row_of_document(agent.id, id_bytes, document, self._analyser)

    def cursor(self, keys: AgentKeys, position: Position, value: bytes | None) -> Cursor | None:
        """The cursor stored as ``value``, where it is one that leads on."""
        with suppress(DataError):
            if value is not None and (cursor := decode_cursor(cursor_key(keys), value)).holds(position, self.language):
                return cursor
        return None

    def steps(self, keys: AgentKeys, sequence: int, done: int) -> Iterator[Step]:
        """What the log says behind a place; CorruptRecordError where it has a gap or cannot be read."""
        for key, value in self._context.backend.scan(keys.change(sequence + 1), keys.range(Space.CHANGE)[1]):
            sequence += 1
            if key != keys.change(sequence):
                raise CorruptRecordError(f"the change log lacks {sequence}", remedy="repair()")
            change = parse_change(key, value)
            if change.kind is ChangeKind.STATE:  # the text is the same
                yield Step(None, sequence, 0)
            else:
                last = len(change.ids) - 1
                for number, id_bytes in enumerate(change.ids[done:], done):
                    yield Step(id_bytes, sequence, 0) if number == last else Step(id_bytes, sequence - 1, number + 1)
            done = 0

    def missing(self, agent: Agent, position: Position) -> int | None:
        """How many episodes have no row yet; None where none of the rows counts."""
        keys, backend = agent.keys, self._context.backend
        cursor = self.cursor(keys, position, backend.get(cursor_key(keys)))
        if cursor is None:
            return None
        waiting: set[bytes] = set()
        with suppress(DataError):
            steps = self.steps(keys, cursor.sequence, cursor.done)
            waiting = {step.id_bytes for step in steps if step.id_bytes is not None}
        if cursor.built is not None:
            start, stop = keys.episode(cursor.built) + b"\x00", keys.range(Space.EPISODE)[1]
            waiting.update(key[-16:] for key, _ in backend.scan(start, stop))
        ids = sorted(waiting)
        there = backend.get_many([keys.episode(id_bytes) for id_bytes in ids])
        rows = backend.get_many([row_key(keys, id_bytes) for id_bytes in ids])
        return sum(record is not None and row is None for record, row in zip(there, rows, strict=True))

    def is_behind(self, keys: AgentKeys, head_value: bytes) -> bool:
        """Whether rows are to be made of an agent with that head."""
        backend, head = self._context.backend, Head.decode(keys.head, head_value)
        newest = next(backend.scan(*keys.range(Space.CHANGE), reverse=True), None)
        sequence = head.sequence if newest is None else int.from_bytes(newest[0][-8:], "big")
        position = Position(head.generation, sequence, head.trimmed, head.expiry_us)
        cursor = self.cursor(keys, position, backend.get(cursor_key(keys)))
        return cursor is None or (cursor.sequence, cursor.done, cursor.built) != (sequence, 0, None)

    def _part(self, keys: AgentKeys, cursor: Cursor, position: Position, episodes_max: int) -> list[Step] | None:
        """What the log says next; None where it cannot be followed."""
        if cursor.built is not None:
            return []
        with suppress(DataError):
            part = list(islice(self.steps(keys, cursor.sequence, cursor.done), episodes_max))
            if part or cursor.sequence == position.sequence:
                return part
        return None

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
        until_s = time.perf_counter() + SLICE_S
        for id_bytes, value in pairs:
            if pause and time.perf_counter() > until_s:
                time.sleep(PAUSE_S)
                until_s = time.perf_counter() + SLICE_S
            row = None if value is None else self.row(agent, id_bytes, value)
            if row is not None:
                key = row_key(keys, id_bytes)
                expects.append(Expect(keys.episode(id_bytes), value))
                operations.append(Put(key, seal_row(key, row)))
            rows.append((id_bytes, row))
        return rows

    def _count(self, agent: Agent, cursor: Cursor) -> None:
        """Count what an earlier process has left."""
        counted = 0
        with suppress(DataError):
            counted = sum(step.id_bytes is not None for step in self.steps(agent.keys, cursor.sequence, cursor.done))
        with agent.lock:
            agent.indexed = cursor.sequence
            agent.unindexed = max(agent.unindexed, counted)
