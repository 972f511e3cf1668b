"""Which turns hold a term.

A turn mostly says a term once, and in no question. Of such a one its number is all that is kept, and needed: what
the term is worth there depends on the turn alone. The others, about an eighth, are kept with their counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ONCE", "Postings"]

ONCE = 1 << 8
"""The counts of a term that is said once; counts are ``count << 8 | asked``."""
_ASKED = 0xFF
_COUNTS_BITS = 16


class Postings:
    """By term, the turns that hold it. Those that were removed stay until all are loaded anew."""

    def __init__(self) -> None:
        self._once = _Lists("I")
        self._asked = _Lists("Q")
        self._often = _Lists("Q")
        self._added = 0
        """Entries that came one by one."""

    @property
    def ram_bytes(self) -> int:
        """About what they take."""
        return self._once.ram_bytes + self._asked.ram_bytes + self._often.ram_bytes + 5 * self._added

    def load(
        self, turns: NDArray[np.int64], terms: NDArray[np.int32], counts: NDArray[np.int64], terms_size: int
    ) -> None:
        """Take entries in the order of their turns, in place of all there was."""
        self._added = 0
        once, asked = counts == ONCE, (counts & _ASKED) != 0
        packed = turns << _COUNTS_BITS | counts
        self._once.load(turns[once], terms[once], terms_size)
        self._asked.load(packed[asked], terms[asked], terms_size)
        often = ~(once | asked)
        self._often.load(packed[often], terms[often], terms_size)

    def add(self, turn: int, term: int, counts: int) -> None:
        """Say that a turn holds a term."""
        self._added += 1
        if counts == ONCE:
            self._once.add(term, turn)
        else:
            (self._asked if counts & _ASKED else self._often).add(term, turn << _COUNTS_BITS | counts)

    def drop(self, term: int) -> None:
        """Forget the turns of a term that no living one has any more."""
        for each in (self._once, self._asked, self._often):
            each.drop(term)

    def once(self, terms: Sequence[int]) -> list[NDArray[np.intp]]:
        """For each of some terms the turns that say it once."""
        # As indexes, or NumPy would make them such for each use, and slowly.
        return [each.astype(np.intp) for each in self._once.of(terms)]

    def asked(self, terms: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
        """The turns that ask some terms, term after term, with their counts; and how many there are of each."""
        return self._asked.unpacked(terms)

    def often(self, terms: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
        """The same of the turns that say terms more often than once, and ask them never."""
        return self._often.unpacked(terms)


class _Lists:
    """Numbers by term: those that were loaded stand term after term, those added since in an array for each."""

    def __init__(self, typecode: str) -> None:
        self._typecode = typecode
        self._loaded = np.zeros(0, typecode)
        self._ends = np.zeros(1, np.uint32)
        self._added: dict[int, array[int]] = {}

    @property
    def ram_bytes(self) -> int:
        return self._loaded.nbytes + self._ends.nbytes + 200 * len(self._added)

    def load(self, values: NDArray[np.int64], terms: NDArray[np.int32], terms_size: int) -> None:
        self._loaded = values.astype(self._typecode)[np.argsort(terms, kind="stable")]
        self._ends = np.zeros(terms_size + 1, np.uint32)
        np.cumsum(np.bincount(terms, minlength=terms_size), out=self._ends[1:])
        self._added = {}

    def add(self, term: int, value: int) -> None:
        added = self._added.get(term)
        if added is None:
            added = self._added[term] = array(self._typecode)
        added.append(value)

    def drop(self, term: int) -> None:
        self._added.pop(term, None)

    def of(self, terms: Sequence[int]) -> list[NDArray[np.unsignedinteger]]:
        """The numbers of each of some terms."""
        # What came later has nothing here: its place is the end.
        at = np.minimum(np.array(terms, np.intp), len(self._ends) - 1)
        starts, stops = self._ends[at].tolist(), self._ends[np.minimum(at + 1, len(self._ends) - 1)].tolist()
        found = [self._loaded[start:stop] for start, stop in zip(starts, stops, strict=True)]
        if self._added:
            for place, term in enumerate(terms):
                if (added := self._added.get(term)) is not None:
                    found[place] = np.concatenate([found[place], np.frombuffer(added, self._typecode)])
        return found

    def unpacked(self, terms: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
        """Those of some terms as turns and counts, and how many there are of each."""
        found = self.of(terms)
        packed = np.concatenate([np.zeros(0, np.uint64), *found]).view(np.int64)
        return packed >> _COUNTS_BITS, packed & (1 << _COUNTS_BITS) - 1, [len(each) for each in found]
