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
    counts: NDArray[np.uint16]
    sizes: list[int]


class Found(NamedTuple):
    """The turns that hold some terms: each once and in no question, and otherwise."""

    once: list[NDArray[np.int64]]
    counted: Counted


class Postings:
    """Turns by term. Those that were removed stay."""

    def __init__(self) -> None:
        # Of 64 bits, since NumPy makes them such wherever they are used as indexes, and takes its time.
        self._values = np.zeros(0, np.int64)
        self._ends = np.zeros(1, np.uint32)
        """List ``n`` is between ``[n]`` and ``[n + 1]``: of even number the turns that say term ``n / 2`` once, the
        next one those with counts."""

    @property
    def ram_bytes(self) -> int:
        """What they take."""
        return self._values.nbytes + self._ends.nbytes

    def merge(self, entries: Entries, terms_size: int) -> None:
        """Take entries of later turns than all before."""
        values, lists = _listed(entries)
        new = np.bincount(lists, minlength=2 * terms_size)
        # Sorted as they are, lists before places, which takes a sixth of what argsort() does.
        values = values[np.sort(lists << 32 | np.arange(len(lists))) & 0xFFFFFFFF]
        old = np.zeros(2 * terms_size, np.int64)
        old[: len(self._ends) - 1] = np.diff(self._ends)
        if len(self._values):
            merged = np.zeros(len(self._values) + len(values), np.int64)
            # Each old one moves by the new ones of lists before, each new one comes behind the old ones of its list.
            merged[np.arange(len(self._values)) + np.repeat(np.cumsum(new) - new, old)] = self._values
            merged[np.arange(len(values)) + np.repeat(np.cumsum(old), new)] = values
            values = merged
        self._values, self._ends = values, np.concatenate([[0], np.cumsum(old + new)]).astype(np.uint32)

    def of(self, terms: Sequence[int], later: Entries | None) -> Found:
        """The turns of some terms, also among ``later`` ones that are not merged yet."""
        three = 2 * np.array(terms, np.intp)[:, None] + np.arange(3)
        # What came later has nothing here: its place is the end.
        ends = self._ends.take(three, mode="clip").tolist()
        once = [self._values[start:stop] for start, stop, _ in ends]
        counted = [self._values[start:stop] for _, start, stop in ends]
        if later is not None:
            wanted = np.zeros(1 + max(terms, default=0), np.bool_)
            wanted[list(terms)] = True
            at = np.flatnonzero(later.terms < len(wanted))
            at = at[wanted[later.terms[at]]]
            values, lists = _listed(Entries(later.turns[at], later.terms[at], later.counts[at]))
            order = np.argsort(lists, kind="stable")
            values = values[order]
            bounds = np.searchsorted(lists[order], three).tolist()
            for number, (start, middle, stop) in enumerate(bounds):
                if start < middle:
                    once[number] = np.concatenate([once[number], values[start:middle]])
                if middle < stop:
                    counted[number] = np.concatenate([counted[number], values[middle:stop]])
        packed = np.concatenate([np.zeros(0, np.int64), *counted])
        # The counts are the lowest bits.
        return Found(once, Counted(packed >> _COUNTS_BITS, packed.astype(np.uint16), [len(each) for each in counted]))


def _listed(entries: Entries) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What stands in lists, and in which: turns, and with their counts those that do not just say it once."""
    turns, terms, counts = entries
    counted = counts != ONCE
    values = np.where(counted, turns << _COUNTS_BITS | counts, turns)
    return values, terms.astype(np.int64) << 1 | counted
