"""One connection: statements that are prepared once and speak binary, and an end that another thread can put to it.

A cursor of psycopg costs a small statement twice as much CPU as all the rest of the way to the server: it looks at
the type of each parameter, at those of the members of lists, and at what may be prepared. Here each parameter is bytes
already, so the statements of a store go to libpq by psycopg's ``pgconn``.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct

import psycopg
from psycopg.errors import Diagnostic, error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

__all__ = ["Connection", "Row", "array_of", "integer_of", "rows_of"]

Row = tuple[bytes, bytes]

_PREPARED_MAX = 100
_GOOD = {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}
_BYTEA_OID = 17
_ARRAY = Struct("!iiIii")
_LENGTH = Struct("!i")
_INTEGER = Struct("!q")


class Connection(psycopg.Connection[TupleRow]):
    """A connection that can be shut from another thread, and remembers what it was warned of."""

    lifeline: socket.socket | None = None
    """The socket once more, under a number of its own, so that nothing else can ever be shut by it."""
    timed_out = False
    warning = ""
    """The last warning of class 01000 since it was emptied: the one about a standby that did not confirm."""

    def prepare_for_use(self, statements: str) -> None:
        """Once, after connecting."""
        self.lifeline = socket.socket(fileno=os.dup(self.fileno()))
        self.add_notice_handler(self._noted)
        self._names: dict[str, bytes] = {}
        self._readable, self._ready = select.poll(), select.poll()
        self._readable.register(self.fileno(), select.POLLIN)
        self._ready.register(self.fileno(), select.POLLIN | select.POLLOUT)
        try:
            self.execute(statements)
        except BaseException:
            self.close()
            raise

    def _noted(self, diagnostic: Diagnostic) -> None:
        if diagnostic.sqlstate == "01000" and diagnostic.severity_nonlocalized == "WARNING":
            self.warning = f"{diagnostic.message_primary}: {diagnostic.message_detail}"

    def ask(self, statement: str, *parameters: bytes) -> PGresult:
        """Run a statement, prepared the first time, whose parameters and columns are in the server's binary form.

        psycopg.Error where it fails. Outside of a transaction it is one of its own.
        """
        name = self._names.get(statement)
        if name is None:
            name = self._prepare(statement)
        formats = [Format.BINARY] * len(parameters)
        self.pgconn.send_query_prepared(name, list(parameters), formats, Format.BINARY)  # psycopg 3.2 takes only lists
        return self._answer()

    def _prepare(self, statement: str) -> bytes:
        if len(self._names) == _PREPARED_MAX:  # there are many only of those that name ranges
            self.execute("deallocate all")
            self._names.clear()
        name = b"qilbee_%d" % len(self._names)
        self.pgconn.send_prepare(name, statement.encode())
        self._answer()
        self._names[statement] = name
        return name

    def _answer(self) -> PGresult:
        # All waiting is done by poll(): meanwhile others run, and Ctrl-C ends it. In get_result() no thread would run.
        pgconn = self.pgconn
        while pgconn.flush():
            self._ready.poll()
            pgconn.consume_input()
        results: list[PGresult] = []
        while True:
            while pgconn.is_busy():
                self._readable.poll()
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                break
            results.append(result)
        if results[-1].status not in _GOOD:
            raise error_from_result(results[-1])
        return results[-1]

    def shut(self) -> None:
        """End whatever waits for an answer."""
        self.timed_out = True
        if self.lifeline is not None:
            with suppress(OSError):
                self.lifeline.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        super().close()
        if self.lifeline is not None:
            self.lifeline.close()

    def is_stale(self) -> bool:
        """Whether the server has closed it while nobody looked: then there is something to read, if only the end."""
        return bool(self._readable.poll(0))


def array_of(values: Sequence[bytes]) -> bytes:
    """A parameter ``bytea[]``: how many dimensions, nulls and of what, how many values from which number, and each."""
    parts = [_ARRAY.pack(1, 0, _BYTEA_OID, len(values), 1)]
    for value in values:
        parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def integer_of(value: int) -> bytes:
    """A parameter ``bigint``."""
    return _INTEGER.pack(value)


def rows_of(result: PGresult) -> list[Row]:
    """The rows of a result of two columns that are never null."""
    value = result.get_value
    return [(value(row, 0), value(row, 1)) for row in range(result.ntuples)]  # type: ignore[misc]
