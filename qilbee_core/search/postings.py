"""Which turns hold a term.

A turn mostly says a term once, and in no question. Of such a one its number is all that is kept, and needed: what
the term is worth there depends on the turn alone. The others, about an eighth, are kept with their counts: they
say it more than once, or ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ONCE", "Counted", "Entries", "Found", "Postings"]

ONCE = 1 << 8
"""The counts of a term that is said once; counts are ``count << 8 | asked``."""
_COUNTS_BITS = 16


class Entries(NamedTuple):
    """Terms of turns, in the order of the turns."""

    turns: NDArray[np.int64]
    terms: NDArray[np.int32]
    counts: NDArray[np.uint16]


class Counted(NamedTuple):
    """Turns with the counts of some terms, term after term, and how many there are of each."""

    turns: NDArray[np.int64]
    counts: NDArray[np.int64]
    sizes: list[int]


class Found(NamedTuple):
    """The turns that hold some terms: each once and in no question, and otherwise."""

    once: list[NDArray[np.int64]]
    counted: Counted


class Postings:
    """Turns by term. Those that were removed stay."""

    def __init__(self) -> None:
        # Of 64 bits, since NumPy makes them such wherever they are used as indexes, and takes its time.
        self._once, self._counted = _Lists(), _Lists()

    @property
    def ram_bytes(self) -> int:
        """What they take."""
        return self._once.ram_bytes + self._counted.ram_bytes

    def merge(self, entries: Entries, terms_size: int) -> None:
        """Take entries of later turns than all before."""
        for lists, (values, terms) in zip((self._once, self._counted), _split(entries), strict=True):
            lists.merge(values, terms, terms_size)

    def of(self, terms: Sequence[int], later: Entries) -> Found:
        """The turns of some terms, also among ``later`` ones that are not merged yet."""
        once, counted = self._once.of(terms), self._counted.of(terms)
        if len(later.turns):
            wanted = np.zeros(1 + max(terms, default=0), np.bool_)
            wanted[list(terms)] = True
            at = np.flatnonzero(wanted[np.minimum(later.terms, len(wanted) - 1)])
            at = at[later.terms[at] < len(wanted)]
            at = at[np.argsort(later.terms[at], kind="stable")]
            split = _split(Entries(later.turns[at], later.terms[at], later.counts[at]))
            for found, (values, of) in zip((once, counted), split, strict=True):
                starts, stops = np.searchsorted(of, terms), np.searchsorted(of, terms, side="right")
                for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
                    if start < stop:
                        found[number] = np.concatenate([found[number], values[start:stop]])
        packed = np.concatenate([np.zeros(0, np.int64), *counted])
        counts = packed & (1 << _COUNTS_BITS) - 1
        return Found(once, Counted(packed >> _COUNTS_BITS, counts, [len(each) for each in counted]))


def _split(entries: Entries) -> list[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    """Values and terms of those that are said once and not asked, and of the others."""
    turns, terms, counts = entries
    once = counts == ONCE
    counted = ~once
    packed = turns[counted] << _COUNTS_BITS | counts[counted]
    return [(turns[once], terms[once]), (packed, terms[counted])]


class _Lists:
    """Numbers that stand term after term."""

    def __init__(self) -> None:
        self._values = np.zeros(0, np.int64)
        self._ends = np.zeros(1, np.uint32)
        """Those of term ``n`` are between ``[n]`` and ``[n + 1]``."""

    @property
    def ram_bytes(self) -> int:
        return self._values.nbytes + self._ends.nbytes

    def merge(self, values: NDArray[np.int64], terms: NDArray[np.int32], terms_size: int) -> None:
        """Append to the numbers of each term."""
        new = np.bincount(terms, minlength=terms_size)
        # Sorted as they are, terms before places, which takes a sixth of what argsort() does.
        values = values[np.sort(terms.astype(np.int64) << 32 | np.arange(len(terms))) & 0xFFFFFFFF]
        old = np.zeros(terms_size, np.int64)
        old[: len(self._ends) - 1] = np.diff(self._ends)
        ends = np.cumsum(old + new)
        if len(self._values):
            merged = np.zeros(len(self._values) + len(values), np.int64)
            # Each old one moves by the new ones of terms before, each new one comes behind the old ones of its term.
            merged[np.arange(len(self._values)) + np.repeat(np.cumsum(new) - new, old)] = self._values
            merged[np.arange(len(values)) + np.repeat(np.cumsum(old), new)] = values
            values = merged
        self._values, self._ends = values, np.concatenate([[0], ends]).astype(np.uint32)

    def of(self, terms: Sequence[int]) -> list[NDArray[np.int64]]:
        """The numbers of each of some terms."""
        # What came later has nothing here: its place is the end.
        last = len(self._ends) - 1
        at = np.minimum(np.array(terms, np.intp), last)
        starts, stops = self._ends[at].tolist(), self._ends[np.minimum(at + 1, last)].tolist()
        return [self._values[start:stop] for start, stop in zip(starts, stops, strict=True)]
