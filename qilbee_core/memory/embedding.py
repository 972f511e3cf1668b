"""Vectors of an encoder: made behind the stores, used where they are there, and never waited for.

A thread makes them, of what has search terms already. It is not the thread that makes those: an encoder may take
seconds, or a network may. It asks for many texts at once, of whichever agents, and writes the vectors of each agent in
one batch that expects the records as they were read: an episode that was deleted in between leaves no vector, and one
that was changed is encoded again. Its cursor follows them, so a crash loses no work.

An encoder that fails is asked again, after twice as long each time; meanwhile search goes by words and the table of
words. A text that it refuses while it takes others is left out until the store is opened again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qilbee_core.batch import DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.catalog import Vectors
from qilbee_core.errors import (
    ConflictError,
    DataError,
    PluginError,
    ProviderNotFoundError,
    QilbeeError,
    StorageError,
    StoreClosedError,
)
from qilbee_core.keys import AgentKeys, Space, parse, range_of
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.encoder import Encoder
from qilbee_core.memory.resident import Agent
from qilbee_core.memory.terms import NO_ID, Cursor, cursor_key, decode_cursor
from qilbee_core.memory.vectors import (
    VectorCursor,
    decode_vector_cursor,
    encoded_text,
    open_vector,
    seal_vector,
    vector_cursor_key,
)
from qilbee_core.search.analysis import ANALYSER_VERSION
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.nearest import NEAREST, Nearness, VectorNearness
from qilbee_core.search.question import CHARACTERS_MAX
from qilbee_core.search.vectors import VectorIndex

__all__ = ["Direction", "Embedding", "Paused"]

log = logging.getLogger(__name__)

TEXTS_MAX = 32
"""That an encoder is asked for at once."""
TEXTS_CHARACTERS_MAX = 200_000
IDS_MAX = 10_000
"""Kept in RAM of one agent; of more it is found out again which ones have no vector."""
PROBED_AT_ONCE = 256
_SCAN_ROWS = 1000
_PAUSE_S = 0.0001
_RETRY_S, _RETRY_S_MAX = 1.0, 60.0
_CLOSE_S = 5.0
"""To wait for an encoder that is asked at the moment; it may wait for a network itself."""
_CANARY = "hello"

Paused = Callable[[], AbstractContextManager[None]]
"""While it lasts nobody erases files, since an open scan would keep them."""


class Direction(NamedTuple):
    """What is looked for, in the numbers of one model: compared with vectors of that one alone."""

    model: int
    vector: NDArray[np.float32]


class _Work:
    """What has to be encoded of one agent."""

    __slots__ = ("agent", "ids", "noted", "scan")

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.ids: dict[bytes, None] = {}
        self.scan = False
        """Whether it is to be found out first."""
        self.noted = False
        """Whether rows were written since this was last looked at."""


class _Part(NamedTuple):
    """Some episodes of one agent, as they were read."""

    agent: Agent
    ids: list[bytes]
    records: list[bytes]
    texts: list[str]
    row_cursor: bytes | None
    """Where these are the last ones: up to where the rows went before they were read. Else None."""


class Embedding:
    """The vectors of all agents of one open store, by the encoder in use, if there is one."""

    def __init__(self, context: Context, paused: Paused, encoder: Encoder | None, *, writes: bool) -> None:
        self.encoder = encoder
        self.problem: str | None = None
        """Why the encoder gives no vectors, while it does not."""
        self._context = context
        self._paused = paused
        self._writes = writes
        self._lock = threading.Lock()
        self._removing = threading.Lock()
        self._works: OrderedDict[str, _Work] = OrderedDict()
        self._refused: dict[str, set[bytes]] = {}
        self._texts_max = TEXTS_MAX
        self._retry_s = _RETRY_S
        self._retry_at_s = 0.0
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if writes:
            context.embed_soon = self._embed_soon
            self._start()

    def close(self) -> None:
        """Stop. What is not encoded yet is when the store is open again. Idempotent."""
        self._closing.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def check_open(self) -> None:
        """StoreClosedError once it is closed."""
        if self._closing.is_set():
            raise StoreClosedError("the store is closed")

    def _start(self) -> None:
        if self._thread is None and (self.encoder is not None or self._context.catalog.vectors.leaving):
            self._thread = threading.Thread(target=self._run, name="qilbee-embedding", daemon=True)
            self._thread.start()

    # --- for those who search

    def asked(self, text: str) -> Direction | None:
        """What a query means; None where there is no encoder, or it fails."""
        text = text[:CHARACTERS_MAX].strip()
        encoder = self.encoder
        if encoder is None or not text or (self.problem is not None and time.monotonic() < self._retry_at_s):
            return None
        try:
            vector = encoder.encode_query(text)
        except PluginError as error:
            self._failed(error)
            return None
        self._worked()
        return Direction(encoder.number, vector)

    def nearness(
        self, agent: Agent, index: AgentIndex, direction: Direction | None, others: Callable[[], Nearness], most: int
    ) -> VectorNearness | None:
        """How near the turns of an index are, to find so many; by ``others`` where an episode has no vector yet."""
        vectors = None if direction is None else self._loaded(agent, index)
        if direction is None or vectors is None or vectors.model != direction.model:  # another one is used by now
            return None
        rest = others() if len(vectors) < len(index) else None
        return VectorNearness(index, vectors, direction.vector, rest, max(NEAREST, most + 1))  # one may be itself

    def of_episode(self, agent: Agent, index: AgentIndex, id_bytes: bytes) -> Direction | None:
        """What an episode means, if it has a vector."""
        vectors = self._loaded(agent, index)
        vector = None if vectors is None else vectors.vector_of(id_bytes)
        return None if vectors is None or vector is None else Direction(vectors.model, vector)

    def pending(self, agent: Agent) -> int:
        """Episodes of an agent that have no vector yet."""
        encoder, head = self.encoder, self._context.head(agent)
        if encoder is None or head is None:
            return 0
        made = sum(1 for _ in self._context.backend.scan(*agent.keys.vector_range(encoder.number)))
        key = vector_cursor_key(agent.keys, encoder.number)
        return max(0, head.episodes - made + (self._context.backend.get(key) is not None))

    def figures(self) -> dict[str, int | str | None]:
        """Figures of the whole store, by name."""
        with self._lock:
            known = sum(len(work.ids) for work in self._works.values()) + sum(map(len, self._refused.values()))
        return {
            "embedder": "static" if self.encoder is None else self.encoder.name,
            "vectors_pending": known,
            "embedder_problem": self.problem,
        }

    def _loaded(self, agent: Agent, index: AgentIndex) -> VectorIndex | None:
        """The vectors of an index as far as they are made."""
        encoder = self.encoder
        if encoder is None:
            return None
        vectors = index.vectors
        if vectors is None or vectors.model != encoder.number:
            vectors = VectorIndex(encoder.dimensions, encoder.number)
            stored = self._context.backend.scan(*agent.keys.vector_range(encoder.number))
            self._put(vectors, ((key, value) for key, value in stored if key[-16:] in index), encoder)
            index.vectors = vectors
        elif len(vectors) < len(index):
            # Those last stored are encoded first, so those that were made since are the first that are missing.
            missing = (id_bytes for id_bytes in index.ids() if id_bytes not in vectors)
            while ids := list(islice(missing, PROBED_AT_ONCE)):
                keys = [agent.keys.vector(encoder.number, id_bytes) for id_bytes in ids]
                values = self._context.backend.get_many(keys)
                found = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
                self._put(vectors, iter(found), encoder)
                if len(found) < len(ids):
                    if self._writes and not self._context.single_process:
                        self._embed(agent, ids)  # another process made their rows, and may have no encoder
                    break
                missing = (id_bytes for id_bytes in index.ids() if id_bytes not in vectors)
        return vectors

    def _put(self, vectors: VectorIndex, stored: Iterator[tuple[bytes, bytes]], encoder: Encoder) -> None:
        ids, rows = [], []
        for key, value in stored:
            with suppress(DataError):  # named by verify()
                rows.append(open_vector(key, value, encoder.dimensions))
                ids.append(key[-16:])
        if ids:
            vectors.put(ids, np.stack(rows))

    # --- what is to be encoded

    def _embed_soon(self, agent: Agent, rows: Sequence[Operation]) -> None:
        """Take note of rows that are about to be written, so that no cursor ever covers one that is not noted."""
        if self.encoder is not None:
            self._embed(agent, [operation.key[-16:] for operation in rows if isinstance(operation, Put)])

    def _embed(self, agent: Agent, ids: Sequence[bytes]) -> None:
        with self._lock:
            work = self._work_of(agent)
            work.noted = True
            work.ids.update(dict.fromkeys(ids))
            work.ids.pop(NO_ID, None)
            self._refused.get(agent.id, set()).difference_update(ids)
            if len(work.ids) > IDS_MAX:
                work.ids.clear()
                work.scan = True
        self._woken.set()

    def look_anew(self) -> None:
        """Find out which episodes of any agent have no vector, and encode them."""
        for agent in self.agents():
            with self._lock:
                self._work_of(agent).scan = True
        self._woken.set()

    def _work_of(self, agent: Agent) -> _Work:
        return self._works.setdefault(agent.id, _Work(agent))

    def agents(self) -> Iterator[Agent]:
        """All agents that have stored anything."""
        start, stop = range_of(bytes((Space.AGENT,)))
        while not self._closing.is_set():
            with self._paused():
                keys = [key for key, _ in islice(self._context.backend.scan(start, stop), _SCAN_ROWS)]
            for key in keys:
                with suppress(DataError):  # a stranger, named by verify()
                    agent_id = parse(key).agent_id
                    if agent_id is not None:
                        yield self._context.agent(agent_id)
            if not keys:
                return
            start = keys[-1] + b"\x00"

    def _find_behind(self, encoder: Encoder) -> None:
        """Take note of the agents whose vectors do not go as far as their rows."""
        backend = self._context.backend
        for agent in self.agents():
            keys = agent.keys
            rows = _decoded(keys, backend.get(cursor_key(keys)))
            key = vector_cursor_key(keys, encoder.number)
            cursor = None
            with suppress(DataError):
                if (value := backend.get(key)) is not None:
                    cursor = decode_vector_cursor(key, value)
            if rows is None or cursor is None or _ends(rows) != cursor:
                with self._lock:
                    self._work_of(agent).scan = True

    def missing(self, agent: Agent, encoder: Encoder) -> list[bytes]:
        """The episodes of an agent that have search terms and no vector, the newest first."""
        rows = set(self._ids(*agent.keys.row_range(ANALYSER_VERSION)))
        rows.difference_update(self._ids(*agent.keys.vector_range(encoder.number)))
        rows.discard(NO_ID)
        return sorted(rows, reverse=True)

    def _ids(self, start: bytes, stop: bytes) -> Iterator[bytes]:
        while not self._closing.is_set():
            with self._paused():
                keys = [key for key, _ in islice(self._context.backend.scan(start, stop), _SCAN_ROWS)]
            yield from (key[-16:] for key in keys)
            if len(keys) < _SCAN_ROWS:
                return
            time.sleep(_PAUSE_S)
            start = keys[-1] + b"\x00"

    # --- encoding

    def read(self, agent: Agent, ids: Sequence[bytes], encoder: Encoder, row_cursor: bytes | None = None) -> _Part:
        """The episodes that still need a vector."""
        keys, backend = agent.keys, self._context.backend
        values = backend.get_many([keys.episode(id_bytes) for id_bytes in ids])
        vectors = backend.get_many([keys.vector(encoder.number, id_bytes) for id_bytes in ids])
        part = _Part(agent, [], [], [], row_cursor)
        for id_bytes, value, vector in zip(ids, values, vectors, strict=True):
            if value is not None and vector is None:
                with suppress(DataError, ProviderNotFoundError):  # which verify() names
                    fields = self._context.records.open(keys.episode(id_bytes), value)
                    part.texts.append(encoded_text(EpisodeDocument.from_fields(fields)))
                    part.ids.append(id_bytes)
                    part.records.append(value)
        return part

    def write(self, part: _Part, vectors: Sequence[NDArray[np.int8] | None], encoder: Encoder) -> None:
        """Store the vectors of a part; ConflictError where somebody wrote meanwhile."""
        keys = part.agent.keys
        operations: list[Operation] = []
        catalog = self._context.catalog
        expects = [catalog.expect_vectors()]
        if encoder.number not in (catalog.vectors.model, catalog.vectors.building):
            raise ConflictError("the store was re-embedded meanwhile")
        for id_bytes, record, text, vector in zip(part.ids, part.records, part.texts, vectors, strict=True):
            key = keys.vector(encoder.number, id_bytes)
            expects.append(Expect(keys.episode(id_bytes), record))
            operations.append(Put(key, seal_vector(key, text, vector)))
        if operations:
            self._context.write_vectors(part.agent, WriteBatch(operations, expects))
        with suppress(ConflictError):  # there are more rows by now: whoever encodes those says so
            self._write_cursor(part, encoder)

    def _write_cursor(self, part: _Part, encoder: Encoder) -> None:
        """Say up to where the vectors go, where these were the last ones."""
        keys = part.agent.keys
        rows = _decoded(keys, part.row_cursor)
        if rows is not None and (end := _ends(rows)) is not None:
            key = vector_cursor_key(keys, encoder.number)
            value = end.encode(key)
            if self._context.backend.get(key) != value:
                expects = [self._context.catalog.expect_vectors(), Expect(cursor_key(keys), part.row_cursor)]
                self._context.write_vectors(part.agent, WriteBatch([Put(key, value)], expects))

    def encode(self, texts: Sequence[str], encoder: Encoder) -> list[NDArray[np.int8] | None]:
        """The vectors of some texts; None for those that are empty."""
        full = [text for text in texts if text]
        vectors = iter(encoder.encode(full) if full else ())
        return [next(vectors) if text else None for text in texts]

    # --- the thread

    def _run(self) -> None:
        looked: Encoder | None = None
        while not self._closing.is_set():
            try:
                encoder = self.encoder
                if self._context.catalog.vectors.leaving:
                    self.remove_leaving()
                if encoder is not looked and encoder is not None:
                    self._find_behind(encoder)
                    looked = encoder
                wait_s = self._retry_at_s - time.monotonic()
                if self._context.durability.failure is not None:
                    self._closing.wait(_RETRY_S)  # what cannot be written is not asked for
                elif wait_s > 0:
                    self._closing.wait(wait_s)
                elif encoder is not None and self._round(encoder):
                    continue
                elif encoder is not None and self.problem is not None:
                    self._try_again(encoder)
                else:
                    self._woken.wait()
                    self._woken.clear()
            except Exception as error:
                if not isinstance(error, QilbeeError):
                    log.exception("the thread that makes vectors met what it does not know")
                if not self._closing.is_set():
                    self._failed(error)

    def _round(self, encoder: Encoder) -> bool:
        """Encode some episodes; False where none is left."""
        parts = self._taken(encoder)
        if not parts:
            return False
        texts = [text for part in parts for text in part.texts]
        try:
            vectors = self.encode(texts, encoder)
        except PluginError as error:
            self._give_back(parts)
            if len(texts) > 1:
                self._texts_max = 1  # it may be one of them
            elif self.takes_others(encoder):
                self._refuse(next(part for part in parts if part.texts), error)
            else:
                self._failed(error)
            return True
        except BaseException:
            self._give_back(parts)
            raise
        if texts:
            self._worked()
        self._write_all(parts, vectors, encoder)
        return True

    def _write_all(self, parts: list[_Part], vectors: list[NDArray[np.int8] | None], encoder: Encoder) -> None:
        at = 0
        for number, part in enumerate(parts):
            try:
                self.write(part, vectors[at : at + len(part.texts)], encoder)
            except ConflictError:  # what changed is read again
                self._give_back([part])
                self._check_model(encoder)
            except BaseException:
                self._give_back(parts[number:])
                raise
            at += len(part.texts)

    def _taken(self, encoder: Encoder) -> list[_Part]:
        """Texts of as many agents as it takes to have enough to ask for."""
        parts: list[_Part] = []
        room, characters = self._texts_max, TEXTS_CHARACTERS_MAX
        while room > 0 and characters > 0 and not self._closing.is_set():
            with self._lock:
                if not self._works:
                    break
                work = next(iter(self._works.values()))
                if any(part.agent is work.agent for part in parts):
                    break  # it was noted again meanwhile, and what was taken of it has no vector yet
                scan, work.scan, work.noted = work.scan, False, False
            try:
                parts.append(part := self._part(work, scan, room, encoder))
            except BaseException:
                with self._lock:
                    self._work_of(work.agent).scan = True  # what was taken is found out again
                self._give_back(parts)
                raise
            room -= len(part.texts)
            characters -= sum(map(len, part.texts))
        return parts

    def _part(self, work: _Work, scan: bool, room: int, encoder: Encoder) -> _Part:
        """The next episodes of an agent."""
        agent = work.agent
        if scan:
            found = self.missing(agent, encoder)
            with self._lock:
                work.ids.update(dict.fromkeys(found))
        row_cursor = self._context.backend.get(cursor_key(agent.keys))
        with self._lock:  # after the cursor: what it covers was noted before
            refused = self._refused.get(agent.id, ())
            taken = list(islice(work.ids, room))
            for id_bytes in taken:
                del work.ids[id_bytes]
            if self._works.get(agent.id) is work:
                self._works.move_to_end(agent.id)
            is_last = not work.ids and not work.scan and not work.noted
            if is_last:
                self._works.pop(agent.id, None)
            ids = [id_bytes for id_bytes in taken if id_bytes not in refused]
            covered = row_cursor if is_last and not refused else None
        with self._paused():
            return self.read(agent, ids, encoder, covered)

    def _give_back(self, parts: Sequence[_Part]) -> None:
        with self._lock:
            for part in parts:
                work = self._work_of(part.agent)
                work.ids = dict.fromkeys(part.ids) | work.ids

    def _try_again(self, encoder: Encoder) -> None:
        """Find out whether an encoder that failed, for somebody's query, works again."""
        try:
            encoder.encode([_CANARY])
            self._worked()
        except PluginError as error:
            self._failed(error)

    def takes_others(self, encoder: Encoder) -> bool:
        """Whether an encoder that refused a text takes another."""
        try:
            encoder.encode([_CANARY])
        except PluginError:
            return False
        return True

    def _refuse(self, part: _Part, error: PluginError) -> None:
        log.warning("an episode of agent %r has no vector, for %s", part.agent.id, error)
        with self._lock:
            self._refused.setdefault(part.agent.id, set()).update(part.ids)

    def _failed(self, error: Exception) -> None:
        """Leave the encoder alone for some time."""
        if self.problem is None:
            log.warning("no vectors are made: %s", error)
        self.problem = str(error)
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_S_MAX)
        self._woken.set()

    def _worked(self) -> None:
        self.problem = None
        self._retry_s, self._retry_at_s = _RETRY_S, 0.0
        self._texts_max = min(2 * self._texts_max, TEXTS_MAX)

    def _check_model(self, encoder: Encoder) -> None:
        """Stop where another process has chosen another model."""
        if self._context.catalog.read_vectors().model != encoder.number and self.encoder is encoder:
            self.use(None)
            self.problem = "another process has re-embedded this store with another model: open it anew with that one"
            log.warning("no vectors are made: %s", self.problem)

    # --- another encoder

    def use(self, encoder: Encoder | None) -> None:
        """Go by the vectors of another encoder from now on."""
        with self._lock:
            self.encoder = encoder
            self._works.clear()
            self._refused.clear()
            self.problem, self._retry_at_s = None, 0.0
        if self._writes:
            self._start()
        self._woken.set()

    def check_building(self, encoder: Encoder) -> None:
        """StorageError where the vectors of an encoder are no longer wanted, for another process said so."""
        now = self._context.catalog.read_vectors()
        if encoder.number not in (now.model, now.building):
            raise StorageError("another process re-embeds this store with another model", remedy="let it finish")

    def remove_leaving(self) -> None:
        """Remove the vectors of models that are no longer used."""
        catalog = self._context.catalog
        with self._removing, suppress(ConflictError):  # another process does the same
            if not catalog.vectors.leaving:
                return
            for agent in self.agents():
                gone = [DeleteRange(*agent.keys.vector_range(number)) for number in catalog.vectors.leaving]
                self._context.write_vectors(agent, WriteBatch(gone, [catalog.expect_vectors()]))
            if not self._closing.is_set():
                catalog.keep_vectors(Vectors(catalog.vectors.model, catalog.vectors.building))


def _decoded(keys: AgentKeys, value: bytes | None) -> Cursor | None:
    with suppress(DataError):
        return None if value is None else decode_cursor(cursor_key(keys), value)
    return None


def _ends(rows: Cursor) -> VectorCursor | None:
    """Where the vectors end that go as far as these rows; None where the rows are in the midst of something."""
    return VectorCursor(rows.generation, rows.sequence) if rows.built is None and not rows.done else None
