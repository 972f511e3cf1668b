"""Vectors in a store: made behind the stores, never waited for, those of what is stored, and never of two models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared.embedders import HashesPlugin, plugins_with, vector_of

from qilbee_core import (
    AgentMemory,
    BackendOptions,
    Delete,
    Episode,
    InvalidError,
    PluginError,
    Put,
    ReadOnlyError,
    SearchSettings,
    Settings,
    SettingsError,
    StorageSettings,
    Store,
    StoreClosedError,
    WriteBatch,
    aopen_store,
    open_store,
)
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.envelope import frame
from qilbee_core.ids import parse_id
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import embedding
from qilbee_core.memory.embedding import Embedding
from qilbee_core.memory.terms import NO_ID
from qilbee_core.memory.vectors import VectorCursor, seal_vector, vector_cursor_key

BOT = AgentKeys("bot")
WORDS = ("tea", "oak", "ink", "train", "order", "melville", "harbour", "invoice", "violin")
ENGINES = {"rocksdb": "rocksdict", "leveldb": "plyvel", "ephemeral": "qilbee_core"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_RETRY_S", 0.02)
    monkeypatch.setattr(embedding, "_RETRY_S_MAX", 0.05)


@pytest.fixture
def plugin() -> HashesPlugin:
    return HashesPlugin()


OpenStore = Callable[..., Store]


@pytest.fixture
def open_here(tmp_path: Path, engine: str, plugin: HashesPlugin) -> Iterator[OpenStore]:
    """Open a store of this test with the embedder of hashes; what is left open is closed at the end."""
    pytest.importorskip(ENGINES[engine])
    opened: list[Store] = []

    def open_one(embedder: str = "test.hashes", *, read_only: bool = False, **options: Any) -> Store:
        opened.append(open_at(tmp_path / "data", plugin, engine, embedder, read_only=read_only, **options))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def open_at(
    path: Path,
    plugin: HashesPlugin,
    engine: str | None = None,
    embedder: str = "test.hashes",
    *,
    indexing: str = "background",
    read_only: bool = False,
    **options: Any,
) -> Store:
    search = SearchSettings(
        indexing=indexing,  # type: ignore[arg-type]
        embedder=embedder,
        embedders={"test.hashes": options},
    )
    given_settings = Settings(storage=StorageSettings(data_path=str(path), backend=engine), search=search)
    return open_store(given_settings, plugins=plugins_with(plugin), read_only=read_only)


on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")
on_rocksdb = pytest.mark.parametrize("engine", ["rocksdb"], scope="session")


def note(text: str, agent_id: str = "bot", **given: Any) -> Episode:
    return Episode.observation(agent_id, text, **given)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, f"waited for {what} in vain"
        time.sleep(0.005)


def wait_for_vectors(store: Store) -> None:
    memories = [store.agent_memory(agent_id) for agent_id in store.agents()]
    statuses = (memory.get_semantic_search_status for memory in memories)
    for status in statuses:
        wait_until(lambda status=status: status().vectors_pending == 0, "the vectors")  # type: ignore[misc]


def vectors(store: Store, model: int | None = None, keys: AgentKeys = BOT) -> dict[bytes, bytes]:
    """The vectors of an agent, by key, without the cursors."""
    start, stop = keys.range(Space.VECTOR) if model is None else keys.vector_range(model)
    return {key: value for key, value in store._backend.scan(start, stop) if key[-16:] != NO_ID}


def expected_vectors(store: Store, model: int, name: str, dimensions: int, agent_id: str = "bot") -> dict[bytes, bytes]:
    """What there has to be of what is stored."""
    keys, found = AgentKeys(agent_id), {}
    for episode in store.agent_memory(agent_id).episodes():
        key, text = keys.vector(model, parse_id(episode.id)), str(episode.content["observation"])
        vector = vector_of(text, dimensions, name)
        found[key] = seal_vector(key, text, np.rint(vector * (127 / np.abs(vector).max())).astype(np.int8))
    return found


def nearest(memory: AgentMemory, text: str) -> object:
    (found,) = memory.semantic_search(text, 1)
    return found.episode.content["observation"]


# --- made and used


class TestVectors:
    def test_each_episode_gets_its_vector_and_is_found_by_it(self, open_here: OpenStore) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episodes([note(f"{word} {number}") for word in WORDS for number in range(20)])
        wait_for_vectors(store)
        assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)
        assert nearest(memory, "oak 7") == "oak 7"
        assert memory.semantic_search("oak 7", 1)[0].score == pytest.approx(1.0, abs=0.01)
        assert memory.hybrid_search("oak 7", 1, explain=True)[0].explanation["meaning"] > 0.3  # type: ignore[index]
        assert store.verify().problems == []

    def test_as_many_are_found_as_are_asked_for(self, open_here: OpenStore) -> None:
        store = open_here(dimensions=2)
        memory = store.agent_memory("bot")
        memory.store_episodes([note(f"oak {number}") for number in range(1000)])
        wait_for_vectors(store)
        asked = vector_of("oak 7", 2, "test/hashes")
        near = [vector_of(f"oak {number}", 2, "test/hashes") @ asked > 0.05 for number in range(1000)]
        assert len(memory.semantic_search("oak 7", 1000)) >= sum(near) > 450

    def test_what_is_similar_goes_by_vectors(self, open_here: OpenStore) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        first = memory.store_episode(note("an oak", metadata={"session_id": "1"}))
        memory.store_episode(note("a violin", metadata={"session_id": "2"}))
        memory.store_episode(note("an oak", metadata={"session_id": "3"}))
        wait_for_vectors(store)
        found = memory.find_similar_episodes(first)
        assert found[0].episode.content == {"observation": "an oak"}
        assert found[0].score == pytest.approx(1.0, abs=0.01)

    def test_the_status_says_which_model_and_how_many_wait(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        store = open_here(model="test/other", dimensions=8)
        memory = store.agent_memory("bot")
        go_on = threading.Event()
        plugin.behave = lambda _: go_on.wait(60) and None
        memory.store_episodes([note("tea"), note("ink")])
        assert memory.search_episodes("tea")
        status = memory.get_semantic_search_status()
        assert (status.model, status.dimensions, status.vectors_pending) == ("test/other", 8, 2)
        go_on.set()
        wait_for_vectors(store)
        figures: Any = store.stats()["search"]
        assert (figures["embedder"], figures["embedder_problem"]) == ("test/other", None)
        wait_until(lambda: store.stats()["search"]["vectors_pending"] == 0, "the count")  # type: ignore[index, call-overload]

    def test_a_search_never_waits_for_vectors_and_uses_those_there_are(
        self, open_here: OpenStore, plugin: HashesPlugin
    ) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episode(note("an oak in the yard"))
        wait_for_vectors(store)
        blocked = threading.Event()

        def block(texts: Sequence[str]) -> object:
            return blocked.wait(60) and None if "a violin" in texts else None

        plugin.behave = block
        memory.store_episode(note("a violin"))
        found = memory.semantic_search("cello", 5)
        assert "a violin" in [each.episode.content["observation"] for each in found]  # by the table of words
        assert nearest(memory, "an oak in the yard") == "an oak in the yard"
        assert memory.get_semantic_search_status().vectors_pending == 1
        blocked.set()
        wait_for_vectors(store)
        assert memory.semantic_search("a violin", 1)[0].score == pytest.approx(1.0, abs=0.01)

    def test_a_changed_episode_is_found_by_its_new_text_alone(self, open_here: OpenStore) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        stored_id = memory.store_episode(note("an oak"))
        memory.store_episode(note("a violin"))
        wait_for_vectors(store)
        assert nearest(memory, "an oak") == "an oak"
        memory.update_episode(stored_id, content={"observation": "a harbour"})
        assert memory.semantic_search("an oak", 1, min_score=0.9) == []
        wait_for_vectors(store)
        assert memory.semantic_search("a harbour", 1)[0].score == pytest.approx(1.0, abs=0.01)
        assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)

    def test_what_is_deleted_forgotten_cleared_or_invalidated_leaves_no_vector(self, open_here: OpenStore) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        ids = [memory.store_episode(note(word, relevance=0.2 if word == "tea" else 1.0)) for word in WORDS]
        wait_for_vectors(store)
        memory.delete_episode(ids[1])
        memory.forget(0.5)
        assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)
        assert len(vectors(store)) == len(WORDS) - 2
        assert memory.semantic_search("oak", 1, min_score=0.9) == []
        memory.clear()
        assert [key for key, _ in store._backend.scan() if key[0] != Space.CATALOG] == []

    @on_disk
    def test_an_erased_vector_leaves_the_files(self, open_here: OpenStore, tmp_path: Path) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        stored_id = memory.store_episode(note("a secret"))
        memory.store_episode(note("tea"))
        wait_for_vectors(store)
        value = vectors(store)[BOT.vector(1, parse_id(stored_id))][4:-4]
        memory.delete_episode(stored_id, erase=True)
        store.flush()
        assert [path for path in tmp_path.rglob("*") if path.is_file() and value in path.read_bytes()] == []

    def test_an_episode_without_a_text_is_not_asked_about(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episodes([note(" "), note("tea")])
        wait_for_vectors(store)
        assert [text for texts in plugin.made[0].asked for text in texts] == ["tea"]
        assert len(memory.semantic_search("tea")) == 1
        assert store.verify().problems == []

    def test_who_speaks_is_said(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        store = open_here()
        store.agent_memory("bot").store_episode(note("I paint.", metadata={"speaker": "Ann"}))
        store.agent_memory("bot").store_episode(Episode.conversation("bot", "Tea?", "Yes."))
        wait_for_vectors(store)
        assert {text for texts in plugin.made[0].asked for text in texts} == {"Ann: I paint.", "Tea?\nYes."}

    def test_agents_are_apart_and_asked_about_together(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        store = open_here()
        go_on = threading.Event()
        plugin.behave = lambda _: go_on.wait(60) and None
        for number in range(20):
            store.agent_memory(f"bot {number}").store_episode(note(f"oak {number}", f"bot {number}"))
        store._indexing.build()
        go_on.set()
        wait_for_vectors(store)
        assert len(plugin.made[0].asked) <= 3
        for number in range(20):
            assert nearest(store.agent_memory(f"bot {number}"), f"oak {number}") == f"oak {number}"
            assert store.agent_memory(f"bot {number}").semantic_search("oak 20", min_score=0.9) == []

    @on_disk
    def test_what_an_earlier_process_has_left_is_made_up_for(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        with open_here("static") as store:
            store.agent_memory("bot").store_episodes([note(f"{word} {n}") for word in WORDS for n in range(100)])
        with open_here() as store:
            wait_for_vectors(store)
            assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)
        with open_here() as store:
            wait_for_vectors(store)
            assert plugin.made[-1].asked == []  # nothing is asked twice
            assert nearest(store.agent_memory("bot"), "ink 7") == "ink 7"

    @on_disk
    def test_without_the_embedder_vectors_rest_and_stay_in_step(self, open_here: OpenStore) -> None:
        with open_here() as store:
            memory = store.agent_memory("bot")
            ids = memory.store_episodes([note("tea"), note("oak"), note("ink")])
            wait_for_vectors(store)
        with open_here("static") as store:
            memory = store.agent_memory("bot")
            assert memory.get_semantic_search_status().model == "all-MiniLM-L6-v2/static-1"
            memory.delete_episode(ids[0])
            memory.update_episode(ids[1], content={"observation": "train"})
            memory.store_episode(note("violin"))
            assert len(vectors(store)) == 1
            assert store.verify().problems == []
        with open_here(indexing="off") as store:
            store.agent_memory("bot").delete_episode(ids[2])
            assert vectors(store) == {}
        with open_here() as store:
            wait_for_vectors(store)
            assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)

    @on_rocksdb
    def test_a_read_only_store_is_searched_by_the_vectors_it_has(self, open_here: OpenStore) -> None:
        with open_here() as store:
            store.agent_memory("bot").store_episodes([note("an oak"), note("a violin")])
            wait_for_vectors(store)
        with open_here(read_only=True) as store:
            assert nearest(store.agent_memory("bot"), "an oak") == "an oak"
            with pytest.raises(ReadOnlyError):
                store.reembed("static")

    @on_rocksdb
    def test_more_than_are_kept_in_ram_are_found_out_again(
        self, open_here: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedding, "IDS_MAX", 10)
        monkeypatch.setattr(embedding, "_SCAN_ROWS", 7)
        store = open_here(indexing="inline")
        store.agent_memory("bot").store_episodes([note(f"oak {number}") for number in range(100)])
        wait_for_vectors(store)
        assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)

    def test_what_is_stored_while_an_encoder_is_asked_has_nothing_asked_again(
        self, open_here: OpenStore, plugin: HashesPlugin
    ) -> None:
        store = open_here(indexing="inline")
        memory = store.agent_memory("bot")

        def store_another(_: Sequence[str]) -> None:
            plugin.behave = lambda _: None
            memory.store_episode(note("oak"))

        plugin.behave = store_another
        memory.store_episode(note("tea"))
        wait_for_vectors(store)
        assert plugin.made[0].asked == [["tea"], ["oak"]]
        wait_until(lambda: store._backend.get(vector_cursor_key(BOT, 1)) is not None, "the cursor")

    def test_what_is_noted_again_before_it_is_encoded_is_asked_for_once(
        self, open_here: OpenStore, plugin: HashesPlugin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take, taken = Embedding._part, list[Any]()

        def taken_and_noted(embedding: Embedding, *given: Any) -> Any:
            part = take(embedding, *given)
            if part.texts and not taken:
                taken.append(part)
                embedding.look_anew()
            return part

        monkeypatch.setattr(Embedding, "_part", taken_and_noted)
        store = open_here()
        store.agent_memory("bot").store_episode(note("tea"))
        wait_for_vectors(store)
        assert plugin.made[0].asked == [["tea"]]

    @pytest.mark.parametrize("indexing", ["background", "inline"])
    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 1 << 32))
    def test_whatever_is_written_vectors_end_up_as_those_of_what_is_stored(self, indexing: str, seed: int) -> None:
        draw = Random(seed)
        plugin = HashesPlugin()
        with open_at(Path("none"), plugin, "ephemeral", indexing=indexing) as store:
            memory = store.agent_memory("bot")
            ids: list[str] = []
            for _ in range(draw.randint(1, 60)):
                change_something(memory, ids, draw)
                if draw.random() < 0.2:
                    memory.hybrid_search(" ".join(draw.choices(WORDS, k=2)))
            wait_for_vectors(store)
            assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)
            assert store.verify().problems == []
            for word in WORDS:
                kept = [(each.episode.id, each.score) for each in memory.semantic_search(word, 50)]
                store._indexing.cleared(store._context.agent("bot"))
                assert [(each.episode.id, each.score) for each in memory.semantic_search(word, 50)] == kept


def change_something(memory: AgentMemory, ids: list[str], draw: Random) -> None:
    kind = draw.random()
    if kind < 0.6 or not ids:
        new = [note(" ".join(draw.choices(WORDS, k=draw.randint(1, 4)))) for _ in range(draw.randint(1, 5))]
        ids += memory.store_episodes(new)
    elif kind < 0.75:
        with suppress(LookupError):
            memory.update_episode(draw.choice(ids), content={"observation": " ".join(draw.choices(WORDS, k=3))})
    elif kind < 0.95:
        memory.delete_episode(ids.pop(draw.randrange(len(ids))))
    else:
        memory.clear()
        ids.clear()


# --- embedders that fail


def raises(texts: Sequence[str]) -> object:
    raise RuntimeError("out of order")


FAULTS: dict[str, tuple[Callable[[Sequence[str]], object], str]] = {
    "raises": (raises, "out of order"),
    "another shape": (lambda texts: np.ones((len(texts), 3), np.float32), "shape"),
    "a row too few": (lambda texts: np.ones((len(texts) - 1, 16), np.float32), "shape"),
    "not a number": (lambda texts: np.full((len(texts), 16), np.nan, np.float32), "finite"),
    "zeros": (lambda texts: np.zeros((len(texts), 16), np.float32), "zero"),
    "texts": (lambda texts: "no vectors", "failed"),
}


class TestFaults:
    @pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
    @on_rocksdb
    def test_an_embedder_that_fails_is_told_of_and_asked_again_and_stops_nothing_else(
        self,
        open_here: OpenStore,
        plugin: HashesPlugin,
        fault: Callable[[Sequence[str]], object],
        words: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        plugin.behave = fault
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episodes([note("an oak"), note("a violin")])
        wait_until(lambda: memory.get_semantic_search_status().embedder_problem is not None, "the problem")
        status = memory.get_semantic_search_status()
        assert words in str(status.embedder_problem)
        assert status.vectors_pending == 2
        assert any(words in problem for problem in store.health().problems)
        wait_until(lambda: "no vectors are made" in caplog.text, "the log")
        assert [each.content["observation"] for each in memory.search_episodes("oak")] == ["an oak"]
        assert memory.hybrid_search("forest", 1)[0].episode.content == {"observation": "an oak"}
        assert nearest(memory, "cello") == "a violin"
        assert vectors(store) == {}
        plugin.behave = lambda _: None
        wait_for_vectors(store)
        wait_until(lambda: store.health().problems == [], "the health")
        assert memory.semantic_search("an oak", 1)[0].score == pytest.approx(1.0, abs=0.01)

    @on_rocksdb
    def test_what_failed_for_a_query_alone_is_healthy_again_by_itself(
        self, open_here: OpenStore, plugin: HashesPlugin
    ) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episode(note("an oak"))
        wait_for_vectors(store)
        plugin.behave = raises
        assert nearest(memory, "forest") == "an oak"
        assert store.health().problems != []
        plugin.behave = lambda _: None
        wait_until(lambda: store.health().problems == [], "the health")

    @on_rocksdb
    def test_a_text_that_is_refused_holds_up_no_other(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        def refuse(texts: Sequence[str]) -> object:
            if any("poison" in text for text in texts):
                raise ValueError("poison")
            return None

        plugin.behave = refuse
        store = open_here()
        memory = store.agent_memory("bot")
        ids = memory.store_episodes([note("poison" if number == 40 else f"oak {number}") for number in range(90)])
        wait_until(lambda: memory.get_semantic_search_status().vectors_pending == 1, "the vectors")
        assert store.verify().problems == []
        assert memory.search_episodes("poison")
        memory.update_episode(ids[40], content={"observation": "honey"})
        wait_for_vectors(store)
        assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)

    @on_rocksdb
    def test_an_embedder_that_hangs_does_not_keep_a_store_open(
        self, open_here: OpenStore, plugin: HashesPlugin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedding, "_CLOSE_S", 0.1)
        go_on = threading.Event()
        plugin.behave = lambda _: go_on.wait(60) and None
        store = open_here()
        store.agent_memory("bot").store_episode(note("tea"))
        wait_until(lambda: bool(plugin.made[0].asked), "the question")
        thread = store._indexing.embedding._thread
        store.close()
        go_on.set()
        assert thread is not None
        thread.join(60)
        assert not thread.is_alive()

    @on_rocksdb
    def test_what_is_deleted_while_it_is_encoded_leaves_no_vector(
        self, open_here: OpenStore, plugin: HashesPlugin
    ) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        doomed: list[str] = []

        def meanwhile(texts: Sequence[str]) -> None:
            if doomed and "an oak" in texts:
                memory.update_episode(doomed.pop(), content={"observation": "a train"})
                memory.delete_episode(doomed.pop())

        with store._indexing.paused():
            doomed += memory.store_episodes([note("a harbour"), note("an oak")])
            memory.store_episode(note("tea"))
            plugin.behave = meanwhile
        wait_for_vectors(store)
        assert doomed == []
        assert sorted(str(each.content["observation"]) for each in memory.episodes()) == ["a train", "tea"]
        assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)

    def test_an_embedder_that_is_not_installed_is_refused_with_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidError, match="pip install acme"):
            open_at(tmp_path / "data", HashesPlugin(), embedder="test.missing")
        with pytest.raises(InvalidError, match="no embedder 'word2vec'; installed are"):
            open_at(tmp_path / "data", HashesPlugin(), embedder="word2vec")
        assert not (tmp_path / "data").exists()

    @pytest.mark.parametrize("options", [{"model": ""}, {"dimensions": 0}, {"dimensions": "many"}], ids=str)
    def test_an_embedder_that_does_not_say_what_it_is_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(PluginError, match=r"embedder 'test\.hashes' of"):
            open_at(Path("none"), HashesPlugin(), "ephemeral", **options)


# --- verify and repair


DAMAGE: dict[str, tuple[Callable[[bytes, bytes], Put | Delete], str]] = {
    "removed": (lambda key, _: Delete(key), "vector-missing"),
    "a bit flipped": (lambda key, value: Put(key, bytes((value[0] ^ 1,)) + value[1:]), "vector-wrong"),
    "cut short": (lambda key, value: Put(key, frame(key, value[:-5])), "vector-wrong"),
    "of another text": (
        lambda key, _: Put(key, seal_vector(key, "something else", np.ones(16, np.int8))),
        "vector-wrong",
    ),
    "of nobody": (
        lambda key, value: Put(key[:-1] + b"\xff", frame(key[:-1] + b"\xff", value[:-4])),
        "vector-orphan",
    ),
    "of no model": (
        lambda key, value: Put(BOT.vector(9, key[-16:]), frame(BOT.vector(9, key[-16:]), value[:-4])),
        "vector-orphan",
    ),
    "cursor unreadable": (lambda key, _: Put(vector_cursor_key(BOT, 1), b"?"), "vector-cursor"),
}


class TestVerify:
    @pytest.mark.parametrize(("damage", "name"), DAMAGE.values(), ids=DAMAGE)
    def test_a_wrong_vector_is_named_and_mended(
        self,
        open_here: OpenStore,
        plugin: HashesPlugin,
        damage: Callable[[bytes, bytes], Put | Delete],
        name: str,
    ) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episodes([note(word) for word in WORDS])
        wait_for_vectors(store)
        wait_until(lambda: store._backend.get(vector_cursor_key(BOT, 1)) is not None, "the cursor")
        whole = vectors(store)
        key, value = list(whole.items())[3]
        store._backend.write(WriteBatch([damage(key, value)]))
        assert {problem.invariant for problem in store.verify().problems} == {name}
        assert all(problem.derived for problem in store.verify().problems)
        asked = sum(map(len, plugin.made[0].asked))
        report = store.repair()
        assert report.after.problems == []
        wait_for_vectors(store)
        assert vectors(store) == whole
        assert store.verify().problems == []
        assert sum(map(len, plugin.made[0].asked)) <= asked + 1  # what was right is not asked for again

    def test_a_cursor_beyond_the_log_is_named(self, open_here: OpenStore) -> None:
        store = open_here("static")
        store.agent_memory("bot").store_episode(note("tea"))
        store.reembed("test.hashes")
        head = store._context.head(store._context.agent("bot"))
        assert head is not None
        key = vector_cursor_key(BOT, 1)
        wait_until(lambda: store._backend.get(key) is not None, "the cursor")
        store._backend.write(WriteBatch([Put(key, VectorCursor(head.generation, head.sequence + 1).encode(key))]))
        assert {problem.invariant for problem in store.verify().problems} == {"vector-cursor"}


# --- another model


class TestReembed:
    @on_disk
    @pytest.mark.parametrize("other", [{"model": "test/other"}, {"dimensions": 8}], ids=str)
    def test_another_model_or_dimension_is_refused_with_the_remedy(
        self, open_here: OpenStore, other: dict[str, Any]
    ) -> None:
        with open_here() as store:
            store.agent_memory("bot").store_episode(note("tea"))
            wait_for_vectors(store)
        with pytest.raises(SettingsError, match=r"vectors of this store are of 'test/hashes' with 16.*reembed\("):
            open_here(**other)
        with open_here() as store:
            assert nearest(store.agent_memory("bot"), "tea") == "tea"

    def test_reembed_switches_to_the_other_and_removes_the_old(self, open_here: OpenStore) -> None:
        store = open_here()
        for agent_id in ("bot", "other"):
            store.agent_memory(agent_id).store_episodes([note(word, agent_id) for word in WORDS])
        wait_for_vectors(store)
        told: list[tuple[int, int]] = []
        made = store.reembed(
            "test.hashes", model="test/other", dimensions=8, progress=lambda done, total: told.append((done, total))
        )
        assert made == 2 * len(WORDS)
        assert told[-1] == (2 * len(WORDS), 2 * len(WORDS))
        for agent_id in ("bot", "other"):
            keys = AgentKeys(agent_id)
            assert vectors(store, keys=keys) == expected_vectors(store, 2, "test/other", 8, agent_id)
            assert nearest(store.agent_memory(agent_id), "oak") == "oak"
        status = store.agent_memory("bot").get_semantic_search_status()
        assert (status.model, status.dimensions, status.vectors_pending) == ("test/other", 8, 0)
        store.agent_memory("bot").store_episode(note("a new one"))
        wait_for_vectors(store)
        assert nearest(store.agent_memory("bot"), "a new one") == "a new one"
        assert store.verify().problems == []

    @on_disk
    def test_the_store_is_opened_with_the_other_from_then_on(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        with open_here() as store:
            store.agent_memory("bot").store_episodes([note(word) for word in WORDS])
            assert store.reembed("test.hashes", model="test/other") == len(WORDS)
        with pytest.raises(SettingsError):
            open_here()
        with open_here(model="test/other") as store:
            assert nearest(store.agent_memory("bot"), "ink") == "ink"
            wait_for_vectors(store)
            assert [text for texts in plugin.made[-1].asked for text in texts] == ["ink"]

    def test_a_query_is_never_compared_with_vectors_of_another_model(
        self, open_here: OpenStore, plugin: HashesPlugin
    ) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episodes([note(word) for word in WORDS])
        wait_for_vectors(store)
        switched: list[int] = []

        def switch(texts: Sequence[str]) -> None:
            if list(texts) == ["forest"] and not switched:
                switched.append(store.reembed("test.hashes", model="test/other"))

        plugin.behave = switch
        found = memory.semantic_search("forest", 1)  # the query is encoded by the old one, and then it switches
        assert switched == [len(WORDS)]
        assert found[0].episode.content == {"observation": "oak"}  # by the table of words

    @on_rocksdb
    def test_who_closes_the_store_meanwhile_leaves_the_old_one_in_use(
        self, open_here: OpenStore, plugin: HashesPlugin
    ) -> None:
        with open_here() as store:
            store.agent_memory("bot").store_episodes([note(f"oak {number}") for number in range(100)])
            wait_for_vectors(store)

            def close(_: Sequence[str]) -> None:
                if len(plugin.made) > 1:
                    store.close()

            plugin.behave = close
            with pytest.raises(StoreClosedError):
                store.reembed("test.hashes", model="test/other")
        plugin.behave = lambda _: None
        with open_here() as store:
            assert nearest(store.agent_memory("bot"), "oak 7") == "oak 7"
            assert len(vectors(store, 1)) == 100

    def test_another_process_that_reembeds_is_noticed(self, plugin: HashesPlugin) -> None:
        backend = EphemeralBackend(BackendOptions(path=Path("none")))  # of two openers, as a shared engine has
        here, there = (
            Store(
                backend,
                Settings(search=SearchSettings(embedder="test.hashes")),
                plugins_with(plugin),
                embedder=plugin.create(),
            )
            for _ in range(2)
        )
        memory = here.agent_memory("bot")
        ids = memory.store_episodes([note(word) for word in WORDS])
        wait_for_vectors(here)
        assert nearest(there.agent_memory("bot"), "oak") == "oak"
        there.reembed("test.hashes", model="test/other")
        assert nearest(there.agent_memory("bot"), "oak") == "oak"
        memory.delete_episode(ids[0])  # by one who has not heard of the new model
        memory.store_episode(note("a late one"))
        wait_until(lambda: "another process" in str(here.health().problems), "the news")
        assert nearest(memory, "forest") == "oak"  # by the table of words
        there.agent_memory("bot").semantic_search("late")
        wait_for_vectors(there)  # what was stored elsewhere, once it is met
        assert vectors(there, 1) == {}
        assert vectors(there) == expected_vectors(there, 2, "test/other", 16)
        assert there.verify().problems == []
        for store in (here, there):
            store._indexing.close()

    def test_back_to_the_table_of_words(self, open_here: OpenStore) -> None:
        store = open_here()
        store.agent_memory("bot").store_episodes([note(word) for word in WORDS])
        wait_for_vectors(store)
        assert store.reembed("static") == 0
        assert vectors(store) == {}
        assert store.agent_memory("bot").get_semantic_search_status().vectors_pending == 0
        assert nearest(store.agent_memory("bot"), "forest") == "oak"
        assert store.verify().problems == []

    def test_for_the_same_model_it_makes_what_is_missing(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        store = open_here()
        wait_until(lambda: store._indexing.embedding._thread is not None, "the thread")
        plugin.behave = raises
        store.agent_memory("bot").store_episodes([note(word) for word in WORDS])
        with pytest.raises(PluginError, match="out of order"):
            store.reembed("test.hashes")
        plugin.behave = lambda _: None
        store.reembed("test.hashes")
        assert store.agent_memory("bot").get_semantic_search_status().vectors_pending == 0

    def test_an_embedder_that_fails_leaves_the_old_one_in_use(self, open_here: OpenStore, plugin: HashesPlugin) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episodes([note(word) for word in WORDS])
        wait_for_vectors(store)

        def other_fails(texts: Sequence[str]) -> object:
            if plugin.made[-1].asked and plugin.made[-1].asked[-1] == list(texts) and len(plugin.made) > 1:
                raise RuntimeError("out of order")
            return None

        plugin.behave = other_fails
        with pytest.raises(PluginError, match="out of order"):
            store.reembed("test.hashes", model="test/other")
        plugin.behave = lambda _: None
        assert memory.get_semantic_search_status().model == "test/hashes"
        assert nearest(memory, "oak") == "oak"
        memory.delete_episode(memory.search_episodes("tea")[0].id)
        assert vectors(store) == expected_vectors(store, 1, "test/hashes", 16)
        assert store.reembed("test.hashes", model="test/third") == len(WORDS) - 1
        assert vectors(store) == expected_vectors(store, 3, "test/third", 16)
        assert store.verify().problems == []

    def test_what_is_written_meanwhile_gets_both_or_loses_both(
        self, open_here: OpenStore, plugin: HashesPlugin
    ) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        ids = memory.store_episodes([note(f"oak {number}") for number in range(100)])
        wait_for_vectors(store)
        seen: list[int] = []

        def meanwhile(texts: Sequence[str]) -> None:
            if len(plugin.made) > 1 and plugin.made[1].asked and len(seen) < 3:
                seen.append(len(seen))
                memory.delete_episode(ids[50 + len(seen)])
                memory.update_episode(ids[60 + len(seen)], content={"observation": f"changed {len(seen)}"})
                memory.store_episode(note(f"meanwhile {len(seen)}"))
                assert nearest(memory, "oak 3") == "oak 3"

        plugin.behave = meanwhile
        store.reembed("test.hashes", model="test/other")
        assert seen == [0, 1, 2]
        wait_for_vectors(store)
        assert vectors(store) == expected_vectors(store, 2, "test/other", 16)
        assert store.verify().problems == []

    @on_disk
    def test_killed_at_any_moment_the_old_one_works_and_it_goes_on_where_it_was(
        self, tmp_path: Path, engine: str
    ) -> None:
        pytest.importorskip(ENGINES[engine])
        path = tmp_path / "data"
        with open_at(path, HashesPlugin(), engine) as store:
            store.agent_memory("bot").store_episodes([note(f"oak {number}") for number in range(400)])
            wait_for_vectors(store)
        half_done = False
        for batches in (1, 4, 5):
            child = subprocess.run(
                [sys.executable, __file__, str(path), engine, str(batches)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert child.returncode == -signal.SIGKILL, child.stderr.decode()
            with open_at(path, HashesPlugin(), engine, "static") as store:
                now = store._context.catalog.vectors
                half_done |= 0 < len(vectors(store, now.building)) < 400
                assert now.model == 1
                assert vectors(store, 1) == expected_vectors(store, 1, "test/hashes", 16)
                assert store.verify().problems == []
            plugin = HashesPlugin()
            with open_at(path, plugin, engine) as store:
                assert nearest(store.agent_memory("bot"), "oak 7") == "oak 7"
        assert half_done
        with open_at(path, HashesPlugin(), engine) as store:
            assert store.reembed("test.hashes", model="test/other") < 400
            assert vectors(store) == expected_vectors(store, 2, "test/other", 16)
            assert store.verify().problems == []

    @on_disk
    def test_old_vectors_that_a_crash_has_left_are_removed_when_it_is_open_again(self, open_here: OpenStore) -> None:
        from qilbee_core.catalog import Vectors

        with open_here() as store:
            store.agent_memory("bot").store_episodes([note(word) for word in WORDS])
            wait_for_vectors(store)
            store._context.catalog.keep_vectors(Vectors(0, 0, (1,)))
        with open_here("static") as store:
            wait_until(lambda: not store._context.catalog.vectors.leaving, "the end")
            assert list(store._backend.scan(*BOT.range(Space.VECTOR))) == []
            assert store.verify().problems == []

    @on_rocksdb
    def test_it_is_there_for_asyncio(self, tmp_path: Path, engine: str) -> None:
        import asyncio

        async def main() -> int:
            settings_ = Settings(
                storage=StorageSettings(data_path=str(tmp_path / "data"), backend=engine), search=SearchSettings()
            )
            async with await aopen_store(settings_, plugins=plugins_with(HashesPlugin())) as store:
                await store.agent_memory("bot").store_episode(note("tea"))
                return await store.reembed("test.hashes", dimensions=4)

        assert asyncio.run(main()) == 1

    def test_where_search_is_off_it_is_refused(self, open_here: OpenStore) -> None:
        with pytest.raises(InvalidError, match="switched off"):
            open_here(indexing="off").reembed("test.hashes")


def reembed_and_die(path: str, engine: str, batches: str) -> None:
    plugin = HashesPlugin()
    asked = 0

    def die(_: Sequence[str]) -> None:
        nonlocal asked
        asked += 1
        if asked > int(batches):
            os.kill(os.getpid(), signal.SIGKILL)

    with open_at(Path(path), plugin, engine) as store:
        plugin.behave = die
        store.reembed("test.hashes", model="test/other")


if __name__ == "__main__":
    reembed_and_die(*sys.argv[1:])
