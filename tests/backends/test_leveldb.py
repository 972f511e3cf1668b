"""The LevelDB backend against the contract, and one test for each trap of the engine and its binding.

Where a trap can be shown on plyvel alone, the test shows it first: it would fail without our handling.
"""

import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from qilbee_core import (
    BackendOptions,
    CorruptRecordError,
    Delete,
    DeleteRange,
    FormatVersionError,
    OutcomeUnknownError,
    Put,
    SettingsError,
    StorageBackend,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
    WriteBatch,
)
from qilbee_core.testing import PersistentBackendContract
from qilbee_core.testing._backend_uses import contents

plyvel = pytest.importorskip("plyvel", reason="LevelDB needs plyvel: pip install 'qilbee-core[leveldb]'")

from qilbee_core.backends import _leveldb_logs, leveldb  # noqa: E402
from qilbee_core.backends._leveldb_binding import cursors_of  # noqa: E402
from qilbee_core.backends.leveldb import LevelDBBackend  # noqa: E402

SMALL = 64 << 10
"""The smallest write buffer LevelDB takes."""


class TestLevelDBBackend(PersistentBackendContract):
    def open_backend(self, path: Path) -> StorageBackend:
        return LevelDBBackend(BackendOptions(path=path))


class TestLevelDBBackendWithSmallBuffers(PersistentBackendContract):
    """The same with many tables on many levels, and snappy."""

    def open_backend(self, path: Path) -> StorageBackend:
        engine = {"write_buffer_bytes": SMALL, "block_bytes": 1024}
        return LevelDBBackend(BackendOptions(path=path, engine=engine, compression="snappy", cache_bytes=1 << 20))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def small(path: Path) -> LevelDBBackend:
    return LevelDBBackend(BackendOptions(path=path, engine={"write_buffer_bytes": SMALL}))


def put(backend: StorageBackend, *rows: tuple[bytes, bytes]) -> None:
    backend.write(WriteBatch([Put(key, value) for key, value in rows]))


def numbered(count: int, size: int = 500) -> list[tuple[bytes, bytes]]:
    noise = random.Random(count)
    return [(b"%05d" % number, noise.randbytes(size)) for number in range(count)]


def tables(path: Path) -> list[Path]:
    return sorted((path / "db").glob("*.ldb"))


def flip(file: Path, position: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0]
        handle.seek(position)
        handle.write(bytes([byte ^ 0x10]))


# Damage


@pytest.fixture
def damaged(path: Path) -> Path:
    """A store whose rows are in one table, with a flipped bit in the value of the last one."""
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, *numbered(100))
        backend.compact()
    value = numbered(100)[-1][1]
    (table,) = [table for table in tables(path) if value in table.read_bytes()]
    flip(table, table.read_bytes().index(value) + 50)
    return path


def test_checksums_are_verified_by_every_read(damaged: Path) -> None:
    with plyvel.DB(str(damaged / "db")) as raw:
        assert raw.get(b"k00099") not in (None, numbered(100)[-1][1]), "plyvel alone gives the wrong value"
    with closing(LevelDBBackend(BackendOptions(path=damaged))) as backend, closing(backend.snapshot()) as snapshot:
        for reader in (backend, snapshot):
            assert reader.get(b"00000") == numbered(100)[0][1]
            reads: list[Callable[[], object]] = [
                lambda reader=reader: reader.get(b"00099"),  # type: ignore[misc]
                lambda reader=reader: reader.get_many([b"00000", b"00099"]),  # type: ignore[misc]
                lambda reader=reader: list(reader.scan()),  # type: ignore[misc]
                lambda reader=reader: list(reader.scan(reverse=True)),  # type: ignore[misc]
            ]
            for read in reads:
                with pytest.raises(CorruptRecordError):
                    read()


def test_a_scan_never_ends_silently_at_a_damaged_block(damaged: Path) -> None:
    with plyvel.DB(str(damaged / "db"), paranoid_checks=True) as raw:
        assert 0 < len(list(raw.iterator(verify_checksums=True))) < 100, "plyvel's iterator just ends"
    with closing(LevelDBBackend(BackendOptions(path=damaged))) as backend, pytest.raises(CorruptRecordError):
        list(backend.scan(b"00090"))


def test_a_range_is_not_deleted_by_halves_where_it_is_damaged(damaged: Path) -> None:
    with closing(LevelDBBackend(BackendOptions(path=damaged))) as backend:
        with pytest.raises(CorruptRecordError):
            backend.write(WriteBatch([DeleteRange(b"", b"\xff")]))
        assert backend.get(b"00000") == numbered(100)[0][1]


def test_a_missing_file_is_noticed_when_it_is_opened(damaged: Path) -> None:
    tables(damaged)[0].unlink()
    with pytest.raises(CorruptRecordError):
        LevelDBBackend(BackendOptions(path=damaged))
    (damaged / "db" / "CURRENT").unlink()
    with pytest.raises(CorruptRecordError, match="CURRENT"):
        LevelDBBackend(BackendOptions(path=damaged))


def test_a_compaction_that_fails_says_so(damaged: Path) -> None:
    with plyvel.DB(str(damaged / "db"), paranoid_checks=True) as raw:
        raw.put(b"k00098", b"")
        assert raw.compact_range(start=b"", stop=b"\xff") is None, "plyvel alone says nothing"
    with closing(LevelDBBackend(BackendOptions(path=damaged))) as backend:
        put(backend, (b"00098", b""))
        with pytest.raises(CorruptRecordError):
            backend.compact()
        assert backend.get(b"00000") == numbered(100)[0][1]


# Batches and snapshots


def test_what_was_deleted_stays_deleted_whatever_a_snapshot_has_seen(path: Path, tmp_path: Path) -> None:
    # The size makes the border of two tables fall between the deletion and what it deletes.
    size = (1 << 20) - 47
    raw = plyvel.DB(
        str(tmp_path / "raw"),
        create_if_missing=True,
        compression=None,
        block_size=1 << 20,
        max_file_size=1 << 20,
        write_buffer_size=8 << 20,
    )
    with raw:
        raw.put(b"k", b"deleted text")
        with raw.snapshot():
            raw.delete(b"k")
            raw.put(b"b", b"x" * size)
            raw.put(b"z", b"1")
            raw.compact_range(start=b"", stop=b"")
            raw.put(b"a", b"1")
            raw.put(b"z", b"2")
            raw.compact_range(start=b"", stop=b"~")
        assert raw.get(b"k") is None
        raw.put(b"a", b"3")
        raw.put(b"c", b"3")
        raw.compact_range(start=b"", stop=b"d")
        assert raw.get(b"k") == b"deleted text", "LevelDB alone brings it back"

    for seed in range(3):
        chance = random.Random(seed)
        engine = {"write_buffer_bytes": SMALL}
        with closing(LevelDBBackend(BackendOptions(path=path / str(seed), engine=engine))) as backend:
            expected: dict[bytes, bytes] = {}
            for _ in range(40):
                with closing(backend.snapshot()) as snapshot:
                    then = dict(expected)
                    for _ in range(chance.randrange(60)):
                        key, value = b"%03d" % chance.randrange(300), chance.randbytes(chance.choice([10, 20_000]))
                        if chance.random() < 0.5:
                            put(backend, (key, value))
                            expected[key] = value
                        else:
                            backend.write(WriteBatch([Delete(key)]))
                            expected.pop(key, None)
                    backend.compact(b"%03d" % chance.randrange(300), b"%03d" % chance.randrange(300))
                    assert dict(snapshot.scan()) == then
                backend.compact(b"%03d" % chance.randrange(300))
                assert dict(backend.scan()) == expected


def test_a_batch_that_cannot_be_made_leaves_nothing(path: Path) -> None:
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        before = backend.sequence()
        with pytest.raises(TypeError):
            backend.write(WriteBatch([Put(b"a", b"1"), Put(b"b", None)]))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            backend.write(WriteBatch([Put("a", b"1")]))  # type: ignore[arg-type]
        assert list(backend.scan()) == []
        assert backend.sequence() == before
        put(backend, (b"a", b"1"))


def test_a_reverse_scan_finds_a_row_that_is_its_first_key(path: Path, tmp_path: Path) -> None:
    with plyvel.DB(str(tmp_path / "raw"), create_if_missing=True) as raw:
        raw.put(b"a", b"1")
        assert list(raw.iterator(start=b"a", stop=b"b", reverse=True)) == [], "plyvel's iterator does not"
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, (b"a", b"1"))
        assert list(backend.scan(b"a", b"b", reverse=True)) == [(b"a", b"1")]


def test_the_sequence_is_that_of_the_engine(path: Path) -> None:
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, (b"0", b"1"))
        new = backend.sequence()
        put(backend, (b"a", b"1"), (b"b", b"1"), (b"c", b"1"))
        assert backend.sequence() == new + 3
        backend.write(WriteBatch([DeleteRange(b"a", b"c")]))
        assert backend.sequence() == new + 5
    for _ in range(3):
        with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
            assert backend.sequence() == new + 5, "opening it is no write"
    shutil.copytree(path, path.with_name("copy"))
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, (b"d", b"1"))
        assert backend.sequence() == new + 6
    with closing(LevelDBBackend(BackendOptions(path=path.with_name("copy")))) as older:
        assert older.sequence() == new + 5, "lost writes would not be noticed"


def test_the_marker_of_a_sync_counts_only_once_something_is_written_behind_it(path: Path) -> None:
    for _ in range(3):
        with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
            put(backend, (b"a", b"1"))
            before = backend.sequence()
            for _ in range(3):
                backend.sync()
                assert backend.sequence() == before
        with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
            assert backend.sequence() == before
            put(backend, (b"b", b"1"))
            assert backend.sequence() > before


# Creation and opening


def test_a_creation_that_was_cut_short_is_begun_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            LevelDBBackend(BackendOptions(path=path))
    assert not (path / "db").exists()
    (path / "db.new" / "CURRENT").write_bytes(b"")
    with pytest.raises(plyvel.Error):
        plyvel.DB(str(path / "db.new"))
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, (b"a", b"1"))
        assert not (path / "db.new").exists()


def test_it_is_named_only_when_all_its_files_are_on_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real_rename = Path.rename

    def sync(file: Path) -> None:
        synced.append(file.name)

    def rename(self: Path, target: Path) -> Path:
        synced.append("rename")
        assert {file.name for file in self.iterdir()} <= set(synced)
        return real_rename(self, target)

    monkeypatch.setattr(leveldb, "_sync_file", sync)
    monkeypatch.setattr(leveldb, "fsync_directory", sync)
    monkeypatch.setattr(Path, "rename", rename)
    LevelDBBackend(BackendOptions(path=path)).close()
    assert synced[-4:] == ["db.new", "rename", "store", path.parent.name]


def test_another_program_in_the_database_is_a_lock(path: Path) -> None:
    LevelDBBackend(BackendOptions(path=path)).close()
    with plyvel.DB(str(path / "db")), pytest.raises(StoreLockedError):
        LevelDBBackend(BackendOptions(path=path))
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import plyvel, sys; db = plyvel.DB(sys.argv[1]); print(flush=True); input()",
            path / "db",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreLockedError):
            LevelDBBackend(BackendOptions(path=path))
        holder.kill()
    LevelDBBackend(BackendOptions(path=path)).close()


def test_a_database_in_another_order_is_refused(path: Path) -> None:
    path.mkdir()
    backwards = plyvel.DB(
        str(path / "db"),
        create_if_missing=True,
        comparator=lambda a, b: (a < b) - (a > b),
        comparator_name=b"backwards",
    )
    backwards.close()
    with pytest.raises(FormatVersionError):
        LevelDBBackend(BackendOptions(path=path))


def test_a_database_that_is_not_ours_is_refused(path: Path) -> None:
    path.mkdir()
    with plyvel.DB(str(path / "db"), create_if_missing=True) as raw:
        raw.put(b"a", b"1")
    with pytest.raises(FormatVersionError, match="not one of this backend"):
        LevelDBBackend(BackendOptions(path=path))
    with plyvel.DB(str(path / "db")) as raw:
        assert list(raw.iterator()) == [(b"a", b"1")]


def test_settings_are_checked(path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'write_buffer_bytes'"):
        LevelDBBackend(BackendOptions(path=path, engine={"write_bufer_bytes": 1 << 20}))
    for value in (0, -1, "1", 1.5, True, None):
        with pytest.raises(SettingsError, match="block_bytes"):
            LevelDBBackend(BackendOptions(path=path, engine={"block_bytes": value}))
    assert not path.exists()


def test_blocks_are_compressed_where_it_has_the_codec(tmp_path: Path) -> None:
    sizes = {}
    for codec in ("none", "snappy", "zstd"):
        with closing(LevelDBBackend(BackendOptions(path=tmp_path / codec, compression=codec))) as backend:
            put(backend, *((b"%05d" % number, b"tea, " * 100) for number in range(1000)))
            backend.compact()
            sizes[codec] = sum(table.stat().st_size for table in tables(tmp_path / codec))
    assert sizes["snappy"] < sizes["none"] / 5
    assert sizes["zstd"] == sizes["none"]


# Closing


def test_closing_waits_for_a_compaction(path: Path) -> None:
    for _ in range(5):
        backend = small(path)
        put(backend, *numbered(2000))
        begun = threading.Event()

        def compact(backend: LevelDBBackend = backend, begun: threading.Event = begun) -> None:
            with suppress(StoreClosedError):
                while True:
                    begun.set()
                    backend.compact()

        thread = threading.Thread(target=compact)
        thread.start()
        assert begun.wait(60)
        backend.close()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("ends", [LevelDBBackend.close, LevelDBBackend.reopen])
def test_whoever_takes_the_database_from_a_sync_does_not_wait_for_it_for_ever(
    path: Path, ends: Callable[[LevelDBBackend], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LevelDBBackend(BackendOptions(path=path))
    put(backend, (b"a", b"1"))
    syncs, take_database, write_marker = threading.Event(), backend._take_database, backend._write_marker
    taken = threading.Event()

    def taken_meanwhile() -> int:
        syncs.set()
        assert taken.wait(60)
        return write_marker()

    def take() -> object:
        taken.set()
        return take_database()

    monkeypatch.setattr(backend, "_write_marker", taken_meanwhile)
    monkeypatch.setattr(backend, "_take_database", take)
    errors: list[BaseException] = []

    def sync() -> None:
        try:
            backend.sync()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for work in (sync, lambda: ends(backend))]
    threads[0].start()
    assert syncs.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
    backend.close()
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        assert backend.get(b"a") == b"1"


def test_a_snapshot_that_is_dropped_is_let_go(path: Path) -> None:
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, (b"a", b"1"))
        assert backend._database is not None
        for _ in range(10):
            backend.snapshot()
            next(backend.snapshot().scan())
        assert cursors_of(backend._database) == []
        kept = backend.snapshot()
        assert len(cursors_of(backend._database)) == 1
        kept.close()
        assert cursors_of(backend._database) == []


# Durability


@contextmanager
def two_logs(path: Path) -> Iterator[LevelDBBackend]:
    """A backend whose first memtable is full and cannot become a table, so that its log is kept beside the next."""
    backend = small(path)
    number = max(int(log.stem) for log in _leveldb_logs.logs_in(path / "db"))
    for ahead in range(1, 4):
        (path / "db" / f"{number + ahead:06d}.ldb").symlink_to("/dev/full")
    try:
        with suppress(StorageFullError):
            for row in numbered(2000):
                put(backend, row)
        assert len(_leveldb_logs.logs_in(path / "db")) == 2
        yield backend
    finally:
        make_space(path)
        backend.close()


def make_space(path: Path) -> None:
    for file in (path / "db").iterdir():
        if file.is_symlink():
            file.unlink()


def test_sync_covers_the_log_before_the_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_logs(path) as backend:
        synced: list[Path] = []
        monkeypatch.setattr(leveldb, "_sync_file", synced.append)
        backend.sync()
        assert synced == _leveldb_logs.logs_in(path / "db")
        backend.sync()
        assert len(synced) == 2, "nothing was written in between"


def test_on_a_full_disk_no_more_counts_as_there_than_an_opening_will_find(path: Path) -> None:
    """No marker can be written then; and where the logs have become tables, only markers tell how far they reach."""
    with two_logs(path) as backend:
        backend.sync()
        promised = backend.sequence()
    asked: list[int] = []

    def may_open(sequence: int, get: Callable[[bytes], bytes | None], *, damaged: bool) -> bool:
        asked.append(sequence)
        return True

    for log in _leveldb_logs.logs_in(path / "db"):
        log.unlink()
    LevelDBBackend(BackendOptions(path=path, may_open=may_open)).close()
    assert asked[0] >= promised


def test_a_sync_that_fails_is_never_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> None:
        raise OSError(5, "Input/output error")

    backend = LevelDBBackend(BackendOptions(path=path))
    put(backend, (b"a", b"1"))
    with monkeypatch.context() as patched:
        patched.setattr(leveldb, "_sync_file", fail)
        with pytest.raises(OutcomeUnknownError):
            backend.sync()
    with pytest.raises(OutcomeUnknownError):
        backend.sync()
    with pytest.raises(StorageError, match="read-only"):
        put(backend, (b"b", b"1"))
    assert backend.get(b"a") == b"1"
    backend.close()
    with closing(LevelDBBackend(BackendOptions(path=path))) as again:
        put(again, (b"b", b"1"))
        again.sync()
        assert list(again.scan()) == [(b"a", b"1"), (b"b", b"1")]


@pytest.fixture
def powered_off(path: Path) -> Path:
    """A store as a power cut finds it, with two logs of which nothing was synced."""
    with two_logs(path):
        shutil.copytree(path / "db", path.with_name("found") / "db", symlinks=True)
    found = path.with_name("found")
    make_space(found)
    return found


def copy_of(store: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    return shutil.copytree(store, tmp_path / "copy")


def rows_of_plyvel(store: Path) -> list[tuple[bytes, bytes]]:
    with plyvel.DB(str(store / "db"), paranoid_checks=True, write_buffer_size=SMALL) as raw:
        return list(raw.prefixed_db(b"k").iterator(verify_checksums=True))


def rows_of(store: Path) -> list[tuple[bytes, bytes]]:
    with closing(small(store)) as backend:
        return list(backend.scan())


def test_logs_that_are_whole_are_left_alone(powered_off: Path) -> None:
    files = powered_off / "db"
    before = {log: log.read_bytes() for log in _leveldb_logs.logs_in(files)}
    for checksums in (False, True):
        found = _leveldb_logs.examine(files, checksums=checksums)
        assert found is not None
        assert found.then == "end"
        _leveldb_logs.cut(files, found)
    assert {log: log.read_bytes() for log in _leveldb_logs.logs_in(files)} == before
    rows = rows_of(powered_off)
    assert len(rows) > 100
    assert rows == numbered(2000)[: len(rows)]


def test_where_a_power_cut_takes_the_end_of_one_log_the_next_is_not_read(powered_off: Path, tmp_path: Path) -> None:
    copy = copy_of(powered_off, tmp_path)
    os.truncate(_leveldb_logs.logs_in(copy / "db")[0], 30_000)
    rows = rows_of_plyvel(copy_of(copy, tmp_path / "raw"))
    assert rows != numbered(2000)[: len(rows)], "LevelDB alone shows later batches without earlier ones"
    rows = rows_of(copy)
    assert 0 < len(rows) < 100
    assert rows == numbered(2000)[: len(rows)]


def test_a_torn_end_does_not_stop_it_from_opening(powered_off: Path, tmp_path: Path) -> None:
    copy = copy_of(powered_off, tmp_path)
    last = _leveldb_logs.logs_in(copy / "db")[-1]
    size = last.stat().st_size
    os.truncate(last, size - 300)
    os.truncate(last, size)
    with pytest.raises(plyvel.CorruptionError):
        rows_of_plyvel(copy_of(copy, tmp_path / "raw"))
    rows = rows_of(copy)
    assert len(rows) > 100
    assert rows == numbered(2000)[: len(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_power_cut_takes_a_prefix_is_left(powered_off: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        copy = copy_of(powered_off, tmp_path)
        for log in _leveldb_logs.logs_in(copy / "db"):
            size = log.stat().st_size
            what, cut = chance.randrange(4), chance.randrange(size)
            if what in {0, 1}:
                os.truncate(log, cut)
            if what == 1:  # Its length reached the disk, its content did not.
                os.truncate(log, size)
            if what == 2:
                content = bytearray(log.read_bytes())
                for _ in range(chance.randrange(1, 4)):
                    lost = chance.randrange(0, size, 4096)
                    content[lost : lost + 4096] = bytes(len(content[lost : lost + 4096]))
                log.write_bytes(content)
        rows = rows_of(copy)
        assert rows == numbered(2000)[: len(rows)]
        assert rows_of(copy) == rows


def test_what_a_lost_log_held_is_not_taken_for_held_by_tables(path: Path, tmp_path: Path) -> None:
    """The manifest counts operations that are in the newer log alone; the marker of the last sync does not."""
    with closing(small(path)) as backend:
        oldest = _leveldb_logs._current_state(path / "db")
        number = 0
        while (found := _leveldb_logs._current_state(path / "db")) == oldest:  # until a table is made
            put(backend, (b"%d" % number, bytes(1000)))
            number += 1
        assert oldest is not None
        assert found is not None
        backend.sync()
    copy = copy_of(path, tmp_path)
    for log in _leveldb_logs.logs_in(copy / "db"):
        log.unlink()
    asked: list[int] = []

    def may_open(sequence: int, get: Callable[[bytes], bytes | None], *, damaged: bool) -> bool:
        asked.append(sequence)
        return True

    LevelDBBackend(BackendOptions(path=copy, may_open=may_open)).close()
    assert asked == [2], f"the manifest says {found[1]}"


@pytest.mark.parametrize("log", [0, 1])
def test_a_flipped_bit_in_a_log_is_refused_and_nothing_removed(powered_off: Path, tmp_path: Path, log: int) -> None:
    chance = random.Random(log)
    for _ in range(25):
        copy = copy_of(powered_off, tmp_path)
        logs = _leveldb_logs.logs_in(copy / "db")
        flip(logs[log], chance.randrange(logs[log].stat().st_size))
        damaged = [file.read_bytes() for file in logs]
        with pytest.raises(CorruptRecordError):
            small(copy)
        assert [file.read_bytes() for file in logs] == damaged


# A full disk


def test_a_table_that_finds_no_space_stops_writes_until_there_is_some(path: Path) -> None:
    with two_logs(path) as backend:
        rows = list(backend.scan())
        snapshot, scan = backend.snapshot(), backend.scan()
        assert list(backend.scan()) == rows, "reads go on"
        assert snapshot.get(rows[0][0]) == rows[0][1]
        make_space(path)
        put(backend, (b"more", b"1"))
        assert list(backend.scan()) == [*rows, (b"more", b"1")]
        for call in (lambda: snapshot.get(b"more"), lambda: next(scan)):
            with pytest.raises(StoreClosedError, match="reopened"):
                call()
        snapshot.close()
    with closing(small(path)) as again:
        assert list(again.scan()) == [*rows, (b"more", b"1")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def fill(backend: StorageBackend, prefix: bytes, value: bytes, acknowledged: dict[bytes, bytes]) -> None:
    """Write until the disk is full."""
    for number in range(20_000):
        key = b"%s/%05d" % (prefix, number)
        try:
            put(backend, (key, value))
        except StorageFullError:
            return
        acknowledged[key] = value
    pytest.fail("the disk never was full")


def test_no_write_that_was_acknowledged_is_lost_on_a_full_disk(small_disk: Path) -> None:
    with closing(small(small_disk / "store")) as backend:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(5 << 20))
        acknowledged: dict[bytes, bytes] = {}
        noise = os.urandom(500)
        for cycle in range(3):
            fill(backend, b"/%d" % cycle, noise, acknowledged)
            for _ in range(3):
                with suppress(StorageFullError):
                    put(backend, (b"refused, or not", b""))
                    acknowledged[b"refused, or not"] = b""
            assert dict(backend.scan()) == acknowledged
            os.truncate(ballast, (4 - cycle) << 20)
            put(backend, (b"after %d" % cycle, b"1"))
            acknowledged[b"after %d" % cycle] = b"1"
            assert dict(backend.scan()) == acknowledged
            backend.sync()
    with closing(small(small_disk / "store")) as again:
        assert dict(again.scan()) == acknowledged


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_nothing_is_written_behind_half_a_record(path: Path, tmp_path: Path) -> None:
    rows = numbered(200)
    with plyvel.DB(str(tmp_path / "raw"), create_if_missing=True) as raw:
        with file_size_limit(50_000), suppress(plyvel.IOError):
            for row in rows:
                raw.put(*row)
        raw.put(b"acknowledged", b"1")
    with plyvel.DB(str(tmp_path / "raw")) as raw:
        assert raw.get(b"acknowledged") is None, "plyvel alone loses it"
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        with file_size_limit(50_000):
            written = next(number for number, row in enumerate(rows) if outcome(backend, row) == "OutcomeUnknownError")
        with pytest.raises(StorageError, match="read-only"):
            put(backend, (b"more", b"1"))
        assert list(backend.scan()) == rows[:written]
    with closing(LevelDBBackend(BackendOptions(path=path))) as again:
        put(again, (b"acknowledged", b"1"))
        assert list(again.scan()) == [*rows[:written], (b"acknowledged", b"1")]


def outcome(backend: StorageBackend, row: tuple[bytes, bytes]) -> str:
    try:
        put(backend, row)
    except StorageError as error:
        return type(error).__name__
    return "written"


# Erasing


def test_compaction_alone_does_not_erase(path: Path, tmp_path: Path) -> None:
    secret = os.urandom(16)
    with plyvel.DB(str(tmp_path / "raw"), create_if_missing=True, compression=None) as raw:
        raw.put(b"a", secret)
        raw.delete(b"a")
        for _ in range(3):
            raw.compact_range(start=b"", stop=b"\xff")
        assert any(secret in file.read_bytes() for file in (tmp_path / "raw").glob("*.ldb"))
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, (b"a", secret))
        backend.write(WriteBatch([Delete(b"a")]))
        backend.erase([(b"a", b"b")])
        assert not any(secret in content for _, content in contents(path))


def test_erased_keys_are_in_no_file_either(path: Path) -> None:
    # The list of tables and LevelDB's own log name the keys at the edges of tables and compactions.
    with closing(small(path)) as backend:
        secret = b"a secret"
        put(backend, *numbered(1000))
        for place in (b"", b"00500", b"00999", b"99999"):
            for number in range(300):
                put(backend, (place + secret + b"%d" % number, b"x" * 300))
            backend.compact()
            backend.write(WriteBatch([DeleteRange(place + secret, place + secret + b"\xff")]))
            backend.erase([(place + secret, place + secret + b"\xff")])
            found = [file.name for file, content in contents(path) if secret in content]
            assert found == []
        assert list(backend.scan()) == numbered(1000)


def test_an_open_scan_stops_erasing_and_a_finished_one_does_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leveldb, "_VIEW_CHECKS", 2)
    with closing(LevelDBBackend(BackendOptions(path=path))) as backend:
        put(backend, (b"a", b"1"), (b"b", b"2"))
        scan = backend.scan()
        next(scan)
        with pytest.raises(StorageError, match="scan"):
            backend.erase([(b"a", b"b")])
        assert list(scan) == [(b"b", b"2")]
        backend.erase([(b"a", b"b")])


def test_others_read_and_write_while_it_erases(path: Path) -> None:
    with closing(small(path)) as backend:
        put(backend, *numbered(500))
        done = threading.Event()
        errors: list[Exception] = []

        def work() -> None:
            expected = numbered(500)[100:200]
            try:
                while not done.is_set():
                    put(backend, (b"x", b"y" * 100))
                    assert backend.get(b"x") == b"y" * 100
                    assert list(backend.scan(b"00100", b"00200")) == expected
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(3):
                backend.erase([(b"00100", b"00150")])
        finally:
            done.set()
        thread.join(60)
        assert errors == []
        assert len(list(backend.scan(b"0", b"1"))) == 500
