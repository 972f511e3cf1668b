"""What the LevelDB backend has of plyvel: its types, keys as LevelDB has them, its errors as ours."""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import plyvel  # type: ignore[import-untyped]

from qilbee_core.batch import Delete, Operation, Put
from qilbee_core.errors import (
    CorruptRecordError,
    FormatVersionError,
    OutcomeUnknownError,
    QilbeeError,
    StorageError,
    StorageFullError,
    StoreLockedError,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BEFORE",
    "BEHIND",
    "KEY",
    "MARKER",
    "Batch",
    "Cursor",
    "Database",
    "bounds",
    "cursors_of",
    "fill",
    "get",
    "keys_of",
    "marked",
    "our_error",
    "seek_below",
    "value_at",
]

BEFORE, KEY, BEHIND = b"j", b"k", b"l"
"""What LevelDB's keys begin with: ours with a byte of their own, so that two records enclose them."""
MARKER = struct.Struct(">Q")
"""The value of the first one: the number of the last operation when something was synced last."""


class Database(Protocol):
    def get(self, key: bytes, default: None, *, verify_checksums: bool) -> bytes | None: ...
    def raw_iterator(self, *, verify_checksums: bool) -> Cursor: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def write_batch(self, *, transaction: bool, sync: bool = False) -> Batch: ...
    def compact_range(self, *, start: bytes, stop: bytes) -> None: ...
    def get_property(self, name: bytes) -> bytes | None: ...
    def close(self) -> None: ...


class Batch(Protocol):
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def write(self) -> None: ...


class Cursor(Protocol):
    def seek(self, key: bytes) -> None: ...
    def seek_to_last(self) -> None: ...
    def valid(self) -> bool: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
    def key(self) -> bytes: ...
    def value(self) -> bytes: ...
    def item(self) -> tuple[bytes, bytes]: ...


def our_error(error: Exception, path: Path | None = None, *, writing: bool = False) -> QilbeeError:
    """What plyvel or the system raised, as ours. The only place that reads LevelDB's texts."""
    text = error.args[0].decode(errors="replace") if isinstance(error, plyvel.Error) and error.args else str(error)
    where = "" if path is None else f"{path}: "
    if isinstance(error, plyvel.CorruptionError):
        remedy = None
        if path is not None and not writing:
            remedy = 'restore a copy, or open it with what is left: open_store(path, recover="tail")'
        return CorruptRecordError(f"{where}{text}", remedy=remedy)
    if "No space left" in text or "quota exceeded" in text:
        return StorageFullError(f"{where}{text}")
    if text.startswith("IO error: lock "):
        return StoreLockedError(f"{where}another program has the database open ({text})")
    if "does not match existing comparator" in text:
        return FormatVersionError(f"{where}{text}")
    if "create_if_missing is false" in text:
        return CorruptRecordError(f"{where}the database is incomplete, its file CURRENT is missing")
    if writing:
        return OutcomeUnknownError(f"{where}{text}")
    return StorageError(f"{where}{text}")


def bounds(start: bytes, stop: bytes | None) -> tuple[bytes, bytes]:
    """A range of keys as one of LevelDB's."""
    return KEY + start, BEHIND if stop is None else KEY + stop


def marked(value: bytes | None) -> int | None:
    """The number in the marker; None in a database that has none yet."""
    return MARKER.unpack(value)[0] if value else None


def get(database: Database, key: bytes) -> bytes | None:
    try:
        return database.get(key, None, verify_checksums=True)
    except plyvel.Error as error:
        raise our_error(error) from error


def fill(batch: Batch, database: Database, operations: Sequence[Operation]) -> int:
    """Put ``operations`` into ``batch``, and say how many they are to LevelDB."""
    put, delete = batch.put, batch.delete
    count = len(operations)
    for index, operation in enumerate(operations):
        if isinstance(operation, Put):
            put(KEY + operation.key, operation.value)
        elif isinstance(operation, Delete):
            delete(KEY + operation.key)
        else:
            start, stop = bounds(operation.start, operation.stop)
            keys = set(keys_of(database, start, stop))
            keys.update(KEY + earlier.key for earlier in operations[:index] if isinstance(earlier, Put))
            deleted = [key for key in keys if start <= key < stop]
            for key in deleted:
                delete(key)
            count += len(deleted) - 1
    return count


def keys_of(database: Database, start: bytes, stop: bytes) -> Iterator[bytes]:
    try:
        cursor = database.raw_iterator(verify_checksums=True)
        cursor.seek(start)
        while (key := cursor.key()) < stop:
            yield key
            cursor.next()
    except plyvel.IteratorInvalidError:
        return
    except plyvel.Error as error:
        raise our_error(error) from error


def value_at(cursor: Cursor, key: bytes) -> bytes | None:
    cursor.seek(key)
    return cursor.value() if cursor.valid() and cursor.key() == key else None


def seek_below(cursor: Cursor, stop: bytes) -> None:
    """Go to the last key below ``stop``."""
    cursor.seek(stop)
    if cursor.valid():
        cursor.prev()
    else:
        cursor.seek_to_last()


def cursors_of(database: Database) -> list[object]:
    """The iterators of ``database`` that still live. Slow, but nothing else pays for it."""
    return [each for each in gc.get_referrers(database) if isinstance(each, plyvel._plyvel.RawIterator)]
