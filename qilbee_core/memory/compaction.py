"""Giving space back after large deletes, in the background.

What is deleted stays in the files of an engine until those are rewritten, which an engine does by itself only once much
else has been written. So it is counted what each agent has lost, and when that is much, and not little beside what it
has left, its ranges are compacted in a thread. Nobody waits for it, and close() cuts it short.

What was lost is counted in RAM: of what was deleted shortly before a close nobody knows later. ``Store.compact()``
gives that back too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from msgspec import Struct

from qilbee_core.errors import QilbeeError, StoreClosedError
from qilbee_core.interfaces import SupportsCompaction
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.commit import Context
from qilbee_core.memory.resident import Agent

__all__ = ["FREED_BYTES_MIN", "Compaction", "CompactionFigures"]

log = logging.getLogger(__name__)

FREED_BYTES_MIN = 16 << 20
"""Bytes of records that must have been deleted."""
_LEFT_MAX = 4
"""An agent that has more left than this times what it lost is not compacted: most of it would be rewritten as it is."""
_AGENTS_MAX = 1024
_QUIET_S = 1.0
"""For so long nothing must have been deleted: what is under way is compacted once, and not beside its deletion."""
_LOOKS_MAX = 60
_SPACES = [space for space in Space if space not in (Space.CATALOG, Space.AGENT, Space.ACCOUNT)]


class CompactionFigures(Struct, kw_only=True):
    """What the thread has done since the store was opened."""

    running: bool = False
    compactions: int = 0
    agents: int = 0
    freed_bytes: int = 0
    last_compaction_ms: float = 0.0
    errors: int = 0


class _Loss(NamedTuple):
    freed_bytes: int
    left_bytes: int


class Compaction:
    """Compacts what agents have lost, where the engine can, in a thread that lives only while there is work."""

    def __init__(self, context: Context) -> None:
        self._backend = context.backend
        self._lock = threading.Lock()
        self._losses: OrderedDict[str, _Loss] = OrderedDict()
        self._unseen_bytes = 0
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self.figures = CompactionFigures()
        if isinstance(context.backend, SupportsCompaction):
            context.freed = self._freed

    def close(self) -> None:
        """Begin nothing any more. The closing of the engine ends what is under way; see :meth:`join`."""
        self._closing.set()

    def join(self) -> None:
        """Wait for the thread, once the engine is closed."""
        if (thread := self._thread) is not None:
            thread.join()

    def _freed(self, agent: Agent, freed_bytes: int, left_bytes: int) -> None:
        """Note that records of an agent were deleted."""
        with self._lock:
            known = self._losses.pop(agent.id, None)
            self._losses[agent.id] = _Loss(freed_bytes + (0 if known is None else known.freed_bytes), left_bytes)
            if len(self._losses) > _AGENTS_MAX:
                self._losses.popitem(last=False)
            self._unseen_bytes += freed_bytes
            if self._unseen_bytes >= FREED_BYTES_MIN and self._thread is None and not self._closing.is_set():
                thread = threading.Thread(target=self._run, name="qilbee-compaction", daemon=True)
                thread.start()
                self._thread = thread  # not before it can be joined

    def _run(self) -> None:
        self._wait_for_quiet()
        while agent_ids := self._due():
            self.figures.running = True
            self._compact(agent_ids)
            self.figures.running = False
            self._wait_for_quiet()

    def _wait_for_quiet(self) -> None:
        for _ in range(_LOOKS_MAX):
            seen_bytes = self._unseen_bytes
            if self._closing.wait(_QUIET_S) or self._unseen_bytes == seen_bytes:
                return

    def _due(self) -> list[str]:
        """The agents whose ranges are to be compacted now; where there are none, the thread ends."""
        with self._lock:
            due = {name: loss for name, loss in self._losses.items() if loss.left_bytes <= _LEFT_MAX * loss.freed_bytes}
            freed_bytes = sum(loss.freed_bytes for loss in due.values())
            self._unseen_bytes = 0
            if freed_bytes < FREED_BYTES_MIN or self._closing.is_set():
                self._unseen_bytes = freed_bytes
                self._thread = None
                return []
            for agent_id in due:
                del self._losses[agent_id]
            self.figures.freed_bytes += freed_bytes
            return sorted(due)

    def _compact(self, agent_ids: list[str]) -> None:
        backend = self._backend
        assert isinstance(backend, SupportsCompaction), "else nothing is noted"
        began_s = time.monotonic()
        all_keys = [AgentKeys(agent_id) for agent_id in agent_ids]
        try:
            for space in _SPACES:
                for keys in all_keys:
                    if self._closing.is_set():
                        return
                    backend.compact(*keys.range(space))
        except StoreClosedError:
            return
        except QilbeeError as error:
            self.figures.errors += 1
            log.warning("the space of what was deleted does not come back yet: %s", error)
            return
        self.figures.compactions += 1
        self.figures.agents += len(agent_ids)
        self.figures.last_compaction_ms = (time.monotonic() - began_s) * 1000
        log.info("compacted the ranges of %d agents in %.1f s", len(agent_ids), time.monotonic() - began_s)
