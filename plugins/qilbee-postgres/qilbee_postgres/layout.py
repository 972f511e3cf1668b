"""The two tables of a store, and how it is told that they are ours.

::

    qilbee          k bytea primary key, v bytea not null      the store
    qilbee_marker   format, layout, synced                     one row: whose it is, and what sync() counts up

The names follow ``table`` of ``[storage.engine]``. Both are made in one transaction.
"""

from __future__ import annotations

import psycopg

from qilbee_core import FormatVersionError, NotFoundError
from qilbee_postgres.connection import Connection

__all__ = ["LAYOUT_VERSION", "claim"]

LAYOUT_VERSION = 1
_FORMAT = "qilbee-store"
_MADE_AT_ONCE = {"23505", "42P07", "42710"}
"""What the second of two who make the same tables at once may be told."""


def claim(connection: Connection, table: str, where: str, *, create: bool) -> None:
    """Make sure that the tables are a store of ours, or ``create`` them."""
    if not _is_ours(connection, table, where):
        if not create:
            raise NotFoundError(
                f"there is no store in {where}",
                remedy="check the dsn, and table in [storage.engine]; open_store() makes one",
            )
        try:
            with connection.transaction():
                connection.execute(f"create table {table} (k bytea primary key, v bytea not null)")
                connection.execute(
                    f"create table {table}_marker (format text primary key, layout integer not null, "
                    "synced bigint not null)"
                )
                connection.execute(
                    f"insert into {table}_marker (format, layout, synced) values (%s, %s, 0)",  # noqa: S608
                    (_FORMAT, LAYOUT_VERSION),
                )
        except psycopg.Error as error:
            if error.sqlstate not in _MADE_AT_ONCE or not _is_ours(connection, table, where):
                raise


def _is_ours(connection: Connection, table: str, where: str) -> bool:
    """False where there is nothing yet."""
    found = connection.execute("select to_regclass(%s), to_regclass(%s)", (table, f"{table}_marker")).fetchone()
    if found == (None, None):
        return False
    strange = FormatVersionError(
        f"{where} has a table {table!r} that is not a store of ours",
        remedy="name another database, or another table in [storage.engine]",
    )
    if found is None or None in found:
        raise strange
    try:
        rows = connection.execute(f"select format, layout from {table}_marker").fetchall()  # noqa: S608
        connection.execute(f"select k, v from {table} limit 0")  # noqa: S608
    except psycopg.errors.UndefinedColumn as error:
        raise strange from error
    if len(rows) != 1 or rows[0][0] != _FORMAT:
        raise strange
    if rows[0][1] > LAYOUT_VERSION:
        raise FormatVersionError(
            f"{where} holds a store of layout {rows[0][1]}, this release knows {LAYOUT_VERSION}",
            remedy="upgrade qilbee-postgres",
        )
    return True
