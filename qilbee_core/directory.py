"""One opener at a time for a directory, and none after a fork.

For engines that keep their files in a directory of their own and inherit from
:class:`~qilbee_core.interfaces.SingleProcess`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Callable
from pathlib import Path

from qilbee_core.errors import StorageError, StorageFullError, StoreLockedError

__all__ = ["DirectoryLock", "ForkWatch", "check_writable", "fsync_directory"]

_LOCK_NAME = "qilbee.lock"


class DirectoryLock:
    """An exclusive lock on ``directory``, held until :meth:`release` or the end of the process.

    A second opener, in this process or another, gets StoreLockedError at once with the holder's pid.
    ``on_fork`` is called in a forked child, which shares the parent's files and must never write to
    them; it should make every later call of the engine raise StoreClosedError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     lock = DirectoryLock(Path(name))
    ...     try:
    ...         DirectoryLock(Path(name))
    ...     except StoreLockedError as error:
    ...         print("held by", "this process" if str(os.getpid()) in str(error) else error)
    ...     lock.release()
    held by this process
    """

    def __init__(self, directory: Path, on_fork: Callable[[], None] | None = None) -> None:
        path = directory / _LOCK_NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot open {path}: {error.strerror}",
                remedy=f"make {directory} a directory that user {os.getuid()} may read and write",
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise StoreLockedError(
                f"{directory} is held by process {holder}" + (" (this one)" if holder == str(os.getpid()) else ""),
                remedy="close it there, or open another directory",
            ) from None
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
        except OSError as error:
            os.close(self._file)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFullError(f"no space for {path}: {error.strerror}") from error
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        self._on_fork = on_fork
        self._held = True
        _watched.add(self)

    def release(self) -> None:
        """Let others open the directory. Idempotent."""
        if self._held:
            self._held = False
            _watched.discard(self)
            os.close(self._file)

    def _forked(self) -> None:
        # The lock belongs to the open file description that the parent shares: closing our copy keeps it held.
        self._held = False
        os.close(self._file)
        if self._on_fork is not None:
            self._on_fork()


class ForkWatch:
    """For an engine that only reads, and needs no lock: ``on_fork`` is called in a child, until :meth:`release`."""

    def __init__(self, on_fork: Callable[[], None]) -> None:
        self._on_fork = on_fork
        _watched.add(self)

    def release(self) -> None:
        """Watch no more. Idempotent."""
        _watched.discard(self)

    def _forked(self) -> None:
        self._on_fork()


_watched: weakref.WeakSet[DirectoryLock | ForkWatch] = weakref.WeakSet()


def _poison_child() -> None:
    for watched in list(_watched):
        watched._forked()
    _watched.clear()


os.register_at_fork(after_in_child=_poison_child)


def fsync_directory(directory: Path) -> None:
    """Make the names in ``directory`` (files created, renamed or removed) survive a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(directory: Path, bytes_needed: int) -> None:
    """Return if a file of that size can be made in ``directory`` and synced; StorageFullError, StorageError if not."""
    probe = directory / "space.probe"
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, bytes_needed)
            os.pwrite(handle, b"probe", 0)
            os.fsync(handle)
        finally:
            os.close(handle)
            probe.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"{directory} has no room for {bytes_needed} bytes: {error.strerror}") from error
        raise StorageError(f"cannot write to {directory}: {error.strerror}") from error
