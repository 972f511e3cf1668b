"""The rows of a server's accounts, beside the memories: names to bytes, atomic and durable like any write.

Users, keys, locks and the audit log of a server live in the store that they guard: one directory to copy, one level of
durability, one lock. What the rows say is the server's; that they are whole is ours: each has a checksum, which
``verify()`` looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from qilbee_core.batch import Delete, Expect, Operation, Put, WriteBatch
from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import ConflictError, InvalidError, WriteStallError, shown
from qilbee_core.keys import Space, account_key, parse, range_of
from qilbee_core.memory.commit import Context
from qilbee_core.patience import patiently

__all__ = ["ACCOUNT_ROW_BYTES_MAX", "AccountRows"]

ACCOUNT_ROW_BYTES_MAX = 1 << 20


class AccountRows:
    """Reads and changes the rows; made by :meth:`Store.account_rows`. Safe to use from any thread.

    >>> from qilbee_core import open_store
    >>> with open_store(backend="ephemeral") as store:
    ...     rows = store.account_rows()
    ...     rows.write({"user/7": b"ann", "user/8": b"bob"})
    ...     rows.write({"user/7": None}, {"user/7": b"ann"})
    ...     list(rows.scan("user/"))
    [('user/8', b'bob')]
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._get = context.backend.get

    @property
    def version(self) -> int | None:
        """While it is the same, so are all rows: for those who keep in RAM what they say. None: others write too."""
        return self._context.accounts_version if self._context.single_process else None

    def get(self, name: str) -> bytes | None:
        """The value of the row, or None; CorruptRecordError where it is not what was written."""
        key = account_key(name)
        value = self._get(key)
        return None if value is None else unframe(key, value)

    def scan(self, prefix: str, *, reverse: bool = False) -> Iterator[tuple[str, bytes]]:
        """All rows whose names begin with ``prefix``, in the order of their UTF-8, as they are when it is called."""
        start, stop = range_of(bytes((Space.ACCOUNT,)) + prefix.encode())
        return map(_read, self._context.backend.scan(start, stop, reverse=reverse))

    def write(
        self,
        changes: Mapping[str, bytes | None],
        expects: Mapping[str, bytes | None] | None = None,
        *,
        durable: bool = False,
    ) -> None:
        """Set rows, and remove those whose value is None: all of it or nothing.

        ``expects`` says what rows must hold before, None that they must not be there; otherwise ConflictError, and
        nothing was changed. Several processes on one engine need it for whatever rests on what was read.
        ``durable`` returns only when a power cut cannot take it back, at any level of the store.

        Raises InvalidError for a name of no or more than 255 bytes or a value of more than 1 MiB.
        """
        operations: list[Operation] = []
        for name, value in changes.items():
            key = account_key(name)
            if value is not None and len(value) > ACCOUNT_ROW_BYTES_MAX:
                raise InvalidError(f"row {shown(name)} has {len(value)} bytes, at most {ACCOUNT_ROW_BYTES_MAX} fit")
            operations.append(Delete(key) if value is None else Put(key, frame(key, value)))
        expected = [
            Expect(key := account_key(name), None if value is None else frame(key, value))
            for name, value in (expects or {}).items()
        ]
        ticket = patiently(partial(self._write, WriteBatch(operations, expected)))
        if durable:
            self._context.durability.flush()
        else:
            self._context.durability.wait(ticket)

    def _write(self, batch: WriteBatch) -> int:
        context = self._context
        with context.accounts_lock:  # as an agent's: while the engine is opened anew, nothing is on its way
            context.durability.refuse()
            try:
                context.backend.write(batch)
            except (ConflictError, WriteStallError):
                raise
            except BaseException as error:
                context.durability.write_failed(error)
                raise
            finally:
                context.accounts_version += 1  # also where nobody knows whether it was written
            return context.durability.wrote()


def _read(row: tuple[bytes, bytes]) -> tuple[str, bytes]:
    key, value = row
    return parse(key).fields.decode(), unframe(key, value)
