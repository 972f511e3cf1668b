"""The storage backend: one LMDB file at a time, written by groups, replaced by a copy to give space back.

Three things shape it:

- A commit waits for the disk, so writers share one: while it is under way the next ones queue up, and then
  one of them commits for all.
- LMDB never gives a page back to the file system, and cannot move its map while anybody reads. One answer to
  both: make a new file of what is in the old one, and go on with that. Open snapshots and scans keep the old one.
- Using a file that was closed takes the process down, see :mod:`qilbee_lmdb.datafile`.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition, Lock

import lmdb

from qilbee_core import (
    JSON,
    BackendOptions,
    Blocking,
    ConflictError,
    Delete,
    DirectoryLock,
    Expect,
    InvalidError,
    Operation,
    OutcomeUnknownError,
    Put,
    QilbeeError,
    SettingsError,
    SingleProcess,
    StorageError,
    StorageFullError,
    StoreClosedError,
    WriteBatch,
    fsync_directory,
)
from qilbee_lmdb.datafile import PREFIX, DataFile, View
from qilbee_lmdb.errors import of_disk, of_lmdb
from qilbee_lmdb.files import build, current_file, first_file, publish, remove_leftovers, successor

__all__ = ["LmdbBackend"]

_MAP_BYTES_MIN = 1 << 20
# Address space, not memory and not disk. 256 GiB is half of the smallest address space in use (39 bits, on
# small ARM machines) and leaves room for hundreds of open stores on the others.
_MAP_BYTES = 256 << 30


class _Waiting:
    """A batch in the queue of writers, and what became of it."""

    __slots__ = ("batch", "done", "error")

    def __init__(self, batch: WriteBatch) -> None:
        self.batch = batch
        self.done = False
        self.error: Exception | None = None


class LmdbBackend(SingleProcess, Blocking):
    """An LMDB file in ``options.path``. Every write waits for the disk, hence ``Blocking``.

    ``options.engine`` may hold ``map_bytes``, the address space to begin with; it doubles when the store
    outgrows it. The other options mean nothing here: LMDB has no log and no compression, and its cache is
    the operating system's.
    """

    name = "lmdb"

    def __init__(self, options: BackendOptions) -> None:
        self._directory = options.path
        self._map_bytes = _map_bytes(options)
        self._writing = Lock()
        """Held by whoever writes to the current file, replaces it or takes it away."""
        self._writers = Condition()
        self._queue: deque[_Waiting] = deque()
        """The batches that wait, while one writer is ``_committing`` those that waited before them."""
        self._committing = False
        self._current: DataFile | None = None
        self._replaced: list[DataFile] = []
        """Earlier files that somebody was still reading when they were replaced."""
        self._unsynced = False
        self._dense = False
        """Nothing was written since the file was made, so there is nothing to compact or erase."""
        self._failure: str | None = None
        self._forked = False
        self._directory_lock = DirectoryLock(options.path, on_fork=self._abandon)
        try:
            with _system_errors(self._directory):
                path = current_file(self._directory)
                if path is None:
                    # Made whole and then named, too: LMDB cannot open a file whose creation a power cut interrupted.
                    path = first_file(self._directory)
                    publish(build(path, (), self._map_bytes), path)
                self._current = DataFile(path, self._map_bytes)
                remove_leftovers(self._directory, path)
        except BaseException:
            self.close()
            raise

    # Reading

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key``, or None where there is none."""
        file = self._enter()
        try:
            with file.env.begin() as transaction:
                return transaction.get(PREFIX + key)
        except lmdb.Error as error:
            raise of_lmdb(error, file.path) from error
        finally:
            file.leave()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key, in the order given, duplicates included."""
        file = self._enter()
        try:
            with file.env.begin() as transaction:
                get = transaction.get
                return [get(PREFIX + key) for key in keys]
        except lmdb.Error as error:
            raise of_lmdb(error, file.path) from error
        finally:
            file.leave()

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs with ``start <= key < stop`` as they are now, in order of key, or backwards."""
        return self.snapshot().scan(start, stop, reverse=reverse)

    def snapshot(self) -> View:
        """This instant. While it is open, the file cannot use again what is deleted meanwhile, and grows."""
        while True:
            view = View(self._enter())
            # Looked at once more now that close() can see the view: it turns out only those it sees.
            if view.file is self._current:
                return view
            view.close()

    # Writing

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` whole, or raise and apply nothing. It survives a power cut unless it is the last one."""
        mine = _Waiting(batch)
        try:
            with self._writers:
                self._queue.append(mine)
                while self._committing and not mine.done:
                    self._writers.wait()
                lead = not mine.done
                if lead:
                    self._committing = True
            if lead:
                self._commit_queue()
        except BaseException:
            # An interrupt, as by Ctrl-C: nobody shall commit this batch after we have raised.
            with suppress(ValueError):
                self._queue.remove(mine)
            raise
        if mine.error is not None:
            raise mine.error

    def sync(self) -> None:
        """Return once every earlier write survives a power cut."""
        with self._writing:
            self._sync(self._writable())

    # What LMDB is made to do as well

    def compact(self, start: bytes = b"", stop: bytes | None = None) -> None:
        """Give the space of what was deleted back to the file system. Rewrites everything, whatever the range."""
        del start, stop
        with self._writing:
            self._drop_deleted()

    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Return once no file holds deleted bytes. Rewrites everything, whatever the ranges."""
        del ranges
        with self._writing:
            self._refuse_while_read()
            self._drop_deleted()
            # Somebody may have begun to read the old file meanwhile. It has no name any more, but it is there.
            self._refuse_while_read()

    def checkpoint(self, target: Path) -> None:
        """Make ``target``, which must not exist, a copy of this instant that opens by itself."""
        with _system_errors(target):
            if target.exists():
                raise InvalidError(f"{target} exists already", remedy="name a directory that does not exist")
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                path = first_file(unfinished)
                publish(build(path, self.scan(), self._map_bytes), path)
                os.rename(unfinished, target)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            fsync_directory(target.parent)

    def stats(self) -> Mapping[str, JSON]:
        """Figures of the file."""
        file = self._enter()
        try:
            tree, environment = file.env.stat(), file.env.info()
            return {
                "file_bytes": file.path.stat().st_size,
                "map_bytes": environment["map_size"],
                "tree_bytes": (tree["branch_pages"] + tree["leaf_pages"] + tree["overflow_pages"]) * tree["psize"],
                "tree_levels": tree["depth"],
                "stored_keys": tree["entries"],
                "open_views": sum(len(each.open_views()) for each in self._files()),
            }
        except lmdb.Error as error:
            raise of_lmdb(error, file.path) from error
        finally:
            file.leave()

    def close(self) -> None:
        """Make everything durable, turn out whoever reads and let go of the directory. Idempotent."""
        with self._writing:
            try:
                if self._current is not None and self._unsynced:
                    self._sync(self._writable())
            finally:
                files = self._files()
                self._current, self._replaced = None, []
                for file in files:
                    for view in file.open_views():
                        view.close()
                    file.retire()
                    file.closed.wait()
                self._directory_lock.release()

    # Inside

    def _enter(self) -> DataFile:
        """The current file, to leave when done with."""
        while True:
            file = self._current
            if file is None:
                raise self._closed()
            file.enter()
            if file is self._current:
                return file
            file.leave()

    def _writable(self) -> DataFile:
        """The current file, for the holder of ``_writing``."""
        if self._current is None:
            raise self._closed()
        if self._failure is not None:
            raise StorageError(
                f"writing to {self._directory} stopped after: {self._failure}",
                remedy="look at the disk, then close the store and open it again",
            )
        return self._current

    def _closed(self) -> StoreClosedError:
        return StoreClosedError(f"{self._directory} was {'opened before a fork' if self._forked else 'closed'}")

    def _files(self) -> list[DataFile]:
        """Every file that is open."""
        replaced = [file for file in self._replaced if not file.closed.is_set()]
        return replaced if self._current is None else [*replaced, self._current]

    def _commit_queue(self) -> None:
        """Commit what all waiting writers want, as the one of them whose turn it is."""
        group: list[_Waiting] = []
        try:
            with self._writing:
                group = [self._queue.popleft() for _ in range(len(self._queue))]
                self._commit(group)
        finally:
            with self._writers:
                self._committing = False
                for each in group:
                    if not each.done:
                        # Only an interrupt of this thread, as by Ctrl-C, leaves any undone.
                        each.error = OutcomeUnknownError("the thread that was committing this write was interrupted")
                        each.done = True
                self._writers.notify_all()

    def _commit(self, group: Sequence[_Waiting]) -> None:
        """Commit the batches of ``group`` together or, where that fails, one by one: each answers for itself."""
        try:
            self._transact(group)
        except Exception as error:  # It belongs to the thread whose batch this is.
            if len(group) > 1:
                for each in group:
                    self._commit([each])
            else:
                group[0].error, group[0].done = error, True

    def _transact(self, group: Sequence[_Waiting]) -> None:
        while True:
            file = self._writable()
            try:
                with file.env.begin(write=True) as transaction:
                    for each in group:
                        each.error = _conflict(transaction, each.batch.expects)
                        if each.error is None:
                            _apply(transaction, each.batch.operations)
                break
            except lmdb.MapFullError:
                # Not set_mapsize(): it moves the map under the feet of all readers, and a thread that writes while
                # it scans would wait for itself.
                self._map_bytes = 2 * file.env.info()["map_size"]
                self._rewrite()
            except lmdb.Error as error:
                raise self._write_error(error, file, group) from error
        self._unsynced = True
        self._dense = False
        for each in group:
            each.done = True

    def _write_error(self, error: lmdb.Error, file: DataFile, group: Sequence[_Waiting]) -> QilbeeError:
        puts = [each for waiting in group for each in waiting.batch.operations if isinstance(each, Put)]
        size = sum(len(put.key) + len(put.value) for put in puts)
        result = of_lmdb(error, file.path, writing_bytes=size)
        broken = isinstance(error, lmdb.PanicError) or getattr(error, "code", 0) == errno.EIO
        if broken and not isinstance(result, StorageFullError):
            # The kernel may have dropped pages that it could not write; a second try would succeed, without them.
            self._failure = result.message
        return result

    def _sync(self, file: DataFile) -> None:
        if self._unsynced:
            try:
                file.env.sync(True)
            except lmdb.Error as error:
                self._failure = str(error)
                raise of_lmdb(error, file.path) from error
            self._unsynced = False

    def _drop_deleted(self) -> None:
        self._writable()
        if not self._dense:
            self._rewrite()

    def _rewrite(self) -> None:
        """Go on with a new file that holds what the current one does and nothing else. Reads go on meanwhile."""
        old = self._writable()
        path = successor(old.path)
        with _system_errors(path):
            old.enter()
            view = View(old)
            try:
                new = build(path, view.scan(), self._map_bytes)
            finally:
                view.close()
            try:
                publish(new, path)
                self._current = DataFile(path, self._map_bytes)
            except BaseException as error:
                # The next opener may find the new file, so not one more write may go into the old one.
                self._failure = f"{path} could not be opened: {error!r}"
                raise
            self._replaced = [file for file in self._replaced if not file.closed.is_set()] + [old]
            old.retire()
            self._unsynced = False
            self._dense = True
            remove_leftovers(self._directory, path)

    def _refuse_while_read(self) -> None:
        count = sum(len(file.open_views()) for file in self._files())
        if count:
            raise StorageError(
                f"{count} open snapshots or scans of {self._directory} may still show what was deleted",
                remedy="close them, then erase again",
            )

    def _abandon(self) -> None:
        """In a forked child: the files are the parent's."""
        self._forked = True
        # Another thread of the parent may have held a lock. It will never release ours.
        self._writing, self._writers = Lock(), Condition()
        self._committing = False
        self._queue.clear()
        for file in self._files():
            file.abandon()
        self._current, self._replaced = None, []


def _conflict(transaction: lmdb.Transaction[bytes], expects: Sequence[Expect]) -> ConflictError | None:
    for expect in expects:
        if transaction.get(PREFIX + expect.key) != expect.value:
            return ConflictError(f"key {expect.key.hex()} does not hold what the batch expects")
    return None


def _apply(transaction: lmdb.Transaction[bytes], operations: Sequence[Operation]) -> None:
    for operation in operations:
        if isinstance(operation, Put):
            transaction.put(PREFIX + operation.key, operation.value)
        elif isinstance(operation, Delete):
            transaction.delete(PREFIX + operation.key)
        else:
            stop = PREFIX + operation.stop
            with transaction.cursor() as cursor:
                cursor.set_range(PREFIX + operation.start)
                # Deleting moves on to the next pair; past the last one the key is empty.
                while b"" < cursor.key() < stop:
                    cursor.delete()


def _map_bytes(options: BackendOptions) -> int:
    for name in options.engine:
        if name != "map_bytes":
            raise SettingsError(f"the lmdb engine has no setting {name!r}", remedy="it has one: map_bytes")
    given = options.engine.get("map_bytes", _MAP_BYTES)
    if type(given) is not int or given < _MAP_BYTES_MIN:
        raise SettingsError(f"map_bytes is {given!r}, not a whole number of at least {_MAP_BYTES_MIN}")
    return given


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """What the operating system refuses, as what a caller can do about it."""
    try:
        yield
    except OSError as error:
        raise of_disk(error, path) from error
