"""From what PostgreSQL and its client say to what a caller can do about it."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from qilbee_core import (
    CorruptRecordError,
    OutcomeUnknownError,
    QilbeeError,
    SettingsError,
    StorageError,
    StorageFullError,
)

__all__ = ["is_lost", "may_retry", "of_connecting", "of_postgres", "unknown"]

_RETRY = {"40001", "40P01"}
"""A serialization failure, a deadlock: nothing was written, and the same may succeed now."""


def may_retry(error: psycopg.Error) -> bool:
    """Whether the same transaction may succeed when it is tried again."""
    return error.sqlstate in _RETRY


def is_lost(error: psycopg.Error) -> bool:
    """Whether ``error`` means that there is no connection any more, and no word of what became of the statement."""
    state = error.sqlstate or ""
    return isinstance(error, psycopg.OperationalError) and (not state or state.startswith(("08", "57P")))


def unknown(reason: object) -> OutcomeUnknownError:
    """A commit that nobody knows the end of."""
    return OutcomeUnknownError(f"PostgreSQL did not say what became of a write ({_line(reason)})")


def of_connecting(refusals: Sequence[psycopg.Error], where: str) -> QilbeeError:
    """Why there is no connection to ``where``, by what each of its hosts has said."""
    said = "; ".join(dict.fromkeys(map(_line, refusals)))
    # libpq gives no code for what a server answers here, only its text.
    states = {error.sqlstate for error in refusals}
    if states & {"28P01", "28000"} or "authentication failed" in said or "no password supplied" in said:
        return SettingsError(f"{where} refuses the user or the password: {said}", remedy="mend the dsn, or PGPASSWORD")
    if "3D000" in states or ('database "' in said and "does not exist" in said):
        return SettingsError(f"{where} has no such database: {said}", remedy="make it with createdb, or mend the dsn")
    if "role" in said and "does not exist" in said:
        return SettingsError(f"{where} has no such user: {said}", remedy="make it with createuser, or mend the dsn")
    if "read-only" in said or "not accept" in said:
        return StorageError(f"{where} takes no writes: {said}", remedy="name the primary, or all hosts, in the dsn")
    if "too many" in said or "remaining connection slots" in said:
        return StorageError(
            f"{where} has no connection left: {said}",
            remedy="raise max_connections there, or lower connections_max in [storage.engine]",
        )
    return StorageError(
        f"no connection to {where}: {said}", remedy="see that the server runs, and what it logs; then try again"
    )


def of_postgres(error: psycopg.Error, where: str) -> QilbeeError:
    """``error``, met in a statement that has certainly changed nothing, as one of ours."""
    said, state = _line(error), error.sqlstate or ""
    if state == "53100":
        return StorageFullError(f"{where} has no space left: {said}")
    if state == "25006":
        return StorageError(
            f"{where} is a standby, or read-only: {said}",
            remedy="give all hosts and target_session_attrs=read-write in the dsn",
        )
    if state == "57014":
        return StorageError(f"{where} took too long: {said}", remedy="raise statement_timeout_ms in [storage.engine]")
    if state == "42501":
        return SettingsError(f"{where} does not allow it: {said}", remedy="grant the user what is missing")
    if state in ("42P01", "42703"):
        return StorageError(f"{where}: the tables of the store are gone: {said}", remedy="restore them from a copy")
    if state.startswith("XX"):
        return CorruptRecordError(f"{where}: {said}", remedy="restore the database from a copy")
    return StorageError(f"{where}: {said}")


def _line(reason: object) -> str:
    """What was said, on one line."""
    return " ".join(str(reason).split()) or type(reason).__name__
