"""Opening, sharing, forking and closing a store."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

import qilbee_core.marker
from qilbee_core import (
    BackendOptions,
    DataError,
    Delete,
    Episode,
    FormatVersionError,
    InvalidError,
    OutcomeUnknownError,
    ProviderNotFoundError,
    QilbeeError,
    Settings,
    SettingsError,
    StorageError,
    StorageFullError,
    StorageSettings,
    Store,
    StoreClosedError,
    StoreLockedError,
    WriteBatch,
    load_plugins,
    open_store,
)
from qilbee_core.catalog import LAYOUT_VERSION
from qilbee_core.keys import catalog_key
from qilbee_core.watermark import WATERMARK_NAME, Watermark

OpenHere = Callable[..., Store]

PATIENCE_S = 180.0

on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])


@pytest.fixture(scope="session")
def engine() -> str:
    """What stands before the engines is tried on one; the rest says ``on_disk``."""
    return "rocksdb"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where there is no store yet."""
    return tmp_path / "data"


def note(number: object = 0, agent_id: str = "bot") -> Episode:
    return Episode(agent_id, "note", {"number": str(number)})


def store_some(store: Store, count: int = 3, agent_id: str = "bot") -> list[str]:
    return store.agent_memory(agent_id).store_episodes(note(number, agent_id) for number in range(count))


def found_in(store: Store, agent_id: str = "bot") -> list[str]:
    return [episode.id for episode in store.agent_memory(agent_id).episodes()]


def listing(directory: Path) -> dict[str, bytes | None]:
    return {
        str(found.relative_to(directory)): found.read_bytes() if found.is_file() else None
        for found in directory.rglob("*")
    }


def run_script(code: str, *arguments: object) -> str:
    """What a program prints that begins with ``from qilbee_core import *``; it must end well."""
    script = "import os, signal, sys, threading, time\nfrom qilbee_core import *\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("QILBEE_")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestTargets:
    @pytest.mark.parametrize("form", [str, Path], ids=["text", "pathlib"])
    def test_a_store_is_named_by_its_directory(self, path: Path, form: Callable[[Path], Any]) -> None:
        with open_store(form(path)) as store:
            ids = store_some(store)
            assert store.settings.storage.data_path == str(path)
        with open_store(form(path)) as store:
            assert found_in(store) == ids

    def test_by_settings(self, path: Path) -> None:
        settings = Settings(storage=StorageSettings(data_path=str(path), sync_writes=True))
        with open_store(settings) as store:
            assert store.settings == settings
            assert store.durability().level == "sync"
        with open_store(settings, sync_writes=False) as store:
            assert store.durability().level == "interval"
        assert settings.storage.sync_writes

    def test_by_keywords_alone(self, path: Path) -> None:
        with open_store(data_path=path, backend="leveldb", compression_type="none") as store:
            assert store.stats()["backend"] == "leveldb"
        assert path.is_dir()

    def test_by_the_environment(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QILBEE_STORAGE_DATA_PATH", str(path))
        monkeypatch.setenv("QILBEE_STORAGE_SYNC_WRITES", "true")
        with open_store() as store:
            assert store.durability().level == "sync"
        with open_store(sync_writes=False) as store:
            assert store.durability().level == "interval"
        assert path.is_dir()

    def test_a_relative_path_is_of_the_working_directory(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(path.parent)
        open_store("data").close()
        assert (path / "qilbee.json").exists()

    @on_disk
    def test_a_relative_path_holds_wherever_the_program_goes(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
    ) -> None:
        elsewhere = path.parent / "elsewhere"
        open_store(elsewhere / "data", backend=engine).close()  # another store that is as far from there
        note = elsewhere / "data" / engine / WATERMARK_NAME
        noted = note.read_bytes()
        monkeypatch.chdir(path.parent)
        with open_store("data", backend=engine) as store:
            monkeypatch.chdir(elsewhere)
            store_some(store)
            store.flush()
            assert store.directory == path
            assert store.health().disk_free_bytes
            if engine == "rocksdb":
                assert store.checkpoint(path.parent / "copy")
            sequence = store.durability().durable_sequence
        assert note.read_bytes() == noted
        watermark = Watermark(path / engine / WATERMARK_NAME)
        assert watermark.expected is not None
        assert sequence is not None
        assert watermark.expected >= sequence > 0

    @on_disk
    def test_a_path_that_is_not_utf_8_is_refused_with_an_error_that_can_be_shown(
        self, tmp_path: Path, engine: str
    ) -> None:
        with pytest.raises(SettingsError, match="is not UTF-8") as caught:
            open_store(tmp_path / os.fsdecode(b"\xff"), backend=engine)
        str(caught.value).encode()
        assert list(tmp_path.iterdir()) == []

    def test_a_link_to_a_directory_is_as_good(self, path: Path) -> None:
        with open_store(path) as store:
            ids = store_some(store)
        link = path.with_name("link")
        link.symlink_to(path)
        with open_store(link) as store:
            assert found_in(store) == ids
            with pytest.raises(StoreLockedError):
                open_store(path)

    def test_an_ephemeral_store_makes_no_directory(self, path: Path) -> None:
        with open_store(path, backend="ephemeral") as store:
            store_some(store)
        assert not path.exists()

    @pytest.mark.parametrize(
        "overrides", [{"pth": "x"}, {"backend": 5}, {"cache_bytes": "much"}, {"data_path": ""}, {"data_path": 5}]
    )
    def test_settings_that_make_no_sense_are_refused(self, path: Path, overrides: dict[str, Any]) -> None:
        with pytest.raises(SettingsError):
            open_store(**{"data_path": path, **overrides})
        assert not path.exists()

    @pytest.mark.parametrize(
        "target",
        ["a\0b", "\ud800", "x" * 5000, b"data", 5, ["data"]],
        ids=["NUL", "surrogate", "5,000 characters", "bytes", "number", "list"],
    )
    def test_what_cannot_be_a_path_is_an_error_of_ours(
        self, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(QilbeeError) as caught:
            open_store(target)
        assert isinstance(caught.value, InvalidError | StorageError)
        str(caught.value).encode()
        assert list(tmp_path.iterdir()) == []


class TestDirectories:
    @on_disk
    def test_a_new_one_is_for_its_owner_alone(self, path: Path, engine: str) -> None:
        before = os.umask(0)
        try:
            open_store(path, backend=engine).close()
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE((path / engine).stat().st_mode) == 0o700

    def test_an_empty_one_becomes_a_store(self, path: Path) -> None:
        path.mkdir()
        open_store(path).close()
        assert msgspec.json.decode((path / "qilbee.json").read_bytes()) == {
            "format": "qilbee-store",
            "layout": LAYOUT_VERSION,
            "backend": "rocksdb",
        }

    def test_missing_parents_are_made(self, path: Path) -> None:
        open_store(path / "a" / "b").close()
        assert (path / "a" / "b" / "qilbee.json").exists()

    @on_disk
    def test_a_new_one_has_its_names_synced_up_to_what_was_there(
        self, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced = set()
        fsync = os.fsync

        def note_path(handle: int) -> None:
            synced.add(os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", note_path)
        open_store(tmp_path / "a" / "data", backend=engine).close()
        directories = [tmp_path, tmp_path / "a", tmp_path / "a" / "data", tmp_path / "a" / "data" / engine]
        assert [each.name for each in directories if str(each) not in synced] == []

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (["notes.txt"], "notes.txt"),
            (["c", "a", "b"], "a, b, c"),
            (["5", "4", "3", "2", "1"], "1, 2, 3 and 2 more"),
            ([".hidden"], ".hidden"),
            (["db/"], "db"),
            (["rocksdb/"], "rocksdb"),
            (["CURRENT", "LOCK"], "CURRENT, LOCK"),
        ],
    )
    def test_one_that_holds_something_else_is_refused_and_left_as_it_is(
        self, path: Path, names: list[str], told: str
    ) -> None:
        path.mkdir()
        for name in names:
            if name.endswith("/"):
                (path / name).mkdir()
            else:
                (path / name).write_text("precious")
        before = listing(path)
        with pytest.raises(FormatVersionError, match=f"{path} is not a store: it holds {told}: name an empty"):
            open_store(path)
        assert listing(path) == before

    @pytest.mark.parametrize("kind", ["file", "below a file", "dangling link", "device"])
    def test_what_is_no_directory_is_refused(self, path: Path, kind: str) -> None:
        target = path
        if kind == "device":
            target = Path("/dev/null")
        elif kind == "dangling link":
            path.symlink_to(path.with_name("nowhere"))
        else:
            path.write_text("precious")
            target = path / "below" if kind == "below a file" else path
        with pytest.raises(FormatVersionError, match="is not a directory"):
            open_store(target)
        if kind.endswith("file"):
            assert path.read_text() == "precious"

    def test_one_without_permission_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with open_store(tmp_path / "store") as store:
            store_some(store)
        (tmp_path / "parent" / "data").mkdir(parents=True)
        (tmp_path / "unreadable").mkdir()
        (tmp_path / "below" / "data").mkdir(parents=True)
        told = run_script(
            """
            root = os.path.realpath(sys.argv[1])
            for name in ("unreadable", "below"):
                os.chmod(os.path.join(root, name), 0)
            os.chmod(os.path.join(root, "parent", "data"), 0o500)
            load_plugins()
            open_store(os.path.join(root, "warm")).close()  # everything is imported that will be needed
            if os.geteuid() == 0:  # nobody else is without permissions
                os.chdir(root)
                os.chmod(root, 0o755)
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            for name in ("new", "store", "unreadable", "below/data", "parent/data"):
                try:
                    open_store(name if os.getcwd() == root else os.path.join(root, name)).close()
                    print(name, "opened")
                except StorageError as error:
                    print(name, type(error).__name__, "permi" in str(error).lower())
                except BaseException as error:
                    print(name, type(error).__name__)
            """,
            tmp_path,
        )
        names = ["new", "store", "unreadable", "below/data", "parent/data"]
        if os.geteuid():
            names.remove("new")  # a directory of one's own may be made
            names.remove("store")
        assert [line for line in told.splitlines() if line.split()[0] in names] == [
            f"{name} StorageError True" for name in names
        ]

    def test_a_full_disk_at_the_opening_is_told_and_leaves_the_directory_free(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StorageFullError):
                open_store(path)
        open_store(path).close()


MARKER = {"format": "qilbee-store", "layout": LAYOUT_VERSION, "backend": "rocksdb"}


class TestMarkers:
    @pytest.mark.parametrize(
        "changed", [{"layout": LAYOUT_VERSION + 1}, {"layout": 99, "more": 1}, {"format": "acme-store"}]
    )
    def test_a_newer_layout_is_refused_with_what_to_do(self, path: Path, changed: Mapping[str, object]) -> None:
        open_store(path).close()
        (path / "qilbee.json").write_bytes(msgspec.json.encode({**MARKER, **changed}))
        before = listing(path)
        with pytest.raises(FormatVersionError, match=f"this release knows {LAYOUT_VERSION}: upgrade qilbee-core"):
            open_store(path)
        assert listing(path) == before

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b"{}",
            b'{"format":"qilbee-store"}',
            b'{"format":"qilbee-store","layout":"1","backend":"rocksdb"}',
            b'{"format":"qilbee-store","layout":1,"backend":null}',
            b'{"format":"\xff","layout":1,"backend":"rocksdb"}',
            b'{"more":' + b"[" * 200_000,
            bytes(4096),
        ],
        ids=lambda content: ascii(content[:30]),
    )
    def test_an_unreadable_one_is_refused(self, path: Path, content: bytes) -> None:
        open_store(path).close()
        (path / "qilbee.json").write_bytes(content)
        with pytest.raises(FormatVersionError, match=r"qilbee\.json cannot be read"):
            open_store(path)
        assert (path / "qilbee.json").read_bytes() == content

    def test_one_with_more_in_it_than_we_know_is_read(self, path: Path) -> None:
        open_store(path).close()
        (path / "qilbee.json").write_bytes(msgspec.json.encode({**MARKER, "note": {"of": "a later release"}}))
        open_store(path).close()

    def test_the_engine_is_the_one_the_store_was_made_with(self, path: Path) -> None:
        with open_store(path, backend="leveldb") as store:
            ids = store_some(store)
        with open_store(path) as store:
            assert store.stats()["backend"] == "leveldb"
            assert found_in(store) == ids
        with pytest.raises(SettingsError, match="was made with backend 'leveldb', not 'rocksdb'"):
            open_store(path, backend="rocksdb")

    def test_an_engine_that_is_not_installed_is_named(self, path: Path) -> None:
        with pytest.raises(ProviderNotFoundError, match=r"no backend 'acme\.fast'; installed are .*rocksdb"):
            open_store(path, backend="acme.fast")
        assert not path.exists()
        path.mkdir()
        (path / "qilbee.json").write_bytes(msgspec.json.encode({**MARKER, "backend": "acme.fast"}))
        with pytest.raises(ProviderNotFoundError, match=r"acme\.fast"):
            open_store(path)

    @on_disk
    @pytest.mark.parametrize("crashed", ["temporary marker", "marker", "directory", "lock", "engine"])
    def test_a_creation_that_was_cut_short_is_taken_up_again(self, path: Path, engine: str, crashed: str) -> None:
        path.mkdir(mode=0o700)
        marker = msgspec.json.encode({**MARKER, "backend": engine})
        if crashed == "temporary marker":
            (path / ".qilbee.json.tmp").write_bytes(marker[:10])
        else:
            (path / "qilbee.json").write_bytes(marker)
        if crashed in {"directory", "lock", "engine"}:
            (path / engine).mkdir()
        if crashed == "lock":
            (path / engine / "qilbee.lock").write_text("1")
        if crashed == "engine":
            load_plugins().backends.create(engine, BackendOptions(path=path / engine)).close()
        with open_store(path, backend=engine) as store:
            ids = store_some(store)
        with open_store(path) as store:
            assert found_in(store) == ids
            assert store.verify().problems == []

    def test_of_two_who_make_a_store_at_once_one_gets_it_and_the_other_is_told(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_marker = qilbee_core.marker._write_marker
        quicker: list[Store] = []

        def slowly(*arguments: Any) -> None:
            monkeypatch.undo()
            quicker.append(open_store(path))
            write_marker(*arguments)

        monkeypatch.setattr(qilbee_core.marker, "_write_marker", slowly)
        with pytest.raises(StoreLockedError):
            open_store(path)
        store_some(quicker[0])
        quicker[0].close()

    @on_disk
    def test_of_threads_that_make_a_store_at_once_one_gets_it(self, path: Path, engine: str) -> None:
        for turn in range(15):
            begin = threading.Barrier(3)

            def open_it(target: Path = path / str(turn), begin: threading.Barrier = begin) -> Store | str:
                begin.wait()
                try:
                    return open_store(target, backend=engine)
                except Exception as error:
                    return type(error).__name__

            with ThreadPoolExecutor(3) as pool:
                outcomes = [future.result() for future in [pool.submit(open_it) for _ in range(3)]]
            stores = [outcome for outcome in outcomes if isinstance(outcome, Store)]
            for store in stores:
                store_some(store, 1)
                store.close()
            assert [outcome for outcome in outcomes if not isinstance(outcome, Store)] == ["StoreLockedError"] * 2

    @pytest.mark.parametrize("entry", ["order/0", "header", "serializer/1"])
    def test_a_catalog_that_lost_an_entry_is_an_error_of_ours_and_leaves_nothing_open(
        self, path: Path, entry: str
    ) -> None:
        with open_store(path) as store:
            store_some(store)
            store._backend.write(WriteBatch([Delete(catalog_key(entry))]))
        before = set(threading.enumerate())
        if entry == "serializer/1":
            # It is made again, or the records that need it are named.
            with open_store(path) as store:
                assert store.verify() is not None
        else:
            with pytest.raises(DataError):
                open_store(path)
        assert set(threading.enumerate()) <= before
        load_plugins().backends.create("rocksdb", BackendOptions(path=path / "rocksdb")).close()


class TestLocks:
    @on_disk
    def test_a_second_opener_is_told_who_holds_it_and_where(self, path: Path, engine: str) -> None:
        with open_store(path, backend=engine) as store:
            for _ in range(2):
                with pytest.raises(StoreLockedError, match=rf"{path}.* is held by process {os.getpid()} \(this one\)"):
                    open_store(path)
            store_some(store)
        open_store(path).close()

    @on_disk
    def test_so_is_another_process(self, path: Path, engine: str) -> None:
        attempt = """
            try:
                open_store(sys.argv[1]).close()
                print("opened")
            except StoreLockedError as error:
                print(error)
        """
        with open_store(path, backend=engine) as store:
            told = run_script(attempt, path)
            assert f"is held by process {os.getpid()}: close it there" in told
            assert str(path) in told
            ids = store_some(store)
        assert run_script(attempt, path) == "opened\n"
        with open_store(path) as store:
            assert found_in(store) == ids

    @on_disk
    def test_a_dead_process_holds_nothing_and_what_it_acknowledged_is_there(self, path: Path, engine: str) -> None:
        script = """
            import random
            os.environ["PYTHONUNBUFFERED"] = "1"
            levels = {"sync": {"sync_writes": True}, "interval": {}, "async": {"durability": "async"}}
            for level, settings in levels.items():
                store = open_store(f"{sys.argv[1]}-{level}", backend=sys.argv[2], **settings)
                globals()[level] = store
                memory = store.agent_memory("bot")
                for number in range(100):
                    print(level, memory.store_episode(Episode("bot", "note", {"n": number})), flush=True)
                memory.update_episode(memory.get_recent_episodes(1)[0].id, metadata={"updated": True})
            os.kill(os.getpid(), signal.SIGKILL)
        """
        script = "import os, signal, sys\nfrom qilbee_core import *\n" + textwrap.dedent(script)
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), engine],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == -9, done.stderr
        for level in ("sync", "interval", "async"):
            told = [line.split()[1] for line in done.stdout.splitlines() if line.split()[0] == level]
            assert len(told) == 100
            with open_store(f"{path}-{level}") as store:
                assert found_in(store) == told
                assert store.agent_memory("bot").get_recent_episodes(1)[0].metadata == {"updated": True}
                assert store.verify().problems == []

    @on_disk
    def test_an_opening_that_failed_leaves_the_directory_free(self, path: Path, engine: str) -> None:
        for wrong in ({"engine": {"no_such_setting": 1}}, {"compression_type": "acme.none"}, {"serializer": "acme"}):
            with pytest.raises(InvalidError):
                open_store(path, backend=engine, **wrong)
        open_store(path, backend=engine).close()

    @on_disk
    def test_so_does_one_that_ctrl_c_ends(self, path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        places: list[tuple[object, str]] = [(os, "fsync"), (Watermark, "allows"), (Store, "__init__")]
        for owner, name in places:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    open_store(path, backend=engine)
        open_store(path, backend=engine).close()


# Parent and child of a fork, in a program of their own: the child must not hang, whatever the parent's threads hold.
FORK = """
def in_child(call):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            outcome = f"gave {call()!r}"
        except BaseException as error:
            outcome = type(error).__name__
        os.write(write, outcome.encode())
        os._exit(0)
    os.close(write)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(read) as pipe:
        return pipe.read() or f"hangs, {status}"

path, engine = sys.argv[1:]
store = open_store(path, backend=engine, sync_writes=True)
memory = store.agent_memory("bot")
episode = Episode("bot", "note", {"n": 1})
known = memory.store_episode(episode)
memory.get_recent_episodes()
view = memory.episodes()
verbs = {
    "get_episode": lambda: memory.get_episode(known),
    "get_episodes": lambda: memory.get_episodes([known]),
    "get_recent_episodes": lambda: memory.get_recent_episodes(1),
    "episodes": lambda: list(memory.episodes()),
    "a view of before": lambda: list(view),
    "history": lambda: memory.history(known),
    "get_statistics": lambda: memory.get_statistics(),
    "store_episode": lambda: memory.store_episode(Episode("bot", "note", {})),
    "store_episode again": lambda: memory.store_episode(episode),
    "update_episode": lambda: memory.update_episode(known, content={}),
    "delete_episode": lambda: memory.delete_episode(known),
    "clear": memory.clear,
    "another agent": lambda: store.agent_memory("other").get_statistics(),
    "agents": store.agents,
    "flush": store.flush,
    "compact": store.compact,
    "stats": store.stats,
    "verify": store.verify,
    "repair": store.repair,
}
"""


class TestForks:
    @on_disk
    def test_a_child_is_told_at_once_and_the_parent_goes_on(self, path: Path, engine: str) -> None:
        told = run_script(
            FORK
            + """
for name, verb in verbs.items():
    print(name, in_child(verb), sep=": ")
print("close", in_child(store.close), sep=": ")
memory.store_episode(Episode("bot", "note", {"n": 2}))
print(memory.get_statistics().total_episodes, len(store.verify().problems))
store.close()
store = open_store(path)
print(len(list(store.agent_memory("bot").episodes())), len(store.verify().problems))
store.close()
""",
            path,
            engine,
        ).splitlines()
        assert told[-2:] == ["2 0", "2 0"]
        assert [line for line in told[:-3] if not line.endswith(": StoreClosedError")] == []
        assert told[-3] in {"close: gave None", "close: StoreClosedError"}

    @on_disk
    def test_a_child_does_not_hang_on_what_threads_of_the_parent_hold(self, path: Path, engine: str) -> None:
        told = run_script(
            FORK
            + """
# A thread syncs meanwhile, and another holds every lock there is.
syncing, go_on = threading.Event(), threading.Event()
sync = store._backend.sync
def slowly():
    syncing.set()
    go_on.wait(150)
    sync()
store._backend.sync = slowly
writer = threading.Thread(target=memory.store_episode, args=(Episode("bot", "note", {"n": 2}),))
writer.start()
assert syncing.wait(30)
context, durability = store._context, store._durability
locks = [context._agents_lock, context.agent("bot").lock, context.tails._lock, context.catalog._lock, durability._lock]
held, release = threading.Event(), threading.Event()
def hold():
    for lock in locks:
        lock.acquire()
    held.set()
    release.wait(150)
    for lock in locks:
        lock.release()
holder = threading.Thread(target=hold)
holder.start()
assert held.wait(30)
for name, verb in verbs.items():
    print(name, in_child(verb), sep=": ")
print("close", in_child(store.close), sep=": ")
release.set()
go_on.set()
holder.join()
writer.join()
print(memory.get_statistics().total_episodes, len(store.verify().problems))
store.close()
""",
            path,
            engine,
        ).splitlines()
        assert told[-1] == "2 0"
        assert [line for line in told[:-2] if not line.endswith(": StoreClosedError")] == []
        assert told[-2] in {"close: gave None", "close: StoreClosedError"}

    @on_disk
    def test_a_child_gets_the_lock_only_after_the_parent_and_never_hangs(self, path: Path, engine: str) -> None:
        # The engines keep threads, which do not live on in a child: it may be refused, but not left waiting for them.
        told = run_script(
            FORK
            + """
def open_and_use():
    with open_store(path) as mine:
        mine.agent_memory("bot").store_episode(Episode("bot", "note", {"n": 2}))
        mine.compact()
        return mine.agent_memory("bot").get_statistics().total_episodes
print(in_child(open_and_use))
store.compact()
store.close()
print(in_child(open_and_use))
print(open_and_use() >= 2)
""",
            path,
            engine,
        ).splitlines()
        assert told[0] == "StoreLockedError"
        assert told[1] in {"gave 2", "StorageError"}
        assert told[2] == "True"

    @on_disk
    def test_children_that_open_stores_of_their_own_are_as_good_as_any_process(self, path: Path, engine: str) -> None:
        told = run_script(
            """
            children = []
            for number in range(2):
                if (pid := os.fork()) == 0:
                    signal.alarm(60)
                    with open_store(f"{sys.argv[1]}-{number}", backend=sys.argv[2]) as store:
                        store.agent_memory("bot").store_episode(Episode("bot", "note", {}))
                        store.compact()
                    os._exit(0)
                children.append(pid)
            print([os.waitpid(pid, 0)[1] for pid in children])
            for number in range(2):
                with open_store(f"{sys.argv[1]}-{number}") as store:
                    print(store.agent_memory("bot").get_statistics().total_episodes)
            """,
            path,
            engine,
        )
        assert told.splitlines() == ["[0, 0]", "1", "1"]

    def test_an_ephemeral_store_is_the_childs_own_copy(self, path: Path) -> None:
        told = run_script(
            FORK
            + """
print(in_child(lambda: (memory.store_episode(Episode("bot", "note", {})), memory.get_statistics().total_episodes)[1]))
print(memory.get_statistics().total_episodes)
""",
            path,
            "ephemeral",
        )
        assert told.splitlines()[-1] == "1"
        assert told.splitlines()[0] in {"gave 2", "StoreClosedError"}


class TestClosing:
    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb", "ephemeral"])
    def test_everything_after_it_says_that_the_store_is_closed(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory("bot")
        ids = store_some(store)
        memory.get_recent_episodes()
        views = [memory.episodes(), memory.episodes(reverse=True)]
        next(views[0])
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.agent_memory("bot"),
            store.agents,
            store.flush,
            store.compact,
            store.stats,
            store.verify,
            store.repair,
            lambda: memory.store_episode(note()),
            lambda: memory.store_episodes([note()]),
            lambda: memory.import_episodes([note()]),
            lambda: memory.get_episode(ids[-1]),
            lambda: memory.get_episodes(ids),
            memory.get_recent_episodes,
            lambda: memory.get_recent_episodes(before=ids[-1]),
            lambda: memory.get_recent_episodes(episode_type="note"),
            memory.episodes,
            lambda: next(views[0]),
            lambda: list(views[1]),
            lambda: memory.update_episode(ids[0], content={}),
            lambda: memory.history(ids[0]),
            lambda: memory.delete_episode(ids[0]),
            memory.clear,
            memory.get_statistics,
        ]
        for number, call in enumerate(calls):
            with pytest.raises(StoreClosedError, match="closed"):
                pytest.fail(f"call {number} gave {call()!r}")

    def test_it_may_be_closed_again_and_again(self, open_here: OpenHere) -> None:
        store = open_here()
        store_some(store)
        for _ in range(3):
            store.close()

    def test_a_with_block_closes_it_also_after_an_error(self, path: Path) -> None:
        def fail() -> None:
            with open_store(path) as store:
                store_some(store)
                raise RuntimeError("of the block")

        with pytest.raises(RuntimeError, match="of the block"):
            fail()
        with open_store(path) as store:
            assert len(found_in(store)) == 3

    @pytest.mark.parametrize("settings", [{}, {"sync_writes": True}])
    @on_disk
    def test_it_may_be_closed_while_threads_work(self, open_here: OpenHere, settings: dict[str, Any]) -> None:
        store = open_here(**settings)
        begun = threading.Barrier(7)
        outcomes: list[str] = []
        acknowledged: list[str] = []
        unknown: list[str] = []

        def write(number: int) -> None:
            memory = store.agent_memory(f"agent {number % 3}")
            begun.wait(PATIENCE_S)
            while True:
                episode = note(number, memory.agent_id)
                try:
                    acknowledged.append(memory.store_episode(episode))
                except OutcomeUnknownError:  # it was on its way when the store was closed, and the next is not
                    unknown.append(episode.id)
                    memory.store_episode(note(number, memory.agent_id))
                    raise

        def read() -> None:
            memory = store.agent_memory("agent 0")
            begun.wait(PATIENCE_S)
            while True:
                memory.get_recent_episodes()
                list(memory.episodes())
                memory.get_statistics()

        def until_closed(work: Callable[[], None]) -> None:
            try:
                work()
            except QilbeeError as error:
                outcomes.append(type(error).__name__)
            except BaseException as error:
                outcomes.append(repr(error))

        works: list[Callable[[], None]] = [*(partial(write, number) for number in range(4)), read, read]
        threads = [threading.Thread(target=until_closed, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        begun.wait(PATIENCE_S)
        deadline_s = time.monotonic() + PATIENCE_S
        while len(acknowledged) < 50:
            assert time.monotonic() < deadline_s, outcomes
            time.sleep(0.001)
        store.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert outcomes == ["StoreClosedError"] * 6
        store = open_here(**settings)
        found = {id_ for number in range(3) for id_ in found_in(store, f"agent {number}")}
        assert found >= set(acknowledged)
        assert found <= {*acknowledged, *unknown}
        assert store.verify().problems == []

    @on_disk
    def test_fifty_openings_leave_no_thread_and_no_file_open(self, path: Path, engine: str) -> None:
        def open_and_close() -> tuple[int, int]:
            with open_store(path, backend=engine, durability="interval") as store:
                store_some(store, 1)
                next(store.agent_memory("bot").episodes())
            return threading.active_count(), len(os.listdir("/proc/self/fd"))

        gc.collect()
        threads, files = [open_and_close() for _ in range(3)][-1]
        threads_last, files_last = [open_and_close() for _ in range(50)][-1]
        assert threads_last <= threads  # fewer, where a thread of an earlier test has come to its end
        assert files_last <= files

    @on_disk
    def test_nothing_is_lost_over_many_openings(self, path: Path, engine: str) -> None:
        for number in range(10):
            with open_store(path, backend=engine) as store:
                assert len(found_in(store)) == 3 * number
                store_some(store)
        with open_store(path) as store:
            assert store.verify().problems == []


class TestStore:
    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb", "ephemeral"])
    def test_agents_are_sorted_and_those_who_stored_anything(self, open_here: OpenHere) -> None:
        store = open_here()
        assert store.agents() == []
        names = ["b", "a", "\U0001f916", "\u00e9", "Z", "a:b", "10", "9", "a" * 255]
        for name in names:
            store.agent_memory(name).get_statistics()
        assert store.agents() == []
        for name in names:
            store_some(store, 1, name)
        assert store.agents() == sorted(names)
        store.agent_memory("b").delete_episode(found_in(store, "b")[0])
        store.agent_memory("a").clear()
        assert store.agents() == sorted(set(names) - {"a"})

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb", "ephemeral"])
    def test_stats_have_these_names(self, open_here: OpenHere, engine: str) -> None:
        store = open_here()
        store_some(store)
        figures = store.stats()
        assert list(figures) == [
            "backend",
            "store_id",
            "durability",
            "recent_cache",
            "memory",
            "consolidation",
            "reindexing",
            "compaction",
            "search",
            "engine",
        ]
        assert figures["backend"] == engine
        assert set(names_of(figures["durability"])) == {"level", "durable_sequence", "unsynced_age_ms"}
        assert set(names_of(figures["recent_cache"])) == {"bytes", "bytes_max", "hits", "misses"}
        assert names_of(figures["engine"]) or engine == "ephemeral"
        assert msgspec.json.decode(msgspec.json.encode(figures)) == figures

    def test_a_store_has_an_id_of_its_own_for_life(self, open_here: OpenHere) -> None:
        ids = []
        for name in ("one", "one", "two"):
            store = open_here(name)
            ids.append(store.stats()["store_id"])
            store.close()
        assert ids[0] == ids[1] != ids[2]

    @on_disk
    def test_another_codec_or_serializer_reads_what_is_there(self, path: Path, engine: str) -> None:
        texts = []
        for number, settings in enumerate(
            [
                {"compression_type": "none"},
                {"compression_type": "zstd", "compression_scope": "value"},
                {"compression_type": "lz4", "serializer": "json"},
                {"compression_type": "snappy", "compression_scope": "value", "serializer": "json"},
                {"enable_compression": False},
            ]
        ):
            with open_store(path, backend=engine, **settings) as store:  # type: ignore[arg-type]
                texts.append(f"{number} " + "many words, and again many words; " * 20)
                store.agent_memory("bot").store_episode(Episode("bot", "note", {"text": texts[-1]}))
                assert [episode.content["text"] for episode in store.agent_memory("bot").episodes()] == texts
                assert store.verify().problems == []


def names_of(figures: object) -> list[str]:
    assert isinstance(figures, dict)
    return list(figures)
