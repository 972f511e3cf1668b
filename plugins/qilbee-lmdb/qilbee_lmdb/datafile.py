"""One LMDB file, open; and reading from one instant of it.

LMDB unmaps a file when it is closed, and a thread that still reads from the map then takes the process down.
So every reader stands *inside* the file from before the first touch until after the last one, and the last
to leave a file that is not wanted any more closes it. Entering takes no lock: a get takes 2 us, a lock would
add a quarter of that, and make threads queue. Instead the reader enters, *then* looks whether the file is still
the current one; and a thread that takes the file away first makes another one current (or none), *then* looks
whether anybody is inside. In whatever order these four steps fall, at least one of the two sees the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Event, RLock
from weakref import ref

import lmdb

from qilbee_core import StoreClosedError
from qilbee_lmdb.errors import of_lmdb

__all__ = ["PREFIX", "DataFile", "View"]

# LMDB has no empty keys, we have: every key starts with this byte.
PREFIX = b"k"

_READERS_MAX = 1024
_PAIRS_PER_STEP = 16


class DataFile:
    """An LMDB file while it is open, and who is inside."""

    __slots__ = ("_inside", "_retired", "closed", "env", "path", "views")

    def __init__(self, path: Path, map_bytes: int) -> None:
        self.path = path
        self._inside: list[None] = []
        self._retired = False
        self.closed = Event()
        self.views: set[ref[View]] = set()
        """Those inside for long, so that they can be turned out."""
        # metasync=False: a commit writes its pages and waits for the disk, then writes the new root without waiting;
        # the next commit or sync() waits for that. So a power cut takes back at most the last commit, and no page of
        # the one before it has been used again: a prefix of whole batches is left, which is the contract. It costs
        # one fsync a commit. sync=False would cost none (12 us instead of 330 us, measured) and is not for us: the
        # disk may then see the new root before the pages under it, and a power cut leaves a file that cannot be read.
        # meminit stays on: without it, whatever the heap held is written into the unused part of new pages.
        try:
            self.env = lmdb.open(
                str(path), map_bytes, subdir=False, metasync=False, mode=0o600, max_readers=_READERS_MAX
            )
        except lmdb.Error as error:
            raise of_lmdb(error, path) from error

    def enter(self) -> None:
        """Keep the file mapped until :meth:`leave`. Then see whether it is still the current one."""
        self._inside.append(None)

    def leave(self) -> None:
        """The other end of :meth:`enter`."""
        self._inside.pop()
        if self._retired and not self._inside:
            self._close()

    def retire(self) -> None:
        """Close the file as soon as nobody is inside. It must not be the current one any more."""
        self._retired = True
        if not self._inside:
            self._close()

    def open_views(self) -> list[View]:
        """The snapshots and scans that are open."""
        return [view for view in [reference() for reference in list(self.views)] if view is not None and view.is_open]

    def abandon(self) -> None:
        """Never touch the file again: we are a forked child, and the parent goes on using it.

        Closing, which the end of the interpreter would do too, would unlock the reader table that we share
        with the parent, and the parent's snapshots would lose their pages. One reference too many keeps the
        environment from ever being closed.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.env))
        for view in self.open_views():
            view.abandon()

    def _close(self) -> None:
        self.env.close()
        self.closed.set()


class View:
    """One instant of a file. Every step is taken under its lock, since an LMDB transaction is for one thread at a time.

    The lock is one that its holder may take again: the garbage collector can drop a scan of this very view
    in the middle of a step.
    """

    __slots__ = ("__weakref__", "_file", "_lock", "_transaction")

    def __init__(self, file: DataFile) -> None:
        """Take over the caller's place inside ``file``."""
        self._file = file
        self._lock = RLock()
        self._transaction: lmdb.Transaction[bytes] | None = None
        try:
            self._transaction = file.env.begin()
        except BaseException as error:
            file.leave()
            if isinstance(error, lmdb.Error):
                raise of_lmdb(error, file.path) from error
            raise
        file.views.add(ref(self, file.views.discard))

    @property
    def file(self) -> DataFile:
        """What it is an instant of."""
        return self._file

    @property
    def is_open(self) -> bool:
        """Whether it still keeps its instant."""
        return self._transaction is not None

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key`` at this instant."""
        with self._lock:
            try:
                return self._live().get(PREFIX + key)
            except lmdb.Error as error:
                raise of_lmdb(error, self._file.path) from error

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values under ``keys`` at this instant."""
        with self._lock:
            get = self._live().get
            try:
                return [get(PREFIX + key) for key in keys]
            except lmdb.Error as error:
                raise of_lmdb(error, self._file.path) from error

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of the range at this instant. The iterator keeps the view alive, nothing else has to."""
        with self._lock:
            self._live()
        return self._rows(PREFIX + start, None if stop is None else PREFIX + stop, reverse)

    def _rows(self, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        try:
            with self._lock:
                pairs = _pairs(self._live().cursor(), start, stop, reverse)
            while True:
                with self._lock:
                    self._live()
                    some = list(islice(pairs, _PAIRS_PER_STEP))
                for key, value in some:
                    if key < start if reverse else stop is not None and key >= stop:
                        return
                    if self._transaction is None:
                        self._live()
                    yield key[1:], value
                if len(some) < _PAIRS_PER_STEP:
                    return
        except lmdb.Error as error:
            raise of_lmdb(error, self._file.path) from error

    def _live(self) -> lmdb.Transaction[bytes]:
        if self._transaction is None:
            raise StoreClosedError("the snapshot, or the store it shows, was closed")
        return self._transaction

    def close(self) -> None:
        """Let go of the instant."""
        with self._lock:
            transaction, self._transaction = self._transaction, None
            if transaction is not None:
                transaction.abort()
                self._file.leave()

    def abandon(self) -> None:
        """See :meth:`DataFile.abandon`. The lock may have been held by a thread the child does not have."""
        self._lock = RLock()
        self._transaction = None

    def __del__(self) -> None:
        self.close()


def _pairs(
    cursor: lmdb.Cursor[bytes], start: bytes, stop: bytes | None, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Everything from the first pair of the range on, in its direction."""
    if not reverse:
        return cursor.iternext() if cursor.set_range(start) else iter(())
    below = cursor.prev() if stop is not None and cursor.set_range(stop) else cursor.last()
    return cursor.iterprev() if below else iter(())
