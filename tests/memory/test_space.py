"""Space comes back: what was deleted leaves the files by itself, and nobody waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import Episode, MemorySettings, Plan, SearchSettings, Settings, StorageError, Store, open_store
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import compaction

pytestmark = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"], scope="session")

EPISODES = 3000
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def a_low_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FREED_BYTES_MIN", 1 << 20)
    monkeypatch.setattr(compaction, "_QUIET_S", 0.4)


@pytest.fixture
def store(tmp_path: Path, engine: str) -> Iterator[Store]:
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
    with open_here(tmp_path, engine) as opened:
        yield opened


class ForgetAll:
    """A consolidation policy."""

    name = "test.all"

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return Plan(forget=[episode.id for episode in episodes])


def open_here(tmp_path: Path, engine: str, **memory: Any) -> Store:
    settings = Settings(memory=MemorySettings(**memory), search=SearchSettings(indexing="off"))
    return open_store(settings, data_path=tmp_path / "data", backend=engine, durability="async")


def fill(store: Store, agent_id: str, episodes: int = EPISODES) -> None:
    """A kilobyte each, which no codec makes shorter by more than half, of rising strength."""
    chance = random.Random(agent_id)
    store.agent_memory(agent_id).import_episodes(
        Episode(agent_id, "note", {"text": chance.randbytes(500).hex()}, relevance=(number + 1) / episodes)
        for number in range(episodes)
    )
    store.flush()


def disk_bytes(tmp_path: Path) -> int:
    size = 0
    for path in (tmp_path / "data").rglob("*"):
        with suppress(FileNotFoundError):  # the engine deletes in a thread of its own
            size += path.stat().st_size if path.is_file() else 0
    return size


def figures(store: Store) -> dict[str, Any]:
    told = store.stats()["compaction"]
    assert isinstance(told, dict)
    return told


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def is_compacted(store: Store) -> bool:
    return figures(store)["compactions"] > 0 and not figures(store)["running"]


@pytest.mark.parametrize("verb", ["clear", "forget", "max_episodes", "delete"])
def test_the_directory_shrinks_after_much_was_deleted(store: Store, tmp_path: Path, verb: str) -> None:
    fill(store, "a")
    fill(store, "b", 300)
    full = disk_bytes(tmp_path)
    memory = store.agent_memory("a")
    if verb == "clear":
        memory.clear()
    elif verb == "forget":
        assert memory.forget(0.9).episodes > 2600
    elif verb == "max_episodes":
        memory.forget(0, max_episodes=200)
    else:
        for episode in memory.recall(1000) + memory.recall(1000, memory_type="episodic"):
            memory.delete_episode(episode.id)
        for episode in memory.recall(1000):
            memory.delete_episode(episode.id)
    wait_until(lambda: is_compacted(store))
    wait_until(lambda: disk_bytes(tmp_path) < full * (0.65 if verb == "delete" else 0.4))
    told = figures(store)
    assert told["agents"] == told["compactions"]
    assert told["errors"] == 0
    assert told["last_compaction_ms"] > 0
    assert store.agent_memory("b").get_statistics().total_episodes == 300
    assert store.verify().problems == []


def test_it_does_so_after_a_purge_of_what_had_ended(store: Store, tmp_path: Path) -> None:
    fill(store, "a")
    memory = store.agent_memory("a")
    memory.consolidate(ForgetAll())
    wait_until(lambda: is_compacted(store) and store._compaction._thread is None)
    full, told = disk_bytes(tmp_path), figures(store)
    assert memory.purge(before=datetime.now(UTC) + timedelta(days=1)).episodes == EPISODES
    wait_until(lambda: is_compacted(store) and figures(store)["compactions"] > told["compactions"])
    wait_until(lambda: disk_bytes(tmp_path) < full * 0.4)
    assert store.verify().problems == []


def test_it_does_so_after_a_sweep(tmp_path: Path, engine: str) -> None:
    with open_here(tmp_path, engine) as store:
        fill(store, "a")
        fill(store, "b")
        full = disk_bytes(tmp_path)
    with open_here(
        tmp_path, engine, enable_auto_forgetting=True, forgetting_interval_s=0.05, max_episodes=100
    ) as store:
        wait_until(lambda: is_compacted(store) and figures(store)["agents"] >= 2)
        wait_until(lambda: disk_bytes(tmp_path) < full * 0.3)
        assert store.verify().problems == []


def test_many_agents_that_lost_a_little_each_are_compacted_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared = threading.Event()  # however long one of them takes, it is not quiet before the last
    monkeypatch.setattr(compaction.Compaction, "_wait_for_quiet", lambda self: cleared.wait(PATIENCE_S))
    for number in range(30):
        fill(store, f"agent {number}", 100)
    full = disk_bytes(tmp_path)
    for number in range(30):
        store.agent_memory(f"agent {number}").clear()
    cleared.set()
    wait_until(lambda: is_compacted(store))
    wait_until(lambda: disk_bytes(tmp_path) < full * 0.3)
    assert (figures(store)["agents"], figures(store)["compactions"]) == (30, 1)


def test_a_little_is_left_to_the_engine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "a", 2000)
    looked = threading.Event()
    due = compaction.Compaction._due

    def look(self: compaction.Compaction) -> list[str]:
        found = due(self)
        looked.set()
        return found

    monkeypatch.setattr(compaction.Compaction, "_due", look)
    store.agent_memory("a").forget(0, max_episodes=1500)  # half a megabyte
    assert not looked.is_set()
    fill(store, "b", 8000)
    store.agent_memory("b").forget(0, max_episodes=7000)  # one, beside seven that are left
    assert looked.wait(PATIENCE_S)
    wait_until(lambda: store._compaction._thread is None)  # on a busy machine it may look twice
    assert figures(store)["compactions"] == 0


def test_who_deletes_and_who_reads_does_not_wait_for_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    compact = store._backend.compact  # type: ignore[attr-defined]

    def compact_slowly(start: bytes = b"", stop: bytes | None = None) -> None:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        compact(start, stop)

    monkeypatch.setattr(store._backend, "compact", compact_slowly)
    fill(store, "a")
    memory = store.agent_memory("a")
    memory.forget(0.9)
    assert begun.wait(PATIENCE_S)
    assert figures(store)["running"]
    memory.store_episode(Episode("a", "note", {"text": "meanwhile"}))
    assert memory.get_recent_episodes(1)[0].content["text"] == "meanwhile"
    memory.clear()
    may_end.set()
    wait_until(lambda: is_compacted(store))


def test_a_close_does_not_wait_for_the_rest(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_here(tmp_path, engine)
    begun, closing, ranges = threading.Event(), store._compaction._closing, list[bytes]()
    compact = store._backend.compact  # type: ignore[attr-defined]

    def compact_until_closed(start: bytes = b"", stop: bytes | None = None) -> None:
        ranges.append(start)
        begun.set()
        assert closing.wait(PATIENCE_S)
        compact(start, stop)

    monkeypatch.setattr(store._backend, "compact", compact_until_closed)
    fill(store, "a")
    store.agent_memory("a").clear()
    assert begun.wait(PATIENCE_S)
    store.close()
    assert len(ranges) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "qilbee-compaction"]
    with open_here(tmp_path, engine) as again:
        assert again.verify().problems == []


def test_a_failure_is_counted_and_told_and_the_next_large_delete_tries_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compact = store._backend.compact  # type: ignore[attr-defined]

    def fail(start: bytes = b"", stop: bytes | None = None) -> None:
        raise StorageError("a compaction failed")

    monkeypatch.setattr(store._backend, "compact", fail)
    fill(store, "a")
    told = "the space of what was deleted does not come back yet: a compaction failed"
    with caplog.at_level(logging.WARNING):
        store.agent_memory("a").clear()
        wait_until(lambda: told in caplog.text)
    assert figures(store)["errors"] == 1
    monkeypatch.setattr(store._backend, "compact", compact)
    fill(store, "b")
    store.agent_memory("b").clear()
    wait_until(lambda: is_compacted(store))


def test_a_file_of_many_agents_that_holds_nothing_deleted_is_not_rewritten_for_each_of_them(
    store: Store, tmp_path: Path
) -> None:
    def tables() -> set[str]:
        return {path.name for suffix in ("sst", "ldb") for path in (tmp_path / "data").rglob(f"*.{suffix}")}

    names = [f"agent {number:02d}" for number in range(50)]
    for name in names:
        fill(store, name, 20)
    store.compact()
    before = tables()
    for name in names:
        store._backend.compact(*AgentKeys(name).range(Space.EPISODE))  # type: ignore[attr-defined]
    assert tables() == before
