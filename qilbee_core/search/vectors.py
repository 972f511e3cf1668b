"""Vectors of an encoder, by episode: found by the signs of their numbers, then measured by bytes.

Brute force, but little of it: a vector of 256 numbers takes 32 bytes of signs to look through, and only the
CANDIDATES nearest by signs (fewest different ones) are multiplied in full. Good to some 300,000 episodes of an agent.

The caller locks as for :class:`~qilbee_core.search.index.AgentIndex`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qilbee_core.errors import InvalidError
from qilbee_core.search.index import AgentIndex

__all__ = ["VectorIndex", "VectorNearness"]

CANDIDATES = 1000
_ROWS_LEAST = 16


class VectorIndex:
    """Unit vectors of episodes, one byte a number.

    >>> index = VectorIndex(2)
    >>> index.add(b"a", np.array([3.0, 4.0], np.float32))
    >>> [(id, round(cosine, 2)) for id, cosine in index.nearest(np.array([0.0, 1.0], np.float32), 1)]
    [(b'a', 0.8)]
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self._rows: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._signs = np.zeros((_ROWS_LEAST, -(-dimensions // 64)), np.uint64)
        self._bytes = np.zeros((_ROWS_LEAST, dimensions), np.int8)
        self._scale = np.zeros(_ROWS_LEAST, np.float32)
        """What the bytes of a row are multiplied with to be a unit vector."""

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id_bytes: bytes, vector: NDArray[np.float32]) -> None:
        """Keep the vector of an episode, in place of the one before. Of any length but zero."""
        if vector.shape != (self.dimensions,) or not np.isfinite(vector).all() or not vector.any():
            raise InvalidError(
                f"a vector has the shape {vector.shape} or numbers that are not finite or all zero",
                remedy=f"give {self.dimensions} numbers of the model that the index is of",
            )
        row = self._rows.get(id_bytes)
        if row is None:
            row = self._rows[id_bytes] = len(self._ids)
            self._ids.append(id_bytes)
            if row == len(self._scale):
                more = row // 4 + _ROWS_LEAST
                self._signs = np.concatenate([self._signs, np.zeros((more, self._signs.shape[1]), np.uint64)])
                self._bytes = np.concatenate([self._bytes, np.zeros((more, self.dimensions), np.int8)])
                self._scale = np.concatenate([self._scale, np.zeros(more, np.float32)])
        rounded = np.rint(vector * (127.0 / np.abs(vector).max())).astype(np.int8)
        self._signs[row] = self._signs_of(vector)
        self._bytes[row] = rounded
        self._scale[row] = 1.0 / np.linalg.norm(rounded.astype(np.float32))

    def remove(self, id_bytes: bytes) -> bool:
        """Forget a vector; False where there is none. The last one takes its row."""
        row = self._rows.pop(id_bytes, None)
        if row is None:
            return False
        last = len(self._ids) - 1
        if row != last:
            moved = self._ids[row] = self._ids[last]
            self._rows[moved] = row
            for column in (self._signs, self._bytes, self._scale):
                column[row] = column[last]
        del self._ids[last]
        for column in (self._signs, self._bytes, self._scale):
            column[last] = 0
        return True

    def vector_of(self, id_bytes: bytes) -> NDArray[np.float32] | None:
        """The unit vector of an episode as it is kept; None where there is none."""
        row = self._rows.get(id_bytes)
        return None if row is None else self._bytes[row] * self._scale[row]

    def nearest(self, vector: NDArray[np.float32], count: int) -> list[tuple[bytes, float]]:
        """The ``count`` episodes of greatest cosine, best first, newest first where equal."""
        size = len(self._ids)
        rows = np.arange(size)
        candidates = max(CANDIDATES, 2 * count)
        if size > candidates:
            different = np.bitwise_count(self._signs[:size] ^ self._signs_of(vector)).sum(axis=1, dtype=np.int64)
            # All that differ as little as the last candidate: the choice does not depend on the order of rows.
            rows = np.flatnonzero(different <= np.partition(different, candidates - 1)[candidates - 1])
        cosines = self._cosines(rows, vector).tolist()
        ids = [self._ids[row] for row in rows.tolist()]
        best = sorted(zip(cosines, ids, strict=True), reverse=True)[:count]
        return [(id_bytes, cosine) for cosine, id_bytes in best]

    def cosines(self, ids: list[bytes], vector: NDArray[np.float32]) -> NDArray[np.float64]:
        """The cosine of each of some episodes; 0 where it has no vector (yet)."""
        rows = np.array([self._rows.get(id_bytes, -1) for id_bytes in ids], np.int64)
        result = np.zeros(len(ids))
        result[rows >= 0] = self._cosines(rows[rows >= 0], vector)
        return result

    def _cosines(self, rows: NDArray[np.int64], vector: NDArray[np.float32]) -> NDArray[np.float64]:
        norm = float(np.linalg.norm(vector)) or 1.0
        # Row by row: the sum over a row must not depend on which others are asked for.
        products = np.einsum("rd,d->r", self._bytes[rows].astype(np.float32), vector / np.float32(norm))
        cosines: NDArray[np.float64] = (products * self._scale[rows]).astype(np.float64)
        return cosines

    def _signs_of(self, vector: NDArray[np.float32]) -> NDArray[np.uint64]:
        bits = np.zeros(64 * self._signs.shape[1], np.uint8)
        bits[: self.dimensions] = vector > 0
        return np.packbits(bits).view(np.uint64)


class VectorNearness:
    """How near turns are by the vectors of their episodes: what hybrid and semantic search take from an encoder."""

    def __init__(self, index: AgentIndex, vectors: VectorIndex, vector: NDArray[np.float32], nearest: int) -> None:
        self._index, self._vectors, self._vector, self._nearest = index, vectors, vector, nearest

    def of_turns(self, turns: NDArray[np.int64]) -> NDArray[np.float64]:
        """The cosines of some turns."""
        ids = self._index.timeline.ids
        return self._vectors.cosines([ids[turn] for turn in turns.tolist()], self._vector)

    def of_all(self) -> NDArray[np.float64]:
        """The cosines of the nearest ones; 0 elsewhere."""
        near = np.zeros(self._index.turns.size)
        for id_bytes, cosine in self._vectors.nearest(self._vector, self._nearest):
            if id_bytes in self._index:
                near[self._index.turns_of(id_bytes)] = cosine
        return near
