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
finds no sync under way leads one, for every ticket given out so far; who comes meanwhile waits for the
next. So N waiting writers share one or two syncs, on any engine. Who comes meanwhile and has not written
yet may leave that too to whoever leads the next: he has the interpreter's lock, and writes for all in one go.

A write or a sync that fails stops all writes: :attr:`Durability.failure` says why. Whoever waited then does not know
whether his write is there, and is told so for ever, also when :meth:`Durability.resume` lets others write again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Literal

from msgspec import Struct

from qilbee_core.batch import WriteBatch
from qilbee_core.errors import (
    DataError,
    LostWritesError,
    OutcomeUnknownError,
    QilbeeError,
    ReadOnlyError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    WriteStallError,
)
from qilbee_core.interfaces import DurableWrites, SingleProcess, StorageBackend, SupportsReopen, SupportsSequence
from qilbee_core.patience import at_once
from qilbee_core.watermark import Watermark

__all__ = ["Durability", "DurabilityLevel", "DurabilityStatus"]

log = logging.getLogger(__name__)

_GATHER_S_MAX = 0.001
"""How long a sync waits for others at most: half of what the last one took, as PostgreSQL advises, or this."""

DurabilityLevel = Literal["sync", "interval", "async", "none"]


class DurabilityStatus(Struct, frozen=True, kw_only=True):
    """The level in force, what is known to survive a power cut, and how old the oldest write is that may not (0: none).

    ``durable_sequence`` is the engine's number of the last operation that survives; None for an engine that does not
    count, or that has no directory of its own.
    """

    level: DurabilityLevel
    durable_sequence: int | None
    unsynced_age_ms: float


class _Round:
    """One sync to come, and those who wait for it.

    Threads wait for a lock that is held until the sync has ended, and each hands it on to the next. Woken all at once,
    they would only wait again: for the lock of the interpreter.
    """

    __slots__ = ("full", "over", "tasks", "threads", "threads_expected", "writes")

    def __init__(self) -> None:
        self.threads = self.threads_expected = 0
        self.writes: list[Callable[[], object]] = []
        self.full, self.over = threading.Lock(), threading.Lock()
        self.full.acquire()
        self.over.acquire()
        self.tasks: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def join(self) -> None:
        """One more thread waits for it, or leads it."""
        self.threads += 1
        if self.threads == self.threads_expected:
            self.full.release()

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for it."""
        return self.threads > 0 or bool(self.tasks)

    def end(self) -> None:
        """Wake all who wait."""
        self.over.release()
        for loop, tasks in self.tasks.items():  # a call for each loop, and not for each task: it costs two system calls
            with suppress(RuntimeError):  # the event loop of a cancelled task may be closed
                loop.call_soon_threadsafe(_settle, tasks)


class Durability:
    """Makes the writes of one backend durable, at one level, over threads and asyncio tasks."""

    def __init__(
        self, backend: StorageBackend, level: DurabilityLevel, interval_ms: int, watermark: Watermark | None = None
    ) -> None:
        self.level: DurabilityLevel = level
        self._backend = backend
        self._watermark: Watermark | None = None
        self._sequence: Callable[[], int] = lambda: 0
        if isinstance(backend, SupportsSequence):
            self._watermark, self._sequence = watermark, backend.sequence
        self._interval_s = interval_ms / 1000
        self._writes_are_durable = level == "sync" and isinstance(backend, DurableWrites)
        self._others_write = level == "sync" and not isinstance(backend, SingleProcess)
        self._lock = threading.Lock()
        self._written = 0
        self._synced = 0
        self._unsynced_since_s: float | None = None
        self._syncing_since_s: float | None = None
        self._sync_lock = threading.Lock()
        self._leading = False
        self.failure: Exception | None = None
        """Why no write is taken at the moment."""
        self.on_failure: Callable[[], object] = lambda: None
        """Called when there is a failure that may pass."""
        self.on_interval: Callable[[], object] = lambda: None
        """Called from the thread of ``interval``."""
        self._unknown: list[tuple[int, int, Exception]] = []
        """Tickets whose fate nobody knows: those above the first number and up to the second."""
        self._next = _Round()
        """Somebody is in it only while somebody leads."""
        self._sync_s = 0.0
        """What the last sync took."""
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
        return 0 if self._writes_are_durable else self._ticket()

    def _ticket(self) -> int:
        with self._lock:
            if self._unsynced_since_s is None:
                self._unsynced_since_s = time.monotonic()
            self._written += 1
            return self._written

    @property
    def last_ticket(self) -> int:
        """What an answer that rests on earlier writes waits for: the latest of them, which may be another process's.

        Who was told that the end of his write is unknown finds it there, perhaps, and durable nowhere yet.
        """
        return self._ticket() if self._others_write else self._written

    def abandon(self) -> None:
        """In a forked child: nothing of the parent's may be synced here, and its threads hold no lock for us."""
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._thread = None
        self._next = _Round()
        self._leading = False
        if self._watermark is not None:
            self._watermark.abandon()
        self.failure = StoreClosedError("the store was opened by the parent of this process")

    @property
    def refusal(self) -> QilbeeError | None:
        """What the failure means for all who come later: nothing more may be written. None where writes are taken."""
        failure = self.failure
        return None if failure is None else self._refusal(failure)

    def refuse(self) -> None:
        """Raise the refusal, if there is one still."""
        refusal = self.refusal
        if refusal is not None:
            raise refusal

    def _refusal(self, failure: Exception) -> QilbeeError:
        error: QilbeeError
        if isinstance(failure, StoreClosedError):
            error = StoreClosedError(failure.message, remedy="open the store again and retry with the same episode id")
        elif isinstance(failure, StorageFullError | ReadOnlyError | LostWritesError):
            error = type(failure)(failure.message, remedy=failure.remedy)
        else:
            message = failure.message if isinstance(failure, QilbeeError) else str(failure)
            error = OutcomeUnknownError(
                f"an earlier write or sync failed ({message}); the store is read-only until its engine is open again",
                remedy="retry with the same episode id when store.health() is good, or open it again yourself",
            )
        error.__cause__ = failure
        return error

    def write_failed(self, error: BaseException) -> None:
        """Find out whether the engine takes other writes than the one that has failed, and stop where it does not."""
        if (
            isinstance(error, StorageError | DataError)
            and not isinstance(error, StoreClosedError | WriteStallError)
            and self.failure is None
        ):
            if isinstance(error, OutcomeUnknownError) and isinstance(self._backend, SupportsReopen):
                self._fail(error)  # to try may take as long again as this has taken; the supervisor does it
                return
            try:
                self._backend.write(WriteBatch([]))
            except (StorageError, DataError):
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        if not isinstance(error, StoreClosedError):
            log.error("a write or sync failed, the store is read-only: %s", error)
            self.on_failure()

    def resume(self) -> None:
        """Take writes again. All that the engine shows is durable now, and no write is on its way."""
        with self._sync_lock, self._lock:
            if self.failure is not None and self._synced < self._written:
                self._unknown.append((self._synced, self._written, self.failure))
            self._written += 1  # what an answer waits for that rests on what is there now
            self._synced = self._written
            self._unsynced_since_s = self._syncing_since_s = None
            self.failure = None

    def _check_known(self, ticket: int) -> None:
        for low, high, failure in self._unknown:
            if low < ticket <= high:
                raise self._unknown_after(failure)

    @staticmethod
    def _unknown_after(failure: Exception | None) -> OutcomeUnknownError:
        message = failure.message if isinstance(failure, QilbeeError) else str(failure)
        return OutcomeUnknownError(f"the sync of this write failed ({message})")

    def wait_for_earlier(self) -> None:
        """Return once the level's promise holds for every write so far: before an error that rests on one."""
        self.wait(self.last_ticket)

    def wait(self, ticket: int) -> None:
        """Return once the level's promise holds for ``ticket``."""
        while self.level == "sync" and not self._is_settled(ticket):
            self.wait_for_next()

    async def wait_async(self, ticket: int) -> None:
        """The same for an asyncio task; the event loop goes on meanwhile."""
        while self.level == "sync" and not self._is_settled(ticket):
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            with self._lock:
                self._next.tasks.setdefault(loop, []).append(done)
                leads, self._leading = not self._leading, True
            if leads:
                self._lead_elsewhere()  # a task cannot: a sync would hold up its loop
            await done

    def _is_settled(self, ticket: int) -> bool:
        """Whether ``ticket`` is durable; OutcomeUnknownError where nobody will ever know."""
        if self._synced >= ticket:
            self._check_known(ticket)
            return True
        if self.failure is not None:
            raise self._unknown_after(self.failure)
        return False

    @property
    def is_syncing(self) -> bool:
        """Whether a write of now has to wait for the sync after the one that is under way."""
        return self._leading and not self._writes_are_durable

    def wait_for_next(self, write: Callable[[], object] | None = None) -> None:
        """Return when the next sync has ended, well or not.

        Whoever leads it calls ``write`` before, among what others gave him, and minds no error of it. It must not wait
        for a sync itself. Where :attr:`is_syncing` that is the cheaper way to write.
        """
        with self._lock:
            coming = self._next
            leads, self._leading = not self._leading, True
            coming.join()
            if write is not None:
                coming.writes.append(write)
        if leads:
            self._lead(once=True)
        else:
            with coming.over:
                pass

    def flush(self) -> None:
        """Make every write so far durable, at any level."""
        if self.failure is not None:
            self.refuse()
        if self.level == "sync":
            self.wait(self.last_ticket)
            return
        try:
            self._sync()
        except (OutcomeUnknownError, StoreClosedError):
            raise
        except Exception as error:
            raise self._refusal(error) from error

    def status(self) -> DurabilityStatus:
        """What can be said of it now."""
        since_s = self._unsynced_since_s if self._syncing_since_s is None else self._syncing_since_s
        age_ms = 0.0 if since_s is None else (time.monotonic() - since_s) * 1000
        durable = None if self._watermark is None else self._watermark.sequence
        return DurabilityStatus(level=self.level, durable_sequence=durable, unsynced_age_ms=age_ms)

    def close(self, drain: Callable[[], object] = lambda: None) -> None:
        """Stop the background thread, take no more writes, and make everything durable. Idempotent.

        ``drain`` returns when all writes have ended that were not refused.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if self.failure is None and self.level == "sync":
                self.wait(self._written)  # what others wrote is theirs
            elif self.failure is None:
                self.flush()
                # What came meanwhile was acknowledged too, and nobody would sync it any more.
                self.failure = StoreClosedError("the store is closed")
                drain()
                with self._sync_lock:
                    if self._unsynced_since_s is not None:
                        self._backend.sync()
                        self._unsynced_since_s = None
        finally:
            if self._watermark is not None:
                self._watermark.close()

    def _lead_elsewhere(self) -> None:
        """Have somebody lead for as long as anybody waits, who has nothing else to do."""
        try:
            threading.Thread(target=self._lead_on, name="qilbee-group-commit").start()
        except RuntimeError:  # the system gives no more threads
            self._lead_on()

    def _lead_on(self) -> None:
        while self._lead(once=False):
            pass

    def _lead(self, *, once: bool) -> bool:
        """Sync, and wake all who waited for it. Whether others wait still, for whom ``once`` finds another leader."""
        current = self._next
        target = 0
        try:
            self._await_those_expected(current)
            with self._lock:
                self._next = _Round()
            for write in current.writes:
                with suppress(Exception):
                    at_once(write)  # for compaction its own caller waits, and not with him all the others
            written = self._written
            if written > self._synced:
                self._sync()
            target = written
        except Exception:  # noqa: S110
            pass  # kept as the failure, which all who wait are told
        finally:
            # Also after Ctrl-C: nobody may wait for a leader that is gone.
            with self._lock:
                if self._next is current:
                    self._next = _Round()
                coming = self._next
                self._synced = max(self._synced, target)
                others = self._leading = coming.is_awaited
                coming.threads_expected = coming.threads + current.threads
            current.end()
            if others and once:
                self._lead_elsewhere()
        return others

    def _await_those_expected(self, coming: _Round) -> None:
        """Give the threads that the last sync has woken a moment to come again, for one sync does for them too.

        Tasks are not waited for: their loop has work for all of the time that a sync takes.
        """
        with self._lock:
            are_missing = coming.threads < coming.threads_expected
        if are_missing:
            coming.full.acquire(timeout=min(_GATHER_S_MAX, self._sync_s / 2))

    def _sync(self) -> None:
        with self._sync_lock:
            if self.failure is not None:
                self.refuse()
            # Moved before the sync, not after: a write during it must count as unsynced.
            if self._syncing_since_s is None:
                self._syncing_since_s = self._unsynced_since_s
            self._unsynced_since_s = None
            began_s = time.monotonic()
            try:
                sequence = self._sequence()  # before the sync: what is written meanwhile may not be durable
                self._backend.sync()
                self._sync_s = time.monotonic() - began_s
            except Exception as error:
                # After a failed fsync the kernel may have dropped the pages: asking again would lie.
                self._fail(error)
                raise
            self._syncing_since_s = None
            if self._watermark is not None:
                self._watermark.reached(sequence)

    def _sync_regularly(self) -> None:
        wait_s = self._interval_s
        while not self._closing.wait(wait_s):
            began_s = time.monotonic()
            self.on_interval()
            if self._unsynced_since_s is not None and self.failure is None:
                with suppress(Exception):  # logged; every later write is refused until the supervisor has mended it
                    self._sync()
            # From begin to begin: a write that just missed a sync waits for one interval and one sync, not for two.
            wait_s = max(0.0, self._interval_s - (time.monotonic() - began_s))


def _settle(tasks: Iterable[asyncio.Future[None]]) -> None:
    for done in tasks:
        if not done.cancelled():
            done.set_result(None)
