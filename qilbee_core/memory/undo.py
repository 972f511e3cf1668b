"""What undoes a consolidation: for each of its batches a row that names what came and went.

The texts are not in it. What went is in HISTORY, retired at the very time that the row has in its key.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from qilbee_core.batch import Delete, DeleteRange, Operation, Put
from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import Reader

__all__ = ["UndoRow", "decode_undo", "parts", "remove_from_undo", "undo_us"]


class UndoRow(Struct, frozen=True, array_like=True):
    """One batch of a consolidation; ids of 16 bytes, one behind the other. Fields by position, only ever appended."""

    consolidation: bytes
    policy: str
    created: bytes
    superseded: bytes
    forgotten: bytes

    @classmethod
    def of(
        cls,
        consolidation: bytes,
        policy: str,
        created: Iterable[bytes],
        superseded: Iterable[bytes],
        forgotten: Iterable[bytes],
    ) -> UndoRow:
        """The row that names these."""
        return cls(consolidation, policy, b"".join(created), b"".join(superseded), b"".join(forgotten))

    def gone(self) -> list[bytes]:
        """What went, superseded or forgotten."""
        return parts(self.superseded) + parts(self.forgotten)

    def without(self, id_bytes: bytes) -> UndoRow | None:
        """The row when one of those that went is gone for good; None where nothing is left to bring back."""
        superseded, forgotten = (
            b"".join(each for each in parts(ids) if each != id_bytes) for ids in (self.superseded, self.forgotten)
        )
        return replace(self, superseded=superseded, forgotten=forgotten) if superseded or forgotten else None

    def encode(self, key: bytes) -> bytes:
        """The framed bytes to store under ``key``."""
        return frame(key, _encode(self))


def decode_undo(key: bytes, value: bytes) -> UndoRow:
    """The row stored under ``key``, or CorruptRecordError."""
    try:
        row = _decoder.decode(unframe(key, value))
    except msgspec.DecodeError as error:
        raise CorruptRecordError(f"undo data {key.hex()} cannot be read: {error}") from error
    if len(row.consolidation) != 16 or any(len(ids) % 16 for ids in (row.created, row.superseded, row.forgotten)):
        raise CorruptRecordError(f"undo data {key.hex()} hold ids of a wrong length")
    return row


def remove_from_undo(reader: Reader, key: bytes, operations: list[Operation], id_bytes: bytes) -> None:
    """Plan that the row under ``key``, if there is one, names a retired episode no more: it is gone for good."""
    value = reader.get(key)
    if value is None:
        return
    for operation in operations:  # others of the same row may go in the same batch
        if not isinstance(operation, DeleteRange) and operation.key == key:
            value = operation.value if isinstance(operation, Put) else None
    if value is not None:
        with suppress(CorruptRecordError):  # verify() names it
            row = decode_undo(key, value).without(id_bytes)
            operations.append(Delete(key) if row is None else Put(key, row.encode(key)))


def undo_us(key: bytes) -> int:
    """The transaction time of the batch that a row undoes, from its key."""
    return int.from_bytes(key[-8:], "big")


def parts(ids: bytes) -> list[bytes]:
    """The ids that stand one behind the other."""
    return [ids[at : at + 16] for at in range(0, len(ids), 16)]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(UndoRow)
