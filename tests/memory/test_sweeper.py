"""What happens in the background: what was read is reinforced, what is to be forgotten goes by schedule."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import (
    AgentMemory,
    Episode,
    MemorySettings,
    Put,
    SearchSettings,
    Settings,
    StorageError,
    Store,
    WriteBatch,
    open_store,
)
from qilbee_core.ids import parse_id
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import accesses, sweeper

AGENT = "bot"
KEYS = AgentKeys(AGENT)
near = pytest.approx


def settings(**memory: Any) -> Settings:
    return Settings(memory=MemorySettings(**memory))


def note(text: object = "tea", **given: Any) -> Episode:
    return Episode(AGENT, "note", {"text": str(text)}, **given)


def read(memory: AgentMemory, id_: str) -> Episode:
    episode = memory.get_episode(id_)
    assert episode is not None
    return episode


def flush(store: Store) -> None:
    assert store._sweeper is not None
    store._sweeper.flush()


def sweep(store: Store) -> None:
    assert store._sweeper is not None
    store._sweeper.sweep()


def figures(store: Store) -> dict[str, Any]:
    return dict(store.stats()["memory"])  # type: ignore[arg-type]


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.01)


class TestReinforcement:
    @pytest.fixture
    def memory(self, store: Store, clock: Any) -> AgentMemory:
        flush(store)
        return store.agent_memory(AGENT)

    def test_what_is_read_is_reinforced_and_what_is_browsed_is_not(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        one, many, browsed = memory.store_episodes([note(1), note(2), note(3)])
        clock.forward(days=30)
        assert read(memory, one).relevance == near(0.5, rel=1e-5)
        memory.get_episodes([many, note().id])
        memory.get_recent_episodes(), list(memory.episodes()), memory.recall(), memory.get_statistics()
        flush(store)
        relevances = {episode.id: episode.relevance for episode in memory.episodes()}
        assert relevances == near({one: 0.6, many: 0.6, browsed: 0.5}, rel=1e-5)
        clock.forward(days=30)
        assert next(memory.episodes()).relevance == near(0.3, rel=1e-5)
        assert store.verify().problems == []

    def test_what_a_search_finds_is_reinforced(self) -> None:
        with open_store(Settings(search=SearchSettings(indexing="inline")), backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            kettle = note("The kettle whistles.", relevance=0.5)
            memory.store_episodes([kettle, note("Oak floors creak.", relevance=0.5)])
            assert memory.search_episodes("kettle", limit=1) == [kettle]
            flush(store)
            relevances = {episode.content["text"]: episode.relevance for episode in memory.episodes()}
            assert relevances == near({"The kettle whistles.": 0.6, "Oak floors creak.": 0.5}, rel=1e-4)

    def test_reads_between_two_flushes_count_as_one(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note())
        clock.forward(days=30)
        for _ in range(5):
            assert read(memory, id_).relevance == near(0.5, rel=1e-5)
        flush(store)
        clock.forward(seconds=1)
        assert read(memory, id_).relevance == near(0.6, rel=1e-5)
        flush(store)
        flush(store)
        assert next(memory.episodes()).relevance == near(0.68, rel=1e-5)

    def test_it_counts_from_when_it_was_read(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note())
        clock.forward(days=30)
        read(memory, id_)
        clock.forward(days=30)
        flush(store)
        assert next(memory.episodes()).relevance == near(0.3, rel=1e-5)

    def test_what_is_fresh_pinned_or_never_decays_is_left_alone(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        fresh, pinned, fact = memory.store_episodes(
            [note(1), note(2, relevance=0.5), note(3, relevance=0.5, memory_type="factual")]
        )
        memory.pin(pinned)
        states = list(store._backend.scan(*KEYS.range(Space.STATE)))
        for id_ in (fresh, pinned, fact):
            read(memory, id_)
        flush(store)
        assert list(store._backend.scan(*KEYS.range(Space.STATE))) == states

    def test_what_was_deleted_or_expired_meanwhile_does_not_come_back(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        deleted, expiring = memory.store_episodes(
            [note(1, relevance=0.5), note(2, relevance=0.5, expires_at=clock.now + timedelta(hours=1))]
        )
        read(memory, deleted), read(memory, expiring)
        memory.delete_episode(deleted)
        clock.forward(hours=1)
        flush(store)
        assert list(memory.episodes()) == []
        assert memory.get_statistics().total_episodes == 0
        assert store.verify().problems == []

    def test_what_was_boosted_since_is_not_set_back(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note())
        clock.forward(days=60)
        read(memory, id_)
        clock.forward(seconds=1)
        memory.boost(id_, 1)
        flush(store)
        assert read(memory, id_).relevance == 1.0

    def test_only_so_many_are_noted(self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accesses, "ACCESSES_MAX", 3)
        ids = memory.store_episodes([note(number, relevance=0.5) for number in range(5)])
        before = figures(store)
        for _ in range(2):
            memory.get_episodes(ids)
        flush(store)
        after = figures(store)
        assert after["reinforced"] - before["reinforced"] == 3
        assert after["accesses_dropped"] - before["accesses_dropped"] == 4
        assert sorted(round(episode.relevance, 2) for episode in memory.episodes()) == [0.5, 0.5, 0.6, 0.6, 0.6]

    def test_it_can_be_switched_off(self) -> None:
        with open_store(settings(reinforcement_share=0.0), backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            id_ = memory.store_episode(note(relevance=0.5))
            for _ in range(3):
                assert read(memory, id_).relevance == near(0.5, rel=1e-4)
                flush(store)
            assert figures(store)["reinforced"] == 0

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
    def test_a_close_reinforces_what_was_read(self, open_here: Callable[..., Store]) -> None:
        store = open_here()
        memory = store.agent_memory(AGENT)
        id_ = memory.store_episode(note(relevance=0.5))
        read(memory, id_)
        store.close()
        assert next(open_here().agent_memory(AGENT).episodes()).relevance == near(0.6, rel=1e-4)

    def test_the_thread_does_it_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweeper, "FLUSH_INTERVAL_S", 0.01)
        with open_store(backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            read(memory, memory.store_episode(note(relevance=0.5)))
            wait_until(lambda: next(memory.episodes()).relevance > 0.59)

    def test_a_store_that_takes_no_writes_can_be_read(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id_ = memory.store_episode(note(relevance=0.5))
        with monkeypatch.context() as patched:
            patched.setattr(store._durability, "failure", StorageError("the disk does not answer"))
            read(memory, id_)
            flush(store)
            sweep(store)
        flush(store)
        assert next(memory.episodes()).relevance == near(0.6, rel=1e-4)


class TestSweeps:
    @pytest.fixture
    def not_yet(self, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
        """While it is set, sweeps do nothing."""
        held, sweep_now = threading.Event(), sweeper.Sweeper.sweep
        held.set()
        monkeypatch.setattr(sweeper.Sweeper, "sweep", lambda self: None if held.is_set() else sweep_now(self))
        return held

    def test_by_default_nobody_forgets(self) -> None:
        with open_store(backend="ephemeral") as store:
            assert store.settings.memory.enable_auto_forgetting is False
            store.agent_memory(AGENT).store_episode(note(relevance=0.0))
            assert figures(store) == {
                "reinforced": 0,
                "sweeps": 0,
                "expired": 0,
                "forgotten": 0,
                "undos_ended": 0,
                "errors": 0,
                "last_sweep_ms": 0.0,
                "accesses_dropped": 0,
            }

    @pytest.mark.parametrize("backend", ["rocksdb", "leveldb", "ephemeral"])
    def test_the_thread_forgets_and_removes_what_has_expired_of_every_agent(
        self, tmp_path: Path, backend: str, not_yet: threading.Event
    ) -> None:
        switched_on = settings(enable_auto_forgetting=True, forgetting_interval_s=0.02, max_episodes=5)
        with open_store(switched_on, backend=backend, data_path=tmp_path / "data") as store:
            for agent_id in ("a", "b"):
                memory = store.agent_memory(agent_id)
                memory.store_episodes(
                    [
                        *(Episode(agent_id, "weak", {}, relevance=0.05) for _ in range(3)),
                        *(Episode(agent_id, "late", {}, ttl=timedelta(microseconds=1)) for _ in range(4)),
                        *(Episode(agent_id, "kept", {}, relevance=0.5) for _ in range(7)),
                    ]
                )
                pinned = memory.store_episode(Episode(agent_id, "pinned", {}, relevance=0.0))
                memory.pin(pinned)
            not_yet.clear()

            def types() -> list[object]:
                return [store.agent_memory(one).get_statistics().episodes_by_type for one in ("a", "b")]

            wait_until(lambda: types() == [{"kept": 4, "pinned": 1}] * 2)
            told = figures(store)
            assert told["errors"] == 0
            assert told["forgotten"] >= 6  # the last ones may not have been counted yet
            assert store.verify().problems == []

    def test_its_counters_say_what_it_did(self, store: Store, clock: Any) -> None:
        before = figures(store)
        memory = store.agent_memory(AGENT)
        memory.store_episodes([note(number, relevance=0.05) for number in range(600)])
        memory.store_episodes([note(number, expires_at=clock.now + timedelta(hours=1)) for number in range(300)])
        clock.forward(hours=1)
        sweep(store)
        after = figures(store)
        changed = {name: after[name] - before[name] for name in ("sweeps", "forgotten", "expired", "errors")}
        assert changed == {"sweeps": 1, "forgotten": 600, "expired": 300, "errors": 0}
        assert after["last_sweep_ms"] > 0
        assert store.verify().problems == []

    def test_what_is_damaged_does_not_keep_it_from_the_rest(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        for agent_id in ("a", "b", "c"):
            memory = store.agent_memory(agent_id)
            memory.store_episodes([Episode(agent_id, "weak", {}, relevance=number / 1000) for number in range(3)])
        key, _ = next(store._backend.scan(*AgentKeys("b").range(Space.EPISODE)))
        store._backend.write(WriteBatch([Put(key, b"damaged!"), Put(AgentKeys("x").head, b"damaged!")]))
        before = figures(store)
        with caplog.at_level(logging.ERROR):
            sweep(store)
        assert figures(store)["errors"] - before["errors"] == 1
        assert AgentKeys("x").head.hex() in caplog.text
        assert [store.agent_memory(one).get_statistics().total_episodes for one in ("a", "b", "c")] == [0, 1, 0]

    @pytest.mark.parametrize("backend", ["rocksdb", "ephemeral"])
    def test_a_close_waits_for_a_batch_and_not_for_a_sweep(
        self, tmp_path: Path, backend: str, not_yet: threading.Event
    ) -> None:
        switched_on = settings(enable_auto_forgetting=True, forgetting_interval_s=0.01)
        store = open_store(switched_on, backend=backend, data_path=tmp_path / "data", durability="async")
        memory = store.agent_memory(AGENT)
        memory.import_episodes(note(number, relevance=0.01) for number in range(4000))
        assert store._sweeper is not None
        write, begun, periodic = store._backend.write, threading.Event(), store._sweeper._periodic

        def write_until_closed(batch: WriteBatch) -> None:
            if threading.current_thread() is periodic._thread:  # others write too
                begun.set()
                assert periodic._closing.wait(60)
            write(batch)

        store._backend.write = write_until_closed  # type: ignore[method-assign]
        not_yet.clear()
        assert begun.wait(60)
        store.close()
        assert not periodic._thread.is_alive()
        assert 0 < store._sweeper.counters.forgotten < 4000

    @pytest.mark.parametrize("engine", ["rocksdb"])
    def test_a_read_only_store_has_no_thread(self, open_here: Callable[..., Store]) -> None:
        store = open_here()
        id_ = store.agent_memory(AGENT).store_episode(note(relevance=0.5))
        store.close()
        with open_store(store.settings, read_only=True) as shown:
            assert read(shown.agent_memory(AGENT), id_).relevance == near(0.5, rel=1e-4)
            assert shown.stats()["memory"] == {}
            assert parse_id(id_)
