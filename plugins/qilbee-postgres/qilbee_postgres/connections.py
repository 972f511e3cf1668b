"""Connections, each with a deadline for whatever it is asked.

Two pools: one whose connections are held for a statement, and one whose connections are held for as long as somebody
looks at an instant, so that whoever looks keeps nobody from writing. They are not those of psycopg_pool, which connects
in the background: with it, whoever asked a server that was away waited for the whole time-out and was not told why, and
after an outage for the pool's own next attempt.

A server that was frozen, or a network that swallows packets, answers nothing at all, and neither the server's own
time-outs nor TCP's keepalives help then in less than minutes. So a thread watches who waits for an answer, and shuts
the socket of whoever waits too long: the call ends with an error at once.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from qilbee_core import SettingsError, StorageError, StoreClosedError
from qilbee_postgres.connection import Connection
from qilbee_postgres.errors import of_connecting
from qilbee_postgres.settings import EngineSettings

__all__ = ["Connections"]

T = TypeVar("T")

_TICK_S = 0.1
_VIEW_WAIT_S_MAX = 2.0
_SERVER_SHARE = 0.9
"""The server's own time-out comes first where the server lives: it says more, and stops the work."""


class _Pool:
    """So many connections at most, made when they are wanted; the one used last is used next."""

    def __init__(self, connect: Callable[[], Connection], size_max: int, wait_s_max: float) -> None:
        self._connect = connect
        self._idle: list[Connection] = []
        self._size_max = size_max
        self._wait_s_max = wait_s_max
        self._changed = threading.Condition(threading.Lock())
        self._used = 0
        self._closed = False

    def take(self) -> Connection | None:
        """A connection that lives; None where none gets free in time."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, self._wait_s_max):
                return None
            self._used += 1
            connection = self._next_idle()
        try:
            while connection is not None and connection.is_stale():
                connection.close()
                with self._changed:
                    connection = self._next_idle()
            return connection or self._connect()
        except BaseException:
            with self._changed:
                self._leave()
            raise

    def _has_room(self) -> bool:
        return self._used < self._size_max

    def _next_idle(self) -> Connection | None:
        return self._idle.pop() if self._idle else None

    def give(self, connection: Connection) -> None:
        """Take it back; one that is closed, or in the middle of something, is let go of."""
        with self._changed:
            if not self._closed and connection.pgconn.transaction_status == TransactionStatus.IDLE:
                self._idle.append(connection)
                self._leave()
                return
        connection.close()
        with self._changed:
            self._leave()

    def _leave(self) -> None:
        self._used -= 1
        self._changed.notify()

    def close(self) -> None:
        """Let go of those that nobody uses; the others follow when they are given back."""
        with self._changed:
            self._closed = True
        self.drop_idle()

    def drop_idle(self) -> None:
        """Let go of those that nobody uses."""
        with self._changed:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def figures(self) -> tuple[int, int]:
        """How many are used, and how many there are."""
        with self._changed:
            return self._used, self._used + len(self._idle)


class Connections:
    """All connections to one database. Thread-safe."""

    def __init__(self, dsn: str, settings: EngineSettings, *, synchronous: bool) -> None:
        try:
            given = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as error:
            raise SettingsError("the dsn cannot be read", remedy="write postgresql://user@host/database") from error
        hosts = str(given.get("host") or os.environ.get("PGHOST") or "localhost")
        name = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or ""
        self.where = f"PostgreSQL {hosts}/{name}"
        """Where it is, without what is secret."""
        self._conninfos = _by_host(
            make_conninfo(
                dsn,
                connect_timeout=given.get("connect_timeout") or max(1, round(settings.connect_timeout_ms / 1000)),
                fallback_application_name="qilbee-postgres",
                target_session_attrs=given.get("target_session_attrs") or "read-write",
            )
        )
        """One for each host of the dsn, that which was good last before the others."""
        server_ms = int(settings.statement_timeout_ms * _SERVER_SHARE)
        self._setup = (
            f"set statement_timeout = {server_ms}; set default_transaction_isolation = 'read committed'; "
            f"set synchronous_commit = {'on' if synchronous else 'off'}"
        )
        self._settings = settings
        self._statement_s = settings.statement_timeout_ms / 1000
        self._waiting: dict[Connection, float] = {}
        """Who waits for an answer, and until when."""
        self._returned: SimpleQueue[Connection | None] = SimpleQueue()
        """Connections of views that were closed or dropped. A queue that the garbage collector may put into, too."""
        self.closed = False
        self._pid = os.getpid()
        self._ending = threading.Event()
        self._pool = _Pool(self._connect, settings.connections_max, self._statement_s)
        self._views = _Pool(self._connect, settings.views_max, _VIEW_WAIT_S_MAX)
        self._threads: Sequence[threading.Thread] = ()

    def _connect(self) -> Connection:
        refusals: list[psycopg.Error] = []
        for conninfo in self._conninfos:
            try:
                connection = Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
                with self.deadline(connection):
                    connection.prepare_for_use(self._setup)
            except psycopg.Error as error:
                refusals.append(error)
                continue
            if refusals:
                # A machine that is gone answers nothing: not everybody who connects shall find out in whole seconds.
                self._conninfos = sorted(self._conninfos, key=conninfo.__ne__)
            return connection
        raise of_connecting(refusals, self.where) from refusals[-1]

    def open(self) -> None:
        """Begin to watch deadlines, and to take back views."""
        self._threads = [
            threading.Thread(target=self._watch, name="qilbee-postgres-watch", daemon=True),
            threading.Thread(target=self._take_back, name="qilbee-postgres-return", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        _open_ones.add(self)

    def close(self) -> None:
        """Let go of all. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._returned.put(None)
        for thread in self._threads[1:]:
            thread.join()
        self._close_returned()
        self._pool.close()
        self._views.close()
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _close_returned(self) -> None:
        with suppress(Empty):
            while True:
                connection = self._returned.get_nowait()
                if connection is None:
                    self._returned.put(None)  # that is for the thread
                    return
                connection.close()

    def abandon(self) -> None:
        """In a forked child: what the parent goes on using is never touched again, not even to be closed."""
        self.closed = True
        self._threads = ()
        _abandoned.append((self._pool, self._views))

    def statement(self) -> _Statement:
        """A connection for a statement or a transaction, under a deadline for each wait."""
        return _Statement(self)

    @contextmanager
    def deadline(self, connection: Connection) -> Iterator[None]:
        """Whatever ``connection`` is asked in here has to be answered in time."""
        self.extend(connection)
        try:
            yield
        finally:
            del self._waiting[connection]

    def extend(self, connection: Connection) -> None:
        """Let the deadline begin, or begin anew: one of several statements was answered."""
        self._waiting[connection] = time.monotonic() + self._statement_s

    def read(self, ask: Callable[[Connection], T]) -> T:
        """What ``ask`` gives, asked once more where the connection was lost: to read twice does no harm."""
        for may_repeat in (True, False):
            with self.statement() as connection:
                try:
                    return ask(connection)
                except psycopg.OperationalError:
                    if not may_repeat or connection.timed_out or not connection.closed:
                        raise
        raise AssertionError

    def view(self) -> Connection:
        """A connection to keep, for :meth:`give_back`."""
        return self._taken(self._views)

    def give_back(self, connection: Connection) -> None:
        """Take a view's connection back. It is rolled back elsewhere: whoever closes a view waits for nothing."""
        if self._pid == os.getpid():
            self._returned.put(connection)
            if self.closed:
                self._close_returned()

    def drop(self, connection: Connection) -> None:
        """Take a view's connection back and close it."""
        connection.close()
        self._views.give(connection)

    def _taken(self, pool: _Pool) -> Connection:
        if self.closed:
            raise StoreClosedError("the store is closed")
        connection = pool.take()
        if connection is not None:
            return connection
        if pool is self._views:
            raise StorageError(
                f"{self._settings.views_max} snapshots and long scans are open at once",
                remedy="close some of them, or raise views_max in [storage.engine]",
            )
        raise StorageError(
            f"none of the {self._settings.connections_max} connections to {self.where} got free in time",
            remedy="raise connections_max in [storage.engine]",
        )

    def figures(self) -> dict[str, int]:
        """Figures of the pools, known without asking anybody."""
        used, connections = self._pool.figures()
        return {"connections": connections, "connections_used": used, "open_views": self._views.figures()[0]}

    def longest_wait_s(self) -> float:
        """How long somebody has waited for an answer by now; 0 where nobody waits."""
        until = min(self._waiting.copy().values(), default=None)
        return 0.0 if until is None else time.monotonic() - until + self._statement_s

    def _watch(self) -> None:
        while not self._ending.wait(_TICK_S):
            now = time.monotonic()
            for connection, until in list(self._waiting.items()):
                if now > until:
                    connection.shut()
                    # They are to the same server: whoever took one of them would wait as long.
                    self._pool.drop_idle()
                    self._views.drop_idle()

    def _take_back(self) -> None:
        while (connection := self._returned.get()) is not None:
            try:
                with self.deadline(connection):
                    connection.execute("rollback")
            except psycopg.Error:
                connection.close()
            self._views.give(connection)


class _Statement:
    """What :meth:`Connections.statement` gives. A generator would do, and take longer than all else of borrowing."""

    __slots__ = ("_connection", "_connections")

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def __enter__(self) -> Connection:
        connections = self._connections
        self._connection = connection = connections._taken(connections._pool)
        connections.extend(connection)
        return connection

    def __exit__(self, *_: object) -> None:
        del self._connections._waiting[self._connection]
        self._connections._pool.give(self._connection)


def _by_host(conninfo: str) -> list[str]:
    """A conninfo for each host of one that may name several."""
    given = conninfo_to_dict(conninfo)
    named = {name: str(given[name]).split(",") for name in ("host", "hostaddr", "port") if given.get(name)}
    count = max(map(len, named.values()), default=1)
    each = ({name: its[number % len(its)] for name, its in named.items()} for number in range(count))
    return [make_conninfo(conninfo, **host) for host in each]


_open_ones: weakref.WeakSet[Connections] = weakref.WeakSet()
_abandoned: list[object] = []


def _after_fork_in_child() -> None:
    for connections in list(_open_ones):
        connections.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
