"""From what LMDB says to what a caller can do about it."""

from __future__ import annotations

import errno
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

__all__ = ["translated"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def translated(error: lmdb.Error, path: Path) -> QilbeeError:
    """``error``, met while working on the file ``path``, as one of ours."""
    message = f"{path}: {error}"
    match error:
        case lmdb.BadValsizeError():
            return InvalidError(f"a key or value is longer than LMDB can store: {error}")
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
                f"{path} cannot be mapped into memory: {error}",
                remedy="allow the process more address space (ulimit -v), or set map_bytes lower in [storage.engine]",
            )
    if error.code in _FULL:
        return StorageFullError(message)
    return StorageError(message)
