"""What a store holds after it was killed, after the power was cut, and on a disk that fails: the short version.

``python -m tests.crash --help`` tries more of it. Each failure names the seed, or the number of the call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pytest

from qilbee_core import CorruptRecordError, Delete, Put, WriteBatch, open_store
from qilbee_core.keys import AgentKeys, Space

from .disk import Disk, Mode, Semantics, read_trace
from .faults import ERRORS, KINDS, fail_every_call, fill_the_disk
from .flips import damage_everywhere, make_image
from .kills import kill_again_and_again
from .oracle import Course, seed_without_clear, send
from .powercuts import SEMANTICS, Recording, cut_everywhere, record
from .shim import COMPILER, Call, build
from .worker import Load

ENGINES = ["rocksdb", "leveldb"]
PACKAGES = {"rocksdb": "rocksdict", "leveldb": "plyvel"}
SEED = 1  # `python -m tests.crash` draws another each time
RAM_DISK = Path("/dev/shm")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler to build shim.c with")


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """Those that keep files."""
    name: str = request.param
    pytest.importorskip(PACKAGES[name])
    return name


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory in RAM where there is one: these stores are opened a thousand times, and no power is really cut."""
    with TemporaryDirectory(dir=RAM_DISK if RAM_DISK.is_dir() else tmp_path, prefix="qilbee-crash-") as own:
        yield Path(own)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


def settings(engine: str, level: str = "sync") -> dict[str, Any]:
    """A store that fills memtables in the course of a few dozen writes."""
    interval = {"wal_sync_interval_ms": 20} if level == "interval" else {}
    return {"backend": engine, "durability": level, "engine": {"write_buffer_bytes": 64 << 10}, **interval}


def load(engine: str, level: str = "sync", *, steps: int = 70, **given: Any) -> Load:
    return Load(
        path="",
        settings=settings(engine, level),
        seed=SEED,
        begin={"one": 0, "two": 0},
        count=steps,
        pause_ms=2.0 if level == "interval" else 0.0,
        **{"compact_at": steps // 2, **given},
    )


class Recordings:
    """Each load is recorded once for all tests that cut it."""

    def __init__(self, library: Path, directory: Path) -> None:
        self._library = library
        self._directory = directory
        self._made: dict[tuple[str, str], Recording] = {}

    def of(self, engine: str, level: str) -> Recording:
        if (engine, level) not in self._made:
            directory = self._directory / f"{engine}-{level}"
            self._made[engine, level] = record(self._library, directory, load(engine, level))
        return self._made[engine, level]


@pytest.fixture(scope="module")
def recordings(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    return Recordings(library, tmp_path_factory.mktemp("recordings"))


class TestKills:
    @pytest.mark.parametrize("level", ["sync", "interval"])
    def test_no_acknowledged_write_is_lost(self, engine: str, level: str, scratch: Path) -> None:
        for kill in kill_again_and_again(scratch / "kill", settings(engine, level), 10, seed=SEED):
            assert kill.problems == [], f"cycle {kill.cycle} of seed {SEED}"

    @pytest.mark.parametrize("variant", ["repairs", "codecs"])
    def test_nor_while_it_is_repaired_or_changes_its_codec(self, engine: str, variant: str, scratch: Path) -> None:
        given: dict[str, Any] = {variant: True}
        for kill in kill_again_and_again(scratch / "kill", settings(engine), 5, seed=SEED, **given):
            assert kill.problems == [], f"cycle {kill.cycle} of seed {SEED}"

    @needs_compiler
    def test_nor_while_the_clock_jumps(self, engine: str, scratch: Path, library: Path) -> None:
        for kill in kill_again_and_again(scratch / "kill", settings(engine), 5, seed=SEED, library=library):
            assert kill.problems == [], f"cycle {kill.cycle} of seed {SEED}"


@needs_compiler
class TestPowerCuts:
    @pytest.mark.parametrize("level", ["sync", "interval"])
    def test_the_trace_misses_nothing(self, engine: str, level: str, recordings: Recordings) -> None:
        """What the trace makes, from nothing, are the files that the load left."""
        recording = recordings.of(engine, level)
        disk = Disk("ext4")
        for each in read_trace(recording.trace):
            disk.apply(each)
        made = {path: content for path, content in disk.left("keep").items() if "LOG" not in path}
        left = {
            str(path.relative_to(recording.root)): None if path.is_dir() else path.read_bytes()
            for path in recording.root.rglob("*")
            if not path.name.startswith("LOG")  # diagnostics, written with stdio
        }
        assert made == left

    @pytest.mark.parametrize("mode", get_args(Mode))
    @pytest.mark.parametrize("semantics", get_args(Semantics))
    def test_no_cut_takes_what_was_acknowledged_at_sync(
        self, engine: str, mode: Mode, semantics: Semantics, recordings: Recordings, scratch: Path
    ) -> None:
        if semantics not in SEMANTICS[engine]:
            pytest.skip("LevelDB relies on names of tables that it has not synced, and on lists of them without noise")
        for cut in cut_everywhere(recordings.of(engine, "sync"), scratch, mode, semantics, seed=SEED, every=17):
            assert cut.refusal is None, f"cut {cut.cut} of seed {SEED}"
            assert cut.judgement is not None
            assert (cut.judgement.problems, cut.judgement.lost) == ([], 0), f"cut {cut.cut} of seed {SEED}"

    @pytest.mark.parametrize("mode", get_args(Mode))
    def test_at_interval_a_cut_takes_only_a_suffix_that_no_sync_had_covered(
        self, engine: str, mode: Mode, recordings: Recordings, scratch: Path
    ) -> None:
        for cut in cut_everywhere(recordings.of(engine, "interval"), scratch, mode, "ext4", seed=SEED, every=13):
            assert cut.refusal is None, f"cut {cut.cut} of seed {SEED}"
            assert cut.judgement is not None
            assert (cut.judgement.problems, cut.synced_loss) == ([], 0), f"cut {cut.cut} of seed {SEED}"
            if mode == "keep":
                assert cut.judgement.lost == 0

    @pytest.mark.parametrize("mode", get_args(Mode))
    def test_a_store_that_was_cut_at_any_call_of_its_first_creation_opens(
        self, engine: str, mode: Mode, library: Path, scratch: Path
    ) -> None:
        recording = record(library, scratch / "recording", load(engine, steps=1, compact_at=-1))
        for cut in cut_everywhere(recording, scratch, mode, "ext4", seed=SEED):
            assert cut.refusal is None, f"cut {cut.cut} of seed {SEED}"
            assert cut.judgement is not None
            assert (cut.judgement.problems, cut.judgement.lost) == ([], 0), f"cut {cut.cut} of seed {SEED}"

    def test_writes_during_a_compaction_leave_no_hole(self, engine: str, library: Path, scratch: Path) -> None:
        """A log that the engine begins by itself must not outlive the end of the one before."""
        writes = load(engine, "interval", steps=40, compact_at=15)
        writes.settings["wal_sync_interval_ms"] = 3_600_000
        writes.pause_ms = 0.2
        recording = record(library, scratch / "recording", writes)
        for cut in cut_everywhere(recording, scratch, "torn", "ext4", seed=SEED, every=2):
            assert cut.refusal is None, f"cut {cut.cut} of seed {SEED}"
            assert cut.judgement is not None
            assert (cut.judgement.problems, cut.synced_loss) == ([], 0), f"cut {cut.cut} of seed {SEED}"

    @pytest.mark.parametrize("lies", [lambda _: True, lambda name: name.endswith(".log")], ids=["all files", "logs"])
    def test_on_a_disk_that_lies_nearly_every_cut_is_seen_to_lose(
        self, engine: str, lies: Any, library: Path, scratch: Path
    ) -> None:
        """The control: who finds no loss here would find none anywhere."""
        writes = load(engine)
        writes.seed = seed_without_clear(SEED, writes.begin, writes.count)
        recording = record(library, scratch / "recording", writes)
        outcomes = list(cut_everywhere(recording, scratch, "drop", "ext4", every=23, lies=lies))
        seen = [cut.judgement is None or cut.judgement.lost > 0 for cut in outcomes]
        first = seen.index(True)  # before it nothing was acknowledged: those cuts can take nothing
        assert first < len(seen) / 4
        assert sum(seen) >= 0.8 * len(seen[first:])


@needs_compiler
class TestFailingDisks:
    @pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
    @pytest.mark.parametrize("error", ERRORS, ids=os.strerror)
    @pytest.mark.parametrize("calls", KINDS, ids=lambda calls: calls.name)
    def test_a_call_that_fails_costs_nothing_that_was_acknowledged(
        self, engine: str, calls: Call, error: int, sticky: bool, library: Path, scratch: Path
    ) -> None:
        every = 4 if calls is Call.RENAME else 13
        stores = scratch / "stores"
        first = SEED % every + 1
        for finding in fail_every_call(
            library, stores, settings(engine), calls, error, sticky=sticky, every=every, first=first
        ):
            assert finding.problems == [], f"{calls.name} {finding.number}"

    def test_a_disk_that_was_full_is_written_again_when_it_has_space(
        self, engine: str, library: Path, scratch: Path
    ) -> None:
        told = 0
        for finding in fill_the_disk(library, scratch / "stores", settings(engine), every=8):
            assert finding.problems == [], f"full after {finding.number} bytes"
            told += finding.told
        assert told


class TestDamage:
    def test_no_damage_of_a_file_is_a_silent_loss(self, engine: str, scratch: Path) -> None:
        image = make_image(scratch, {"backend": engine})
        found = list(damage_everywhere(image, scratch / "damaged", every=701))
        assert [damage for damage in found if damage.verdict == "silent"] == []
        assert len([damage for damage in found if damage.verdict == "noticed"]) > len(found) / 2

    def test_every_flipped_bit_of_an_episode_is_noticed(self, engine: str, scratch: Path) -> None:
        course = Course("bot", SEED)
        with open_store(scratch / "data", backend=engine, recent_cache_bytes=0) as store:
            memory = store.agent_memory("bot")
            for index in range(10):
                send(memory, course.step(index))
            key, sealed = next(store._backend.scan(*AgentKeys("bot").range(Space.EPISODE)))
            episode = next(memory.episodes())
            for bit in range(8 * len(sealed)):
                flipped = bytearray(sealed)
                flipped[bit // 8] ^= 1 << bit % 8
                store._backend.write(WriteBatch([Put(key, bytes(flipped))]))
                with pytest.raises(CorruptRecordError):
                    memory.get_episode(episode.id)
                if bit % 64 == 0:
                    assert not store.verify().ok
            store._backend.write(WriteBatch([Delete(key), Put(key, sealed)]))
            assert memory.get_episode(episode.id) == episode
