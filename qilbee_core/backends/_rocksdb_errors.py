"""What rocksdict raises, in terms of our tree. Nearly all of it is a bare ``Exception`` with RocksDB's text."""

from __future__ import annotations

from typing import NoReturn

from rocksdict import DbClosedError

from qilbee_core.errors import (
    CorruptRecordError,
    InvalidError,
    OutcomeUnknownError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
)

__all__ = ["Gone", "is_stall", "reraise"]


def reraise(error: Exception, *, writing: bool = False) -> NoReturn:
    """Raise what ``error`` means; what is not rocksdict's own is raised as it is.

    ``writing`` says that something was being made durable, of which an I/O error leaves nobody knows how much.
    """
    text = str(error)
    if isinstance(error, DbClosedError) or "borrowed" in text or text.startswith("Shutdown in progress"):
        raise StoreClosedError("the store was closed meanwhile") from error
    if isinstance(error, KeyError | ValueError) and "only support bytes" in text:
        raise InvalidError("keys and values must be of type bytes exactly") from error
    if type(error) is not Exception and not isinstance(error, OSError):
        raise error
    if text.startswith("Corruption"):
        raise CorruptRecordError(text) from error
    if "lock hold by current process" in text or "While lock file" in text:
        raise StoreLockedError(text) from error
    if "No space left" in text or "Disk quota exceeded" in text:
        raise StorageFullError(text) from error
    if writing and text.startswith("IO error"):
        raise OutcomeUnknownError(text) from error
    raise StorageError(text) from error


def is_stall(error: Exception) -> bool:
    """Whether a write was refused only because compaction or flushing has to catch up first."""
    return type(error) is Exception and "Write stall" in str(error)


class Gone:
    """Stands where an object of the engine stood: every use of it raises the error that says why."""

    def __init__(self, kind: type[StorageError], message: str, *, remedy: str | None = None) -> None:
        self._error = kind, message, remedy

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # somebody only looks at it, as doctest does
        self(None)

    def __call__(self, _: object) -> NoReturn:
        kind, message, remedy = self._error
        raise kind(message, remedy=remedy)
