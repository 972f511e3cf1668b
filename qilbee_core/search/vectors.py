"""Vectors of an encoder, by episode: found by the signs of their numbers, then measured by bytes.

Brute force, but little of it: a vector of 256 numbers takes 32 bytes of signs to look through, and only the
CANDIDATES nearest by signs (fewest different ones) are multiplied in full. Good to some 300,000 episodes of an agent.

The caller locks as for :class:`~qilbee_core.search.index.AgentIndex`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorIndex", "rounded"]

CANDIDATES = 2000
_ROWS_LEAST = 16
_OBJECT_BYTES = 200
"""About what an id takes beside the arrays."""


def rounded(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """Each row as bytes, its greatest number as 127; rows of zeros stay so. Only directions are kept.

    >>> rounded(np.array([[0.3, -0.6, 0.0]], np.float32)).tolist()
    [[64, -127, 0]]
    """
    greatest = np.abs(vectors).max(axis=1, keepdims=True)
    return np.rint(vectors * (127.0 / np.where(greatest > 0, greatest, 1.0))).astype(np.int8)


class VectorIndex:
    """Directions of episodes, one byte a number; zeros for one that has nothing to say.

    >>> index = VectorIndex(2)
    >>> index.put([b"a", b"b"], np.array([[95, 127], [127, 0]], np.int8))
    >>> [(id, round(cosine, 2)) for id, cosine in index.nearest(np.array([0.0, 1.0], np.float32), 1)]
    [(b'a', 0.8)]
    """

    def __init__(self, dimensions: int, model: int = 0) -> None:
        self.dimensions = dimensions
        self.model = model
        """By whatever number the caller knows the encoder: vectors of two are never in one index."""
        self._rows: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._signs = np.zeros((-(-dimensions // 64), _ROWS_LEAST), np.uint64)
        """64 of each row's in a column, one line after the other: so they are counted fastest."""
        self._bytes = np.zeros((_ROWS_LEAST, dimensions), np.int8)
        self._scale = np.zeros(_ROWS_LEAST, np.float32)
        """What the bytes of a row are multiplied with to be a unit vector; 0 for zeros."""

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._ids)

    def __contains__(self, id_bytes: bytes) -> bool:
        return id_bytes in self._rows

    @property
    def ram_bytes(self) -> int:
        """About what it takes."""
        return self._signs.nbytes + self._bytes.nbytes + self._scale.nbytes + _OBJECT_BYTES * len(self._ids)

    def put(self, ids: Sequence[bytes], vectors: NDArray[np.int8]) -> None:
        """Keep the vectors of some different episodes, in place of the ones before."""
        new = [id_bytes for id_bytes in ids if id_bytes not in self._rows]
        self._rows.update(zip(new, range(len(self._ids), len(self._ids) + len(new)), strict=True))
        self._ids += new
        if len(self._ids) > len(self._scale):
            more = max(len(self._ids) - len(self._scale), len(self._scale) // 4)
            self._signs = np.concatenate([self._signs, np.zeros((len(self._signs), more), np.uint64)], axis=1)
            self._bytes = np.concatenate([self._bytes, np.zeros((more, self.dimensions), np.int8)])
            self._scale = np.concatenate([self._scale, np.zeros(more, np.float32)])
        rows = [self._rows[id_bytes] for id_bytes in ids]
        norm = np.linalg.norm(vectors.astype(np.float32), axis=1)
        self._signs[:, rows] = self._signs_of(vectors).T
        self._bytes[rows] = vectors
        self._scale[rows] = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)

    def remove(self, id_bytes: bytes) -> bool:
        """Forget a vector; False where there is none. The last one takes its row."""
        row = self._rows.pop(id_bytes, None)
        if row is None:
            return False
        last = len(self._ids) - 1
        if row != last:
            moved = self._ids[row] = self._ids[last]
            self._rows[moved] = row
            for column in (self._signs.T, self._bytes, self._scale):
                column[row] = column[last]
        del self._ids[last]
        for column in (self._signs.T, self._bytes, self._scale):
            column[last] = 0
        return True

    def vector_of(self, id_bytes: bytes) -> NDArray[np.float32] | None:
        """The unit vector of an episode as it is kept; None where there is none, or nothing but zeros."""
        row = self._rows.get(id_bytes)
        return None if row is None or not self._scale[row] else self._bytes[row] * self._scale[row]

    def nearest(
        self, vector: NDArray[np.float32], count: int, among: Iterable[bytes] | None = None
    ) -> list[tuple[bytes, float]]:
        """The ``count`` episodes of greatest cosine, of all or ``among`` some, best first, newest first where equal."""
        rows = np.arange(len(self._ids))
        if among is not None:
            is_wanted = np.zeros(len(rows) + 1, np.bool_)  # the last one stands for those without a vector
            is_wanted[list(map(self._rows.get, among, repeat(-1)))] = True
            rows = np.flatnonzero(is_wanted[:-1])
        candidates = max(CANDIDATES, 2 * count)
        if len(rows) > candidates:
            different = np.zeros(len(rows), np.uint16)
            for line, signs in zip(self._signs, self._signs_of(vector), strict=True):
                different += np.bitwise_count((line[: len(rows)] if among is None else line[rows]) ^ signs)
            # All that differ as little as the last candidate: the choice does not depend on the order of rows.
            rows = rows[different <= np.searchsorted(np.cumsum(np.bincount(different)), candidates)]
        cosines = self._cosines(rows, vector)
        if len(rows) > count:
            kept = np.flatnonzero(cosines >= np.partition(cosines, -count)[-count])
            rows, cosines = rows[kept], cosines[kept]
        ids = [self._ids[row] for row in rows.tolist()]
        best = sorted(zip(cosines.tolist(), ids, strict=True), reverse=True)[:count]
        return [(id_bytes, cosine) for cosine, id_bytes in best]

    def cosines(self, ids: Sequence[bytes], vector: NDArray[np.float32]) -> NDArray[np.float64]:
        """The cosine of each of some episodes; NaN where it has no vector (yet)."""
        rows = np.array([self._rows.get(id_bytes, -1) for id_bytes in ids], np.int64)
        result = np.full(len(ids), np.nan)
        result[rows >= 0] = self._cosines(rows[rows >= 0], vector)
        return result

    def _cosines(self, rows: NDArray[np.int64], vector: NDArray[np.float32]) -> NDArray[np.float64]:
        norm = float(np.linalg.norm(vector)) or 1.0
        # Row by row: the sum over a row must not depend on which others are asked for.
        products = np.einsum("rd,d->r", self._bytes[rows].astype(np.float32), vector / np.float32(norm))
        cosines: NDArray[np.float64] = (products * self._scale[rows]).astype(np.float64)
        return cosines

    def _signs_of(self, vectors: NDArray[np.int8] | NDArray[np.float32]) -> NDArray[np.uint64]:
        bits = np.zeros((*vectors.shape[:-1], 64 * len(self._signs)), np.uint8)
        bits[..., : self.dimensions] = vectors > 0
        return np.packbits(bits, axis=-1).view(np.uint64)
