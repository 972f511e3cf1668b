"""The head of an agent and its change log: the stored head may lag behind, and nobody can ever tell."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import (
    BackendOptions,
    ConflictError,
    Episode,
    InvalidError,
    Settings,
    StorageError,
    StorageFullError,
    Store,
    WriteBatch,
    load_plugins,
)
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.ids import parse_id
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import commit, resident
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import Change, ChangeKind, parse_change

OpenHere = Callable[..., Store]

AGENT = "bot"
KEYS = AgentKeys(AGENT)
SETTINGS = Settings().with_storage({"durability": "async"})
LAG_MAX = resident.STORES_AHEAD_MAX


@pytest.fixture(params=["rocksdb", "leveldb"], scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    """The engines whose one opener keeps the head in RAM."""
    name: str = request.param
    return name


@pytest.fixture
def crash(open_here: OpenHere, tmp_path: Path) -> Callable[[Store], Store]:
    """Open what a store would find again if its process died now: a copy of its files, never closed."""
    copies = 0

    def copy_and_open(store: Store) -> Store:
        nonlocal copies
        copies += 1
        source, copy = Path(store.settings.storage.data_path), tmp_path / f"copy {copies}"
        store.flush()
        while True:  # until the engine has let its files stand still meanwhile
            before = files_of(source)
            with suppress(shutil.Error):
                shutil.copytree(source, copy)
                if files_of(source) == before:
                    return open_here(copy.name)
            shutil.rmtree(copy)

    return copy_and_open


def files_of(directory: Path) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


@pytest.fixture
def short_log(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many entries are kept, so that little has to be written to see them go."""
    for module in (commit, resident):
        monkeypatch.setattr(module, "CHANGES_KEPT", 100)
    return resident.CHANGES_KEPT


def note(number: object = 0, **given: Any) -> Episode:
    return Episode(AGENT, "note", {"number": str(number)}, **given)


def stored_head(store: Store) -> Head:
    value = store._backend.get(KEYS.head)
    assert value is not None
    return Head.decode(KEYS.head, value)


def head_of(store: Store) -> Head:
    head = store._context.head(store._context.agent(AGENT))
    assert head is not None
    return head


def log_of(store: Store) -> dict[int, Change]:
    rows = store._backend.scan(*KEYS.range(Space.CHANGE))
    return {int.from_bytes(key[-8:], "big"): parse_change(key, value) for key, value in rows}


def known_of(store: Store) -> list[object]:
    memory = store.agent_memory(AGENT)
    statistics, head = memory.get_statistics(), head_of(store)
    return [
        [(episode, episode.transaction_time) for episode in memory.episodes()],
        memory.get_recent_episodes(1000),
        [memory.history(episode.id) for episode in memory.episodes()],
        (statistics.total_episodes, statistics.episodes_by_type, statistics.bytes),
        (head.generation, head.sequence, head.trimmed, head.transaction_us, head.newest_id, head.counts()),
    ]


def change_something(store: Store, draw: random.Random) -> None:
    memory = store.agent_memory(AGENT)
    known = [episode.id for episode in memory.get_recent_episodes(50)]
    choice = draw.randrange(12)
    if choice < 7 or not known:
        memory.store_episode(
            note(draw.random(), relevance=draw.random()),
            idempotency_key=draw.choice([None, "k"]) and str(draw.random()),
        )
    elif choice < 8:
        memory.store_episodes(note(draw.random(), memory_type="factual") for _ in range(draw.choice([2, 16, 17, 40])))
    elif choice < 10:
        memory.update_episode(draw.choice(known), metadata={"by": draw.random()})
    elif choice < 11 or draw.random() < 0.8:
        memory.delete_episode(draw.choice(known))
    else:
        memory.clear()


class TestLag:
    def test_the_stored_head_lags_behind_by_stores_and_not_by_more_than_allowed(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory(AGENT)
        lags = []
        for number in range(3 * LAG_MAX):
            memory.store_episode(note(number))
            lags.append(head_of(store).sequence - stored_head(store).sequence)
        assert 10 < max(lags) < LAG_MAX

    @pytest.mark.parametrize("kind", ["update", "delete", "batch"])
    def test_any_other_write_stores_the_head(self, store: Store, kind: str) -> None:
        memory = store.agent_memory(AGENT)
        for number in range(5):
            id_ = memory.store_episode(note(number))
        assert stored_head(store).sequence < head_of(store).sequence
        if kind == "update":
            memory.update_episode(id_, content={})
        elif kind == "delete":
            memory.delete_episode(id_)
        else:
            memory.store_episodes(note(number) for number in range(2))
        assert stored_head(store).encode(b"") == head_of(store).encode(b"")

    def test_it_does_not_grow_while_handles_come_and_go(self, open_here: OpenHere, short_log: int) -> None:
        store = open_here()
        for number in range(2 * short_log + 100):
            store.agent_memory(AGENT).store_episode(note(number))
            for agent in store._context.agents_in_use():
                store._context.forget(agent)  # as if others had been used meanwhile
            if number % 20 == 0:
                assert head_of(store).sequence - stored_head(store).sequence < LAG_MAX
        assert store.agent_memory(AGENT).get_statistics().total_episodes == 2 * short_log + 100
        assert store.verify().problems == []

    def test_it_does_not_grow_over_crashes(self, open_here: OpenHere, crash: Callable[[Store], Store]) -> None:
        store = open_here()
        for generation in range(6):
            for number in range(LAG_MAX // 2):
                store.agent_memory(AGENT).store_episode(note(f"{generation} {number}"))
                assert head_of(store).sequence - stored_head(store).sequence < LAG_MAX
            store = crash(store)
        assert store.agent_memory(AGENT).get_statistics().total_episodes == 6 * (LAG_MAX // 2)
        assert store.verify().problems == []


class TestCrashes:
    @pytest.mark.parametrize("stores", [1, 2, LAG_MAX - 1, LAG_MAX, LAG_MAX + 1, 2 * LAG_MAX + 10])
    def test_everything_is_as_it_was_after_so_many_stores(
        self, open_here: OpenHere, crash: Callable[[Store], Store], stores: int
    ) -> None:
        store = open_here()
        for number in range(stores):
            store.agent_memory(AGENT).store_episode(note(number))
        found = crash(store)
        assert known_of(found) == known_of(store)
        assert found.verify().problems == []
        for each in (store, found):
            each.agent_memory(AGENT).store_episode(note("after"))
            assert each.agent_memory(AGENT).get_statistics().total_episodes == stores + 1
            assert each.verify().problems == []

    @pytest.mark.parametrize("seed", range(2))
    def test_everything_is_as_it_was_after_any_writes(
        self, open_here: OpenHere, crash: Callable[[Store], Store], seed: int
    ) -> None:
        store, draw = open_here(), random.Random(seed)
        for _ in range(4):
            for _ in range(draw.randrange(1, 40)):
                change_something(store, draw)
            store.agent_memory(AGENT).store_episode(note("last"))
            found = crash(store)
            assert known_of(found) == known_of(store)
            assert found.verify().problems == []
            store = found

    def test_a_log_that_was_trimmed_is_enough(
        self, open_here: OpenHere, crash: Callable[[Store], Store], short_log: int
    ) -> None:
        store = open_here()
        for number in range(2 * short_log + 30):
            store.agent_memory(AGENT).store_episode(note(number))
        found = crash(store)
        assert known_of(found) == known_of(store)
        assert found.verify().problems == []

    def test_a_clean_close_leaves_the_head_whole_and_no_log(self, open_here: OpenHere) -> None:
        store = open_here()
        for number in range(30):
            store.agent_memory(AGENT).store_episode(note(number))
        before = head_of(store)
        store.close()
        store = open_here()
        assert stored_head(store).counts() == before.counts()
        assert stored_head(store).sequence == stored_head(store).trimmed == before.sequence
        assert log_of(store) == {}
        store.agent_memory(AGENT).store_episode(note("after"))
        assert list(log_of(store)) == [before.sequence + 1]
        assert store.verify().problems == []


class TestLog:
    def test_each_write_has_one_entry_of_what_it_did(self, store: Store) -> None:
        memory = store.agent_memory(AGENT)
        one = memory.store_episode(note(1))
        many = memory.store_episodes([note(2), note(3)])
        memory.update_episode(one, metadata={"m": 1})
        memory.delete_episode(many[0])
        log = log_of(store)
        assert list(log) == [1, 2, 3, 4]
        assert [(change.kind, change.ids) for change in log.values()] == [
            (ChangeKind.STORE, [parse_id(one)]),
            (ChangeKind.STORE, [parse_id(id_) for id_ in many]),
            (ChangeKind.UPDATE, [parse_id(one)]),
            (ChangeKind.DELETE, [parse_id(many[0])]),
        ]
        times = [change.transaction_us for change in log.values()]
        assert times == sorted(set(times))

    def test_what_changes_nothing_has_none(self, store: Store) -> None:
        memory = store.agent_memory(AGENT)
        episode = note()
        id_ = memory.store_episode(episode, idempotency_key="k")
        before = list(store._backend.scan())
        memory.store_episode(episode)
        memory.store_episode(note(), idempotency_key="k")
        memory.store_episodes([])
        memory.update_episode(id_)
        memory.update_episode(id_, content={"number": "0"})
        memory.delete_episode(note().id)
        with pytest.raises(ConflictError):
            memory.store_episode(note("other", id=id_))
        with pytest.raises(InvalidError):
            memory.store_episodes([note(), note(float("nan")), note(relevance=2)])
        memory.get_statistics()
        assert list(store._backend.scan()) == before

    def test_it_has_no_gaps_and_is_trimmed(self, store: Store, short_log: int) -> None:
        memory = store.agent_memory(AGENT)
        for number in range(2 * short_log + 10):
            memory.store_episode(note(number))
        sequence, trimmed = head_of(store).sequence, head_of(store).trimmed
        assert sequence == 2 * short_log + 10
        assert short_log <= sequence - trimmed < 2 * short_log
        assert list(log_of(store)) == list(range(trimmed + 1, sequence + 1))

    def test_a_trim_is_told_in_the_stored_head_at_once(self, store: Store, short_log: int) -> None:
        memory = store.agent_memory(AGENT)
        for number in range(2 * short_log + 30):
            memory.store_episode(note(number))
            assert stored_head(store).trimmed == head_of(store).trimmed == min(log_of(store)) - 1
        assert head_of(store).trimmed == short_log
        assert store.verify().problems == []

    def test_it_holds_no_text(self, store: Store) -> None:
        memory = store.agent_memory(AGENT)
        ids = memory.store_episodes(
            Episode(AGENT, "canary-type", {"text": f"canary {number}"}, metadata={"m": "canary"}) for number in range(3)
        )
        memory.store_episode(note("canary"), idempotency_key="canary")
        memory.update_episode(ids[0], content={"text": "canary"})
        memory.delete_episode(ids[1])
        rows = list(store._backend.scan(*KEYS.range(Space.CHANGE)))
        assert len(rows) == 4
        assert [row for row in rows if b"canary" in row[0] + row[1]] == []
        assert [len(value) for _, value in rows] == [9 + 16 * ids + 4 for ids in (3, 1, 1, 1)]

    def test_it_ends_with_a_clear_and_another_generation_begins_another(self, store: Store) -> None:
        memory = store.agent_memory(AGENT)
        memory.store_episodes([note(1), note(2)])
        generation = head_of(store).generation
        memory.clear()
        assert log_of(store) == {}
        memory.store_episode(note(3))
        assert list(log_of(store)) == [1]
        assert head_of(store).generation != generation


class TestFailures:
    @pytest.mark.parametrize("verb", ["store", "update", "delete", "clear"])
    @pytest.mark.parametrize("written", [False, True])
    def test_after_a_write_that_failed_the_head_is_read_anew(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, verb: str, written: bool
    ) -> None:
        memory = store.agent_memory(AGENT)
        for number in range(5):
            id_ = memory.store_episode(note(number))
        calls: dict[str, Callable[[], object]] = {
            "store": lambda: memory.store_episode(note("new")),
            "update": lambda: memory.update_episode(id_, content={"number": "new"}),
            "delete": lambda: memory.delete_episode(id_),
            "clear": memory.clear,
        }
        before, write = known_of(store), store._backend.write

        def fail(batch: WriteBatch) -> None:
            if written:
                write(batch)
            raise StorageError("the disk does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(store._backend, "write", fail)
            with pytest.raises(StorageError, match="does not answer"):
                calls[verb]()
        deadline_s = time.monotonic() + 60
        while not store.health().ok and time.monotonic() < deadline_s:
            time.sleep(0.02)  # the engine is opened anew
        if not written:
            assert known_of(store) == before
        assert memory.get_recent_episodes() == list(memory.episodes(reverse=True))
        for number in range(3):
            memory.store_episode(note(f"after {number}"))
        log = list(log_of(store))
        assert log == list(range(log[0], log[0] + len(log)))
        assert store.verify().problems == []

    @pytest.mark.parametrize("writes", [0, 1, 200])
    def test_a_log_that_could_not_be_dropped_is_still_there(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, writes: int
    ) -> None:
        memory = store.agent_memory(AGENT)
        for number in range(5):
            memory.store_episode(note(number))

        def fail(batch: WriteBatch) -> None:
            raise StorageFullError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(store._backend, "write", fail)
            with pytest.raises(StorageFullError):
                store.compact()
        for number in range(writes):
            memory.store_episode(note(f"after {number}"))
        assert store.verify().problems == []
        log = log_of(store)
        assert list(log) == list(range(1, 6 + writes))


class TestWritersOfOneSharedEngine:
    """Two stores on one engine, as two processes would have it: what one stores, the other must not undo."""

    def test_they_do_not_lose_each_others_writes(self) -> None:
        backend = EphemeralBackend(BackendOptions(path=Path("unused")))
        stores = [Store(backend, SETTINGS, load_plugins()) for _ in range(2)]
        memories = [store.agent_memory(AGENT) for store in stores for _ in range(2)]
        shared = note("shared")

        def write(writer: int) -> list[str]:
            draw, memory = random.Random(writer), memories[writer]
            kept = [memory.store_episode(shared)]
            for number in range(40):
                id_ = memory.store_episode(note(f"{writer} {number}", relevance=draw.random()))
                if draw.random() < 0.3:
                    memory.update_episode(id_, metadata={"n": number})
                if draw.random() < 0.3:
                    memory.delete_episode(id_)
                else:
                    kept.append(id_)
            return kept

        with ThreadPoolExecutor(4) as pool:
            kept = {id_ for ids in pool.map(write, range(4)) for id_ in ids}
        for store in stores:
            memory = store.agent_memory(AGENT)
            assert {episode.id for episode in memory.episodes()} == kept
            assert {episode.id for episode in memory.get_recent_episodes(1000)} == kept
            assert memory.get_statistics().total_episodes == len(kept)
            assert store.verify().problems == []
        log = log_of(stores[0])
        assert list(log) == list(range(1, head_of(stores[1]).sequence + 1))
        times = [change.transaction_us for change in log.values()]
        assert times == sorted(set(times))
        backend.close()

    def test_they_see_each_others_clears_and_updates_at_once(self) -> None:
        backend = EphemeralBackend(BackendOptions(path=Path("unused")))
        one, two = (Store(backend, SETTINGS, load_plugins()).agent_memory(AGENT) for _ in range(2))
        id_ = one.store_episode(note(1))
        assert two.get_recent_episodes()[0].id == id_
        two.update_episode(id_, content={"number": "2"})
        assert [episode.content for episode in one.get_recent_episodes()] == [{"number": "2"}]
        one.clear()
        assert two.get_recent_episodes() == []
        assert two.get_episode(id_) is None
        assert two.store_episode(note(3))
        assert one.get_statistics().total_episodes == 1
        backend.close()
