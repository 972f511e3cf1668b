"""Every error QilbeeDB raises, one class for each different thing a caller can do about it.

::

    QilbeeError
    ├── AuthenticationError      log in again
    ├── PermissionDeniedError    ask for the role or the agent
    ├── InvalidError             mend the argument (also a ValueError)
    │   ├── SettingsError            mend the configuration
    │   └── ProviderNotFoundError    install the plugin that is named
    ├── NotFoundError            the thing is not there (also a LookupError)
    ├── ConflictError            read again, then decide
    ├── StorageError             the engine or the disk; the data are as they were
    │   ├── StoreLockedError         close the other opener
    │   ├── StoreClosedError         open the store again
    │   ├── ReadOnlyError            open it for writing
    │   ├── StorageFullError         make space; reads go on
    │   ├── WriteStallError          wait and retry: compaction has to catch up
    │   └── OutcomeUnknownError      retry with the same episode id
    ├── DataError                the bytes are not what was written
    │   ├── CorruptRecordError       restore, or verify() and repair()
    │   ├── FormatVersionError       use the release that the message names
    │   ├── LostWritesError          recover by name
    │   └── UnfinishedCopyError      finish the copy, or remove it
    └── PluginError              mend or disable the plugin that is named

The text of an error says what happened and ends with the remedy.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "ConflictError",
    "CorruptRecordError",
    "DataError",
    "FormatVersionError",
    "InvalidError",
    "LostWritesError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "PluginError",
    "ProviderNotFoundError",
    "QilbeeError",
    "ReadOnlyError",
    "SettingsError",
    "StorageError",
    "StorageFullError",
    "StoreClosedError",
    "StoreLockedError",
    "UnfinishedCopyError",
    "WriteStallError",
]


class QilbeeError(Exception):
    """Base of all errors; ``except QilbeeError`` catches everything that is ours.

    ``remedy`` is what to do about it: the class's own, or a more exact one given by the raiser.

    >>> str(ConflictError("episode 7 was stored with other content"))
    'episode 7 was stored with other content: read it again and decide which to keep'
    >>> str(ConflictError("episode 7 differs", remedy="use update_episode()"))
    'episode 7 differs: use update_episode()'
    """

    default_remedy: ClassVar[str] = ""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        # A message may quote what it refuses; whoever prints it must not fail over a lone surrogate.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.remedy = self.default_remedy if remedy is None else remedy

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


def shown(value: object) -> str:
    """``value`` as an error message quotes it: short, and whatever it is.

    >>> shown("x" * 1000)[-10:], shown(10**5000)
    ("xxxxxx...'", 'int')
    """
    try:
        text = repr(value[:80] + "..." if isinstance(value, str) and len(value) > 80 else value)
    except Exception:  # repr() of a stranger: too deep, too many digits, or broken
        return type(value).__name__
    return text if len(text) <= 200 else type(value).__name__


class AuthenticationError(QilbeeError):
    """The credentials are missing, wrong or expired."""

    default_remedy = "log in again"


class PermissionDeniedError(QilbeeError):
    """The credentials are good but do not allow this."""

    default_remedy = "ask an administrator for the role or the agent"


class InvalidError(QilbeeError, ValueError):
    """An argument is not of the form asked for; nothing was changed."""

    default_remedy = "mend the argument; nothing was changed"


class SettingsError(InvalidError):
    """A setting is unknown, of the wrong type, or contradicts another."""

    default_remedy = "mend the configuration (docs/configuration.md lists every key)"


class ProviderNotFoundError(InvalidError):
    """No installed plugin provides what is asked for, or what a stored record needs."""

    default_remedy = "install the package that provides it"


class NotFoundError(QilbeeError, LookupError):
    """What was named does not exist."""

    default_remedy = "check the id"


class ConflictError(QilbeeError):
    """Another writer, or an earlier write under the same id, got there first; nothing was changed."""

    default_remedy = "read it again and decide which to keep"


class StorageError(QilbeeError):
    """The engine or the disk refused; what was stored before is as it was."""

    default_remedy = "see the log of 'qilbee_core' and docs/operations.md"


class StoreLockedError(StorageError):
    """Another opener holds the store."""

    default_remedy = "close the other opener, or open another directory"


class StoreClosedError(StorageError):
    """The store, the backend or the snapshot was closed, or was opened before a fork."""

    default_remedy = "open the store again in this process"


class ReadOnlyError(StorageError):
    """The store was opened with ``read_only=True``."""

    default_remedy = "open it without read_only"


class StorageFullError(StorageError):
    """No space is left; reads go on, and writes go on by themselves when there is some."""

    default_remedy = "free some space on the disk; reads go on meanwhile"


class WriteStallError(StorageError):
    """The engine took no write for long, for compaction could not keep up; nothing was written."""

    default_remedy = "wait and retry; write less at a time, or give it a faster disk"


class OutcomeUnknownError(StorageError):
    """The write may or may not exist."""

    default_remedy = "retry with the same episode id when the store takes writes again: it is then stored once"


class DataError(QilbeeError):
    """The bytes of the store are not what was written."""

    default_remedy = "run verify() and see docs/operations.md"


class CorruptRecordError(DataError):
    """A record's checksum or form is wrong."""

    default_remedy = "run verify(); repair() mends what is derived, restore the rest from a copy"


class FormatVersionError(DataError):
    """The bytes are of a layout this release does not read, or are not a store at all."""

    default_remedy = "open it with the release that wrote it"


class LostWritesError(DataError):
    """Writes that were durable are missing."""

    default_remedy = "restore a copy, or recover by name as docs/durability.md says"


class UnfinishedCopyError(DataError):
    """What is there is only a part of a store: a copy that was interrupted, or is being made."""

    default_remedy = "finish it by the same qilbee copy, or remove it"


class PluginError(QilbeeError):
    """A plugin cannot be loaded or broke its contract."""

    default_remedy = "mend the plugin, or disable it by name"
