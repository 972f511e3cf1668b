"""What was read lately and has faded: noted in RAM, to be reinforced together in the background.

A read never waits for a write. A crash loses what was noted since the last flush, some seconds.
"""

from __future__ import annotations

import threading

__all__ = ["ACCESSES_MAX", "Accesses"]

ACCESSES_MAX = 10_000
"""Episodes that are noted between two flushes; what is read beyond that is not reinforced."""


class Accesses:
    """The last access of each episode, by agent. However often it is read between two flushes counts as once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times_us: dict[str, dict[bytes, int]] = {}
        self._count = 0
        self.dropped = 0
        """Accesses for which there was no room."""

    def note(self, agent_id: str, id_bytes: bytes, now_us: int) -> None:
        """Remember that an episode was read."""
        with self._lock:
            times_us = self._times_us.setdefault(agent_id, {})
            if id_bytes not in times_us:
                if self._count == ACCESSES_MAX:
                    self.dropped += 1
                    return
                self._count += 1
            times_us[id_bytes] = now_us

    def take(self) -> dict[str, dict[bytes, int]]:
        """What was noted since this was last asked: agent -> id -> time in microseconds."""
        with self._lock:
            taken, self._times_us, self._count = self._times_us, {}, 0
        return taken
