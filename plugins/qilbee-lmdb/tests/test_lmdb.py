"""What is special to LMDB. What every engine must do stands in test_contract.py."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import lmdb
import pytest
import qilbee_lmdb.backend
from qilbee_lmdb.backend import LmdbBackend

from qilbee_core import BackendOptions as Options
from qilbee_core import (
    ConflictError,
    CorruptRecordError,
    Delete,
    DeleteRange,
    Episode,
    Expect,
    InvalidError,
    OutcomeUnknownError,
    Put,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    WriteBatch,
    load_plugins,
    open_store,
)

SMALL_MAP_BYTES = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def backend(path: Path) -> Iterator[LmdbBackend]:
    backend = LmdbBackend(Options(path=path))
    yield backend
    backend.close()


def put(backend: LmdbBackend, *pairs: tuple[bytes, bytes]) -> None:
    backend.write(WriteBatch([Put(key, value) for key, value in pairs]))


def bytes_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def test_it_is_found_by_its_name(path: Path) -> None:
    backend = load_plugins().backends.create("lmdb", Options(path=path))
    assert isinstance(backend, LmdbBackend)
    backend.close()


def test_a_whole_store_runs_on_it(path: Path) -> None:
    episodes = [Episode.conversation("bot", f"question {number}", "answer " * number) for number in range(30)]
    with open_store(path, backend="lmdb", compression_type="zstd") as store:
        store.agent_memory("bot").store_episodes(episodes[:20])
        for episode in episodes[20:]:
            store.agent_memory("bot").store_episode(episode)
    with open_store(path) as store:
        memory = store.agent_memory("bot")
        assert [memory.get_episode(episode.id) for episode in episodes] == episodes
        store.compact()
        assert store.verify().problems == []


# Settings


def test_an_unknown_setting_is_refused_before_anything_is_made(path: Path) -> None:
    with pytest.raises(SettingsError, match="map_bytes"):
        LmdbBackend(Options(path=path, engine={"map_size": 1 << 30}))
    assert not path.exists()


@pytest.mark.parametrize("value", ["1 GiB", True, 1.5, 0, -1, None])
def test_map_bytes_is_a_whole_number(path: Path, value: object) -> None:
    with pytest.raises(SettingsError, match="map_bytes"):
        LmdbBackend(Options(path=path, engine={"map_bytes": value}))  # type: ignore[dict-item]


# Keys


def test_the_longest_key_is_510_bytes_and_a_longer_one_fails_its_whole_batch(backend: LmdbBackend) -> None:
    put(backend, (b"k" * 510, b"fits"))
    assert backend.get(b"k" * 510) == b"fits"
    with pytest.raises(InvalidError, match="510"):
        put(backend, (b"other", b""), (b"k" * 511, b""))
    assert backend.get(b"other") is None


def test_a_key_too_long_to_be_stored_is_simply_not_there(backend: LmdbBackend) -> None:
    long = b"k" * 4096
    put(backend, (b"k", b""))
    assert backend.get(long) is None
    assert backend.get_many([long, b"k"]) == [None, b""]
    assert list(backend.scan(long)) == []
    assert list(backend.scan(b"", long)) == list(backend.scan(b"", long, reverse=True)) == [(b"k", b"")]
    backend.write(WriteBatch([Delete(long), DeleteRange(long, long + b"x")], [Expect(long, None)]))


# The map


def test_it_outgrows_its_map_while_the_writer_itself_is_scanning(path: Path) -> None:
    backend = LmdbBackend(Options(path=path, engine={"map_bytes": SMALL_MAP_BYTES}))
    put(backend, *((b"%04d" % i, b"before") for i in range(100)))
    snapshot = backend.snapshot()
    for key, value in backend.scan():
        assert value == b"before"
        put(backend, (key, os.urandom(64 << 10)))
    assert backend.stats()["file_bytes"] > 4 * SMALL_MAP_BYTES  # type: ignore[operator]
    assert [value for _, value in snapshot.scan()] == [b"before"] * 100
    snapshot.close()
    after = list(backend.scan())
    backend.close()
    backend = LmdbBackend(Options(path=path, engine={"map_bytes": SMALL_MAP_BYTES}))
    assert list(backend.scan()) == after
    put(backend, (b"more", os.urandom(1 << 20)))
    backend.close()


def test_a_batch_larger_than_the_map_is_stored(path: Path) -> None:
    backend = LmdbBackend(Options(path=path, engine={"map_bytes": SMALL_MAP_BYTES}))
    put(backend, *((b"%04d" % i, bytes(1 << 20)) for i in range(8)))
    assert len(list(backend.scan())) == 8
    backend.close()


def test_a_map_that_the_system_refuses_is_named(path: Path) -> None:
    with pytest.raises(StorageError, match="map_bytes lower"):
        LmdbBackend(Options(path=path, engine={"map_bytes": 1 << 60}))
    LmdbBackend(Options(path=path)).close()


# Power cuts and dead processes


def test_what_a_power_cut_takes_back_is_at_most_the_last_commit(tmp_path: Path) -> None:
    """The worst the disk may hold: roots of commit n, and pages of commits n + 1 and n + 2, which both changed it."""
    shuffle = random.Random(7)
    backend = LmdbBackend(Options(path=tmp_path / "store"))
    (file,) = (tmp_path / "store").glob("*.lmdb")
    states: list[list[tuple[bytes, bytes]]] = []
    files: list[bytes] = []
    for _ in range(40):
        keys = [b"%03d" % shuffle.randrange(200) for _ in range(20)]
        backend.write(WriteBatch([Put(key, shuffle.randbytes(shuffle.randrange(6000))) for key in keys[:10]]))
        backend.write(WriteBatch([Delete(key) for key in keys[10:]]))
        states.append(list(backend.scan()))
        files.append(file.read_bytes())
    backend.close()

    def open_with(roots_of: int, pages_of: int) -> list[tuple[bytes, bytes]]:
        cut = tmp_path / f"{roots_of}-{pages_of}"
        cut.mkdir()
        roots_bytes = 2 * 4096
        cut.joinpath("000001.lmdb").write_bytes(files[roots_of][:roots_bytes] + files[pages_of][roots_bytes:])
        backend = LmdbBackend(Options(path=cut))
        try:
            return list(backend.scan())
        finally:
            backend.close()

    # A round is two commits.
    assert all(open_with(n, n + 1) == states[n] for n in range(39))
    assert any(_differs(open_with, n, states[n]) for n in range(30)), "the harness would see a page used again"


def _differs(open_with: Callable[[int, int], object], n: int, state: object) -> bool:
    try:
        return open_with(n, n + 9) != state
    except StorageError:
        return True
    except CorruptRecordError:
        return True


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``script`` in a process of its own, with a store in the directory given first."""
    prelude = """
        import os, sys, threading
        from pathlib import Path
        from qilbee_core import *
        from qilbee_lmdb.backend import LmdbBackend
        import qilbee_lmdb.backend
        path = Path(sys.argv[1])
        open_store = lambda **engine: LmdbBackend(BackendOptions(path=path, engine=engine))
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )


def test_every_acknowledged_write_survives_the_process(path: Path) -> None:
    done = run(
        """
        store = open_store()
        for i in range(50):
            store.write(WriteBatch([Put(b"%03d" % i, bytes(3000)), Put(b"last", b"%03d" % i)]))
        os.kill(os.getpid(), 9)
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    backend = LmdbBackend(Options(path=path))
    assert backend.get(b"last") == b"049"
    assert len(list(backend.scan())) == 51
    backend.close()


@pytest.mark.parametrize(
    ("step", "before"),
    [("build", True), ("publish", True), ("publish", False), ("DataFile", False), ("remove_leftovers", True)],
)
def test_a_crash_while_the_file_is_replaced_leaves_a_store(path: Path, step: str, before: bool) -> None:
    done = run(
        """
        store = open_store()
        store.write(WriteBatch([Put(b"%03d" % i, bytes(3000)) for i in range(100)]))
        store.write(WriteBatch([DeleteRange(b"010", b"100")]))
        step, before = sys.argv[2], sys.argv[3] == "True"
        real = getattr(qilbee_lmdb.backend, step)
        def dies(*arguments):
            if not before:
                real(*arguments)
            os._exit(9)
        setattr(qilbee_lmdb.backend, step, dies)
        store.compact()
        """,
        path,
        step,
        before,
    )
    assert done.returncode == 9, done.stderr
    backend = LmdbBackend(Options(path=path))
    assert [key for key, _ in backend.scan()] == [b"%03d" % i for i in range(10)]
    put(backend, (b"new", b""))
    assert len([name for name in os.listdir(path) if name.endswith(".lmdb")]) == 1
    assert not [name for name in os.listdir(path) if ".new" in name]
    backend.close()


def test_a_file_that_is_not_finished_is_never_the_store(path: Path, backend: LmdbBackend) -> None:
    put(backend, (b"key", b"value"))
    backend.close()
    path.joinpath("000002.lmdb.new").write_bytes(b"half of a file")
    path.joinpath("000002.lmdb.new-lock").touch()
    path.joinpath("notes.txt").touch()
    again = LmdbBackend(Options(path=path))
    assert again.get(b"key") == b"value"
    again.close()
    assert sorted(os.listdir(path)) == ["000001.lmdb", "000001.lmdb-lock", "notes.txt", "qilbee.lock"]


def test_a_file_of_something_else_is_not_opened_and_not_touched(path: Path) -> None:
    path.mkdir()
    path.joinpath("000001.lmdb").write_bytes(b"kept")
    path.joinpath("000007.lmdb").write_bytes(b"not a file of LMDB" * 1000)
    for _ in range(2):
        with pytest.raises(CorruptRecordError, match=r"000007\.lmdb"):
            LmdbBackend(Options(path=path))
    assert path.joinpath("000001.lmdb").read_bytes() == b"kept"


# Giving back, erasing, copying


def test_compaction_gives_the_space_back_and_open_snapshots_keep_what_they_show(path: Path) -> None:
    backend = LmdbBackend(Options(path=path))
    put(backend, *((b"%03d" % i, os.urandom(3000)) for i in range(500)))
    before = list(backend.scan())
    snapshot, scan = backend.snapshot(), backend.scan()
    backend.write(WriteBatch([DeleteRange(b"010", b"999")]))
    large = backend.stats()["file_bytes"]
    backend.compact()
    assert backend.stats()["file_bytes"] * 10 < large  # type: ignore[operator]
    put(backend, (b"new", b""))
    backend.compact()
    assert list(backend.scan()) == [*before[:10], (b"new", b"")]
    assert list(snapshot.scan()) == list(scan) == before
    snapshot.close()
    backend.close()


def test_an_old_file_is_closed_when_its_last_reader_leaves(path: Path) -> None:
    backend = LmdbBackend(Options(path=path))
    put(backend, (b"key", b""))
    old = backend._current
    first, second = backend.snapshot(), backend.scan()
    backend.compact()
    first.close()
    assert old is not None
    assert not old.closed.is_set()
    del second
    assert old.closed.is_set()
    backend.close()


def test_compacting_twice_rewrites_once(path: Path, backend: LmdbBackend) -> None:
    put(backend, (b"key", b""))
    backend.compact()
    name = {file.name for file in path.glob("*.lmdb")}
    backend.compact()
    assert {file.name for file in path.glob("*.lmdb")} == name
    put(backend, (b"key", b"2"))
    backend.compact()
    assert {file.name for file in path.glob("*.lmdb")} != name


def test_erased_bytes_are_in_no_file(path: Path, backend: LmdbBackend) -> None:
    small, large, overwritten, shortened = (os.urandom(24) for _ in range(4))
    neighbours = [(b"%03d" % i, b"neighbour") for i in range(200)]
    put(backend, *neighbours)
    put(backend, (b"100-small", small * 2), (b"100-large", large * 2000), (b"100-over", overwritten))
    # Both in one batch: LMDB writes the short value over the long one, in the same page.
    put(backend, (b"100-short", bytes(9000) + shortened), (b"100-short", bytes(8000)))
    backend.write(WriteBatch([Delete(b"100-small"), DeleteRange(b"100-l", b"100-m"), Put(b"100-over", b"")]))
    assert all(canary in bytes_of(path) for canary in (small, large, overwritten, shortened))
    backend.erase([(b"100", b"101")])
    assert not any(canary in bytes_of(path) for canary in (small, large, overwritten, shortened))
    assert [pair for pair in backend.scan() if pair[1] == b"neighbour"] == neighbours


def test_erasing_waits_for_nobody_but_says_who_is_in_the_way(path: Path, backend: LmdbBackend) -> None:
    canary = os.urandom(24)
    put(backend, (b"key", canary))
    snapshot = backend.snapshot()
    backend.write(WriteBatch([Delete(b"key")]))
    with pytest.raises(StorageError, match="1 open snapshot"):
        backend.erase([(b"", None)])
    assert snapshot.get(b"key") == canary
    # An earlier compaction has already replaced the file that it reads.
    backend.compact()
    with pytest.raises(StorageError, match="1 open snapshot"):
        backend.erase([(b"", None)])
    snapshot.close()
    backend.erase([(b"", None)])
    assert canary not in bytes_of(path)


def test_a_checkpoint_opens_by_itself_and_an_interrupted_one_leaves_nothing(
    tmp_path: Path, backend: LmdbBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(backend, *((b"%04d" % i, b"value") for i in range(3000)))
    backend.checkpoint(tmp_path / "far" / "copy")
    put(backend, (b"later", b""))
    copy = LmdbBackend(Options(path=tmp_path / "far" / "copy"))
    assert list(copy.scan()) == list(backend.scan(b"", b"later"))
    copy.close()
    with pytest.raises(InvalidError, match="exists"):
        backend.checkpoint(tmp_path / "far" / "copy")
    monkeypatch.setattr(qilbee_lmdb.backend, "publish", _raise_no_space)
    with pytest.raises(StorageFullError):
        backend.checkpoint(tmp_path / "far" / "other")
    assert os.listdir(tmp_path / "far") == ["copy"]


def _raise_no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_replacement_that_fails_after_it_has_its_name_stops_all_writing(
    path: Path, backend: LmdbBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(backend, (b"key", b"1"))
    monkeypatch.setattr(qilbee_lmdb.backend, "DataFile", _raise_no_space)
    with pytest.raises(StorageFullError):
        backend.compact()
    monkeypatch.undo()
    with pytest.raises(StorageError, match="stopped"):
        put(backend, (b"key", b"2"))
    assert backend.get(b"key") == b"1"
    with pytest.raises(StorageError, match="stopped"):
        backend.close()
    again = LmdbBackend(Options(path=path))
    put(again, (b"key", b"2"))
    again.close()


# Failing disks


class FailingEnvironment:
    """An environment whose next write fails with ``error``."""

    def __init__(self, env: lmdb.Environment, error: lmdb.Error) -> None:
        self._env = env
        self._error = error

    def begin(self, write: bool = False) -> lmdb.Transaction[bytes]:
        if write:
            raise self._error
        return self._env.begin()

    def __getattr__(self, name: str) -> object:
        return getattr(self._env, name)


def break_once(backend: LmdbBackend, number: int, failing: Callable[[], None]) -> None:
    error = lmdb.Error("mdb_txn_commit")
    error.code = number  # type: ignore[misc] # what the extension does
    file = backend._current
    assert file is not None
    env = file.env
    file.env = FailingEnvironment(env, error)  # type: ignore[assignment]
    try:
        failing()
    finally:
        file.env = env


def test_a_full_disk_refuses_the_write_and_nothing_else(backend: LmdbBackend) -> None:
    put(backend, (b"key", b"1"))

    def failing() -> None:
        with pytest.raises(StorageFullError):
            put(backend, (b"key", b"2"))

    break_once(backend, errno.ENOSPC, failing)
    assert backend.get(b"key") == b"1"
    put(backend, (b"key", b"3"))


def test_a_limit_met_halfway_through_a_commit_is_a_full_disk(path: Path) -> None:
    done = run(
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = open_store()
        resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, resource.RLIM_INFINITY))
        stored = 0
        try:
            while True:
                store.write(WriteBatch([Put(b"%05d-%d" % (stored, i), bytes(3000)) for i in range(7)]))
                stored += 1
        except StorageFullError:
            pass
        try:
            store.write(WriteBatch([DeleteRange(b"", b"00005")]))  # changes pages, so it may need new ones
            stored -= 5
        except StorageFullError:
            pass
        assert 10 < stored < 100 and len(list(store.scan())) == 7 * stored
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.write(WriteBatch([Put(b"now there is room", bytes(10_000))]))
        store.close()
        """,
        path,
    )
    assert done.returncode == 0, done.stderr


def test_after_a_failed_fsync_nothing_more_is_written(path: Path, backend: LmdbBackend) -> None:
    put(backend, (b"key", b"1"))

    def failing() -> None:
        with pytest.raises(StorageError):
            put(backend, (b"key", b"2"))

    break_once(backend, errno.EIO, failing)
    with pytest.raises(StorageError, match="stopped"):
        put(backend, (b"key", b"3"))
    with pytest.raises(StorageError, match="stopped"):
        backend.sync()
    assert backend.get(b"key") == b"1"
    with pytest.raises(StorageError, match="stopped"):
        backend.close()
    again = LmdbBackend(Options(path=path))
    put(again, (b"key", b"4"))
    again.close()


# Many threads


def queue_up(backend: LmdbBackend, batches: list[WriteBatch]) -> list[BaseException | None]:
    """Write ``batches``, each in a thread of its own, so that all of them wait for one commit."""
    outcomes: list[BaseException | None] = [None] * len(batches)

    def write(number: int) -> None:
        try:
            backend.write(batches[number])
        except BaseException as error:
            outcomes[number] = error

    with backend._writing:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(len(batches))]
        for number, thread in enumerate(threads):
            thread.start()
            while len(backend._queue) <= number:
                os.sched_yield()
    for thread in threads:
        thread.join()
    return outcomes


def commits(backend: LmdbBackend) -> int:
    assert backend._current is not None
    count: int = backend._current.env.info()["last_txnid"]
    return count


def test_waiting_writers_share_one_commit_and_a_conflict_is_its_own_writers(backend: LmdbBackend) -> None:
    before = commits(backend)
    outcomes = queue_up(
        backend,
        [
            WriteBatch([Put(b"a", b"1")], [Expect(b"a", None)]),
            WriteBatch([Put(b"b", b"1")], [Expect(b"a", b"1")]),
            WriteBatch([Put(b"a", b"2"), Put(b"c", b"")], [Expect(b"a", None)]),
            WriteBatch([Put(b"b", b"2")], [Expect(b"b", b"1")]),
        ],
    )
    assert commits(backend) == before + 1
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), ConflictError, type(None)]
    assert list(backend.scan()) == [(b"a", b"1"), (b"b", b"2")]


def test_a_batch_that_cannot_be_stored_fails_alone(backend: LmdbBackend) -> None:
    wrong: bytes = "text"  # type: ignore[assignment]
    outcomes = queue_up(
        backend,
        [
            WriteBatch([Put(b"a", b"1")]),
            WriteBatch([Put(b"b", b"1"), Put(b"k" * 600, b"")]),
            WriteBatch([Put(b"c", b"1"), Put(b"d", wrong)]),
            WriteBatch([Put(b"e", b"1")], [Expect(b"a", b"1")]),
        ],
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), InvalidError, TypeError, type(None)]
    assert list(backend.scan()) == [(b"a", b"1"), (b"e", b"1")]


def test_an_interrupted_writer_tells_those_it_committed_for(
    backend: LmdbBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backend, "_transact", interrupted)
        outcomes = queue_up(backend, [WriteBatch([Put(b"a", b"1")]), WriteBatch([Put(b"b", b"1")])])
    assert [type(outcome) for outcome in outcomes] == [KeyboardInterrupt, OutcomeUnknownError]
    put(backend, (b"c", b"1"))
    assert list(backend.scan()) == [(b"c", b"1")]


@pytest.mark.parametrize("end", ["close", "compact"])
def test_the_map_is_taken_away_under_threads_that_read_it(path: Path, end: str) -> None:
    for _ in range(5):
        backend = LmdbBackend(Options(path=path))
        put(backend, *((b"%03d" % i, bytes(3000)) for i in range(100)))
        started, outcomes = threading.Barrier(7), list[BaseException]()

        def read(
            action: Callable[[], object], started: threading.Barrier = started, outcomes: list[BaseException] = outcomes
        ) -> None:
            started.wait()
            try:
                while True:
                    action()
            except BaseException as error:
                outcomes.append(error)

        shared = backend.snapshot()
        actions: list[Callable[[], object]] = [
            lambda backend=backend: backend.get(b"050"),  # type: ignore[misc]
            lambda backend=backend: list(backend.scan()),  # type: ignore[misc]
            lambda backend=backend: list(islice(backend.scan(reverse=True), 3)),  # type: ignore[misc]
            lambda backend=backend: backend.snapshot().get_many([b"001", b"002"]),  # type: ignore[misc]
            lambda shared=shared: list(shared.scan()),  # type: ignore[misc]
            lambda shared=shared: shared.get(b"001"),  # type: ignore[misc]
        ]
        threads = [threading.Thread(target=read, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        started.wait()
        if end == "compact":
            for number in range(5):
                put(backend, (b"%03d" % number, b""))
                backend.compact()
        backend.close()
        for thread in threads:
            thread.join()
        assert [type(outcome) for outcome in outcomes] == [StoreClosedError] * len(actions)


def test_a_scan_that_was_dropped_lets_go_of_its_instant(backend: LmdbBackend) -> None:
    put(backend, *((b"%03d" % i, b"") for i in range(100)))
    exhausted, begun, untouched = backend.scan(), backend.scan(), backend.scan()
    assert len(list(exhausted)) == 100
    next(begun)
    assert backend.stats()["open_views"] == 2
    del begun, untouched
    assert backend.stats()["open_views"] == 0


def test_too_many_snapshots_are_refused_and_closing_some_helps(backend: LmdbBackend) -> None:
    snapshots = [backend.snapshot() for _ in range(1024)]
    with pytest.raises(StorageError, match="too many"):
        backend.snapshot()
    with pytest.raises(StorageError, match="too many"):
        backend.get(b"key")
    snapshots.pop().close()
    assert backend.get(b"key") is None


# Forks


def test_a_forked_child_is_turned_away_and_its_end_does_not_hurt_the_parents_snapshot(path: Path) -> None:
    done = run(
        """
        store = open_store()
        store.write(WriteBatch([Put(b"%03d" % i, b"old" * 1000) for i in range(50)]))
        snapshot, scan = store.snapshot(), store.scan()
        next(scan)
        store._writing.acquire()  # as if another thread were in the middle of a commit
        child = os.fork()
        if not child:
            calls = [
                lambda: store.get(b"000"), lambda: store.scan(), lambda: store.snapshot(), lambda: store.sync(),
                lambda: store.write(WriteBatch([Put(b"000", b"child")])), lambda: store.compact(),
                lambda: snapshot.get(b"000"), lambda: [*scan], lambda: snapshot.scan(),
            ]
            for call in calls:
                try:
                    call()
                    os._exit(1)
                except StoreClosedError:
                    pass
            store.close()
            snapshot.close()
            sys.exit(0)  # and not os._exit(): the interpreter takes everything apart
        assert os.waitpid(child, 0)[1] == 0
        store._writing.release()
        for _ in range(5):
            for i in range(50):
                store.write(WriteBatch([Put(b"%03d" % i, b"new" * 1000)]))
        assert [*snapshot.scan()] == [(b"%03d" % i, b"old" * 1000) for i in range(50)]
        assert [*scan] == [(b"%03d" % i, b"old" * 1000) for i in range(1, 50)]
        assert store.get(b"000") == b"new" * 1000
        snapshot.close()
        store.close()
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
