"""Changing what is remembered, and what the statistics say of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from shared.notes import AGENT, NOON, at, ids_of, note, on_disk, texts

from qilbee_core import (
    AgentMemory,
    ClearReceipt,
    Episode,
    InvalidError,
    MemoryStatistics,
    NotFoundError,
    Store,
)
from qilbee_core.keys import AgentKeys, Space, parse

OpenHere = Callable[..., Store]


@pytest.fixture
def memory(store: Store) -> AgentMemory:
    return store.agent_memory(AGENT)


class TestUpdates:
    def test_what_is_given_is_replaced_and_the_rest_is_kept(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(at(0, "first", metadata={"m": 1}, memory_type="factual", relevance=0.5))
        first = memory.get_episode(id_)
        assert first is not None
        steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({"content": {"text": "second"}}, {"content": {"text": "second"}}),
            ({"metadata": {"m": 2}}, {"metadata": {"m": 2}}),
            ({"episode_type": "edited"}, {"episode_type": "edited"}),
            ({"content": {}, "metadata": {}}, {"content": {}, "metadata": {}}),
        ]
        now = {"content": first.content, "metadata": first.metadata, "episode_type": first.episode_type}
        for given, changed in steps:
            answer = memory.update_episode(id_, **given)
            now |= changed
            read = memory.get_episode(id_)
            assert read is not None
            for episode in (answer, read, memory.get_recent_episodes(1)[0]):
                assert {name: getattr(episode, name) for name in now} == now
                assert (episode.id, episode.event_time) == (id_, first.event_time)
                assert (episode.memory_type, episode.relevance) == ("factual", 0.5)
            assert answer.transaction_time == read.transaction_time
        assert memory.get_statistics().total_episodes == 1

    def test_every_version_is_kept_oldest_first(self, memory: AgentMemory) -> None:
        other = memory.store_episode(at(1))
        id_ = memory.store_episode(at(0, "version 0", metadata={"n": 0}))
        before = []
        for number in range(1, 6):
            read = memory.get_episode(id_)
            assert read is not None
            before.append((read.content, read.metadata, read.transaction_time))
            memory.update_episode(id_, content={"text": f"version {number}"}, metadata={"n": number})
        versions = memory.history(id_)
        assert [(v.content, v.metadata, v.transaction_time) for v in versions] == before
        assert all(version.id == id_ and version.event_time == NOON for version in versions)
        times = [version.transaction_time for version in versions]
        assert times == sorted(set(times), key=str)
        assert memory.history(other) == []
        assert memory.history(at(9).id) == []

    def test_an_update_that_changes_nothing_makes_no_version(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note("same", metadata={"m": 1}))
        before = memory.get_episode(id_)
        assert before is not None
        answer = memory.update_episode(id_, content={"text": "same"}, metadata={"m": 1}, episode_type="note")
        assert answer == before == memory.update_episode(id_)
        assert memory.history(id_) == []
        assert answer.transaction_time == before.transaction_time

    def test_a_number_of_another_type_is_a_change(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note(1))
        for value in (1.0, True, 1):
            assert repr(memory.update_episode(id_, content={"text": value}).content) == repr({"text": value})
        assert [type(text) for text in texts(memory.history(id_))] == [int, float, bool]

    def test_an_episode_that_is_not_there_cannot_be_updated(self, memory: AgentMemory) -> None:
        missing = note().id
        with pytest.raises(NotFoundError, match=f"'bot' has no episode {missing}"):
            memory.update_episode(missing, content={})
        assert memory.get_episode(missing) is None
        id_ = memory.store_episode(note())
        memory.delete_episode(id_)
        with pytest.raises(NotFoundError):
            memory.update_episode(id_, content={})
        assert memory.get_statistics().total_episodes == 0

    def test_relevance_goes_on_decaying_from_the_first_store(self, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note("first"))
        clock.forward(days=30)
        updated = memory.update_episode(id_, content={"text": "second"})
        read = memory.get_episode(id_)
        assert read is not None
        for relevance in (updated.relevance, read.relevance, memory.get_statistics().avg_relevance):
            assert relevance == pytest.approx(0.5, rel=1e-6)


def traces_of(memory: AgentMemory, id_: str) -> list[str]:
    """The verbs that still know of an episode."""
    verbs: dict[str, Callable[[], Iterable[Episode | None]]] = {
        "get_episode": lambda: [memory.get_episode(id_)],
        "get_episodes": lambda: memory.get_episodes([id_]),
        "recent": lambda: memory.get_recent_episodes(1000),
        "recent, few": lambda: memory.get_recent_episodes(3),
        "recent, filtered": lambda: memory.get_recent_episodes(1000, memory_type="episodic"),
        "episodes": memory.episodes,
        "episodes, reverse": lambda: memory.episodes(reverse=True),
        "history": lambda: memory.history(id_),
    }
    return [name for name, verb in verbs.items() if any(found is not None and found.id == id_ for found in verb())]


class TestDeletes:
    @pytest.mark.parametrize("minute", [0, 2, 4])
    @pytest.mark.parametrize("cached", [False, True])
    def test_a_deleted_episode_is_gone_from_every_verb(self, store: Store, minute: int, cached: bool) -> None:
        memory = store.agent_memory(AGENT)
        if cached:
            memory.get_recent_episodes()
        given = [at(number) for number in range(5)]
        memory.store_episodes(given)
        id_ = given[minute].id
        memory.update_episode(id_, content={"text": "changed"})
        if cached:
            memory.get_recent_episodes()
        assert len(traces_of(memory, id_)) >= 7
        assert memory.delete_episode(id_) is True
        assert traces_of(memory, id_) == []
        assert memory.delete_episode(id_) is False
        assert texts(memory.get_recent_episodes()) == [text for text in (4, 3, 2, 1, 0) if text != minute]
        assert memory.get_statistics().total_episodes == 4
        left = [parse(key) for key, _ in store._backend.scan() if id_.replace("-", "") in key.hex()]
        assert left == []

    @on_disk
    def test_it_stays_gone_when_the_store_is_opened_again(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory(AGENT)
        kept, gone = memory.store_episodes([at(0), at(1)])
        memory.delete_episode(gone)
        store.close()
        memory = open_here().agent_memory(AGENT)
        assert traces_of(memory, gone) == []
        assert traces_of(memory, kept) != []

    def test_it_can_be_stored_anew_without_its_past(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(at(0, "first"), idempotency_key="k")
        memory.update_episode(id_, content={"text": "second"})
        memory.delete_episode(id_)
        assert memory.store_episode(at(0, "third", id=id_)) == id_
        assert memory.history(id_) == []
        assert texts(memory.get_recent_episodes()) == ["third"]

    def test_what_is_not_there_is_not_deleted(self, memory: AgentMemory) -> None:
        assert memory.delete_episode(note().id) is False
        assert memory.get_statistics().total_episodes == 0

    @on_disk
    @pytest.mark.parametrize("how", ["delete", "clear"])
    def test_erased_bytes_leave_the_files(self, open_here: OpenHere, tmp_path: Path, how: str) -> None:
        store = open_here(compression_type="none")
        memory = store.agent_memory(AGENT)
        id_, kept = memory.store_episodes([at(0, "canary-one"), at(1, "neighbour")])
        memory.update_episode(id_, content={"text": "canary-two"})
        assert files_with(tmp_path, b"canary") != []
        if how == "delete":
            assert memory.delete_episode(id_, erase=True)
            assert texts(memory.episodes()) == ["neighbour"]
            assert kept
        else:
            assert memory.clear(erase=True).episodes == 2
        assert files_with(tmp_path, b"canary") == []

    @pytest.mark.parametrize("engine", ["ephemeral"], scope="session")
    def test_an_engine_that_cannot_erase_deletes_nothing(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note())
        with pytest.raises(InvalidError, match="cannot erase"):
            memory.delete_episode(id_, erase=True)
        with pytest.raises(InvalidError, match="cannot erase"):
            memory.clear(erase=True)
        assert ids_of(memory.episodes()) == [id_]


def files_with(directory: Path, text: bytes) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and text in path.read_bytes()]


class TestClear:
    def test_everything_is_gone_at_once_and_told(self, store: Store) -> None:
        memory, other = store.agent_memory(AGENT), store.agent_memory("other")
        other.store_episode(Episode("other", "note", {"text": "theirs"}))
        ids = memory.store_episodes(at(minute) for minute in range(20))
        memory.update_episode(ids[0], content={"text": "changed"})
        memory.store_episode(note(), idempotency_key="k")
        memory.get_recent_episodes()
        expected = memory.get_statistics()
        assert memory.clear() == ClearReceipt(episodes=21, bytes=expected.bytes)
        assert [trace for id_ in ids for trace in traces_of(memory, id_)] == []
        assert memory.get_statistics().total_episodes == 0
        assert store.agents() == ["other"]
        assert texts(other.episodes()) == ["theirs"]
        own = AgentKeys(AGENT).agent
        assert [key for key, _ in store._backend.scan() if own in key] == []

    def test_nothing_is_cleared_twice(self, memory: AgentMemory) -> None:
        assert memory.clear() == ClearReceipt(episodes=0, bytes=0)
        memory.store_episode(note())
        assert memory.clear().episodes == 1
        assert memory.clear() == ClearReceipt(episodes=0, bytes=0)

    def test_another_life_begins_with_the_next_store(self, store: Store) -> None:
        memory = store.agent_memory(AGENT)
        generations = set()
        for life in range(3):
            id_ = memory.store_episode(at(life))
            memory.update_episode(id_, metadata={"life": life})
            assert texts(memory.get_recent_episodes()) == [life]
            assert len(memory.history(id_)) == 1
            head = store._context.head(store._context.agent(AGENT))
            assert head is not None
            generations.add(head.generation)
            memory.clear()
            assert memory.get_recent_episodes() == []
        assert len(generations) == 3
        assert store.verify().problems == []

    @on_disk
    def test_it_stays_gone_when_the_store_is_opened_again(self, open_here: OpenHere) -> None:
        store = open_here()
        store.agent_memory(AGENT).store_episodes(at(minute) for minute in range(20))
        store.agent_memory(AGENT).clear()
        store.close()
        store = open_here()
        assert store.agents() == []
        assert list(store.agent_memory(AGENT).episodes()) == []


def recounted(store: Store, agent_id: str) -> dict[str, object]:
    """What the statistics must say, counted behind the interface's back."""
    rows = list(store._backend.scan(*AgentKeys(agent_id).range(Space.EPISODE)))
    episodes = list(store.agent_memory(agent_id).episodes())
    kinds = [episode.episode_type for episode in episodes]
    return {
        "total_episodes": len(rows),
        "episodes_by_type": {kind: kinds.count(kind) for kind in set(kinds)},
        "oldest_episode": episodes[0].event_time if episodes else None,
        "newest_episode": episodes[-1].event_time if episodes else None,
        "bytes": sum(len(key) + len(value) for key, value in rows),
    }


def told(statistics: MemoryStatistics) -> dict[str, object]:
    names = ("total_episodes", "episodes_by_type", "oldest_episode", "newest_episode", "bytes")
    return {name: getattr(statistics, name) for name in names}


class TestStatistics:
    def test_an_agent_that_stored_nothing_has_zeros(self, memory: AgentMemory) -> None:
        assert memory.get_statistics() == MemoryStatistics(
            total_episodes=0,
            episodes_by_type={},
            oldest_episode=None,
            newest_episode=None,
            avg_relevance=0.0,
            bytes=0,
        )

    def test_they_are_exact_after_every_kind_of_write(self, store: Store) -> None:
        memory = store.agent_memory(AGENT)
        draw = random.Random(5)
        for step in range(120):
            known = ids_of(memory.episodes())
            choice = draw.randrange(8)
            if choice < 4 or not known:
                kind, size = draw.choice(["note", "other", "third"]), draw.randrange(300)
                memory.store_episode(at(draw.randrange(-99, 99), "x" * size, episode_type=kind))
            elif choice < 6:
                changed = draw.choice(["note", "other", "edited"])
                memory.update_episode(draw.choice(known), episode_type=changed, metadata={"step": step})
            elif choice < 7 or step != 60:
                memory.delete_episode(draw.choice(known))
            else:
                memory.clear()
            assert told(memory.get_statistics()) == recounted(store, AGENT)
        assert len(ids_of(memory.episodes())) > 10

    @on_disk
    def test_they_are_exact_after_the_store_was_opened_again(self, open_here: OpenHere) -> None:
        store = open_here()
        store.agent_memory(AGENT).store_episodes(at(minute) for minute in range(100))
        store.agent_memory(AGENT).store_episode(note())
        before = told(store.agent_memory(AGENT).get_statistics())
        store.close()
        store = open_here()
        assert told(store.agent_memory(AGENT).get_statistics()) == before == recounted(store, AGENT)

    def test_the_average_is_over_all_memory_types(self, memory: AgentMemory) -> None:
        memory.store_episodes(
            [
                at(0, memory_type="factual", relevance=0.25),
                at(1, memory_type="procedural", relevance=0.5),
                at(2, memory_type="semantic", relevance=1.0),
                at(3, memory_type="episodic", relevance=0.75),
            ]
        )
        assert memory.get_statistics().avg_relevance == pytest.approx(0.625, rel=1e-6)
        last = memory.get_recent_episodes(1)[0]
        memory.delete_episode(last.id)
        assert memory.get_statistics().avg_relevance == pytest.approx((0.25 + 0.5 + 1.0) / 3, rel=1e-6)

    def test_the_average_decays_with_the_episodes(self, memory: AgentMemory, clock: Any) -> None:
        memory.store_episodes([at(0, relevance=0.8), at(1, memory_type="semantic"), at(2, memory_type="factual")])
        for days in (0, 1, 44, 955):
            clock.forward(days=days)
            expected = sum(episode.relevance for episode in memory.episodes()) / 3
            assert memory.get_statistics().avg_relevance == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("days", [0, 1, 400])
    def test_the_average_is_never_above_one_though_the_clock_was_set_back(
        self, memory: AgentMemory, clock: Any, days: int
    ) -> None:
        memory.store_episodes(at(minute) for minute in range(3))
        clock.forward(days=-days)
        assert {round(episode.relevance, 3) for episode in memory.episodes()} == {1.0}
        assert 0.99 < memory.get_statistics().avg_relevance <= 1.0


class TestTransactionTimes:
    @on_disk
    def test_they_strictly_rise_though_the_clock_is_set_back(
        self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now_ns = time.time_ns()
        times: list[datetime | None] = []
        for hours in (0, -5, -5, 3, -9):
            monkeypatch.setattr(time, "time_ns", lambda hours=hours: now_ns + hours * 3600 * 10**9)
            store = open_here()
            memory = store.agent_memory(AGENT)
            for _ in range(3):
                id_ = memory.store_episode(note())
                times.append(memory.get_episode(id_).transaction_time)  # type: ignore[union-attr]
            times.append(memory.update_episode(id_, metadata={"n": 1}).transaction_time)
            memory.delete_episode(id_)
            store.close()
        assert times == sorted(set(times), key=str)
