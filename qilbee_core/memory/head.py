"""The head of an agent: everything that is kept about all its episodes together."""

from __future__ import annotations

import secrets
from typing import Self

import msgspec

from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import CorruptRecordError

__all__ = ["Head", "Tally"]

_encode = msgspec.msgpack.Encoder().encode
_Fields = tuple[int, int, int, int, bytes, int, dict[str, int], list[tuple[int, int, bytes]]]
_decoder = msgspec.msgpack.Decoder(_Fields)


class Tally:
    """Count and sum of contributions of the episodes of one decay order."""

    __slots__ = ("count", "total")

    def __init__(self, count: int = 0, total: int = 0) -> None:
        self.count = count
        self.total = total


class Head:
    """Counts, sums and clocks of one agent, written with every change.

    ``generation``      random; another one means another history, so a remembered sequence is void
    ``sequence``        number of logical writes, each with an entry in the change log
    ``trimmed``         entries of the change log up to this sequence are gone
    ``transaction_us``  time of the last write; strictly rises
    ``newest_id``       no episode has ever had a higher id
    ``record_bytes``    keys and values of all episode records
    """

    __slots__ = (
        "generation",
        "newest_id",
        "record_bytes",
        "sequence",
        "tallies",
        "transaction_us",
        "trimmed",
        "types",
    )

    def __init__(self) -> None:
        self.generation = secrets.randbits(63)
        self.sequence = 0
        self.trimmed = 0
        self.transaction_us = 0
        self.newest_id = b""
        self.record_bytes = 0
        self.types: dict[str, int] = {}
        self.tallies: dict[int, Tally] = {}

    @property
    def episodes(self) -> int:
        """How many episodes there are."""
        return sum(self.types.values())

    def copy(self) -> Head:
        """A head to change while this one stays in force."""
        new = Head.__new__(Head)
        new.generation = self.generation
        new.sequence = self.sequence
        new.trimmed = self.trimmed
        new.transaction_us = self.transaction_us
        new.newest_id = self.newest_id
        new.record_bytes = self.record_bytes
        new.types = self.types.copy()
        new.tallies = {order: Tally(tally.count, tally.total) for order, tally in self.tallies.items()}
        return new

    def add(self, episode_type: str, record_bytes: int, order: int, contribution: int) -> None:
        """Count one more episode."""
        self.record_bytes += record_bytes
        self.types[episode_type] = self.types.get(episode_type, 0) + 1
        tally = self.tallies.get(order)
        if tally is None:
            tally = self.tallies[order] = Tally()
        tally.count += 1
        tally.total += contribution

    def remove(self, episode_type: str, record_bytes: int, order: int, contribution: int) -> None:
        """Count one episode less, with what was added for it."""
        self.record_bytes -= record_bytes
        left = self.types[episode_type] = self.types.get(episode_type, 0) - 1
        if left == 0:
            del self.types[episode_type]
        tally = self.tallies.setdefault(order, Tally())
        tally.count -= 1
        tally.total -= contribution
        if tally.count == 0 and tally.total == 0:
            del self.tallies[order]

    def encode(self, key: bytes) -> bytes:
        """The framed bytes to store under ``key``."""
        payload = _encode(
            (
                self.generation,
                self.sequence,
                self.trimmed,
                self.transaction_us,
                self.newest_id,
                self.record_bytes,
                self.types,
                [
                    (order, tally.count, tally.total.to_bytes(tally.total.bit_length() + 7 >> 3, "big"))
                    for order, tally in self.tallies.items()
                ],
            )
        )
        return frame(key, payload)

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Self:
        """The head stored under ``key``, or CorruptRecordError."""
        payload = unframe(key, value)
        try:
            fields = _decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise CorruptRecordError(f"head {key.hex()} cannot be read: {error}") from error
        head = cls.__new__(cls)
        (
            head.generation,
            head.sequence,
            head.trimmed,
            head.transaction_us,
            head.newest_id,
            head.record_bytes,
            head.types,
            tallies,
        ) = fields
        head.tallies = {order: Tally(count, int.from_bytes(total, "big")) for order, count, total in tallies}
        return head

    def counts(self) -> tuple[dict[str, int], int, dict[int, tuple[int, int]]]:
        """What a recount of the episodes must give again."""
        return self.types, self.record_bytes, {o: (t.count, t.total) for o, t in self.tallies.items()}
