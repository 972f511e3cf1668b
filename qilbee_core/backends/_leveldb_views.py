"""Reading one instant of LevelDB: a scan, or a snapshot at which readers take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import plyvel  # type: ignore[import-untyped]

from qilbee_core.backends._leveldb_binding import KEY, Cursor, Database, bounds, our_error, seek_below, value_at
from qilbee_core.errors import StoreClosedError

__all__ = ["LevelDBSnapshot", "Row", "View", "rows_of"]

_CHUNK_BYTES_MAX = 64 << 10

Row = tuple[bytes, bytes]


class View(NamedTuple):
    """One instant of the database: an iterator.

    A snapshot of LevelDB's own would make compactions keep several versions of a key. Where the border of
    two tables falls between a deletion and what it deletes, a later compaction drops the one without the
    other, and what was deleted is there again. An iterator has no part in what compactions keep.
    """

    database: Database
    cursor: Cursor


class Backend(Protocol):
    """What a reader of views needs: to be counted as inside the database, for as long as it is the one of the view."""

    _calls: list[None]
    _database: Database | None

    def _enter_view(self, view: View) -> Cursor:
        """The cursor of ``view``, for a call that is now counted."""
        ...


def rows_of(backend: Backend, view: View, start: bytes, stop: bytes, reverse: bool) -> Iterator[Row]:
    """The pairs of a range of LevelDB's keys."""
    calls, cursor = backend._calls, view.cursor
    move: Callable[[], None] = partial(seek_below, cursor, stop) if reverse else partial(cursor.seek, start)
    while True:
        calls.append(None)
        if backend._database is not view.database:
            calls.pop()
            backend._enter_view(view)
        try:
            move()
            key, value = cursor.item()
        except plyvel.IteratorInvalidError:
            return
        except plyvel.Error as error:
            raise our_error(error) from error
        finally:
            calls.pop()
        if key < start if reverse else key >= stop:
            return
        yield key[1:], value
        move = cursor.prev if reverse else cursor.next


class LevelDBSnapshot:
    """One instant of a backend: an iterator at which readers take turns.

    Once it has met a damaged block, all its reads say so.
    """

    def __init__(self, backend: Backend, view: View) -> None:
        self._backend = backend
        self._view: View | None = view
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key`` at that instant, or None."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key, in the order given."""
        self._check_open()
        with self._lock:
            # Only now a call in flight: one that waited for the lock would be waited for by whoever reopens.
            cursor = self._backend._enter_view(self._open_view())
            try:
                return [value_at(cursor, KEY + key) for key in keys]
            except plyvel.Error as error:
                raise our_error(error) from error
            finally:
                self._backend._calls.pop()

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        """The pairs of the range at that instant."""
        self._check_open()
        return self._chunks(*bounds(start, stop), reverse)

    def _chunks(self, start: bytes, stop: bytes, reverse: bool) -> Iterator[Row]:
        # Each turn reads a few rows and seeks anew, so that scans side by side need not know of each other.
        size_max = 1
        more = True
        while more:
            chunk: list[Row] = []
            more, size = False, 0
            self._check_open()
            with self._lock:
                for row in rows_of(self._backend, self._open_view(), start, stop, reverse):
                    chunk.append(row)
                    size += len(row[0]) + len(row[1])
                    if more := size >= size_max:
                        break
            for row in chunk:
                self._check_open()
                yield row
            if more:
                last = KEY + chunk[-1][0]
                start, stop = (start, last) if reverse else (last + b"\0", stop)
                size_max = min(8 * size_max, _CHUNK_BYTES_MAX)

    def _check_open(self) -> None:
        """Raise if closed. Comes before the lock, which in a forked child nobody may be left to release."""
        self._backend._enter_view(self._open_view())
        self._backend._calls.pop()

    def _open_view(self) -> View:
        view = self._view
        if view is None:
            raise StoreClosedError("the snapshot is closed", remedy="take another one")
        return view

    def close(self) -> None:
        """Let go of the instant. Idempotent."""
        self._view = None
