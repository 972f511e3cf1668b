"""The shipped words in one language: which belong to one stem, and which stems mean nearly the same.

Shared by all agents of a process. Meaning is of English words; in other languages every word stands for itself.
"""

from __future__ import annotations

from functools import cache, cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from qilbee_core.search.analysis import Analyser, analyser
from qilbee_core.search.dates import TIME_WORDS
from qilbee_core.search.table import TABLE_DIMENSIONS, nearest_words, shipped_vectors, shipped_words

__all__ = ["NEIGHBOUR_COSINE_MIN", "Lexicon", "lexicon"]

NEIGHBOUR_COSINE_MIN = 0.4


class Lexicon:
    """Words by number, stems by number, vectors of stems."""

    def __init__(self, language: Analyser) -> None:
        self.language = language
        self.has_meaning = language.language in {"english", "none"}
        numbers: dict[str, int] = {}
        stems = language.stems(shipped_words())
        self.stem_of_word = [numbers.setdefault(stem, len(numbers)) for stem in stems]
        """Number of a word -> number of its stem."""
        self.numbers = numbers
        """Stem -> its number."""
        self.stem_of_word_array = np.array(self.stem_of_word, np.int32)
        english = language.language == "english"
        self.is_time_word = np.array([english and word in TIME_WORDS for word in shipped_words()])
        """By the number of a word."""
        self.time_words = frozenset(np.flatnonzero(self.is_time_word).tolist())
        self.neighbours = lru_cache(4096)(self._neighbours)

    def stems_of(self, words: list[str]) -> list[int | str]:
        """For each word the number of its stem, or the stem where none of the shipped words has it."""
        known = self.numbers
        return [known.get(stem, stem) for stem in self.language.stems(words)]

    @cached_property
    def _words_of_stem(self) -> list[list[int]]:
        words: list[list[int]] = [[] for _ in self.numbers]
        for word, stem in enumerate(self.stem_of_word):
            words[stem].append(word)
        return words

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """A unit vector for each stem: the mean of those of its words. 15 MB, made at the first search of a process."""
        words = shipped_vectors()[[word for each in self._words_of_stem for word in each]].astype(np.float32)
        words /= np.linalg.norm(words, axis=1, keepdims=True)
        starts = np.cumsum([0, *map(len, self._words_of_stem[:-1])])
        vectors: NDArray[np.float32] = np.add.reduceat(words, starts, axis=0)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _neighbours(self, stem: int) -> list[tuple[int, float]]:
        """The stems nearest to a stem, best first, with their cosines: NEIGHBOUR_COSINE_MIN or more.

        Those of words that are near to one of its words are looked at.
        """
        if not self.has_meaning:
            return []
        starts, near = nearest_words()
        others = {
            self.stem_of_word[other]
            for word in self._words_of_stem[stem]
            for other in near[starts[word] : starts[word + 1]].tolist()
        }
        candidates = sorted(others - {stem})
        cosines = (self.vectors[candidates] @ self.vectors[stem]).tolist()
        found = [each for each in zip(candidates, cosines, strict=True) if each[1] >= NEIGHBOUR_COSINE_MIN]
        return sorted(found, key=lambda each: (-each[1], each[0]))

    def direction(self, weights: dict[int, float]) -> NDArray[np.float32]:
        """The weighted sum of the vectors of some stems."""
        if not weights or not self.has_meaning:
            return np.zeros(TABLE_DIMENSIONS, np.float32)
        total: NDArray[np.float32] = np.array(list(weights.values()), np.float32) @ self.vectors[list(weights)]
        return total


@cache
def lexicon(language: str) -> Lexicon:
    """The lexicon of a language; made once in a process, in about 50 ms."""
    return Lexicon(analyser(language))
