"""Arrays that grow together, a row at a time."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["Columns"]

_ROWS_LEAST = 16


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
