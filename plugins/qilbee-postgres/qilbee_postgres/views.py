"""Pages of a range of keys, and an instant to read them from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import RLock
from typing import TypeVar

import psycopg

from qilbee_core import StorageError, StoreClosedError
from qilbee_postgres.connection import Connection, Row, array_of, integer_of, rows_of
from qilbee_postgres.connections import Connections

__all__ = ["FIRST_ROWS", "Queries", "View", "following"]

T = TypeVar("T")

FIRST_ROWS = 64
_ROWS_MIN, _ROWS_MAX = 16, 2048
_PAGE_BYTES = 4 << 20


class Queries:
    """The questions that can be asked of a table. Every answer is one round trip."""

    def __init__(self, table: str) -> None:
        self._get = f"select v from {table} where k = $1"  # noqa: S608
        self._get_many = f"select k, v from {table} where k = any($1::bytea[])"  # noqa: S608
        self._pages = {
            (has_after, has_stop, reverse): self._page_of(table, has_after, has_stop, reverse)
            for has_after in (False, True)
            for has_stop in (False, True)
            for reverse in (False, True)
        }

    @staticmethod
    def _page_of(table: str, has_after: bool, has_stop: bool, reverse: bool) -> str:
        # Forwards what was read last takes the place of `start`, backwards that of `stop`.
        low = "k > $2" if has_after and not reverse else "k >= $2"
        high = " and k < $3" if has_stop or (has_after and reverse) else ""
        return f"select k, v from {table} where {low}{high} order by k {'desc' if reverse else 'asc'} limit $1::bigint"  # noqa: S608

    def get(self, connection: Connection, key: bytes) -> bytes | None:
        """The value under ``key``, or None."""
        found = connection.ask(self._get, key)
        return found.get_value(0, 0) if found.ntuples else None

    def get_many(self, connection: Connection, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key."""
        found = dict(rows_of(connection.ask(self._get_many, array_of(list(set(keys))))))
        return [found.get(key) for key in keys]

    def page(
        self, connection: Connection, start: bytes, stop: bytes | None, after: bytes | None, rows: int, *, reverse: bool
    ) -> list[Row]:
        """So many rows of the range from its beginning, or behind ``after``."""
        if after is not None:
            start, stop = (start, after) if reverse else (after, stop)
        sql = self._pages[after is not None, stop is not None, reverse]
        ends = (start,) if stop is None else (start, stop)
        return rows_of(connection.ask(sql, integer_of(rows), *ends))


def following(page: Callable[[bytes | None, int], list[Row]]) -> Iterator[Row]:
    """All rows of a range, whose pages ``page`` gives by the last key before them and the number of their rows."""
    after, rows_max = None, FIRST_ROWS
    while True:
        rows = page(after, rows_max)
        yield from rows
        if len(rows) < rows_max:
            return
        after = rows[-1][0]
        row_bytes = 1 + sum(len(key) + len(value) for key, value in rows) // len(rows)
        rows_max = min(max(_PAGE_BYTES // row_bytes, _ROWS_MIN), 4 * rows_max, _ROWS_MAX)


class View:
    """One instant: a transaction that reads only. Each step is taken under its lock, for it has one connection."""

    __slots__ = ("__weakref__", "_connection", "_connections", "_lock", "_queries")

    def __init__(self, connections: Connections, queries: Queries) -> None:
        self._connections = connections
        self._queries = queries
        self._lock = RLock()  # one that its holder may take again: the garbage collector may close a view meanwhile
        self._connection: Connection | None = None  # for whoever collects what did not come about
        self._connection = connection = connections.view()
        try:
            with connections.deadline(connection):
                # The instant is that of the first question, so one is asked at once.
                connection.execute("begin isolation level repeatable read read only; select 1")
        except BaseException:
            self._connection = None
            connections.drop(connection)
            raise

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key`` at this instant."""
        return self._ask(lambda connection: self._queries.get(connection, key))

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values under ``keys`` at this instant."""
        return self._ask(lambda connection: self._queries.get_many(connection, keys))

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        """The pairs of the range at this instant."""
        with self._lock:
            self._live()
        return self._scanned(start, stop, reverse, closing=False)

    def scan_alone(self, start: bytes, stop: bytes | None, *, reverse: bool) -> Iterator[Row]:
        """The same of a view that nobody else has: it is closed with the last row."""
        return self._scanned(start, stop, reverse, closing=True)

    def _scanned(self, start: bytes, stop: bytes | None, reverse: bool, *, closing: bool) -> Iterator[Row]:
        def page(after: bytes | None, rows: int) -> list[Row]:
            return self._ask(
                lambda connection: self._queries.page(connection, start, stop, after, rows, reverse=reverse)
            )

        try:
            for row in following(page):
                if self._connection is None:
                    self._live()
                yield row
        finally:
            if closing:
                self.close()

    def _ask(self, question: Callable[[Connection], T]) -> T:
        with self._lock:
            connection = self._live()
            try:
                with self._connections.deadline(connection):
                    return question(connection)
            except psycopg.Error as error:
                self._connection = None
                self._connections.drop(connection)
                raise StorageError(
                    f"a snapshot or scan was lost: {' '.join(str(error).split())}", remedy="read again"
                ) from error

    def _live(self) -> Connection:
        if self._connection is None or self._connections.closed:
            raise StoreClosedError("the snapshot, or the store it shows, was closed")
        return self._connection

    def close(self) -> None:
        """Let go of the instant."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                self._connections.give_back(connection)

    def __del__(self) -> None:
        self.close()
