"""Keeping search in step with what is stored: rows in the store, indexes in RAM, both by following the change log.

One thread for each store makes the rows, some tenths of a second behind the stores. A search begins with doing what is
pending, so it finds whatever was stored before. There are never more than PENDING_MAX episodes pending of one agent:
beyond that whoever stores does a part himself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from math import inf
from typing import Literal, TypeVar

from msgspec import Struct

from qilbee_core.errors import ConflictError, DataError, QilbeeError, StorageError, StoreClosedError
from qilbee_core.keys import AgentKeys, Space, parse, range_of
from qilbee_core.memory.commit import Context
from qilbee_core.memory.embedding import Embedding
from qilbee_core.memory.encoder import Encoder
from qilbee_core.memory.following import PAUSE_S, Made, Rows
from qilbee_core.memory.indexes import AgentSearch, Indexes
from qilbee_core.memory.resident import Agent, Position
from qilbee_core.search.index import AgentIndex

__all__ = ["PENDING_MAX", "Indexing", "Pending"]

log = logging.getLogger(__name__)

T = TypeVar("T")

PENDING_MAX = 10_000
"""Episodes of one agent that a search may find unindexed, and has to index first."""

_HELP_EPISODES = 8
"""In a part that delays whoever stores."""
_WORK_EPISODES = 128
"""In a part of the thread."""
_DRAIN_EPISODES = 256
"""In a part that a search waits for: the larger, the less each costs."""
_POLL_S = 0.1
_POLLS_IDLE = 10
"""So often the thread looks in vain for work before it waits to be woken, which costs the caller some microseconds."""
_GATHER_S = 0.3
"""So long it lets work come together: the more at once, the less each costs, and the fewer stores meet the thread."""
_RETRY_S = 1.0
_ATTEMPTS_MAX = 64


class Pending(Struct, frozen=True, kw_only=True):
    """What is indexed of one agent, and what is not yet; in episodes."""

    indexed: int
    pending: int
    ram_bytes: int


class Indexing:
    """Who makes the rows of all agents of one open store, and when: the thread, whoever stores, or whoever searches."""

    def __init__(
        self,
        context: Context,
        mode: Literal["background", "inline", "off"],
        language: str,
        *,
        ram_bytes_max: int,
        encoder: Encoder | None = None,
        read_only: bool = False,
    ) -> None:
        self.mode = mode
        self.language = language
        self._context = context
        self._rows = Rows(context, language)
        self._indexes = Indexes(context, self._rows, ram_bytes_max)
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
        self.embedding = Embedding(context, self.paused, encoder, writes=self.writes)
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
        self.embedding.close()
        self._indexes.clear()

    # --- for those who write

    def help(self, agent: Agent, episodes: int = 1) -> None:
        """Index about as many as were just stored, since too many wait. A failure is not the caller's, who is done."""
        search = self._indexes.of(agent)
        if not search.lock.acquire(blocking=False):
            return  # somebody is at it, and an event loop must not wait for him
        try:
            while episodes > 0 and agent.unindexed >= self.unindexed_max:
                part = min(max(episodes, _HELP_EPISODES), _DRAIN_EPISODES)
                if self._do_part(search, part).is_all:
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
        search = self._indexes.get(agent)
        if search is not None and search.lock.acquire(blocking=False):  # else whoever has it follows the log
            try:
                self._indexes.refresh(search, ids)
            finally:
                search.lock.release()

    def cleared(self, agent: Agent) -> None:
        """Take all that an agent has in RAM out of it."""
        self._indexes.forget(agent)

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
        search = self._indexes.of(agent, keep=True)
        with search.lock:
            index = self._index_now(search)
            answer = question(index)
            search.ram_bytes = index.ram_bytes if search.index is index else 0
        self._indexes.make_room(search)
        return answer

    def build(self) -> None:
        """Do all that is pending now, of every agent."""
        for agent in self._behind() if self.writes else ():
            search = self._indexes.of(agent)
            with search.lock:
                position = self._context.position(agent)
                if position is not None:
                    self._drain(search, position)

    def pending(self, agent: Agent) -> Pending:
        """Count what is indexed of an agent and what is not yet."""
        search = self._indexes.get(agent)
        ram_bytes = search.ram_bytes if search is not None else 0
        head, position = self._context.head(agent), self._context.position(agent)
        if head is None or position is None:
            return Pending(indexed=0, pending=0, ram_bytes=ram_bytes)
        missing = self._rows.missing(agent, position)
        if missing is None:
            missing = head.episodes
        return Pending(indexed=head.episodes - missing, pending=missing, ram_bytes=ram_bytes)

    def figures(self) -> dict[str, int]:
        """Figures of the whole store, by name."""
        opened = self._indexes.opened()
        waiting = sum(agent.unindexed for agent in self._context.agents_in_use()) if self.writes else 0
        return {
            "pending": waiting,
            "indexes_in_ram": len(opened),
            "indexed_in_ram": sum(len(search.index or ()) for search in opened),
            "ram_bytes": sum(search.ram_bytes for search in opened),
            "ram_bytes_max": self._indexes.ram_bytes_max,
        }

    def _index_now(self, search: AgentSearch) -> AgentIndex:
        """The index of all that was stored before the call."""
        agent, context = search.agent, self._context
        position = context.position(agent)
        if position is None:
            search.drop()
            return self._indexes.new()
        if self.writes and context.durability.failure is None:
            try:
                self._drain(search, position)
            except StoreClosedError:
                raise
            except StorageError as error:  # it can be searched all the same
                self._tell(agent, error)
        return self._indexes.current(search, position)

    def _drain(self, search: AgentSearch, position: Position) -> None:
        """Do all that was pending at ``position``."""
        conflicts = 0
        while True:
            try:
                made = self._do_part(search, _DRAIN_EPISODES)
            except ConflictError:
                conflicts += 1
                if conflicts == _ATTEMPTS_MAX:
                    raise StorageError("the indexer met other writers all the time", remedy="try again") from None
                continue
            if made.is_all or made.covered >= min(position.sequence, made.end):
                return

    def _do_part(self, search: AgentSearch, episodes_max: int, *, pause: bool = False) -> Made:
        made = self._rows.make(search.agent, episodes_max, pause=pause)
        search.take(made)
        return made

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
                    if idle:
                        self._closing.wait(_GATHER_S)
                    idle = 0
                    self._round()
                elif idle < _POLLS_IDLE or self._stuck:
                    idle += 1
                    self._closing.wait(_POLL_S)
                else:
                    self._sleep()
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
            time.sleep(PAUSE_S)

    def _work(self, agent: Agent) -> bool:
        """One part; whether there may be more to do."""
        search = self._indexes.of(agent)
        if not search.lock.acquire(blocking=False):
            return True  # whoever has it does the same
        try:
            with self._works:
                return not self._do_part(search, _WORK_EPISODES, pause=True).is_all
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
                        if agent_id is not None and self._rows.is_behind(AgentKeys(agent_id), value):
                            found.append(self._context.agent(agent_id))
            yield from found
            if not heads:
                return
            time.sleep(PAUSE_S)
            start = heads[-1][0] + b"\x00"

    def _tell(self, agent: Agent, error: Exception) -> None:
        """Log a failure, and not again while it is the same."""
        if (text := f"search terms of agent {agent.id!r} are not written yet: {error}") != self._told:
            self._told = text
            log.warning("%s", text)
