"""RocksDB through rocksdict: the default engine.

What is unusual here answers a measured trap of the binding. The four that shape the code:

- It holds the GIL in everything but ``flush``, ``flush_wal``, ``compact_range``, ``close`` and the get of a
  list, and refuses to close (``Already borrowed``) while one of those runs. They are counted, see ``_outside_gil``.
- It never lets go of the directory while an iterator lives. So every iterator belongs to a view that ``close``
  can reach and empty, however long the caller keeps the scan or the snapshot.
- Its ``Snapshot`` shows later writes when iterated, and iterate bounds dangle. A view is one plain iterator,
  sought again for every read, and keys are compared here.
- A write that must be durable would freeze every thread for the time of the fsync. Writes never sync;
  :meth:`RocksDBBackend.sync` does, for all of them at once and without the GIL.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from threading import Condition, Lock
from weakref import ref

import rocksdict
from rocksdict import DBCompressionType, Rdict, RdictIter

from qilbee_core.batch import Delete, Operation, Put, WriteBatch
from qilbee_core.directory import DirectoryLock, fsync_directory
from qilbee_core.episode import JSON
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidError,
    OutcomeUnknownError,
    QilbeeError,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
)
from qilbee_core.interfaces import BackendOptions, SingleProcess

__all__ = ["RocksDBBackend", "RocksDBSnapshot"]

_DATA_NAME = "db"
_FIRST_CHUNK_BYTES = 8 << 10
_CHUNK_BYTES_MAX = 1 << 20
_LIST_GET_KEYS_MIN = 16
_STALL_SECONDS_MAX = 30.0
_ENGINE_DEFAULTS = {"write_buffer_bytes": 64 << 20, "block_bytes": 16 << 10, "background_jobs": 2}


class RocksDBSnapshot:
    """One instant of the store, shown by one iterator that every read seeks anew."""

    __slots__ = ("__weakref__", "_closed", "_iterator", "_lock")

    def __init__(self) -> None:
        self._lock = Lock()
        self._closed = False
        self._iterator: RdictIter | None = None

    def _open(self, db: Rdict) -> None:
        with self._lock:
            if not self._closed:
                self._iterator = db.iter()

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            return self._get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._lock:
            return [self._get(key) for key in keys]

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        rows, more = self._read(start, stop, reverse, _FIRST_CHUNK_BYTES)
        return self._rows(rows, more, start, stop, reverse)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._iterator = None

    def _get(self, key: bytes) -> bytes | None:
        iterator = self._require()
        try:
            iterator.seek(key)
            if iterator.valid():
                value: bytes | None = iterator.value() if iterator.key() == key else None
                return value
            iterator.status()
        except Exception as error:
            raise _translate(error) from error
        return None

    def _require(self) -> RdictIter:
        if self._iterator is None:
            raise StoreClosedError("the snapshot, or the store it shows, is closed")
        return self._iterator

    def _rows(
        self, rows: list[tuple[bytes, bytes]], more: bool, start: bytes, stop: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        room = _FIRST_CHUNK_BYTES
        while True:
            for row in rows:
                if self._closed:
                    raise StoreClosedError("the store was closed under this scan")
                yield row
            if not more:
                return
            if reverse:
                stop = rows[-1][0]
            else:
                start = rows[-1][0] + b"\0"
            room = min(room * 4, _CHUNK_BYTES_MAX)
            rows, more = self._read(start, stop, reverse, room)

    def _read(
        self, start: bytes, stop: bytes | None, reverse: bool, room: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The first rows of the range, about ``room`` bytes of them, and whether there may be more."""
        rows: list[tuple[bytes, bytes]] = []
        with self._lock:
            iterator = self._require()
            valid, key, value = iterator.valid, iterator.key, iterator.value
            try:
                if not reverse:
                    advance = iterator.next
                    iterator.seek(start)
                elif stop is None:
                    advance = iterator.prev
                    iterator.seek_to_last()
                else:
                    advance = iterator.prev
                    iterator.seek_for_prev(stop)
                    if valid() and key() == stop:
                        advance()
                while valid():
                    if room <= 0:
                        return rows, True
                    found = key()
                    if found < start if reverse else stop is not None and found >= stop:
                        return rows, False
                    data = value()
                    rows.append((found, data))
                    room -= len(data) + 64
                    advance()
                # A corrupt block ends an iteration exactly as the last row does, except for the status.
                iterator.status()
            except Exception as error:
                raise _translate(error) from error
        return rows, False


class RocksDBBackend(SingleProcess):
    """A RocksDB database in ``options.path / "db"``.

    ``options.engine`` may hold ``write_buffer_bytes``, ``block_bytes`` and ``background_jobs``.
    """

    name = "rocksdb"
    native_codecs = frozenset({"lz4", "snappy", "zstd"})

    def __init__(self, options: BackendOptions) -> None:
        self._path = options.path
        self._wal = options.wal
        self._write_lock = Lock()
        self._sync_lock = Lock()
        self._outside = Condition(Lock())
        self._outside_count = 0
        self._closed = False
        self._failure: str | None = None
        self._views: set[ref[RocksDBSnapshot]] = set()
        self._cache = rocksdict.Cache(options.cache_bytes)
        engine = _rocksdb_options(options, self._cache)
        self._directory_lock = DirectoryLock(options.path, on_fork=self._forked)
        try:
            self._db = Rdict(str(options.path / _DATA_NAME), engine, column_families={"default": engine})
        except Exception as error:
            self._directory_lock.release()
            raise _translate(error) from error
        write_options = rocksdict.WriteOptions()
        write_options.no_slowdown = True
        write_options.disable_wal = not options.wal  # type: ignore[method-assign, assignment]
        self._db.set_write_options(write_options)
        self._synced = self._db.latest_sequence_number()

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise _translate(error) from error
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            if len(keys) < _LIST_GET_KEYS_MIN:
                get = self._db.get
                return [get(key) for key in keys]
            with self._outside_gil() as db:
                values: list[bytes | None] = db.get(list(keys))
        except Exception as error:
            raise _translate(error) from error
        return values

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self.snapshot().scan(start, stop, reverse=reverse)

    def snapshot(self) -> RocksDBSnapshot:
        view = RocksDBSnapshot()
        self._views.add(ref(view, self._views.discard))
        if self._closed:
            raise StoreClosedError(f"{self._path} is closed")
        try:
            view._open(self._db)
        except Exception as error:
            raise _translate(error) from error
        return view

    def write(self, batch: WriteBatch) -> None:
        with self._write_lock:
            try:
                for expect in batch.expects:
                    if self._db.get(expect.key) != expect.value:
                        raise ConflictError(f"key {expect.key.hex()} does not hold what the batch expects")
                self._db.write(_raw_batch(batch.operations))
            except Exception as error:
                raise _translate(error) from error

    def sync(self) -> None:
        with self._sync_lock, self._outside_gil() as db:
            sequence = db.latest_sequence_number()
            if sequence == self._synced:
                return
            try:
                if self._wal:
                    db.flush_wal(True)
                else:
                    db.flush()
            except Exception as error:
                raise _translate(error) from error
            self._synced = sequence

    def sequence(self) -> int:
        try:
            return self._db.latest_sequence_number()
        except Exception as error:
            raise _translate(error) from error

    def compact(self, start: bytes = b"", stop: bytes | None = None) -> None:
        forced = rocksdict.CompactOptions()
        forced.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
        with self._outside_gil() as db:
            try:
                db.compact_range(start, stop, forced)
            except Exception as error:
                raise _translate(error) from error

    def stats(self) -> Mapping[str, JSON]:
        return {"sequence": self.sequence()}

    def close(self) -> None:
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            for view in [reference() for reference in list(self._views)]:
                if view is not None:
                    view.close()
            with self._outside:
                self._outside.wait_for(lambda: self._outside_count == 0)
            try:
                if self._wal:
                    self._db.flush_wal(True)
                else:
                    self._db.flush()
                self._db.close()
            except Exception as error:
                raise _translate(error) from error
            finally:
                self._directory_lock.release()

    @contextmanager
    def _outside_gil(self) -> Iterator[Rdict]:
        with self._outside:
            if self._closed:
                raise StoreClosedError(f"{self._path} is closed")
            self._outside_count += 1
        try:
            yield self._db
        finally:
            with self._outside:
                self._outside_count -= 1
                self._outside.notify_all()

    def _forked(self) -> None:
        self._closed = True


def _raw_batch(operations: Sequence[Operation]) -> rocksdict.WriteBatch:
    raw = rocksdict.WriteBatch(True)
    put = raw.put
    for operation in operations:
        kind = type(operation)
        if kind is Put:
            put(operation.key, operation.value)
        elif kind is Delete:
            raw.delete(operation.key)
        elif operation.start < operation.stop:
            raw.delete_range(operation.start, operation.stop)
    return raw


def _rocksdb_options(options: BackendOptions, cache: rocksdict.Cache) -> rocksdict.Options:
    settings = dict(_ENGINE_DEFAULTS)
    for name, value in options.engine.items():
        if name not in settings:
            near = get_close_matches(name, settings, n=1)
            raise SettingsError(f"the rocksdb engine has no setting {name!r}")
        if type(value) is not int or value < 1:
            raise SettingsError(f"{name} must be a positive whole number, not {value!r}")
        settings[name] = value
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_block_size(settings["block_bytes"])
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    engine = rocksdict.Options(raw_mode=True)
    engine.create_if_missing(True)
    engine.set_block_based_table_factory(table)
    engine.set_write_buffer_size(settings["write_buffer_bytes"])
    engine.set_level_compaction_dynamic_level_bytes(True)
    engine.set_max_background_jobs(settings["background_jobs"])
    engine.set_keep_log_file_num(5)
    engine.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    codecs = {
        "none": DBCompressionType.none,
        "lz4": DBCompressionType.lz4,
        "snappy": DBCompressionType.snappy,
        "zstd": DBCompressionType.lz4,
    }
    engine.set_compression_type(codecs[options.compression]())
    if options.compression == "zstd":
        engine.set_bottommost_compression_type(DBCompressionType.zstd())
    return engine


def _translate(error: Exception) -> Exception:
    if isinstance(error, QilbeeError):
        return error
    text = str(error)
    if isinstance(error, rocksdict.DbClosedError) or "borrowed" in text:
        return StoreClosedError("the store is closed")
    if text.startswith("Corruption"):
        return CorruptRecordError(text)
    if "lock" in text:
        return StoreLockedError(text)
    if "No space left" in text:
        return StorageFullError(text)
    return StorageError(text)
