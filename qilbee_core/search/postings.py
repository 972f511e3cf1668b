"""Which turns hold a term.

A turn mostly says a term once, and in no question. Of such a one its number is all that is kept, and needed: what
the term is worth there depends on the turn alone. The others, about an eighth, are kept with their counts: they
say it more than once, or ask it.

New turns are sorted in among those that came lately, and these among all others when they are an eighth of them. So
each is moved some ten times, and hardly any has to be looked for where nothing is sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["ONCE", "Entries", "Found", "Postings"]

ONCE = 1 << 8
"""The counts of a term that is said once; counts are ``count << 8 | asked``."""
_COUNTS_BITS = 16
_COUNTS = (1 << _COUNTS_BITS) - 1
_LATELY_PART = 8


class Entries(NamedTuple):
    """Terms of turns, in the order of the turns."""

    turns: NDArray[np.int64]
    terms: NDArray[np.int32]
    counts: NDArray[np.uint16]


class Found(NamedTuple):
    """The turns that hold some terms: each once and in no question, and otherwise."""

    once: list[list[NDArray[np.int64]]]
    """For each term in some arrays."""
    turns: NDArray[np.int64]
    """The others, term after term, with their counts, and how many there are of each."""
    counts: NDArray[np.int64]
    sizes: list[int]


class Postings:
    """Turns by term. Those that were removed stay."""

    def __init__(self) -> None:
        self._most = self._lately = _Lists.none()

    @property
    def ram_bytes(self) -> int:
        """What they take."""
        return self._most.ram_bytes + self._lately.ram_bytes

    def merge(self, entries: Entries, terms_size: int) -> None:
        """Take entries of later turns than all before."""
        self._lately = self._lately.merged(_Lists.of(entries, terms_size))
        if len(self._lately.values) * _LATELY_PART > len(self._most.values):
            self._most, self._lately = self._most.merged(self._lately), _Lists.none()

    def of(self, terms: Sequence[int], later: Entries | None) -> Found:
        """The turns of some terms, also among ``later`` entries of theirs that are not merged yet."""
        three = 2 * np.array(terms, np.intp)[:, None] + np.arange(3)
        # What came later has nothing here: its place is the end.
        levels: list[tuple[NDArray[np.int64], NDArray[np.integer]]]
        levels = [(lists.values, lists.ends.take(three, mode="clip")) for lists in (self._most, self._lately)]
        if later is not None:
            values, lists = _listed(later)
            order = np.argsort(lists, kind="stable")
            levels.append((values[order], np.searchsorted(lists[order], three)))
        once: list[list[NDArray[np.int64]]] = [[] for _ in terms]
        counted: list[list[NDArray[np.int64]]] = [[] for _ in terms]
        for values, ends in levels:
            for number, (start, middle, stop) in enumerate(ends.tolist()):
                if start < middle:
                    once[number].append(values[start:middle])
                if middle < stop:
                    counted[number].append(values[middle:stop])
        packed = np.concatenate([np.zeros(0, np.int64), *chain.from_iterable(counted)])
        # The counts are the lowest bits.
        return Found(once, packed >> _COUNTS_BITS, packed & _COUNTS, [sum(map(len, each)) for each in counted])


class _Lists(NamedTuple):
    """Turns by term: list ``n`` is between ``ends[n]`` and ``ends[n + 1]``.

    Of even number is that of the turns that say term ``n / 2`` once, the next one is of those with counts.
    """

    # Of 64 bits, since NumPy makes them such wherever they are used as indexes, and takes its time.
    values: NDArray[np.int64]
    ends: NDArray[np.uint32]

    @property
    def ram_bytes(self) -> int:
        return self.values.nbytes + self.ends.nbytes

    @classmethod
    def none(cls) -> Self:
        return cls(np.zeros(0, np.int64), np.zeros(1, np.uint32))

    @classmethod
    def of(cls, entries: Entries, terms_size: int) -> Self:
        values, numbers = _listed(entries)
        sizes = np.bincount(numbers, minlength=2 * terms_size)
        # Sorted as they are, lists before places, which takes a sixth of what argsort() does.
        order = np.sort(numbers << 32 | np.arange(len(numbers))) & 0xFFFFFFFF
        return cls(values[order], np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32))

    def merged(self, later: Self) -> Self:
        """With those of later turns, of no fewer terms."""
        if not len(self.values):
            return later
        old, new = np.zeros((2, len(later.ends) - 1), np.int64)
        old[: len(self.ends) - 1] = np.diff(self.ends)
        new[:] = np.diff(later.ends)
        values = np.zeros(len(self.values) + len(later.values), np.int64)
        # Each old one moves by the new ones of lists before, each new one comes behind the old ones of its list.
        values[np.arange(len(self.values)) + np.repeat(np.cumsum(new) - new, old)] = self.values
        values[np.arange(len(later.values)) + np.repeat(np.cumsum(old), new)] = later.values
        return type(self)(values, np.concatenate([[0], np.cumsum(old + new)]).astype(np.uint32))


def _listed(entries: Entries) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What stands in lists, and in which: turns, and with their counts those that do not just say it once."""
    turns, terms, counts = entries
    counted = counts != ONCE
    values = np.where(counted, turns << _COUNTS_BITS | counts, turns)
    return values, terms.astype(np.int64) << 1 | counted
