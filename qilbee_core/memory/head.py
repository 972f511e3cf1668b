"""The head of an agent: everything that is kept about all its episodes together."""

from __future__ import annotations

import secrets

import msgspec
from msgspec import Struct

from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import CorruptRecordError
from qilbee_core.memory.relevance import FIRST_ORDERS, OrderNumbers

__all__ = ["NEVER_US", "Head", "Reindex", "Tally"]

NEVER_US = (1 << 63) - 1
"""Later than any time there is."""


class Tally:
    """Count and sum of contributions of the episodes of one decay order."""

    __slots__ = ("count", "total")

    def __init__(self, count: int, total: int) -> None:
        self.count = count
        self.total = total


class Reindex(Struct, frozen=True, array_like=True):
    """How far an agent has got on its way to other orders of relevance: fields by position, only ever appended.

    ``orders``   those to come
    ``built``    episodes up to this id stand in them too, whatever becomes of them; no episode has a higher one yet
    ``leaving``  orders whose rows are being removed; nothing is built meanwhile
    """

    orders: OrderNumbers
    built: bytes = bytes(16)
    leaving: tuple[int, ...] = ()


class Head:
    """Counts, sums and clocks of one agent.

    ``generation``      random; another one means another history, so a remembered sequence is void
    ``sequence``        number of logical writes, each with an entry in the change log
    ``trimmed``         entries of the change log up to this sequence are gone
    ``transaction_us``  time of the last write; strictly rises
    ``newest_id``       no episode has ever had a higher id
    ``record_bytes``    keys and values of all episode records
    ``types``           episodes of each type
    ``tallies``         count and sum of contributions of each decay order
    ``states``          episodes that have a state beside their record
    ``expiry_us``       no episode expires before this
    ``orders``          the orders in force, one of each memory type
    ``reindex``         how far others have been built, while that goes on: see memory/reindexing.py
    ``retired``         episodes of which there are versions in HISTORY alone

    It is changed in place while a write is planned: where the write fails, it is read again.
    """

    __slots__ = (
        "expiry_us",
        "generation",
        "newest_id",
        "orders",
        "record_bytes",
        "reindex",
        "retired",
        "sequence",
        "states",
        "tallies",
        "transaction_us",
        "trimmed",
        "types",
    )

    def __init__(self, orders: OrderNumbers = FIRST_ORDERS) -> None:
        self.generation = secrets.randbits(63)
        self.sequence = 0
        self.trimmed = 0
        self.transaction_us = 0
        self.newest_id = bytes(16)
        self.record_bytes = 0
        self.types: dict[str, int] = {}
        self.tallies: dict[int, Tally] = {}
        self.states = 0
        self.expiry_us = NEVER_US
        self.orders = orders
        self.reindex: Reindex | None = None
        self.retired = 0

    @property
    def episodes(self) -> int:
        """How many episodes there are."""
        return sum(self.types.values())

    def add(self, episode_type: str, record_bytes: int, order: int, contribution: int) -> None:
        """Count one more episode."""
        self.record_bytes += record_bytes
        types, tallies = self.types, self.tallies
        types[episode_type] = types.get(episode_type, 0) + 1
        # enter(), without the call: every store comes by here.
        if (tally := tallies.get(order)) is None:
            tallies[order] = Tally(1, contribution)
        else:
            tally.count += 1
            tally.total += contribution

    def enter(self, order: int, contribution: int) -> None:
        """Count an episode in one more order."""
        tallies = self.tallies
        if (tally := tallies.get(order)) is None:
            tallies[order] = Tally(1, contribution)
        else:
            tally.count += 1
            tally.total += contribution

    def remove(self, episode_type: str, record_bytes: int, order: int, contribution: int) -> None:
        """Count one episode less, with what was added for it.

        A store whose counts are broken (see verify()) must still let its episodes be deleted: nothing
        falls below zero here.
        """
        self.record_bytes = max(0, self.record_bytes - record_bytes)
        left = self.types.pop(episode_type, 0) - 1
        if left > 0:
            self.types[episode_type] = left
        self.leave(order, contribution)

    def leave(self, order: int, contribution: int) -> None:
        """Count an episode no more in an order."""
        tally = self.tallies.pop(order, None)
        if tally is not None and tally.count > 1:
            self.tallies[order] = Tally(tally.count - 1, max(0, tally.total - contribution))

    def copy(self) -> Head:
        """The same figures, to keep while this head is changed."""
        return self.decode(b"", self.encode(b""))

    def encode(self, key: bytes) -> bytes:
        """The framed bytes to store under ``key``."""
        fields = _Fields(
            self.generation,
            self.sequence,
            self.trimmed,
            self.transaction_us,
            self.newest_id,
            self.record_bytes,
            self.types,
            # MessagePack knows no integers above 64 bits.
            [
                (order, tally.count, tally.total.to_bytes(tally.total.bit_length() + 7 >> 3, "big"))
                for order, tally in self.tallies.items()
            ],
            self.states,
            self.expiry_us,
            self.orders,
            self.reindex,
            self.retired,
        )
        return frame(key, _encode(fields))

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Head:
        """The head stored under ``key``, or CorruptRecordError."""
        try:
            fields = _decoder.decode(unframe(key, value))
        except msgspec.DecodeError as error:
            raise CorruptRecordError(f"head {key.hex()} cannot be read: {error}") from error
        head = cls.__new__(cls)
        head.generation = fields.generation
        head.sequence = fields.sequence
        head.trimmed = fields.trimmed
        head.transaction_us = fields.transaction_us
        head.newest_id = fields.newest_id
        head.record_bytes = fields.record_bytes
        head.types = fields.types
        head.tallies = {order: Tally(count, int.from_bytes(total, "big")) for order, count, total in fields.tallies}
        head.states = fields.states
        head.expiry_us = fields.expiry_us
        head.orders = fields.orders
        head.reindex = fields.reindex
        head.retired = fields.retired
        return head

    def counts(self) -> tuple[dict[str, int], int, dict[int, tuple[int, int]], int, int]:
        """What a recount of the episodes must give again."""
        tallies = {order: (tally.count, tally.total) for order, tally in self.tallies.items()}
        return self.types, self.record_bytes, tallies, self.states, self.retired


class _Fields(Struct, array_like=True):
    """A head as it is stored: fields by position, only ever appended."""

    generation: int
    sequence: int
    trimmed: int
    transaction_us: int
    newest_id: bytes
    record_bytes: int
    types: dict[str, int]
    tallies: list[tuple[int, int, bytes]]
    states: int = 0
    expiry_us: int = NEVER_US
    orders: OrderNumbers = FIRST_ORDERS
    reindex: Reindex | None = None
    retired: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Fields)
