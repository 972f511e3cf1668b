"""What a thread does for a store's memories: it reinforces what was read, and forgets by schedule."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

from msgspec import Struct
from msgspec.structs import asdict

from qilbee_core.config import MemorySettings
from qilbee_core.episode import JSON
from qilbee_core.errors import DataError, StorageError
from qilbee_core.keys import AgentKeys, Space, parse, range_of
from qilbee_core.memory.accesses import Accesses
from qilbee_core.memory.commit import Context
from qilbee_core.memory.head import Head
from qilbee_core.memory.operations import Bounds, Operations
from qilbee_core.memory.periodic import Periodic

__all__ = ["SweepCounters", "Sweeper"]

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 10.0
"""How often what was read is reinforced: reads within this time count as one."""
UNDO_INTERVAL_S = 3600.0
"""How often undo data of consolidations that are too old for it are removed."""
_REINFORCED_AT_ONCE_MAX = 256


class SweepCounters(Struct, kw_only=True):
    """What the thread has done since the store was opened."""

    reinforced: int = 0
    sweeps: int = 0
    expired: int = 0
    forgotten: int = 0
    undos_ended: int = 0
    errors: int = 0
    last_sweep_ms: float = 0.0


class Sweeper:
    """Flushes accesses every ten seconds, ends undo every hour, and sweeps all agents where that is switched on."""

    def __init__(self, context: Context, operations: Callable[[str], Operations], settings: MemorySettings) -> None:
        self._context = context
        self._operations = operations
        self._settings = settings
        self._busy = threading.Lock()
        self.counters = SweepCounters()
        self._bounds = Bounds.of(settings.min_relevance_threshold, settings.max_episodes, settings.max_bytes)
        if settings.reinforcement_share:
            context.accesses = Accesses()
        self._periodic = Periodic("qilbee-sweeper", list(self._jobs()))
        self._periodic.start()

    def _jobs(self) -> Iterator[tuple[float, Callable[[], None]]]:
        if self._settings.reinforcement_share:
            yield FLUSH_INTERVAL_S, self.flush
        if self._settings.enable_auto_forgetting:
            yield self._settings.forgetting_interval_s, self.sweep
        yield UNDO_INTERVAL_S, self.end_undo

    def figures(self) -> dict[str, JSON]:
        """What it has done, for Store.stats()."""
        accesses = self._context.accesses
        return {**asdict(self.counters), "accesses_dropped": 0 if accesses is None else accesses.dropped}

    def close(self) -> None:
        """Stop after the batch that is under way, and reinforce what was read. Idempotent."""
        if not self._periodic.is_closing:
            self._periodic.close()
            self.flush()

    def flush(self) -> None:
        """Reinforce what was read since the last time."""
        accesses = self._context.accesses
        if accesses is None or self._context.durability.failure is not None:
            return
        with self._busy:
            for agent_id, times_us in accesses.take().items():
                rows = list(times_us.items())
                for at in range(0, len(rows), _REINFORCED_AT_ONCE_MAX):
                    part = dict(rows[at : at + _REINFORCED_AT_ONCE_MAX])
                    try:
                        count, _ = self._operations(agent_id).reinforce(part, self._settings.reinforcement_share)
                        self.counters.reinforced += count
                    except StorageError as error:  # nothing is written at the moment: what was noted is let go of
                        self._failed(agent_id, error)
                        return
                    except Exception as error:  # the thread goes on, whatever happens to one agent
                        self._failed(agent_id, error)

    def sweep(self) -> None:
        """Remove what has expired and forget what is to be forgotten, agent by agent."""
        if self._context.durability.failure is not None:
            return
        with self._busy:
            began_s = time.monotonic()
            expired, forgotten = self.counters.expired, self.counters.forgotten
            for agent_id in self._agents():
                if self._periodic.is_closing:
                    return
                try:
                    self._sweep_agent(self._operations(agent_id))
                except Exception as error:  # the thread goes on, whatever happens to one agent
                    self._failed(agent_id, error)
            self.counters.sweeps += 1
            self.counters.last_sweep_ms = (time.monotonic() - began_s) * 1000
            expired, forgotten = self.counters.expired - expired, self.counters.forgotten - forgotten
            if expired or forgotten:
                log.info("removed %d expired episodes and forgot %d", expired, forgotten)

    def end_undo(self) -> None:
        """Remove the undo data of consolidations that are too old, agent by agent."""
        if self._context.durability.failure is not None:
            return
        start, stop = range_of(bytes((Space.PLAN,)))
        agent_id: str | None = None
        while not self._periodic.is_closing:
            try:
                row = next(self._context.backend.scan(start, stop), None)
                if row is None or (agent_id := parse(row[0]).agent_id) is None:
                    return
                start = AgentKeys(agent_id).range(Space.PLAN)[1]
                operations = self._operations(agent_id)
                self.counters.undos_ended += operations.end_undo(stop=lambda: self._periodic.is_closing)
            except Exception as error:  # the thread goes on, whatever happens to one agent
                self._failed(agent_id or "", error)
                if agent_id is None:
                    return

    def _sweep_agent(self, operations: Operations) -> None:
        while not self._periodic.is_closing and (removed := operations.remove_due()[0]):
            self.counters.expired += removed
        for page, _ in operations.forgetting(self._bounds):
            self.counters.forgotten += len(page.found)
            if self._periodic.is_closing:
                break

    def _agents(self) -> Iterator[str]:
        """The agents for which there is something to do, as far as can be told without waiting for anybody."""
        for key, value in self._context.backend.scan(*range_of(bytes((Space.AGENT,)))):
            try:
                agent_id, head = parse(key).agent_id, Head.decode(key, value)
            except DataError as error:
                self._failed(key.hex(), error)
                continue
            if agent_id is not None and (head.types or head.expiry_us <= self._context.now_us()):
                yield agent_id

    def _failed(self, agent: str, error: Exception) -> None:
        self.counters.errors += 1
        log.error("memory of agent %r: %s", agent, error)
