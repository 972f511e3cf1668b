"""Reading one instant of RocksDB, and letting go of it in time.

RocksDB keeps its directory for as long as an iterator lives, and rocksdict's iterators cannot be closed. So each one
stands in a :class:`View`, which the backend can empty wherever its reader is kept, and nowhere else: not in a local
variable either, for a suspended scan or the traceback of a kept exception would hold on to it.

rocksdict's ``Snapshot`` shows later writes when it is iterated, and bounds given to an iterator dangle. A plain
iterator does neither, so it is the snapshot, and keys are compared here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from threading import Lock
from typing import cast

from rocksdict import Rdict, RdictIter

from qilbee_core.backends._rocksdb_errors import Gone, reraise
from qilbee_core.backends._rocksdb_fork import leak
from qilbee_core.errors import QilbeeError, StorageError, StoreClosedError

__all__ = ["SharedView", "View"]

_CHUNK_ROWS_MAX = 64
_NOT_OPEN_YET = cast("RdictIter", Gone(StorageError, "this view has no iterator yet"))
_CLOSED = cast(
    "RdictIter",
    Gone(
        StoreClosedError,
        "the snapshot or scan is closed, or its store closed or reopened",
        remedy="read again; episodes(after=...) goes on behind the last id",
    ),
)


class View:
    """An iterator, for one reader. It moves without a lock: ``close`` only puts in its place what raises."""

    __slots__ = ("__weakref__", "_iterator", "_lock")

    def __init__(self) -> None:
        self._lock = Lock()
        self._iterator = _NOT_OPEN_YET

    def open(self, database: Rdict) -> None:
        """Show this instant, unless closed already."""
        with self._lock:
            if self._iterator is _NOT_OPEN_YET:
                self._iterator = database.iter()

    def close(self) -> None:
        """Let go of the instant."""
        with self._lock:
            self._iterator = _CLOSED

    def abandon(self) -> None:
        """Let go in a forked child, which must not run the destructor."""
        leak(self._iterator)
        self._iterator, self._lock = _CLOSED, Lock()

    def rows(self, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of the range."""
        try:
            self._seek(start, stop, reverse)
            while self._iterator.valid():
                key = self._iterator.key()
                if key < start if reverse else stop is not None and key >= stop:
                    return
                yield key, self._iterator.value()
                if reverse:
                    self._iterator.prev()
                else:
                    self._iterator.next()
            self._check()
        except Exception as error:
            reraise(error)

    def _check(self) -> None:
        """Raise if the iterator is at the end because of a damaged block, which otherwise looks just the same."""
        try:
            self._iterator.status()
        except Exception:
            # It would take the neighbours of that block for damaged too, until it has been elsewhere.
            self._iterator.seek_to_first()
            self._iterator.seek_to_last()
            raise

    def _seek(self, start: bytes, stop: bytes | None, reverse: bool) -> None:
        if not reverse:
            self._iterator.seek(start)
        elif stop is None:
            self._iterator.seek_to_last()
        else:
            self._iterator.seek_for_prev(stop)
            if self._iterator.valid() and self._iterator.key() == stop:
                self._iterator.prev()


class SharedView(View):
    """A snapshot: readers take turns at the iterator, under a lock, and each seeks anew."""

    __slots__ = ()

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key`` at that instant."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key."""
        try:
            with self._lock:
                return [self._get(key) for key in keys]
        except Exception as error:
            reraise(error)

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of the range at that instant."""
        self._iterator.valid()  # raises if closed
        return self._chunks(start, stop, reverse)

    def _get(self, key: bytes) -> bytes | None:
        self._iterator.seek(key)
        if self._iterator.valid():
            return self._iterator.value() if self._iterator.key() == key else None
        self._check()
        return None

    def _chunks(self, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        size = 4
        while True:
            chunk, error = self._chunk(start, stop, reverse, size)
            for row in chunk:
                if self._iterator is _CLOSED:
                    self._iterator.valid()
                yield row
            if error is not None:
                raise error
            if len(chunk) < size:
                return
            last = chunk[-1][0]
            start, stop = (start, last) if reverse else (last + b"\0", stop)
            size = min(2 * size, _CHUNK_ROWS_MAX)

    def _chunk(
        self, start: bytes, stop: bytes | None, reverse: bool, size: int
    ) -> tuple[list[tuple[bytes, bytes]], QilbeeError | None]:
        """The first rows of the range, and the error that came after them."""
        chunk: list[tuple[bytes, bytes]] = []
        with self._lock:
            try:
                for row in islice(self.rows(start, stop, reverse), size):
                    chunk.append(row)  # noqa: PERF402
            except QilbeeError as error:
                return chunk, error
        return chunk, None
