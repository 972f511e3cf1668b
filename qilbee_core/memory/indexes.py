"""The indexes of agents in RAM: made of the rows in the store at the first search, then following the change log."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

from qilbee_core.errors import DataError, StorageError
from qilbee_core.keys import Space
from qilbee_core.memory.commit import Context
from qilbee_core.memory.following import Followed, Made, Rows
from qilbee_core.memory.resident import Agent, Position
from qilbee_core.memory.terms import cursor_key, open_row
from qilbee_core.search.analysis import ANALYSER_VERSION
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.lexicon import lexicon
from qilbee_core.search.rows import Row

__all__ = ["AgentSearch", "Indexes"]

_PUT_EPISODES = 256
"""That an index takes at once: each then costs half of what it costs alone."""
_FOLLOW_EPISODES = 256
"""That are read at once."""
_ATTEMPTS_MAX = 64


class AgentSearch:
    """What search holds of one agent in RAM. Everything under its lock."""

    __slots__ = ("agent", "followed", "index", "lock", "ram_bytes", "reloads", "waiting")

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.lock = threading.Lock()
        self.index: AgentIndex | None = None
        self.waiting: list[tuple[bytes, Row | None]] = []
        """Rows that the index is to take, many at once."""
        self.followed = Followed(0, 0, 0)
        self.reloads = 0
        self.ram_bytes = 0

    def drop(self) -> None:
        """Let go of the index; the next search makes it anew."""
        self.index, self.ram_bytes = None, 0
        self.waiting.clear()

    def take(self, made: Made) -> None:
        """Index the rows that were just made, if the index is where they begin."""
        if made.before is None:
            self.drop()
        elif self.index is not None and self.followed == made.before:
            self.waiting += made.rows
            self.followed = made.after
            if len(self.waiting) >= _PUT_EPISODES:
                self.settle()

    def settle(self) -> None:
        """Have the index take what waits."""
        if self.index is not None and self.waiting:
            self.index.put(self.waiting)
            self.waiting.clear()


class Indexes:
    """Those of the agents that were searched lately, in so many bytes."""

    def __init__(self, context: Context, rows: Rows, ram_bytes_max: int) -> None:
        self.ram_bytes_max = ram_bytes_max
        self._context = context
        self._rows = rows
        self._searches: OrderedDict[str, AgentSearch] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, agent: Agent) -> AgentSearch | None:
        """What is held of an agent, if anything."""
        return self._searches.get(agent.id)

    def of(self, agent: Agent, *, keep: bool = False) -> AgentSearch:
        """What is held of an agent, or a new one, which is kept for whoever searches; others need none."""
        with self._lock:
            search = self._searches.get(agent.id)
            if search is None or search.agent is not agent:
                search = AgentSearch(agent)
                if keep:
                    self._searches[agent.id] = search
            if keep:
                self._searches.move_to_end(agent.id)
            return search

    def forget(self, agent: Agent) -> None:
        """Let go of all that is held of an agent."""
        with self._lock:
            self._searches.pop(agent.id, None)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._searches.clear()

    def opened(self) -> list[AgentSearch]:
        """Those that have an index."""
        with self._lock:
            return [search for search in self._searches.values() if search.index is not None]

    def make_room(self, used: AgentSearch) -> None:
        """Drop the indexes that were used longest ago, while there are too many bytes of them."""
        with self._lock:
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

    def new(self) -> AgentIndex:
        """An empty index."""
        return AgentIndex(lexicon(self._rows.language))

    def refresh(self, search: AgentSearch, ids: Iterable[bytes]) -> None:
        """Index some episodes as they are stored now."""
        search.settle()
        if search.index is not None:
            self._put(search.index, search.agent, list(ids))

    def current(self, search: AgentSearch, position: Position) -> AgentIndex:
        """The index of an agent as it was at ``position`` or later, without what has expired by now."""
        context = self._context
        generation, reloads = position.generation, context.reloads
        if search.index is None or search.followed.generation != generation or search.reloads != reloads:
            search.drop()
            self._open(search)
        search.settle()
        index = self._follow(search)
        now = context.position(search.agent)
        if now is not None and now.expiry_us <= (now_us := context.now_us()):
            for key, _ in context.backend.scan(*search.agent.keys.due_range(now_us)):
                index.remove(key[-16:])
        return index

    def _open(self, search: AgentSearch) -> None:
        """Make the index of the rows that are stored; where they are not all there, of the episodes."""
        agent, context = search.agent, self._context
        keys = agent.keys
        reloads = context.reloads
        position = context.position(agent)
        index = self.new()
        followed = Followed(0, 0, 0)
        if position is not None:
            stored = context.backend.scan(*keys.row_range(ANALYSER_VERSION))
            first = next(stored, None)
            cursor = (
                None if first is None or first[0] != cursor_key(keys) else self._rows.cursor(keys, position, first[1])
            )
            if cursor is None or cursor.built is not None:
                followed = Followed(position.generation, position.sequence, 0)
                index.load(self._made(agent, context.backend.scan(*keys.range(Space.EPISODE))))
            else:
                followed = Followed(cursor.generation, cursor.sequence, cursor.done)
                index.load(self._stored(agent, stored))
        search.index, search.followed, search.reloads = index, followed, reloads

    def _made(self, agent: Agent, records: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Row]]:
        for key, value in records:
            row = self._rows.row(agent, key[-16:], value)
            if row is not None:
                yield key[-16:], row

    def _stored(self, agent: Agent, stored: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Row]]:
        for key, value in stored:
            id_bytes = key[-16:]
            try:
                yield id_bytes, open_row(key, value)
            except DataError:  # named by verify(); its episode can tell
                record = self._context.backend.get(agent.keys.episode(id_bytes))
                row = None if record is None else self._rows.row(agent, id_bytes, record)
                if row is not None:
                    yield id_bytes, row

    def _follow(self, search: AgentSearch) -> AgentIndex:
        """Bring an index up to the end of the log, without writing."""
        agent = search.agent
        for _ in range(_ATTEMPTS_MAX):
            position, followed, index = self._context.position(agent), search.followed, search.index
            if index is not None and position is None:
                return index  # cleared just now
            if index is not None and position is not None and followed.generation == position.generation:
                if followed == (position.generation, position.sequence, 0):
                    return index
                with suppress(DataError):  # a log that cannot be followed leaves it to the episodes
                    steps = self._rows.steps(agent.keys, followed.sequence, followed.done)
                    while part := list(islice(steps, _FOLLOW_EPISODES)):
                        self._put(index, agent, [step.id_bytes for step in part if step.id_bytes is not None])
                        search.followed = Followed(followed.generation, part[-1].sequence, part[-1].done)
                if search.followed.sequence >= position.sequence:
                    return index
            self._open(search)
        raise StorageError(f"search cannot keep up with those who write to agent {agent.id!r}", remedy="try again")

    def _put(self, index: AgentIndex, agent: Agent, ids: list[bytes]) -> None:
        """Index episodes as they are stored now."""
        records = self._context.backend.get_many([agent.keys.episode(id_bytes) for id_bytes in ids])
        index.put(
            (id_bytes, None if record is None else self._rows.row(agent, id_bytes, record))
            for id_bytes, record in zip(ids, records, strict=True)
        )
