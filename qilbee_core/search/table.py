"""The words we ship, each under a number that stored rows hold, and a vector of what each means.

Made by ``tools/build_static_table.py`` of the weights of all-MiniLM-L6-v2 (Apache-2.0, see NOTICE). A row that was
written with a table needs that very list of words for ever: one that has been shipped never changes.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from qilbee_core.errors import DataError

__all__ = [
    "TABLE_DIMENSIONS",
    "TABLE_MODEL",
    "TABLE_VERSION",
    "nearest_words",
    "numbers_of_words",
    "shipped_vectors",
    "shipped_words",
]

TABLE_VERSION = 1
TABLE_MODEL = "all-MiniLM-L6-v2/static-1"
TABLE_DIMENSIONS = 256

_SHA256 = {
    "words-1.txt": "bd68c81a12a5643189692456d3ccb1337984432a40dee13954e2c6513419b5c7",
    "words-1.npy": "75acf1e202813fd4f9bda4cde96fbbb1c531ca871e9f143dca7df24f8df63e97",
    "words-1.npz": "91d4fb2f37557ce0f734d1f8cad21e4341fe5c0bfbe07d38af96ee56dea26a38",
}


def _shipped(name: str) -> bytes:
    data = files(__package__).joinpath(name).read_bytes()
    # Other words under the same numbers would read rows as texts that nobody said.
    if sha256(data).hexdigest() != _SHA256[name]:
        raise DataError(f"{name} of the installed qilbee-core is damaged", remedy="reinstall qilbee-core")
    return data


@cache
def shipped_words() -> tuple[str, ...]:
    """The words by number, roughly the most frequent first.

    >>> shipped_words()[2800]
    'hearing'
    """
    return tuple(_shipped("words-1.txt").decode().split())


@cache
def numbers_of_words() -> dict[str, int]:
    """Word -> its number, below 65,536."""
    return {word: number for number, word in enumerate(shipped_words())}


@cache
def nearest_words() -> tuple[list[int], NDArray[np.uint16]]:
    """Starts and words: word ``n`` is near in meaning to ``words[starts[n]:starts[n + 1]]``, 32 at most."""
    with np.load(BytesIO(_shipped("words-1.npz")), allow_pickle=False) as near:
        return near["starts"].tolist(), near["words"]


@cache
def shipped_vectors() -> NDArray[np.int8]:
    """One row for each word; only its direction means anything, each has a scale of its own."""
    vectors: NDArray[np.int8] = np.load(BytesIO(_shipped("words-1.npy")), allow_pickle=False)
    return vectors
