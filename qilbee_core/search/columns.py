"""Arrays: those that grow together a row at a time, room to work in, and the greatest of many values."""

from __future__ import annotations

import threading
from typing import ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Columns", "reached_by", "scratch"]

_ROWS_LEAST = 16
_SCRATCH_LEAST = 1 << 20
_SCRATCH_BYTES_MAX = 1 << 23
_IN_GROUP_MAX = 64
_kept = threading.local()


class Columns:
    """Base of classes with one array for each name in ``dtypes``; the first ``size`` rows count, others are zero."""

    dtypes: ClassVar[dict[str, DTypeLike]]

    def __init__(self) -> None:
        self.size = 0
        for name, dtype in self.dtypes.items():
            setattr(self, name, np.zeros(_ROWS_LEAST, dtype))

    @property
    def ram_bytes(self) -> int:
        """What the arrays take, unused rows too."""
        return sum(int(getattr(self, name).nbytes) for name in self.dtypes)

    def taken(self, rows: NDArray[np.integer]) -> Self:
        """Some of the rows, in another object."""
        taken = type(self)()
        taken.extend(len(rows))
        for name in self.dtypes:
            getattr(taken, name)[: len(rows)] = getattr(self, name)[rows]
        return taken

    def extend(self, rows: int) -> int:
        """Append so many rows of zeros and return the number of the first."""
        first, self.size = self.size, self.size + rows
        capacity = len(getattr(self, next(iter(self.dtypes))))
        if self.size > capacity:
            # By a quarter: a row costs four copies in all, and a fifth of the memory is unused at most.
            capacity = max(self.size, capacity + capacity // 4)
            for name, dtype in self.dtypes.items():
                grown = np.zeros(capacity, dtype)
                grown[:first] = getattr(self, name)[:first]
                setattr(self, name, grown)
        return first


def reached_by(values: NDArray[np.floating], count: int) -> float:
    """Some number that at least ``count`` of the values reach, and not many more; -inf where that is hard to tell.

    So many values are as great as the ``count`` greatest among the greatest of some groups.
    """
    in_group = min(_IN_GROUP_MAX, len(values) // (2 * count))
    if in_group < 2:
        return -np.inf
    groups = len(values) // in_group
    greatest = values[: in_group * groups].reshape(in_group, groups).max(axis=0)
    return float(np.partition(greatest, -count)[-count])


def scratch(rows: int, columns: int) -> NDArray[np.float32]:
    """Room to work in until the next call in this thread: new memory costs as much as what is done in it."""
    lines: NDArray[np.float32] | None = getattr(_kept, "lines", None)
    if lines is None or len(lines) < rows * columns:
        # So much at least that it gets large pages.
        lines = np.empty(max(rows * columns, _SCRATCH_LEAST), np.float32)
        if lines.nbytes <= _SCRATCH_BYTES_MAX:
            _kept.lines = lines
    return lines[: rows * columns].reshape(rows, columns)
