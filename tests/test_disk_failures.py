"""Disks that are full or fail: typed errors, reads that go on, and a store that takes writes again by itself."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crash.shim import COMPILER, build, environment

from qilbee_core import (
    AgentMemory,
    Episode,
    LostWritesError,
    OutcomeUnknownError,
    StorageError,
    StorageFullError,
    Store,
    StoreClosedError,
    WriteBatch,
    open_store,
)

OpenHere = Callable[..., Store]

PATIENCE_S = 60.0

on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
levels = pytest.mark.parametrize("level", ["sync", "interval", "async"])


@pytest.fixture(scope="session")
def engine() -> str:
    return "rocksdb"


def note(number: object = 0, text: str = "", agent_id: str = "bot", **given: Any) -> Episode:
    return Episode(agent_id, "note", {"number": str(number), "text": text}, **given)


def await_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def ids_in(memory: AgentMemory) -> set[str]:
    """The ids of all its episodes, also where the store is opened again while they are read."""
    ids: list[str] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        with suppress(StoreClosedError):
            for episode in memory.episodes(after=ids[-1] if ids else None):
                ids.append(episode.id)  # noqa: PERF401 - what was read before it broke off counts
            break
    return set(ids)


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", directory], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"only root can mount a small disk: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


class TestAFullDisk:
    # Either the next table or the log finds no space.
    @pytest.mark.parametrize(("write_buffer_bytes", "turns"), [(1 << 20, 2), (64 << 20, 1)], ids=["table", "log"])
    @pytest.mark.parametrize("level", ["sync", "interval"])
    @on_disk
    def test_writes_are_refused_reads_go_on_and_writes_come_back_by_themselves(
        self, small_disk: Path, engine: str, level: str, write_buffer_bytes: int, turns: int
    ) -> None:
        ballast = small_disk / "ballast"
        settings = {"durability": level, "engine": {"write_buffer_bytes": write_buffer_bytes}}
        with open_store(small_disk / "store", backend=engine, **settings) as store:  # type: ignore[arg-type]
            ballast.write_bytes(bytes(26 << 20))
            memory = store.agent_memory("bot")
            kept: dict[str, Episode] = {}
            unknown: dict[str, Episode] = {}
            for turn in range(turns):
                refused, problems = fill(store, kept, unknown)
                assert "space" in " ".join(problems)
                for episode in list(kept.values())[:: max(1, len(kept) // 20)]:
                    assert memory.get_episode(episode.id) == episode
                assert ids_in(memory) >= kept.keys()
                assert memory.get_statistics().total_episodes >= len(kept)
                os.truncate(ballast, (12 - 12 * turn) << 20)
                assert stored_at_last(store, refused) == refused.id
                kept[refused.id] = refused
                await_until(lambda: store.health().ok)
                store.flush()
            assert store.verify().problems == []
        with open_store(small_disk / "store") as store:
            assert store.health().ok
            there = {episode.id for episode in store.agent_memory("bot").episodes()}
            assert kept.keys() <= there <= {*kept, *unknown}
            assert store.verify().problems == []

    def test_a_log_of_it_says_when_it_began_and_when_it_was_over(
        self, small_disk: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "qilbee_core")
        with open_store(small_disk / "store") as store:
            (small_disk / "ballast").write_bytes(bytes(28 << 20))
            fill(store, {}, {})
            (small_disk / "ballast").unlink()
            await_until(lambda: store.health().ok)
        told = [record.getMessage() for record in caplog.records if record.name != "qilbee_core.store"]
        assert any("a write or sync failed, the store is read-only: " in line for line in told)
        assert any("No space left" in line for line in told)
        assert any(line.startswith("writes are taken again, after ") for line in told)

    def test_little_space_is_logged_once_and_so_is_its_end(
        self, small_disk: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with open_store(small_disk / "store") as store:
            ballast = small_disk / "ballast"
            for is_low in (False, True, True, False, False, True):
                ballast.unlink(missing_ok=True)
                free = store.health().disk_free_bytes
                assert free is not None
                if is_low:
                    ballast.write_bytes(bytes(free - 500_000))
                assert store.health().ok, "writes still work"
            ballast.unlink()
        told = [record.getMessage() for record in caplog.records if "MB are left" in record.getMessage()]
        assert [line.endswith("again") for line in told] == [False, True, False, True, False]

    def test_at_sync_one_that_waited_does_not_know_and_the_next_are_told_that_the_disk_is_full(
        self, open_here: OpenHere
    ) -> None:
        store = open_here(sync_writes=True)
        backend: Any = store._backend
        full = True

        def unless_full(call: Callable[[], None]) -> Callable[[], None]:
            def called() -> None:
                if full:
                    raise StorageFullError("No space left on device")
                call()

            return called

        backend.sync, backend.reopen = unless_full(backend.sync), unless_full(backend.reopen)
        memory = store.agent_memory("bot")
        with pytest.raises(OutcomeUnknownError, match="retry with the same episode id"):
            memory.store_episode(note(1))
        for call in (lambda: memory.store_episode(note(2)), store.flush):
            with pytest.raises(StorageFullError, match="free some space"):
                call()
        full = False
        await_until(lambda: store.health().ok)
        memory.store_episode(note(2))


def fill(store: Store, kept: dict[str, Episode], unknown: dict[str, Episode]) -> tuple[Episode, list[str]]:
    """Store until the disk is full; gives the episode that was refused for it, and what was wrong then.

    A log that is opened anew takes less space, so a store that was refused a write may take a few more by itself.
    """
    memory = store.agent_memory("bot")
    for number in range(20_000):
        episode = note(number, os.urandom(1500).hex())
        try:
            kept[memory.store_episode(episode)] = episode
        except OutcomeUnknownError:
            unknown[episode.id] = episode
        except StorageFullError:
            unknown[episode.id] = episode
            if problems := store.health().problems:
                return episode, problems
    raise AssertionError("the disk never was full")


def stored_at_last(store: Store, episode: Episode) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return store.agent_memory("bot").store_episode(episode)
        except (StorageFullError, OutcomeUnknownError):
            assert time.monotonic() < deadline_s, "writes do not come back"
            time.sleep(0.02)


# --- a disk that fails


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("there is no C compiler for the shim that makes calls of the system fail")
    return build(tmp_path_factory.mktemp("shim"))


def run_on_failing_disk(shim: Path, tmp_path: Path, engine: str, level: str, script: str) -> list[str]:
    """The lines that ``script`` prints; its store is ``path``, whose disk it can make fail."""
    root = tmp_path / "failing"
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + textwrap.dedent(script), str(root / "store"), engine, level],
        env=environment(shim, root),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 4,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


_PRELUDE = """
import ctypes, errno, sys, threading, time
from qilbee_core import *
path, engine, level = sys.argv[1:]
shim = ctypes.CDLL(None)
WRITE, SYNC = 1, 2
def fail(kinds, at=1, sticky=True):
    shim.qilbee_shim_fail(kinds, ctypes.c_long(at), errno.EIO, int(sticky))
def mend():
    shim.qilbee_shim_fail(0, ctypes.c_long(1 << 60), 0, 0)
def until(condition):
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, store.health()
        time.sleep(0.005)
def note(number, agent_id="bot"):
    return Episode(agent_id, "note", {"number": number})
def outcome(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "done"
def stored(episode):
    while True:
        try:
            return store.agent_memory(episode.agent_id).store_episode(episode)
        except StorageError:
            time.sleep(0.01)
store = open_store(path, backend=engine, durability=level, wal_sync_interval_ms=50)
memory = store.agent_memory("bot")
kept = [note(number) for number in range(50)]
memory.store_episodes(kept)
store.flush()
"""


class TestADiskThatFails:
    @on_disk
    @levels
    @pytest.mark.parametrize("call", ["WRITE", "SYNC"])
    def test_the_store_opens_its_files_again_by_itself_and_the_retry_is_stored_once(
        self, shim: Path, tmp_path: Path, engine: str, level: str, call: str
    ) -> None:
        told = run_on_failing_disk(
            shim,
            tmp_path,
            engine,
            level,
            f"""
            view = memory.episodes()
            next(view)
            tried = [note(number) for number in range(100, 105)]
            fail({call})
            outcomes = [outcome(lambda: memory.store_episode(tried[0])), outcome(store.flush)]
            print(outcomes)
            mend()
            until(lambda: store.health().ok)
            print(store.health().revivals > 0)
            print(outcome(lambda: list(view)))
            for episode in tried:
                stored(episode)
            store.flush()
            expected = {{episode.id for episode in kept + tried}}
            print([episode.id for episode in memory.episodes()] == sorted(expected))
            print(memory.get_statistics().total_episodes == len(expected), store.verify().problems)
            store.close()
            store = open_store(path)
            print([episode.id for episode in store.agent_memory("bot").episodes()] == sorted(expected))
            print(store.verify().problems)
            """,
        )
        first = "OutcomeUnknownError" if call == "WRITE" or level == "sync" else "done"
        assert told[0] == str([first, "OutcomeUnknownError"])
        assert told[1:] == ["True", "StoreClosedError", "True", "True []", "True", "[]"]

    @on_disk
    @levels
    def test_while_the_disk_fails_reads_go_on_and_health_says_what_is_wrong(
        self, shim: Path, tmp_path: Path, engine: str, level: str
    ) -> None:
        told = run_on_failing_disk(
            shim,
            tmp_path,
            engine,
            level,
            """
            fail(WRITE | SYNC)
            tried = note(1000)
            print(outcome(lambda: memory.store_episode(tried)))
            until(lambda: store.health().revivals >= 3)
            print(store.health().problems)
            print([outcome(call) for call in (lambda: memory.store_episode(note(0)), memory.clear, store.flush)])
            view = memory.episodes()
            print(memory.get_episode(kept[7].id) == kept[7], len(list(view)) >= 50, len(memory.get_recent_episodes()))
            print(memory.get_statistics().total_episodes >= 50, store.agents(), store.verify().problems)
            mend()
            until(lambda: store.health().ok)
            print(store.health().problems, stored(tried) == tried.id, store.verify().problems)
            print(len(list(memory.episodes())))
            """,
        )
        assert told[0] == "OutcomeUnknownError"
        assert "Input/output error" in told[1]
        assert "store.health() is good" in told[1]
        assert told[2] == str(["OutcomeUnknownError"] * 3)
        assert told[3:] == ["True True 10", "True ['bot'] []", "[] True []", "51"]

    @on_disk
    def test_all_who_wait_are_told_and_reads_never_fail(self, shim: Path, tmp_path: Path, engine: str) -> None:
        told = run_on_failing_disk(
            shim,
            tmp_path,
            engine,
            "sync",
            """
            stop, wrong, reads = threading.Event(), [], 0
            def read():
                global reads
                while not stop.is_set():
                    try:
                        assert memory.get_episode(kept[3].id) == kept[3]
                        assert memory.get_episodes([e.id for e in kept] * 2) == kept * 2
                        memory.get_statistics()
                        reads += 1
                    except Exception as error:
                        wrong.append(repr(error))
            readers = [threading.Thread(target=read) for _ in range(2)]
            unknown, refused, acknowledged = [], [], []
            def write(number):
                turn = 0
                while not stop.is_set():
                    turn += 1
                    episode = note(1000 * number + turn, f"agent {number % 3}")
                    try:
                        store.agent_memory(episode.agent_id).store_episode(episode)
                    except StorageError:
                        unknown.append(episode)
                        stored(episode)
                    acknowledged.append(episode)
            writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
            for thread in readers + writers:
                thread.start()
            for turn in range(6):
                fail(SYNC if turn % 2 else WRITE)
                until(lambda: not store.health().ok)
                mend()
                until(lambda: store.health().ok)
            stop.set()
            for thread in readers + writers:
                thread.join()
            until(lambda: store.health().ok)
            print(wrong, reads > 0, len(unknown) > 0, store.health().revivals > 0)
            expected = sorted(episode.id for episode in acknowledged + kept)
            print([e.id for a in store.agents() for e in store.agent_memory(a).episodes()].__len__() == len(expected))
            print(store.verify().problems)
            store.close()
            store = open_store(path)
            print(sorted(e.id for a in store.agents() for e in store.agent_memory(a).episodes()) == expected)
            print(store.verify().problems)
            """,
        )
        assert told == ["[] True True True", "True", "[]", "True", "[]"]


class TestWhatIsUnknown:
    def test_it_stays_unknown_when_the_store_takes_writes_again(self, open_here: OpenHere) -> None:
        store = open_here(sync_writes=True)
        sync, is_broken = store._backend.sync, True

        def maybe() -> None:
            if is_broken:
                raise OutcomeUnknownError("cannot sync: Input/output error")
            sync()

        store._backend.sync = maybe  # type: ignore[method-assign]
        memory, durability = store.agent_memory("bot"), store._durability
        store._backend.write(WriteBatch([]))
        late = durability.wrote()  # a writer that has written, and has not yet come to wait
        with pytest.raises(OutcomeUnknownError):
            memory.store_episode(note(1))
        is_broken = False
        await_until(lambda: store.health().ok)
        for _ in range(2):
            with pytest.raises(OutcomeUnknownError, match="Input/output error"):
                durability.wait(late)
        after = memory.store_episode(note(2))
        assert memory.get_episode(after)
        durability.wait(durability.last_ticket)
        with pytest.raises(OutcomeUnknownError):
            durability.wait(late)

    def test_the_answer_to_a_retry_rests_on_what_is_there_now(self, open_here: OpenHere) -> None:
        store = open_here(sync_writes=True)
        sync, is_broken = store._backend.sync, True

        def maybe() -> None:
            if is_broken:
                raise OutcomeUnknownError("cannot sync: Input/output error")
            sync()

        store._backend.sync = maybe  # type: ignore[method-assign]
        memory, episode = store.agent_memory("bot"), note(1)
        with pytest.raises(OutcomeUnknownError):
            memory.store_episode(episode)
        is_broken = False
        await_until(lambda: store.health().ok)
        for _ in range(2):
            assert memory.store_episode(episode) == episode.id
        assert list(memory.episodes()) == [episode]
        assert store.verify().problems == []

    @on_disk
    def test_writes_that_were_durable_and_are_gone_after_it_are_never_passed_over(
        self, open_here: OpenHere, tmp_path: Path, engine: str
    ) -> None:
        open_here().close()
        files, older = tmp_path / "data" / engine / "db", tmp_path / "older"
        shutil.copytree(files, older)
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        memory.store_episodes(note(number) for number in range(100))
        backend: Any = store._backend
        open_files = backend._open

        def lose(*arguments: Any) -> None:
            shutil.rmtree(files)
            shutil.copytree(older, files)
            open_files(*arguments)

        backend._open = lose
        backend.sync = raising(OutcomeUnknownError("cannot sync: Input/output error"))
        with pytest.raises(OutcomeUnknownError):
            memory.store_episode(note())
        await_until(lambda: "operations are missing" in " ".join(store.health().problems))
        assert "qilbee recover" in store.health().problems[0]
        for call in (lambda: memory.store_episode(note()), store.flush):
            with pytest.raises(LostWritesError):
                call()
        revivals = store.health().revivals
        with suppress(StorageError):
            store.close()
        assert store.health().revivals == revivals, "there is no point in trying"


def raising(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call
