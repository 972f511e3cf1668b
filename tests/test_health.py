"""What a store says about itself: whether writes work, why not, and what it logs when they do not."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import qilbee_core.marker
import qilbee_core.store
from qilbee_core import (
    AsyncStore,
    Episode,
    Health,
    StorageError,
    Store,
    StoreClosedError,
    WriteBatch,
    WriteStallError,
    open_store,
    patience,
)

OpenHere = Callable[..., Store]

PATIENCE_S = 60.0

on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])


@pytest.fixture(scope="session")
def engine() -> str:
    return "rocksdb"


def note(number: object = 0, agent_id: str = "bot", **given: Any) -> Episode:
    return Episode(agent_id, "note", {"number": str(number)}, **given)


def await_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


@contextmanager
def stalled(store: Store) -> Iterator[list[int]]:
    """RocksDB answers every write as it does while compaction has to catch up; gives the answers."""
    backend: Any = store._backend
    write, answers = backend._write_raw, []

    def stall(raw: object) -> None:
        answers.append(threading.get_ident())
        raise Exception("Result incomplete: Write stall")

    backend._write_raw = stall
    try:
        yield answers
    finally:
        backend._write_raw = write


class TestHealth:
    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb", "ephemeral"])
    @pytest.mark.parametrize("settings", [{}, {"sync_writes": True}, {"durability": "async"}, {"enable_wal": False}])
    def test_a_store_that_takes_writes_is_well(
        self, open_here: OpenHere, engine: str, settings: dict[str, Any]
    ) -> None:
        store = open_here(**settings)
        store.agent_memory("bot").store_episodes(note(number) for number in range(100))
        health = store.health()
        assert health.ok
        assert health.problems == []
        assert health.durability.level == store.durability().level
        assert health.revivals == 0
        assert (health.disk_free_bytes is None) == (engine == "ephemeral")

    def test_the_free_space_is_that_of_the_disk(self, open_here: OpenHere, tmp_path: Path) -> None:
        free = open_here().health().disk_free_bytes
        disk = os.statvfs(tmp_path)
        assert free is not None
        assert free == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.1)

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb", "ephemeral"])
    def test_a_closed_one_is_not(self, open_here: OpenHere) -> None:
        store = open_here()
        store.close()
        assert store.health().problems == ["the store is closed: open the store again in this process"]

    def test_nor_is_one_whose_writes_stall(self, open_here: OpenHere) -> None:
        store = open_here()
        backend: Any = store._backend
        real = backend.stats
        backend.stats = lambda: {**real(), "writes_stopped": True}
        assert "compaction has to catch up: wait and retry" in store.health().problems[0]
        backend.stats = real
        assert store.health().ok

    @pytest.mark.parametrize("settings", [{"sync_writes": True}, {"wal_sync_interval_ms": 10}])
    def test_nor_is_one_whose_syncs_lag(
        self, open_here: OpenHere, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qilbee_core.store, "_SYNC_MS_MAX", 20)
        store = open_here(**settings)
        sync, go_on = store._backend.sync, threading.Event()

        def slowly() -> None:
            go_on.wait(PATIENCE_S)
            sync()

        store._backend.sync = slowly  # type: ignore[method-assign]
        writer = threading.Thread(target=store.agent_memory("bot").store_episode, args=(note(),))
        writer.start()
        await_until(lambda: not store.health().ok)
        assert "syncs take too long" in store.health().problems[0]
        go_on.set()
        writer.join()
        await_until(lambda: store.health().ok)

    @pytest.mark.parametrize("settings", [{"durability": "async"}, {"enable_wal": False}])
    def test_where_nobody_syncs_nothing_lags(
        self, open_here: OpenHere, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qilbee_core.store, "_SYNC_MS_MAX", -1)
        store = open_here(**settings)
        store.agent_memory("bot").store_episode(note())
        assert store.durability().unsynced_age_ms > 0
        assert store.health().ok

    def test_asyncio_programs_are_told_the_same(self, open_here: OpenHere) -> None:
        async def ask() -> tuple[Health, Health]:
            store = AsyncStore(open_here())
            before = await store.health()
            await store.close()
            return before, await store.health()

        before, after = asyncio.run(ask())
        assert before.ok
        assert after.problems == ["the store is closed: open the store again in this process"]

    def test_one_damaged_place_does_not_stop_the_writes_to_others(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        memory.store_episode(note())
        write = store._backend.write

        def refuse_one(batch: WriteBatch) -> None:
            if len(batch.operations):
                store._backend.write = write  # type: ignore[method-assign]
                raise StorageError("this one alone")
            write(batch)

        store._backend.write = refuse_one  # type: ignore[method-assign]
        with pytest.raises(StorageError, match="this one alone"):
            memory.store_episode(note(1))
        assert store.health().ok
        memory.store_episode(note(2))


class TestStalls:
    def test_a_write_waits_holds_up_no_reader_and_is_there_in_the_end(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        known = memory.store_episode(note())
        with stalled(store) as answers:
            writer = threading.Thread(target=memory.store_episode, args=(note(1),))
            writer.start()
            await_until(lambda: len(answers) > 3)
            reads: list[Callable[[], object]] = [
                lambda: memory.get_episode(known),
                memory.get_recent_episodes,
                memory.get_statistics,
                lambda: list(memory.episodes()),
                store.agents,
                store.verify,
                store.health,
            ]
            for read in reads:
                thread = threading.Thread(target=read, daemon=True)
                thread.start()
                thread.join(PATIENCE_S)
                assert not thread.is_alive()
            assert writer.is_alive()
        writer.join(PATIENCE_S)
        assert memory.get_statistics().total_episodes == 2
        assert store.verify().problems == []

    def test_one_without_end_is_an_error_that_says_how_long_it_was(
        self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(patience, "_STALL_S_MAX", 0.5)
        monkeypatch.setattr(patience, "_STALL_S_TOLD", -1.0)  # at once: a busy machine sleeps past any moment
        store = open_here()
        memory = store.agent_memory("bot")
        episode = note()
        with stalled(store), pytest.raises(WriteStallError, match=r"compaction cannot keep up for \d+\.\d s: wait and"):
            memory.store_episode(episode)
        told = [record.getMessage() for record in caplog.records if record.name == "qilbee_core.patience"]
        began, ended = told
        assert began.startswith("writes wait: ")
        assert re.fullmatch(r"a write waited \d+\.\d s", ended)
        assert store.health().ok
        memory.store_episode(episode)
        assert list(memory.episodes()) == [episode]
        assert store.verify().problems == []

    def test_closing_the_store_ends_it(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        outcomes: list[type[Exception]] = []

        def write() -> None:
            try:
                memory.store_episode(note())
            except StorageError as error:
                outcomes.append(type(error))

        with stalled(store) as answers:
            writer = threading.Thread(target=write)
            writer.start()
            await_until(lambda: len(answers) > 1)
            store.close()
            writer.join(PATIENCE_S)
        assert outcomes == [StoreClosedError]

    def test_an_event_loop_goes_on_meanwhile(self, open_here: OpenHere) -> None:
        async def work() -> None:
            async with AsyncStore(open_here()) as store:
                memory = store.agent_memory("bot")
                known = await memory.store_episode(note())
                with stalled(store._store) as answers:
                    writers = [asyncio.create_task(memory.store_episode(note(number))) for number in range(8)]
                    turns = 0
                    while len(answers) < 40:
                        await asyncio.sleep(0)
                        assert await memory.get_episode(known)
                        turns += 1
                        assert turns < 10_000_000
                    assert turns > 1, "it stood still"  # each writer was answered in several turns of the loop
                    assert set(answers) == {threading.get_ident()}
                    assert not any(writer.done() for writer in writers)
                    assert (await memory.get_statistics()).total_episodes == 1
                await asyncio.wait_for(asyncio.gather(*writers), PATIENCE_S)
                assert (await memory.get_statistics()).total_episodes == 9
                assert (await store.verify()).problems == []

        asyncio.run(work())


class TestLogs:
    @pytest.mark.parametrize(("mode", "is_told"), [(0o700, False), (0o750, True), (0o755, True), (0o701, True)])
    def test_a_directory_that_others_may_look_into_is_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_told: bool
    ) -> None:
        open_store(tmp_path / "data").close()
        (tmp_path / "data").chmod(mode)
        caplog.clear()
        open_store(tmp_path / "data").close()
        told = [record for record in caplog.records if "chmod 700" in record.getMessage()]
        assert [(record.name, record.levelno) for record in told] == [("qilbee_core.marker", logging.WARNING)] * is_told
        assert all(f"{mode:o}" in record.getMessage() for record in told)

    def test_a_compaction_that_was_asked_for_is_told_with_its_time(
        self, open_here: OpenHere, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "qilbee_core")
        open_here().compact()
        assert any(record.getMessage().startswith("compacted ") for record in caplog.records)


class TestFileSystemsWithoutLinks:
    @pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
    def no_links(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, target: Path) -> None:
            raise OSError(request.param, "no links here")

        monkeypatch.setattr(Path, "hardlink_to", refuse)

    @pytest.mark.usefixtures("no_links")
    def test_a_store_is_made_there_too(self, tmp_path: Path) -> None:
        for _ in range(2):
            with open_store(tmp_path / "data", backend="ephemeral") as store:
                store.agent_memory("bot").store_episode(note())
        with open_store(tmp_path / "data2") as store:
            store.agent_memory("bot").store_episode(note())
        assert sorted(path.name for path in (tmp_path / "data2").iterdir()) == ["qilbee.json", "rocksdb"]

    @pytest.mark.usefixtures("no_links")
    def test_of_two_who_make_one_at_once_the_second_finds_what_the_first_has_said(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        first.write_text("first")
        second.write_text("second")
        qilbee_core.marker._rename_if_first(first, tmp_path / "marker")
        qilbee_core.marker._rename_if_first(second, tmp_path / "marker")
        assert (tmp_path / "marker").read_text() == "first"

    def test_another_error_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, target: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with pytest.raises(StorageError, match="Input/output error"):
            open_store(tmp_path / "data")
