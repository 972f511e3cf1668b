"""Searching a store: everything stored is found, nothing else ever is, and what is kept for it is always in step."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qilbee_core import (
    AgentMemory,
    AsyncStore,
    BackendOptions,
    Delete,
    DeleteRange,
    Episode,
    InvalidError,
    NotFoundError,
    Put,
    SearchSettings,
    Settings,
    SettingsError,
    StorageFullError,
    StorageSettings,
    Store,
    StoreClosedError,
    WriteBatch,
    aopen_store,
    load_plugins,
    open_store,
)
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.ids import parse_id
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import commit, indexing, resident
from qilbee_core.memory.terms import cursor_key, decode_cursor, row_key
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.search import hybrid

BOT = AgentKeys("bot")
WORDS = ("tea", "oak", "ink", "train", "order", "melville", "harbour", "invoice", "violin", "café", "48213", "zqxj")
QUERIES = ("tea", "ink and oak", "the order 48213", "which train leaves the harbour", "music", "zqxj café", "who paid")
MODES = ("background", "inline")
HOSTILE = {
    "empty": "",
    "nul": "\0",
    "stop words": "the and of",
    "1 MB": "x " * 500_000,
    "10,000 terms": " ".join(map(str, range(10_000))),
    "emoji": "\U0001f600 \U0001f680",
    "right to left": "\u05d0 \u202e",
    "questions": "?" * 9999,
}


def settings_of(path: Path, indexing: str = "inline", backend: str | None = None, **search: Any) -> Settings:
    return Settings(
        storage=StorageSettings(data_path=str(path), backend=backend),
        search=SearchSettings(indexing=indexing, **search),  # type: ignore[arg-type]
    )


@pytest.fixture
def open_search(tmp_path: Path, engine: str) -> Iterator[Callable[..., Store]]:
    """Open a store of this test with search on; what is left open is closed at the end."""
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel", "ephemeral": "qilbee_core"}[engine])
    opened: list[Store] = []

    def open_one(indexing: str = "background", **search: Any) -> Store:
        opened.append(open_store(settings_of(tmp_path / "data", indexing, engine, **search)))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def note(text: str, agent_id: str = "bot", **given: Any) -> Episode:
    return Episode.observation(agent_id, text, **given)


def texts(episodes: list[Episode]) -> list[object]:
    return [episode.content["observation"] for episode in episodes]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, f"waited for {what} in vain"
        time.sleep(0.005)


def wait_indexed(store: Store, agent_id: str = "bot") -> None:
    memory = store.agent_memory(agent_id)
    wait_until(lambda: memory.get_semantic_search_status().pending == 0, "the indexer")


def rows(store: Store, keys: AgentKeys = BOT) -> list[tuple[bytes, bytes]]:
    """The rows of search terms, without the cursor."""
    return [row for row in store._backend.scan(*keys.range(Space.TERMS)) if row[0] != cursor_key(keys)]


def answers(store: Store, agent_id: str = "bot") -> list[list[tuple[str, float]]]:
    memory = store.agent_memory(agent_id)
    return [
        [(found.episode.id, found.score) for found in memory.hybrid_search(query, 20)]
        + [(episode.id, 0.0) for episode in memory.search_episodes(query, 20)]
        for query in QUERIES
    ]


def answers_made_anew(store: Store, agent_id: str = "bot") -> list[list[tuple[str, float]]]:
    """The same from an index that is made of the stored rows now."""
    store._indexing.cleared(store._context.agent(agent_id))
    return answers(store, agent_id)


# --- the verbs


class TestVerbs:
    def test_what_was_just_stored_is_found(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        for number in range(50):
            memory.store_episode(note(f"invoice number {1000 + number}"))
            assert texts(memory.search_episodes(f"invoice {1000 + number}", 1)) == [f"invoice number {1000 + number}"]

    def test_batches_and_imports_are_found(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        memory.store_episodes([note(f"violin {number}") for number in range(700)])
        memory.import_episodes(note(f"harbour {number}") for number in range(1500))
        assert texts(memory.search_episodes("violin 699", 1)) == ["violin 699"]
        assert texts(memory.search_episodes("harbour 1499", 1)) == ["harbour 1499"]
        assert memory.get_semantic_search_status().indexed == 2200

    def test_an_update_is_found_by_its_new_words_and_not_by_the_old(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        stored_id = memory.store_episode(note("a violin"))
        assert memory.search_episodes("violin")
        memory.update_episode(stored_id, content={"observation": "a harbour"})
        assert memory.search_episodes("violin") == []
        assert texts(memory.search_episodes("harbour")) == ["a harbour"]

    def test_what_is_deleted_forgotten_or_cleared_is_never_found_again(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        ids = [memory.store_episode(note(f"violin {word}", relevance=0.3 if word == "tea" else 1.0)) for word in WORDS]
        assert len(memory.search_episodes("violin", 50)) == len(WORDS)
        memory.delete_episode(ids[3])
        memory.forget(0.5)
        assert len(memory.search_episodes("violin", 50)) == len(WORDS) - 2
        memory.clear()
        assert memory.search_episodes("violin") == []
        memory.store_episode(note("another violin"))
        assert texts(memory.search_episodes("violin")) == ["another violin"]

    def test_what_has_expired_is_not_found(
        self, open_search: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_search()
        memory = store.agent_memory("bot")
        soon = datetime.now(UTC) + timedelta(hours=1)
        memory.store_episodes([note("a violin", expires_at=soon), note("an old violin")])
        assert len(memory.search_episodes("violin")) == 2
        later_ns = time.time_ns() + 2 * 3600 * 1_000_000_000
        monkeypatch.setattr(store._context, "clock_ns", lambda: later_ns)
        assert texts(memory.search_episodes("violin")) == ["an old violin"]
        assert [found.episode.content for found in memory.hybrid_search("violin")] == [{"observation": "an old violin"}]

    def test_filters_leave_out_what_does_not_match(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        start = datetime(2026, 3, 1, tzinfo=UTC)
        for day in range(5):
            memory.store_episode(note(f"violin {day}", event_time=start + timedelta(days=day)))
        memory.store_episode(Episode("bot", "lesson", {"text": "violin"}, memory_type="factual", event_time=start))
        assert len(memory.search_episodes("violin")) == 6
        assert [e.episode_type for e in memory.search_episodes("violin", episode_type="lesson")] == ["lesson"]
        assert [e.memory_type for e in memory.search_episodes("violin", memory_type="factual")] == ["factual"]
        assert memory.search_episodes("violin", episode_type="never seen") == []
        between = memory.search_episodes(
            "violin", episode_type="observation", start=start + timedelta(days=1), end=start + timedelta(days=3)
        )
        assert sorted(map(str, texts(between))) == ["violin 1", "violin 2"]

    def test_the_parts_of_a_score_add_up_and_are_told_where_asked_for(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        for word in WORDS:
            memory.store_episode(note(f"{word} and tea"))
        for found in memory.hybrid_search("oak tea", explain=True):
            assert found.explanation is not None
            assert sum(found.explanation.values()) == pytest.approx(found.score)
            assert found.keyword_score + found.semantic_score == pytest.approx(found.score)
        assert memory.hybrid_search("oak tea")[0].explanation is None

    def test_meaning_finds_what_shares_no_word(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        cat, car, train = (note("My cat sleeps."), note("The car is fast."), note("A train stops."))
        memory.store_episodes([cat, car, train])
        assert memory.semantic_search("kitten", 1)[0].episode == cat
        assert memory.semantic_search("kitten", min_score=2.0) == []
        assert memory.semantic_search("kitten", min_score=10**5_000) == []
        assert train.id in {found.episode.id for found in memory.find_similar_episodes(car.id)}
        assert car.id not in {found.episode.id for found in memory.find_similar_episodes(car.id)}

    def test_an_agent_never_finds_what_another_stored(self, open_search: Callable[..., Store]) -> None:
        store = open_search()
        for agent_id in ("a", "a:b", "b"):
            store.agent_memory(agent_id).store_episode(note(f"violin of {agent_id}", agent_id))
        for agent_id in ("a", "a:b", "b"):
            memory = store.agent_memory(agent_id)
            assert texts(memory.search_episodes("violin", 9)) == [f"violin of {agent_id}"]
            assert [found.episode.agent_id for found in memory.semantic_search("violin")] == [agent_id]
        assert store.agent_memory("nobody").search_episodes("violin") == []

    @pytest.mark.parametrize("query", HOSTILE.values(), ids=HOSTILE)
    def test_hostile_queries_are_answered(self, open_search: Callable[..., Store], query: str) -> None:
        memory = open_search("inline").agent_memory("bot")
        memory.store_episode(note("Tea is served at 9."))
        for found in (memory.search_episodes(query), memory.hybrid_search(query), memory.semantic_search(query)):
            assert len(found) <= 1

    @pytest.mark.parametrize(
        "ask",
        [
            lambda memory: memory.search_episodes(b"tea"),
            lambda memory: memory.search_episodes("\ud800"),
            lambda memory: memory.search_episodes("tea", 0),
            lambda memory: memory.search_episodes("tea", 1001),
            lambda memory: memory.search_episodes("tea", episode_type=1),
            lambda memory: memory.search_episodes("tea", memory_type="vague"),
            lambda memory: memory.search_episodes("tea", start="today"),
            lambda memory: memory.semantic_search("tea", min_score="much"),
            lambda memory: memory.semantic_search("tea", min_score=float("nan")),
            lambda memory: memory.semantic_search("tea", min_score=float("-inf")),
            lambda memory: memory.semantic_search("tea", min_score=True),
            lambda memory: memory.hybrid_search("tea", semantic_weight=1.5),
            lambda memory: memory.hybrid_search("tea", explain="yes"),
            lambda memory: memory.find_similar_episodes("no id"),
        ],
    )
    def test_wrong_arguments_are_refused(
        self, open_search: Callable[..., Store], ask: Callable[[AgentMemory], object]
    ) -> None:
        memory = open_search("inline").agent_memory("bot")
        memory.store_episode(note("tea"))
        with pytest.raises(InvalidError):
            ask(memory)

    def test_nothing_is_similar_to_what_is_not_there(self, open_search: Callable[..., Store]) -> None:
        memory = open_search().agent_memory("bot")
        stored_id = memory.store_episode(note("tea"))
        memory.delete_episode(stored_id)
        with pytest.raises(NotFoundError):
            memory.find_similar_episodes(stored_id)

    def test_a_closed_store_answers_nothing(self, open_search: Callable[..., Store]) -> None:
        store = open_search()
        memory = store.agent_memory("bot")
        memory.store_episode(note("tea"))
        assert memory.search_episodes("tea")
        store.close()
        with pytest.raises(StoreClosedError):
            memory.search_episodes("tea")

    def test_the_verbs_are_the_same_for_asyncio(self, tmp_path: Path, engine: str) -> None:
        async def ask(store: AsyncStore) -> None:
            memory = store.agent_memory("bot")
            tea, oak = note("tea is hot"), note("an oak is a tree")
            await memory.store_episode(tea)
            await memory.store_episode(oak)
            assert await memory.search_episodes("tea") == [tea]
            assert [found.episode for found in await memory.semantic_search("forest", 1)] == [oak]
            assert [found.episode for found in await memory.hybrid_search("trees", 1, explain=True)] == [oak]
            assert tea not in [found.episode for found in await memory.find_similar_episodes(tea.id)]
            assert (await memory.get_semantic_search_status()).indexed == 2

        async def main() -> None:
            async with await aopen_store(settings_of(tmp_path / "data", "background", engine)) as store:
                await ask(store)

        asyncio.run(main())


# --- who indexes, and when


class TestModes:
    def test_inline_the_row_is_there_when_the_store_returns(self, open_search: Callable[..., Store]) -> None:
        store = open_search("inline")
        memory = store.agent_memory("bot")
        for number in range(1, 40):
            memory.store_episode(note(f"tea {number}"))
            assert len(rows(store)) == number
        memory.store_episodes([note("oak") for _ in range(600)])
        assert len(rows(store)) == 639
        assert store.stats()["search"]["pending"] == 0  # type: ignore[index, call-overload]

    def test_in_the_background_the_rows_come_by_themselves(self, open_search: Callable[..., Store]) -> None:
        store = open_search("background")
        memory = store.agent_memory("bot")
        for number in range(300):
            memory.store_episode(note(f"tea {number}"))
        wait_until(lambda: len(rows(store)) == 300, "the rows")
        wait_until(lambda: store.stats()["search"]["pending"] == 0, "the count")  # type: ignore[index, call-overload]
        assert memory.get_semantic_search_status().pending == 0

    def test_off_nothing_is_written_and_a_search_says_how_to_switch_it_on(
        self, open_search: Callable[..., Store]
    ) -> None:
        store = open_search("off")
        memory = store.agent_memory("bot")
        memory.store_episode(note("tea"))
        with pytest.raises(InvalidError, match=r"search\.indexing"):
            memory.search_episodes("tea")
        assert memory.get_semantic_search_status().enabled is False
        assert list(store._backend.scan(*BOT.range(Space.TERMS))) == []

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")
    def test_it_can_be_switched_off_and_on_again(self, open_search: Callable[..., Store]) -> None:
        for mode, text in (("inline", "qwx tea"), ("off", "oak tea"), ("background", "ink tea")):
            with open_search(mode) as store:
                memory = store.agent_memory("bot")
                if mode == "off":
                    (first,) = memory.get_recent_episodes()
                    memory.update_episode(first.id, content={"observation": "changed tea"})
                memory.store_episode(note(text))
        with open_search("background") as store:
            memory = store.agent_memory("bot")
            assert set(texts(memory.search_episodes("tea"))) == {"changed tea", "oak tea", "ink tea"}
            assert memory.search_episodes("qwx") == []
            assert store.verify().problems == []

    @pytest.mark.parametrize("engine", ["rocksdb"], scope="session")
    def test_another_language_makes_all_rows_anew(self, open_search: Callable[..., Store]) -> None:
        with open_search("inline", language="english") as store:
            store.agent_memory("bot").store_episode(note("Die Häuser sind alt"))
        with open_search("inline", language="german") as store:
            assert store.agent_memory("bot").search_episodes("Haus")
            assert store.agent_memory("bot").get_semantic_search_status().language == "german"
            assert store.verify().problems == []

    def test_an_unknown_language_is_refused_before_anything_is_made(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidError, match="klingon"):
            open_store(settings_of(tmp_path / "data", language="klingon"))
        assert not (tmp_path / "data").exists()
        with pytest.raises(SettingsError, match="indexing"):
            SearchSettings(indexing="sometimes")  # type: ignore[arg-type]

    def test_never_more_than_so_many_are_pending(
        self, open_search: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(indexing, "PENDING_MAX", 50)
        store = open_search("background")
        with store._indexing.paused():  # the thread does nothing
            memory = store.agent_memory("bot")
            for number in range(1, 201):
                memory.store_episode(note(f"tea {number}"))
                assert number - len(rows(store)) <= 50
            memory.store_episodes([note("oak") for _ in range(100)])
            assert len(rows(store)) >= 250
        assert len(memory.search_episodes("tea", 1000)) == 200

    def test_the_indexes_in_ram_are_bounded(self, open_search: Callable[..., Store]) -> None:
        store = open_search("inline", ram_bytes=1 << 20)
        for number in range(6):
            memory = store.agent_memory(f"bot {number}")
            memory.store_episodes([note(f"tea {each} and oak", f"bot {number}") for each in range(1000)])
            assert memory.search_episodes("tea")
            figures: Any = store.stats()["search"]
            assert figures["indexes_in_ram"] >= 1
            assert figures["ram_bytes"] <= max(1 << 20, memory.get_semantic_search_status().ram_bytes)
        assert figures["indexes_in_ram"] < 6
        assert len(store.agent_memory("bot 0").search_episodes("oak", 1000)) == 1000

    @pytest.mark.parametrize("engine", ["rocksdb"], scope="session")
    def test_a_store_that_takes_no_writes_is_searched_all_the_same(self, open_search: Callable[..., Store]) -> None:
        store = open_search("background")
        memory = store.agent_memory("bot")
        with store._indexing.paused():
            memory.store_episodes([note("tea"), note("oak")])
            store._durability.failure = StorageFullError("no space")
            assert texts(memory.search_episodes("tea")) == ["tea"]
            assert rows(store) == []
            store._durability.failure = None
        wait_until(lambda: len(rows(store)) == 2, "the rows")


# --- in step


class TestInStep:
    @pytest.mark.parametrize("mode", MODES)
    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 1 << 32))
    def test_an_index_that_was_kept_up_answers_as_one_that_is_made_anew(self, mode: str, seed: int) -> None:
        draw = Random(seed)
        with open_store(settings_of(Path("none"), mode, "ephemeral")) as store:
            memory = store.agent_memory("bot")
            for _ in range(draw.randint(1, 60)):
                change_something(memory, draw)
                if draw.random() < 0.2:
                    answers(store)
            assert answers(store) == answers_made_anew(store)
            assert store.verify().problems == []

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")
    def test_it_does_so_after_a_crash_at_any_moment(self, tmp_path: Path, engine: str) -> None:
        pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
        for attempt in range(3):
            child = subprocess.Popen(
                [sys.executable, __file__, str(tmp_path / "data"), engine, str(attempt)],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            assert child.stdout is not None
            with child, child.stdout:
                for _ in range(150 + 170 * attempt):
                    assert child.stdout.readline(), "the child ended by itself"
                child.send_signal(signal.SIGKILL)
            with open_store(settings_of(tmp_path / "data", "background")) as store:
                assert store.verify().problems == []
                memory = store.agent_memory("bot")
                wait_indexed(store)
                kept_up = answers(store)
                there = list(memory.episodes())
                assert {row[0][-16:] for row in rows(store)} == {parse_id(episode.id) for episode in there}
                assert kept_up == answers_made_anew(store)
                store.repair()
                assert answers(store) == kept_up
                assert store.verify().problems == []

    def test_an_episode_that_is_deleted_while_it_is_indexed_leaves_no_row(
        self, open_search: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_search("background")
        memory = store.agent_memory("bot")
        memory.store_episode(note("tea"))
        wait_indexed(store)
        ids: list[str] = []
        is_gone = threading.Event()
        write_rows = store._context.write_rows

        def delete_first(*args: Any) -> None:
            if ids:
                memory.delete_episode(ids.pop())  # what was read to be indexed is gone before it is written
                is_gone.set()
            write_rows(*args)

        monkeypatch.setattr(store._context, "write_rows", delete_first)
        with store._indexing.paused():
            ids.append(memory.store_episode(note("a canary")))
        wait_until(is_gone.is_set, "the indexer")
        assert memory.search_episodes("canary") == []
        wait_indexed(store)
        assert len(rows(store)) == 1
        assert store.verify().problems == []

    def test_a_cursor_that_the_log_has_left_behind_makes_all_rows_anew(
        self, open_search: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_search("inline")
        memory = store.agent_memory("bot")
        memory.store_episodes([note(f"tea {number}") for number in range(20)])
        old = store._backend.get(cursor_key(BOT))
        assert old is not None
        for number in range(5):
            memory.store_episode(note(f"oak {number}"))
        cursor = decode_cursor(cursor_key(BOT), old)
        lost = [Delete(key) for key, _ in rows(store)[10:]]
        log = DeleteRange(BOT.change(0), BOT.change(cursor.sequence + 3))
        store._backend.write(WriteBatch([*lost, log, Put(cursor_key(BOT), old)]))
        store._indexing.cleared(store._context.agent("bot"))
        assert len(memory.search_episodes("tea", 100)) == 20
        assert len(memory.search_episodes("oak", 100)) == 5
        assert len(rows(store)) == 25

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")
    def test_the_log_is_kept_until_it_was_followed_and_no_longer(
        self, open_search: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (commit, resident):
            monkeypatch.setattr(module, "CHANGES_KEPT", 100)
        with open_search("background") as store:
            memory = store.agent_memory("bot")
            with store._indexing.paused():
                for number in range(500):
                    memory.store_episode(note(f"tea {number}"))
                assert len(list(store._backend.scan(*BOT.range(Space.CHANGE)))) == 500
            wait_indexed(store)
            for number in range(250):
                memory.store_episode(note(f"oak {number}"))
            wait_indexed(store)
            memory.store_episodes([note("ink")])
            assert len(list(store._backend.scan(*BOT.range(Space.CHANGE)))) < 300
            wait_indexed(store)
        with open_search("off") as store:
            assert list(store._backend.scan(*BOT.range(Space.CHANGE))) == []

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")
    def test_what_was_pending_when_a_store_was_closed_is_indexed_when_it_is_open_again(
        self, open_search: Callable[..., Store]
    ) -> None:
        with open_search("background") as store:
            store._indexing.close()  # nobody indexes any more
            for number in range(100):
                store.agent_memory("bot").store_episode(note(f"tea {number}"))
            assert len(rows(store)) < 100
        with open_search("background") as store:
            wait_until(lambda: len(rows(store)) == 100, "the rows")
            assert store.verify().problems == []

    def test_another_process_on_a_shared_engine_is_followed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = EphemeralBackend(BackendOptions(path=Path("none")))
        stores = [Store(backend, settings_of(Path("none"), "background"), load_plugins()) for _ in range(2)]
        one, two = (store.agent_memory("bot") for store in stores)
        draw = Random(7)
        for _ in range(80):
            change_something(draw.choice([one, two]), draw)
            assert answers(stores[0]) == answers(stores[1])
        assert answers(stores[0]) == answers_made_anew(stores[0])
        assert stores[0].verify().problems == []
        for store in stores:
            store._indexing.close()

    @pytest.mark.parametrize("engine", ["rocksdb"], scope="session")
    def test_a_read_only_store_is_searched_in_ram_alone(
        self, open_search: Callable[..., Store], tmp_path: Path
    ) -> None:
        with open_search("inline") as store:
            memory = store.agent_memory("bot")
            for word in WORDS:
                memory.store_episode(note(f"{word} and tea"))
            expected = answers(store)
            store._indexing.unindexed_max = 1e9  # from here on nobody indexes
            memory.store_episode(note("a late violin"))
            store.agent_memory("new").store_episode(note("a violin of another", "new"))
            store.flush()
            before = list(store._backend.scan())
            with open_store(settings_of(tmp_path / "data", "background"), read_only=True) as shown:
                assert texts(shown.agent_memory("bot").search_episodes("late", 1)) == ["a late violin"]
                assert len(shown.agent_memory("new").search_episodes("violin")) == 1
            assert list(store._backend.scan()) == before
        with open_search("inline") as store, open_store(settings_of(tmp_path / "data"), read_only=True) as shown:
            memory = store.agent_memory("bot")
            memory.delete_episode(memory.search_episodes("late", 1)[0].id)
            assert answers(store) == expected

    def test_many_threads_store_and_search_at_once(self, open_search: Callable[..., Store]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        store = open_search("background")
        memory = store.agent_memory("bot")

        def work(number: int) -> None:
            for each in range(40):
                word = f"w{number}x{each}"
                stored_id = memory.store_episode(note(word))
                assert texts(memory.search_episodes(word, 1)) == [word]
                if each % 3 == 0:
                    memory.delete_episode(stored_id)
                    assert memory.search_episodes(word) == []

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        wait_indexed(store)
        assert answers(store) == answers_made_anew(store)
        assert store.verify().problems == []


def change_something(memory: AgentMemory, draw: Random) -> None:
    """One random write of any kind."""
    known = [episode.id for episode in memory.get_recent_episodes(30)]
    kind = draw.randrange(14)
    text = " ".join(draw.choices(WORDS, k=draw.randint(1, 6))) + draw.choice(["", "?"])
    hours = timedelta(hours=draw.randint(0, 99))
    given: dict[str, Any] = {
        "event_time": datetime(2026, 3, 1, tzinfo=UTC) + hours,
        "metadata": draw.choice([{}, {"speaker": "Ann"}, {"session_id": str(draw.randint(1, 3))}]),
    }
    if kind < 6 or not known:
        memory.store_episode(note(text, **given))
    elif kind < 8:
        memory.store_episode(Episode.conversation("bot", text, draw.choice(WORDS), **given))
    elif kind < 9:
        memory.store_episodes([note(f"{text} {number}") for number in range(draw.choice([2, 40]))])
    elif kind < 11:
        memory.update_episode(draw.choice(known), content={"observation": text})
    elif kind < 13:
        memory.delete_episode(draw.choice(known))
    elif draw.random() < 0.5:
        memory.boost(draw.choice(known))
    elif draw.random() < 0.2:
        memory.clear()


# --- no trace


@pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")
@pytest.mark.parametrize("mode", MODES)
def test_what_is_erased_leaves_no_trace_of_its_words_in_any_file(
    open_search: Callable[..., Store], tmp_path: Path, mode: str
) -> None:
    store = open_search(mode)
    memory = store.agent_memory("bot")
    kept = memory.store_episode(note("tea"))
    stored_id = memory.store_episode(note("my secret is qwxcanaryone"))
    wait_indexed(store)
    assert memory.search_episodes("qwxcanaryone")
    memory.update_episode(stored_id, content={"observation": "my secret is qwxcanarytwo"})
    wait_indexed(store)
    store.compact()
    memory.delete_episode(stored_id, erase=True)
    memory.store_episode(note("oak"))
    other = store.agent_memory("other")
    other.store_episode(note("qwxcanarythree", "other"))
    assert other.search_episodes("qwxcanarythree")
    other.clear(erase=True)
    assert memory.get_episode(kept) is not None
    store.close()
    left = [
        path.name for path in (tmp_path / "data").rglob("*") if path.is_file() and b"qwxcanary" in path.read_bytes()
    ]
    assert left == []


def test_rows_that_an_index_is_to_take_with_others_are_there_for_a_search(open_search: Callable[..., Store]) -> None:
    store = open_search("inline")
    memory = store.agent_memory("bot")
    memory.store_episode(note("tea"))
    memory.search_episodes("tea")
    store._indexing.unindexed_max = 1e9  # nobody indexes, but this
    ids = [memory.store_episode(note(f"qwxcanary {number}")) for number in range(9)]
    agent = store._context.agent("bot")
    search = store._indexing._indexes.of(agent)
    store._indexing._do_part(search, 5)
    assert len(search.waiting) == 5
    memory.delete_episode(ids[0])
    assert search.waiting == []
    assert search.index is not None
    assert parse_id(ids[0]) not in search.index
    store._indexing._do_part(search, 2)
    assert len(search.waiting) == 2
    position = store._context.position(agent)
    assert position is not None
    assert len(store._indexing._indexes.current(search, position)) == 9
    assert len(memory.search_episodes("qwxcanary")) == 8
    assert answers(store) == answers_made_anew(store)


def test_nor_in_ram(open_search: Callable[..., Store]) -> None:
    store = open_search("background")
    memory = store.agent_memory("bot")
    ids = memory.store_episodes([note("qwxcanary"), note("tea")])
    memory.search_episodes("tea")
    search = store._indexing._indexes.of(store._context.agent("bot"))
    assert search.index is not None
    assert parse_id(ids[0]) in search.index
    with store._indexing.paused():
        memory.delete_episode(ids[0])
        assert parse_id(ids[0]) not in search.index
        memory.clear()
        assert store._indexing._indexes.opened() == []


# --- verify and repair


def lose_row(store: Store) -> None:
    store._backend.write(WriteBatch([Delete(rows(store)[0][0])]))


def add_row(store: Store) -> None:
    """Of an episode that is not there."""
    key = row_key(BOT, bytes(15) + b"\x01")
    store._backend.write(WriteBatch([Put(key, b"gone")]))


def swap_rows(store: Store) -> None:
    (key, _), (_, value), *_ = rows(store)
    store._backend.write(WriteBatch([Put(key, value)]))


def break_cursor(store: Store) -> None:
    store._backend.write(WriteBatch([Put(cursor_key(BOT), b"broken")]))


def run_ahead(store: Store) -> None:
    key = cursor_key(BOT)
    cursor = decode_cursor(key, store._backend.get(key) or b"")
    from msgspec.structs import replace

    store._backend.write(WriteBatch([Put(key, replace(cursor, sequence=999).encode(key))]))


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lose_row, {"terms-missing"}),
        (add_row, {"terms-orphan"}),
        (swap_rows, {"terms-wrong"}),
        (break_cursor, {"terms-cursor", "terms-orphan"}),
        (run_ahead, {"terms-cursor"}),
    ],
)
def test_what_is_wrong_with_the_rows_is_named_and_mended(
    open_search: Callable[..., Store], damage: Callable[[Store], None], names: set[str]
) -> None:
    store = open_search("inline")
    memory = store.agent_memory("bot")
    for word in WORDS:
        memory.store_episode(note(f"{word} and tea"))
    expected = answers(store)
    assert store.verify().problems == []
    damage(store)
    found = store.verify().problems
    assert {problem.invariant for problem in found} == names
    assert all(problem.derived and problem.family == "TERMS" for problem in found)
    report = store.repair()
    assert (report.before.ok, report.after.ok, store.verify().ok) == (False, True, True)
    assert len(rows(store)) == len(WORDS)
    assert answers(store) == expected


def test_rows_that_cannot_be_read_are_made_of_the_episodes(open_search: Callable[..., Store]) -> None:
    store = open_search("inline")
    memory = store.agent_memory("bot")
    for word in WORDS:
        memory.store_episode(note(f"{word} and tea"))
    expected = answers(store)
    store._backend.write(WriteBatch([Put(key, value[:-1]) for key, value in rows(store)]))
    assert answers_made_anew(store) == expected


def test_a_rebuilt_index_is_of_all_there_is(open_search: Callable[..., Store]) -> None:
    """Not just of what the test above compares with itself."""
    store = open_search("background")
    memory = store.agent_memory("bot")
    memory.import_episodes(note(f"tea {number}") for number in range(1000))
    index: AgentIndex = store._indexing.ask(store._context.agent("bot"), lambda index: index)
    assert len(index) == 1000
    assert len(hybrid(index, "tea", 1000)) == 1000


if __name__ == "__main__":  # the child that is killed
    _path, _engine, _seed = sys.argv[1:]
    _store = open_store(settings_of(Path(_path), "background", _engine))
    _memory, _draw = _store.agent_memory("bot"), Random(int(_seed))
    while True:
        change_something(_memory, _draw)
        if _draw.random() < 0.1:
            answers(_store)
        print(".", flush=True)  # noqa: T201
