"""Opening a store to read only: beside another process, with nothing changed on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import (
    AgentMemory,
    CorruptRecordError,
    Episode,
    InvalidError,
    LostWritesError,
    NotFoundError,
    ReadOnlyError,
    Store,
    StoreClosedError,
    aopen_store,
    open_store,
)

PATIENCE_S = 180.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def note(number: int | str = 0, agent_id: str = "bot", **given: Any) -> Episode:
    return Episode(agent_id, "note", {"number": number}, **given)


def run_script(code: str, *arguments: object) -> str:
    """What a program prints that begins with ``from qilbee_core import *``; it must end well."""
    script = "import os, signal, sys, time\nfrom qilbee_core import *\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time of its last change; every directory with its own time."""
    return {
        str(each.relative_to(path)): (each.read_bytes() if each.is_file() else b"", each.stat().st_mtime_ns)
        for each in [path, *path.rglob("*")]
    }


READS: dict[str, Callable[[Store, AgentMemory, str], object]] = {
    "get": lambda store, memory, id_: memory.get_episode(id_),
    "recent": lambda store, memory, id_: memory.get_recent_episodes(5),
    "all": lambda store, memory, id_: list(memory.episodes()),
    "statistics": lambda store, memory, id_: memory.get_statistics().total_episodes,
    "history": lambda store, memory, id_: len(memory.history(id_)),
    "agents": lambda store, memory, id_: store.agents(),
    "verify": lambda store, memory, id_: store.verify(),
}

WRITES: dict[str, Callable[[Store, AgentMemory, str], object]] = {
    "store": lambda store, memory, id_: memory.store_episode(note()),
    "store many": lambda store, memory, id_: memory.store_episodes([note()]),
    "store for a new agent": lambda store, memory, id_: store.agent_memory("new").store_episode(note(agent_id="new")),
    "with a key": lambda store, memory, id_: memory.store_episode(note(), idempotency_key="k"),
    "import": lambda store, memory, id_: memory.import_episodes([note()]),
    "update": lambda store, memory, id_: memory.update_episode(id_, content={}),
    "delete": lambda store, memory, id_: memory.delete_episode(id_),
    "delete and erase": lambda store, memory, id_: memory.delete_episode(id_, erase=True),
    "clear": lambda store, memory, id_: memory.clear(),
    "flush": lambda store, memory, id_: store.flush(),
    "compact": lambda store, memory, id_: store.compact(),
    "repair": lambda store, memory, id_: store.repair(),
    "invalidate": lambda store, memory, id_: memory.invalidate(id_),
    "purge": lambda store, memory, id_: memory.purge(note().event_time),
    "boost": lambda store, memory, id_: memory.boost(id_),
    "pin": lambda store, memory, id_: memory.pin(id_),
    "forget": lambda store, memory, id_: memory.forget(0),
    "consolidate": lambda store, memory, id_: memory.consolidate(),
    "copy": lambda store, memory, id_: store.checkpoint(Path(store.settings.storage.data_path).with_name("copy")),
}


class TestWhatItShows:
    def test_all_that_was_written_also_what_is_in_the_log_alone(self, path: Path) -> None:
        with open_store(path) as writer:
            memory = writer.agent_memory("bot")
            memory.store_episodes(note(number) for number in range(50))
            writer.compact()
            ids = memory.store_episodes(note(number) for number in range(150))
            memory.update_episode(ids[0], metadata={"updated": True})
            expected = {name: read(writer, memory, ids[0]) for name, read in READS.items()}
            with open_store(path, read_only=True) as reader:
                shown = reader.agent_memory("bot")
                assert {name: read(reader, shown, ids[0]) for name, read in READS.items()} == expected

    def test_the_moment_of_its_opening_whatever_the_writer_does_meanwhile(self, path: Path) -> None:
        with open_store(path, engine={"write_buffer_bytes": 1 << 16}) as writer:
            memory = writer.agent_memory("bot")
            ids = memory.store_episodes(note("x" * 500) for _ in range(500))
            writer.compact()
            with open_store(path, read_only=True) as reader:
                memory.clear(erase=True)  # which deletes every file that the reader shows
                memory.store_episodes(note("y" * 500) for _ in range(500))
                writer.compact()
                assert [episode.id for episode in reader.agent_memory("bot").episodes()] == ids
                assert reader.agent_memory("bot").get_statistics().total_episodes == 500
                assert reader.verify().problems == []
            with open_store(path, read_only=True) as later:
                assert later.agent_memory("bot").get_episode(ids[0]) is None

    def test_a_beginning_of_the_writes_at_whatever_moment_it_is_opened(self, path: Path) -> None:
        script = """
            import sys, time
            from qilbee_core import Episode, open_store
            store = open_store(sys.argv[1], engine={"write_buffer_bytes": 1 << 16})
            memory = store.agent_memory("bot")
            for number in range(100_000):
                memory.store_episode(Episode("bot", "note", {"number": number, "text": "x" * 200}))
                time.sleep(0.0005)  # or there are too many to verify
                if number == 10:
                    print("begun", flush=True)
        """
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), path], stdout=subprocess.PIPE)
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begun\n"
            seen = [0]
            deadline_s = time.monotonic() + PATIENCE_S
            while len(seen) < 16 or seen[-1] == seen[1]:
                assert time.monotonic() < deadline_s, "nothing is written meanwhile, so this proves little"
                with open_store(path, read_only=True) as reader:
                    numbers = [episode.content["number"] for episode in reader.agent_memory("bot").episodes()]
                    assert numbers == list(range(len(numbers)))
                    assert reader.verify().problems == []
                    seen.append(len(numbers))
            writer.kill()
        assert seen == sorted(seen)

    def test_what_a_killed_writer_left(self, path: Path) -> None:
        run_script(
            """
            store = open_store(sys.argv[1])
            for number in range(100):
                store.agent_memory("bot").store_episode(Episode("bot", "note", {"number": number}))
            os._exit(0)
            """,
            path,
        )
        before = contents(path)
        with open_store(path, read_only=True) as reader:
            assert len(list(reader.agent_memory("bot").episodes())) == 100
        assert contents(path) == before

    def test_whatever_serializer_and_codec_it_is_opened_with(self, path: Path) -> None:
        with open_store(path, serializer="json", compression_type="zstd", compression_scope="value") as writer:
            id_ = writer.agent_memory("bot").store_episode(note("x" * 500))
        before = contents(path)
        for given in ({}, {"compression_type": "snappy", "compression_scope": "value"}, {"durability": "none"}):
            with open_store(path, read_only=True, **given) as reader:  # type: ignore[arg-type]
                assert reader.agent_memory("bot").get_episode(id_)
        assert contents(path) == before


class TestWhatItChanges:
    @pytest.mark.parametrize("is_open", [False, True], ids=["nobody has it", "another has it"])
    def test_nothing_on_disk(self, path: Path, is_open: bool) -> None:
        writer = open_store(path, durability="async")
        id_ = writer.agent_memory("bot").store_episode(note())
        if not is_open:
            writer.close()
        before = contents(path)
        with open_store(path, read_only=True) as reader:
            memory = reader.agent_memory("bot")
            for name, write in WRITES.items():
                with pytest.raises(ReadOnlyError, match="open it without read_only"):
                    pytest.fail(f"{name} gave {write(reader, memory, id_)!r}")
            for read in READS.values():
                read(reader, memory, id_)
            reader.stats()
            assert reader.health().problems == [f"{path} was opened with read_only=True: open it without read_only"]
        assert contents(path) == before
        writer.close()

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
    def test_it_needs_no_right_to_write(self, path: Path) -> None:
        for each in path.parents:
            if each.owner() == "root" and each != Path("/"):
                each.chmod(each.stat().st_mode | 0o005)
        told = run_script(
            """
            from pathlib import Path
            path = Path(sys.argv[1])
            with open_store(path) as store:
                store.agent_memory("bot").store_episode(Episode("bot", "note", {}))
            for each in [path, *path.rglob("*")]:
                each.chmod(0o755 if each.is_dir() else 0o644)
            os.setegid(65534)
            os.seteuid(65534)
            try:
                open_store(path)
            except StorageError as error:
                print("for writing:", type(error).__name__)
            with open_store(path, read_only=True) as store:
                print(store.agent_memory("bot").get_statistics().total_episodes)
            """,
            path,
        )
        assert told.splitlines() == ["for writing: StorageError", "1"]

    def test_nothing_elsewhere_either(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_store(path) as writer:
            writer.agent_memory("bot").store_episode(note())
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        before = len(os.listdir("/proc/self/fd"))
        with open_store(path, read_only=True) as reader:
            assert os.listdir(tmp_path / "tmp") == []
            reader.agents()
        assert len(os.listdir("/proc/self/fd")) == before


class TestWhatItMinds:
    def test_no_lock_of_others_and_nobody_minds_it(self, path: Path) -> None:
        with open_store(path) as writer:
            id_ = writer.agent_memory("bot").store_episode(note())
        with open_store(path, read_only=True) as first, open_store(path, read_only=True) as second:
            with open_store(path) as writer:
                writer.agent_memory("bot").store_episode(note(1))
                told = run_script(
                    """
                    with open_store(sys.argv[1], read_only=True) as store:
                        print(store.agent_memory("bot").get_statistics().total_episodes)
                    """,
                    path,
                )
                assert told == "2\n"
            assert first.agent_memory("bot").get_episode(id_) == second.agent_memory("bot").get_episode(id_)

    @pytest.mark.parametrize("there", ["nothing", "an empty directory", "another's files", "a marker alone"])
    def test_where_there_is_no_store_it_makes_none(self, path: Path, there: str) -> None:
        if there != "nothing":
            path.mkdir()
        if there == "another's files":
            (path / "letter").write_text("dear")
        if there == "a marker alone":
            open_store(path).close()
            shutil.rmtree(path / "rocksdb")
        before = contents(path) if path.exists() else None
        with pytest.raises(NotFoundError):
            open_store(path, read_only=True)
        assert (contents(path) if path.exists() else None) == before

    @pytest.mark.parametrize("engine", ["leveldb", "ephemeral"])
    def test_an_engine_that_cannot_says_what_to_do(self, path: Path, engine: str) -> None:
        open_store(path, backend=engine).close()
        before = contents(path) if path.exists() else None
        with pytest.raises(InvalidError, match=f"the {engine} backend cannot .*read_only.*open the copy"):
            open_store(path, backend=engine, read_only=True)
        assert (contents(path) if path.exists() else None) == before

    def test_what_contradicts_it_is_refused(self, path: Path) -> None:
        open_store(path).close()
        with pytest.raises(InvalidError, match="read_only"):
            open_store(path, read_only=True, recover="tail")
        with pytest.raises(InvalidError, match="give True or False"):
            open_store(path, read_only="yes")  # type: ignore[arg-type]

    def test_damage_is_told_as_ever(self, path: Path) -> None:
        with open_store(path) as writer:
            writer.agent_memory("bot").store_episodes(note(number) for number in range(100))
        (table,) = (path / "rocksdb" / "db").glob("*.sst")
        table.write_bytes(table.read_bytes()[: 1 << 10])
        with pytest.raises(CorruptRecordError):
            open_store(path, read_only=True).verify()

    def test_lost_writes_are_told_as_ever(self, path: Path) -> None:
        run_script(
            """
            store = open_store(sys.argv[1])
            store.agent_memory("bot").store_episodes(Episode("bot", "note", {"n": n}) for n in range(100))
            store.flush()
            deadline_s = time.monotonic() + 60
            while not (mark := next(store._backend._path.glob("qilbee.watermark"), None)) or (
                store._durability._watermark._saved is not store._durability._watermark._mark
            ):
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            os._exit(0)
            """,
            path,
        )
        for log in (path / "rocksdb" / "db").glob("*.log"):
            log.write_bytes(b"")
        before = contents(path)
        with pytest.raises(LostWritesError):
            open_store(path, read_only=True)
        assert contents(path) == before

    def test_a_forked_child_is_told_at_once(self, path: Path) -> None:
        with open_store(path) as writer:
            writer.agent_memory("bot").store_episode(note())
        told = run_script(
            """
            store = open_store(sys.argv[1], read_only=True)
            view = store.agent_memory("bot").episodes()
            for verb in (store.agents, store.verify, lambda: next(view), store.close):
                if (pid := os.fork()) == 0:
                    signal.alarm(60)
                    try:
                        verb()
                    except StoreClosedError:
                        os._exit(7)
                    os._exit(0)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(store.agents())
            store.close()
            """,
            path,
        )
        assert told.splitlines() == ["7", "7", "7", "0", "['bot']"]

    def test_closed_it_says_so(self, path: Path) -> None:
        open_store(path).close()
        reader = open_store(path, read_only=True)
        view = reader.agent_memory("bot").episodes()
        reader.close()
        reader.close()
        for call in (reader.agents, reader.verify, lambda: next(view)):
            with pytest.raises(StoreClosedError):
                call()


async def _counted(path: Path) -> int:
    async with await aopen_store(path, read_only=True) as store:
        memory = store.agent_memory("bot")
        with pytest.raises(ReadOnlyError):
            await memory.store_episode(note())
        return (await memory.get_statistics()).total_episodes


def test_asyncio_programs_have_it_too(path: Path) -> None:
    import asyncio

    with open_store(path) as writer:
        writer.agent_memory("bot").store_episode(note())
        assert asyncio.run(_counted(path)) == 1
