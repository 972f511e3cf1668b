"""RocksDB through rocksdict: the default engine.

What is unusual here answers a measured trap of the binding. Two of them give the class its shape:

- A write with ``sync`` would hold the GIL, and with it the process, for the time of the fsync. Writes never sync;
  :meth:`RocksDBBackend.sync` does, for all of them together and without the GIL.
- ``flush``, ``flush_wal``, ``compact_range`` and the get of a list let go of the GIL, and the database cannot be closed
  while one of them runs. So they run in :meth:`RocksDBBackend._outside_gil`, which ``close`` waits for. Everything
  else holds the GIL and is never seen half-way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Condition, Event, Lock
from typing import NoReturn, TypeVar, cast
from weakref import ref

from rocksdict import Rdict
from rocksdict import WriteBatch as RawBatch

from qilbee_core.backends._fork import ForkGuard
from qilbee_core.backends._rocksdb_errors import Gone, is_stall, reraise
from qilbee_core.backends._rocksdb_files import checkpoint, compact, no_automatic_compaction, obsolete_files
from qilbee_core.backends._rocksdb_fork import leak
from qilbee_core.backends._rocksdb_options import CODECS, engine_settings, rocksdb_options, write_options
from qilbee_core.backends._rocksdb_read_only import open_read_only
from qilbee_core.backends._rocksdb_recovery import recovery_mode
from qilbee_core.backends._rocksdb_views import SharedView, View
from qilbee_core.batch import Delete, Expect, Operation, Put, WriteBatch
from qilbee_core.directory import DirectoryLock, ForkWatch, check_writable, fsync_directory
from qilbee_core.episode import JSON
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidError,
    OutcomeUnknownError,
    QilbeeError,
    ReadOnlyError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    WriteStallError,
)
from qilbee_core.interfaces import BackendOptions, SingleProcess, Snapshot
from qilbee_core.patience import patiently

__all__ = ["RocksDBBackend"]

_fork_guard = ForkGuard("RocksDB")

_DATABASE_NAME = "db"
_SPARE_BYTES = 256 << 10  # what an opening writes besides what the logs hold, with room to spare
_LIST_GET_KEYS_MIN = 64  # a shorter list is as fast one by one, and then need not wait to get the GIL back
_DELETION_SECONDS_MAX = 30.0
_VIEW_SECONDS_MAX = 0.5  # a scan in another thread ends within that; a snapshot does not

_STATS = {
    "keys_estimate": "estimate-num-keys",
    "live_data_bytes": "estimate-live-data-size",
    "sst_bytes": "total-sst-files-size",
    "memtable_bytes": "cur-size-all-mem-tables",
    "block_cache_bytes": "block-cache-usage",
    "block_cache_capacity_bytes": "block-cache-capacity",
    "pending_compaction_bytes": "estimate-pending-compaction-bytes",
    "running_compactions": "num-running-compactions",
    "running_flushes": "num-running-flushes",
    "background_errors": "background-errors",
    "delayed_write_bytes_per_second": "actual-delayed-write-rate",
    "writes_stopped": "is-write-stopped",
}

_V = TypeVar("_V", bound=View)


class _ReopeningError(StorageError):
    """The files are being opened again; reads wait for it."""


class RocksDBBackend(SingleProcess):
    """A RocksDB database in ``options.path / "db"``, for one process at a time.

    ``options.engine`` may hold ``write_buffer_bytes``, ``block_bytes`` and ``background_jobs``. With ``wal=False``
    a write survives nothing until the next :meth:`sync`, which then writes a file of tables.
    """

    name = "rocksdb"
    native_codecs = CODECS

    def __init__(self, options: BackendOptions) -> None:
        settings = engine_settings(options)
        self._path = options.path.absolute()  # for RocksDB makes new files all the time, wherever we are then
        self._options, self._settings = options, settings
        self._wal = options.wal
        self._write_buffer_bytes = settings.write_buffer_bytes
        self._check_bytes = min(1 << 20, settings.write_buffer_bytes // 8)
        self._closed = False
        self._views: set[ref[View]] = set()
        self._new_locks()
        self._gone(StoreClosedError, f"{self._path} is not open yet")

        directory = self._path / _DATABASE_NAME
        missing = [each for each in (directory, *directory.parents) if not each.exists()]
        self._directory_lock = (
            ForkWatch(self._forked) if options.read_only else DirectoryLock(self._path, on_fork=self._forked)
        )
        try:
            _fork_guard.use()
            if not options.read_only:
                directory.mkdir(mode=0o700, exist_ok=True)
                for each in missing:
                    fsync_directory(each.parent)
            self._open(directory)
        except BaseException as error:  # also Ctrl-C
            self._directory_lock.release()
            if isinstance(error, Exception):
                reraise(error)
            raise

    def _open(self, directory: Path) -> None:
        engine = rocksdb_options(self._options, self._settings)
        mode = partial(recovery_mode, options=self._options, settings=self._settings)
        try:
            if self._options.read_only:
                database = open_read_only(directory, engine, mode)
            else:
                engine.set_wal_recovery_mode(mode(directory))
                # The options a second time, by column family: an existing database would keep those it was made with.
                database = Rdict(str(directory), engine, column_families={"default": engine})
        except Exception as error:
            if "Corruption" in str(error):
                raise CorruptRecordError(
                    f"{directory} does not open: {error}",
                    remedy='restore a copy, or open it with what is left: open_store(path, recover="tail")',
                ) from error
            reraise(error)
        database.set_write_options(write_options(self._options))
        self._unchecked_bytes = 0
        self._flushers = 0
        self._full = False
        self._failure: str | None = None
        # What the old logs held is in tables now, which RocksDB syncs.
        self._synced_sequence = database.latest_sequence_number()
        self._database = database
        self._write_raw: Callable[[RawBatch], None] = database.write
        if self._options.read_only:
            self._write_raw = Gone(ReadOnlyError, f"{self._path} was opened with read_only=True")

    def _new_locks(self) -> None:
        self._close_lock = Lock()
        self._write_lock = Lock()
        self._sync_lock = Lock()
        self._erase_lock = Lock()
        self._reopened = Event()
        self._reopened.set()
        self._outside = Condition(Lock())
        self._outside_count = 0

    # Reading

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key``, or None."""
        try:
            value: bytes | None = self._database.get(key)
        except Exception as error:
            if self._is_open_again(error):
                return self.get(key)
            reraise(error)
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key; a long list is read without the GIL."""
        try:
            if len(keys) < _LIST_GET_KEYS_MIN:
                get = self._database.get
                return [get(key) for key in keys]
            with self._outside_gil() as database:
                return cast("list[bytes | None]", database.get(list(keys)))
        except Exception as error:
            if self._is_open_again(error):
                return self.get_many(keys)
            reraise(error)

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of the range as they are now. A damaged block raises where it is reached."""
        return self._opened(View).rows(start, stop, reverse)

    def snapshot(self) -> Snapshot:
        """This instant. Files that it shows stay on disk until it is closed."""
        return self._opened(SharedView)

    def _opened(self, kind: type[_V]) -> _V:
        view = kind()
        # close() must know of the view before there is an iterator in it, or it could miss the iterator.
        self._views.add(ref(view, self._views.discard))
        try:
            view.open(self._database)
        except Exception as error:
            if self._is_open_again(error):
                return self._opened(kind)
            reraise(error)
        return view

    def _is_open_again(self, error: Exception) -> bool:
        """Whether a read met nothing but the reopening of the files, which is then over."""
        if not isinstance(error, _ReopeningError):
            return False
        return self._reopened.wait()

    def sequence(self) -> int:
        """RocksDB's sequence number: it counts operations."""
        try:
            return self._database.latest_sequence_number()
        except Exception as error:
            reraise(error)

    def stats(self) -> Mapping[str, JSON]:
        """RocksDB's own figures."""
        try:
            read = self._database.property_int_value
            figures: dict[str, JSON] = {name: read(f"rocksdb.{key}") for name, key in _STATS.items()}
        except Exception as error:
            reraise(error)
        figures["writes_stopped"] = bool(figures["writes_stopped"])
        figures["open_views"] = len(self._views)
        figures["sequence"] = self.sequence()
        return figures

    # Writing

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` whole, or raise; WriteStallError while compaction has to catch up."""
        with self._write_lock:
            if self._unchecked_bytes > self._check_bytes:
                self._seal_if_full()
            try:
                if batch.expects:
                    self._check(batch.expects)
                raw = _raw_batch(batch.operations)
                size = raw.size_in_bytes()
                self._write_raw(raw)
            except Exception as error:
                self._write_failed(error)
            self._unchecked_bytes += size
            if self._flushers and self._wal:
                self._make_durable(self._database)

    def sync(self) -> None:
        """Put the log, or without a log the memtable, on disk; nothing is done if nothing is new."""
        with self._sync_lock:  # who comes second waits for the first, whose sync may be the one it needs
            sequence = self.sequence()
            if sequence != self._synced_sequence:
                with self._outside_gil() as database:
                    self._make_durable(database)
                self._synced_sequence = sequence

    def _check(self, expects: Sequence[Expect]) -> None:
        for expect in expects:
            if self._database.get(expect.key) != expect.value:
                raise ConflictError(f"key {expect.key.hex()} does not hold what was expected")

    def _write_failed(self, error: Exception) -> NoReturn:
        if is_stall(error):
            raise WriteStallError(
                f"{self._path} takes no write, for compaction cannot keep up",
                remedy="wait and retry; write less at a time, or give it a faster disk or more background_jobs",
            ) from error
        try:
            reraise(error, writing=True)
        except StorageFullError:
            self._full = True
            raise
        except OutcomeUnknownError as unknown:
            self._failure = unknown.message
            self._write_raw = Gone(
                StorageError, f"{self._path} takes no more writes: {unknown.message}", remedy="open the store again"
            )
            raise

    def _make_durable(self, database: Rdict) -> None:
        if self._failure is not None:
            raise OutcomeUnknownError(self._failure)  # to sync again might succeed, and mean nothing
        try:
            # A log that a full disk cut short must not be synced: RocksDB then stays broken once there is space again.
            if self._wal and not self._full:
                database.flush_wal(True)
            else:
                database.flush()
                self._full = False
        except Exception as error:
            self._write_failed(error)

    def _seal_if_full(self) -> None:
        self._unchecked_bytes = 0
        if (self._database.property_int_value("rocksdb.cur-size-active-mem-table") or 0) > self._write_buffer_bytes:
            self._seal()

    def _seal(self) -> None:
        """Begin a new memtable and a new log, once the old log is on disk. The write lock is held.

        RocksDB would do the same in time, but without the sync. A power cut could then take the end of the old log and
        leave the new one, and recovery does not notice the hole.
        """
        database = self._database
        if self._wal:
            self._make_durable(database)
        try:
            database.flush(False)
        except Exception as error:
            self._write_failed(error)

    # Space

    def compact(self, start: bytes = b"", stop: bytes | None = None) -> None:
        """Rewrite the files that overlap the range, without what was deleted.

        Of a part, those that hold nothing deleted may stay: many parts of one file would rewrite it many times.
        """
        is_whole = not start and stop is None
        with self._outside_gil() as database:
            with self._flushed(database):
                compact(database, start, stop, forced=is_whole)
            # Not for others: a manifest that an erasure has just done with goes with the next change of the files.
            self._wait_for_deletions(".sst")

    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Rewrite the files that overlap the ranges and return once the old ones are gone, logs and manifests too.

        RocksDB's diagnostic ``LOG`` names the bounds of the ranges in hexadecimal, but nothing that was in them.
        """
        with self._erase_lock, self._outside_gil() as database, no_automatic_compaction(database):
            with self._flushed(database):
                for start, stop in ranges:
                    compact(database, start, stop, forced=True)
            # The manifest of the last change still names keys of the files it did away with; one more, and it is new.
            value = database.get(b"")
            with suppress(ConflictError):  # which means that somebody else made one
                touch = WriteBatch([Delete(b"") if value is None else Put(b"", value)], [Expect(b"", value)])
                patiently(partial(self.write, touch))
            with self._flushed(database):
                left = self._wait_for_deletions()
        if left:
            raise StorageError(
                f"{len(left)} files that hold deleted bytes cannot go: {len(self._views)} snapshots or scans are open",
                remedy="close them and erase again",
            )

    def checkpoint(self, target: Path) -> None:
        """Link or copy the files to ``target``, which appears whole or not at all."""
        if self._options.read_only:  # RocksDB makes no copy then
            raise ReadOnlyError(f"{self._path} was opened with read_only=True")
        if os.path.lexists(target):
            raise InvalidError(f"{target} exists", remedy="name a directory that does not exist yet")
        with self._outside_gil() as database, self._flushed(database):  # or RocksDB would flush, and hold the GIL
            checkpoint(database, target, _DATABASE_NAME)

    @contextmanager
    def _flushed(self, database: Rdict) -> Iterator[None]:
        """Put all that was written into tables; and meanwhile RocksDB may do the same of its own accord.

        It begins a new log then, and does not sync the old one: see :meth:`_seal`. So every write is synced before the
        next one can come.
        """
        with self._write_lock:
            self._flushers += 1
        try:
            with self._write_lock:
                self._seal()
            try:
                database.flush()
            except Exception as error:
                reraise(error)
            yield
        finally:
            with self._write_lock:
                self._flushers -= 1

    def _wait_for_deletions(self, suffix: str = "") -> set[str]:
        """Wait for the files that RocksDB no longer needs to go, and return those that do not."""
        directory = self._path / _DATABASE_NAME
        began = time.monotonic()
        views = self._views.copy()  # one that comes later keeps nothing of what is obsolete by now
        left = {name for name in obsolete_files(self._database, directory) if name.endswith(suffix)}
        while left and time.monotonic() - began < (_VIEW_SECONDS_MAX if views & self._views else _DELETION_SECONDS_MAX):
            time.sleep(0.005)
            left &= obsolete_files(self._database, directory)
        return left

    # The end

    def close(self) -> None:
        """Let the calls that run finish, make everything durable, empty every view and let go of the directory."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            database = self._database
            self._gone(StoreClosedError, f"{self._path} is closed")  # a write that waits for compaction gives up
            with self._write_lock:
                pass  # nobody is half-way through a write
            try:
                if not isinstance(database, Gone) and database.latest_sequence_number() != self._synced_sequence:
                    self._make_durable(database)
            finally:
                self._shut(database)
                self._gone(StoreClosedError, f"{self._path} is closed")  # also if a write failed meanwhile
                self._directory_lock.release()

    def reopen(self) -> None:
        """Open the files anew, whereupon RocksDB puts what its log holds into tables. Views of before are closed."""
        directory = self._path / _DATABASE_NAME
        with self._close_lock:
            if self._closed:
                raise StoreClosedError(f"{self._path} is closed")
            if self._full and not self._wal:
                # What is only in memory would be lost. RocksDB takes writes again by itself, but wants more space.
                with self._outside_gil() as database:
                    self._make_durable(database)
                return
            # Once closed it may not open: for as long as that is sure to fail, reads shall go on.
            check_writable(self._path, _SPARE_BYTES + sum(log.stat().st_size for log in directory.glob("*.log")))
            database = self._database
            self._reopened.clear()
            try:
                self._gone(_ReopeningError, f"{self._path} is being opened again", remedy="try again in a moment")
                with self._write_lock:
                    pass
                self._shut(database)
                del database  # RocksDB holds its lock for as long as anybody holds this
                self._open(directory)
            except QilbeeError as error:
                self._gone(StorageError, f"{self._path} cannot be opened again: {error.message}", remedy=error.remedy)
                raise
            finally:
                self._reopened.set()

    def _shut(self, database: Rdict) -> None:
        """Close the database, once nobody is inside and no view shows it."""
        for view in [reference() for reference in list(self._views)]:
            if view is not None:
                view.close()
        with self._outside:
            if self._outside_count:
                with suppress(StorageError):
                    database.cancel_all_background(True)  # a compaction may have hours to go
            self._outside.wait_for(lambda: not self._outside_count)
        with suppress(Exception):  # it flushes, in vain after a cancellation or an error; all is durable
            database.close()

    @contextmanager
    def _outside_gil(self) -> Iterator[Rdict]:
        with self._outside:
            self._outside_count += 1
        try:
            yield self._database
        finally:
            with self._outside:
                self._outside_count -= 1
                self._outside.notify_all()

    def _forked(self) -> None:
        """In a forked child: forget the database, of which no destructor may run here."""
        for view in [reference() for reference in list(self._views)]:
            if view is not None:
                view.abandon()
        leak(self._database)
        self._closed = True
        self._gone(StoreClosedError, f"{self._path} was opened by the parent of this process")
        self._new_locks()  # a thread of the parent may have held them

    def _gone(self, kind: type[StorageError], message: str, *, remedy: str | None = None) -> None:
        gone = Gone(kind, message, remedy=remedy)
        self._database, self._write_raw = cast("Rdict", gone), gone


def _raw_batch(operations: Sequence[Operation]) -> RawBatch:
    raw = RawBatch(True)  # raw mode: the other one pickles
    put = raw.put
    for operation in operations:
        if isinstance(operation, Put):
            put(operation.key, operation.value)
        elif isinstance(operation, Delete):
            raw.delete(operation.key)
        elif operation.start < operation.stop:  # the other way round RocksDB refuses, and every write after it
            raw.delete_range(operation.start, operation.stop)
    return raw
