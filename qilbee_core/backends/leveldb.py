"""LevelDB, through plyvel: small, simple, and natively concurrent.

What the engine or its binding does not do by itself, and what is done about it here:

- Checksums are not verified on reads unless asked for: always asked for.
- A scan over a damaged block may end silently, and a reverse scan of exactly its first key finds nothing
  (``plyvel.Iterator``): only the raw iterator is used, which reports its status at every step.
- Closing the database while another thread is inside crashes the process: calls in flight are counted.
- ``sync=True`` makes the current log durable but not the one before it, which a full memtable may have
  left behind: :meth:`LevelDBBackend.sync` syncs every log itself.
- A failed write may leave half a record in the log, behind which nothing would be found again: no handle
  writes again after a failure.
- A power cut while a database is created leaves one that never opens: it is created beside and renamed.
- There are no range deletes: they are expanded, under the lock that all writes take.
"""

from __future__ import annotations

import ctypes
import difflib
import gc
import os
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Protocol

import plyvel  # type: ignore[import-untyped]

from qilbee_core.batch import Delete, Operation, Put, WriteBatch
from qilbee_core.directory import DirectoryLock, fsync_directory
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    FormatVersionError,
    OutcomeUnknownError,
    QilbeeError,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
)
from qilbee_core.interfaces import (
    BackendOptions,
    SingleProcess,
    SupportsCompaction,
    SupportsErase,
    SupportsNativeCompression,
    SupportsSequence,
    SupportsStats,
)

if TYPE_CHECKING:
    from pathlib import Path

    from qilbee_core.episode import JSON

__all__ = ["LevelDBBackend"]

_DEFAULTS = {"write_buffer_bytes": 16 << 20, "block_bytes": 4 << 10}
_NATIVE_CODECS = frozenset({"snappy"})
_BLOOM_BITS_PER_KEY = 10
# CompactRange has no word for "to the end" in plyvel, so a key behind all that anybody would write stands for it.
_BEHIND_EVERY_KEY = b"\xff" * 256
_SPARE_BYTES = 1 << 20
# A full memtable becomes a table of level 0, 1 or 2: the highest level that overlaps nothing below it.
_LEVELS_OF_NEW_TABLES = 3
_VIEW_CHECKS = 20
_VIEW_CHECK_INTERVAL_S = 0.05


class _Source(Protocol):
    """What plyvel's database and snapshot have in common, as far as it is used here."""

    def get(self, key: bytes, default: None, *, verify_checksums: bool) -> bytes | None: ...
    def raw_iterator(self, *, verify_checksums: bool) -> _Cursor: ...


class _Database(_Source, Protocol):
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def write_batch(self, *, transaction: bool, sync: bool = False) -> _Batch: ...
    def snapshot(self) -> _Source: ...
    def compact_range(self, *, start: bytes, stop: bytes) -> None: ...
    def get_property(self, name: bytes) -> bytes | None: ...
    def close(self) -> None: ...


class _Batch(Protocol):
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def write(self) -> None: ...


class _Cursor(Protocol):
    def seek(self, key: bytes) -> None: ...
    def seek_to_last(self) -> None: ...
    def valid(self) -> bool: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
    def key(self) -> bytes: ...
    def item(self) -> tuple[bytes, bytes]: ...


class _Reads(ABC):
    """What the backend and its snapshots share: every read is a call in flight from ``_enter`` to ``_calls.pop``."""

    _backend: LevelDBBackend
    # One entry for each call in flight. Appending and popping are atomic and cheap; a lock is neither.
    _calls: list[None]

    @abstractmethod
    def _enter(self) -> _Source:
        """Count a call in and give what it reads from, or raise StoreClosedError."""

    @abstractmethod
    def _database_of(self, source: _Source) -> _Source:
        """The database that ``source`` belongs to."""

    def get(self, key: bytes) -> bytes | None:
        source = self._enter()
        try:
            return source.get(key, None, verify_checksums=True)
        except plyvel.Error as error:
            raise _our_error(error) from error
        finally:
            # The last call to use a closed snapshot releases it, and must do so while it counts.
            del source
            self._calls.pop()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        source = self._enter()
        try:
            return [source.get(key, None, verify_checksums=True) for key in keys]
        except plyvel.Error as error:
            raise _our_error(error) from error
        finally:
            del source
            self._calls.pop()

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        source = self._enter()
        try:
            # LevelDB fixes an iterator's view when it makes it, so it is made here and not at the first row.
            cursor = source.raw_iterator(verify_checksums=True)
            return self._rows(self._database_of(source), cursor, start, stop, reverse)
        finally:
            del source
            self._calls.pop()

    def _rows(
        self, database: _Source, cursor: _Cursor, start: bytes, stop: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        backend, calls = self._backend, self._calls
        move: Callable[[], None] = partial(_seek_below, cursor, stop) if reverse else partial(cursor.seek, start)
        while True:
            calls.append(None)
            if backend._database is not database:
                calls.pop()
                if backend._enter() is not database:
                    calls.pop()
                    raise backend._closed_error("scan")
            try:
                move()
                key, value = cursor.item()
            except plyvel.IteratorInvalidError:
                return
            except plyvel.Error as error:
                raise _our_error(error) from error
            finally:
                calls.pop()
            if key < start if reverse else stop is not None and key >= stop:
                return
            yield key, value
            move = cursor.prev if reverse else cursor.next


class LevelDBBackend(
    _Reads,
    SingleProcess,
    SupportsNativeCompression,
    SupportsCompaction,
    SupportsErase,
    SupportsSequence,
    SupportsStats,
):
    """LevelDB in ``options.path``, its own files in the subdirectory ``db``.

    ``options.engine`` may hold ``write_buffer_bytes`` (16 MiB) and ``block_bytes`` (4 KiB).
    ``options.wal`` is ignored: LevelDB always writes its log, which gives more than asked for.

    When the disk is full writes raise StorageFullError and reads go on; the first write after space
    has returned reopens the database, which ends the snapshots and scans of before. After any other
    failed write or sync the backend only reads, until it is opened again.
    """

    name = "leveldb"

    def __init__(self, options: BackendOptions) -> None:
        self._settings = _settings_of(options)
        self._path = options.path
        self._files = options.path / "db"
        self._backend = self
        self._calls = []
        # Taken by everything that writes, so that what an Expect saw still holds when its batch is written.
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._database: _Database | None = None
        self._closed = ""  # Why, once it is.
        self._disk_full = False
        self._read_only = False
        self._sequence = 0
        self._synced_sequence = 0
        self._synced_logs: list[str] = []
        self._orphans: list[_Source] = []
        self._directory_lock = DirectoryLock(options.path, on_fork=self._abandon)
        try:
            self._create_if_missing()
            self._open()
        except BaseException:
            self._directory_lock.release()
            raise

    @property
    def native_codecs(self) -> frozenset[str]:
        """The only one LevelDB has."""
        return _NATIVE_CODECS

    # Opening and closing

    def _create_if_missing(self) -> None:
        fresh = self._path / "db.new"
        try:
            if fresh.exists():
                shutil.rmtree(fresh)
            if self._files.exists():
                return
            database = self._load(fresh, create=True)
            database.write_batch(transaction=True, sync=True).write()
            database.close()
            for file in fresh.iterdir():
                _fsync(file)
            fsync_directory(fresh)
            fresh.rename(self._files)
            fsync_directory(self._path)
            fsync_directory(self._path.parent)
        except (plyvel.Error, OSError) as error:
            raise _our_error(error, self._path) from error

    def _load(self, directory: Path, *, create: bool = False) -> _Database:
        database: _Database = plyvel.DB(
            os.fsencode(directory),
            create_if_missing=create,
            error_if_exists=create,
            paranoid_checks=True,
            bloom_filter_bits=_BLOOM_BITS_PER_KEY,
            **self._settings,
        )
        return database

    def _open(self) -> _Database:
        """Open the database and learn the number of its last write."""
        try:
            database = self._load(self._files)
            # An empty batch takes no number, but its record in the new log says which one is next.
            database.write_batch(transaction=True).write()
            with (self._files / _logs_in(self._files)[-1]).open("rb") as log:
                header = log.read(15)
        except (plyvel.Error, OSError) as error:
            raise _our_error(error, self._files) from error
        self._sequence = int.from_bytes(header[7:15], "little") - 1
        # Opening moved what the old logs held into tables, which LevelDB syncs.
        self._synced_sequence = self._sequence
        self._synced_logs = []
        self._disk_full = False
        self._database = database
        return database

    def _take_database(self) -> _Database | None:
        """The database, when no call is inside it and none can enter; the lock is held."""
        database, self._database = self._database, None
        while self._calls:
            time.sleep(0.0005)
        return database

    def _enter(self) -> _Database:
        while True:
            self._calls.append(None)
            database = self._database
            if database is not None:
                return database
            self._calls.pop()
            if self._closed:
                raise self._closed_error()
            with self._lock:
                # It was taken to be reopened; if that failed, it is tried again.
                if self._database is None and not self._closed:
                    self._open()

    def _database_of(self, source: _Source) -> _Source:
        return source

    def _closed_error(self, what: str = "") -> StoreClosedError:
        if self._closed:
            return StoreClosedError(f"{self._path} {self._closed}")
        return StoreClosedError(f"the {what} ended when {self._path} was reopened", remedy=f"make another {what}")

    def close(self) -> None:
        """Make everything durable and let go of the directory, once no call is in flight. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = "is closed"
            database = self._take_database()
            try:
                if not self._read_only:
                    self._sync_logs()
            finally:
                if database is not None:
                    database.close()
                self._directory_lock.release()

    def _abandon(self) -> None:
        """Let a forked child neither use nor destroy what its parent has open.

        LevelDB's destructors would wait for threads and locks that do not exist in the child.
        """
        database, self._database = self._database, None
        self._closed = f"was opened by process {os.getppid()}, before the fork"
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        for immortal in [database, *_views_of(database)]:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(immortal))

    # Writing

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` whole, or raise and apply nothing."""
        with self._lock:
            database = self._writable()
            try:
                for expect in batch.expects:
                    if database.get(expect.key, None, verify_checksums=True) != expect.value:
                        raise ConflictError(f"key {expect.key!r} does not hold what was expected")
                operations = _without_ranges(database, batch.operations)
            except plyvel.Error as error:
                raise _our_error(error) from error
            if operations:
                self._write(database, operations)

    def _write(self, database: _Database, operations: Sequence[Put | Delete]) -> None:
        try:
            _apply(database, operations)
        except plyvel.Error as error:
            raise self._write_failed(error) from error
        self._sequence += len(operations)

    def _writable(self) -> _Database:
        if self._closed:
            raise self._closed_error()
        if self._read_only:
            raise StorageError(
                f"{self._path} has been read-only since a write failed",
                remedy="close it and open it again, when the disk is sound",
            )
        if self._disk_full:
            self._require_space()
            if (full := self._take_database()) is not None:
                full.close()
        return self._database or self._open()

    def _write_failed(self, error: Exception) -> QilbeeError:
        ours = _our_error(error, self._path, writing=True)
        self._disk_full = isinstance(ours, StorageFullError)
        self._read_only = not self._disk_full
        return ours

    def _require_space(self) -> None:
        """Raise StorageFullError unless reopening, which turns logs into tables, is going to succeed."""
        needed = _SPARE_BYTES + sum((self._files / name).stat().st_size for name in _logs_in(self._files))
        probe = self._path / "space.probe"
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, needed)
        except OSError as error:
            raise _our_error(error, self._path) from error
        finally:
            probe.unlink(missing_ok=True)

    def sync(self) -> None:
        """Return once every earlier write survives a power cut. One fsync serves all who wait."""
        written = self._sequence
        self._enter()
        try:
            with self._sync_lock:
                if self._synced_sequence >= written:
                    return
                if self._read_only:
                    raise OutcomeUnknownError(f"{self._path} has been read-only since a write failed")
                written = self._sequence
                self._sync_logs()
                self._synced_sequence = written
        finally:
            self._calls.pop()

    def _sync_logs(self) -> None:
        try:
            logs = _logs_in(self._files)
            for name in logs:  # Oldest first: what a power cut leaves is a prefix.
                try:
                    _fsync(self._files / name)
                except FileNotFoundError:
                    continue  # Its pairs have moved to a table, which LevelDB synced before it removed the log.
            if logs != self._synced_logs:
                fsync_directory(self._files)
                self._synced_logs = logs
        except OSError as error:
            # What the kernel could not write it forgets: a second fsync of the same pages would lie.
            self._read_only = True
            raise OutcomeUnknownError(f"cannot sync {self._files}: {error.strerror}") from error

    # Views

    def snapshot(self) -> LevelDBSnapshot:
        """This instant, to read from while writes go on."""
        database = self._enter()
        try:
            return LevelDBSnapshot(self, database)
        finally:
            self._calls.pop()

    def sequence(self) -> int:
        """LevelDB's own number of the last operation."""
        if self._closed:
            raise self._closed_error()
        return self._sequence

    def stats(self) -> Mapping[str, JSON]:
        """Files and memory, in bytes and numbers."""
        database = self._enter()
        try:
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self._files)}
            memory = database.get_property(b"leveldb.approximate-memory-usage")
            level_files = [database.get_property(b"leveldb.num-files-at-level%d" % level) for level in range(7)]
            return {
                "disk_bytes": sum(sizes.values()),
                "log_bytes": sum(size for name, size in sizes.items() if name.endswith(".log")),
                "memory_bytes": int(memory or 0),
                "level_files": [int(files or 0) for files in level_files],
                "sequence": self._sequence,
            }
        finally:
            self._calls.pop()

    # Giving space back

    def compact(self, start: bytes = b"", stop: bytes | None = None) -> None:
        """Rewrite the range so that what was deleted takes no more space."""
        database = self._enter()
        try:
            database.compact_range(start=start, stop=_BEHIND_EVERY_KEY if stop is None else stop)
        finally:
            self._calls.pop()
        with self._lock:
            self._write(self._writable(), [])  # A compaction that failed says so only to the next write.

    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Return once no file of this engine holds bytes that were deleted from these ranges.

        Raises StorageError while a snapshot or a scan is open, which would keep them. It reopens the
        database, for which all calls wait a moment.
        """
        self._open_anew()
        for start, stop in ranges:
            self._rewrite(start, stop)
        # The list of tables names their first and last keys, of those long gone too, until it is written anew.
        self._open_anew()
        (self._files / "LOG.old").unlink(missing_ok=True)

    def _rewrite(self, start: bytes, stop: bytes | None) -> None:
        """Rewrite every table that may hold deleted bytes of the range.

        LevelDB rewrites a table only when one above it overlaps it, and a table can hold pairs and their
        deletions together with nothing above. So the range's living neighbours are written again: tables
        with these two keys overlap all that lies between them. The first pass moves the whole range to
        the lowest level it reaches. In the second the two keys sink to it alone, through every level,
        and nothing there is left out.
        """
        for _ in range(2):
            # What is written after a snapshot is not dropped on the way down while it is open.
            with closing(self.snapshot()):
                for _ in range(_LEVELS_OF_NEW_TABLES):  # Each new table is put one level above the last.
                    with self._lock:
                        database = self._writable()
                        below = next(self.scan(stop=start, reverse=True), (b"",))[0]
                        above = _BEHIND_EVERY_KEY if stop is None else next(self.scan(stop), (_BEHIND_EVERY_KEY,))[0]
                        self._write(database, [self._as_it_is(below), self._as_it_is(above)])
                    self.compact(stop=b"")  # Nothing but the memtable.
                self.compact(below, above)

    def _as_it_is(self, key: bytes) -> Put | Delete:
        value = self.get(key)
        return Delete(key) if value is None else Put(key, value)

    def _open_anew(self) -> None:
        """Reopen the database, or raise StorageError while somebody reads from a snapshot or a scan."""
        for _ in range(_VIEW_CHECKS):
            with self._lock:
                database = self._writable()
                self._take_database()
                self._orphans.clear()
                if not _views_of(database):
                    database.close()
                    self._open()
                    return
                self._database = database
            time.sleep(_VIEW_CHECK_INTERVAL_S)
        raise StorageError(
            f"a snapshot or a scan of {self._path} is open and keeps what was deleted",
            remedy="close it, then erase again",
        )


class LevelDBSnapshot(_Reads):
    """One instant of a :class:`LevelDBBackend`."""

    def __init__(self, backend: LevelDBBackend, database: _Database) -> None:
        self._backend = backend
        self._calls = backend._calls
        self._database = database
        self._snapshot: _Source | None = database.snapshot()

    def _enter(self) -> _Source:
        database = self._backend._enter()
        snapshot = self._snapshot
        if snapshot is None or database is not self._database:
            self._calls.pop()
            if snapshot is None:
                raise StoreClosedError("the snapshot is closed", remedy="take another one")
            raise self._backend._closed_error("snapshot")
        return snapshot

    def _database_of(self, source: _Source) -> _Source:
        del source
        return self._database

    def close(self) -> None:
        """Let go of the instant. Idempotent."""
        self._calls.append(None)
        if self._snapshot is not None and self._backend._database is not self._database:
            # Its database is just being closed, which nothing may be released into.
            self._backend._orphans.append(self._snapshot)
        # Otherwise the last call that reads from it lets go of it.
        self._snapshot = None
        self._calls.pop()

    def __del__(self) -> None:
        self.close()


def _our_error(error: Exception, path: Path | None = None, *, writing: bool = False) -> QilbeeError:
    """What plyvel or the system raised, as ours. The only place that reads LevelDB's texts."""
    text = str(error)
    where = "" if path is None else f"{path}: "
    if isinstance(error, plyvel.CorruptionError):
        return CorruptRecordError(f"{where}{text}")
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


def _settings_of(options: BackendOptions) -> dict[str, object]:
    for name, value in options.engine.items():
        if name not in _DEFAULTS:
            nearest = difflib.get_close_matches(name, _DEFAULTS, 1, 0)
            raise SettingsError(f"LevelDB has no setting {name!r}", remedy=f"did you mean {nearest[0]!r}?")
        if type(value) is not int or value < 1:
            raise SettingsError(f"LevelDB's {name} is a number of bytes, not {value!r}")
    engine = {**_DEFAULTS, **options.engine}
    return {
        "compression": options.compression if options.compression in _NATIVE_CODECS else None,
        "lru_cache_size": options.cache_bytes,
        "write_buffer_size": engine["write_buffer_bytes"],
        "block_size": engine["block_bytes"],
    }


def _apply(database: _Database, operations: Sequence[Put | Delete]) -> None:
    if len(operations) == 1 and isinstance(operations[0], Put):
        database.put(operations[0].key, operations[0].value)  # A third faster than a batch of one.
        return
    batch = database.write_batch(transaction=True)
    for operation in operations:
        if isinstance(operation, Put):
            batch.put(operation.key, operation.value)
        else:
            batch.delete(operation.key)
    batch.write()


def _without_ranges(database: _Database, operations: Sequence[Operation]) -> Sequence[Put | Delete]:
    """The same operations, with a Delete for each key that a DeleteRange would find."""
    expanded: list[Put | Delete] = []
    for operation in operations:
        if isinstance(operation, Put | Delete):
            expanded.append(operation)
            continue
        start, stop = operation.start, operation.stop
        put_before = {put.key for put in expanded if isinstance(put, Put) and start <= put.key < stop}
        expanded.extend(map(Delete, put_before.union(_keys_of(database, start, stop))))
    return expanded


def _keys_of(database: _Database, start: bytes, stop: bytes) -> Iterator[bytes]:
    cursor = database.raw_iterator(verify_checksums=True)
    cursor.seek(start)
    while cursor.valid() and (key := cursor.key()) < stop:
        yield key
        cursor.next()


def _seek_below(cursor: _Cursor, stop: bytes | None) -> None:
    """Go to the last key below ``stop``."""
    if stop is not None:
        cursor.seek(stop)
        if cursor.valid():
            cursor.prev()
            return
    cursor.seek_to_last()


def _views_of(database: _Database | None) -> list[object]:
    """The iterators and snapshots of ``database`` that still live. Slow, but nothing else pays for it."""
    kinds = (plyvel._plyvel.RawIterator, plyvel._plyvel.Snapshot)
    return [view for view in gc.get_referrers(database) if isinstance(view, kinds)]


def _logs_in(directory: Path) -> list[str]:
    """The names of the write-ahead logs, oldest first."""
    return sorted((name for name in os.listdir(directory) if name.endswith(".log")), key=lambda name: int(name[:-4]))


def _fsync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
