"""What moves of an episode while its text stays: how strong it is, since when it decays, whether it is pinned.

The record of an episode says how it began, and for most that is all there ever is. Only when something has moved does
an episode get a state beside its record, which then counts instead. Where it stands in the order of relevance follows
from the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import CorruptRecordError
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.relevance import PINNED_ORDERS, PINNED_PLACE, Order, OrderNumbers, vitality

__all__ = ["OrdersOf", "State", "decode_state", "first_state", "has_expired", "standing", "standings"]

OrdersOf = Callable[[OrderNumbers], Sequence[Order]]
"""Gives the orders with these numbers, by memory type: :meth:`Context.orders_of`."""


class State(Struct, frozen=True, array_like=True):
    """The state of one episode: fields by position, only ever appended."""

    strength: Annotated[float, Meta(ge=0, le=1)]
    reinforced_us: Annotated[int, Meta(gt=0)]
    pinned: bool = False

    def encode(self, key: bytes) -> bytes:
        """The framed bytes to store under ``key``."""
        return frame(key, _encode(self))


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(State)


def decode_state(key: bytes, value: bytes) -> State:
    """The state stored under ``key``, or CorruptRecordError."""
    try:
        return _decoder.decode(unframe(key, value))
    except msgspec.DecodeError as error:
        raise CorruptRecordError(f"state {key.hex()} cannot be read: {error}") from error


def first_state(document: EpisodeDocument) -> State:
    """The state that the record itself tells: of an episode that nothing has moved, or that was retired in it."""
    return State(document.strength, document.decay_start_us(), document.pinned)


def standing(orders: Sequence[Order], document: EpisodeDocument, state: State | None) -> tuple[Order, int]:
    """The order that an episode is in, and its place there."""
    order = orders[document.memory_type]
    if state is None:
        return order, vitality(order, document.strength, document.decay_start_us())
    if state.pinned:
        return PINNED_ORDERS[document.memory_type], PINNED_PLACE
    return order, vitality(order, state.strength, state.reinforced_us)


def standings(
    head: Head, orders_of: OrdersOf, id_bytes: bytes, document: EpisodeDocument, state: State | None
) -> list[tuple[Order, int]]:
    """Every order that an episode is in, with its place there: the one in force, and then one that is being built."""
    places = [standing(orders_of(head.orders), document, state)]
    reindex = head.reindex
    if reindex is not None and id_bytes <= reindex.built:
        coming = standing(orders_of(reindex.orders), document, state)
        if coming[0].number != places[0][0].number:
            places.append(coming)
    return places


def has_expired(document: EpisodeDocument, state: State | None, now_us: int) -> bool:
    """Whether no verb may find an episode any more. A pinned one does not expire."""
    return 0 < document.expires_us <= now_us and not (state is not None and state.pinned)
