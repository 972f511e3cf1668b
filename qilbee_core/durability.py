"""When an acknowledged write survives a power cut.

=============  ====================================  ======================================
level          an acknowledged write survives        what the writer waits for
=============  ====================================  ======================================
``sync``       a power cut                           one fsync, shared by all who wait
``interval``   the death of the process; a power     nothing
               cut unless it is younger than the
               interval and one sync
``async``      the death of the process              nothing
``none``       a clean close or ``flush()``          nothing
=============  ====================================  ======================================

Group commit: each write gets a ticket after the engine has taken it. Whoever needs a ticket durable and
finds no sync under way leads one, for every ticket given out so far; the others wait for that one
or the next. So N waiting writers share one or two syncs, on any engine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal, Never

from msgspec import Struct

from qilbee_core.errors import OutcomeUnknownError, StoreClosedError
from qilbee_core.interfaces import StorageBackend

__all__ = ["Durability", "DurabilityLevel", "DurabilityStatus"]

log = logging.getLogger(__name__)

DurabilityLevel = Literal["sync", "interval", "async", "none"]


class DurabilityStatus(Struct, frozen=True, kw_only=True):
    """The level in force, and the age of the oldest write that may not survive a power cut yet (0: none)."""

    level: DurabilityLevel
    unsynced_age_ms: float


class Durability:
    """Makes the writes of one backend durable, at one level, over threads and asyncio tasks."""

    def __init__(self, backend: StorageBackend, level: DurabilityLevel, interval_ms: int) -> None:
        self.level: DurabilityLevel = level
        self._backend = backend
        self._interval_s = interval_ms / 1000
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._written = 0
        self._synced = 0
        self._unsynced_since_s: float | None = None
        self._syncing_since_s: float | None = None
        self._sync_lock = threading.Lock()
        self._leading = False
        self.failure: Exception | None = None
        """What made a sync fail."""
        self._callbacks: list[tuple[int, Callable[[], object]]] = []
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if level == "interval":
            self._thread = threading.Thread(target=self._sync_regularly, name="qilbee-sync", daemon=True)
            self._thread.start()

    def wrote(self) -> int:
        """Take a ticket for a write the engine has just taken. Only ``sync`` counts them."""
        if self.level != "sync":
            if self._unsynced_since_s is None:
                self._unsynced_since_s = time.monotonic()
            return 0
        with self._lock:
            if self._unsynced_since_s is None:
                self._unsynced_since_s = time.monotonic()
            self._written += 1
            return self._written

    @property
    def last_ticket(self) -> int:
        """The ticket of the latest write: what an answer that rests on earlier writes waits for."""
        return self._written

    def abandon(self) -> None:
        """In a forked child: nothing of the parent's may be synced here, and its threads hold no lock for us."""
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._sync_lock = threading.Lock()
        self._thread = None
        self._leading = False
        self.failure = StoreClosedError("the store was opened by the parent of this process")

    def refuse(self) -> Never:
        """Raise what a failed sync, or a closed engine, means for all who come later: nothing more may be written."""
        if isinstance(self.failure, StoreClosedError):
            raise StoreClosedError(
                self.failure.message, remedy="open the store again and retry with the same episode id"
            ) from self.failure
        self._unknown()

    def _unknown(self) -> Never:
        raise OutcomeUnknownError(
            f"an earlier sync failed ({self.failure}); the store is read-only",
            remedy="close the store, look at the disk, and open it again",
        )

    def wait_for_earlier(self) -> None:
        """Return once the level's promise holds for every write so far: before an error that rests on one."""
        self.wait(self._written)

    def wait(self, ticket: int) -> None:
        """Return once the level's promise holds for ``ticket``."""
        if self.level == "sync":
            self._wait_synced(ticket)

    async def wait_async(self, ticket: int) -> None:
        """The same for an asyncio task; the event loop goes on meanwhile."""
        if self.level != "sync" or self._synced >= ticket:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        with self._condition:
            self._callbacks.append((ticket, partial(loop.call_soon_threadsafe, done.set)))
            if not self._leading:
                self._lead_elsewhere()
        await done.wait()
        if self._synced < ticket:
            self._unknown()

    def flush(self) -> None:
        """Make every write so far durable, at any level."""
        if self.failure is not None:
            self.refuse()
        if self.level == "sync":
            self._wait_synced(self._written)
            return
        try:
            self._sync()
        except (OutcomeUnknownError, StoreClosedError):
            raise
        except Exception:
            self.refuse()

    def status(self) -> DurabilityStatus:
        """What can be said of it now."""
        since_s = self._unsynced_since_s if self._syncing_since_s is None else self._syncing_since_s
        age_ms = 0.0 if since_s is None else (time.monotonic() - since_s) * 1000
        return DurabilityStatus(level=self.level, unsynced_age_ms=age_ms)

    def close(self) -> None:
        """Stop the background thread, then make everything durable. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if self.failure is None:
            self.flush()

    def _wait_synced(self, ticket: int) -> None:
        while True:
            with self._condition:
                while self._leading and self._synced < ticket:
                    self._condition.wait()
                if self._synced >= ticket:
                    return
                if self.failure is not None:
                    self._unknown()
                self._leading = True
            self._lead()

    def _lead_elsewhere(self) -> None:
        # Called under the condition. Asyncio tasks cannot lead: a sync would hold up their loop.
        self._leading = True
        threading.Thread(target=self._lead, name="qilbee-group-commit").start()

    def _lead(self) -> None:
        target = self._written
        synced = False
        try:
            self._sync()
            synced = True
        except Exception:  # noqa: S110
            pass  # kept as the failure, which all who wait are told
        finally:
            # Also after Ctrl-C: nobody may wait for a leader that is gone.
            with self._condition:
                if synced:
                    self._synced = max(self._synced, target)
                self._leading = False
                done = [item for item in self._callbacks if self.failure is not None or item[0] <= self._synced]
                self._callbacks = [item for item in self._callbacks if item not in done]
                if self._callbacks:
                    self._lead_elsewhere()
                self._condition.notify_all()
            for _, callback in done:
                with suppress(RuntimeError):  # the event loop of a cancelled task may be closed
                    callback()

    def _sync(self) -> None:
        with self._sync_lock:
            if self.failure is not None:
                self.refuse()
            # Moved before the sync, not after: a write during it must count as unsynced.
            if self._syncing_since_s is None:
                self._syncing_since_s = self._unsynced_since_s
            self._unsynced_since_s = None
            try:
                self._backend.sync()
            except Exception as error:
                # After a failed fsync the kernel may have dropped the pages: asking again would lie.
                self.failure = error
                if not isinstance(error, StoreClosedError):
                    log.error("sync failed, the store is read-only from now on: %s", error)
                raise
            self._syncing_since_s = None

    def _sync_regularly(self) -> None:
        while not self._closing.wait(self._interval_s):
            if self._unsynced_since_s is not None:
                try:
                    self._sync()
                except Exception:
                    return  # logged; every later write is refused
