"""The RocksDB engine: the contract, then one test for each trap of the binding, failing without what we do about it."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from rocksdict import Options, Rdict

from qilbee_core.backends import rocksdb
from qilbee_core.backends._rocksdb_errors import reraise
from qilbee_core.backends._rocksdb_options import write_options
from qilbee_core.backends.rocksdb import RocksDBBackend
from qilbee_core.batch import Delete, DeleteRange, Expect, Put, WriteBatch
from qilbee_core.episode import JSON
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidError,
    OutcomeUnknownError,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
    WriteStallError,
)
from qilbee_core.interfaces import (
    BackendOptions,
    StorageBackend,
    SupportsCheckpoint,
    SupportsCompaction,
    SupportsErase,
    SupportsNativeCompression,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.patience import patiently
from qilbee_core.testing import PersistentBackendContract
from qilbee_core.testing._backend_uses import contents

_PATIENCE_S = 60.0
_SMALL: Mapping[str, JSON] = {"write_buffer_bytes": 64 << 10}


class TestContract(PersistentBackendContract):
    def open_backend(self, path: Path) -> RocksDBBackend:
        return RocksDBBackend(BackendOptions(path=path))


class TestContractWithSmallBuffersAndZstd(PersistentBackendContract):
    """The same, with memtables that are sealed all the time."""

    state_machine_examples = 3

    def open_backend(self, path: Path) -> RocksDBBackend:
        return RocksDBBackend(BackendOptions(path=path, compression="zstd", cache_bytes=1 << 20, engine=_SMALL))


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
        timeout=5 * _PATIENCE_S,
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
        self.before: dict[str, Callable[[], object]] = {}
        self._real = backend._database
        backend._database = cast("Rdict", self)
        backend._write_raw = self.write

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            self.calls.append((name, *arguments))
            self.before.get(name, bool)()
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

    @pytest.mark.parametrize("existing", [False, True])
    def test_the_options_hold_on_new_and_on_existing_databases(self, path: Path, existing: bool) -> None:
        if existing:
            path.mkdir()
            Rdict(str(path / "db"), Options(raw_mode=True)).close()
            assert options_in_force(path)["filter_policy"] == "nullptr"
        open_backend(path, compression="zstd", engine={"block_bytes": 8192, "background_jobs": 3}).close()
        assert options_in_force(path).items() >= {
            ("block_size", "8192"),
            ("max_background_jobs", "3"),
            ("filter_policy", "bloomfilter"),
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
            ({"engine": {"block_bytes": "16k"}}, "whole number from 1024 to 1048576, not '16k'"),
            ({"engine": {"background_jobs": 0}}, "whole number from 1 to 64, not 0"),
            ({"engine": {"background_jobs": True}}, "whole number from 1 to 64, not True"),
            ({"engine": {"write_buffer_bytes": 1 << 63}}, "whole number from 65536 to 4294967296"),
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

        threads = [threading.Thread(target=read, args=(seed,), daemon=True) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()
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
                seen: list[tuple[bytes, bytes]] = []
                with pytest.raises(CorruptRecordError, match="checksum mismatch"):
                    collect(scan, seen)
                assert 0 < len(seen) < len(rows)
                assert seen == rows[: len(seen)]
                # What lies beside the damage is as good as ever.
                assert reader.get(seen[-1][0]) == seen[-1][1]
                assert next(reader.scan(seen[-1][0])) == seen[-1]
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
            with pytest.raises(CorruptRecordError, match=r'does not open.*restore a copy, or .*recover="tail"'):
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

    def test_one_sync_serves_those_who_wait_for_it(self, backend: RocksDBBackend) -> None:
        put(backend, (b"a", b""))
        spy, begun, go_on = Spy(backend), threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            assert go_on.wait(_PATIENCE_S)

        spy.before["flush_wal"] = wait
        threads = [threading.Thread(target=backend.sync, daemon=True) for _ in range(3)]
        threads[0].start()
        assert begun.wait(_PATIENCE_S)
        for thread in threads[1:]:
            thread.start()
        threads[2].join(0.05)
        assert all(thread.is_alive() for thread in threads), "a sync that is not over cannot serve anybody"
        go_on.set()
        for thread in threads:
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()
        assert spy.log("flush_wal") == [("flush_wal", True)]

    def test_a_sync_neither_stops_writes_nor_forgets_those_that_come_meanwhile(self, backend: RocksDBBackend) -> None:
        put(backend, (b"a", b""))
        spy = Spy(backend)
        spy.before["flush_wal"] = lambda: put(backend, (b"b", b""))
        backend.sync()
        spy.before.clear()
        backend.sync()
        backend.sync()
        assert spy.log("flush_wal") == [("flush_wal", True)] * 2

    def test_the_options_of_a_write_let_nobody_wait_in_the_engine(self, path: Path) -> None:
        for wal in (True, False):
            options = write_options(BackendOptions(path=path, wal=wal))
            assert [options.sync, options.no_slowdown, cast("object", options.disable_wal)] == [False, True, not wal]

    def test_other_threads_run_during_a_sync(self, backend: RocksDBBackend) -> None:
        turns = 0
        stop = threading.Event()

        def count() -> None:
            nonlocal turns
            while not stop.is_set():
                turns += 1
                time.sleep(0)

        thread = threading.Thread(target=count, daemon=True)
        interval = sys.getswitchinterval()
        thread.start()
        sys.setswitchinterval(_PATIENCE_S)  # from here on a thread runs only while another lets go of the GIL
        try:
            for number in range(1000):
                put(backend, (b"%d" % number, b""))
                before = turns
                backend.sync()
                if turns > before:
                    break
            assert turns > before
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
            calls_that_flush: list[Callable[[], None]] = [backend.compact, lambda: backend.erase([(b"", None)])]
            for call in calls_that_flush:
                put(backend, (b"a", b""))
                call()
                assert spy.log("flush", "flush_wal", "compact_range")[:2] == [("flush_wal", True), ("flush", False)]

    @pytest.mark.parametrize("size", [0, 100, 20_000])
    def test_the_engine_never_begins_another_log_by_itself(self, path: Path, size: int) -> None:
        with closing(open_backend(path, engine={"write_buffer_bytes": 256 << 10})) as backend:
            for number in range(min(30_000, 1_500_000 // (size + 30))):
                put(backend, (b"%d" % number, bytes(size)))
        log = (path / "db" / "LOG").read_text()
        assert log.count('"flush_reason": "Manual Flush"') > 3
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
    def test_a_write_that_compaction_holds_up_is_refused_at_once_with_nothing_written(
        self, backend: RocksDBBackend
    ) -> None:
        stall(backend)
        assert backend.stats()["writes_stopped"] is True
        with pytest.raises(WriteStallError, match=r"takes no write.*wait and retry.*background_jobs"):
            put(backend, (b"after", b"1"))
        assert backend.get(b"after") is None
        assert backend.get(b"1") == b""
        assert list(backend.snapshot().scan(b"1", b"2")) == [(b"1", b"")]
        patiently(lambda: put(backend, (b"after", b"1")))
        assert backend.get(b"after") == b"1"
        assert backend.stats()["writes_stopped"] is False


def stall(backend: RocksDBBackend) -> None:
    """Give it 20 files and say that this is far too many, so that it takes no write before it has compacted them."""
    triggers = [f"level0_{name}_trigger" for name in ("file_num_compaction", "slowdown_writes", "stop_writes")]
    backend._database.set_options(dict.fromkeys(triggers, "1000"))
    for _, value in numbered(20, size=1 << 20):
        put(backend, (b"0", value), (b"1", b""), (b"2", value))  # files that overlap, or they are only moved
        backend._database.flush()
    backend._database.set_options(dict.fromkeys(triggers, "1"))


class TestFailure:
    def test_an_io_error_leaves_the_write_unknown_and_refuses_the_next(self, path: Path) -> None:
        backend = open_backend(path)
        put(backend, (b"before", b"1"))
        with no_file_may_grow(), pytest.raises(OutcomeUnknownError, match=r"IO error.*retry with the same"):
            put(backend, (b"failed", b"x" * 100_000))
        for batch in (WriteBatch([Put(b"after", b"1")]), WriteBatch([])):
            with pytest.raises(StorageError, match=r"takes no more writes.*open the store again") as caught:
                backend.write(batch)
            assert type(caught.value) is StorageError
        assert backend.get(b"before") == b"1"
        assert list(backend.snapshot().scan(b"", b"c")) == [(b"before", b"1")]
        with pytest.raises(OutcomeUnknownError):
            backend.sync()
        with pytest.raises(OutcomeUnknownError):
            backend.close()
        backend.close()
        with pytest.raises(StoreClosedError):
            put(backend, (b"after", b"1"))
        with closing(open_backend(path)) as again:
            assert again.get(b"before") == b"1"
            put(again, (b"after", b"1"))

    def test_a_failed_sync_is_never_tried_again(self, path: Path) -> None:
        backend = open_backend(path)
        put(backend, (b"a", b"1"))
        spy = Spy(backend)
        spy.failures["flush_wal"] = "IO error: While fdatasync: db/000004.log: Input/output error"
        with pytest.raises(OutcomeUnknownError, match="Input/output error"):
            backend.sync()
        spy.failures.clear()  # the kernel reports it once, and forgets what it could not write
        for call in (backend.sync, backend.sync, backend.compact, backend.close):
            with pytest.raises(OutcomeUnknownError):
                call()
        assert len(spy.log("flush_wal")) == 1
        open_backend(path).close()

    def test_a_close_that_cannot_sync_says_so_and_lets_go(self, path: Path) -> None:
        backend = open_backend(path)
        put(backend, (b"a", b"1"))
        Spy(backend).failures["flush_wal"] = "IO error: While fdatasync: db/000004.log: Input/output error"
        with pytest.raises(OutcomeUnknownError):
            backend.close()
        backend.close()
        calls: list[Callable[[], object]] = [
            lambda: backend.get(b"a"),
            lambda: put(backend, (b"b", b"1")),
            backend.sync,
        ]
        for call in calls:
            with pytest.raises(StoreClosedError):
                call()
        open_backend(path).close()

    def test_a_log_that_met_a_full_disk_is_never_synced(self, backend: RocksDBBackend) -> None:
        """RocksDB goes on by itself once there is space, but only if nobody has synced that log meanwhile."""
        put(backend, (b"before", b"1"))
        spy = Spy(backend)
        spy.failures["write"] = "IO error: No space left on device: While appending to file: db/000004.log"
        with pytest.raises(StorageFullError, match="free some space"):
            put(backend, (b"a", b"1"))
        assert backend.get(b"before") == b"1"
        spy.failures["flush"] = "IO error: No space left on device"
        with pytest.raises(StorageFullError):
            backend.sync()
        spy.failures.clear()
        put(backend, (b"after", b"1"))
        backend.sync()
        assert spy.log("flush", "flush_wal") == [("flush",), ("flush",)]
        put(backend, (b"later", b"1"))
        backend.sync()
        assert spy.log("flush", "flush_wal") == [("flush_wal", True)]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Corruption: block checksum mismatch: stored = 1", CorruptRecordError),
            ("IO error: No space left on device: While appending to file: x.log", StorageFullError),
            ("IO error: While appending to file: x: Disk quota exceeded", StorageFullError),
            ("IO error: While lock file: /db/LOCK: Resource temporarily unavailable", StoreLockedError),
            ("IO error: lock hold by current process, acquire time 1 acquiring thread 2: /db/LOCK", StoreLockedError),
            ("IO error: While fdatasync: x.log: Input/output error", OutcomeUnknownError),
            ("IO error: Writer has previous error.", OutcomeUnknownError),
            ("Shutdown in progress: ", StoreClosedError),
            ("Invalid argument: whatever", StorageError),
        ],
    )
    def test_the_text_of_an_error_decides_what_it_means(self, text: str, expected: type[Exception]) -> None:
        with pytest.raises(StorageError if expected is not CorruptRecordError else CorruptRecordError) as caught:
            reraise(Exception(text), writing=True)
        assert type(caught.value) is expected
        if expected is OutcomeUnknownError:  # nothing is unknown where nothing was written
            with pytest.raises(StorageError) as caught:
                reraise(Exception(text))
            assert type(caught.value) is StorageError

    def test_what_is_not_of_the_engine_is_raised_as_it_is(self) -> None:
        error = ConflictError("read again")
        with pytest.raises(ConflictError) as caught:
            reraise(error)
        assert caught.value is error


class TestOpening:
    def test_a_creation_that_was_killed_is_taken_up_again(self, path: Path) -> None:
        out = run_script(
            """
            kills = 0
            for turn in range(60):
                store = path / str(turn)
                child = os.fork()
                if child == 0:
                    backend = RocksDBBackend(BackendOptions(path=store))
                    backend.write(WriteBatch([Put(b"a", b"1")]))
                    os._exit(0)
                time.sleep(turn * 0.0004)
                os.kill(child, signal.SIGKILL)
                kills += os.waitpid(child, 0)[1] == signal.SIGKILL
                backend = RocksDBBackend(BackendOptions(path=store))
                assert backend.get(b"a") in (None, b"1")
                backend.write(WriteBatch([Put(b"b", b"2")]))
                backend.close()
            print(kills)
            """,
            path,
        )
        assert int(out) > 10, "hardly any creation was interrupted, so this proves little"

    def test_the_names_of_new_directories_are_made_durable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[Path] = []
        monkeypatch.setattr(rocksdb, "fsync_directory", synced.append)
        deep = tmp_path / "new" / "newer" / "store"
        open_backend(deep).close()
        assert set(synced) == {tmp_path, tmp_path / "new", tmp_path / "new" / "newer", deep}
        synced.clear()
        open_backend(deep).close()
        assert synced == []

    @pytest.mark.parametrize("content", [b"", b"{", b'{"raw_mode":true'])
    def test_a_half_written_file_of_the_binding_does_not_matter(self, path: Path, content: bytes) -> None:
        with closing(open_backend(path)) as backend:
            put(backend, (b"a", b"1"))
        (path / "db" / "rocksdict-config.json").write_bytes(content)
        with closing(open_backend(path)) as backend:
            assert backend.get(b"a") == b"1"

    def test_a_foreign_opener_of_the_database_is_noticed(self, path: Path) -> None:
        open_backend(path).close()
        options = Options(raw_mode=True)
        foreign = Rdict(str(path / "db"), options, column_families={"default": options})
        with pytest.raises(StoreLockedError):
            open_backend(path)
        foreign.close()
        open_backend(path).close()

    def test_a_relative_path_holds_wherever_the_process_goes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        with closing(open_backend(Path("store"))) as backend:
            monkeypatch.chdir(tmp_path / "elsewhere")
            put(backend, *numbered(10))
            backend.compact()
            backend.erase([(b"", None)])
        assert os.listdir(tmp_path / "elsewhere") == []
        with closing(open_backend(tmp_path / "store")) as again:
            assert list(again.scan()) == numbered(10)

    def test_a_path_that_is_no_directory_is_refused(self, path: Path) -> None:
        path.write_text("not a directory")
        with pytest.raises(StorageError):
            open_backend(path)
        path.unlink()
        path.mkdir()
        (path / "db").write_text("not a directory")
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                open_backend(path)
            assert not isinstance(caught.value, StoreLockedError)


class TestClosing:
    def test_it_lets_go_whatever_is_kept(self, path: Path) -> None:
        rows = numbered(500)
        with closing(open_backend(path)) as backend:
            put(backend, *rows)
            backend.compact()
        damage_the_middle(path)
        backend = open_backend(path)
        snapshot, begun, not_begun = backend.snapshot(), backend.scan(), backend.scan(reverse=True)
        of_snapshot, of_snapshot_not_begun = snapshot.scan(), snapshot.scan()
        assert next(begun) == next(of_snapshot) == rows[0]
        assert backend.stats()["open_views"] == 3
        kept: list[object] = [backend.get, snapshot.get]
        for call in (lambda: list(backend.scan()), lambda: [snapshot.get(key) for key, _ in rows]):
            with pytest.raises(CorruptRecordError) as caught:
                call()
            kept.append(caught.value)  # with a traceback that leads to every local variable
        backend.close()
        open_backend(path).close()
        for scan in (begun, not_begun, of_snapshot, of_snapshot_not_begun):
            with pytest.raises(StoreClosedError):
                next(scan)
        for reading in (snapshot.scan, lambda: snapshot.get(b""), lambda: snapshot.get_many([b""])):
            with pytest.raises(StoreClosedError):
                reading()

    def test_a_finished_or_abandoned_scan_holds_nothing(self, backend: RocksDBBackend) -> None:
        put(backend, *numbered(10))
        list(backend.scan())
        next(backend.scan())
        backend.scan()
        backend.snapshot()
        finished = backend.scan(b"", b"000003")
        list(finished)
        assert backend.stats()["open_views"] == 0

    @pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02])
    def test_calls_outside_the_gil_end_before_it_does(self, path: Path, delay_s: float) -> None:
        """rocksdict cannot close while one of them runs: ``RuntimeError: Already borrowed``."""
        backend = open_backend(path)
        put(backend, *numbered(2000))
        keys = [key for key, _ in numbered(2000)]
        outcomes: list[str] = []

        def write_and_sync() -> None:
            put(backend, (b"more", os.urandom(10)))
            backend.sync()

        calls: list[Callable[[], object]] = [
            write_and_sync,
            write_and_sync,
            backend.compact,
            lambda: backend.erase([(b"0010", b"0011")]),
            lambda: backend.get_many(keys),
            lambda: backend.checkpoint(path.with_name(os.urandom(8).hex())),
        ]
        started = threading.Barrier(len(calls) + 1)

        def use(call: Callable[[], object]) -> None:
            call()
            started.wait(_PATIENCE_S)
            try:
                while True:
                    call()
            except Exception as error:
                outcomes.append("closed" if isinstance(error, StoreClosedError) else repr(error))

        threads = [threading.Thread(target=use, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        started.wait(_PATIENCE_S)
        time.sleep(delay_s)
        backend.close()
        open_backend(path).close()
        for thread in threads:
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()
        assert outcomes == ["closed"] * len(calls)

    def test_a_compaction_does_not_wait_for_a_manifest_that_nobody_deletes_yet(
        self, backend: RocksDBBackend, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As after an erasure beside it, whose last act is to set an option: a new manifest, and the old one stays."""
        monkeypatch.setattr(rocksdb, "_DELETION_SECONDS_MAX", 3600.0)
        put(backend, *numbered(100))
        spy = Spy(backend)

        def leave_one() -> None:
            spy.before.clear()
            spy._real.set_options({"disable_auto_compactions": "false"})

        spy.before["live_files"] = leave_one
        thread = threading.Thread(target=backend.compact, daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)
        assert not thread.is_alive()
        assert len(list((path / "db").glob("MANIFEST-*"))) == 2, "this proves nothing"

    def test_a_long_compaction_is_cut_short(self, path: Path) -> None:
        backend = open_backend(path)
        put(backend, *numbered(1000))
        spy, begun, cancelled = Spy(backend), threading.Event(), threading.Event()

        def last() -> None:
            begun.set()
            assert cancelled.wait(_PATIENCE_S)

        spy.before["compact_range"] = last
        spy.before["cancel_all_background"] = cancelled.set
        outcomes: list[object] = []

        def compact() -> None:
            try:
                backend.compact()
            except StorageError as error:
                outcomes.append(type(error))

        threads = [threading.Thread(target=call, daemon=True) for call in (compact, backend.close)]
        for thread in threads:
            thread.start()
            assert begun.wait(_PATIENCE_S)
        for thread in threads:
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()
        assert outcomes == [StoreClosedError]
        with closing(open_backend(path)) as again:
            assert list(again.scan()) == numbered(1000)

    def test_it_makes_everything_durable_even_where_it_cannot_flush(self, path: Path) -> None:
        backend = open_backend(path)
        put(backend, (b"a", b"1"))
        spy = Spy(backend)
        backend.close()
        assert spy.log("flush_wal", "close") == [("flush_wal", True), ("close",)]


class TestFork:
    def test_a_child_is_told_at_once_whatever_the_threads_of_its_parent_did(self, path: Path) -> None:
        out = run_script(
            """
            backend = RocksDBBackend(BackendOptions(path=path))
            backend.write(WriteBatch([Put(b"a", b"1")]))
            snapshot, scan = backend.snapshot(), backend.scan()
            next(scan)

            def hold(*locks):  # as a thread does in the middle of a call
                for lock in locks:
                    lock.acquire()
                held.set()
                time.sleep(60)

            def use():
                while True:
                    backend.write(WriteBatch([Put(b"b", b"x" * 1000)]))
                    list(backend.scan())
                    backend.sync()
                    in_use.set()

            held, in_use = threading.Event(), threading.Event()
            locks = backend._write_lock, backend._sync_lock, backend._close_lock, backend._outside, snapshot._lock
            threading.Thread(target=use, daemon=True).start()
            in_use.wait()
            threading.Thread(target=hold, args=locks, daemon=True).start()
            held.wait()
            iterator = snapshot._iterator
            for _ in range(5):
                child = os.fork()
                if child == 0:
                    signal.alarm(60)
                    assert sys.getrefcount(iterator) == 3, "one for ever, or its destructor would run"
                    calls = [
                        lambda: backend.get(b"a"), lambda: backend.get_many([b"a"] * 100), backend.scan, backend.sync,
                        lambda: backend.write(WriteBatch([Put(b"child", b"1")])), backend.snapshot, backend.stats,
                        backend.sequence, backend.compact, lambda: backend.erase([]), lambda: next(scan),
                        lambda: backend.checkpoint(path / "copy"), lambda: snapshot.get(b"a"), snapshot.scan,
                    ]
                    told = 0
                    for call in calls:
                        try:
                            call()
                        except StoreClosedError:
                            told += 1
                    assert told == len(calls), told
                    backend.close()
                    snapshot.close()
                    del backend, snapshot, scan, iterator
                    sys.exit(7)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            assert next(scan, None) is None
            os._exit(0)
            """,
            path,
        )
        assert out.split() == ["7"] * 5
        with closing(open_backend(path)) as backend:
            assert [key for key, _ in backend.scan()] == [b"a", b"b"]


class TestErasing:
    def test_no_file_keeps_the_bytes_wherever_they_lay(self, path: Path) -> None:
        """Over several levels, moved files, overlapping ones, the log, and the manifest with its keys."""
        noise = random.Random(11)
        with closing(open_backend(path, engine={"write_buffer_bytes": 256 << 10})) as backend:
            backend._database.set_options({"target_file_size_base": "65536", "max_bytes_for_level_base": "262144"})
            kept: dict[bytes, bytes] = {}
            doomed: set[bytes] = set()
            for _ in range(12):
                rows = {b"%08x" % noise.getrandbits(32): noise.randbytes(200) for _ in range(1000)}
                put(backend, *rows.items())
                kept |= rows
                canaries = [b"%08x-canary-%d" % (noise.getrandbits(32), number) for number in range(20)]
                put(backend, *((key, b"secret" + key) for key in canaries))
                doomed |= set(canaries)
            self.wait_for_compaction(backend)
            assert len({file["level"] for file in backend._database.live_files()}) > 1
            edges = [b"-canary first", b"~canary last", b"only-canary-in-the-log"]  # the first two name files
            put(backend, *((key, b"secret" + key) for key in edges[:2]))
            backend._database.flush()
            assert any(b"canary" in file.read_bytes() for file in (path / "db").glob("MANIFEST-*"))
            put(backend, (edges[2], b"secret"))
            doomed |= set(edges)
            assert b"only-canary-in-the-log" not in b"".join(file.read_bytes() for file in files(path, ".sst"))

            backend.write(WriteBatch([Delete(key) for key in sorted(doomed)]))
            backend.erase([(key, key + b"\0") for key in sorted(doomed)])
            found = [file.name for file, content in contents(path) if b"canary" in content]
            assert found == []
            assert dict(backend.scan()) == kept
        assert not any(b"canary" in content for _, content in contents(path))

    def test_the_manifest_forgets_the_keys_too(self, backend: RocksDBBackend, path: Path) -> None:
        put(backend, *numbered(10), (b"canary", b""))
        backend.compact()
        manifests = b"".join(file.read_bytes() for file in (path / "db").glob("MANIFEST-*"))
        assert b"canary" in manifests, "it names the first and the last key of every file"
        backend.write(WriteBatch([Delete(b"canary")]))
        backend.erase([(b"canary", b"canary\0")])
        assert not any(b"canary" in content for _, content in contents(path))
        assert list(backend.scan()) == numbered(10)

    def test_only_the_files_that_overlap_are_rewritten(self, path: Path) -> None:
        with closing(open_backend(path)) as backend:
            backend._database.set_options({"target_file_size_base": "100000"})
            put(backend, *numbered(5000))
            backend.compact()
            before = {file.name for file in files(path, ".sst")}
            assert len(before) > 4
            backend.write(WriteBatch([Delete(b"002500")]))
            backend.erase([(b"002500", b"002501")])
            after = {file.name for file in files(path, ".sst")}
            assert len(before - after) <= 2

    def test_a_snapshot_or_scan_that_keeps_the_bytes_is_named(self, backend: RocksDBBackend, path: Path) -> None:
        put(backend, (b"a", b"canary"), (b"b", b"1"))
        backend.compact()
        open_views: list[Callable[[], Any]] = [backend.snapshot, backend.scan]
        for open_view in open_views:
            view = open_view()
            backend.write(WriteBatch([Delete(b"a")]))
            with pytest.raises(StorageError, match="1 snapshots or scans are open: close them and erase again"):
                backend.erase([(b"a", b"b")])
            assert any(b"canary" in file.read_bytes() for file in files(path, ".sst"))
            view.close()
            del view
            backend.erase([(b"a", b"b")])
            assert not any(b"canary" in content for _, content in contents(path))
            put(backend, (b"a", b"canary"))
            backend.compact()

    def test_no_compaction_runs_beside_the_one_that_erases(self, backend: RocksDBBackend) -> None:
        """It could carry the bytes to a level below all those that the other one goes through."""
        spy = Spy(backend)
        on, off = ({"disable_auto_compactions": value} for value in ("false", "true"))
        backend.erase([(b"a", b"b"), (b"c", None)])
        calls = spy.log("set_options", "compact_range")
        assert [call[:3] for call in calls] == [
            *(("set_options", off), ("compact_range", b"a", b"b"), ("compact_range", b"c", None), ("set_options", on))
        ]
        spy.failures["compact_range"] = "Corruption: block checksum mismatch"
        with pytest.raises(CorruptRecordError):
            backend.erase([(b"a", b"b")])
        assert spy.log("set_options") == [("set_options", off), ("set_options", on)]

    def test_writers_may_go_on(self, backend: RocksDBBackend, path: Path) -> None:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                put(backend, (b"%06d" % number, os.urandom(100)))
                list(backend.scan(b"%06d" % number))

        writers = [threading.Thread(target=write, daemon=True) for _ in range(2)]
        for thread in writers:
            thread.start()
        try:
            for _ in range(5):
                put(backend, (b"0005/secret", b"canary" * 100))
                backend.sync()
                backend.write(WriteBatch([Delete(b"0005/secret")]))
                backend.erase([(b"0005/secret", b"0005/secret\0")])
                found = [file.name for file, content in contents(path) if b"canary" in content]
                assert found == []
        finally:
            stop.set()
            for thread in writers:
                thread.join(_PATIENCE_S)

    def test_who_comes_to_read_later_does_not_cut_the_wait_for_deletions_short(
        self, backend: RocksDBBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rocksdb, "_VIEW_SECONDS_MAX", 0.0)
        found, views = iter([{"000009.sst"}, {"000009.sst"}, set[str]()]), list[Any]()

        def files_that_linger(*_: object) -> set[str]:
            views.append(backend.snapshot())
            return next(found)

        monkeypatch.setattr(rocksdb, "obsolete_files", files_that_linger)
        assert backend._wait_for_deletions() == set()
        assert len(views) == 3

    @staticmethod
    def wait_for_compaction(backend: RocksDBBackend) -> None:
        backend._database.flush()
        deadline = time.monotonic() + _PATIENCE_S
        while backend.stats()["running_compactions"] or backend.stats()["pending_compaction_bytes"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


class TestCheckpoint:
    def test_it_is_a_store_of_its_own_and_leaves_nothing_else(self, backend: RocksDBBackend, tmp_path: Path) -> None:
        rows = numbered(100)
        put(backend, *rows)
        backend.checkpoint(tmp_path / "deep" / "copy")
        put(backend, (b"after", b""))
        assert os.listdir(tmp_path / "deep") == ["copy"]
        with closing(open_backend(tmp_path / "deep" / "copy")) as copy:
            assert list(copy.scan()) == rows

    def test_an_existing_target_is_left_alone(self, backend: RocksDBBackend, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        for name in ("empty", "dangling"):
            with pytest.raises(InvalidError, match="exists"):
                backend.checkpoint(tmp_path / name)
        assert os.listdir(tmp_path / "empty") == []


class TestStats:
    def test_the_figures_are_plain_and_move(self, backend: RocksDBBackend) -> None:
        before = json.loads(json.dumps(backend.stats()))
        put(backend, *numbered(1000))
        middle = backend.stats()
        backend.compact()
        list(backend.scan())
        after = backend.stats()
        assert middle["sequence"] == before["sequence"] + 1000
        assert cast("int", middle["memtable_bytes"]) > before["memtable_bytes"] + 100_000
        assert before["sst_bytes"] == middle["sst_bytes"] == 0
        assert cast("int", after["sst_bytes"]) > 100_000
        assert after["live_data_bytes"] == after["sst_bytes"]
        assert after["keys_estimate"] == 1000
        assert cast("int", after["block_cache_bytes"]) > 100_000
        assert after["writes_stopped"] is False
        assert after["open_views"] == 0
        view = backend.snapshot()
        assert backend.stats()["open_views"] == 1
        view.close()


@contextmanager
def no_file_may_grow() -> Iterator[None]:
    """Let every ``write`` to a file past its first 4 kB fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def collect(scan: Iterator[tuple[bytes, bytes]], seen: list[tuple[bytes, bytes]]) -> None:
    for row in scan:
        seen.append(row)  # noqa: PERF402
