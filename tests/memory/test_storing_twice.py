"""What is the same episode, and what is another: ids, idempotency keys, ids that collide."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import pytest
from shared.notes import AGENT, NOON, at, ids_of, note, on_disk, texts

from qilbee_core import (
    AgentMemory,
    ConflictError,
    Episode,
    Store,
    ids,
)
from qilbee_core.memory.log import ChangeKind

OpenHere = Callable[..., Store]


@pytest.fixture
def memory(store: Store) -> AgentMemory:
    return store.agent_memory(AGENT)


class TestStoringTwice:
    @pytest.mark.parametrize("copied", [False, True])
    def test_the_same_episode_is_stored_once(self, memory: AgentMemory, copied: bool) -> None:
        episode = at(0, metadata={"m": [1]}, relevance=0.5)
        id_ = memory.store_episode(episode)
        before = memory.get_episode(id_)
        again = at(0, metadata={"m": [1]}, relevance=0.25, id=id_) if copied else episode
        assert memory.store_episode(again) == id_
        assert memory.store_episodes([again, again]) == [id_, id_]
        assert memory.get_statistics().total_episodes == 1
        after = memory.get_episode(id_)
        assert before is not None
        assert after is not None
        assert after.transaction_time == before.transaction_time

    @on_disk
    def test_it_is_the_same_one_after_the_store_was_opened_again(self, open_here: OpenHere) -> None:
        store = open_here()
        id_ = store.agent_memory(AGENT).store_episode(at(0))
        store.close()
        memory = open_here().agent_memory(AGENT)
        assert memory.store_episode(at(0, id=id_)) == id_
        with pytest.raises(ConflictError):
            memory.store_episode(at(0, "other", id=id_))
        assert texts(memory.episodes()) == [0]

    def test_it_is_the_same_one_after_it_was_updated(self, memory: AgentMemory) -> None:
        episode = at(0, "first")
        id_ = memory.store_episode(episode)
        memory.update_episode(id_, content={"text": "second"})
        memory.update_episode(id_, content={"text": "third"}, metadata={"by": "me"}, episode_type="edited")
        assert memory.store_episode(at(0, "first", id=id_)) == id_
        assert texts(memory.episodes()) == ["third"]
        with pytest.raises(ConflictError):
            memory.store_episode(at(0, "other", id=id_))

    @pytest.mark.parametrize(
        "other",
        [
            {"content": {"text": "other"}},
            {"content": {"text": 1}},
            {"content": {"text": True}},
            {"content": {"text": 1.0, "more": None}},
            {"metadata": {"m": 1}},
            {"episode_type": "other"},
            {"memory_type": "factual"},
        ],
    )
    def test_the_same_id_with_anything_else_is_a_conflict(self, memory: AgentMemory, other: dict[str, Any]) -> None:
        given: dict[str, Any] = {"episode_type": "note", "content": {"text": 1.0}}
        id_ = memory.store_episode(Episode(AGENT, **given))
        with pytest.raises(ConflictError, match=f"episode {id_} is stored with other content"):
            memory.store_episode(Episode(AGENT, **{**given, **other}, id=id_))
        (read,) = memory.episodes()
        assert repr(read.content) == "{'text': 1.0}"
        assert (read.metadata, read.episode_type, read.memory_type) == ({}, "note", "episodic")

    def test_an_episode_that_was_changed_since_it_was_stored_is_a_conflict(self, memory: AgentMemory) -> None:
        episode = note("first")
        id_ = memory.store_episode(episode)
        episode.content = {"text": "second"}
        with pytest.raises(ConflictError):
            memory.store_episode(episode)
        assert episode.id == id_
        assert texts(memory.episodes()) == ["first"]

    def test_a_read_episode_can_be_stored_in_another_store(self, open_here: OpenHere) -> None:
        source, target = (open_here(name).agent_memory(AGENT) for name in ("source", "target"))
        for minute in range(5):
            source.store_episode(at(minute, metadata={"minute": minute}))
        assert target.import_episodes(source.episodes()) == 5
        assert list(target.episodes()) == list(source.episodes())

    def test_agents_do_not_share_ids(self, store: Store) -> None:
        mine = note("mine")
        theirs = Episode("other", "note", {"text": "theirs"}, id=mine.id)
        assert store.agent_memory(AGENT).store_episode(mine) == store.agent_memory("other").store_episode(theirs)
        assert texts(store.agent_memory("other").episodes()) == ["theirs"]


class TestIdempotencyKeys:
    def test_the_same_key_is_the_same_episode(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note(), idempotency_key="order-7")
        assert memory.store_episode(note(), idempotency_key="order-7") == id_
        assert memory.store_episode(note(), idempotency_key="order-8") != id_
        assert memory.get_statistics().total_episodes == 2

    @on_disk
    def test_a_key_outlives_the_closing_and_the_changing_of_its_episode(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory(AGENT)
        id_ = memory.store_episode(note(), idempotency_key="k")
        memory.update_episode(id_, content={"text": "changed"})
        store.close()
        memory = open_here().agent_memory(AGENT)
        assert memory.store_episode(note(), idempotency_key="k") == id_
        with pytest.raises(ConflictError):
            memory.store_episode(note("other"), idempotency_key="k")

    def test_a_key_with_other_content_is_a_conflict(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note(), idempotency_key="k")
        with pytest.raises(ConflictError, match=f"idempotency key stands for episode {id_}"):
            memory.store_episode(note("other"), idempotency_key="k")
        assert ids_of(memory.episodes()) == [id_]

    def test_a_key_given_with_an_episode_that_is_there_already_stands_for_it(self, memory: AgentMemory) -> None:
        episode = note()
        id_ = memory.store_episode(episode)
        assert memory.store_episode(episode, idempotency_key="k") == id_
        assert memory.store_episode(note(), idempotency_key="k") == id_
        assert memory.get_statistics().total_episodes == 1

    def test_an_episode_with_a_key_is_not_taken_for_another_under_a_second_key(self, memory: AgentMemory) -> None:
        episode = note()
        memory.store_episode(episode, idempotency_key="first")
        with suppress(ConflictError):  # or else the second key stands for it too
            memory.store_episode(episode, idempotency_key="second")
            assert memory.store_episode(note(), idempotency_key="second") == episode.id
        assert memory.store_episode(note(), idempotency_key="first") == episode.id
        assert memory.get_statistics().total_episodes == 1

    def test_of_two_who_use_a_key_at_once_the_second_gets_what_the_first_has_stored(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit, here, quicker = store._context.commit, threading.current_thread(), list[Future[str]]()

        def with_another_before(agent: Any, kind: ChangeKind, *args: Any) -> Any:
            if threading.current_thread() is here and kind is ChangeKind.STORE and not quicker:
                quicker.append(pool.submit(memory.store_episode, note(), idempotency_key="k"))
                wait(quicker, 0.5)  # in vain, if the first one holds a lock by now
            return commit(agent, kind, *args)

        monkeypatch.setattr(store._context, "commit", with_another_before)
        with ThreadPoolExecutor(1) as pool:
            assert memory.store_episode(note(), idempotency_key="k") == quicker[0].result()
        assert memory.get_statistics().total_episodes == 1

    def test_a_key_stands_for_an_episode_that_another_has_stored_meanwhile_without_it(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit, here, episode, quicker = store._context.commit, threading.current_thread(), note(), list[Future[str]]()

        def with_another_before(agent: Any, kind: ChangeKind, *args: Any) -> Any:
            if threading.current_thread() is here and kind is ChangeKind.STORE and not quicker:
                quicker.append(pool.submit(memory.store_episode, episode))
                wait(quicker, 0.5)  # in vain, if the first one holds a lock by now
            return commit(agent, kind, *args)

        monkeypatch.setattr(store._context, "commit", with_another_before)
        with ThreadPoolExecutor(1) as pool:
            assert memory.store_episode(episode, idempotency_key="k") == episode.id
        monkeypatch.undo()
        assert memory.store_episode(note(), idempotency_key="k") == episode.id
        assert memory.get_statistics().total_episodes == 1

    def test_however_many_use_a_key_at_once_it_is_one_episode(self, store: Store) -> None:
        for turn in range(10):
            begin = threading.Barrier(6)

            def write(turn: int = turn, begin: threading.Barrier = begin) -> str:
                begin.wait()
                return store.agent_memory(AGENT).store_episode(note(turn), idempotency_key=f"k{turn}")

            with ThreadPoolExecutor(6) as pool:
                assert len({future.result() for future in [pool.submit(write) for _ in range(6)]}) == 1
        assert store.agent_memory(AGENT).get_statistics().total_episodes == 10
        assert store.verify().problems == []

    @pytest.mark.parametrize("how", ["delete", "clear"])
    def test_a_key_goes_with_its_episode(self, memory: AgentMemory, how: str) -> None:
        id_ = memory.store_episode(note(), idempotency_key="k")
        _ = memory.delete_episode(id_) if how == "delete" else memory.clear()
        again = memory.store_episode(note("other"), idempotency_key="k")
        assert again != id_
        assert texts(memory.episodes()) == ["other"]

    def test_agents_do_not_share_keys(self, store: Store) -> None:
        mine = store.agent_memory("a").store_episode(Episode("a", "note", {}), idempotency_key="k")
        theirs = store.agent_memory("b").store_episode(Episode("b", "note", {"x": 1}), idempotency_key="k")
        assert mine != theirs

    def test_the_text_of_a_key_is_not_kept(self, open_here: OpenHere) -> None:
        store = open_here(compression_type="none")
        store.agent_memory(AGENT).store_episode(note(), idempotency_key="canary-of-a-key")
        assert not [row for row in store._backend.scan() if b"canary" in row[0] + row[1]]


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ids are drawn as in a process that has just started, at one moment and with one random number."""
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    monkeypatch.setattr(random, "getrandbits", lambda bits: 7)

    def start_anew() -> None:
        monkeypatch.setattr(ids, "_last_low", 0)

    start_anew()
    return start_anew


def collide(start_anew: Callable[[], None], count: int) -> list[Episode]:
    collided = []
    for number in range(count):
        start_anew()
        collided.append(at(0, f"number {number}"))
    assert len(set(ids_of(collided))) == 1, "this test needs ids that collide"
    return collided


class TestCollidingIds:
    def test_a_generated_id_that_another_episode_has_is_drawn_again(
        self, memory: AgentMemory, stopped_clock: Callable[[], None]
    ) -> None:
        given = collide(stopped_clock, 4)
        returned = []
        for episode in given:
            stopped_clock()
            returned.append(memory.store_episode(episode))
        assert len(set(returned)) == 4
        assert returned == ids_of(given)
        assert {episode.event_time for episode in given} == {NOON}
        assert {id_: memory.get_episode(id_) for id_ in returned} == dict(zip(returned, given, strict=True))

    def test_within_one_batch_too(self, memory: AgentMemory, stopped_clock: Callable[[], None]) -> None:
        given = collide(stopped_clock, 3)
        returned = memory.store_episodes(given)
        assert len(set(returned)) == 3
        assert sorted(texts(memory.episodes()), key=str) == ["number 0", "number 1", "number 2"]

    @on_disk
    def test_with_what_was_stored_before_the_store_was_opened(
        self, open_here: OpenHere, stopped_clock: Callable[[], None]
    ) -> None:
        first, second = collide(stopped_clock, 2)
        store = open_here()
        store.agent_memory(AGENT).store_episode(first)
        store.close()
        memory = open_here().agent_memory(AGENT)
        memory.store_episode(second)
        assert sorted(texts(memory.episodes()), key=str) == ["number 0", "number 1"]

    def test_a_given_id_is_never_drawn_again(self, memory: AgentMemory, stopped_clock: Callable[[], None]) -> None:
        first, second = collide(stopped_clock, 2)
        memory.store_episode(first)
        with pytest.raises(ConflictError):
            memory.store_episode(at(0, "number 1", id=second.id))

    def test_a_deleted_episode_leaves_its_id(self, memory: AgentMemory, stopped_clock: Callable[[], None]) -> None:
        first, second = collide(stopped_clock, 2)
        id_ = memory.store_episode(first)
        memory.delete_episode(id_)
        assert memory.store_episode(second) == id_
        assert memory.history(id_) == []
