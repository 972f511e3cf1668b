"""The head of an agent: everything that is kept about all its episodes together."""

from __future__ import annotations

import secrets
from zlib import crc32

import msgspec
from msgspec import Struct, field

from qilbee_core.envelope import unframe
from qilbee_core.errors import CorruptRecordError

__all__ = ["Head", "Tally"]


class Tally(Struct, array_like=True):
    """Count and sum of contributions of the episodes of one decay order.

    The sum is a big-endian integer of any size, since MessagePack knows none above 64 bits.
    """

    order: int
    count: int
    total: bytes


class Head(Struct, array_like=True):
    """Counts, sums and clocks of one agent, written with every change.

    ``generation``      random; another one means another history, so a remembered sequence is void
    ``sequence``        number of logical writes, each with an entry in the change log
    ``trimmed``         entries of the change log up to this sequence are gone
    ``transaction_us``  time of the last write; strictly rises
    ``newest_id``       no episode has ever had a higher id
    ``record_bytes``    keys and values of all episode records

    It is changed in place while a write is planned: where the write fails, it is read again.
    """

    generation: int = field(default_factory=lambda: secrets.randbits(63))
    sequence: int = 0
    trimmed: int = 0
    transaction_us: int = 0
    newest_id: bytes = bytes(16)
    record_bytes: int = 0
    types: dict[str, int] = {}
    tallies: list[Tally] = []

    @property
    def episodes(self) -> int:
        """How many episodes there are."""
        return sum(self.types.values())

    def copy(self) -> Head:
        """The same figures, to keep while this head is changed."""
        return _decoder.decode(_encode(self))

    def add(self, episode_type: str, record_bytes: int, order: int, contribution: int) -> None:
        """Count one more episode."""
        self.record_bytes += record_bytes
        types = self.types
        types[episode_type] = types.get(episode_type, 0) + 1
        for tally in self.tallies:
            if tally.order == order:
                break
        else:
            tally = Tally(order, 0, b"")
            self.tallies.append(tally)
        total = int.from_bytes(tally.total, "big") + contribution
        tally.count += 1
        tally.total = total.to_bytes(total.bit_length() + 7 >> 3, "big")

    def remove(self, episode_type: str, record_bytes: int, order: int, contribution: int) -> None:
        """Count one episode less, with what was added for it.

        A store whose counts are broken (see verify()) must still let its episodes be deleted: nothing
        falls below zero here.
        """
        self.record_bytes = max(0, self.record_bytes - record_bytes)
        left = self.types.pop(episode_type, 0) - 1
        if left > 0:
            self.types[episode_type] = left
        for tally in self.tallies:
            if tally.order == order:
                tally.count -= 1
                total = max(0, int.from_bytes(tally.total, "big") - contribution)
                tally.total = total.to_bytes(total.bit_length() + 7 >> 3, "big")
                if tally.count <= 0:
                    self.tallies.remove(tally)
                return

    def encode(self, key: bytes) -> bytes:
        """The framed bytes to store under ``key``."""
        payload = _encode(self)
        return payload + crc32(payload, crc32(key)).to_bytes(4, "big")

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Head:
        """The head stored under ``key``, or CorruptRecordError."""
        try:
            return _decoder.decode(unframe(key, value))
        except msgspec.DecodeError as error:
            raise CorruptRecordError(f"head {key.hex()} cannot be read: {error}") from error

    def counts(self) -> tuple[dict[str, int], int, dict[int, tuple[int, int]]]:
        """What a recount of the episodes must give again."""
        tallies = {tally.order: (tally.count, int.from_bytes(tally.total, "big")) for tally in self.tallies}
        return self.types, self.record_bytes, tallies


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Head)
