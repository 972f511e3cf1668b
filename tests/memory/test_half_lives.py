"""Half-lives by configuration: another is another order, built beside the old one, with one switch for each agent."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from qilbee_core import (
    AgentMemory,
    CorruptRecordError,
    Delete,
    Episode,
    MemorySettings,
    Put,
    SearchSettings,
    Settings,
    SettingsError,
    StorageError,
    Store,
    WriteBatch,
    open_store,
)
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.catalog import Catalog, CatalogOrder
from qilbee_core.ids import parse_id
from qilbee_core.interfaces import BackendOptions, StorageBackend
from qilbee_core.keys import AgentKeys, Space, catalog_key
from qilbee_core.memory import reindexing
from qilbee_core.memory.commit import Context
from qilbee_core.memory.head import Head
from qilbee_core.memory.operations import Bounds
from qilbee_core.memory.reindexing import Reindexing
from qilbee_core.plugins import load_plugins

AGENT = "bot"
KEYS = AgentKeys(AGENT)
DAY_US = 86_400_000_000
PATIENCE_S = 60.0
near = pytest.approx
on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")


def note(text: object = "tea", **given: Any) -> Episode:
    return Episode(given.pop("agent_id", AGENT), given.pop("kind", "note"), {"text": str(text)}, **given)


def wanting(**days: Any) -> Settings:
    return Settings(memory=MemorySettings(**days), search=SearchSettings(indexing="off"))


def half_lives(store: Store, agent_id: str = AGENT) -> tuple[float | None, ...]:
    """The half-lives in force of an agent, in days."""
    orders = store._context.agent(agent_id).orders
    return tuple(None if order.half_life_us is None else order.half_life_us / DAY_US for order in orders)


def is_settled(store: Store) -> bool:
    return not store._reindexing._thread.is_alive() and not store.stats()["reindexing"]["running"]  # type: ignore[call-overload,index]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.005)


def steps(store: Store, count: int = 1_000_000, agent_id: str = AGENT) -> int:
    """Do some steps by hand; how many there were to do."""
    agent = store._context.agent(agent_id)
    for done in range(count):
        if not store._reindexing.step(agent):
            return done
    return count


def places(store: Store, keys: AgentKeys = KEYS) -> dict[int, int]:
    """How many rows each order has."""
    found: dict[int, int] = {}
    for key, _ in store._backend.scan(*keys.range(Space.VITALITY)):
        found[key[-25]] = found.get(key[-25], 0) + 1
    return found


def recomputed_average(store: Store, memory: AgentMemory) -> float:
    episodes = list(memory.episodes())
    return sum(episode.relevance for episode in episodes) / len(episodes) if episodes else 0.0


def assert_whole(store: Store) -> None:
    assert store.verify().problems == []


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread: the test does the steps, of few episodes each."""
    monkeypatch.setattr(Reindexing, "start", lambda self: None)
    monkeypatch.setattr(reindexing, "_EPISODES_AT_ONCE", 4)
    monkeypatch.setattr(reindexing, "_ROWS_AT_ONCE", 5)


Opening = Callable[..., Store]


@pytest.fixture
def opening(tmp_path: Path, engine: str) -> Iterator[Opening]:
    """Open one and the same data with other half-lives; the store before is closed. RAM keeps its data here too."""
    kept = EphemeralBackend(BackendOptions(path=Path("unused")))
    opened: list[Store] = []

    def open_with(**days: Any) -> Store:
        if opened:
            close(opened.pop())
        if engine == "ephemeral":
            opened.append(Store(kept, wanting(**days), load_plugins()))
        else:
            pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
            opened.append(open_store(wanting(**days), data_path=tmp_path / "data", backend=engine, durability="async"))
        return opened[-1]

    def close(store: Store) -> None:
        if engine == "ephemeral":
            store._backend = EphemeralBackend(BackendOptions(path=Path("unused")))  # what close() closes
        store.close()

    yield open_with
    for store in opened:
        close(store)


class TestSettings:
    def test_a_new_store_has_the_usual_ones_or_those_that_are_given(self) -> None:
        with open_store(wanting(), backend="ephemeral") as store:
            assert half_lives(store) == (30, 180, None, None)
        given = wanting(
            relevance_decay_days=7, semantic_decay_days="never", procedural_decay_days=365, factual_decay_days=0.042
        )
        with open_store(given, backend="ephemeral") as store:
            assert half_lives(store) == (7, None, 365, 0.042)
            assert len(store._context.catalog.orders) == 4

    def test_a_variable_gives_days_or_never(self) -> None:
        loaded = Settings.load(
            environ={"QILBEE_MEMORY_RELEVANCE_DECAY_DAYS": "45.5", "QILBEE_MEMORY_SEMANTIC_DECAY_DAYS": "never"}
        )
        assert loaded.memory.half_lives_us == {"episodic": round(45.5 * DAY_US), "semantic": None}

    @pytest.mark.parametrize("days", [0, -1, 0.041, 36_501, float("nan"), float("inf"), "nver", "30", True, [30]])
    def test_what_is_no_half_life_is_refused(self, days: Any) -> None:
        with pytest.raises(SettingsError, match=r"memory\.relevance_decay_days is "):
            MemorySettings(relevance_decay_days=days)

    def test_without_a_setting_a_store_keeps_what_it_has(self, opening: Opening) -> None:
        opening(relevance_decay_days=7)
        assert half_lives(opening()) == (7, 180, None, None)
        store = opening(relevance_decay_days=14)
        wait_until(lambda: is_settled(store))
        assert half_lives(opening()) == (14, 180, None, None)

    def test_a_half_life_that_was_used_before_has_its_number_already(self, opening: Opening) -> None:
        for days in (30, 60, 30, 60, 90, 30):
            store = opening(relevance_decay_days=days)
        assert sorted(store._context.catalog.orders) == [0, 1, 2, 3, 4, 5]
        assert store._context.catalog.wanted == (0, 1, 2, 3)
        assert_whole(store)

    def test_there_is_an_end_to_the_numbers_and_then_old_ones_can_be_given(self) -> None:
        backend = EphemeralBackend(BackendOptions(path=Path("unused")))
        catalog = Catalog(backend)
        for number in range(4, 240):
            catalog.want({"episodic": DAY_US + number})
        with pytest.raises(StorageError, match="240 half-lives were used"):
            catalog.want({"episodic": DAY_US})
        catalog.want({"episodic": DAY_US + 100})
        assert catalog.orders[catalog.wanted[0]] == CatalogOrder("episodic", DAY_US + 100)

    def test_of_two_who_want_something_else_at_once_the_later_gets_it_and_both_know_all_orders(self) -> None:
        backend = EphemeralBackend(BackendOptions(path=Path("unused")))
        one, other = Catalog(backend), Catalog(backend)
        other.want({"semantic": DAY_US})
        one.want({"episodic": DAY_US})
        assert Catalog(backend).wanted == one.wanted == (5, 4, 2, 3)
        assert other.order(5) == CatalogOrder("episodic", DAY_US)

    def test_a_number_that_no_order_has_is_a_data_error(self, opening: Opening) -> None:
        opening()._backend.write(WriteBatch([Delete(catalog_key("order/1"))]))
        with pytest.raises(CorruptRecordError, match="order 1 is not in the catalog"):
            opening()


class TestReindex:
    def test_the_thread_does_all_agents_and_what_is_shown_follows(self, opening: Opening) -> None:
        store = opening()
        for agent_id in ("a", "b", AGENT):
            store.agent_memory(agent_id).store_episodes(
                [note(number, agent_id=agent_id, relevance=0.5) for number in range(50)]
            )
        store = opening(relevance_decay_days=60, factual_decay_days=10)
        wait_until(lambda: is_settled(store))
        figures = store.stats()["reindexing"]
        assert figures["episodes"] == figures["episodes_due"] == 150  # type: ignore[call-overload,index]
        assert figures["agents"] == figures["agents_due"] == 3  # type: ignore[call-overload,index]
        assert figures["rows_removed"] == 150  # type: ignore[call-overload,index]
        assert store.health().reindexed_share is None
        clock = time.time_ns() + 60 * 86400 * 10**9
        store._context.clock_ns = lambda: clock
        for agent_id in ("a", "b", AGENT):
            memory = store.agent_memory(agent_id)
            assert half_lives(store, agent_id) == (60, 180, None, 10)
            assert memory.recall(1)[0].relevance == near(0.25, rel=1e-4)
            assert memory.get_statistics().avg_relevance == near(0.25, rel=1e-4)
            assert places(store, AgentKeys(agent_id)) == {4: 50}
        assert_whole(store)

    def test_until_the_switch_all_answers_are_by_the_old_half_life(self, opening: Opening, by_hand: None) -> None:
        store = opening()
        memory = store.agent_memory(AGENT)
        memory.store_episodes([note(number, relevance=(number + 1) / 20) for number in range(10)])
        store = opening(relevance_decay_days=300)
        memory = store.agent_memory(AGENT)
        clock = time.time_ns() + 30 * 86400 * 10**9
        store._context.clock_ns = lambda: clock

        def told() -> tuple[list[tuple[str, float]], float, int]:
            recalled = [(episode.id, round(episode.relevance, 6)) for episode in memory.recall(100)]
            shown = sorted((episode.id, round(episode.relevance, 6)) for episode in memory.episodes())
            assert sorted(recalled) == shown
            assert memory.get_statistics().avg_relevance == near(recomputed_average(store, memory), abs=1e-9)
            return recalled, memory.get_statistics().avg_relevance, memory.forget(0.1, dry_run=True).episodes

        before = told()
        assert before[2] == 4
        for _ in range(2):
            assert steps(store, 1) == 1
            assert told() == before
            assert half_lives(store) == (30, 180, None, None)
            assert_whole(store)
        assert steps(store, 1) == 1  # the switch
        assert half_lives(store) == (300, 180, None, None)
        after = told()
        assert [id_ for id_, _ in after[0]] == [id_ for id_, _ in before[0]]
        assert after[1] == near(0.275 * 2**-0.1, rel=1e-5)
        assert after[2] == 2
        assert_whole(store)
        assert places(store) == {0: 10, 4: 10}
        assert steps(store) == 3
        assert places(store) == {4: 10}
        assert told() == after
        assert store._context.agent(AGENT).head is None or store._context.agent(AGENT).head.reindex is None  # type: ignore[union-attr]
        assert_whole(store)

    def test_what_is_written_meanwhile_is_right_in_both(self, opening: Opening, by_hand: None) -> None:
        store = opening()
        memory = store.agent_memory(AGENT)
        first = memory.store_episode(note("first", relevance=0.5))
        early, again = note("early"), note("again")  # their ids are below those of all that follow
        ids = memory.store_episodes([note(number, relevance=0.5) for number in range(12)])
        store = opening(relevance_decay_days=90)
        memory = store.agent_memory(AGENT)
        assert steps(store, 2) == 2
        assert first < early.id < ids[0] < ids[6] < ids[11]
        store._context.clock_ns = lambda: 2_000_000_000_250_000_000
        memory.store_episode(early)  # below what is built
        memory.store_episode(again)
        assert places(store) == {0: 15, 4: 10}
        memory.store_episode(note("late"))  # above it
        for at in (0, 11):
            memory.boost(ids[at])
            assert_whole(store)
        for at in (1, 10):
            memory.pin(ids[at])
            assert_whole(store)
        memory.unpin(ids[1])
        for at in (2, 9):
            memory.update_episode(ids[at], content={"text": "other"})
            memory.delete_episode(ids[at])
            assert_whole(store)
        for at in (3, 8):
            memory.invalidate(ids[at])
            assert_whole(store)
        memory.store_episode(note("fact", memory_type="factual"))
        assert memory.forget(0.6, max_episodes=9).episodes > 0
        assert_whole(store)
        while steps(store, 1):
            assert_whole(store)
            assert memory.get_statistics().avg_relevance == near(recomputed_average(store, memory), abs=1e-9)
        assert set(places(store)) <= {4, 1, 2, 3, 240}

    def test_a_crash_goes_on_where_it_was(self, opening: Opening, by_hand: None) -> None:
        store = opening()
        store.agent_memory(AGENT).store_episodes([note(number, relevance=0.5) for number in range(30)])
        done = 0
        while True:
            store = opening(semantic_decay_days=1, relevance_decay_days=10)
            assert_whole(store)
            if not steps(store, 2):
                break
            done += 2
        assert 14 <= done <= 20
        assert half_lives(store) == (10, 1, None, None)
        assert places(store) == {4: 30}

    def test_who_changes_his_mind_half_way_gets_what_he_wants_last(self, opening: Opening, by_hand: None) -> None:
        store = opening()
        store.agent_memory(AGENT).store_episodes([note(number, relevance=0.5) for number in range(30)])
        for days, count in ((10, 4), (20, 3), (10, 9), (30, 2), (20, 11), (30, 1), (40, 2)):
            store = opening(relevance_decay_days=days)
            steps(store, count)
            assert_whole(store)
        steps(store)
        assert half_lives(store)[0] == 40
        assert places(store) == {store._context.catalog.wanted[0]: 30}
        assert_whole(store)

    def test_to_go_back_half_way_removes_what_was_built(self, opening: Opening, by_hand: None) -> None:
        store = opening()
        store.agent_memory(AGENT).store_episodes([note(number) for number in range(12)])
        steps(opening(relevance_decay_days=10), 2)
        store = opening(relevance_decay_days=30)
        assert places(store) == {0: 12, 4: 8}
        assert_whole(store)
        while steps(store, 1):
            assert_whole(store)
        assert places(store) == {0: 12}
        assert half_lives(store)[0] == 30

    def test_a_new_agent_begins_with_what_is_wanted(self, opening: Opening, by_hand: None) -> None:
        opening().agent_memory(AGENT).store_episode(note())
        store = opening(relevance_decay_days=10)
        store.agent_memory("new").store_episode(note(agent_id="new"))
        assert half_lives(store, "new")[0] == 10
        assert half_lives(store)[0] == 30
        store.agent_memory(AGENT).clear()
        store.agent_memory(AGENT).store_episode(note())
        assert half_lives(store)[0] == 10
        assert steps(store) == 0
        assert_whole(store)

    def test_types_that_do_not_change_and_what_is_pinned_have_one_place(self, opening: Opening, by_hand: None) -> None:
        memory = opening().agent_memory(AGENT)
        kinds = ("episodic", "semantic", "procedural", "factual")
        ids = memory.store_episodes([note(kind, memory_type=kind) for kind in kinds * 3])
        memory.pin(ids[0])
        store = opening(relevance_decay_days=10, factual_decay_days=10)
        assert steps(store, 3) == 3
        assert places(store) == {0: 2, 1: 3, 2: 3, 3: 3, 4: 2, 5: 3, 240: 1}
        assert_whole(store)
        steps(store)
        assert places(store) == {1: 3, 2: 3, 4: 2, 5: 3, 240: 1}

    @pytest.mark.parametrize("engine", ["rocksdb"], scope="session")
    def test_a_read_only_store_shows_what_is_in_force_and_changes_nothing(
        self, opening: Opening, by_hand: None, tmp_path: Path
    ) -> None:
        store = opening()
        store.agent_memory(AGENT).store_episodes([note(number) for number in range(10)])
        store = opening(relevance_decay_days=10)
        steps(store, 2)
        store.close()
        shown = wanting(relevance_decay_days=99)
        with open_store(shown, data_path=tmp_path / "data", read_only=True) as reader:
            assert half_lives(reader)[0] == 30
            clock = time.time_ns() + 30 * 86400 * 10**9
            reader._context.clock_ns = lambda: clock
            memory = reader.agent_memory(AGENT)
            assert memory.recall(1)[0].relevance == near(0.5, rel=1e-4)
            assert memory.get_statistics().avg_relevance == near(0.5, rel=1e-4)
            assert reader.stats()["reindexing"]["running"] is False  # type: ignore[call-overload,index]
            assert_whole(reader)
        with open_store(shown, data_path=tmp_path / "data", read_only=True) as reader:
            assert len(reader._context.catalog.orders) == 5

    @pytest.mark.parametrize("verb", ["recall", "recall, later", "forget"])
    def test_a_read_that_meets_the_switch_sees_one_order_whole(
        self, opening: Opening, by_hand: None, monkeypatch: pytest.MonkeyPatch, verb: str
    ) -> None:
        opening().agent_memory(AGENT).store_episodes(
            [note(number, relevance=(number + 1) / 20) for number in range(10)]
        )
        store = opening(relevance_decay_days=3)
        memory = store.agent_memory(AGENT)
        clock = time.time_ns() + 90 * 86400 * 10**9
        store._context.clock_ns = lambda: clock
        scan = store._backend.scan

        def scan_late(start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Any:
            if start[:1] == bytes((Space.VITALITY,)):
                monkeypatch.setattr(store._backend, "scan", scan)
                steps(store)
            return scan(start, stop, reverse=reverse)

        def get_late(key: bytes) -> bytes | None:
            if key[:1] == bytes((Space.EPISODE,)):
                monkeypatch.setattr(store._backend, "get", get)
                steps(store)
            return get(key)

        get = store._backend.get
        if verb == "recall, later":
            monkeypatch.setattr(store._backend, "get", get_late)
        else:
            monkeypatch.setattr(store._backend, "scan", scan_late)
        if verb.startswith("recall"):
            relevances = [episode.relevance for episode in memory.recall(100)]
            assert len(relevances) == 10
            assert relevances == sorted(relevances, reverse=True)
            assert relevances[0] == near(0.5 * 2**-30, rel=1e-4)
        else:
            assert memory.forget(0.001).episodes == 10  # by a half-life of 30 days none would be
        assert half_lives(store)[0] == 3

    @on_disk
    def test_a_store_that_waits_for_the_switch_goes_by_the_new_order(self, opening: Opening, by_hand: None) -> None:
        opening().agent_memory(AGENT).store_episodes([note(number) for number in range(10)])
        store = opening(relevance_decay_days=10)
        store._context.clock_ns = lambda: 2_000_000_000_250_000_000
        memory = store.agent_memory(AGENT)
        memory.store_episode(note("the first of this second"))
        memory.store_episode(note("the usual way"))
        agent = store._context.agent(AGENT)
        lock = agent.lock

        class Switch:
            """A lock for which one waits until the switch is over."""

            def __enter__(self) -> None:
                agent.lock = lock
                steps(store)
                lock.acquire()

            def __exit__(self, *_: object) -> None:
                lock.release()

        agent.lock = Switch()  # type: ignore[assignment]
        memory.store_episode(note("in between"))
        assert places(store) == {4: 13}
        assert_whole(store)

    def test_what_is_forgotten_is_so_by_the_half_life_of_the_moment(
        self, opening: Opening, by_hand: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opening().agent_memory(AGENT).store_episodes([note(number) for number in range(700)])
        store = opening(relevance_decay_days=3000)
        clock = time.time_ns() + 300 * 86400 * 10**9
        store._context.clock_ns = lambda: clock
        memory = store.agent_memory(AGENT)
        pages = memory._operations.forgetting(Bounds.of(0.1, None, None))
        page, _ = next(pages)
        assert len(page.found) == 256
        steps(store)
        assert sum(len(page.found) for page, _ in pages) == 0  # full strength has the same place in both
        assert memory.get_statistics().total_episodes == 444
        assert_whole(store)

    @on_disk
    def test_to_open_a_store_costs_the_same_however_much_there_is_to_do(self, opening: Opening, by_hand: None) -> None:
        """The steps come after: nothing of an agent is read while the store is opened."""
        memory = opening().agent_memory(AGENT)
        memory.store_episodes([note(number) for number in range(1000)])
        store = opening(relevance_decay_days=10)
        assert places(store) == {0: 1000}
        assert store._context._agents == {} or AGENT not in store._context._agents

    @pytest.mark.parametrize("engine", ["ephemeral"], scope="session")
    def test_who_shares_the_engine_goes_by_the_switch_of_another(self, opening: Opening, by_hand: None) -> None:
        one = opening()
        memory = one.agent_memory(AGENT)
        ids = memory.store_episodes([note(number, relevance=0.5) for number in range(10)])
        clock = time.time_ns() + 60 * 86400 * 10**9
        one._context.clock_ns = lambda: clock
        other = Store(one._backend, wanting(relevance_decay_days=60), load_plugins())
        other._context.clock_ns = lambda: clock
        while steps(other, 1):
            memory.store_episode(note("more", relevance=0.5))
            memory.boost(ids[0])
            relevance = 0.25 if half_lives(other)[0] == 60 else 0.125
            assert memory.recall(1000)[-1].relevance == near(relevance, rel=1e-4)
            shown = memory.get_episode(ids[5])
            assert shown is not None
            assert shown.relevance == near(relevance, rel=1e-4)
            assert len(memory.recall(1000)) == memory.get_statistics().total_episodes
            assert memory.get_statistics().avg_relevance == near(recomputed_average(one, memory), abs=1e-9)
            assert memory.forget(0.1).episodes == 0
            assert_whole(one)
        assert places(one) == {4: memory.get_statistics().total_episodes}
        assert half_lives(one)[0] == 60
        other._backend = EphemeralBackend(BackendOptions(path=Path("unused")))
        other.close()


class TestFailures:
    def test_a_record_that_cannot_be_read_is_in_neither_and_the_rest_goes_on(
        self, opening: Opening, by_hand: None
    ) -> None:
        store = opening()
        ids = store.agent_memory(AGENT).store_episodes([note(number) for number in range(10)])
        store._backend.write(WriteBatch([Put(KEYS.episode(parse_id(ids[5])), b"damaged!")]))
        store = opening(relevance_decay_days=10)
        steps(store)
        assert places(store) == {4: 9}
        assert {problem.invariant for problem in store.verify().problems} == {"record-corrupt", "head-counts"}
        assert {problem.invariant for problem in store.repair().after.problems} == {"record-corrupt"}

    def test_an_engine_that_takes_no_writes_is_tried_again(
        self, opening: Opening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(reindexing, "_RETRY_S", 0.01)
        opening().agent_memory(AGENT).store_episodes([note(number) for number in range(100)])
        rearrange = Context.rearrange
        failures = iter([StorageError("the disk does not answer")] * 3)

        def fail_first(*given: Any) -> Any:
            for failure in failures:
                raise failure
            return rearrange(*given)

        monkeypatch.setattr(Context, "rearrange", fail_first)
        with caplog.at_level(logging.WARNING):
            store = opening(relevance_decay_days=10)
            wait_until(lambda: is_settled(store))
        assert places(store) == {4: 100}
        assert store.stats()["reindexing"]["errors"] == 1  # type: ignore[call-overload,index]
        assert caplog.text.count("the disk does not answer") == 1
        assert_whole(store)

    def test_a_close_stops_after_a_step(self, opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reindexing, "_PAUSE_S", 0.02)
        opening().agent_memory(AGENT).import_episodes(note(number) for number in range(3000))
        store = opening(relevance_decay_days=10)
        wait_until(lambda: store._reindexing.figures.episodes > 0)
        share = store.health().reindexed_share
        assert share is not None
        assert 0 < share < 1
        store = opening(relevance_decay_days=10)
        assert_whole(store)

    @pytest.mark.parametrize(
        ("damage", "named"),
        [
            ("row-missing", "vitality-missing"),
            ("row-beyond", "vitality-wrong"),
            ("tally", "head-counts"),
            ("unknown", "head-corrupt"),
            ("foreign", "head-corrupt"),
        ],
    )
    def test_what_is_broken_half_way_is_named_and_mended(
        self, opening: Opening, by_hand: None, damage: str, named: str
    ) -> None:
        ids = opening().agent_memory(AGENT).store_episodes([note(number, relevance=0.5) for number in range(12)])
        store = opening(relevance_decay_days=10)
        steps(store, 2)
        backend, value = store._backend, store._backend.get(KEYS.head)
        assert value is not None
        head = Head.decode(KEYS.head, value)
        built = [key for key, _ in backend.scan(*KEYS.order_range(4))]
        assert len(built) == 8
        if damage == "row-missing":
            broken = Delete(built[3])
        elif damage == "row-beyond":
            broken = Put(built[3][:-16] + parse_id(ids[11]), b"")  # type: ignore[assignment]
        else:
            if damage == "tally":
                head.tallies[4].total += 1
            else:
                head.orders = (9, 1, 2, 3) if damage == "unknown" else (1, 0, 2, 3)
            broken = Put(KEYS.head, head.encode(KEYS.head))  # type: ignore[assignment]
        backend.write(WriteBatch([broken]))
        for agent in store._context.agents_in_use():
            store._context.forget(agent)
        assert named in {problem.invariant for problem in store.verify().problems}
        assert store.repair().after.problems == []
        assert places(store) == {4: 12}
        assert half_lives(store)[0] == 10
        assert steps(store) == 0

    def test_a_repair_brings_an_agent_where_it_shall_be(self, opening: Opening, by_hand: None) -> None:
        opening().agent_memory(AGENT).store_episodes([note(number) for number in range(12)])
        for count in (0, 1, 2, 3, 4, 5):
            store = opening(relevance_decay_days=10 + count)
            steps(store, count)
            report = store.repair()
            assert report.before.problems == report.after.problems == []
            assert places(store) == {store._context.catalog.wanted[0]: 12}
            assert half_lives(store)[0] == 10 + count
            assert steps(store) == 0

    @on_disk
    def test_a_kill_at_any_moment_leaves_a_store_that_is_whole(self, tmp_path: Path, engine: str) -> None:
        path = tmp_path / "data"
        with open_store(wanting(), data_path=path, backend=engine) as store:
            for agent_id in ("a", "b"):
                store.agent_memory(agent_id).import_episodes(
                    note(number, agent_id=agent_id, relevance=0.5) for number in range(1000)
                )
        chance = random.Random(11)
        for attempt in range(4):
            worker = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(path), engine, str(10 + attempt // 2)], stdout=subprocess.PIPE
            )
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"open\n"
            time.sleep(chance.random() * 0.3)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            worker.stdout.close()
            with open_store(wanting(), data_path=path, backend=engine) as store:
                assert_whole(store)
                now_ns = time.time_ns()
                store._context.clock_ns = lambda now_ns=now_ns: now_ns  # type: ignore[misc]
                for agent_id in ("a", "b"):
                    memory, in_force = store.agent_memory(agent_id), None
                    while in_force != half_lives(store, agent_id):  # else the switch came in between
                        in_force = half_lives(store, agent_id)
                        told, recomputed = memory.get_statistics().avg_relevance, recomputed_average(store, memory)
                    assert told == near(recomputed, abs=1e-9)
        with open_store(wanting(), data_path=path, backend=engine) as store:
            wait_until(lambda: is_settled(store))
            assert half_lives(store, "a") == half_lives(store, "b") == (11, 180, None, None)
            assert places(store, AgentKeys("a"))[store._context.catalog.wanted[0]] > 900
            assert_whole(store)


class Known:
    """What the model knows of an episode."""

    def __init__(self, episode: Episode, memory_type: int) -> None:
        assert episode.transaction_time is not None
        self.memory_type = memory_type
        self.strength = episode.relevance
        start_us = round(episode.transaction_time.timestamp() * 1e6)
        self.start_us = start_us - start_us % 1_000_000
        self.pinned = False

    def relevance(self, half_lives_us: tuple[int | None, ...], now_us: int) -> float:
        if self.pinned:
            return 1.0
        half_life_us = half_lives_us[self.memory_type]
        if half_life_us is None:
            return self.strength
        return self.strength * 2 ** (-max(0, now_us - self.start_us) / half_life_us)


class HalfLifeMachine(RuleBasedStateMachine):
    """Stores, changes and deletes while half-lives change, with crashes in between; a dict with formulas is right."""

    def __init__(self, open_one: Callable[[dict[str, Any]], Store]) -> None:
        super().__init__()
        self.open_one = open_one
        self.now_us = 1_900_000_000_000_000
        self.known: dict[str, Known] = {}
        self.wanted: dict[str, Any] = {}
        self.store: Store | None = None
        self.before: tuple[float | None, ...] = ()
        self.opened()
        self.memory.clear()

    def opened(self) -> None:
        store = self.open_one(self.wanted)
        store._context.clock_ns = lambda: self.now_us * 1000
        self.store = store
        self.memory = store.agent_memory(AGENT)
        self.in_force_before = self.in_force()

    def in_force(self) -> tuple[int | None, ...]:
        assert self.store is not None
        return tuple(order.half_life_us for order in self.store._context.agent(AGENT).orders)

    def chosen(self, number: int) -> str:
        return sorted(self.known)[number % len(self.known)]

    @rule(days=st.sampled_from([1, 5, 30, "never"]), which=st.sampled_from(["relevance", "semantic", "factual"]))
    def open_with(self, days: Any, which: str) -> None:
        self.wanted[f"{which}_decay_days"] = days
        self.opened()

    @rule()
    def crash(self) -> None:
        self.opened()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        assert self.store is not None
        steps(self.store, count)

    @rule(
        strengths=st.lists(st.sampled_from([1.0, 1.0, 0.5, 0.25]), min_size=1, max_size=5),
        memory_type=st.sampled_from([0, 0, 1, 3]),
        ago=st.integers(0, 1000),
    )
    def store_some(self, strengths: list[float], memory_type: int, ago: int) -> None:
        when = datetime.fromtimestamp(self.now_us / 1e6, UTC) - timedelta(minutes=ago)
        name: Any = ("episodic", "semantic", "procedural", "factual")[memory_type]
        made = [note(relevance=strength, memory_type=name, event_time=when) for strength in strengths]
        ids = self.memory.store_episodes(made) if len(made) > 1 else [self.memory.store_episode(made[0])]
        for id_, strength in zip(ids, strengths, strict=True):
            episode = next(each for each in self.memory.episodes() if each.id == id_)
            self.known[id_] = Known(episode, memory_type)
            self.known[id_].strength = strength

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99))
    def boost(self, number: int) -> None:
        id_ = self.chosen(number)
        known, half_lives_us = self.known[id_], self.in_force()
        pinned, known.pinned = known.pinned, False
        relevance = known.relevance(half_lives_us, self.now_us)
        known.pinned = pinned
        self.memory.boost(id_, 0.5)
        known.strength = relevance + 0.5 * (1 - relevance)
        if half_lives_us[known.memory_type] is not None:
            known.start_us = max(self.now_us, known.start_us)

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99), pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        id_ = self.chosen(number)
        (self.memory.pin if pinned else self.memory.unpin)(id_)
        self.known[id_].pinned = pinned

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99), kind=st.sampled_from(["note", "other"]))
    def update(self, number: int, kind: str) -> None:
        self.memory.update_episode(self.chosen(number), episode_type=kind)

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99), verb=st.sampled_from(["delete_episode", "invalidate"]))
    def remove(self, number: int, verb: str) -> None:
        id_ = self.chosen(number)
        getattr(self.memory, verb)(id_)
        del self.known[id_]

    @rule(min_relevance=st.sampled_from([0.1, 0.3, 0.6]))
    def forget(self, min_relevance: float) -> None:
        half_lives_us = self.in_force()
        due = {
            id_
            for id_, known in self.known.items()
            if not known.pinned and known.relevance(half_lives_us, self.now_us) < min_relevance
        }
        assert set(self.memory.forget(min_relevance).ids) == due
        for id_ in due:
            del self.known[id_]

    @rule()
    def clear(self) -> None:
        self.memory.clear()
        self.known.clear()

    @rule(hours=st.sampled_from([1, 20, 300]))
    def wait(self, hours: int) -> None:
        self.now_us += hours * 3_600_000_000 + 123_457

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        assert self.store is not None
        half_lives_us = self.in_force()
        wanted_us = tuple(
            order.half_life_us for order in self.store._context.orders_of(self.store._context.catalog.wanted)
        )
        assert half_lives_us in (self.in_force_before, wanted_us)  # one switch, and nothing in between
        expected = {id_: known.relevance(half_lives_us, self.now_us) for id_, known in self.known.items()}
        recalled = self.memory.recall(1000)
        assert [episode.relevance for episode in recalled] == sorted(
            (episode.relevance for episode in recalled), reverse=True
        )
        for told in (
            {each.id: each.relevance for each in recalled},
            {e.id: e.relevance for e in self.memory.episodes()},
        ):
            assert told == near(expected, rel=1e-6, abs=1e-5)
        average = self.memory.get_statistics().avg_relevance
        shown = [episode.relevance for episode in recalled]
        assert average == near(sum(shown) / len(shown) if shown else 0.0, abs=1e-9)
        assert_whole(self.store)
        if half_lives_us == wanted_us:
            self.in_force_before = wanted_us


def test_whatever_is_done_while_half_lives_change_a_plain_model_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, engine: str, by_hand: None
) -> None:
    opened: list[Store] = []
    kept: StorageBackend = EphemeralBackend(BackendOptions(path=Path("unused")))
    path = tmp_path_factory.mktemp("model") / "data"

    def crash_and_open(days: dict[str, Any]) -> Store:
        if opened:
            crash(opened.pop())
        if engine == "ephemeral":
            opened.append(Store(kept, wanting(**days), load_plugins()))
        else:
            opened.append(open_store(wanting(**days), data_path=path, backend=engine, durability="async"))
        return opened[-1]

    def crash(store: Store) -> None:
        """What is in RAM is lost; each batch that was written is there."""
        store._context.settle = lambda: None  # type: ignore[method-assign]
        if engine == "ephemeral":
            store._backend = EphemeralBackend(BackendOptions(path=Path("unused")))
        store.close()

    try:
        run_state_machine_as_test(
            lambda: HalfLifeMachine(crash_and_open),  # type: ignore[arg-type]
            settings=settings(
                max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        for store in opened:
            crash(store)


_WORKER = """
import sys
from qilbee_core import Episode, MemorySettings, SearchSettings, Settings, open_store

settings = Settings(memory=MemorySettings(relevance_decay_days=int(sys.argv[3])), search=SearchSettings(indexing="off"))
store = open_store(settings, data_path=sys.argv[1], backend=sys.argv[2])
print("open", flush=True)
while True:
    for agent_id in ("a", "b"):
        memory = store.agent_memory(agent_id)
        memory.store_episode(Episode(agent_id, "note", {"text": "more"}))
        memory.boost(memory.recall(1)[0].id)
        memory.delete_episode(memory.recall(1)[0].id)
"""
