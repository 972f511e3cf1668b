"""Writes as values: what is to change, said before anything changes.

A :class:`WriteBatch` is applied whole or not at all. Its operations take effect in order, so a
later one wins, and a :class:`DeleteRange` also removes what an earlier operation of the same batch
put. Each :class:`Expect` is a precondition on the state *before* the batch.

>>> WriteBatch([Put(b"a", b"1"), Delete(b"b")], [Expect(b"a", None)]).operations[0].key
b'a'
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

__all__ = ["Delete", "DeleteRange", "Expect", "Operation", "Put", "WriteBatch"]


class Put(Struct, frozen=True, gc=False, array_like=True):
    """Set ``key`` to ``value``; an empty value is a value."""

    key: bytes
    value: bytes


class Delete(Struct, frozen=True, gc=False, array_like=True):
    """Remove ``key`` if it is there."""

    key: bytes


class DeleteRange(Struct, frozen=True, gc=False, array_like=True):
    """Remove every key of the half-open range ``start <= key < stop``."""

    start: bytes
    stop: bytes


class Expect(Struct, frozen=True, gc=False, array_like=True):
    """The batch applies only if ``key`` holds ``value``; None means that it is missing."""

    key: bytes
    value: bytes | None


Operation = Put | Delete | DeleteRange


class WriteBatch(Struct, frozen=True, gc=False, array_like=True):
    """Operations that happen together or not at all, under preconditions."""

    operations: Sequence[Operation]
    expects: Sequence[Expect] = ()
