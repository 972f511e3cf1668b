"""Consolidation by schedule: a thread that lets a policy make less of every agent's memory, again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct
from msgspec.structs import asdict

from qilbee_core.config import MemorySettings
from qilbee_core.episode import JSON
from qilbee_core.keys import Space, parse, range_of
from qilbee_core.memory.commit import Context
from qilbee_core.memory.operations import Operations
from qilbee_core.memory.periodic import Periodic

__all__ = ["Schedule", "ScheduleCounters"]

log = logging.getLogger(__name__)

_HEADS = range_of(bytes((Space.AGENT,)))
_CLOSE_S_MAX = 5.0
"""A close waits so long for a plan that is being made; whatever comes of it later finds the store closed."""


class ScheduleCounters(Struct, kw_only=True):
    """What the thread has done since the store was opened."""

    rounds: int = 0
    created: int = 0
    superseded: int = 0
    forgotten: int = 0
    dropped: int = 0
    errors: int = 0
    last_round_ms: float = 0.0


class Schedule:
    """Consolidates every agent each interval, where one is configured."""

    def __init__(self, context: Context, operations: Callable[[str], Operations], settings: MemorySettings) -> None:
        self._context = context
        self._operations = operations
        self._policy = settings.consolidation_policy
        self.counters = ScheduleCounters()
        hours = settings.consolidation_interval_hours
        jobs = [] if hours is None else [(hours * 3600, self.consolidate_all)]
        self._periodic = Periodic("qilbee-consolidation", jobs)
        self._periodic.start()

    def figures(self) -> dict[str, JSON]:
        """What it has done, for Store.stats()."""
        return asdict(self.counters)

    def close(self) -> None:
        """Stop after the batch that is under way. Idempotent."""
        self._periodic.close(_CLOSE_S_MAX)

    def consolidate_all(self) -> None:
        """One round over all agents."""
        if self._context.durability.failure is not None:
            return
        began_s = time.monotonic()
        with self._going_on("all"):
            for agent_id in [parse(key).agent_id for key, _ in self._context.backend.scan(*_HEADS)]:
                if self._periodic.is_closing or agent_id is None:
                    return
                with self._going_on(agent_id):
                    self._consolidate(agent_id)
        self.counters.rounds += 1
        self.counters.last_round_ms = (time.monotonic() - began_s) * 1000

    @contextmanager
    def _going_on(self, agent_id: str) -> Iterator[None]:
        """The thread goes on, whatever happens to one agent."""
        try:
            yield
        except Exception as error:
            self.counters.errors += 1
            log.error("consolidation of agent %r: %s", agent_id, error)

    def _consolidate(self, agent_id: str) -> None:
        result, _ = self._operations(agent_id).consolidate(
            self._policy, None, dry_run=False, stop=lambda: self._periodic.is_closing
        )
        self.counters.created += len(result.created)
        self.counters.superseded += len(result.superseded)
        self.counters.forgotten += len(result.forgotten)
        self.counters.dropped += len(result.dropped)
