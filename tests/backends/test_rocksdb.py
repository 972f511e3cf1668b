"""The RocksDB engine: the contract, then one test for each trap of the binding, failing without what we do about it."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from rocksdict import Options, Rdict

from qilbee_core.backends.rocksdb import RocksDBBackend
from qilbee_core.batch import DeleteRange, Expect, Put, WriteBatch
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidError,
    SettingsError,
)
from qilbee_core.interfaces import (
    JSON,
    BackendOptions,
    StorageBackend,
    SupportsCheckpoint,
    SupportsCompaction,
    SupportsErase,
    SupportsNativeCompression,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.testing import PersistentBackendContract

_PATIENCE_S = 60.0
_SMALL: Mapping[str, JSON] = {"write_buffer_bytes": 64 << 10}


class TestContract(PersistentBackendContract):
    def open_backend(self, path: Path) -> RocksDBBackend:
        return RocksDBBackend(BackendOptions(path=path))


class TestContractWithSmallBuffersAndZstd(PersistentBackendContract):
    """The same, with memtables that are sealed all the time."""

    state_machine_examples = 3

    def open_backend(self, path: Path) -> RocksDBBackend:
        options = BackendOptions(path=path, compression="zstd", cache_bytes=1 << 20)
        return RocksDBBackend(BackendOptions(path=options.path, compression="zstd", engine=_SMALL))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def backend(path: Path) -> Iterator[RocksDBBackend]:
    with closing(open_backend(path)) as backend:
        yield backend


def open_backend(path: Path, **options: Any) -> RocksDBBackend:
    return RocksDBBackend(BackendOptions(path=path, **options))


def put(backend: StorageBackend, *rows: tuple[bytes, bytes]) -> None:
    backend.write(WriteBatch([Put(key, value) for key, value in rows]))


def numbered(count: int, size: int = 100) -> list[tuple[bytes, bytes]]:
    noise = random.Random(7)
    return [(b"%06d" % number, noise.randbytes(size)) for number in range(count)]


def files(path: Path, suffix: str) -> list[Path]:
    return sorted((path / "db").glob(f"*{suffix}"))


def options_in_force(path: Path) -> dict[str, str]:
    """What RocksDB itself wrote down about how it was opened last."""
    newest = max((path / "db").glob("OPTIONS-*"), key=lambda file: int(file.name.partition("-")[2]))
    lines = newest.read_text().splitlines()
    return dict(line.strip().split("=", 1) for line in lines if "=" in line)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


def damage_the_middle(path: Path) -> None:
    largest = max(files(path, ".sst"), key=lambda file: file.stat().st_size)
    flip(largest, largest.stat().st_size // 2)


def run_script(script: str, *arguments: object) -> str:
    """The output of ``script`` in a new interpreter, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PRELUDE) + textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        timeout=_PATIENCE_S,
        check=True,
        text=True,
    )
    return done.stdout


_PRELUDE = """
import os, signal, sys, threading, time
from pathlib import Path
from qilbee_core.backends.rocksdb import RocksDBBackend
from qilbee_core.batch import Delete, Put, WriteBatch
from qilbee_core.errors import StorageError, StoreClosedError
from qilbee_core.interfaces import BackendOptions
path = Path(sys.argv[1])
"""


class Spy:
    """Stands between the backend and rocksdict, writes down the calls, and can make one fail."""

    def __init__(self, backend: RocksDBBackend) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.failures: dict[str, str] = {}
        self._real = backend._database
        backend._database = cast("Rdict", self)
        backend._write_raw = self.write

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            self.calls.append((name, *arguments))
            if name in self.failures:
                raise Exception(self.failures[name])
            return getattr(self._real, name)(*arguments)

        return call

    def write(self, raw: object) -> None:
        self.__getattr__("write")(raw)

    def log(self, *names: str) -> list[tuple[object, ...]]:
        """The calls of these names since the last time, without the batches of writes."""
        calls, self.calls = self.calls, []
        return [(call[:1] if call[0] == "write" else call) for call in calls if call[0] in names]


def test_it_offers_all_that_an_engine_may_offer(backend: RocksDBBackend) -> None:
    for protocol in (
        SupportsCheckpoint,
        SupportsCompaction,
        SupportsErase,
        SupportsNativeCompression,
        SupportsSequence,
        SupportsStats,
    ):
        assert isinstance(backend, protocol)


class TestOptions:
    def test_what_is_stored_are_the_bytes_and_no_pickle_of_them(self, path: Path) -> None:
        pickled = pickle.dumps({"any": "object"})
        with closing(open_backend(path)) as backend:
            put(backend, (b"key", pickled))
            assert backend.get(b"key") == pickled
        options = Options(raw_mode=True)
        database = Rdict(str(path / "db"), options, column_families={"default": options})
        assert list(database.items()) == [(b"key", pickled)]
        database.close()

    @pytest.mark.parametrize("again", [False, True])
    def test_the_options_hold_on_new_and_on_existing_databases(self, path: Path, again: bool) -> None:
        if again:
            options = Options(raw_mode=True)
            Rdict(str(path / "db"), options).close() if path.mkdir() is None else None
        open_backend(path, compression="zstd", engine={"block_bytes": 8192, "background_jobs": 3}).close()
        assert options_in_force(path).items() >= {
            ("block_size", "8192"),
            ("max_background_jobs", "3"),
            ("filter_policy", "bloomfilter:10:false"),
            ("cache_index_and_filter_blocks", "true"),
            ("pin_l0_filter_and_index_blocks_in_cache", "true"),
            ("compression", "kLZ4Compression"),
            ("bottommost_compression", "kZSTD"),
            ("level_compaction_dynamic_level_bytes", "true"),
            ("wal_recovery_mode", "kTolerateCorruptedTailRecords"),
        }

    def test_the_cache_is_as_large_as_asked(self, path: Path) -> None:
        open_backend(path).close()
        with closing(open_backend(path, cache_bytes=3 << 20)) as backend:
            assert backend.stats()["block_cache_capacity_bytes"] == 3 << 20

    def test_every_codec_reads_what_the_others_wrote(self, path: Path) -> None:
        codecs = ["none", "lz4", "zstd", "snappy", "none"]
        sizes = {}
        for turn, codec in enumerate(codecs):
            with closing(open_backend(path, compression=codec)) as backend:
                put(backend, *((b"%d/%04d" % (turn, number), b"the same old story " * 20) for number in range(1000)))
                assert len(list(backend.scan())) == 1000 * (turn + 1)
                backend.compact()
                assert [value for _, value in backend.scan()] == [b"the same old story " * 20] * 1000 * (turn + 1)
                sizes[codec, turn] = sum(file.stat().st_size for file in files(path, ".sst")) // (turn + 1)
        assert max(sizes["lz4", 1], sizes["zstd", 2], sizes["snappy", 3]) < min(sizes["none", 0], sizes["none", 4]) / 4

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"compression": "zstandard"}, "did you mean 'zstd'"),
            ({"compression": "gzip-9"}, "it has lz4, none, snappy, zstd"),
            ({"engine": {"write_bufer_bytes": 1 << 20}}, "did you mean 'write_buffer_bytes'"),
            ({"engine": {"colour": 1}}, "it has background_jobs, block_bytes, write_buffer_bytes"),
            ({"engine": {"block_bytes": "16k"}}, "whole number above 0, not '16k'"),
            ({"engine": {"background_jobs": 0}}, "whole number above 0, not 0"),
            ({"engine": {"background_jobs": True}}, "whole number above 0, not True"),
        ],
    )
    def test_an_unknown_setting_is_refused_before_anything_is_made(
        self, path: Path, options: dict[str, Any], hint: str
    ) -> None:
        with pytest.raises(SettingsError, match=hint):
            open_backend(path, **options)
        assert not path.exists()

    def test_few_diagnostic_logs_are_kept(self, path: Path) -> None:
        for _ in range(9):
            open_backend(path).close()
        assert len(list((path / "db").glob("LOG*"))) == 5

    def test_the_files_are_for_the_user_alone(self, backend: RocksDBBackend, path: Path) -> None:
        assert path.stat().st_mode & 0o077 == 0


class TestReading:
    def test_no_scan_leaves_its_bounds(self, backend: RocksDBBackend) -> None:
        rows = numbered(2000)
        put(backend, *rows)
        backend.compact()
        chance = random.Random(3)
        scans = []
        for _ in range(200):
            low, high = sorted(chance.sample(range(2000), 2))
            reverse = chance.random() < 0.5
            scans.append((backend.scan(rows[low][0], rows[high][0], reverse=reverse), low, high, reverse))
        chance.shuffle(scans)
        for scan, low, high, reverse in scans:
            assert list(scan) == (rows[low:high][::-1] if reverse else rows[low:high])

    def test_a_snapshot_is_one_instant_to_all_its_readers(self, backend: RocksDBBackend) -> None:
        rows = numbered(2000)
        put(backend, *rows)
        snapshot = backend.snapshot()
        backend.write(WriteBatch([DeleteRange(b"", b"001000"), Put(b"000500", b"new"), Put(b"001500", b"changed")]))
        backend.sync()
        backend.compact()
        wrong: list[object] = []

        def read(seed: int) -> None:
            chance = random.Random(seed)
            upwards, downwards = snapshot.scan(), snapshot.scan(reverse=True)
            for row in rows:
                key, value = chance.choice(rows)
                seen = [next(upwards), next(downwards), snapshot.get(key), snapshot.get_many([key, key])]
                if seen != [row, rows[-1 - rows.index(row)], value, [value, value]]:
                    wrong.append(seen)
            wrong.extend([*upwards, *downwards])

        in_threads(*(lambda seed=seed: read(seed) for seed in range(8)))  # type: ignore[misc]
        assert wrong == []
        snapshot.close()
        assert len(list(backend.scan())) == 1001

    def test_a_long_list_is_read_in_order_with_duplicates(self, backend: RocksDBBackend) -> None:
        rows = numbered(300)
        put(backend, *rows)
        keys = [key for key, _ in rows] * 2 + [b"none"] * 3
        random.Random(5).shuffle(keys)
        assert backend.get_many(keys) == [dict(rows).get(key) for key in keys]
        assert backend.get_many(tuple(keys)) == backend.get_many(keys)

    def test_what_is_not_bytes_is_refused(self, backend: RocksDBBackend) -> None:
        wrong = cast("bytes", bytearray(b"key"))
        for call in (
            lambda: backend.get(wrong),
            lambda: list(backend.scan(wrong)),
            lambda: put(backend, (b"fine", b""), (b"key", wrong)),
            lambda: put(backend, (b"fine", b""), (wrong, b"value")),
        ):
            with pytest.raises(InvalidError, match="of type bytes"):
                call()
        assert list(backend.scan()) == []


class TestDamage:
    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_damaged_block_ends_a_scan_with_an_error(self, path: Path, reverse: bool) -> None:
        rows = numbered(5000)[:: -1 if reverse else 1]
        with closing(open_backend(path)) as backend:
            put(backend, *rows)
            backend.compact()
        damage_the_middle(path)
        with closing(open_backend(path)) as backend:
            for reader in (backend, backend.snapshot()):
                scan = reader.scan(reverse=reverse)
                seen = []
                with pytest.raises(CorruptRecordError, match="checksum mismatch"):
                    seen.extend(iter(lambda scan=scan: next(scan), None))  # type: ignore[misc]
                assert 0 < len(seen) < len(rows)
                assert seen == rows[: len(seen)]
                lost = rows[len(seen) + 1][0]
                with pytest.raises(CorruptRecordError):
                    reader.get(lost)
                with pytest.raises(CorruptRecordError):
                    reader.get_many([rows[0][0], lost])
                with pytest.raises(CorruptRecordError):
                    reader.get_many([rows[0][0]] * 100 + [lost])
                with pytest.raises(CorruptRecordError):
                    next(reader.scan(lost))

    def test_compaction_over_damage_says_so(self, path: Path) -> None:
        with closing(open_backend(path)) as backend:
            put(backend, *numbered(5000))
            backend.compact()
        damage_the_middle(path)
        backend = open_backend(path)
        put(backend, (b"last", b"1"))
        with pytest.raises(CorruptRecordError, match="checksum mismatch"):
            backend.compact()
        with pytest.raises(CorruptRecordError, match="checksum mismatch"):
            backend.erase([(b"", None)])
        with pytest.raises(CorruptRecordError, match="checksum mismatch"):  # what RocksDB does after that
            put(backend, (b"more", b"1"))
        backend.close()
        with closing(open_backend(path)) as again:
            assert again.get(b"last") == b"1"

    def test_a_log_damaged_in_the_middle_is_refused(self, path: Path) -> None:
        log = self.unflushed_log(path)
        whole = log.read_bytes()
        for at in range(len(whole) // 20, len(whole), len(whole) // 10):
            flip(log, at)
            with pytest.raises(CorruptRecordError, match=r"does not open.*restore a copy, or recover by name"):
                open_backend(path)
            log.write_bytes(whole)
        with closing(open_backend(path)) as backend:
            assert list(backend.scan()) == numbered(1000)

    def test_a_torn_end_of_the_log_costs_the_last_batch_alone(self, path: Path) -> None:
        log = self.unflushed_log(path)
        log.write_bytes(log.read_bytes()[:-50])
        with closing(open_backend(path)) as backend:
            assert list(backend.scan()) == numbered(1000)[:-1]

    def test_zeros_after_the_end_of_the_log_cost_nothing(self, path: Path) -> None:
        log = self.unflushed_log(path)
        log.write_bytes(log.read_bytes() + bytes(8192))
        with closing(open_backend(path)) as backend:
            assert list(backend.scan()) == numbered(1000)

    @pytest.mark.parametrize("tail", [bytes(60), b"garbage" * 600], ids=["zeros", "garbage"])
    def test_a_last_record_that_is_not_what_was_written_is_refused(self, path: Path, tail: bytes) -> None:
        """A legal torn write too; which of the two it is, only the watermark above the engine can tell."""
        log = self.unflushed_log(path)
        log.write_bytes(log.read_bytes()[: -60 if tail[0] == 0 else None] + tail)
        with pytest.raises(CorruptRecordError):
            open_backend(path)

    def test_a_refused_database_is_locked_by_nobody(self, path: Path) -> None:
        log = self.unflushed_log(path)
        flip(log, 1000)
        for _ in range(2):
            with pytest.raises(CorruptRecordError):
                open_backend(path)

    @staticmethod
    def unflushed_log(path: Path) -> Path:
        """The log of a killed process that put :func:`numbered` (1000), one by one."""
        rows = path.with_name("rows")
        rows.write_bytes(pickle.dumps(numbered(1000)))
        run_script(
            """
            import pickle
            backend = RocksDBBackend(BackendOptions(path=path))
            for key, value in pickle.loads(Path(sys.argv[2]).read_bytes()):
                backend.write(WriteBatch([Put(key, value)]))
            os._exit(0)
            """,
            path,
            rows,
        )
        (log,) = files(path, ".log")
        return log


class TestWriting:
    def test_no_write_syncs_and_one_sync_serves_all(self, backend: RocksDBBackend) -> None:
        spy = Spy(backend)
        for number in range(100):
            put(backend, (b"%d" % number, b""))
        assert spy.log("write", "flush", "flush_wal") == [("write",)] * 100
        backend.sync()
        assert spy.log("flush", "flush_wal") == [("flush_wal", True)]

    def test_a_sync_with_nothing_new_does_nothing(self, backend: RocksDBBackend) -> None:
        spy = Spy(backend)
        backend.sync()
        assert spy.log("flush", "flush_wal") == []
        put(backend, (b"a", b""))
        backend.sync()
        backend.sync()
        assert spy.log("flush", "flush_wal") == [("flush_wal", True)]

    def test_a_sync_waits_for_the_one_that_carries_its_writes(self, backend: RocksDBBackend) -> None:
        put(backend, (b"a", b""))
        spy, begun, go_on = Spy(backend), threading.Event(), threading.Event()
        real = spy._real.flush_wal

        def flush_wal(sync: bool) -> None:
            begun.set()
            assert go_on.wait(_PATIENCE_S)
            real(sync)

        spy.flush_wal = flush_wal  # type: ignore[attr-defined]
        first, second = (threading.Thread(target=backend.sync, daemon=True) for _ in range(2))
        first.start()
        assert begun.wait(_PATIENCE_S)
        second.start()
        second.join(0.1)
        assert second.is_alive()
        put(backend, (b"b", b""))  # writes go on meanwhile
        go_on.set()
        for thread in (first, second):
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()

    def test_other_threads_run_during_a_sync(self, backend: RocksDBBackend) -> None:
        """They could not if ``flush`` or ``flush_wal`` held the GIL, as a write with sync does."""
        turns = 0
        stop = threading.Event()

        def count() -> None:
            nonlocal turns
            while not stop.is_set():
                turns += 1

        thread = threading.Thread(target=count, daemon=True)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(100)  # nobody is made to let go of the GIL
        try:
            thread.start()
            for number in range(2000):
                put(backend, (b"%d" % number, b""))
                backend.sync()
                if turns:
                    break
            assert turns
        finally:
            stop.set()
            sys.setswitchinterval(interval)
            thread.join(_PATIENCE_S)

    def test_the_log_is_synced_before_another_is_begun(self, path: Path) -> None:
        with closing(open_backend(path, engine=_SMALL)) as backend:
            spy = Spy(backend)
            for row in numbered(3000):
                put(backend, row)
            calls = spy.log("flush", "flush_wal")
            assert len(calls) >= 8
            assert calls == [("flush_wal", True), ("flush", False)] * (len(calls) // 2)
        log = (path / "db" / "LOG").read_text()
        assert '"flush_reason": "Manual Flush"' in log
        assert '"flush_reason": "Write Buffer Full"' not in log

    def test_a_batch_that_alone_fills_the_memtable_is_written(self, path: Path) -> None:
        rows = numbered(10_000)
        with closing(open_backend(path, engine=_SMALL)) as backend:
            for _ in range(3):
                put(backend, *rows)
            put(backend, (b"after", b"1"))
            assert list(backend.scan(b"", b"after")) == rows
        assert '"flush_reason": "Write Buffer Full"' not in (path / "db" / "LOG").read_text()

    def test_without_a_log_only_a_sync_or_close_keeps_what_was_written(self, path: Path) -> None:
        script = """
            backend = RocksDBBackend(BackendOptions(path=path, wal=False))
            backend.write(WriteBatch([Put(b"synced", b"1")]))
            backend.sync()
            backend.write(WriteBatch([Put(b"not synced", b"1")]))
            if sys.argv[2] == "close":
                backend.close()
            os._exit(0)
        """
        for end, kept in (("die", [(b"synced", b"1")]), ("close", [(b"not synced", b"1"), (b"synced", b"1")])):
            run_script(script, path, end)
            assert [file.stat().st_size for file in files(path, ".log")] == [0]
            with closing(open_backend(path, wal=False)) as backend:
                assert list(backend.scan()) == kept

    def test_an_inverted_range_does_not_break_the_database(self, backend: RocksDBBackend) -> None:
        put(backend, (b"a", b"1"))
        backend.write(WriteBatch([DeleteRange(b"z", b"a"), DeleteRange(b"a", b"a"), Put(b"b", b"2")]))
        put(backend, (b"c", b"3"))
        assert list(backend.scan()) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]

    def test_a_conflict_names_the_key_and_writes_nothing(self, backend: RocksDBBackend) -> None:
        with pytest.raises(ConflictError, match=b"key".hex()):
            backend.write(WriteBatch([Put(b"other", b"")], [Expect(b"key", b"value")]))
        assert list(backend.scan()) == []


class TestStall:
    @staticmethod
    @contextmanager
    def stall(backend: RocksDBBackend) -> Iterator[None]:
        """Let RocksDB refuse writes until the end of the block."""
        database = backend._database
        for number in range(3):
            put(backend, (b"before%d" % number, b""))
            database.flush()
        triggers = ("file_num_compaction_trigger", "slowdown_writes_trigger", "stop_writes_trigger")
        database.set_options({"disable_auto_compactions": "true"})
        database.set_options({f"level0_{name}": "1" for name in triggers})
        database.set_options({"disable_auto_compactions": "false", "max_compaction_bytes": "1"})
        yield
        usual = dict(zip(triggers, ("4", "20", "36"), strict=True))
        database.set_options({f"level0_{name}": value for name, value in usual.items()})

    def test_a_write_waits_for_the_end_of_a_stall_and_readers_do_not(self, backend: RocksDBBackend) -> None:
        with self.stall(backend):
            assert backend.stats()["writes_stopped"] is True


def in_threads(*tasks: Callable[[], object]) -> None:
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_S)
        assert not thread.is_alive(), "a thread hangs"
