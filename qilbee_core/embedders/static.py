"""The embedder ``static``: a text means the sum of what its words mean, by the table that is built in.

A store does not ask it: it knows which words are frequent in an agent's memory, weighs them by that, and keeps no
vectors (docs/search.md). This is the same table for whoever wants vectors of texts alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qilbee_core.search.lexicon import lexicon
from qilbee_core.search.table import TABLE_DIMENSIONS, TABLE_MODEL

__all__ = ["StaticEmbedder"]


class StaticEmbedder:
    """Vectors of English texts. Texts without any known word have all the same one.

    >>> cat, kitten, train = StaticEmbedder().embed(["my cat", "A kitten!", "the night train"])
    >>> bool(cat @ kitten > 0.5 > cat @ train)
    True
    """

    name = TABLE_MODEL
    dimensions = TABLE_DIMENSIONS

    def __init__(self) -> None:
        self._lexicon = lexicon("english")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row for each text, of length 1."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            stems = self._lexicon.stems_of(self._lexicon.language.words(text))
            weights: dict[int, float] = {}
            for stem in stems:
                if isinstance(stem, int):
                    weights[stem] = weights.get(stem, 0.0) + 1.0
            vectors[row] = self._lexicon.direction(weights)
        vectors[~vectors.any(axis=1), 0] = 1.0
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit
