"""How near turns are to what is asked by the vectors of an encoder, and where there is none yet, by the table."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qilbee_core.search.index import AgentIndex
from qilbee_core.search.vectors import VectorIndex

__all__ = ["NEAREST", "Nearness", "VectorNearness"]

NEAREST = 400
"""Episodes that of_all() knows by their vectors, where no more are asked for; the others are farther away."""


class Nearness(Protocol):
    """How near turns are in meaning to what is asked; -1..1 or about it."""

    def of_turns(self, turns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of some turns."""
        ...

    def of_all(self, among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Of every turn; only that ``among`` some counts, where they are given."""
        ...


class VectorNearness:
    """The cosine of the vector of each turn's episode, and the nearness of ``others`` where it has none."""

    def __init__(
        self,
        index: AgentIndex,
        vectors: VectorIndex,
        vector: NDArray[np.float32],
        others: Nearness | None,
        count: int = NEAREST,
    ) -> None:
        self._index, self._vectors, self._vector, self._others = index, vectors, vector, others
        self._count = count

    def of_turns(self, turns: NDArray[np.int64]) -> NDArray[np.float64]:
        """The nearness of some turns."""
        near = self._vectors.cosines(self._index.timeline.ids_of(turns), self._vector)
        (missing,) = np.nonzero(np.isnan(near))
        if len(missing):
            near[missing] = 0.0 if self._others is None else self._others.of_turns(turns[missing])
        return near

    def of_all(self, among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """The nearness of the nearest, of all or ``among`` some, and of those without a vector; 0 elsewhere."""
        index = self._index
        near = np.zeros(index.turns.size)
        if self._others is not None:
            others = self._others.of_all(among)
            if 2 * len(self._vectors) < len(index):  # whichever are fewer
                near[:] = others
                for id_bytes in self._vectors:
                    near[index.turns_of(id_bytes)] = 0.0
            else:
                for id_bytes in index.ids():
                    if id_bytes not in self._vectors:
                        turns = index.turns_of(id_bytes)
                        near[turns] = others[turns]
        ids = None if among is None else index.timeline.ids_of(np.flatnonzero(among))
        for id_bytes, cosine in self._vectors.nearest(self._vector, self._count, ids):
            if id_bytes in index:
                near[index.turns_of(id_bytes)] = cosine
        return near
