"""What becomes of memories with time: boosted, pinned, recalled, forgotten, expired."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from qilbee_core import (
    AgentMemory,
    ConflictError,
    CorruptRecordError,
    Episode,
    InvalidError,
    NotFoundError,
    Put,
    StorageError,
    Store,
    WriteBatch,
    aopen_store,
    open_store,
)
from qilbee_core.ids import parse_id
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import writes
from qilbee_core.memory.state import decode_state

AGENT = "bot"
KEYS = AgentKeys(AGENT)
on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")
near = pytest.approx


@pytest.fixture
def memory(store: Store, clock: Any) -> AgentMemory:  # each test here stands in a time of its own
    return store.agent_memory(AGENT)


def note(text: object = "tea", **given: Any) -> Episode:
    return Episode(AGENT, given.pop("kind", "note"), {"text": str(text)}, **given)


def texts(episodes: list[Episode]) -> list[object]:
    return [episode.content["text"] for episode in episodes]


def read(memory: AgentMemory, id_: str) -> Episode:
    episode = memory.get_episode(id_)
    assert episode is not None
    return episode


def rows(store: Store, space: Space, keys: AgentKeys = KEYS) -> list[bytes]:
    return [key for key, _ in store._backend.scan(*keys.range(space))]


def watch_gets(store: Store, monkeypatch: pytest.MonkeyPatch, keys: list[bytes]) -> None:
    """Keep the keys that are asked for from now on."""
    get = store._backend.get

    def get_and_keep(key: bytes) -> bytes | None:
        keys.append(key)
        return get(key)

    monkeypatch.setattr(store._backend, "get", get_and_keep)


def assert_whole(store: Store) -> None:
    assert store.verify().problems == []


class TestBoost:
    def test_relevance_moves_by_a_share_of_what_is_missing_and_decays_anew(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        id_ = memory.store_episode(note())
        clock.forward(days=60)
        assert read(memory, id_).relevance == near(0.25, rel=1e-5)
        boosted = memory.boost(id_, 0.4)
        assert boosted.relevance == near(0.55, rel=1e-5)
        assert (boosted.id, boosted.content) == (id_, {"text": "tea"})
        clock.forward(days=30)
        assert read(memory, id_).relevance == near(0.275, rel=1e-5)
        assert_whole(store)

    def test_a_share_of_one_makes_it_as_fresh_as_a_new_one(self, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note(relevance=0.1))
        clock.forward(days=400)
        assert memory.boost(id_, 1).relevance == 1.0

    def test_what_never_decays_becomes_stronger_for_good(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note(memory_type="factual", relevance=0.5))
        assert memory.boost(id_).relevance == 0.75
        clock.forward(days=4000)
        assert read(memory, id_).relevance == 0.75
        memory.boost(id_, 1)
        sequence = store._context.head(store._context.agent(AGENT)).sequence  # type: ignore[union-attr]
        memory.boost(id_, 1)  # there is nothing left to change
        assert store._context.head(store._context.agent(AGENT)).sequence == sequence  # type: ignore[union-attr]
        assert_whole(store)

    def test_statistics_follow(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note(relevance=0.2))
        memory.store_episode(note(relevance=0.4))
        before = memory.get_statistics()
        memory.boost(id_, 0.5)
        after = memory.get_statistics()
        assert after.avg_relevance == near((0.6 + 0.4) / 2, rel=1e-5)
        assert (after.total_episodes, after.bytes) == (before.total_episodes, before.bytes)

    def test_an_update_keeps_it_and_it_is_no_version(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note(relevance=0.2))
        memory.boost(id_, 0.5)
        clock.forward(days=30)
        assert memory.update_episode(id_, content={"text": "ink"}).relevance == near(0.3, rel=1e-5)
        assert [version.content["text"] for version in memory.history(id_)] == ["tea"]
        memory.boost(id_, 0.5)
        assert texts(memory.history(id_)) == ["tea"]
        assert memory.store_episode(note(id=id_)) == id_  # still the same episode
        assert_whole(store)

    @pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), True, "1", None])
    def test_a_share_is_a_number_above_0_up_to_1(self, memory: AgentMemory, share: Any) -> None:
        id_ = memory.store_episode(note())
        with pytest.raises(InvalidError, match="share"):
            memory.boost(id_, share)

    @pytest.mark.parametrize("verb", ["boost", "pin", "unpin"])
    def test_of_what_is_not_there_it_is_not_found(self, store: Store, memory: AgentMemory, verb: str) -> None:
        elsewhere = store.agent_memory("other").store_episode(Episode("other", "note", {}))
        gone = memory.store_episode(note())
        memory.delete_episode(gone)
        for id_ in (elsewhere, gone, note().id):
            with pytest.raises(NotFoundError, match="no episode"):
                getattr(memory, verb)(id_)
        with pytest.raises(InvalidError, match="not an episode id"):
            getattr(memory, verb)("?")

    def test_only_what_differs_from_its_record_has_a_state(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(number) for number in range(5)])
        assert rows(store, Space.STATE) == []
        memory.boost(ids[1])
        memory.pin(ids[2])
        assert rows(store, Space.STATE) == sorted(KEYS.state(parse_id(id_)) for id_ in ids[1:3])
        memory.unpin(ids[2])
        memory.unpin(ids[3])
        assert rows(store, Space.STATE) == [KEYS.state(parse_id(ids[1]))]
        memory.delete_episode(ids[1])
        assert rows(store, Space.STATE) == []
        assert_whole(store)

    @on_disk
    def test_readers_of_an_agent_without_states_look_for_none(
        self, open_here: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_here()
        ids = store.agent_memory(AGENT).store_episodes([note(number) for number in range(3)])
        store.close()
        store = open_here()
        memory, read_keys = store.agent_memory(AGENT), list[bytes]()
        watch_gets(store, monkeypatch, read_keys)
        for _ in range(2):
            assert read(memory, ids[0]).relevance > 0.99
            assert len(memory.get_recent_episodes()) == len(list(memory.episodes())) == 3
        assert not [key for key in read_keys if key[0] == Space.STATE]
        memory.boost(ids[0])
        assert read(memory, ids[1]).relevance > 0.99
        assert [key for key in read_keys if key[0] == Space.STATE]

    def test_a_state_that_is_damaged_is_a_data_error_to_whoever_reads_it(
        self, store: Store, memory: AgentMemory
    ) -> None:
        first, second = memory.store_episodes([note(1), note(2)])
        memory.boost(first)
        store._backend.write(WriteBatch([Put(KEYS.state(parse_id(first)), b"damaged!")]))
        with pytest.raises(CorruptRecordError, match="checksum"):
            memory.get_episode(first)
        assert read(memory, second).content["text"] == "2"
        assert store.repair().after.ok
        assert read(memory, first).relevance > 0.99

    @on_disk
    def test_it_is_there_after_opening_again(self, open_here: Callable[..., Store]) -> None:
        store = open_here()
        memory = store.agent_memory(AGENT)
        boosted, pinned = memory.store_episodes([note(1, relevance=0.2), note(2, relevance=0.1)])
        memory.boost(boosted, 0.5)
        memory.pin(pinned)
        store.close()
        memory = open_here().agent_memory(AGENT)
        assert read(memory, boosted).relevance == near(0.6, rel=1e-4)
        assert (read(memory, pinned).relevance, read(memory, pinned).pinned) == (1.0, True)
        assert memory.get_statistics().avg_relevance == near(0.8, rel=1e-4)


class TestPin:
    def test_a_pinned_episode_is_fully_relevant_until_it_is_unpinned(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        id_ = memory.store_episode(note(relevance=0.5))
        assert read(memory, id_).pinned is False
        pinned = memory.pin(id_)
        assert (pinned.pinned, pinned.relevance) == (True, 1.0)
        clock.forward(days=30)
        assert read(memory, id_).relevance == memory.get_statistics().avg_relevance == 1.0
        assert memory.pin(id_).pinned
        freed = memory.unpin(id_)
        assert not freed.pinned
        assert freed.relevance == near(0.25, rel=1e-5)
        assert memory.get_statistics().avg_relevance == near(0.25, rel=1e-5)
        assert_whole(store)

    def test_it_stands_in_no_order_that_is_forgotten_from(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes(
            [note(kind, memory_type=kind) for kind in ("episodic", "semantic", "procedural", "factual")]
        )
        for id_ in ids:
            memory.pin(id_)
        assert [key[len(KEYS.vitalities)] for key in rows(store, Space.VITALITY)] == [240, 241, 242, 243]
        assert_whole(store)

    def test_it_may_be_boosted_updated_and_deleted(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        first, second = memory.store_episodes([note(1), note(2)])
        memory.pin(first), memory.pin(second)
        clock.forward(days=60)
        assert memory.boost(first).relevance == 1.0
        assert memory.update_episode(first, content={"text": "new"}).pinned
        assert memory.unpin(first).relevance == near(0.625, rel=1e-5)
        assert memory.delete_episode(second)
        assert memory.get_statistics().total_episodes == 1
        assert_whole(store)

    def test_to_clear_takes_everything(self, store: Store, memory: AgentMemory) -> None:
        memory.pin(memory.store_episode(note()))
        memory.boost(memory.store_episode(note(relevance=0.5, ttl=timedelta(days=1))))
        assert memory.clear().episodes == 2
        assert [key for key, _ in store._backend.scan() if key[0] != Space.CATALOG] == []
        assert memory.recall() == []


class TestRecall:
    def test_the_most_relevant_come_first_over_all_types(self, memory: AgentMemory, clock: Any) -> None:
        memory.store_episodes(
            [
                note("fact", memory_type="factual", relevance=0.3),
                note("skill", memory_type="procedural", relevance=0.6),
                note("old", memory_type="episodic"),
                note("lesson", memory_type="semantic"),
            ]
        )
        clock.forward(days=60)
        memory.store_episode(note("new", relevance=0.9))
        recalled = memory.recall()
        assert texts(recalled) == ["new", "lesson", "skill", "fact", "old"]
        assert [episode.relevance for episode in recalled] == near([0.9, 2 ** (-1 / 3), 0.6, 0.3, 0.25], rel=1e-4)
        assert recalled == [memory.get_episode(episode.id) for episode in recalled]
        clock.forward(days=30)
        assert texts(memory.recall(3)) == ["lesson", "skill", "new"]

    def test_what_is_pinned_comes_first_the_newest_before_the_older(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(number, relevance=(number + 1) / 10) for number in range(6)])
        memory.pin(ids[0]), memory.pin(ids[3])
        assert texts(memory.recall()) == ["3", "0", "5", "4", "2", "1"]

    def test_filters(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes(
            [
                note("a", relevance=0.9),
                note("b", relevance=0.8, kind="other"),
                note("c", relevance=0.7, memory_type="factual"),
                note("d", relevance=0.6, memory_type="factual", kind="other"),
                note("e", relevance=0.1),
            ]
        )
        memory.pin(ids[3])
        assert texts(memory.recall(episode_type="other")) == ["d", "b"]
        assert texts(memory.recall(memory_type="factual")) == ["d", "c"]
        assert texts(memory.recall(memory_type="episodic", episode_type="other")) == ["b"]
        assert texts(memory.recall(min_relevance=0.65)) == ["d", "a", "b", "c"]
        assert texts(memory.recall(2, min_relevance=0.65, memory_type="episodic")) == ["a", "b"]
        assert memory.recall(min_relevance=1) == memory.get_episodes([ids[3]])
        assert memory.recall(episode_type="none such") == []

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"limit": 0}, "limit"),
            ({"limit": 1001}, "limit"),
            ({"min_relevance": 1.5}, "min_relevance"),
            ({"min_relevance": "0"}, "min_relevance"),
            ({"memory_type": "vague"}, "memory_type"),
            ({"episode_type": 7}, "episode_type"),
        ],
    )
    def test_what_cannot_be_asked_for(self, memory: AgentMemory, given: Any, said: str) -> None:
        with pytest.raises(InvalidError, match=said):
            memory.recall(**given)

    def test_it_reads_as_many_records_as_it_gives(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory.store_episodes([note(number, relevance=number / 500) for number in range(500)])
        keys = list[bytes]()
        watch_gets(store, monkeypatch, keys)
        assert texts(memory.recall(3)) == ["499", "498", "497"]
        assert len([key for key in keys if key[0] == Space.EPISODE]) == 3

    def test_no_agent_sees_another(self, store: Store, memory: AgentMemory) -> None:
        for agent_id in ("a", "bot:2", "bos", "bou"):
            other = store.agent_memory(agent_id)
            other.pin(other.store_episode(Episode(agent_id, "note", {})))
        assert memory.recall() == []
        assert memory.forget(1).episodes == 0


class TestForget:
    def test_what_is_less_relevant_goes_and_the_receipt_says_what(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        kept = memory.store_episode(note("fresh", relevance=0.9))
        weak = memory.store_episode(note("weak", relevance=0.05), idempotency_key="k")
        faint = memory.store_episode(note("faint", relevance=0.03, memory_type="factual"))
        memory.update_episode(weak, content={"text": "weak still"})
        sizes = {key: len(key) + len(value) for key, value in store._backend.scan(*KEYS.range(Space.EPISODE))}
        gone = [KEYS.episode(parse_id(id_)) for id_ in (faint, weak)]
        for dry_run in (True, False):
            receipt = memory.forget(dry_run=dry_run)
            assert (receipt.episodes, receipt.dry_run) == (2, dry_run)
            assert receipt.ids == [faint, weak]
            assert receipt.bytes == sum(sizes[key] for key in gone)
            assert receipt.by_memory_type == {"episodic": 1, "factual": 1}
            assert receipt.rows == {"episode": 2, "vitality": 2, "history": 1, "key": 1}
            assert memory.get_statistics().total_episodes == (3 if dry_run else 1)
        assert [episode.id for episode in memory.episodes()] == [kept]
        assert memory.history(weak) == []
        assert memory.store_episode(note("another"), idempotency_key="k") != weak
        assert memory.forget().episodes == 0
        assert_whole(store)

    def test_it_goes_by_the_relevance_of_now(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        first, second = memory.store_episodes([note(1), note(2)])
        clock.forward(days=90)
        assert memory.forget().episodes == 0
        memory.boost(second)
        clock.forward(days=30)
        assert memory.forget().ids == [first]
        clock.forward(days=100)
        assert memory.forget().ids == [second]
        assert memory.get_statistics().total_episodes == 0
        assert_whole(store)

    def test_what_is_pinned_stays_whatever_is_asked_for(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(number, relevance=0.0) for number in range(6)])
        for id_ in ids[::2]:
            memory.pin(id_)
        assert memory.forget(1, max_episodes=0, max_bytes=0).episodes == 3
        assert [episode.id for episode in memory.episodes()] == ids[::2]
        assert_whole(store)

    def test_at_most_so_many_are_kept_the_most_relevant(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episodes(
            [
                note(number, relevance=number / 100, memory_type="factual" if number % 2 else "episodic")
                for number in random.Random(3).sample(range(1, 101), 100)
            ]
        )
        memory.pin(memory.recall(100)[-1].id)  # the weakest one counts, and stays
        assert memory.forget(0, max_episodes=100).episodes == 0
        assert memory.forget(0, max_episodes=10, dry_run=True).episodes == 90
        assert memory.forget(0, max_episodes=10).episodes == 90
        assert texts(memory.recall()) == ["1", *map(str, range(100, 91, -1))]
        assert_whole(store)

    def test_at_most_so_many_bytes_are_kept(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episodes([note("x" * 500, relevance=number / 100) for number in range(1, 101)])
        total = memory.get_statistics().bytes
        receipt = memory.forget(0, max_bytes=total // 4)
        left = memory.get_statistics()
        assert total // 4 - 700 < left.bytes <= total // 4
        assert (receipt.bytes, receipt.episodes) == (total - left.bytes, 100 - left.total_episodes)
        assert min(episode.relevance for episode in memory.episodes()) > 0.7

    @pytest.mark.parametrize(
        "given",
        [
            {"min_relevance": 2},
            {"min_relevance": None},
            {"max_episodes": -1},
            {"max_episodes": 1.5},
            {"max_bytes": True},
            {"dry_run": 1},
        ],
        ids=str,
    )
    def test_what_cannot_be_asked_for(self, memory: AgentMemory, given: Any) -> None:
        memory.store_episode(note(relevance=0.0))
        with pytest.raises(InvalidError, match=next(iter(given))):
            memory.forget(**given)
        assert memory.get_statistics().total_episodes == 1

    def test_it_touches_what_it_forgets_and_not_what_it_keeps(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pinned = memory.store_episodes([note(number, relevance=0.0) for number in range(1000)])
        for id_ in pinned[:300]:
            memory.pin(id_)
        memory.forget()
        memory.store_episodes([note(number) for number in range(1000)])
        memory.store_episodes([note("gone", relevance=0.01) for _ in range(3)])
        keys = list[bytes]()
        watch_gets(store, monkeypatch, keys)
        assert memory.forget().episodes == 3
        assert len([key for key in keys if key[0] == Space.EPISODE]) == 3

    @on_disk
    def test_one_that_is_interrupted_has_forgotten_the_least_relevant_and_can_be_gone_on_with(
        self, open_here: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qilbee_core.memory.operations.REMOVED_AT_ONCE_MAX", 10)
        store = open_here()
        memory = store.agent_memory(AGENT)
        memory.store_episodes([note(number, relevance=number / 1000) for number in range(100)])
        write, count = store._backend.write, 0

        def fail_later(batch: WriteBatch) -> None:
            nonlocal count
            count += 1
            if count == 4:
                raise KeyboardInterrupt
            write(batch)

        with monkeypatch.context() as patched:
            patched.setattr(store._backend, "write", fail_later)
            with pytest.raises(KeyboardInterrupt):
                memory.forget()
        assert texts(list(memory.episodes())) == [str(number) for number in range(30, 100)]
        assert_whole(store)
        assert memory.forget().episodes == 70
        assert_whole(store)

    def test_what_is_stored_or_boosted_meanwhile_is_not_lost(self, open_here: Callable[..., Store]) -> None:
        store = open_here(durability="async")
        memory = store.agent_memory(AGENT)
        saved = memory.store_episodes([note("saved", relevance=0.04) for _ in range(20)])
        memory.store_episodes([note("weak", relevance=0.01) for _ in range(600)])
        begin = threading.Barrier(3)
        kept: list[str] = []

        def store_more() -> None:
            begin.wait()
            kept.extend(memory.store_episode(note(number)) for number in range(300))

        def save() -> None:
            begin.wait()
            for id_ in saved:
                try:
                    kept.append(memory.boost(id_, 1).id)
                except NotFoundError:
                    return

        threads = [threading.Thread(target=work) for work in (store_more, save)]
        for thread in threads:
            thread.start()
        begin.wait()
        while any(thread.is_alive() for thread in threads):
            memory.forget()
        for thread in threads:
            thread.join()
        memory.forget()
        assert sorted(episode.id for episode in memory.episodes()) == sorted(kept)
        assert_whole(store)


class TestExpiry:
    def test_an_expired_episode_is_absent_to_every_verb_from_its_instant(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        stays = memory.store_episode(note("stays", relevance=0.5))
        end = clock.now + timedelta(hours=1)
        goes = note("goes", expires_at=end)
        memory.store_episode(goes, idempotency_key="k")
        memory.update_episode(goes.id, content={"text": "goes soon"})
        clock.forward(hours=1, microseconds=-1)
        assert read(memory, goes.id).expires_at == end
        assert memory.get_statistics().total_episodes == 2
        clock.forward(microseconds=1)

        assert memory.get_episode(goes.id) is None
        assert memory.get_episodes([goes.id, stays]) == [None, memory.get_episode(stays)]
        assert texts(memory.get_recent_episodes()) == ["stays"]
        assert texts(memory.get_recent_episodes(1)) == ["stays"]
        assert texts(memory.get_recent_episodes(episode_type="note")) == ["stays"]
        assert texts(list(memory.episodes())) == ["stays"]
        assert texts(memory.recall()) == ["stays"]
        assert memory.history(goes.id) == []
        for verb in (memory.boost, memory.pin, memory.unpin):
            with pytest.raises(NotFoundError):
                verb(goes.id)
        with pytest.raises(NotFoundError):
            memory.update_episode(goes.id, content={})
        assert memory.delete_episode(goes.id) is False
        statistics = memory.get_statistics()
        assert statistics.total_episodes == 1
        assert statistics.avg_relevance == near(0.5, rel=1e-3)
        assert statistics.newest_episode == read(memory, stays).event_time
        assert_whole(store)

    def test_statistics_are_right_though_nothing_can_be_removed(
        self, store: Store, memory: AgentMemory, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory.store_episode(note("first", relevance=0.5))
        memory.store_episodes([note(number, expires_at=clock.now + timedelta(hours=1)) for number in range(20)])
        stays = memory.store_episode(note("stays", kind="other", relevance=0.7))
        memory.store_episode(note("last", expires_at=clock.now + timedelta(hours=1)))
        clock.forward(hours=1)

        def fail(*given: object) -> None:
            raise StorageError("the disk does not answer")

        with monkeypatch.context() as patched:
            patched.setattr(store._context, "commit", fail)
            statistics = memory.get_statistics()
        assert (statistics.total_episodes, statistics.episodes_by_type) == (2, {"note": 1, "other": 1})
        assert statistics.avg_relevance == near(0.6, rel=1e-3)
        assert statistics.newest_episode == Episode(AGENT, "", {}, id=stays).event_time
        assert len(rows(store, Space.EPISODE)) == 23
        assert memory.get_statistics() == statistics
        assert len(rows(store, Space.EPISODE)) == 2
        assert_whole(store)

    def test_the_same_id_and_the_same_key_may_be_stored_again(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        first = note("first", expires_at=clock.now + timedelta(hours=1))
        again = note("another content", id=first.id)
        memory.store_episode(first, idempotency_key="k")
        with pytest.raises(ConflictError):
            memory.store_episode(again)
        clock.forward(hours=1)
        assert memory.store_episode(again) == first.id
        assert read(memory, first.id).content["text"] == "another content"
        assert read(memory, first.id).expires_at is None
        assert_whole(store)
        late = note("late", expires_at=clock.now + timedelta(hours=1))
        memory.store_episode(late, idempotency_key="k")
        clock.forward(hours=1)
        other = note("other content")
        assert memory.store_episode(other, idempotency_key="k") == other.id
        assert memory.store_episode(other, idempotency_key="k") == other.id
        assert memory.get_episode(late.id) is None
        assert memory.get_statistics().total_episodes == 2
        assert_whole(store)

    def test_what_is_due_goes_with_the_writes_that_follow_some_at_a_time(
        self, store: Store, memory: AgentMemory, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writes, "REMOVED_AT_ONCE_MAX", 40)
        end = clock.now + timedelta(hours=1)
        memory.store_episodes([note(number, expires_at=end, relevance=0.3) for number in range(100)])
        clock.forward(hours=2)
        left = []
        for number in range(4):
            memory.store_episode(note(f"new {number}"))
            left.append(len(rows(store, Space.EXPIRY)))
        assert left == [60, 20, 0, 0]
        assert memory.get_statistics().total_episodes == len(rows(store, Space.EPISODE)) == 4
        assert_whole(store)

    def test_of_another_agent_nothing_is_touched(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        other = store.agent_memory("other")
        other.store_episode(Episode("other", "note", {}, expires_at=clock.now + timedelta(hours=1)))
        clock.forward(hours=2)
        memory.store_episode(note())
        memory.get_statistics()
        assert len(rows(store, Space.EXPIRY, AgentKeys("other"))) == 1
        assert other.get_statistics().total_episodes == 0
        assert rows(store, Space.EXPIRY, AgentKeys("other")) == []

    def test_what_is_pinned_does_not_expire_until_it_is_unpinned(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        id_ = memory.store_episode(note(expires_at=clock.now + timedelta(hours=1)))
        memory.pin(id_)
        assert rows(store, Space.EXPIRY) == []
        clock.forward(hours=2)
        memory.store_episode(note("later"))
        assert read(memory, id_).pinned
        assert memory.get_statistics().total_episodes == 2
        assert_whole(store)
        memory.unpin(id_)
        assert memory.get_episode(id_) is None
        assert memory.get_statistics().total_episodes == 1
        assert rows(store, Space.EXPIRY) == []
        assert_whole(store)

    def test_what_has_expired_is_not_forgotten_instead_of_others(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        end = clock.now + timedelta(hours=1)
        memory.store_episodes([note(f"gone {number}", expires_at=end) for number in range(5)])
        kept = memory.store_episodes([note(number, relevance=0.5) for number in range(5)])
        clock.forward(hours=2)
        for dry_run in (True, False):
            assert memory.forget(max_episodes=5, dry_run=dry_run).episodes == 0
        assert [episode.id for episode in memory.episodes()] == kept
        assert_whole(store)

    def test_an_episode_may_expire_before_it_is_stored(self, store: Store, memory: AgentMemory) -> None:
        for moment in (datetime(1960, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)):
            id_ = memory.store_episode(note(expires_at=moment))
            assert memory.get_episode(id_) is None
        assert memory.get_statistics().total_episodes == 0
        assert_whole(store)

    def test_a_ttl_is_counted_from_when_the_episode_is_made(self) -> None:
        before = datetime.now(UTC)
        made = Episode.observation(AGENT, "CPU at 85 %", ttl=timedelta(minutes=5), event_time=datetime(2020, 1, 1))
        assert made.expires_at is not None
        assert timedelta(0) <= made.expires_at - before - timedelta(minutes=5) < timedelta(seconds=30)
        made.expires_at = None
        assert made == Episode.observation(AGENT, "CPU at 85 %", id=made.id)
        assert "expires_at" in repr(note(ttl=timedelta(days=1)))
        assert "expires_at" not in repr(made)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"ttl": timedelta(0)}, "ttl"),
            ({"ttl": timedelta(days=-1)}, "ttl"),
            ({"ttl": 5}, "ttl"),
            ({"ttl": timedelta.max}, "ttl"),
            ({"expires_at": "tomorrow"}, "expires_at"),
            ({"expires_at": 5}, "expires_at"),
            ({"expires_at": datetime(2099, 1, 1), "ttl": timedelta(days=1)}, "both"),
        ],
        ids=str,
    )
    def test_what_is_no_end_is_refused(self, given: Any, said: str) -> None:
        with pytest.raises(InvalidError, match=said):
            note(**given)
        with pytest.raises(InvalidError, match=said):
            Episode.conversation(AGENT, "a", "b", **given)
        with pytest.raises(InvalidError, match=said):
            Episode.action(AGENT, "a", "b", **given)


class TestFaces:
    @pytest.mark.parametrize("engine", ["rocksdb", "ephemeral"])
    def test_the_asyncio_face_does_the_same(self, engine: str, tmp_path: Any) -> None:
        async def main() -> None:
            async with await aopen_store(tmp_path / "data", backend=engine) as store:
                memory = store.agent_memory(AGENT)
                ids = await memory.store_episodes([note(number, relevance=0.05) for number in range(4)])
                assert (await memory.boost(ids[0], 1)).relevance > 0.99
                assert (await memory.pin(ids[1])).pinned
                assert not (await memory.unpin(ids[1])).pinned
                await memory.pin(ids[2])
                assert texts(await memory.recall(2)) == ["2", "0"]
                assert (await memory.forget(dry_run=True)).episodes == 2
                assert (await memory.forget()).ids == [ids[1], ids[3]]
                assert (await memory.get_statistics()).total_episodes == 2
                with pytest.raises(NotFoundError):
                    await memory.pin(ids[3])
                assert (await store.verify()).ok

        asyncio.run(main())

    @pytest.mark.parametrize("level", ["sync", "interval"])
    def test_what_was_changed_survives(self, tmp_path: Any, level: Literal["sync", "interval"]) -> None:
        with open_store(tmp_path / "data", durability=level) as store:
            memory = store.agent_memory(AGENT)
            id_ = memory.store_episode(note(relevance=0.5))
            memory.boost(id_)
            key = KEYS.state(parse_id(id_))
            state = decode_state(key, store._backend.get(key) or b"")
        with open_store(tmp_path / "data") as store:
            assert decode_state(key, store._backend.get(key) or b"") == state
            assert_whole(store)


WORK = """
import random, sys
from datetime import timedelta
from qilbee_core import Episode, NotFoundError, open_store

store = open_store(sys.argv[1], backend=sys.argv[2], durability="async")
memory, draw = store.agent_memory("bot"), random.Random(int(sys.argv[3]))
pinned = []
while True:
    batch = [Episode("bot", "note", {"n": n}, relevance=draw.random() / 4) for n in range(40)]
    batch += [Episode("bot", "note", {}, ttl=timedelta(milliseconds=draw.randrange(1, 200))) for _ in range(20)]
    ids = memory.store_episodes(batch)
    pinned.append(memory.pin(ids[0]).id)
    print(pinned[-1], flush=True)
    for id in ids[1:6]:
        memory.boost(id)
    memory.get_episodes(ids[:40])
    store._sweeper.flush()
    memory.forget(draw.random() / 5)
    memory.forget(0, max_episodes=300 + len(pinned))
"""


class TestKills:
    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
    def test_a_killed_process_leaves_whole_batches_and_what_was_pinned(self, engine: str, tmp_path: Path) -> None:
        pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
        path, pinned, draw = tmp_path / "data", list[str](), random.Random(7)
        for seed in range(4):
            command = [sys.executable, "-c", WORK, str(path), engine, str(seed)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as working:
                assert working.stdout is not None
                for _ in range(draw.randrange(3, 12)):
                    pinned.append(working.stdout.readline().strip())
                time.sleep(draw.random() / 10)  # at any point of what follows
                working.send_signal(signal.SIGKILL)
                pinned += working.stdout.read().split()
            with open_store(path, backend=engine) as store:
                assert_whole(store)
                memory = store.agent_memory(AGENT)
                assert all(episode is not None and episode.pinned for episode in memory.get_episodes(pinned))
                now_ns = time.time_ns() + 10**9  # when the last of them has expired
                store._context.clock_ns = lambda now_ns=now_ns: now_ns  # type: ignore[misc]
                relevances = [episode.relevance for episode in memory.episodes()]
                statistics = memory.get_statistics()
                assert statistics.total_episodes == len(relevances)
                assert statistics.avg_relevance == near(sum(relevances) / len(relevances), rel=1e-9)
                assert_whole(store)
