"""How near two texts are in meaning, by the words they are made of: no vector of an episode is kept anywhere.

A text means the sum of what its words mean, each weighed by its inverse document frequency: sum of a(t) v(t), where
a(t) = idf(t) count(t) and v(t) is the vector of the shipped table. Words that are not in the table stand each on an
axis of their own. So the product of a question and a turn is a sum over the words of the turn,

    sum of a(t) (q . v(t)) / (|q| (sqrt(sum of a(t)^2) + SHRINKAGE))

and the frequencies are those of now, which a stored vector could not follow. The norm takes the words of a turn as
at right angles (true ones would make it a cosine, and were no better); the shrinkage keeps a turn of one or two
words, which may mean anything, from being the nearest to everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qilbee_core.search.index import RARE, AgentIndex
from qilbee_core.search.question import idfs

__all__ = ["Meaning"]

SHRINKAGE = 5.0
_STEMS_FEW = 4096
"""Of more stems than these all are multiplied: vectors in a row are read faster."""
_SCALE = 1 << 16
"""Products are summed as integers of this unit, so that the order of the words in RAM does not matter."""


class Meaning:
    """What is asked for, as a direction in the space of meanings: stems with their weights."""

    def __init__(self, index: AgentIndex, weights: Mapping[int | str, float]) -> None:
        self._index = index
        # In an order of their own: the weights of a similar episode come in that of the index.
        known = {stem: weights[stem] for stem in sorted(each for each in weights if isinstance(each, int))}
        rare = sorted(each for each in weights if isinstance(each, str))
        self._direction = index.lexicon.direction(known)
        self._exact: dict[int | str, float] = {stem: weights[stem] for stem in rare}
        if not index.lexicon.has_meaning:
            self._exact |= dict(known.items())
        square = float(self._direction @ self._direction) + sum(weight**2 for weight in self._exact.values())
        self._norm = math.sqrt(square)

    def of_turns(self, turns: NDArray[np.int64]) -> NDArray[np.float64]:
        """The nearness of some turns: about a cosine, 0 for what has nothing to do with it."""
        return self._nearness(*self._index.entries(turns), len(turns))

    def of_all(self, among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """The nearness of every turn, removed ones too; only that ``among`` some counts, where they are given."""
        index = self._index
        size = index.turns.size
        if among is not None and 2 * np.count_nonzero(among) < size:  # of more it is quicker to take all
            near, turns = np.zeros(size), np.flatnonzero(among)
            near[turns] = self.of_turns(turns)
            return near
        forward = index.forward
        owners = np.repeat(np.arange(size), np.diff(index.turns.entries_end[:size], prepend=np.uint32(0)))
        return self._nearness(owners, forward.term[: forward.size], forward.counts[: forward.size], size)

    def _nearness(
        self, owners: NDArray[np.int64], terms: NDArray[np.int32], counts: NDArray[np.uint16], size: int
    ) -> NDArray[np.float64]:
        """For entries in the order of their owners 0 to ``size``: the nearness of each owner."""
        near = np.zeros(size)
        if not len(terms) or not self._norm:
            return near
        index = self._index
        occurring = np.flatnonzero(np.bincount(terms, minlength=index.terms.size))
        weight = idfs(index.live_turns, index.terms.frequency[occurring])
        of_term = np.zeros((2, index.terms.size))
        stem = index.terms.stem[occurring]
        if index.lexicon.has_meaning:
            in_table = stem != RARE
            of_term[0, occurring[in_table]] = self._products(stem[in_table])
        for number, exact in self._exact.items():
            term = index.numbers.get(number)
            if term is not None:
                of_term[0, term] = exact
        of_term[0, occurring] *= weight / self._norm
        of_term[1, occurring] = weight**2
        of_term = np.rint(of_term * _SCALE).astype(np.int64)
        count = (counts >> 8).astype(np.int64)
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        products = np.add.reduceat(of_term[0, terms] * count, first)
        squares = np.add.reduceat(of_term[1, terms] * count**2, first)
        near[owners[first]] = products / (np.sqrt(squares * float(_SCALE)) + SHRINKAGE * _SCALE)
        return near

    def _products(self, stems: NDArray[np.int32]) -> NDArray[np.float32]:
        """The direction times the vectors of some stems."""
        vectors = self._index.lexicon.vectors
        # einsum and not @, whose sum over a row may depend on which others there are.
        if len(stems) > _STEMS_FEW:
            everything: NDArray[np.float32] = np.einsum("sd,d->s", vectors, self._direction)
            return everything[stems]
        few: NDArray[np.float32] = np.einsum("sd,d->s", vectors[stems], self._direction)
        return few
