"""Opening what a crash, a power cut or a bad disk has left: nothing durable is ever missing without a word."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from shared.open_files import copy_open_store
from typer.testing import CliRunner

from qilbee_core import (
    BackendOptions,
    CorruptRecordError,
    DataError,
    Episode,
    InvalidError,
    LostWritesError,
    SettingsError,
    Store,
    aopen_store,
    open_store,
)
from qilbee_core.cli import app
from qilbee_core.plugins import Registry
from qilbee_core.watermark import WATERMARK_NAME, Mark, Watermark, slot

ENGINES = {"rocksdb": "rocksdict", "leveldb": "plyvel"}
on_disk = pytest.mark.parametrize("engine", ENGINES)

# Stores `durable` episodes, waits until the note says so, stores `more`, and dies.
_WRITER = """
import json, os, sys, time
from pathlib import Path
from qilbee_core import Episode, open_store
from qilbee_core.watermark import WATERMARK_NAME, Watermark

data, engine, level, durable, more = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
store = open_store(data, backend=engine, durability=level, wal_sync_interval_ms=3_600_000)
memory = store.agent_memory("bot")
ids = [memory.store_episode(Episode("bot", "note", {"number": number})) for number in range(durable)]
store.flush()
deadline = time.monotonic() + 60
while Watermark(Path(data) / engine / WATERMARK_NAME).sequence < store.durability().durable_sequence:
    assert time.monotonic() < deadline
    time.sleep(0.002)
sizes = {log.name: log.stat().st_size for log in (Path(data) / engine / "db").glob("*.log")}
ids += [memory.store_episode(Episode("bot", "note", {"number": number})) for number in range(durable, durable + more)]
print(json.dumps({"ids": ids, "sizes": sizes}))
sys.stdout.flush()
os._exit(0)
"""


class Dead(NamedTuple):
    """The store of a process that died."""

    path: Path
    engine: str
    ids: list[str]
    """Of its episodes, in the order of storing."""
    durable: int
    """How many of them were synced."""
    sizes: dict[str, int]
    """How much of each log that was."""

    @property
    def files(self) -> Path:
        return self.path / self.engine / "db"

    @property
    def note(self) -> Path:
        return self.path / self.engine / WATERMARK_NAME

    @property
    def log(self) -> Path:
        return max(self.files.glob("*.log"))

    def copied(self, path: Path) -> Dead:
        copy_open_store(self.path, path)
        return self._replace(path=path)


def dead(path: Path, engine: str, durable: int = 12, more: int = 0, level: str = "async") -> Dead:
    pytest.importorskip(ENGINES[engine])
    arguments = [path, engine, level, durable, more]
    run = subprocess.run(
        [sys.executable, "-c", _WRITER, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=180
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    return Dead(path, engine, said["ids"], durable, said["sizes"])


def episode_ids(store: Store) -> list[str]:
    return [episode.id for episode in store.agent_memory("bot").episodes()]


def check_whole(store: Store) -> None:
    assert store.verify().problems == []
    memory = store.agent_memory("bot")
    assert memory.get_statistics().total_episodes == len(episode_ids(store))
    if store.agents():
        id_ = memory.store_episode(Episode("bot", "note", {"number": -1}))
        assert memory.get_recent_episodes(1)[0].id == id_


def contents(path: Path) -> dict[str, bytes]:
    """Every file, but what says who opened it and the engine's diary."""
    names = {"qilbee.lock", "LOCK", "LOG", "LOG.old"}
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in names
    }


def record_starts(log: bytes) -> Iterator[int]:
    """Of a log that fits into one block, which it does in both engines."""
    at = 0
    while at < len(log):
        yield at
        at += 7 + int.from_bytes(log[at + 4 : at + 6], "little")


@pytest.fixture(scope="module", params=ENGINES)
def one_dead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dead:
    """All its episodes are durable; for tests that copy it."""
    return dead(tmp_path_factory.mktemp("dead") / "data", request.param)


@pytest.fixture(scope="module", params=ENGINES)
def one_ahead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dead:
    """Half its episodes were not synced when it died; for tests that copy it."""
    return dead(tmp_path_factory.mktemp("ahead") / "data", request.param, durable=8, more=8)


class TestADeadProcess:
    @on_disk
    @pytest.mark.parametrize("level", ["sync", "interval", "async"])
    def test_what_it_wrote_is_there_and_the_log_says_what_came_back(
        self, tmp_path: Path, engine: str, level: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "qilbee_core")
        left = dead(tmp_path / "data", engine, more=5, level=level)
        with open_store(left.path) as store:
            assert episode_ids(store) == left.ids
            check_whole(store)
        if level != "sync":
            assert "was not closed" in caplog.text
        caplog.clear()
        open_store(left.path).close()
        assert "was not closed" not in caplog.text

    def test_without_a_log_what_was_flushed_is_there(self, tmp_path: Path) -> None:
        left = dead(tmp_path / "data", "rocksdb", more=5, level="none")
        with open_store(left.path) as store:
            assert episode_ids(store) == left.ids[: left.durable]
            check_whole(store)


class TestDamagedLogs:
    @staticmethod
    def opened(left: Dead) -> list[str] | None:
        """The episodes, or None where it is refused with an error that says so."""
        try:
            with open_store(left.path) as store:
                check_whole(store)
                return episode_ids(store)
        except (LostWritesError, CorruptRecordError):
            return None

    def test_a_flip_anywhere_never_loses_synced_writes_without_a_word(self, one_dead: Dead, tmp_path: Path) -> None:
        whole = one_dead.log.read_bytes()
        left = one_dead.copied(tmp_path / "data")
        outcomes = []
        for at in range(5, len(whole), 10):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << at // 10 % 8
            left.log.write_bytes(flipped)
            found = self.opened(left)
            outcomes.append(found is None)
            if found is not None:
                assert found[: len(one_dead.ids)] == one_dead.ids, f"byte {at} of {len(whole)}"
                shutil.rmtree(left.path)
                left = one_dead.copied(tmp_path / "data")
        assert len(outcomes) > 100
        assert sum(outcomes) > 0.9 * len(outcomes)

    def test_behind_what_is_durable_any_damage_opens_by_itself(
        self, one_ahead: Dead, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = one_ahead.log.read_bytes()
        synced = one_ahead.sizes[one_ahead.log.name]
        assert synced < len(whole)
        step = (len(whole) - synced) // 12
        cuts = range(synced, len(whole), step)
        tails = [whole[:at] for at in cuts]
        tails += [whole[:at] + bytes(len(whole) - at) for at in cuts]
        tails += [whole[:at] + bytes(60) for at in cuts]
        tails += [whole[:at] + b"garbage" * 700 for at in cuts]
        tails += [whole[:at] + bytes((whole[at] ^ 4,)) + whole[at + 1 :] for at in cuts]
        for number, tail in enumerate(tails):
            left = one_ahead.copied(tmp_path / str(number))
            left.log.write_bytes(tail)
            with open_store(left.path) as store:
                found = episode_ids(store)
                assert found == one_ahead.ids[: len(found)]
                assert len(found) >= one_ahead.durable
                check_whole(store)
            shutil.rmtree(left.path)
        assert "is dropped" in caplog.text

    def test_before_that_it_is_refused_and_nothing_is_changed(self, one_ahead: Dead, tmp_path: Path) -> None:
        synced = one_ahead.sizes[one_ahead.log.name]
        whole = one_ahead.log.read_bytes()
        for number, damaged in enumerate(
            [
                whole[: synced - 60],
                whole[: synced // 2],
                whole[: synced - 60] + bytes(len(whole)),
                whole[: synced - 60] + b"garbage" * 700,
                whole[: synced // 2] + bytes((whole[synced // 2] ^ 4,)) + whole[synced // 2 + 1 :],
            ]
        ):
            left = one_ahead.copied(tmp_path / str(number))
            left.log.write_bytes(damaged)
            before = contents(left.path)
            for _ in range(2):
                with pytest.raises(LostWritesError, match=r"operations are missing.*recover="):
                    open_store(left.path)
            assert contents(left.path).items() >= before.items()
            left.log.write_bytes(whole)
            with open_store(left.path) as store:
                assert episode_ids(store) == one_ahead.ids

    def test_without_a_note_damage_in_the_log_is_refused(self, one_ahead: Dead, tmp_path: Path) -> None:
        left = one_ahead.copied(tmp_path / "data")
        left.note.unlink()
        whole = bytearray(left.log.read_bytes())
        whole[len(whole) - 200] ^= 4
        left.log.write_bytes(whole)
        with pytest.raises(CorruptRecordError, match=r'recover="tail"'):
            open_store(left.path)

    def test_the_note_of_another_store_does_not_excuse_damage(self, one_ahead: Dead, tmp_path: Path) -> None:
        left = one_ahead.copied(tmp_path / "data")
        left.note.write_bytes(bytes(4096) + slot(Mark("ee" * 16, 1)) + bytes(4064))
        whole = bytearray(left.log.read_bytes())
        whole[len(whole) - 200] ^= 4
        left.log.write_bytes(whole)
        with pytest.raises(CorruptRecordError, match=r'recover="tail"'):
            open_store(left.path)


class TestRecordsThatKeepRocksDBBusyForEver:
    """One flipped bit makes the kind of a record that of a recycled log, at which RocksDB never gets on."""

    KINDS = (5, 6, 7, 8, 11)

    @pytest.mark.parametrize("kind", KINDS)
    def test_in_the_log_they_are_damage_like_any_other(self, tmp_path: Path, kind: int) -> None:
        left = dead(tmp_path / "data", "rocksdb", durable=8, more=8)
        whole = left.log.read_bytes()
        starts = list(record_starts(whole))
        synced = left.sizes[left.log.name]
        for start in (starts[len(starts) // 2], max(at for at in starts if at < synced)):
            left.log.write_bytes(whole[: start + 6] + bytes((kind,)) + whole[start + 7 :])
            before = contents(left.path)
            with pytest.raises(LostWritesError):
                open_store(left.path)
            assert contents(left.path) == before
        start = starts[-2]
        left.log.write_bytes(whole[: start + 6] + bytes((kind,)) + whole[start + 7 :])
        note = left.note.read_bytes()
        left.note.unlink()
        with pytest.raises(CorruptRecordError):
            open_store(left.path)
        left.note.write_bytes(note)
        with open_store(left.path) as store:
            assert episode_ids(store) == left.ids[:-2]
            check_whole(store)

    @pytest.mark.parametrize("kind", KINDS)
    def test_in_the_manifest_they_are_refused(self, tmp_path: Path, kind: int) -> None:
        left = dead(tmp_path / "data", "rocksdb")
        (manifest,) = left.files.glob("MANIFEST-*")
        whole = manifest.read_bytes()
        for start in record_starts(whole):
            manifest.write_bytes(whole[: start + 6] + bytes((kind,)) + whole[start + 7 :])
            for recover in (None, "tail"):
                with pytest.raises(CorruptRecordError, match="manifest"):
                    open_store(left.path, recover=recover)
        manifest.write_bytes(whole)
        with open_store(left.path) as store:
            assert episode_ids(store) == left.ids


class TestMissingFiles:
    def test_a_deleted_log_is_noticed_and_nothing_is_changed(self, one_dead: Dead, tmp_path: Path) -> None:
        left = one_dead.copied(tmp_path / "data")
        log = left.log
        whole = log.read_bytes()
        log.unlink()
        before = contents(left.path)
        for _ in range(2):
            with pytest.raises(LostWritesError) as caught:
                open_store(left.path)
        expected = Watermark(left.note).expected
        assert expected is not None
        assert f"{expected:,} was durable" in str(caught.value)
        assert contents(left.path) == before
        log.write_bytes(whole)  # it was found again
        with open_store(left.path) as store:
            assert episode_ids(store) == left.ids

    def test_a_deleted_database_is_not_made_anew(self, one_dead: Dead, tmp_path: Path) -> None:
        left = one_dead.copied(tmp_path / "data")
        shutil.rmtree(left.files)
        with pytest.raises(LostWritesError):
            open_store(left.path)

    def test_a_database_without_its_current_file_is_not_taken_for_a_new_one(
        self, one_dead: Dead, tmp_path: Path
    ) -> None:
        for recover in (None, "tail"):
            left = one_dead.copied(tmp_path / str(recover))
            (left.files / "CURRENT").unlink()
            before = contents(left.path)
            with pytest.raises(CorruptRecordError, match="CURRENT"):
                open_store(left.path, recover=recover)
            assert contents(left.path) == before


class TestTheNote:
    @pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"garbage" * 1000, None])
    def test_one_that_is_damaged_or_missing_keeps_nobody_out_and_is_made_anew(
        self, one_dead: Dead, tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        left = one_dead.copied(tmp_path / "data")
        if content is None:
            left.note.unlink()
        else:
            left.note.write_bytes(content)
        with open_store(left.path) as store:
            assert episode_ids(store) == left.ids
            check_whole(store)
        assert ("is damaged" in caplog.text) == (content is not None)
        assert Watermark(left.note).expected

    @pytest.mark.parametrize("sequence", [1, 10**9])
    def test_one_of_another_store_is_not_believed(
        self, one_dead: Dead, tmp_path: Path, sequence: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        left = one_dead.copied(tmp_path / "data")
        left.note.write_bytes(slot(Mark("ee" * 16, sequence)))
        with open_store(left.path) as store:
            assert episode_ids(store) == left.ids
        assert "of another store" in caplog.text
        expected = Watermark(left.note).expected
        assert expected is not None
        assert expected < 10**9

    def test_a_copy_of_a_closed_store_opens_with_or_without_it(self, one_dead: Dead, tmp_path: Path) -> None:
        left = one_dead.copied(tmp_path / "data")
        open_store(left.path).close()
        for name in ("with", "without"):
            copy = left.copied(tmp_path / name)
            if name == "without":
                copy.note.unlink()
            with open_store(copy.path) as store:
                assert episode_ids(store) == left.ids
                check_whole(store)

    def test_a_newer_note_beside_an_older_copy_of_the_database_is_a_loss(self, one_dead: Dead, tmp_path: Path) -> None:
        left = one_dead.copied(tmp_path / "data")
        with open_store(left.path) as store:
            pass
        older = left.copied(tmp_path / "older")
        with open_store(left.path) as store:
            store.agent_memory("bot").store_episode(Episode("bot", "note", {}))
        shutil.copy(left.note, older.note)
        with pytest.raises(LostWritesError):
            open_store(older.path)

    def test_a_checkpoint_starts_without_one(self, tmp_path: Path) -> None:
        left = dead(tmp_path / "data", "rocksdb")
        target = tmp_path / "copy" / "rocksdb"
        with open_store(left.path) as store:
            store._backend.checkpoint(target)  # type: ignore[attr-defined]
        shutil.copy(left.path / "qilbee.json", target.parent)
        assert not (target / WATERMARK_NAME).exists()
        with open_store(target.parent) as store:
            assert episode_ids(store) == left.ids
        assert (target / WATERMARK_NAME).exists()

    @on_disk
    def test_an_engine_that_does_not_ask_is_asked_by_the_store(self, tmp_path: Path, engine: str) -> None:
        left = dead(tmp_path / "data", engine)
        sequence = Watermark(left.note).sequence
        with open_store(left.path) as store:
            store_id = str(store.stats()["store_id"])
        left.note.write_bytes(slot(Mark(store_id, sequence + 1000)))
        create = Registry.create

        def without_asking(registry: Registry[Any], name: str, options: BackendOptions) -> Any:
            return create(registry, name, msgspec.structs.replace(options, may_open=None))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Registry, "create", without_asking)
            with pytest.raises(LostWritesError):
                open_store(left.path)
        with pytest.raises(LostWritesError):
            open_store(left.path)  # and nobody holds it


class TestRecoveringTheTail:
    @pytest.mark.parametrize(
        ("kind", "part"), [("gone", 0.0), *product(["flip", "cut", "zeros", "recycled"], [0.3, 0.5, 0.8, 0.95])]
    )
    def test_a_beginning_of_the_episodes_is_kept_and_all_agrees_with_it(
        self, one_dead: Dead, tmp_path: Path, kind: str, part: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        left = one_dead.copied(tmp_path / "data")
        whole = left.log.read_bytes()
        at = int(part * len(whole))
        expected = Watermark(left.note).expected
        assert expected is not None
        if kind == "gone":
            left.log.unlink()
        elif kind == "recycled":
            at = max(start for start in record_starts(whole) if start <= at)
            left.log.write_bytes(whole[: at + 6] + b"\5" + whole[at + 7 :])
        else:
            rest = {"flip": bytes((whole[at] ^ 1,)) + whole[at + 1 :], "cut": b"", "zeros": bytes(len(whole) - at)}[
                kind
            ]
            left.log.write_bytes(whole[:at] + rest)
        with pytest.raises((LostWritesError, CorruptRecordError)):
            open_store(left.path)
        with open_store(left.path, recover="tail") as store:
            found = episode_ids(store)
            assert found == one_dead.ids[: len(found)]
            assert len(found) < len(one_dead.ids)
            report = store.recovery
            assert report is not None
            assert report.expected_sequence == expected
            assert report.found_sequence is not None
            assert report.lost_operations == expected - report.found_sequence > 0
            assert report.episodes == len(found)
            assert report.agents == bool(found)
            assert report.problems == []
            assert "operations that were durable are lost" in caplog.text
            check_whole(store)
        with open_store(left.path) as store:
            assert store.recovery is None
            assert episode_ids(store)[: len(found)] == found
            check_whole(store)

    def test_the_new_note_is_there_when_it_is_open(self, one_dead: Dead, tmp_path: Path) -> None:
        left = one_dead.copied(tmp_path / "data")
        before = Watermark(left.note).sequence
        left.log.unlink()
        store = open_store(left.path, recover="tail")
        try:
            copy = left.copied(tmp_path / "copy")
        finally:
            store.close()
        assert Watermark(copy.note).sequence < before
        open_store(copy.path).close()

    def test_a_sound_store_opens_and_has_lost_nothing(self, one_ahead: Dead, tmp_path: Path) -> None:
        left = one_ahead.copied(tmp_path / "data")
        with open_store(left.path, recover="tail") as store:
            assert episode_ids(store) == left.ids
            assert store.recovery is not None
            assert store.recovery.lost_operations == 0
            assert store.recovery.episodes == len(left.ids)

    def test_with_asyncio_too(self, one_dead: Dead, tmp_path: Path) -> None:
        left = one_dead.copied(tmp_path / "data")
        left.log.unlink()

        async def main() -> int:
            async with await aopen_store(left.path, recover="tail") as store:
                assert store.recovery is not None
                return store.recovery.lost_operations

        assert asyncio.run(main()) > 0

    def test_it_is_asked_for_by_name_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InvalidError, match='"tail"'):
            open_store(tmp_path / "data", recover="all")  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="leave recover out"):
            open_store(backend="ephemeral", recover="tail")
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setenv("QILBEE_STORAGE_RECOVER", "tail")
        with pytest.raises(SettingsError, match="recover"):
            open_store(tmp_path / "data")


class TestTheCommand:
    @staticmethod
    def run(*arguments: object, answer: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(app, ["recover", *map(str, arguments)], input=answer)
        return result.exit_code, result.output

    @pytest.fixture
    def left(self, one_dead: Dead, tmp_path: Path) -> Dead:
        left = one_dead.copied(tmp_path / "data")
        whole = left.log.read_bytes()
        left.log.write_bytes(whole[: int(0.7 * len(whole))])
        return left

    def test_it_says_what_is_wrong_asks_and_shows_what_was_kept_and_lost(self, left: Dead) -> None:
        status, output = self.run(left.path, answer="y\n")
        assert status == 0
        assert "does not open" in output
        assert "operations are missing" in output
        assert "[y/N]" in output
        with open_store(left.path) as store:
            kept = len(episode_ids(store))
        assert any(row.split()[:2] == ["episodes", str(kept)] for row in output.splitlines())
        (operations,) = [row.split() for row in output.splitlines() if row.split()[:1] == ["operations"]]
        assert int(operations[2]) > 0

    @pytest.mark.parametrize("answer", ["n\n", "", "\n"])
    def test_anything_but_yes_changes_nothing(self, left: Dead, answer: str) -> None:
        before = contents(left.path)
        status, _ = self.run(left.path, answer=answer)
        assert status == 1
        assert contents(left.path) == before
        with pytest.raises(DataError):
            open_store(left.path)

    def test_it_need_not_ask(self, left: Dead) -> None:
        status, output = self.run(left.path, "--yes")
        assert status == 0
        assert "[y/N]" not in output
        open_store(left.path).close()

    def test_a_sound_store_is_left_alone(self, one_dead: Dead, tmp_path: Path) -> None:
        left = one_dead.copied(tmp_path / "data")
        status, output = self.run(left.path)
        assert status == 0
        assert "nothing that was durable is missing" in output

    def test_what_it_cannot_mend_it_says(self, left: Dead) -> None:
        (left.files / "CURRENT").unlink()
        status, output = self.run(left.path, "--yes")
        assert status == 1
        assert "CURRENT" in output

    def test_it_makes_no_store(self, tmp_path: Path) -> None:
        status, output = self.run(tmp_path / "nothing", "--yes")
        assert status == 1
        assert "no store" in output
        assert not (tmp_path / "nothing").exists()
