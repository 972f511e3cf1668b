"""From what LMDB says to what a caller can do about it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import lmdb

from qilbee_core import (
    CorruptRecordError,
    FormatVersionError,
    InvalidError,
    QilbeeError,
    StorageError,
    StorageFullError,
)

__all__ = ["of_disk", "of_lmdb"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ROOM_BYTES = 1 << 20


def of_disk(error: OSError, path: Path) -> StorageError:
    """What the operating system refused to do with ``path``, as one of ours."""
    kind = StorageFullError if error.errno in _FULL else StorageError
    return kind(f"{path}: {error.strerror}")


def of_lmdb(error: lmdb.Error, path: Path, *, writing_bytes: int | None = None) -> QilbeeError:
    """``error``, met while reading the file ``path`` or writing that much to it, as one of ours."""
    message = f"{path}: {error}"
    match error:
        case lmdb.BadValsizeError():
            return InvalidError("the batch has a key longer than the 510 bytes LMDB can store, or a value of 4 GiB")
        case lmdb.ReadersFullError():
            return StorageError(
                f"{path}: too many snapshots and scans are open at once", remedy="close some of them and try again"
            )
        case lmdb.VersionMismatchError():
            return FormatVersionError(message)
        case lmdb.InvalidError() | lmdb.CorruptedError() | lmdb.PageNotFoundError():
            return CorruptRecordError(message, remedy="restore the store from a copy")
        case lmdb.MemoryError():
            return StorageError(
                f"{path} cannot be mapped into memory ({error.reason})",
                remedy="allow the process more address space (ulimit -v), or set map_bytes lower in [storage.engine]",
            )
    if _is_full(error, path.parent, writing_bytes):
        return StorageFullError(f"{path}: no space left ({error})")
    return StorageError(message)


def _is_full(error: lmdb.Error, directory: Path, writing_bytes: int | None) -> bool:
    """Whether ``error`` says that there is no space left."""
    number = getattr(error, "code", 0)
    if number == errno.EIO and writing_bytes is not None:
        # What LMDB also says where the disk is full halfway through a commit. So ask the file system.
        try:
            with tempfile.TemporaryFile(dir=directory) as probe:
                os.posix_fallocate(probe.fileno(), 0, writing_bytes + _ROOM_BYTES)
        except OSError as refusal:
            number = refusal.errno or 0
    return number in _FULL
