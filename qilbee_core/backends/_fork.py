"""What a forked child must be told of an engine that has threads: they are not there."""

from __future__ import annotations

import os

from qilbee_core.errors import StorageError

__all__ = ["ForkGuard"]


class ForkGuard:
    """Refuses an engine in a child that was forked once the engine had been used: it would wait for ever."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._used = False
        self._orphaned = False
        os.register_at_fork(after_in_child=self._in_child)

    def use(self) -> None:
        """Note that the engine is about to start its threads; StorageError where they cannot be."""
        if self._orphaned:
            raise StorageError(
                f"{self._engine} was used in the parent of this forked process, and its threads are not here",
                remedy='use multiprocessing.get_context("spawn"), or fork before the first store is opened',
            )
        self._used = True

    def _in_child(self) -> None:
        self._orphaned = self._used
