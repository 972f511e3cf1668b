"""The syncs of a store, held up and made to fail, and threads whose writes wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from qilbee_core import (
    CorruptRecordError,
    Episode,
    OutcomeUnknownError,
    StorageError,
    StorageFullError,
    Store,
    WriteBatch,
)

OpenHere = Callable[..., Store]
T = TypeVar("T")

PATIENCE_S = 60.0  # for what must happen: nothing is ever proved by waiting that long
IMPATIENCE_S = 0.2  # for what must not happen: a slow machine can only miss a bug, never see one that is not there


def note(number: object = 0, agent_id: str = "bot", **given: Any) -> Episode:
    return Episode(agent_id, "note", {"number": str(number)}, **given)


class Syncs:
    """Stands before the sync of a store's engine: counts, holds up, makes fail.

    Once one has failed the engine cannot be opened again either: how it comes back is told in test_disk_failures.py.
    """

    def __init__(self, store: Store) -> None:
        self._backend = store._backend
        self._real = self._backend.sync
        self.begun = 0
        self.ended = 0
        self.error: BaseException | None = None
        self._came = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()
        self._interrupted: threading.Event | None = None
        self._backend.sync = self._sync  # type: ignore[method-assign]
        self._backend.reopen = self._reopen  # type: ignore[attr-defined]

    def _sync(self) -> None:
        self.begun += 1
        self._came.release()
        opened = self._open
        opened.wait(PATIENCE_S)
        if opened is self._interrupted:
            raise KeyboardInterrupt
        if self.error is not None:
            raise self.error
        self._real()
        self.ended += 1

    def _reopen(self) -> None:
        raise StorageError("the disk is broken")

    def hold(self) -> None:
        """Let every sync from now on wait for ``let_go``."""
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def let_one_go(self) -> None:
        """Let only the one go that waits now."""
        held, self._open = self._open, threading.Event()
        held.set()

    def interrupt_one(self) -> None:
        """Let the one that waits now end as with Ctrl-C, and the others go."""
        held, self._open = self._open, threading.Event()
        self._open.set()
        self._interrupted = held
        held.set()

    def await_one(self) -> None:
        """Wait until one more has begun."""
        assert self._came.acquire(timeout=PATIENCE_S), "no sync came"


SyncsOf = Callable[[Store], Syncs]


@contextmanager
def syncs_let_go_at_the_end() -> Iterator[SyncsOf]:
    """Makes :class:`Syncs`, which hold up nothing any more at the end, before the stores are closed."""
    made: list[Syncs] = []

    def make(store: Store) -> Syncs:
        made.append(Syncs(store))
        return made[-1]

    yield make
    for syncs in made:
        syncs.let_go()


class Writes:
    """Tells when writes hold their ticket, or are left to whoever leads the next sync."""

    def __init__(self, store: Store) -> None:
        self._durability = store._durability
        self._before = self._durability._written

    def await_many(self, count: int) -> None:
        self._before += count
        await_until(lambda: self._durability._written + len(self._durability._next.writes) >= self._before)


def in_thread(call: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
    """The result to come of a call in a thread of its own, which nobody waits for if it hangs."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def await_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def outcome_of(call: Callable[[], object]) -> str:
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return "done"


def count_writes(store: Store) -> list[WriteBatch]:
    written: list[WriteBatch] = []
    write = store._backend.write

    def count(batch: WriteBatch) -> None:
        written.append(batch)
        write(batch)

    store._backend.write = count  # type: ignore[method-assign]
    return written


FAILURES: dict[str, Callable[[], Exception]] = {
    "of the disk": lambda: StorageError("cannot sync: Input/output error"),
    "with an unknown outcome": lambda: OutcomeUnknownError("cannot sync: Input/output error"),
    "for want of space": lambda: StorageFullError("cannot sync: No space left on device"),
    "for corruption": lambda: CorruptRecordError("cannot sync: block checksum mismatch"),
    "of the system": lambda: OSError(5, "Input/output error"),
    "of a plugin's own kind": lambda: RuntimeError("a bug in an engine"),
}
