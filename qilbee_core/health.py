"""Whether a store takes writes, and what stands against it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from msgspec import Struct

from qilbee_core.durability import DurabilityStatus

__all__ = ["DiskSpace", "Health"]

log = logging.getLogger(__name__)

_LOW_BYTES = 1 << 30
_LOW_SHARE = 0.05
_CHECK_INTERVAL_S = 10.0


class Health(Struct, frozen=True, kw_only=True):
    """What :meth:`Store.health` found.

    ``problems`` says in words what keeps writes from being taken, or from becoming durable in time, each with its
    remedy. ``disk_free_bytes`` is what the disk of the store has left for this user, None for an engine without files.
    ``revivals`` counts the attempts to take writes again since the store was opened, see docs/durability.md.
    ``reindexed_share`` is how much of a re-index to other half-lives is done, 0 to 1; None where none is under way.

    >>> from qilbee_core import open_store
    >>> with open_store(backend="ephemeral") as store:
    ...     store.health().ok
    True
    """

    problems: list[str]
    durability: DurabilityStatus
    disk_free_bytes: int | None
    revivals: int
    reindexed_share: float | None = None

    @property
    def ok(self) -> bool:
        """Whether writes work."""
        return not self.problems


class DiskSpace:
    """Looks at what the disk of a directory has left, and logs when that runs low and when it does no more.

    Low is less than 1 GiB or a twentieth of the disk, whichever is smaller; it is over at twice as much.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_low = False
        self._next_s = 0.0

    def free_bytes(self) -> int | None:
        """What is left now; None where the system does not say."""
        self._next_s = time.monotonic() + _CHECK_INTERVAL_S
        try:
            disk = os.statvfs(self._directory)
        except OSError:
            return None
        free, low = disk.f_bavail * disk.f_frsize, min(_LOW_BYTES, int(disk.f_blocks * disk.f_frsize * _LOW_SHARE))
        if not self._is_low and free < low:
            self._is_low = True
            log.warning("%s: %d MB are left on its disk; writes fail when it is full", self._directory, free // 10**6)
        elif self._is_low and free >= 2 * low:
            self._is_low = False
            log.warning("%s: %d MB are left on its disk again", self._directory, free // 10**6)
        return free

    def look(self) -> None:
        """The same, unless somebody has looked in the last ten seconds."""
        if time.monotonic() >= self._next_s:
            self.free_bytes()
