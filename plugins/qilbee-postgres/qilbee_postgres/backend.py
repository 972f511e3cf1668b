"""The storage backend: one table, and what every process that has it open may rely on.

Other processes write to it too, so nothing is remembered here of what it holds. A write is committed when it returns:
at the level ``sync`` on the disk, and on the standbys that the server waits for; at every other level in the server,
which writes it out within three times its ``wal_writer_delay`` (0.6 s), or at the next ``sync()``.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar
from weakref import WeakSet

import psycopg
from psycopg.pq import TransactionStatus

from qilbee_core import (
    JSON,
    BackendOptions,
    Blocking,
    DurableWrites,
    QilbeeError,
    SettingsError,
    StoreClosedError,
    WriteBatch,
    WriteStallError,
)
from qilbee_postgres.batches import Changes, Statements, changes_of
from qilbee_postgres.connection import Connection, Row
from qilbee_postgres.connections import Connections
from qilbee_postgres.errors import is_lost, may_retry, of_postgres, unknown
from qilbee_postgres.layout import claim
from qilbee_postgres.settings import engine_settings
from qilbee_postgres.views import FIRST_ROWS, Queries, View

__all__ = ["PostgresBackend"]

T = TypeVar("T")

log = logging.getLogger("qilbee_core.postgres")

_ATTEMPTS_MAX = 12
_BACKOFF_S_MAX = 0.2
_WAIT_S_MAX = 2.0
"""Who waits longer for an answer says that the server takes no writes."""


class PostgresBackend(Blocking, DurableWrites):
    """A table in the database that ``options.dsn`` names. Every call may wait for the network, hence ``Blocking``.

    ``options.engine`` may hold what :class:`~qilbee_postgres.settings.EngineSettings` has. ``options.durability`` says
    how a write is committed; ``path``, ``cache_bytes`` and ``compression`` mean nothing here.
    """

    name = "postgres"

    def __init__(self, options: BackendOptions) -> None:
        settings = engine_settings(options.engine)
        if not options.dsn:
            raise SettingsError(
                "the postgres backend needs to know its database", remedy='give dsn = "postgresql://user@host/database"'
            )
        self._synchronous = options.durability == "sync"
        self._connections = Connections(options.dsn, settings, synchronous=self._synchronous)
        self._where = self._connections.where
        self._queries = Queries(settings.table)
        self._statements = Statements(settings.table)
        count_up = f"update {settings.table}_marker set synced = synced + 1"  # noqa: S608
        self._sync = f"begin; set local synchronous_commit = on; {count_up}; commit"
        self._sync_at_close = False
        """Something was written, or perhaps was, without waiting for the server's disk."""
        self._views: WeakSet[View] = WeakSet()
        self._server: dict[str, JSON] = {}
        self._connections.open()
        try:
            self._ask(partial(claim, table=settings.table, where=self._where, create=options.create))
            self._ask(self._look_at_server)
        except BaseException:
            self._connections.close()
            raise

    def _look_at_server(self, connection: Connection) -> None:
        names = ("server_version", "fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names")
        for name in names:
            row = connection.execute("select current_setting(%s, true)", (name,)).fetchone()
            self._server[name] = None if row is None else row[0]
        if self._server["fsync"] == "off":
            if self._synchronous:
                raise SettingsError(
                    f"{self._where} runs with fsync = off, so nothing it is told survives a power cut",
                    remedy='switch fsync on there, or open the store with durability = "async"',
                )
            log.warning("%s runs with fsync = off: a power cut may take the whole store", self._where)
        told = ", ".join(f"{name} = {value or 'none'}" for name, value in self._server.items())
        log.info("%s: %s", self._where, told)

    # Reading

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key``, or None where there is none."""
        return self._ask(lambda connection: self._queries.get(connection, key))

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key, in the order given, duplicates included."""
        return self._ask(lambda connection: self._queries.get_many(connection, keys))

    def page(
        self, start: bytes = b"", stop: bytes | None = None, limit: int = FIRST_ROWS, *, reverse: bool = False
    ) -> list[Row]:
        """The first pairs of a scan, ``limit`` at most, in one round trip."""
        return self._ask(lambda connection: self._queries.page(connection, start, stop, None, limit, reverse=reverse))

    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        """The pairs with ``start <= key < stop`` as they are now, in order of key, or backwards."""
        rows = self.page(start, stop, reverse=reverse)
        if len(rows) < FIRST_ROWS:
            return self._shown(rows)
        # More than a page: its instant has to be kept, by a transaction that begins now.
        return self._kept(View(self._connections, self._queries)).scan_alone(start, stop, reverse=reverse)

    def _shown(self, rows: list[Row]) -> Iterator[Row]:
        for row in rows:
            if self._connections.closed:
                raise StoreClosedError("the store is closed")
            yield row
        if self._connections.closed:
            raise StoreClosedError("the store is closed")

    def snapshot(self) -> View:
        """This instant. It takes a connection while it is open, and keeps the server from removing what it shows."""
        try:
            return self._kept(View(self._connections, self._queries))
        except psycopg.Error as error:
            raise of_postgres(error, self._where) from error

    def _kept(self, view: View) -> View:
        self._views.add(view)
        return view

    def _ask(self, question: Callable[[Connection], T]) -> T:
        try:
            return self._connections.read(question)
        except psycopg.Error as error:
            raise of_postgres(error, self._where) from error

    # Writing

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` whole, or raise and apply nothing; OutcomeUnknownError where the server did not say."""
        self._sync_at_close = not self._synchronous
        changes = changes_of(batch)
        write = self._write_at_once if self._statements.is_one(changes, batch.expects) else self._write_in_steps
        for attempt in range(_ATTEMPTS_MAX):
            try:
                with self._connections.statement() as connection:
                    connection.warning = ""
                    write(connection, changes, batch)
                    if connection.warning:
                        raise unknown(connection.warning)
            except psycopg.Error as error:
                if not may_retry(error):
                    raise of_postgres(error, self._where) from error
            else:
                return
            time.sleep(random.uniform(0, min(_BACKOFF_S_MAX, 0.002 * 2**attempt)))  # noqa: S311
        raise WriteStallError(f"{_ATTEMPTS_MAX} attempts to write met other writers", remedy="write less at a time")

    def _write_at_once(self, connection: Connection, changes: Changes, batch: WriteBatch) -> None:
        try:
            self._statements.write_at_once(connection, changes, batch.expects)
        except psycopg.Error as error:
            if is_lost(error) or connection.closed:
                raise unknown(error) from error
            raise

    def _write_in_steps(self, connection: Connection, changes: Changes, batch: WriteBatch) -> None:
        try:
            connection.ask("begin")
            for _ in self._statements.steps(connection, changes, batch.expects):
                self._connections.extend(connection)
        except BaseException:
            # One that is closed, or waits for an answer still, is let go of, which ends the transaction too.
            if connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                connection.ask("rollback")
            raise
        try:
            connection.ask("commit")
        except psycopg.Error as error:
            if is_lost(error) or connection.closed:
                raise unknown(error) from error
            raise

    def sync(self) -> None:
        """Return once every earlier write is on the server's disk, and on the standbys that it waits for."""
        if self._connections.closed:
            raise StoreClosedError("the store is closed")
        # A log has one order: when this commit is durable, so is all that was committed before, by anybody. So there is
        # always one to make: what is there may be another's, or left by a write whose end is unknown.
        for attempt in range(_ATTEMPTS_MAX):
            try:
                with self._connections.statement() as connection:
                    connection.warning = ""
                    connection.execute(self._sync)
                    if connection.warning:
                        raise unknown(connection.warning)
                    return
            except psycopg.Error as error:
                if not may_retry(error) or attempt == _ATTEMPTS_MAX - 1:
                    raise of_postgres(error, self._where) from error
                time.sleep(random.uniform(0, _BACKOFF_S_MAX))  # noqa: S311

    # What it can do besides

    def reopen(self) -> None:
        """See that the server takes durable writes again."""
        self.sync()

    def stats(self) -> Mapping[str, JSON]:
        """Figures of the connections, and what the server was set to when the store was opened. Asks nobody."""
        if self._connections.closed:
            raise StoreClosedError("the store is closed")
        wait_s = self._connections.longest_wait_s()
        stopped = f"{self._where} has not answered for {wait_s:.0f} s: see that it runs, and that its standby does"
        return {
            **self._connections.figures(),
            "longest_wait_ms": round(wait_s * 1000),
            "writes_stopped": wait_s > _WAIT_S_MAX and stopped,
            **{f"server_{name}": value for name, value in self._server.items()},
        }

    def close(self) -> None:
        """Make everything durable, end every view and let go of the connections. Idempotent."""
        if self._connections.closed:
            return
        try:
            if self._sync_at_close:
                self.sync()
        except QilbeeError as error:
            log.warning("the last writes to %s may not survive a power cut: %s", self._where, error)
            raise
        finally:
            for view in list(self._views):
                view.close()
            self._connections.close()
