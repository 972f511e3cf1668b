"""The contract of an embedder as tests: subclass :class:`EmbedderContract`, say how to make yours, and run pytest.

::

    class TestWords(EmbedderContract):
        def open_embedder(self) -> Embedder:
            return Words()
"""

# ruff: noqa: D102 - the name of a test is the sentence of the contract that it tests

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray

from qilbee_core.interfaces import Embedder

__all__ = ["EmbedderContract"]

_THREADS = 8
_SAME = 1e-4
"""Of numbers of a vector of length 1: what another order of adding up may change, and more."""

_TEXTS = (
    "Ana moved to Oslo.",
    "The parcel is in Hamburg.",
    "?",
    "a",
    "no full stop, " * 50,
    "\u6211\u559c\u6b22\u8336\u3002\u6211\u4f4f\u5728\u5965\u65af\u9646\u3002",
    "\u0623\u0646\u0627 \u0623\u0639\u064a\u0634 \u0641\u064a \u0623\u0648\u0633\u0644\u0648\u061f",
    "\U0001f44d\U0001f3fd",
    "first line\nsecond line\r\n\tthird",
    "nul \0 and bell \a",
    "Ana moved to Oslo.",
)


class EmbedderContract:
    """What every embedder promises. ``open_embedder`` is called once for each test, and must give a new one.

    Where yours is not quite deterministic, for it asks a service, set ``same`` to how far numbers may be apart.
    """

    same = _SAME

    def open_embedder(self) -> Embedder:
        """A new embedder."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its embedder is opened")

    @cached_property
    def _embedder(self) -> Embedder:
        return self.open_embedder()

    def test_its_name_says_which_model_it_is(self) -> None:
        name = self._embedder.name
        assert isinstance(name, str)
        assert name
        assert name.isprintable()
        assert self.open_embedder().name == name

    def test_its_dimensions_are_a_number_known_before_anything_is_asked(self) -> None:
        dimensions = self._embedder.dimensions
        assert type(dimensions) is int
        assert dimensions >= 1

    def test_there_is_a_row_of_length_1_for_each_text_in_float32(self) -> None:
        vectors = self._embedded(_TEXTS)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)

    def test_no_texts_give_no_rows(self) -> None:
        assert self._embedder.embed([]).shape == (0, self._embedder.dimensions)

    @pytest.mark.parametrize("text", ["", " ", "\n\t "], ids=repr)
    def test_a_text_without_a_word_has_a_vector_too(self, text: str) -> None:
        assert np.allclose(np.linalg.norm(self._embedded([text, "a", text]), axis=1), 1.0, atol=1e-3)

    def test_a_very_long_text_has_a_vector_too(self) -> None:
        self._embedded(["tea and ink " * 20_000])

    def test_a_text_has_the_same_vector_each_time(self) -> None:
        self._assert_same(self._embedded(_TEXTS), self._embedded(_TEXTS))

    def test_a_new_embedder_gives_the_same_vectors(self) -> None:
        first = self._embedded(_TEXTS)
        self._assert_same(self.open_embedder().embed(_TEXTS), first)

    def test_a_text_has_the_same_vector_alone_and_among_others(self) -> None:
        alone = np.concatenate([self._embedded([text]) for text in _TEXTS])
        self._assert_same(self._embedded(_TEXTS), alone)
        self._assert_same(self._embedded(_TEXTS[::-1]), alone[::-1])

    def test_many_texts_may_be_asked_at_once(self) -> None:
        texts = [f"{number} {text}" for number in range(30) for text in _TEXTS[:4]]
        vectors = self._embedded(texts)
        self._assert_same(vectors[-3:], self._embedded(texts[-3:]))

    def test_texts_that_differ_in_meaning_have_different_vectors(self) -> None:
        first, second = self._embedded(_TEXTS[:2])
        assert not np.allclose(first, second, atol=0.01)

    def test_what_it_gave_stays_as_it_is(self) -> None:
        first = self._embedded(_TEXTS[:2])
        kept = first.copy()
        self._embedded(_TEXTS[2:])
        assert np.array_equal(first, kept)

    def test_eight_threads_share_one_embedder(self) -> None:
        expected = self._embedded(_TEXTS)
        with ThreadPoolExecutor(_THREADS) as pool:
            for vectors in pool.map(lambda _: self._embedded(_TEXTS), range(2 * _THREADS)):
                self._assert_same(vectors, expected)

    def _embedded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = self._embedder.embed(texts)
        assert isinstance(vectors, np.ndarray)
        assert vectors.shape == (len(texts), self._embedder.dimensions)
        assert np.isfinite(vectors).all()
        return vectors

    def _assert_same(self, vectors: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        assert np.allclose(vectors, expected, atol=self.same)
