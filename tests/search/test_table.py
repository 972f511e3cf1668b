"""The shipped words and what they mean."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from qilbee_core import DataError
from qilbee_core.search import table
from qilbee_core.search.lexicon import NEIGHBOUR_COSINE_MIN, lexicon

# Never edit a line, only add one: stored rows need these very words under these very numbers.
SHIPPED = {
    "words-1.txt": "bd68c81a12a5643189692456d3ccb1337984432a40dee13954e2c6513419b5c7",
    "words-1.npy": "75acf1e202813fd4f9bda4cde96fbbb1c531ca871e9f143dca7df24f8df63e97",
    "words-1.npz": "91d4fb2f37557ce0f734d1f8cad21e4341fe5c0bfbe07d38af96ee56dea26a38",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_never_changes(name: str) -> None:
    assert sha256(files("qilbee_core.search").joinpath(name).read_bytes()).hexdigest() == SHIPPED[name]


def test_every_file_of_a_table_is_on_the_list() -> None:
    there = {path.name for path in Path(table.__file__).parent.iterdir() if path.name.startswith("words-")}
    assert there == set(SHIPPED)


def test_every_word_has_a_number_that_fits_into_16_bits_and_a_vector() -> None:
    words = table.shipped_words()
    assert len(set(words)) == len(words) < 1 << 16
    assert table.shipped_vectors().shape == (len(words), table.TABLE_DIMENSIONS)
    assert table.numbers_of_words()[words[-1]] == len(words) - 1
    assert np.abs(table.shipped_vectors()).max(axis=1).min() == 127


@pytest.mark.parametrize("name", SHIPPED)
def test_a_damaged_table_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = bytearray(files("qilbee_core.search").joinpath(name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / name).write_bytes(damaged)
    monkeypatch.setattr(table, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match=f"{name} .*reinstall"):
        table._shipped(name)


def test_words_of_one_stem_are_one_and_near_ones_are_found() -> None:
    english = lexicon("english")
    assert english.stems_of(["paint", "painting", "paints"]) == [english.numbers["paint"]] * 3
    near = english.neighbours(english.numbers["movi"])
    assert english.numbers["film"] in [stem for stem, _ in near][:3]
    assert [cosine for _, cosine in near] == sorted((cosine for _, cosine in near), reverse=True)
    assert min(cosine for _, cosine in near) >= NEIGHBOUR_COSINE_MIN


def test_a_word_that_is_not_shipped_stands_for_itself() -> None:
    assert lexicon("english").stems_of(["qzxv"]) == ["qzxv"]


def test_other_languages_have_words_and_no_meaning() -> None:
    german = lexicon("german")
    assert german.neighbours(german.numbers["film"]) == []
    assert not german.direction({german.numbers["film"]: 1.0}).any()


def test_the_vector_of_a_stem_is_the_mean_of_its_words() -> None:
    english = lexicon("english")
    numbers = [
        table.numbers_of_words()[word] for word in table.shipped_words() if english.language.stems([word]) == ["hike"]
    ]
    words = table.shipped_vectors()[numbers].astype(np.float64)
    mean = (words / np.linalg.norm(words, axis=1, keepdims=True)).sum(axis=0)
    assert len(numbers) > 1
    assert np.allclose(english.vectors[english.numbers["hike"]], mean / np.linalg.norm(mean), atol=1e-5)
    assert np.allclose(np.linalg.norm(english.vectors, axis=1), 1.0, atol=1e-5)
