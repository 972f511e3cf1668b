"""Which turns hold a term is known however the turns came."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core.search.postings import ONCE, Entries, Postings

COUNTS = [ONCE, ONCE | 1, 2 << 8, 2 << 8 | 1]

parts = st.lists(st.lists(st.dictionaries(st.integers(0, 6), st.sampled_from(COUNTS)), max_size=12), max_size=8)
"""Of turns that come together, each with the counts of its terms."""


def entries_of(turns: list[dict[int, int]], first: int) -> Entries:
    rows = [(first + n, term, counts) for n, turn in enumerate(turns) for term, counts in turn.items()]
    of, terms, counts = zip(*rows, strict=True) if rows else ((), (), ())
    return Entries(np.array(of, np.int64), np.array(terms, np.int32), np.array(counts, np.uint16))


@given(parts, st.booleans(), st.lists(st.integers(0, 6), max_size=9))
def test_every_turn_that_holds_a_term_is_found_once(
    parts: list[list[dict[int, int]]], is_last_unmerged: bool, asked: list[int]
) -> None:
    postings, later, known = Postings(), None, 0
    turns: list[dict[int, int]] = []
    for number, part in enumerate(parts):
        entries = entries_of(part, len(turns))
        turns += part
        known = max([known, *(term + 1 for turn in part for term in turn)])
        if is_last_unmerged and number == len(parts) - 1:
            later = entries
        else:
            postings.merge(entries, known)
    found = postings.of(asked, later)
    ends = np.cumsum([0, *found.sizes]).tolist()
    for position, term in enumerate(asked):
        holding = {turn: counts[term] for turn, counts in enumerate(turns) if term in counts}
        once = [turn for some in found.once[position] for turn in some.tolist()]
        here = slice(ends[position], ends[position + 1])
        counted = list(zip(found.turns[here].tolist(), found.counts[here].tolist(), strict=True))
        assert once == [turn for turn, counts in holding.items() if counts == ONCE]
        assert counted == [(turn, counts) for turn, counts in holding.items() if counts != ONCE]


def test_what_comes_late_is_sorted_in_before_it_is_an_eighth_of_all() -> None:
    postings = Postings()
    postings.merge(entries_of([{0: ONCE, 1: ONCE}] * 1000, 0), 2)
    for turn in range(1000, 2000):
        postings.merge(entries_of([{0: ONCE, 1: ONCE}], turn), 2)
        (few,) = [len(some) for some in postings.of([1], None).once[0][1:]] or [0]
        assert 8 * few <= turn
