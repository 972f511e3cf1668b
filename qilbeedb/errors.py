"""How every error goes over the wire: one table, read in both directions."""

from __future__ import annotations

from typing import NamedTuple

from qilbeedb.exceptions import (
    AuthenticationError,
    ConflictError,
    CorruptRecordError,
    DataError,
    FormatVersionError,
    InvalidError,
    LostWritesError,
    MethodError,
    NotEnabledError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    PluginError,
    ProviderNotFoundError,
    QilbeeError,
    RateLimitedError,
    ReadOnlyError,
    ServerError,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
    TooLargeError,
    UnavailableError,
    UnfinishedCopyError,
    WriteStallError,
)

__all__ = ["ERRORS", "ErrorKind", "error_from", "kind_of"]


class ErrorKind(NamedTuple):
    """How one class of errors goes over the wire."""

    error: type[QilbeeError]
    status: int
    code: str


ERRORS = (
    ErrorKind(AuthenticationError, 401, "AUTHENTICATION"),
    ErrorKind(PermissionDeniedError, 403, "PERMISSION_DENIED"),
    ErrorKind(NotFoundError, 404, "NOT_FOUND"),
    ErrorKind(MethodError, 405, "METHOD_NOT_ALLOWED"),
    ErrorKind(TooLargeError, 413, "TOO_LARGE"),
    ErrorKind(SettingsError, 400, "SETTINGS"),
    ErrorKind(ProviderNotFoundError, 400, "PROVIDER_NOT_FOUND"),
    ErrorKind(NotEnabledError, 501, "SEMANTIC_SEARCH_NOT_ENABLED"),
    ErrorKind(InvalidError, 400, "INVALID"),
    ErrorKind(ConflictError, 409, "CONFLICT"),
    ErrorKind(RateLimitedError, 429, "RATE_LIMITED"),
    ErrorKind(UnavailableError, 503, "UNAVAILABLE"),
    ErrorKind(StoreLockedError, 503, "STORE_LOCKED"),
    ErrorKind(StoreClosedError, 503, "STORE_CLOSED"),
    ErrorKind(ReadOnlyError, 503, "READ_ONLY"),
    ErrorKind(StorageFullError, 507, "STORAGE_FULL"),
    ErrorKind(WriteStallError, 503, "WRITE_STALL"),
    ErrorKind(OutcomeUnknownError, 503, "OUTCOME_UNKNOWN"),
    ErrorKind(StorageError, 503, "STORAGE"),
    ErrorKind(CorruptRecordError, 500, "CORRUPT_RECORD"),
    ErrorKind(FormatVersionError, 500, "FORMAT_VERSION"),
    ErrorKind(LostWritesError, 500, "LOST_WRITES"),
    ErrorKind(UnfinishedCopyError, 500, "UNFINISHED_COPY"),
    ErrorKind(DataError, 500, "DATA"),
    ErrorKind(PluginError, 500, "PLUGIN"),
    ErrorKind(ServerError, 500, "SERVER"),
)
"""Special classes come before those they are of."""

_BY_CODE = {kind.code: kind.error for kind in ERRORS}
_BY_STATUS: dict[int, type[QilbeeError]] = {
    400: InvalidError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: MethodError,
    409: ConflictError,
    413: TooLargeError,
    429: RateLimitedError,
    501: NotEnabledError,
    502: UnavailableError,
    503: UnavailableError,
    504: OutcomeUnknownError,
    507: StorageFullError,
}


def kind_of(error: QilbeeError) -> ErrorKind:
    """How an error goes over the wire.

    >>> kind_of(ConflictError("episode 7 differs"))[1:]
    (409, 'CONFLICT')
    """
    for kind in ERRORS:
        if isinstance(error, kind.error):
            return kind
    return ERRORS[-1]


def error_from(
    status: int, code: str | None, message: str, *, remedy: str | None = None, retry_after_s: float = 1.0
) -> QilbeeError:
    """The error that an answer tells; one of a proxy between the two, which knows no code of ours, by its status.

    >>> error_from(409, "CONFLICT", "episode 7 differs")
    ConflictError('episode 7 differs')
    >>> error_from(503, None, "no server there")
    UnavailableError('no server there')
    """
    error = _BY_CODE.get(code or "") or _BY_STATUS.get(status) or (ServerError if status >= 500 else InvalidError)
    if issubclass(error, RateLimitedError):
        return error(message, remedy=remedy, retry_after_s=retry_after_s)
    return error(message, remedy=remedy)
