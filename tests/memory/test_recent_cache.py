"""The newest episodes of each agent in RAM: bounded in bytes, and never another answer than the engine's."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qilbee_core import AgentMemory, Episode, Store
from qilbee_core.memory import commit, tail
from qilbee_core.memory.tail import Tail, Tails

OpenHere = Callable[..., Store]

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


@pytest.fixture(params=["rocksdb", "leveldb"], scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    """The engines of one opener: where others may write too, nothing is kept in RAM."""
    name: str = request.param
    return name


def note(agent_id: str, minute: int, text: str = "") -> Episode:
    return Episode(agent_id, "note", {"text": text}, event_time=NOON + timedelta(minutes=minute))


def cache_of(store: Store) -> dict[str, int]:
    figures = store.stats()["recent_cache"]
    assert isinstance(figures, dict)
    return figures


def is_warm(store: Store, agent_id: str) -> bool:
    return store._context.agent(agent_id).tail.warm


def recounted_bytes(of: Tail) -> int:
    return sum(len(value) + tail._OVERHEAD_BYTES for value in of.values.values())


class TestHits:
    def test_the_first_look_asks_the_engine_and_the_next_ones_do_not(
        self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episodes(note("bot", minute) for minute in range(50))
        store.close()
        store = open_here()
        memory = store.agent_memory("bot")
        assert cache_of(store)["hits"] == cache_of(store)["misses"] == 0
        memory.store_episode(note("bot", -1))
        first = memory.get_recent_episodes(20)
        assert (cache_of(store)["hits"], cache_of(store)["misses"]) == (0, 1)

        def refuse(*_: object, **__: object) -> Iterator[tuple[bytes, bytes]]:
            raise AssertionError("the engine was asked")

        monkeypatch.setattr(store._backend, "scan", refuse)
        assert memory.get_recent_episodes(20) == first
        memory.store_episode(note("bot", 99))
        assert memory.get_recent_episodes(3)[1:] == first[:2]
        assert store.agent_memory("bot").get_recent_episodes(1)[0].event_time == NOON + timedelta(minutes=99)
        assert (cache_of(store)["hits"], cache_of(store)["misses"]) == (3, 1)
        monkeypatch.undo()
        assert len(memory.get_recent_episodes(30)) == 30
        assert cache_of(store)["misses"] == 2

    def test_an_agent_that_begins_here_is_known_from_its_first_store(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        for minute in range(5):
            memory.store_episode(note("bot", minute))
            assert len(memory.get_recent_episodes()) == minute + 1
        assert (cache_of(store)["hits"], cache_of(store)["misses"]) == (5, 0)

    def test_the_last_one_that_is_deleted_leaves_a_right_answer(self, store: Store) -> None:
        memory = store.agent_memory("bot")
        ids = memory.store_episodes(note("bot", minute) for minute in range(200))
        assert len(memory.get_recent_episodes(5)) == 5
        for id_ in reversed(ids):
            assert memory.get_recent_episodes(1)[0].id == id_
            memory.delete_episode(id_)
        assert memory.get_recent_episodes(1) == []

    def test_nothing_is_kept_once_the_store_is_closed(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episode(note("bot", 0))
        memory.get_recent_episodes()
        assert store._context.tails.bytes > 0
        store.close()
        assert store._context.tails.bytes == 0


class TestBounds:
    def test_it_never_takes_more_bytes_than_allowed_over_many_agents(self, open_here: OpenHere) -> None:
        store = open_here(recent_cache_bytes=20_000)
        most = 0
        for number in range(300):
            agent_id = f"agent {number % 100}"
            memory = store.agent_memory(agent_id)
            memory.store_episodes(note(agent_id, minute, "x" * (37 * number % 600)) for minute in range(number % 7))
            memory.get_recent_episodes(1 + number % 20)
            tails = store._context.tails
            assert tails.bytes == sum(recounted_bytes(of) for of in tails._by_use)
            assert cache_of(store) | {"bytes": 0, "hits": 0, "misses": 0} == {
                "bytes": 0,
                "bytes_max": 20_000,
                "hits": 0,
                "misses": 0,
            }
            most = max(most, cache_of(store)["bytes"])
        assert 10_000 < most <= 20_000

    def test_it_keeps_who_was_read_last_and_drops_who_was_not(self, open_here: OpenHere) -> None:
        store = open_here(recent_cache_bytes=10_000, compression_type="none")
        names = [f"agent {number}" for number in range(5)]
        memories = {name: store.agent_memory(name) for name in names}
        for name, memory in memories.items():
            memory.store_episodes(note(name, minute, "x" * 1000) for minute in range(2))
            memory.get_recent_episodes()
        assert [name for name in names if is_warm(store, name)] == names[2:]
        memories[names[2]].get_recent_episodes()
        memories[names[0]].get_recent_episodes(1)
        memories[names[0]].store_episodes(note(names[0], minute, "x" * 1000) for minute in range(2))
        assert is_warm(store, names[0])
        assert is_warm(store, names[2])
        assert not is_warm(store, names[3])

    def test_an_agent_too_large_for_all_of_it_is_answered_by_the_engine(self, open_here: OpenHere) -> None:
        store = open_here(recent_cache_bytes=5_000, compression_type="none")
        memory = store.agent_memory("bot")
        for minute in range(4):
            memory.store_episode(note("bot", minute, "x" * 4_000))
            assert [len(str(episode.content["text"])) for episode in memory.get_recent_episodes()] == [4_000] * (
                minute + 1
            )
            assert cache_of(store)["bytes"] <= 5_000

    def test_none_at_all_is_kept_where_it_may_take_no_bytes(self, open_here: OpenHere) -> None:
        store = open_here(recent_cache_bytes=0)
        memory = store.agent_memory("bot")
        for minute in range(5):
            memory.store_episode(note("bot", minute))
            assert len(memory.get_recent_episodes()) == minute + 1
            assert cache_of(store)["bytes"] == 0

    def test_it_is_let_go_of_when_nobody_reads_any_more(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episode(note("bot", -1))
        assert len(memory.get_recent_episodes()) == 1
        for minute in range(tail._UNREAD_MAX):
            memory.store_episode(note("bot", minute))
        assert is_warm(store, "bot")
        memory.store_episode(note("bot", tail._UNREAD_MAX))
        assert not is_warm(store, "bot")
        assert cache_of(store)["bytes"] == 0
        hits = cache_of(store)["hits"]
        assert memory.get_recent_episodes(1)[0].event_time == NOON + timedelta(minutes=tail._UNREAD_MAX)
        assert (cache_of(store)["hits"], cache_of(store)["misses"]) == (hits, 1)

    def test_a_read_in_between_keeps_it(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        for minute in range(3 * tail._UNREAD_MAX):
            memory.store_episode(note("bot", minute))
            if minute % 200 == 0:
                memory.get_recent_episodes(1)
        assert cache_of(store)["misses"] == 0

    def test_agents_that_nobody_uses_any_more_take_no_ram(self, open_here: OpenHere) -> None:
        store = open_here()
        missing = note("nobody", 0).id
        for number in range(commit._AGENTS_KEPT + 300):
            memory = store.agent_memory(f"agent {number}")
            if number % 2:
                memory.delete_episode(missing)
            else:
                memory.store_episode(note(memory.agent_id, 0))
                memory.get_recent_episodes()
        del memory
        assert len(store._context.agents_in_use()) <= commit._AGENTS_KEPT
        assert len(store._context.tails._by_use) <= commit._AGENTS_KEPT
        assert store._context.tails.bytes == sum(recounted_bytes(of) for of in store._context.tails._by_use)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "late", "update", "delete", "recent", "recent", "clear", "batch"]),
        st.integers(0, 2),
        st.integers(0, 40),
    ),
    max_size=40,
)


@pytest.fixture
def small(store: Store) -> Iterator[Store]:
    """A store whose tests change how many bytes it may keep."""
    before = store._context.tails.bytes_max
    yield store
    store._context.tails.bytes_max = before


class TestAnswers:
    """Against plain dictionaries, with budgets so small that everything is dropped all the time."""

    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(operations=OPERATIONS, bytes_max=st.sampled_from([0, 400, 1_500, 6_000, 1 << 20]))
    def test_they_are_those_of_the_engine_whatever_happens(
        self, small: Store, operations: list[tuple[str, int, int]], bytes_max: int
    ) -> None:
        store, tails = small, small._context.tails
        tails.bytes_max = bytes_max
        names = ["a", "b", "c"]
        memories = [store.agent_memory(name) for name in names]
        known: list[dict[str, str]] = [{}, {}, {}]
        for memory in memories:
            memory.clear()
        for step, (what, agent, number) in enumerate(operations):
            memory, model, text = memories[agent], known[agent], f"{step} " + "x" * number
            if what in ("store", "late"):
                minute = step if what == "store" else number - 1000
                model[memory.store_episode(note(names[agent], minute, text))] = text
            elif what == "batch":
                batch = [note(names[agent], step - 7 * at, text) for at in range(number)]
                model |= dict.fromkeys(memory.store_episodes(batch), text)
            elif what == "update" and model:
                id_ = sorted(model)[number % len(model)]
                memory.update_episode(id_, content={"text": text})
                model[id_] = text
            elif what == "delete" and model:
                id_ = sorted(model)[number % len(model)]
                memory.delete_episode(id_)
                del model[id_]
            elif what == "clear" and number < 5:
                memory.clear()
                model.clear()
            self.compare(memories[number % 3], known[number % 3], 1 + number)
            assert tails.bytes <= bytes_max
            assert tails.bytes == sum(recounted_bytes(of) for of in tails._by_use)
        for memory, model in zip(memories, known, strict=True):
            self.compare(memory, model, 1000)

    @staticmethod
    def compare(memory: AgentMemory, model: dict[str, str], limit: int) -> None:
        told = {episode.id: episode.content["text"] for episode in memory.get_recent_episodes(limit)}
        newest = sorted(model, reverse=True)[:limit]
        assert list(told) == newest
        assert told == {id_: model[id_] for id_ in newest}
        for id_ in newest[:1]:
            one = memory.get_episode(id_)
            assert one is not None
            assert one.content["text"] == model[id_]

    def test_they_are_right_for_every_thread_that_has_just_written(self, open_here: OpenHere) -> None:
        store = open_here(recent_cache_bytes=3_000)
        begin = threading.Barrier(6)

        def work(agent: int) -> int:
            name = f"agent {agent}"
            memory, model, draw = store.agent_memory(name), dict[str, str](), random.Random(agent)
            begin.wait()
            for step in range(250):
                text = f"{step} " + "x" * draw.randrange(300)
                if model and draw.random() < 0.25:
                    id_ = draw.choice(sorted(model)[-5:])
                    memory.delete_episode(id_)
                    del model[id_]
                elif model and draw.random() < 0.25:
                    id_ = draw.choice(sorted(model)[-5:])
                    memory.update_episode(id_, content={"text": text})
                    model[id_] = text
                else:
                    model[memory.store_episode(note(name, draw.randrange(1000), text))] = text
                self.compare(memory, model, draw.choice([1, 2, 5, 20]))
            return len(model)

        with ThreadPoolExecutor(6) as pool:
            assert all(left > 20 for left in pool.map(work, range(6)))
        tails = store._context.tails
        assert tails.bytes == sum(recounted_bytes(of) for of in tails._by_use) <= 3_000
        assert cache_of(store)["hits"] > 0
        assert cache_of(store)["misses"] > 0

    def test_what_a_reader_has_seen_never_goes_away_again(self, open_here: OpenHere) -> None:
        store = open_here(recent_cache_bytes=2_000)
        memory, other = store.agent_memory("bot"), store.agent_memory("other")
        done = threading.Event()

        def write() -> None:
            for minute in range(600):
                memory.store_episode(note("bot", minute, "x" * 50))
                other.store_episode(note("other", minute, "x" * 200))
                other.get_recent_episodes(5)
            done.set()

        def read() -> list[datetime]:
            seen = []
            while not done.is_set():
                newest = memory.get_recent_episodes(3)
                assert [episode.event_time for episode in newest] == sorted(
                    (episode.event_time for episode in newest), reverse=True
                )
                seen += [episode.event_time for episode in newest[:1]]
            return seen

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            pool.submit(write).result()
            for reader in readers:
                assert reader.result() == sorted(reader.result())


class TestInterruptions:
    """Ctrl-C in the middle of a write: the write may or may not exist, but all verbs must agree on it."""

    @pytest.mark.parametrize("verb", ["store", "batch", "update", "delete"])
    @pytest.mark.parametrize(
        "place", ["before the write", "after the write", "before it is shown", "after it is shown"]
    )
    def test_all_verbs_agree_afterwards(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, verb: str, place: str
    ) -> None:
        memory = store.agent_memory("bot")
        ids = memory.store_episodes(note("bot", minute) for minute in range(5))
        memory.get_recent_episodes()
        with monkeypatch.context() as patch:
            if "write" in place:
                interrupt(patch, store._backend, "write", after=place.startswith("after"))
            else:
                for method in ("put", "remove"):
                    interrupt(patch, store._context.tails, method, after=place.startswith("after"))
            calls: dict[str, Callable[[], Any]] = {
                "store": lambda: memory.store_episode(note("bot", 9)),
                "batch": lambda: memory.store_episodes([note("bot", 9), note("bot", 8)]),
                "update": lambda: memory.update_episode(ids[4], content={"text": "changed"}),
                "delete": lambda: memory.delete_episode(ids[4]),
            }
            with pytest.raises(KeyboardInterrupt):
                calls[verb]()
        stored = list(memory.episodes(reverse=True))
        assert memory.get_recent_episodes() == stored
        assert [episode.content for episode in memory.get_recent_episodes()] == [episode.content for episode in stored]
        assert memory.get_statistics().total_episodes == len(stored)
        memory.store_episode(note("bot", 10))
        assert memory.get_recent_episodes()[1:] == stored
        assert store.verify().problems == []


def interrupt(patch: pytest.MonkeyPatch, of: object, method: str, *, after: bool) -> None:
    real = getattr(of, method)

    def interrupted(*args: Any) -> None:
        if after:
            real(*args)
        raise KeyboardInterrupt

    patch.setattr(of, method, interrupted)


def test_the_tails_of_one_store_do_not_know_each_other() -> None:
    tails, one, two = Tails(10_000), Tail(), Tail()
    tails.fill(one, [(b"2", b"two"), (b"1", b"one")], whole=True)
    tails.fill(two, [], whole=True)
    assert tails.newest(two, 5, None) == []
    assert tails.newest(one, 5, None) == [(b"2", b"two"), (b"1", b"one")]
    assert tails.newest(one, 5, b"2") == [(b"1", b"one")]
    tails.clear(one)
    assert tails.newest(one, 5, None) is None
    assert tails.newest(two, 5, None) == []
