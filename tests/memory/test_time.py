"""What was known when: nothing that was recorded is lost until somebody says so, and then nothing of it is left."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import (
    AgentMemory,
    AsyncStore,
    ConflictError,
    CorruptRecordError,
    Episode,
    InvalidError,
    MemorySettings,
    NotFoundError,
    Operation,
    Put,
    SearchSettings,
    Settings,
    Store,
    WriteBatch,
    open_store,
)
from qilbee_core.ids import parse_id
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.commit import Touched
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind

BOT = AgentKeys("bot")
A_MOMENT = timedelta(microseconds=1)


def note(text: str, **given: Any) -> Episode:
    return Episode("bot", "note", {"text": text}, **given)


def since(episode: Episode | None) -> datetime:
    assert episode is not None
    assert episode.transaction_time is not None
    return episode.transaction_time


def texts(episodes: list[Episode]) -> list[object]:
    return [episode.content["text"] for episode in episodes]


def put_back(store: Store, id_: str) -> None:
    """As the undoing of a consolidation does."""
    operations = store._operations("bot")

    def plan(head: Head, batch: list[Operation]) -> tuple[None, Touched]:
        found = operations._find_kept(parse_id(id_))
        assert found is not None
        return None, {found.id_bytes: operations._put_back(head, batch, found)}

    operations._commit(ChangeKind.RETIRE, plan)


@pytest.fixture
def memory(store: Store) -> AgentMemory:
    return store.agent_memory("bot")


@pytest.fixture
def reading_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is that of all tests here, and a thread of it reinforces what was read, every ten seconds."""
    monkeypatch.setattr(store._context, "accesses", None)


class TestLookingBack:
    def test_each_version_is_what_was_known_from_its_time_until_the_next(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note("Oslo"))
        oslo = since(memory.get_episode(id_))
        rome = since(memory.update_episode(id_, content={"text": "Rome"}))
        assert memory.invalidate(id_)
        (first, second) = memory.history(id_)
        assert (since(first), first.ended_at) == (oslo, rome)
        assert since(second) == rome
        assert second.ended_at is not None
        assert second.ended_at > rome
        told = [
            (moment, episode and episode.content["text"])
            for moment in (oslo - A_MOMENT, oslo, rome - A_MOMENT, rome, second.ended_at - A_MOMENT, second.ended_at)
            for episode in [memory.get_episode(id_, as_of=moment)]
        ]
        assert [text for _, text in told] == [None, "Oslo", "Oslo", "Rome", "Rome", None]
        for moment, text in told:
            expected = [text] if text else []
            assert texts(memory.get_recent_episodes(as_of=moment)) == expected
            assert texts(list(memory.episodes(as_of=moment))) == expected
            assert texts([each for each in memory.get_episodes([id_], as_of=moment) if each]) == expected

    def test_what_happened_long_ago_and_was_told_late_was_not_known_before(self, memory: AgentMemory) -> None:
        now = since(memory.get_episode(memory.store_episode(note("today"))))
        late = note("last year", event_time=now - timedelta(days=365))
        memory.store_episode(late)
        assert texts(memory.get_recent_episodes(as_of=now)) == ["today"]
        assert texts(memory.get_recent_episodes(as_of=now + timedelta(days=1))) == ["today", "last year"]
        year = (now - timedelta(days=400), now - timedelta(days=300))
        assert texts(list(memory.episodes(*year, as_of=now))) == []
        assert texts(list(memory.episodes(*year, as_of=since(memory.get_episode(late.id))))) == ["last year"]

    def test_pages_of_the_past_stay_as_they_are_whatever_happens_since(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(str(number)) for number in range(7)])
        then = since(memory.get_episode(ids[0]))
        first = memory.get_recent_episodes(3, as_of=then)
        memory.update_episode(ids[3], content={"text": "changed"})
        memory.invalidate(ids[2])
        memory.store_episode(note("later", event_time=first[-1].event_time))
        second = memory.get_recent_episodes(3, before=first[-1].id, as_of=then)
        assert texts(first + second) == ["6", "5", "4", "3", "2", "1"]

    def test_an_update_that_changes_the_type_is_filtered_by_the_type_it_had(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note("tea"))
        then = since(memory.get_episode(id_))
        memory.update_episode(id_, episode_type="other")
        assert texts(memory.get_recent_episodes(episode_type="note", as_of=then)) == ["tea"]
        assert memory.get_recent_episodes(episode_type="other", as_of=then) == []

    def test_an_iterator_gives_what_was_there_when_it_was_asked_for(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(str(number)) for number in range(5)])
        memory.invalidate(ids[1])
        then = since(memory.get_episode(ids[0]))
        remaining = memory.episodes(as_of=then)
        put_back(store, ids[1])  # gone from one family, there in the other
        memory.invalidate(ids[3])
        memory.delete_episode(ids[4])
        assert texts(list(remaining)) == ["0", "1", "2", "3", "4"]
        assert texts(list(memory.episodes(as_of=then))) == ["0", "1", "2", "3"]

    @pytest.mark.usefixtures("reading_changes_nothing")
    def test_the_relevance_is_that_of_now(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note("tea"))
        then = since(memory.get_episode(id_))
        clock.forward(days=30)
        memory.update_episode(id_, content={"text": "more tea"})
        for _ in range(2):
            told = memory.get_episode(id_, as_of=then)
            assert told is not None
            assert told.relevance == pytest.approx(0.5, rel=1e-4)
            assert [version.relevance for version in memory.history(id_)][:1] == [told.relevance]
            memory.invalidate(id_)

    @pytest.mark.usefixtures("reading_changes_nothing")
    def test_it_is_as_if_every_version_had_been_reinforced_and_pinned_with_the_last(
        self, store: Store, memory: AgentMemory
    ) -> None:
        boosted, pinned = memory.store_episodes([note("tea", relevance=0.2), note("ink", relevance=0.2)])
        then = since(memory.get_episode(boosted))
        for id_ in (boosted, pinned):
            memory.update_episode(id_, content={"text": "changed"})
        memory.boost(boosted, 0.5)
        memory.pin(pinned)

        def told() -> list[tuple[float, bool]]:
            past = [*memory.episodes(as_of=then), *memory.history(boosted)[:1], *memory.history(pinned)[:1]]
            return [(round(each.relevance, 3), each.pinned) for each in past]

        assert told() == [(0.6, False), (1.0, True)] * 2
        for id_ in (boosted, pinned):
            memory.invalidate(id_)
        assert told() == [(0.6, False), (1.0, True)] * 2
        for id_ in (boosted, pinned):
            put_back(store, id_)
        assert told() == [(0.6, False), (1.0, True)] * 2

    def test_to_look_back_reinforces_nothing(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        id_ = memory.store_episode(note("tea", relevance=0.5))
        then = since(memory.get_episode(id_))
        assert store._sweeper is not None
        store._sweeper.flush()
        clock.forward(days=1)
        before = memory.recall(1)[0].relevance
        memory.get_episode(id_, as_of=then)
        memory.get_episodes([id_], as_of=then)
        store._sweeper.flush()
        assert memory.recall(1)[0].relevance == before

    def test_a_time_without_a_zone_is_utc_and_anything_else_is_refused(self, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note("tea"))
        then = since(memory.get_episode(id_))
        assert memory.get_episode(id_, as_of=then.replace(tzinfo=None)) is not None
        assert memory.get_episode(id_, as_of=(then - A_MOMENT).replace(tzinfo=None)) is None
        calls: list[Callable[[Any], object]] = [
            lambda when: memory.get_episode(id_, as_of=when),
            lambda when: memory.get_episodes([id_], as_of=when),
            lambda when: memory.get_recent_episodes(as_of=when),
            lambda when: memory.episodes(as_of=when),
            memory.purge,
        ]
        for call in calls:
            with pytest.raises(InvalidError, match="not a datetime"):
                call("2026-01-01")

    def test_a_time_to_come_shows_what_will_be_there_as_far_as_is_known(self, memory: AgentMemory, clock: Any) -> None:
        memory.store_episodes([note("tea"), note("soon gone", ttl=timedelta(hours=1))])
        assert len(list(memory.episodes(as_of=clock.now + timedelta(minutes=59)))) == 2
        to_come = clock.now + timedelta(minutes=61)
        assert texts(list(memory.episodes(as_of=to_come))) == ["tea"]
        ids = [episode.id for episode in memory.episodes()]
        assert [episode is not None for episode in memory.get_episodes(ids, as_of=to_come)] == [True, False]

    def test_what_has_expired_is_gone_from_the_past_too(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        expires_at = clock.now + timedelta(hours=1)
        ids = [memory.store_episode(note(text, expires_at=expires_at)) for text in ("there", "retired", "pinned")]
        then = since(memory.get_episode(ids[-1]))
        memory.pin(ids[2])
        memory.invalidate(ids[1])
        memory.update_episode(ids[0], content={"text": "changed"})
        assert len(list(memory.episodes(as_of=then))) == 3
        clock.forward(hours=1)
        assert texts(list(memory.episodes(as_of=then))) == ["pinned"]
        assert memory.history(ids[0]) == memory.history(ids[1]) == []
        memory.store_episode(note("something else"))  # what is due goes with the next write
        assert {row[0][-24:-8] for row in store._backend.scan(*BOT.range(Space.HISTORY))} == set()
        assert store.verify().problems == []

    def test_no_agent_sees_the_past_of_another(self, store: Store) -> None:
        memory, other = store.agent_memory("bot"), store.agent_memory("bot:2")
        id_ = memory.store_episode(note("tea"))
        memory.invalidate(id_)
        later = datetime.now(UTC) + timedelta(days=1)
        assert other.history(id_) == list(other.episodes(as_of=later)) == []
        assert other.get_episode(id_, as_of=later) is None
        assert other.purge(later).versions == 0
        assert not other.delete_episode(id_)
        assert len(memory.history(id_)) == 1

    def test_a_damaged_version_is_named_by_whoever_meets_it(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note("tea"), note("ink")])
        then = since(memory.get_episode(ids[0]))
        memory.update_episode(ids[0], content={"text": "more tea"})
        ((key, _),) = store._backend.scan(*BOT.range(Space.HISTORY))
        store._backend.write(WriteBatch([Put(key, b"?")]))
        for call in (lambda: memory.history(ids[0]), lambda: memory.get_episode(ids[0], as_of=then)):
            with pytest.raises(CorruptRecordError):
                call()
        assert texts([each for each in [memory.get_episode(ids[1], as_of=then)] if each]) == ["ink"]
        with pytest.raises(CorruptRecordError):
            list(memory.episodes(as_of=then))
        assert len(list(memory.episodes())) == 2

    def test_both_faces_tell_the_same(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note("tea"), note("ink")])
        then = since(memory.get_episode(ids[0]))

        async def ask() -> None:
            face = AsyncStore(store)
            told = face.agent_memory("bot")
            assert await told.invalidate(ids[0])
            assert not await told.invalidate(ids[0])
            assert [each.content["text"] async for each in told.episodes(as_of=then)] == ["tea", "ink"]
            assert await told.get_episode(ids[0]) is None
            assert await told.get_episode(ids[0], as_of=then) == memory.get_episode(ids[0], as_of=then)
            assert await told.get_episodes(ids, as_of=then) == memory.get_episodes(ids, as_of=then)
            assert texts(await told.get_recent_episodes(1, as_of=then)) == ["ink"]
            assert [each.ended_at for each in await told.history(ids[0])] != [None]
            receipt = await told.purge(datetime.now(UTC) + timedelta(days=1))
            assert (receipt.episodes, receipt.versions) == (1, 1)
            face._pool.shutdown()

        asyncio.run(ask())
        assert memory.history(ids[0]) == []


class TestSearching:
    @pytest.fixture
    def searched(self, open_here: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> AgentMemory:
        monkeypatch.setenv("QILBEE_SEARCH_INDEXING", "inline")
        return open_here().agent_memory("bot")

    def test_only_what_was_known_is_found_and_as_it_was(self, searched: AgentMemory) -> None:
        id_ = searched.store_episode(Episode.observation("bot", "Ana lives in Oslo."))
        then = since(searched.get_episode(id_))
        searched.update_episode(id_, content={"observation": "Ana lives in Rome."})
        for number in range(30):
            searched.store_episode(Episode.observation("bot", f"Ana lives and lives, {number}."))
        for found in (
            searched.search_episodes("where does Ana live", 1, as_of=then),
            [each.episode for each in searched.hybrid_search("where does Ana live", 1, as_of=then)],
            [each.episode for each in searched.semantic_search("where does Ana live", 1, as_of=then)],
        ):
            assert [each.content["observation"] for each in found] == ["Ana lives in Oslo."]
            assert found[0].ended_at is not None
        newest = searched.get_recent_episodes(1)[0]
        assert [each.episode.id for each in searched.find_similar_episodes(newest.id, 3, as_of=then)] == [id_]
        assert searched.search_episodes("Ana", as_of=then - A_MOMENT) == []

    def test_what_was_retired_is_not_found_and_nothing_of_it_is_left_in_the_index(self, searched: AgentMemory) -> None:
        id_ = searched.store_episode(Episode.observation("bot", "The quokka smiled."))
        then = since(searched.get_episode(id_))
        assert len(searched.search_episodes("quokka")) == 1
        searched.invalidate(id_)
        assert searched.search_episodes("quokka") == []
        assert searched.search_episodes("quokka", as_of=then) == []
        backend = searched._operations._backend
        assert not any(b"quokka" in value for _, value in backend.scan(*BOT.range(Space.TERMS)))


class TestRetiring:
    def test_no_verb_of_the_present_finds_it(self, memory: AgentMemory) -> None:
        id_, other = memory.store_episodes([note("tea"), note("ink")])
        before = memory.get_statistics()
        assert memory.invalidate(id_) is True
        assert memory.invalidate(id_) is False
        assert memory.get_episode(id_) is None
        assert memory.get_episodes([id_, other])[0] is None
        for told in (memory.get_recent_episodes(), list(memory.episodes()), memory.recall()):
            assert texts(told) == ["ink"]
        for verb in (memory.update_episode, memory.boost, memory.pin, memory.unpin):
            with pytest.raises(NotFoundError):
                verb(id_)
        after = memory.get_statistics()
        assert (after.total_episodes, before.total_episodes) == (1, 2)
        assert after.bytes < before.bytes
        assert memory.forget(1.0, max_episodes=0).ids == [other]
        assert memory.get_statistics().total_episodes == 0
        assert len(memory.history(id_)) == 1

    def test_there_is_nothing_to_invalidate_where_there_is_nothing(self, memory: AgentMemory, clock: Any) -> None:
        expired = memory.store_episode(note("tea", ttl=timedelta(hours=1)))
        clock.forward(hours=2)
        assert memory.invalidate(expired) is False
        assert memory.invalidate(note("never stored").id) is False
        with pytest.raises(InvalidError):
            memory.invalidate("no id")

    def test_to_store_it_again_does_not_bring_it_back(self, memory: AgentMemory) -> None:
        late = note("tea", event_time=datetime(2020, 1, 1, tzinfo=UTC))
        memory.store_episode(late, idempotency_key="order-7")
        memory.update_episode(late.id, content={"text": "more tea"})
        memory.invalidate(late.id)
        again = note("tea", id=late.id)
        assert memory.store_episode(again) == late.id
        assert memory.store_episodes([again, again]) == [late.id, late.id]
        assert memory.import_episodes(iter([again])) == 1
        assert memory.store_episode(note("tea"), idempotency_key="order-7") == late.id
        assert memory.store_episode(again, idempotency_key="order-8") == late.id
        for id_, key in ((late.id, None), (None, "order-7"), (late.id, "order-7")):
            with pytest.raises(ConflictError):
                memory.store_episode(note("ink", id=id_), idempotency_key=key)
        assert list(memory.episodes()) == []
        assert memory.store_episode(note("ink", event_time=late.event_time)) != late.id
        assert texts(list(memory.episodes())) == ["ink"]

    def test_its_id_and_key_are_free_once_it_is_deleted_or_has_expired(
        self, store: Store, memory: AgentMemory, clock: Any
    ) -> None:
        ids = [
            memory.store_episode(note("tea", expires_at=clock.now + timedelta(hours=1)), idempotency_key=key)
            for key in ("k1", "k2", "k3")
        ]
        for id_ in ids:
            assert memory.invalidate(id_)
        assert memory.delete_episode(ids[0]) is True
        assert memory.delete_episode(ids[0]) is False
        assert memory.history(ids[0]) == []
        assert memory.store_episode(note("ink", id=ids[0]), idempotency_key="k1") == ids[0]
        clock.forward(hours=1)
        assert memory.store_episode(note("ink", id=ids[1])) == ids[1]
        other = note("ink")
        assert memory.store_episode(other, idempotency_key="k3") == other.id
        assert store.verify().problems == []

    @pytest.mark.usefixtures("reading_changes_nothing")
    def test_what_was_put_back_is_as_it_was(self, store: Store, memory: AgentMemory, clock: Any) -> None:
        expires_at = clock.now + timedelta(days=9)
        boosted = memory.store_episode(note("boosted", relevance=0.3, expires_at=expires_at))
        pinned = memory.store_episode(note("pinned", expires_at=expires_at))
        plain = memory.store_episode(note("plain", memory_type="semantic"))
        clock.forward(days=3)
        memory.boost(boosted)
        memory.pin(pinned)
        clock.forward(days=1)
        ids = [boosted, pinned, plain]
        for id_ in ids:
            memory.invalidate(id_)
        retired_at = clock.now
        clock.forward(days=1)
        for id_ in ids:
            put_back(store, id_)
        assert store.verify().problems == []

        never = open_store(backend="ephemeral")
        never._context.clock_ns = lambda: clock.ns
        other = never.agent_memory("bot")
        clock.forward(days=-5)
        other.store_episode(note("boosted", id=boosted, relevance=0.3, expires_at=expires_at))
        other.store_episode(note("pinned", id=pinned, expires_at=expires_at))
        other.store_episode(note("plain", id=plain, memory_type="semantic"))
        clock.forward(days=3)
        other.boost(boosted)
        other.pin(pinned)
        clock.forward(days=2)
        for now, expected in zip(memory.recall(), other.recall(), strict=True):
            assert now == expected
            assert now.relevance == pytest.approx(expected.relevance, rel=1e-9)
            assert now.pinned is expected.pinned
        assert memory.get_statistics().avg_relevance == pytest.approx(other.get_statistics().avg_relevance, rel=1e-9)
        # In between it was not there.
        assert len(list(memory.episodes(as_of=retired_at - A_MOMENT))) == 3
        assert list(memory.episodes(as_of=retired_at + timedelta(hours=1))) == []
        assert [since(each) for each in memory.history(plain)] < [since(memory.get_episode(plain))]
        clock.forward(days=5)
        assert texts(list(memory.episodes())) == texts(list(other.episodes())) == ["pinned", "plain"]
        never.close()

    def test_it_may_be_retired_again_and_again(self, store: Store, memory: AgentMemory) -> None:
        id_ = memory.store_episode(note("tea"))
        for _ in range(3):
            assert memory.invalidate(id_)
            put_back(store, id_)
        versions = memory.history(id_)
        ends = [each.ended_at for each in versions]
        assert len(versions) == 3
        assert [since(each) for each in versions][1:] > [end for end in ends if end][:2]
        assert store.verify().problems == []
        assert memory.get_statistics().total_episodes == 1

    def test_a_plain_store_writes_just_what_it_wrote(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(str(number)) for number in range(3)])
        memory.invalidate(ids[0])
        before = dict(store._backend.scan())
        stored_id = memory.store_episode(note("usual"))
        new = [key for key, _ in store._backend.scan() if key not in before]
        assert [Space(key[0]) for key in new] == [Space.EPISODE, Space.VITALITY, Space.CHANGE]
        assert memory.get_episode(stored_id) is not None


class TestWithoutHistory:
    @pytest.fixture
    def forgetful(self, open_here: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> Store:
        monkeypatch.setenv("QILBEE_MEMORY_KEEP_HISTORY", "false")
        return open_here()

    def test_nothing_is_kept_of_what_is_changed_or_invalidated(self, forgetful: Store) -> None:
        memory = forgetful.agent_memory("bot")
        ids = memory.store_episodes([note("tea"), note("ink")])
        then = since(memory.get_episode(ids[0]))
        changed = since(memory.update_episode(ids[0], content={"text": "more tea"}))
        assert memory.invalidate(ids[1]) is True
        assert memory.history(ids[0]) == memory.history(ids[1]) == []
        assert list(memory.episodes(as_of=then)) == []
        assert texts(list(memory.episodes(as_of=changed))) == ["more tea"]
        assert list(forgetful._backend.scan(*BOT.range(Space.HISTORY))) == []
        assert memory.store_episode(note("ink", id=ids[1])) == ids[1]  # as after a delete
        assert forgetful.verify().problems == []

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
    def test_an_update_takes_along_what_was_kept_while_it_was_on(self, tmp_path: Path, engine: str) -> None:
        pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
        with open_store(tmp_path / "data", backend=engine) as store:
            memory = store.agent_memory("bot")
            id_, other = memory.store_episodes([note("tea"), note("ink")])
            memory.update_episode(id_, content={"text": "more tea"})
            memory.invalidate(other)
        chosen = Settings(memory=MemorySettings(keep_history=False))
        with open_store(chosen, data_path=tmp_path / "data") as store:
            memory = store.agent_memory("bot")
            assert texts(memory.history(id_)) == ["tea"]
            memory.update_episode(id_, content={"text": "no tea"})
            assert memory.history(id_) == []
            assert texts(memory.history(other)) == ["ink"]  # for purge() to remove
            assert store.verify().problems == []


class TestPurging:
    def test_what_ended_before_goes_and_all_later_times_stay_exact(self, store: Store, memory: AgentMemory) -> None:
        draw = random.Random(7)
        ids = memory.store_episodes([note(str(number)) for number in range(20)])
        moments = [since(memory.get_episode(ids[0]))]
        for number in range(60):
            id_ = draw.choice(ids)
            if draw.random() < 0.8:
                if memory.get_episode(id_) is not None:
                    moments.append(since(memory.update_episode(id_, content={"text": f"version {number}"})))
            else:
                memory.invalidate(id_)
        before = moments[len(moments) // 2]
        told = {moment: list(memory.episodes(as_of=moment)) for moment in moments}
        versions = {id_: memory.history(id_) for id_ in ids}
        receipt = memory.purge(before)
        left = {id_: memory.history(id_) for id_ in ids}
        for id_ in ids:
            assert left[id_] == [each for each in versions[id_] if each.ended_at and each.ended_at >= before]
        assert receipt.versions == sum(map(len, versions.values())) - sum(map(len, left.values())) > 0
        for moment in moments:
            if moment >= before:
                assert list(memory.episodes(as_of=moment)) == told[moment]
        assert store.verify().problems == []
        again = memory.purge(before)
        assert (again.episodes, again.versions, again.bytes) == (0, 0, 0)

    def test_it_goes_through_any_number(self, store: Store, memory: AgentMemory) -> None:
        memory.import_episodes(note(str(number)) for number in range(700))
        ids = [episode.id for episode in memory.episodes()]
        for id_ in ids[:600]:
            memory.update_episode(id_, content={"text": "changed"})
        for id_ in ids[300:]:
            memory.invalidate(id_)
        receipt = memory.purge(datetime.now(UTC) + timedelta(days=1))
        assert (receipt.episodes, receipt.versions) == (400, 600 + 400)
        assert receipt.bytes > 0
        assert list(store._backend.scan(*BOT.range(Space.HISTORY))) == []
        assert memory.get_statistics().total_episodes == 300
        assert store.verify().problems == []

    def test_a_damaged_version_stays_and_the_rest_goes(self, store: Store, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note("tea"), note("ink")])
        for id_ in ids:
            memory.invalidate(id_)
        key = next(iter(store._backend.scan(*BOT.range(Space.HISTORY))))[0]
        store._backend.write(WriteBatch([Put(key, b"?")]))
        assert memory.purge(datetime.now(UTC) + timedelta(days=1)).episodes == 1
        assert [row[0] for row in store._backend.scan(*BOT.range(Space.HISTORY))] == [key]

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
    @pytest.mark.parametrize("how", ["erase", "compact"])
    def test_no_byte_of_what_was_purged_is_left_in_the_files(self, tmp_path: Path, engine: str, how: str) -> None:
        pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
        data = tmp_path / "data"
        chosen = Settings(search=SearchSettings(indexing="inline"))

        def files_with(text: bytes) -> list[Path]:
            return [path for path in data.rglob("*") if path.is_file() and text in path.read_bytes()]

        with open_store(chosen, data_path=data, backend=engine, compression_type="none") as store:
            memory = store.agent_memory("bot")
            changed, invalidated, superseded = memory.store_episodes(
                [Episode.observation("bot", f"canary{number}", metadata={"who": "canary"}) for number in range(3)]
            )
            kept = memory.store_episode(Episode.observation("bot", "sparrow"))
            assert memory.search_episodes("canary1")  # its words are in the index
            memory.update_episode(changed, content={"observation": "finch"}, metadata={})
            memory.invalidate(invalidated)
            memory.invalidate(superseded)
            store.flush()
            store.compact()
            assert files_with(b"canary")
            assert memory.purge(datetime.now(UTC) + timedelta(days=1), erase=how == "erase").versions == 3
            assert memory.history(changed) == memory.history(invalidated) == []
            if how == "compact":
                store.compact()
            assert files_with(b"canary") == []
            assert files_with(b"finch")
            assert memory.get_episode(kept) is not None
            assert store.verify().problems == []

    def test_an_abandoned_look_back_keeps_no_file(self, tmp_path: Path) -> None:
        with open_store(tmp_path / "data") as store:
            memory = store.agent_memory("bot")
            id_ = memory.store_episode(note("tea"))
            memory.invalidate(id_)
            later = datetime.now(UTC) + timedelta(days=1)
            begun = memory.episodes(as_of=later)
            never_begun = memory.episodes(as_of=later)
            next(begun, None)
            del begun, never_begun
            gc.collect()
            assert memory.purge(later, erase=True).episodes == 1

    def test_an_engine_that_cannot_erase_is_told_before_anything_goes(self) -> None:
        with open_store(backend="ephemeral") as store:
            memory = store.agent_memory("bot")
            id_ = memory.store_episode(note("tea"))
            memory.invalidate(id_)
            try:
                memory.purge(datetime.now(UTC) + timedelta(days=1), erase=True)
            except InvalidError:
                assert len(memory.history(id_)) == 1
            else:
                assert memory.history(id_) == []


# --- a process that is killed

STEPS = 400


def live(memory: AgentMemory, done: Callable[[int], object]) -> None:
    """The same life of an agent whenever it is lived; ``done`` is called after each step."""
    draw = random.Random(11)
    ids: list[str] = []
    for step in range(STEPS):
        choice = draw.random()
        if choice < 0.4 or not ids:
            number = len(ids)
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=draw.randrange(100), microseconds=number)
            micros = (at - datetime(1, 1, 1, tzinfo=UTC)) // A_MOMENT
            text = f"{(micros >> 12) << 80 | 8 << 76 | (micros & 0xFFF) << 64 | 2 << 62 | number:032x}"
            given = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
            ids.append(memory.store_episode(note(f"first {step}", id=given)))
        elif choice < 0.7:
            id_ = draw.choice(ids)
            if memory.get_episode(id_) is not None:
                memory.update_episode(id_, content={"text": f"version {step}"})
        elif choice < 0.9:
            memory.invalidate(draw.choice(ids))
        elif choice < 0.95:
            memory.delete_episode(draw.choice(ids))
        else:
            memory.purge(EPOCH + timedelta(seconds=draw.randrange(max(1, step))))
        done(step)


EPOCH = datetime(2027, 1, 1, tzinfo=UTC)


def stepping(store: Store) -> Callable[[int], None]:
    """Let a store's clock stand still within a step, and go on by a second after each."""
    now = [EPOCH]
    store._context.clock_ns = lambda: (now[0] - datetime(1970, 1, 1, tzinfo=UTC)) // A_MOMENT * 1000

    def done(step: int) -> None:
        now[0] = EPOCH + timedelta(seconds=step + 1)

    return done


def everything(memory: AgentMemory) -> list[object]:
    """All that can be told of what is there and was."""
    past = [
        (step, episode.id, episode.content, episode.transaction_time, episode.ended_at)
        for step in range(0, STEPS, 20)
        for episode in memory.episodes(as_of=EPOCH + timedelta(seconds=step))
    ]
    versions = [
        (episode.id, [(each.content, each.ended_at) for each in memory.history(episode.id)])
        for episode in memory.episodes()
    ]
    return [*past, *versions]


def child(path: str, engine: str) -> None:
    chosen = Settings(memory=MemorySettings(reinforcement_share=0))
    store = open_store(chosen, data_path=path, backend=engine, durability="async")
    go_on = stepping(store)

    def done(step: int) -> None:
        print(step, flush=True)  # noqa: T201
        go_on(step)

    live(store.agent_memory("bot"), done)


@pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
@pytest.mark.parametrize("killed_after", [37, 160, 333])
def test_a_killed_process_leaves_the_past_as_it_was_after_its_last_step_or_a_batch_of_the_next(
    tmp_path: Path, engine: str, killed_after: int
) -> None:
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
    data = tmp_path / "data"
    seen = -1
    with subprocess.Popen([sys.executable, __file__, data, engine], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            seen = int(line)
            if seen == killed_after:
                running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    chosen = Settings(memory=MemorySettings(reinforcement_share=0))
    with open_store(chosen, data_path=data) as store:
        stepping(store)(STEPS)
        assert store.verify().problems == []
        found = everything(store.agent_memory("bot"))
    with open_store(chosen, data_path=data, backend="ephemeral") as store:
        go_on, possible, last = stepping(store), list[list[object]](), -1
        memory, commit = store.agent_memory("bot"), store._context.commit

        def look() -> None:
            go_on(STEPS)
            possible.append(everything(memory))
            go_on(last)

        def look_after_commit(*args: Any) -> Any:
            told = commit(*args)
            if last == seen:  # a purge is several commits, and the process may have ended between them
                look()
            return told

        def done(step: int) -> None:
            nonlocal last
            last = step
            go_on(step)
            if step in (seen, seen + 1):
                look()

        store._context.commit = look_after_commit  # type: ignore[method-assign, assignment]
        live(memory, done)
        assert found in possible


if __name__ == "__main__":
    child(*sys.argv[1:])
