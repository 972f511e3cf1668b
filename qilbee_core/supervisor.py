"""Brings a store back that has stopped taking writes, without anybody having to open it again.

After a failed write or sync the engine closes its handle and opens it again, where it can
(:class:`~qilbee_core.interfaces.SupportsReopen`): neither may be tried again on the same one, for the kernel reports
what it could not write once, and then forgets it. After StorageFullError they may, on an engine that cannot do that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from qilbee_core.batch import WriteBatch
from qilbee_core.durability import Durability
from qilbee_core.errors import LostWritesError, ReadOnlyError, StorageFullError, StoreClosedError, WriteStallError
from qilbee_core.interfaces import StorageBackend, SupportsReopen

__all__ = ["Supervisor"]

log = logging.getLogger(__name__)

_WAIT_S_MIN = 0.1
_WAIT_S_MAX_FULL = 1.0
_WAIT_S_MAX = 2.0


class Supervisor:
    """Tries, in a thread that lives only while it is needed, to clear the failure of ``durability``.

    ``reload`` is given a function that makes the engine write again, and calls it while nothing is on its way.
    """

    def __init__(
        self, backend: StorageBackend, durability: Durability, reload: Callable[[Callable[[], None]], None]
    ) -> None:
        self._backend = backend
        self._durability = durability
        self._reload = reload
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self.attempts = 0
        """How often it has tried since the store was opened."""
        durability.on_failure = self._begin

    def close(self) -> None:
        """Try no more. Idempotent."""
        self._closing.set()
        if (thread := self._thread) is not None:
            thread.join()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set() and self._may_pass():
                thread = threading.Thread(target=self._run, name="qilbee-supervisor", daemon=True)
                thread.start()
                self._thread = thread  # not before it can be joined

    def _may_pass(self) -> bool:
        failure = self._durability.failure
        if failure is None or isinstance(failure, StoreClosedError | ReadOnlyError | LostWritesError):
            return False
        return isinstance(failure, StorageFullError) or isinstance(self._backend, SupportsReopen)

    def _run(self) -> None:
        began_s = time.monotonic()
        wait_s, told = _WAIT_S_MIN, ""
        while not self._closing.wait(wait_s):
            is_full = isinstance(self._durability.failure, StorageFullError)
            wait_s = min(2 * wait_s, _WAIT_S_MAX_FULL if is_full else _WAIT_S_MAX)
            self.attempts += 1
            try:
                self._reload(self._revive)
            except Exception as error:
                if isinstance(error, LostWritesError) or (
                    is_full and not isinstance(error, StorageFullError | WriteStallError)
                ):
                    self._durability.failure = error  # there is more to it than a full disk
                if str(error) != told:
                    log.warning("writes are not taken again yet: %s", error)
                told = str(error)
            else:
                self._durability.resume()
                log.warning("writes are taken again, after %.1f s", time.monotonic() - began_s)
                began_s, wait_s, told = time.monotonic(), _WAIT_S_MIN, ""
            with self._lock:  # which _begin() waits for: no failure is left to nobody
                if not self._may_pass():
                    self._thread = None
                    return

    def _revive(self) -> None:
        if isinstance(self._backend, SupportsReopen):
            self._backend.reopen()
        else:
            self._backend.write(WriteBatch([]))
            self._backend.sync()
