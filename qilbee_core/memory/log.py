"""The change log of an agent: one entry for each logical write, under rising sequence numbers.

An entry says which operation touched which episodes, and when; it never holds their text::

    operation | transaction time (8 bytes) | ids (16 bytes each)

It is the one thing to follow: indexers keep a cursor into it, and whoever holds something derived in RAM
compares (generation, sequence). It also spares most stores the writing of the head: a store of new episodes
moves the head in a way that the log tells, so on an engine with one opener the stored head may lag behind
by some stores, and :func:`read_head` moves it on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from qilbee_core.envelope import unframe
from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import Reader
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.relevance import Order, contribution
from qilbee_core.memory.state import OrdersOf, State, standings
from qilbee_core.records import Records

__all__ = [
    "Change",
    "ChangeKind",
    "change_payload",
    "count_episode",
    "count_retired",
    "parse_change",
    "read_head",
    "store_entry",
]


class ChangeKind(IntEnum):
    """The operation of an entry."""

    STORE = 1
    UPDATE = 2
    DELETE = 3
    STATE = 4
    RETIRE = 5
    """Each of the ids is an episode or a retired one now: retired, put back, stored in its place, purged in part."""


class Change(NamedTuple):
    """An entry of the change log."""

    kind: ChangeKind
    transaction_us: int
    ids: list[bytes]


_START = struct.Struct(">BQ")
_STORE_OF_ONE = struct.Struct(">BQ16s")
_CHECKSUM = struct.Struct(">I")


def change_payload(kind: ChangeKind, transaction_us: int, ids: Iterable[bytes]) -> bytes:
    """The bytes of an entry, to be framed."""
    return _START.pack(kind, transaction_us) + b"".join(ids)


def store_entry(key: bytes, transaction_us: int, id_bytes: bytes) -> bytes:
    """The framed entry of a store of one episode, which is on the path of every store."""
    payload = _STORE_OF_ONE.pack(1, transaction_us, id_bytes)
    return payload + _CHECKSUM.pack(crc32(payload, crc32(key)))


def parse_change(key: bytes, value: bytes) -> Change:
    """An entry, or CorruptRecordError."""
    payload = unframe(key, value)
    try:
        kind = ChangeKind(payload[0])
    except (IndexError, ValueError):
        raise CorruptRecordError(f"entry {key.hex()} of a change log is of no known kind") from None
    if len(payload) < 25 or (len(payload) - 9) % 16:
        raise CorruptRecordError(f"entry {key.hex()} of a change log has {len(payload)} bytes")
    ids = [payload[at : at + 16] for at in range(9, len(payload), 16)]
    return Change(kind, int.from_bytes(payload[1:9], "big"), ids)


def count_episode(
    head: Head, key: bytes, value: bytes, document: EpisodeDocument, state: State | None, orders_of: OrdersOf
) -> list[tuple[Order, int]]:
    """Count a stored record in ``head``; gives its places in the orders of relevance, see :func:`standings`."""
    (order, place), *others = places = standings(head, orders_of, key[-16:], document, state)
    head.add(document.episode_type, len(key) + len(value), order.number, contribution(order, place))
    for order, place in others:
        head.enter(order.number, contribution(order, place))
    head.newest_id = max(head.newest_id, key[-16:])
    head.transaction_us = max(head.transaction_us, document.transaction_us)
    head.states += state is not None
    if document.expires_us and not (state and state.pinned):
        head.expiry_us = min(head.expiry_us, document.expires_us)
    return places


def count_retired(head: Head, id_bytes: bytes, document: EpisodeDocument) -> None:
    """Count a retired episode in ``head``."""
    head.retired += 1
    head.newest_id = max(head.newest_id, id_bytes)
    head.transaction_us = max(head.transaction_us, document.ended_us)
    if document.expires_us and not document.pinned:
        head.expiry_us = min(head.expiry_us, document.expires_us)


def read_head(reader: Reader, keys: AgentKeys, value: bytes, records: Records, orders_of: OrdersOf) -> Head:
    """The head stored as ``value``, moved on by the stores that the log holds beyond it.

    What gives an episode a state writes the head, so none of those beyond it has one.
    """
    head = Head.decode(keys.head, value)
    orders_of(head.orders)  # they must be there
    _, stop = keys.range(Space.CHANGE)
    for entry_key, entry in reader.scan(keys.change(head.sequence + 1), stop):
        change = parse_change(entry_key, entry)
        for id_bytes in change.ids:
            key = keys.episode(id_bytes)
            record = reader.get(key)
            if record is None or change.kind is not ChangeKind.STORE:
                raise CorruptRecordError(f"entry {entry_key.hex()} of the change log lies beyond the head")
            count_episode(head, key, record, EpisodeDocument.from_fields(records.open(key, record)), None, orders_of)
        head.sequence += 1
        head.transaction_us = max(head.transaction_us, change.transaction_us)
    return head
