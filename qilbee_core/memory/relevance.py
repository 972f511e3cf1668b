"""How relevance decays, in numbers that never have to be touched again.

An episode of strength s, last reinforced at time t0, has at time t the relevance

    relevance(t) = s * 2 ** (-(t - t0) / half_life)

Two episodes of one half-life therefore keep their order for ever, and that order is the order of

    vitality = t0 + half_life * log2(s)

the moment at which the relevance would have been 1. The relevance of all of them together is

    sum of relevance(t) = 2 ** (-(t - epoch) / half_life) * sum of 2 ** ((vitality - epoch) / half_life)

whose second sum does not depend on t: it is kept, as an integer, so the average costs nothing.
Memories that never decay are ordered by strength, and their sum is the sum of strengths.

Vitality and contribution are computed from integers and IEEE basic operations alone, which give the
same bits on every machine: a key computed today is found tomorrow, elsewhere. (``math.log2`` and
``**`` differ between C libraries.)
"""

from __future__ import annotations

import math

from msgspec import Struct

from qilbee_core.episode import MEMORY_TYPES, MemoryType

__all__ = [
    "FIRST_ORDERS",
    "ORDERS_MAX",
    "PINNED_ORDERS",
    "PINNED_PLACE",
    "STRENGTH_MIN",
    "Order",
    "OrderNumbers",
    "average",
    "contribution",
    "reinforced",
    "relevance",
    "vitality",
]

STRENGTH_MIN = 2.0**-20
"""A strength below this counts as this: relevance 0 is about one in a million."""

_STRENGTH_BITS = 62
_SUM_BITS = 64
_LOG_BITS = 32
_MANTISSA_BITS = 52  # of a float in [1, 2): such a float times 2**52 is an integer


class Order(Struct, frozen=True):
    """One way of ordering memories by relevance: a memory type under one half-life. Never changed.

    ``half_life_us`` is None where there is no decay. ``epoch_us`` is when the store was created.
    """

    number: int
    memory_type: MemoryType
    half_life_us: int | None
    epoch_us: int


OrderNumbers = tuple[int, int, int, int]
"""The number of one order for each memory type, by its position in MEMORY_TYPES."""
FIRST_ORDERS: OrderNumbers = (0, 1, 2, 3)
"""Those that every store begins with."""
ORDERS_MAX = 240
"""Numbers below this are for orders of the catalog, those from here on for what is pinned, by memory type."""
PINNED_ORDERS = tuple(Order(ORDERS_MAX + number, name, None, 0) for number, name in enumerate(MEMORY_TYPES))
PINNED_PLACE = 1 << _STRENGTH_BITS
"""The one place in those orders, that of full strength: there the newest come first, by their ids."""


def vitality(order: Order, strength: float, reinforced_us: int) -> int:
    """Where an episode stands in its order: a signed 64-bit integer, higher is more relevant.

    >>> day = 86_400_000_000
    >>> vitality(Order(0, "episodic", 30 * day, 0), 0.5, 100 * day) // day
    70
    """
    if order.half_life_us is None:
        return int(max(strength, STRENGTH_MIN) * (1 << _STRENGTH_BITS))
    if strength >= 1.0:
        return reinforced_us
    return reinforced_us + (order.half_life_us * _log2(max(strength, STRENGTH_MIN)) >> _LOG_BITS)


def contribution(order: Order, vitality: int) -> int:
    """What an episode adds to the sum of its order: a non-negative integer, in units of 2**-64."""
    half_life_us = order.half_life_us
    if half_life_us is None:
        return vitality << _SUM_BITS - _STRENGTH_BITS
    # 2**(steps / 256), by a table for the whole steps and a Taylor polynomial for the rest, to about 1e-12.
    steps = (vitality - order.epoch_us) / half_life_us * 256.0
    whole = math.floor(steps)
    z = (steps - whole) * 0.0027076061740622863  # ln(2) / 256
    scaled = int(_POWERS[whole & 255] * (1.0 + z * (1.0 + z * (0.5 + z * 0.16666666666666666))))
    shift = (whole >> 8) + 12  # _SUM_BITS - _MANTISSA_BITS
    return scaled << shift if shift >= 0 else scaled >> -shift


def relevance(order: Order, vitality: int, now_us: int) -> float:
    """The relevance at ``now_us``, 0..1.

    >>> day = 86_400_000_000
    >>> relevance(Order(0, "episodic", 30 * day, 0), 100 * day, 160 * day)
    0.25
    """
    if order.half_life_us is None:
        return vitality / (1 << _STRENGTH_BITS)
    return min(1.0, math.exp2((vitality - now_us) / order.half_life_us))


def reinforced(relevance: float, share: float) -> float:
    """The strength of a memory that is reinforced when its relevance is ``relevance``; its decay begins anew.

    It moves by ``share`` of what is missing to 1: the linear operator of Bush and Mosteller, "A mathematical model for
    simple learning" (Psychological Review 58, 1951). So what has faded gains most, what is fresh hardly anything (the
    spacing effect), no number of repetitions leads above 1, and nothing is ever less relevant for having been used.

    >>> [round(reinforced(before, 0.2), 3) for before in (0.0, 0.25, 0.5, 1.0)]
    [0.2, 0.4, 0.6, 1.0]
    """
    return min(1.0, relevance + share * (1.0 - relevance))


def average(order: Order, total: int, count: int, now_us: int) -> float:
    """The average relevance at ``now_us`` of ``count`` episodes whose contributions add up to ``total``."""
    if order.half_life_us is None:
        return total / (count << _SUM_BITS)
    doublings, rest = divmod(now_us - order.epoch_us, order.half_life_us)
    return total / (count << max(0, doublings) + _SUM_BITS) / math.exp2(rest / order.half_life_us + min(0, doublings))


def _log2(strength: float) -> int:
    """log2 of a strength in (0, 1], times 2**32, rounded down: one bit of the result for each squaring."""
    mantissa, exponent = math.frexp(strength)
    scaled = int(mantissa * (1 << 62))  # in [2**61, 2**62): a fixed-point number of 61 fractional bits in [1, 2)
    result = exponent - 1
    for _ in range(_LOG_BITS):
        scaled = scaled * scaled >> 61
        result <<= 1
        if scaled >> 62:
            scaled >>= 1
            result |= 1
    return result


def _table() -> tuple[float, ...]:
    """2**(k/256) times 2**52, correctly rounded, from integer square roots."""
    roots: list[int] = []
    for _ in range(8):
        # roots[i] = 2 ** (1 / 2**(i+1)) with 200 fractional bits
        step = math.isqrt((roots[-1] if roots else 2 << 200) << 200)
        roots.append(step)
    table = []
    for k in range(256):
        value = 1 << 200
        for bit in range(8):
            if k >> (7 - bit) & 1:
                value = value * roots[bit] >> 200
        table.append(value / (1 << 200 - _MANTISSA_BITS))
    return tuple(table)


_POWERS = _table()
