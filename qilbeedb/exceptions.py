"""The errors of the client, under one roof.

What a server refuses raises the class that an embedded store raises for it; ``qilbee_core.errors`` draws that tree. A
network adds a few::

    QilbeeError, here also under the name MemoryError
    ├── InvalidError
    │   ├── MethodError          call what is there
    │   ├── NotEnabledError      switch it on in the server
    │   └── TooLargeError        send it in parts
    ├── RateLimitedError         wait for retry_after_s
    ├── ServerError              look into the log of the server
    └── StorageError
        ├── OutcomeUnknownError      the answer to a write was lost: it may or may not exist
        └── UnavailableError         the server is not there, or takes nothing now; nothing was changed
"""

from __future__ import annotations

from qilbee_core import (
    AuthenticationError,
    ConflictError,
    CorruptRecordError,
    DataError,
    FormatVersionError,
    InvalidError,
    LostWritesError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    PluginError,
    ProviderNotFoundError,
    QilbeeError,
    ReadOnlyError,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
    UnfinishedCopyError,
    WriteStallError,
)

__all__ = [
    "AuthenticationError",
    "ConflictError",
    "CorruptRecordError",
    "DataError",
    "FormatVersionError",
    "InvalidError",
    "LostWritesError",
    "MemoryError",
    "MethodError",
    "NotEnabledError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "PluginError",
    "ProviderNotFoundError",
    "QilbeeError",
    "RateLimitedError",
    "ReadOnlyError",
    "ServerError",
    "SettingsError",
    "StorageError",
    "StorageFullError",
    "StoreClosedError",
    "StoreLockedError",
    "TooLargeError",
    "UnavailableError",
    "UnfinishedCopyError",
    "WriteStallError",
]

MemoryError = QilbeeError  # noqa: A001  # the name in the owner's specification
"""``except MemoryError`` catches refused connections, time-outs, and what a server or an embedded store refuses."""


class RateLimitedError(QilbeeError):
    """Too many requests, or too many wrong passwords; ``retry_after_s`` is when to ask again, in seconds.

    >>> str(RateLimitedError("too many requests", retry_after_s=3))
    'too many requests: wait 3 s'
    """

    default_remedy = "wait as long as the answer says"

    def __init__(self, message: str, *, retry_after_s: float, remedy: str | None = None) -> None:
        super().__init__(message, remedy=f"wait {retry_after_s:g} s" if remedy is None else remedy)
        self.retry_after_s = retry_after_s


class UnavailableError(StorageError):
    """The server cannot be reached, or takes nothing at the moment; nothing was changed."""

    default_remedy = "check the address and that `qilbee serve` runs, then try again"


class MethodError(InvalidError):
    """The path is there, and not for this method."""

    default_remedy = "use one of the methods that the header Allow names"


class TooLargeError(InvalidError):
    """The body of the request is larger than the server takes."""

    default_remedy = "send it in parts"


class NotEnabledError(InvalidError):
    """The server was told to do without this."""

    default_remedy = "set search.indexing in the configuration of the server"


class ServerError(QilbeeError):
    """The server failed in a way that nobody foresaw; its log has the error under the id that the message names."""

    default_remedy = "look for that id in the log of the server"
