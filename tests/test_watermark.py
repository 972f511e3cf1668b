"""The note of what is durable: never ahead of it, soon up to it, in nobody's way, and believed only if it is whole."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import Episode, LostWritesError, Store, open_store
from qilbee_core.watermark import WATERMARK_NAME, Mark, Watermark, read_slot, slot

OpenHere = Callable[..., Store]

PATIENCE_S = 60.0
STORE_ID = "00112233445566778899aabbccddeeff"
OTHER_ID = "ff" * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / WATERMARK_NAME


def begun(path: Path, store_id: str = STORE_ID) -> Watermark:
    """The watermark of a store that is open."""
    watermark = Watermark(path)
    watermark.begin(store_id)
    return watermark


def note(path: Path, *sequences: int) -> None:
    """Have one store after the other reach these."""
    for sequence in sequences:
        watermark = begun(path)
        watermark.reached(sequence)
        watermark.close()


def await_true(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def watermark_of(store: Store) -> Watermark:
    watermark = store._durability._watermark
    assert watermark is not None
    return watermark


def episode(number: int = 0) -> Episode:
    return Episode("bot", "note", {"number": number})


class TestSlots:
    @given(st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=16))
    def test_they_say_what_was_put_in(self, sequence: int, store_id: bytes) -> None:
        mark = Mark(store_id.hex(), sequence)
        assert len(slot(mark)) == 32
        assert read_slot(slot(mark)) == mark

    def test_any_flipped_bit_is_noticed(self) -> None:
        whole = slot(Mark(STORE_ID, 7))
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            assert read_slot(bytes(damaged)) is None

    @given(st.binary(max_size=64))
    def test_anything_else_is_none(self, data: bytes) -> None:
        assert read_slot(data) is None


class TestTheFile:
    def test_it_says_what_was_reached_last(self, path: Path) -> None:
        assert Watermark(path).expected is None
        for sequence in (3, 8, 21):
            note(path, sequence)
            assert Watermark(path).expected == sequence

    def test_its_slots_are_written_in_turn(self, path: Path) -> None:
        note(path, 1, 2, 3)
        content = path.read_bytes()
        assert len(content) == 8192
        assert sorted(content.count(slot(Mark(STORE_ID, sequence))) for sequence in (1, 2, 3)) == [0, 1, 1]
        assert content.count(slot(Mark(STORE_ID, 1))) == 0

    def test_a_number_never_falls(self, path: Path) -> None:
        watermark = begun(path)
        for sequence in (5, 9, 7):
            watermark.reached(sequence)
        watermark.close()
        assert Watermark(path).expected == 9

    def test_where_the_newer_slot_is_damaged_the_older_one_counts(self, path: Path) -> None:
        note(path, 100, 200)
        content = bytearray(path.read_bytes())
        content[content.index(slot(Mark(STORE_ID, 200))) + 5] ^= 1
        path.write_bytes(content)
        assert Watermark(path).expected == 100
        note(path, 300)
        assert Watermark(path).expected == 300

    @pytest.mark.parametrize("size", [0, 1, 31, 32, 4096, 4100, 4128, 8191])
    def test_cut_anywhere_it_says_an_older_number_or_nothing(
        self, path: Path, size: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        note(path, 100, 200)
        path.write_bytes(path.read_bytes()[:size])
        watermark = Watermark(path)
        assert watermark.expected in (None, 100, 200)
        assert (watermark.expected is None) == ("is damaged" in caplog.text)
        note(path, 300)
        assert Watermark(path).expected == 300

    def test_one_that_was_deleted_is_made_anew(self, path: Path) -> None:
        watermark = begun(path)
        watermark.reached(5)
        watermark.save()
        path.unlink()
        watermark.reached(6)
        watermark.close()
        assert Watermark(path).expected == 6

    def test_where_the_system_gives_no_thread_the_next_sync_asks_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        watermark = begun(path)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        watermark.reached(7)
        monkeypatch.undo()
        watermark.reached(8)
        await_true(lambda: Watermark(path).expected == 8, "it was not noted")
        watermark.close()

    def test_that_of_another_store_is_replaced(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        note(path, 1000)
        watermark = begun(path, OTHER_ID)
        assert "of another store" in caplog.text
        watermark.reached(5)
        watermark.close()
        assert slot(Mark(STORE_ID, 1000)) not in path.read_bytes()
        assert Watermark(path).expected == 5

    def test_after_a_loss_was_accepted_nothing_of_the_old_number_is_left(self, path: Path) -> None:
        note(path, 1000)
        watermark = Watermark(path, accept_loss=True)
        assert watermark.expected == 1000
        watermark.begin(STORE_ID)
        watermark.reached(5)
        watermark.close()
        assert Watermark(path).expected == 5
        assert slot(Mark(STORE_ID, 1000)) not in path.read_bytes()


class TestAnswers:
    @staticmethod
    def answer(watermark: Watermark, sequence: int, store_id: str | None, *, damaged: bool = False) -> object:
        try:
            return watermark.allows(sequence, lambda: store_id, damaged=damaged)
        except LostWritesError:
            return "lost"

    @pytest.mark.parametrize("damaged", [False, True])
    def test_what_is_behind_the_mark_decides(self, path: Path, damaged: bool) -> None:
        note(path, 100)
        assert self.answer(Watermark(path), 99, STORE_ID, damaged=damaged) == "lost"
        assert self.answer(Watermark(path), 100, STORE_ID, damaged=damaged) is True
        assert self.answer(Watermark(path), 101, STORE_ID, damaged=damaged) is True

    def test_an_empty_database_under_a_mark_is_a_loss(self, path: Path) -> None:
        note(path, 100)
        assert self.answer(Watermark(path), 0, None) == "lost"

    @pytest.mark.parametrize("sequence", [99, 100])
    def test_the_mark_of_another_store_proves_nothing(self, path: Path, sequence: int) -> None:
        note(path, 100)
        assert self.answer(Watermark(path), sequence, OTHER_ID, damaged=True) is False

    @pytest.mark.parametrize("damaged", [False, True])
    def test_without_a_file_nothing_is_known(self, path: Path, damaged: bool) -> None:
        assert self.answer(Watermark(path), 5, STORE_ID, damaged=damaged) is False

    def test_of_a_store_that_is_being_made_nothing_was_promised(self, path: Path) -> None:
        """The power may go after the first bytes of its log, and before it has an id to write down."""
        assert self.answer(Watermark(path), 0, None) is True
        for found in (None, STORE_ID):
            assert self.answer(Watermark(path), 0, found, damaged=True) is True
        note(path, 5)
        assert self.answer(Watermark(path), 9, OTHER_ID, damaged=True) is False
        assert self.answer(Watermark(path), 4, STORE_ID) == "lost"

    def test_a_loss_is_accepted_once(self, path: Path) -> None:
        note(path, 100)
        watermark = Watermark(path, accept_loss=True)
        assert self.answer(watermark, 50, STORE_ID) is True
        watermark.begin(STORE_ID)
        watermark.reached(50)
        assert self.answer(watermark, 49, STORE_ID) == "lost"
        watermark.close()

    def test_while_the_store_is_open_what_was_reached_since_counts(self, path: Path) -> None:
        watermark = begun(path)
        watermark.reached(70)
        assert self.answer(watermark, 69, STORE_ID) == "lost"
        watermark.close()

    def test_the_error_says_how_many_are_missing_and_what_to_do(self, path: Path) -> None:
        note(path, 1500)
        with pytest.raises(
            LostWritesError, match=r"operation 1,200,.* 1,500 .* 300 operations .*recover=.*qilbee reco"
        ):
            Watermark(path).allows(1200, lambda: STORE_ID, damaged=False)


class TestTheThread:
    def test_it_writes_by_itself(self, path: Path) -> None:
        watermark = begun(path)
        for sequence in (1, 2):
            watermark.reached(sequence)
            await_true(lambda: Watermark(path).expected == sequence, "nothing was written")  # noqa: B023
        watermark.close()

    def test_nobody_waits_for_the_disk(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        watermark = begun(path)
        watermark.reached(1)
        watermark.save()
        entered, go_on, real = threading.Event(), threading.Event(), os.fdatasync

        def held(handle: int) -> None:
            entered.set()
            assert go_on.wait(PATIENCE_S)
            real(handle)

        monkeypatch.setattr(os, "fdatasync", held)
        watermark.reached(2)
        assert entered.wait(PATIENCE_S)
        for sequence in range(3, 1000):
            watermark.reached(sequence)
        assert not go_on.is_set()
        go_on.set()
        watermark.close()
        assert Watermark(path).expected == 999

    def test_it_writes_ten_times_a_second_at_most(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        watermark, writes, real = begun(path), [0], os.fdatasync
        watermark.reached(1)
        watermark.save()

        def counted(handle: int) -> None:
            writes[0] += 1
            real(handle)

        monkeypatch.setattr(os, "fdatasync", counted)
        started_s = time.monotonic()
        sequence = 1
        while writes[0] < 3:
            sequence += 1
            watermark.reached(sequence)
            assert time.monotonic() - started_s < PATIENCE_S
            time.sleep(0.001)
        done, lasted_s = writes[0], time.monotonic() - started_s
        assert done <= lasted_s / 0.1 + 2
        watermark.close()

    def test_a_disk_that_fails_is_logged_once_and_tried_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        watermark = begun(path)
        watermark.reached(1)
        watermark.save()

        def fail(handle: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            for sequence in (2, 3):
                watermark.reached(sequence)
                watermark.save()
        assert caplog.text.count("lost writes may go unnoticed") == 1
        assert Watermark(path).sequence in (1, 2, 3)
        watermark.close()
        assert Watermark(path).sequence == 3

    def test_a_forked_child_writes_nothing(self, path: Path) -> None:
        watermark = begun(path)
        watermark.reached(1)
        watermark.save()
        child = os.fork()
        if child == 0:
            watermark.abandon()
            watermark.reached(50)
            watermark.save()
            watermark.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert Watermark(path).sequence == 1
        watermark.close()


on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])


class TestInAStore:
    @on_disk
    @pytest.mark.parametrize(
        "settings",
        [{"sync_writes": True}, {"wal_sync_interval_ms": 10}, {"durability": "async"}, {"enable_wal": False}],
    )
    def test_a_close_leaves_the_last_operation(
        self, open_here: OpenHere, tmp_path: Path, engine: str, settings: dict[str, object]
    ) -> None:
        store = open_here(**settings)
        for number in range(5):
            store.agent_memory("bot").store_episode(episode(number))
        backend = store._backend
        store.close()
        expected = Watermark(tmp_path / "data" / engine / WATERMARK_NAME).expected
        assert expected
        store = open_here()
        assert store._backend.sequence() == expected  # type: ignore[attr-defined]
        assert backend is not store._backend

    @on_disk
    def test_the_status_says_what_is_durable(self, open_here: OpenHere) -> None:
        store = open_here(durability="async")
        store.agent_memory("bot").store_episode(episode())
        before = store.durability().durable_sequence
        assert before is not None
        store.flush()
        status = store.durability()
        assert status.durable_sequence == store._backend.sequence() > before  # type: ignore[attr-defined]
        assert store.stats()["durability"] == {
            "level": "async",
            "durable_sequence": status.durable_sequence,
            "unsynced_age_ms": 0.0,
        }

    @pytest.mark.parametrize("engine", ["ephemeral"])
    def test_an_engine_without_files_has_none(self, open_here: OpenHere, tmp_path: Path) -> None:
        store = open_here()
        store.flush()
        assert store.durability().durable_sequence is None
        assert list(tmp_path.iterdir()) == []

    @on_disk
    def test_an_acknowledgement_does_not_wait_for_it(
        self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_here(sync_writes=True)
        entered, go_on = threading.Event(), threading.Event()
        watermark = watermark_of(store)
        real = watermark.save

        def held() -> None:
            entered.set()
            assert go_on.wait(PATIENCE_S)
            real()

        monkeypatch.setattr(watermark, "save", held)
        memory = store.agent_memory("bot")
        ids = [memory.store_episode(episode(number)) for number in range(20)]
        assert entered.wait(PATIENCE_S)
        assert memory.get_statistics().total_episodes == len(ids)
        assert not go_on.is_set()
        go_on.set()

    @on_disk
    def test_a_sync_that_fails_does_not_move_it(self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch) -> None:
        store = open_here(durability="async")
        store.flush()
        before = store.durability().durable_sequence
        store.agent_memory("bot").store_episode(episode())

        def fail() -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(store._backend, "sync", fail)
            with pytest.raises(Exception, match="sync"):
                store.flush()
            assert store.durability().durable_sequence == before


_WRITER = """
import os, sys
from pathlib import Path
from qilbee_core import Episode, open_store

store = open_store(sys.argv[1], backend=sys.argv[2], sync_writes=True)
files = Path(sys.argv[1]) / sys.argv[2] / "db"
backend, real = store._backend, store._backend.sync

def sync():
    # Behind the interface: how much of the log there was when the sync began, and only once it was done.
    sizes = {log.name: log.stat().st_size for log in files.glob("*.log")}
    sequence = backend.sequence()
    real()
    os.write(1, repr((sequence, sizes)).encode() + b"\\n")

backend.sync = sync
for number in range(10**9):
    store.agent_memory("bot").store_episode(Episode("bot", "note", {"number": number, "text": "x" * 200}))
"""


@on_disk
@pytest.mark.parametrize("syncs", [1, 20, 300])
def test_it_is_never_ahead_of_what_is_durable(tmp_path: Path, engine: str, syncs: int) -> None:
    """A writer is killed, and its logs are cut to what the last sync covered, as a power cut would."""
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
    data = tmp_path / "data"
    with subprocess.Popen([sys.executable, "-c", _WRITER, data, engine], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(syncs)]
        process.kill()
        lines += process.stdout.readlines()
    whole = [line for line in lines if line.endswith("\n")]
    sequence, sizes = eval(whole[-1])
    assert Watermark(data / engine / WATERMARK_NAME).sequence <= sequence
    for name, size in sizes.items():
        os.truncate(data / engine / "db" / name, size)
    with open_store(data) as store:
        assert store.agent_memory("bot").get_statistics().total_episodes >= len(whole)
        assert store.verify().problems == []


def test_it_says_nothing_of_what_is_normal(open_here: OpenHere, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        open_here().close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
