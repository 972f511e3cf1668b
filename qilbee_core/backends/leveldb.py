"""LevelDB, through plyvel: small and simple.

What the engine or its binding does not do by itself, and what is done about it here:

- Checksums are not verified on reads unless asked for: always asked for.
- A scan over a damaged block may end silently, and a reverse scan of exactly its first key finds nothing
  (``plyvel.Iterator``): only the raw iterator is used, which reports its status at every step.
- A snapshot can bring back what was deleted: :mod:`qilbee_core.backends._leveldb_views` has one without LevelDB's help.
- Closing the database while another thread is inside crashes the process: calls in flight are counted.
- ``sync=True`` makes the current log durable but not the one before it, which a full memtable may have
  left behind: :meth:`LevelDBBackend.sync` syncs every log itself. What a power cut leaves of logs that were
  not synced is cut back to a prefix (:mod:`qilbee_core.backends._leveldb_logs`).
- A database that has lost a log opens, and its last number hides it: every sync leaves a marker.
- A failed write may leave half a record in the log, behind which nothing would be found again: no handle
  writes again after a failure.
- A power cut while a database is created leaves one that never opens: it is created beside and renamed.
- A compaction that fails does not say so, and one that succeeds leaves deleted bytes: :meth:`LevelDBBackend.erase`.
- There are no range deletes: they are expanded, under the lock that all writes take.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import plyvel  # type: ignore[import-untyped]

from qilbee_core.backends._fork import ForkGuard
from qilbee_core.backends._leveldb_binding import (
    BEFORE,
    BEHIND,
    KEY,
    MARKER,
    Cursor,
    Database,
    bounds,
    cursors_of,
    fill,
    get,
    marked,
    our_error,
    seek_below,
)
from qilbee_core.backends._leveldb_logs import Logs, cut, examine, first_sequence, locked, logs_in
from qilbee_core.backends._leveldb_views import LevelDBSnapshot, Row, View, rows_of
from qilbee_core.batch import Put, WriteBatch
from qilbee_core.directory import DirectoryLock, check_writable, fsync_directory
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
)
from qilbee_core.interfaces import (
    BackendOptions,
    SingleProcess,
    SupportsCompaction,
    SupportsErase,
    SupportsNativeCompression,
    SupportsReopen,
    SupportsSequence,
    SupportsStats,
)

if TYPE_CHECKING:
    from pathlib import Path

    from qilbee_core.episode import JSON

__all__ = ["LevelDBBackend"]

_DEFAULTS = {"write_buffer_bytes": 16 << 20, "block_bytes": 4 << 10}
_fork_guard = ForkGuard("LevelDB")
_NATIVE_CODECS = frozenset({"snappy"})
_BLOOM_BITS_PER_KEY = 10
# What opening a database writes besides the pairs of its logs, with room to spare.
_SPARE_BYTES = 256 << 10
# A full memtable becomes a table of level 0, 1 or 2: the highest level that overlaps nothing below it.
_LEVELS_OF_NEW_TABLES = 3
_LEVEL_0_FILES_MAX = 12  # LevelDB then lets every write wait
_VIEW_CHECKS = 20
_VIEW_CHECK_INTERVAL_S = 0.05


class LevelDBBackend(
    SingleProcess,
    SupportsNativeCompression,
    SupportsCompaction,
    SupportsErase,
    SupportsReopen,
    SupportsSequence,
    SupportsStats,
):
    """LevelDB in ``options.path``, its own files in the subdirectory ``db``, every key with a ``k`` before it.

    ``options.engine`` may hold ``write_buffer_bytes`` (16 MiB) and ``block_bytes`` (4 KiB).
    ``options.wal`` is ignored: LevelDB always writes its log, which gives more than asked for.

    When the disk is full writes raise StorageFullError and reads go on; the first write after space
    has returned reopens the database, which ends the snapshots and scans of before. After any other
    failed write or sync the backend only reads, until it is reopened.
    """

    name = "leveldb"

    def __init__(self, options: BackendOptions) -> None:
        self._settings = _settings_of(options)
        self._may_open = options.may_open
        self._path = options.path.absolute()
        self._files = self._path / "db"
        # One entry for each call inside the database. To append and to pop is atomic and cheap; a lock is neither.
        self._calls: list[None] = []
        # Taken by everything that writes, so that what an Expect saw still holds when its batch is written.
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._view_lock = threading.Lock()
        self._views_wait = False
        self._database: Database | None = None
        self._for_writes: Database | None = None  # The same, while nothing stands against writing to it.
        self._closed = ""  # Why, once it is.
        self._disk_full = False
        self._read_only = False
        self._sequence = 0
        self._marker: int | None = None
        self._synced_sequence = 0
        self._synced_logs: list[Path] = []
        self._directory_lock = DirectoryLock(self._path, on_fork=self._abandon)
        try:
            _fork_guard.use()
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
            if self._may_open is not None:
                self._may_open(0, lambda _: None, damaged=False)
            database = self._load(fresh, create=True)
            with closing(database):
                first = database.write_batch(transaction=True, sync=True)
                first.put(BEFORE, MARKER.pack(2))
                first.put(BEHIND, b"")
                first.write()
            for file in fresh.iterdir():
                _sync_file(file)
            fsync_directory(fresh)
            fresh.rename(self._files)
            fsync_directory(self._path)
            fsync_directory(self._path.parent)
        except (plyvel.Error, OSError) as error:
            raise our_error(error, self._path) from error

    def _load(self, directory: Path, *, create: bool = False) -> Database:
        database: Database = plyvel.DB(
            os.fsencode(directory),
            create_if_missing=create,
            error_if_exists=create,
            paranoid_checks=True,
            bloom_filter_bits=_BLOOM_BITS_PER_KEY,
            **self._settings,
        )
        return database

    def _open(self) -> Database:
        """Open the database and learn the number of its last write."""
        try:
            self._mend_logs()
            try:
                database = self._load(self._files)
            except plyvel.CorruptionError:
                if not self._mend_logs(checksums=True):
                    raise
                database = self._load(self._files)
            try:
                # An empty batch takes no number, but its record in the new log says which one is next.
                database.write_batch(transaction=True).write()
                self._sequence = first_sequence(logs_in(self._files)[-1]) - 1
                self._marker = None
                with suppress(CorruptRecordError):  # Whoever reads there will be told.
                    self._marker = marked(get(database, BEFORE))
                    if get(database, BEHIND) is None:
                        raise FormatVersionError(f"{self._files} is a LevelDB database, but not one of this backend")
            except BaseException:
                database.close()
                raise
        except (plyvel.Error, OSError) as error:
            raise our_error(error, self._files) from error
        # Opening moved what the old logs held into tables, which LevelDB syncs. Without a marker it does not count.
        self._synced_sequence = self._sequence if self._marker == self._sequence else -1
        self._synced_logs = []
        self._disk_full = self._read_only = False
        self._database = self._for_writes = database
        return database

    def _mend_logs(self, *, checksums: bool = False) -> bool:
        """Cut the logs back to what LevelDB will read, where nothing is lost with it that matters; tell if it did."""
        with locked(self._files) as is_ours:
            logs = examine(self._files, checksums=checksums) if is_ours else None
            if logs is not None and logs.then != "end" and not checksums:
                logs = examine(self._files, checksums=True)  # what is cut off is gone: look for damage before it
            if logs is None:
                return False
            is_damaged, is_known = logs.then == "damage", False
            if self._may_open is not None:
                sequence = logs.sequence
                if logs.is_empty and (marker := marked(self._peek(logs, BEFORE))) is not None:
                    sequence = marker
                is_known = self._may_open(sequence, lambda key: self._peek(logs, KEY + key), damaged=logs.then != "end")
            if logs.then == "end" or (is_damaged and not is_known):
                return False
            cut(self._files, logs)
            return True

    def _peek(self, logs: Logs, key: bytes) -> bytes | None:
        """What the database would say if it were opened with ``logs`` alone: a copy of it is."""
        copy = self._path / "db.peek"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(mode=0o700)
        try:
            for file in self._files.iterdir():
                if file.suffix in {".ldb", ".sst"}:
                    try:
                        (copy / file.name).hardlink_to(file)  # Tables are never changed.
                    except OSError:
                        shutil.copyfile(file, copy / file.name)
                elif file.name != "LOCK" and file not in logs.newer:
                    shutil.copyfile(file, copy / file.name)
            if logs.log is not None:
                os.truncate(copy / logs.log.name, logs.bytes)
            with closing(self._load(copy)) as database:
                return get(database, key)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _take_database(self) -> Database | None:
        """The database, when no call is inside it and none can enter; the lock is held."""
        database = self._database
        self._database = self._for_writes = None
        while self._calls:
            time.sleep(0.0005)
        return database

    def _enter(self) -> Database:
        """The database, for a call that is now counted as inside it."""
        while True:
            self._calls.append(None)
            database = self._database
            if database is not None:
                return database
            self._calls.pop()
            if self._closed:
                raise StoreClosedError(f"{self._path} {self._closed}")
            with self._lock:
                # It was taken to be reopened; if that failed, it is tried again.
                if self._database is None and not self._closed:
                    self._open()

    def close(self) -> None:
        """Make everything durable and let go of the directory, once no call is in flight. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = "is closed"
            database = self._take_database()
            try:
                if self._synced_sequence < self._sequence and not self._read_only:
                    self._sync_logs()
                    self._synced_sequence = self._sequence
            finally:
                if database is not None:
                    database.close()
                self._directory_lock.release()

    def _abandon(self) -> None:
        """Let a forked child neither use nor destroy what its parent has open.

        LevelDB's destructors would wait for threads and locks that do not exist in the child.
        """
        database = self._database
        self._database = self._for_writes = None
        self._closed = f"was opened by process {os.getppid()}, before the fork"
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._views_wait = False
        if database is None:
            return
        for immortal in [database, *cursors_of(database)]:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(immortal))

    # Reading

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key``, or None."""
        database = self._enter()
        try:
            return database.get(KEY + key, None, verify_checksums=True)
        except plyvel.Error as error:
            raise our_error(error) from error
        finally:
            self._calls.pop()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key, in the order given."""
        database = self._enter()
        try:
            return [database.get(KEY + key, None, verify_checksums=True) for key in keys]
        except plyvel.Error as error:
            raise our_error(error) from error
        finally:
            self._calls.pop()

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        """The pairs of the range as they are now."""
        return rows_of(self, self._view(), *bounds(start, stop), reverse)

    def snapshot(self) -> LevelDBSnapshot:
        """This instant, to read from while writes go on."""
        return LevelDBSnapshot(self, self._view())

    def _view(self) -> View:
        if self._views_wait:
            with self._view_lock:
                pass
        database = self._enter()
        try:
            return View(database, database.raw_iterator(verify_checksums=True))
        finally:
            self._calls.pop()

    def _enter_view(self, view: View) -> Cursor:
        """The cursor of ``view``, for a call that is now counted as inside the database."""
        if self._enter() is not view.database:
            self._calls.pop()
            raise StoreClosedError(f"{self._path} was reopened after this view of it was made", remedy="make another")
        return view.cursor

    # Writing

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` whole, or raise and apply nothing."""
        operations = batch.operations
        with self._lock:
            database = self._for_writes or self._writable()
            for expect in batch.expects:
                if get(database, KEY + expect.key) != expect.value:
                    raise ConflictError(f"key {expect.key!r} does not hold what was expected")
            if not operations:
                return
            try:
                if len(operations) == 1 and isinstance(only := operations[0], Put):
                    database.put(KEY + only.key, only.value)  # A third faster than a batch of one.
                    self._sequence += 1
                else:
                    engine_batch = database.write_batch(transaction=True)
                    count = fill(engine_batch, database, operations)
                    engine_batch.write()
                    self._sequence += count
            except plyvel.Error as error:
                raise self._write_failed(error) from error

    def _write_failed(self, error: Exception) -> QilbeeError:
        ours = our_error(error, self._path, writing=True)
        self._for_writes = None
        self._disk_full = isinstance(ours, StorageFullError)
        self._read_only = not self._disk_full
        return ours

    def _writable(self) -> Database:
        if self._closed:
            raise StoreClosedError(f"{self._path} {self._closed}")
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

    def _require_space(self) -> None:
        """Raise StorageFullError unless reopening, which turns logs into tables, is going to succeed."""
        check_writable(self._path, _SPARE_BYTES + sum(log.stat().st_size for log in logs_in(self._files)))

    def reopen(self) -> None:
        """Open the files anew, which turns the logs into tables. A view of before is closed."""
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"{self._path} {self._closed}")
            self._require_space()
            if (database := self._take_database()) is not None:
                database.close()
            self._open()

    def sync(self) -> None:
        """Return once every earlier write survives a power cut. One fsync serves all who wait."""
        written = self._sequence
        if self._closed:
            raise StoreClosedError(f"{self._path} {self._closed}")
        with self._sync_lock:
            if self._synced_sequence >= written:
                return
            # Not as a call that is inside yet: whoever waits for those to end holds the lock that this takes.
            covered = self._write_marker()
            try:
                self._enter()
            except StoreClosedError:
                if self._synced_sequence >= written:  # by closing
                    return
                raise
            try:
                if self._read_only:
                    raise OutcomeUnknownError(f"{self._path} has been read-only since a write failed")
                self._sync_logs()
                self._synced_sequence = covered
            finally:
                self._calls.pop()

    def _write_marker(self) -> int:
        """Write down the number of this write, behind all that the sync shall cover, and return it.

        The manifest names a last number too, but of the time when a table was finished: some of what it counts is in
        a newer log alone. Where that is missing, only the marker tells how far the tables reach.
        """
        with self._lock:
            if (database := self._for_writes) is None:
                return self._sequence
            sequence = self._sequence + 1
            try:
                database.put(BEFORE, MARKER.pack(sequence))
            except plyvel.Error as error:
                raise self._write_failed(error) from error
            self._sequence = self._marker = sequence
            return sequence

    def _sync_logs(self) -> None:
        try:
            logs = logs_in(self._files)
            for log in logs:  # Oldest first: what a power cut leaves is a prefix.
                # A missing one has become a table, which LevelDB synced before it removed the log.
                with suppress(FileNotFoundError):
                    _sync_file(log)
            if logs != self._synced_logs:
                fsync_directory(self._files)
                self._synced_logs = logs
        except OSError as error:
            # What the kernel could not write it forgets: a second fsync of the same pages would lie.
            self._read_only = True
            self._for_writes = None
            raise OutcomeUnknownError(f"cannot sync {self._files}: {error.strerror}") from error

    def sequence(self) -> int:
        """LevelDB's own number of the last operation, without the marker behind it.

        While nothing can be written, and so no marker, it is that of the last marker: an opening may find no more.
        """
        if self._closed:
            raise StoreClosedError(f"{self._path} {self._closed}")
        if self._for_writes is None:
            return min(self._marker or 0, self._sequence)
        return self._sequence - (self._sequence == self._marker)

    def stats(self) -> Mapping[str, JSON]:
        """Files and memory, in bytes and numbers."""
        database = self._enter()
        try:
            sizes: dict[str, int] = {}
            for entry in os.scandir(self._files):
                with suppress(FileNotFoundError):  # Compacted away this moment.
                    sizes[entry.name] = entry.stat().st_size
            memory = database.get_property(b"leveldb.approximate-memory-usage")
            files = (database.get_property(b"leveldb.num-files-at-level%d" % level) for level in range(7))
            level_files = [int(number or 0) for number in files]
            return {
                "disk_bytes": sum(sizes.values()),
                "log_bytes": sum(size for name, size in sizes.items() if name.endswith(".log")),
                "memory_bytes": int(memory or 0),
                "level_files": [*level_files],
                "writes_stopped": level_files[0] >= _LEVEL_0_FILES_MAX,
                "sequence": self.sequence(),
            }
        finally:
            self._calls.pop()

    # Giving space back

    def compact(self, start: bytes = b"", stop: bytes | None = None) -> None:
        """Rewrite the range so that what was deleted takes no more space."""
        self._compact(*bounds(start, stop))

    def _compact(self, first: bytes, last: bytes) -> None:
        database = self._enter()
        try:
            database.compact_range(start=first, stop=last)
        finally:
            self._calls.pop()
        with self._lock:
            # A compaction that failed says so only to the next write.
            try:
                self._writable().write_batch(transaction=True).write()
            except plyvel.Error as error:
                raise self._write_failed(error) from error

    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Return once no file of this engine holds bytes that were deleted from these ranges.

        Raises StorageError while a snapshot or a scan is open, which keeps the old files. It reopens the
        database, for which all calls wait a moment.
        """
        for below, above in self._surroundings_of(ranges):
            self._rewrite(below, above)
        # The list of tables names their first and last keys, of those long gone too, until it is written anew.
        self._open_anew()
        (self._files / "LOG.old").unlink(missing_ok=True)

    def _surroundings_of(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> list[tuple[bytes, bytes]]:
        """The records below and above each range, and one pair where two would overlap."""
        found: list[tuple[bytes, bytes]] = []
        database = self._enter()
        try:
            cursor = database.raw_iterator(verify_checksums=True)
            for start, stop in sorted(bounds(*each) for each in ranges):
                if start >= stop:
                    continue
                seek_below(cursor, start)
                below = cursor.key()
                cursor.seek(stop)
                above = cursor.key()
                if found and below <= found[-1][1]:
                    lower, upper = found.pop()
                    below, above = lower, max(upper, above)
                found.append((below, above))
        except plyvel.Error as error:
            raise our_error(error) from error
        finally:
            self._calls.pop()
        return found

    def _rewrite(self, below: bytes, above: bytes) -> None:
        """Rewrite every table that may hold deleted bytes between two records.

        LevelDB rewrites a table only when one above it overlaps it, and a table can hold pairs and their
        deletions together with nothing above. So the two records are written again as they are: a table
        with both overlaps all that lies between them. The first pass moves everything there to the lowest
        level it reaches. In the second the two sink to it alone, through every level, and nothing is left out.
        """
        for _ in range(2):
            for _ in range(_LEVELS_OF_NEW_TABLES):  # Each new table is put one level above the last.
                self._write_again(below, above)
                self._compact(b"", b"")  # Nothing but the memtable.
            self._compact(below, above)

    def _write_again(self, *keys: bytes) -> None:
        with self._lock:
            database = self._writable()
            batch = database.write_batch(transaction=True)
            for key in keys:
                value = get(database, key)
                if value is None:  # Deleted meanwhile.
                    batch.delete(key)
                else:
                    batch.put(key, value)
            try:
                batch.write()
            except plyvel.Error as error:
                raise self._write_failed(error) from error
            self._sequence += len(keys)

    def _open_anew(self) -> None:
        """Reopen the database once nobody reads from a snapshot or a scan, or raise StorageError.

        New ones wait meanwhile, so that others come to an end.
        """
        with self._view_lock:
            self._views_wait = True
            try:
                for _ in range(_VIEW_CHECKS):
                    with self._lock:
                        database = self._writable()
                        self._take_database()
                        if not cursors_of(database):
                            database.close()
                            self._open()
                            return
                        self._database = self._for_writes = database
                    time.sleep(_VIEW_CHECK_INTERVAL_S)
            finally:
                self._views_wait = False
        raise StorageError(
            f"a snapshot or a scan of {self._path} is open and keeps what was deleted",
            remedy="close it, then erase again",
        )


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


def _sync_file(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fdatasync(handle)
    finally:
        os.close(handle)
