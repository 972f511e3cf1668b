"""A batch as statements.

Its operations in order come to the same as: these keys and ranges deleted, then these pairs put. Nearly every batch
only puts pairs, and expects at most one value: that is one statement, which locks the row it expects something of, and
one round trip. Any other batch is a transaction.

What makes it right with other writers at work:

- Locks are taken in the order of the keys, those of ``Expect`` first, so that two batches seldom wait for each other.
- A row that is missing cannot be locked. Who expects that inserts one, doing nothing where there is one: whoever else
  inserts it then waits for our end.
- What is to be deleted is locked first, and deleted in one statement of its own. A statement sees what was committed
  when it began, not when it got its last lock: without that, who deletes a record while another batch, which expects
  it, puts a row beside it would leave the row. *Repeatable read* does not help, for a lock alone is no conflict there.
- The puts come before the deletes, so that whoever puts the same key has ended before it is seen what is to be deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from msgspec import Struct

from qilbee_core import ConflictError, Delete, Expect, InvalidError, Put, WriteBatch
from qilbee_postgres.connection import Connection, array_of, rows_of

__all__ = ["KEY_BYTES_MAX", "Changes", "Statements", "changes_of"]

KEY_BYTES_MAX = 2000
"""An index of PostgreSQL takes a third of a page, 2704 bytes, of which some are its own."""

_ROWS_PER_STATEMENT = 10_000
_BYTES_PER_STATEMENT = 32 << 20


class Changes(Struct, frozen=True, gc=False):
    """What the operations of a batch come to: these ranges and keys go, except for the pairs that are put."""

    ranges: list[tuple[bytes, bytes]]
    deletes: list[bytes]
    puts: dict[bytes, bytes]


def changes_of(batch: WriteBatch) -> Changes:
    """What ``batch`` comes to; InvalidError where a key cannot be stored."""
    ranges: list[tuple[bytes, bytes]] = []
    deletes: set[bytes] = set()
    puts: dict[bytes, bytes] = {}
    for operation in batch.operations:
        if isinstance(operation, Put):
            if len(operation.key) > KEY_BYTES_MAX:
                raise InvalidError(
                    f"the batch has a key of {len(operation.key)} bytes, the postgres backend stores {KEY_BYTES_MAX}"
                )
            puts[operation.key] = operation.value
            if deletes:
                deletes.discard(operation.key)
        elif isinstance(operation, Delete):
            puts.pop(operation.key, None)
            deletes.add(operation.key)
        elif operation.start < operation.stop:
            ranges.append((operation.start, operation.stop))
            for key in [key for key in puts if operation.start <= key < operation.stop]:
                del puts[key]
    return Changes(ranges, sorted(deletes), puts)


class Statements:
    """How to write to one table."""

    def __init__(self, table: str) -> None:
        put = f"insert into {table} (k, v) select u.k, u.v from {{}}unnest($1::bytea[], $2::bytea[]) as u(k, v)"  # noqa: S608
        replace = " on conflict (k) do update set v = excluded.v"
        self._put = put.format("") + replace
        self._put_where_held = (
            f"with held as (select 1 from {table} where k = $3 and v = $4 for update) "  # noqa: S608
            + put.format("held, ")
            + replace
        )
        self._make = put.format("") + " on conflict (k) do nothing"
        self._hold = f"select k, v from {table} where k = any($1::bytea[]) order by k for update"  # noqa: S608
        self._delete = f"delete from {table} where k = any($1::bytea[])"  # noqa: S608
        self._table = table

    def is_one(self, changes: Changes, expects: Sequence[Expect]) -> bool:
        """Whether :meth:`write_at_once` can do it."""
        return bool(
            changes.puts
            and not changes.ranges
            and not changes.deletes
            and (not expects or (len(expects) == 1 and expects[0].value is not None))
            and len(changes.puts) <= _ROWS_PER_STATEMENT
            and sum(map(len, changes.puts.values())) <= _BYTES_PER_STATEMENT
        )

    def write_at_once(self, connection: Connection, changes: Changes, expects: Sequence[Expect]) -> None:
        """Put the pairs, in one statement that is its own transaction."""
        keys = sorted(changes.puts)
        rows = array_of(keys), array_of([changes.puts[key] for key in keys])
        if not expects:
            connection.ask(self._put, *rows)
            return
        (expect,) = expects
        assert expect.value is not None
        if not connection.ask(self._put_where_held, *rows, expect.key, expect.value).command_tuples:
            raise _conflict(expect.key)

    def steps(self, connection: Connection, changes: Changes, expects: Sequence[Expect]) -> Iterator[None]:
        """Do it inside of a transaction, a step for each statement."""
        puts = changes.puts
        yield from self._expect(connection, expects, puts)
        keys = iter(sorted(puts))
        while some := _some(keys, puts):
            connection.ask(self._put, array_of(some), array_of([puts[key] for key in some]))
            yield
        if changes.deletes or changes.ranges:
            gone, given = self._gone(changes)
            lock = f"select 1 from {self._table} where {gone} order by k for update"  # noqa: S608
            connection.ask(f"select count(*) from ({lock}) as held", *given)  # noqa: S608
            yield
            connection.ask(f"delete from {self._table} where {gone}", *given)  # noqa: S608
            yield

    @staticmethod
    def _gone(changes: Changes) -> tuple[str, list[bytes]]:
        """Which rows are to be deleted: a condition, and its parameters."""
        conditions: list[str] = []
        parameters: list[bytes] = []

        def given(value: bytes) -> str:
            parameters.append(value)
            return f"${len(parameters)}"

        if changes.deletes:
            conditions.append(f"k = any({given(array_of(changes.deletes))}::bytea[])")
        conditions += [f"k >= {given(start)} and k < {given(stop)}" for start, stop in changes.ranges]
        gone = " or ".join(f"({condition})" for condition in conditions)
        put_inside = [key for key in changes.puts if any(start <= key < stop for start, stop in changes.ranges)]
        if put_inside:
            gone = f"({gone}) and not k = any({given(array_of(put_inside))}::bytea[])"
        return gone, parameters

    def _expect(self, connection: Connection, expects: Sequence[Expect], puts: dict[bytes, bytes]) -> Iterator[None]:
        present = {expect.key: expect.value for expect in expects if expect.value is not None}
        missing = sorted({expect.key for expect in expects if expect.value is None})
        for expect in expects:
            if present.get(expect.key, expect.value) != expect.value:
                raise _conflict(expect.key)
        if present:
            found = dict(rows_of(connection.ask(self._hold, array_of(sorted(present)))))
            for key, value in present.items():
                if found.get(key) != value:
                    raise _conflict(key)
            yield
        missing = [key for key in missing if len(key) <= KEY_BYTES_MAX]  # a longer one cannot be there
        if missing:
            values = [puts.get(key, b"") for key in missing]
            if connection.ask(self._make, array_of(missing), array_of(values)).command_tuples != len(missing):
                raise _conflict(missing[0])
            yield
            only_expected = [key for key in missing if key not in puts]
            if only_expected:
                connection.ask(self._delete, array_of(only_expected))
                yield


def _some(keys: Iterator[bytes], puts: dict[bytes, bytes]) -> list[bytes]:
    """The next keys, as many as a statement takes."""
    some: list[bytes] = []
    size = 0
    for key in islice(keys, _ROWS_PER_STATEMENT):
        some.append(key)
        size += len(key) + len(puts[key])
        if size > _BYTES_PER_STATEMENT:
            break
    return some


def _conflict(key: bytes) -> ConflictError:
    return ConflictError(f"the key {key[:64].hex()} does not hold what the batch expects")
