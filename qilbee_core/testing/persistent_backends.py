"""The contract of storage backends whose content survives ``close``, and the death of the process."""

# The names of the tests are the sentences of the contract; docstrings would only repeat them.
# ruff: noqa: D102
# A protocol as the argument of offered() is what isinstance is given, never what is instantiated.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from qilbee_core.batch import Delete, DeleteRange, Put, WriteBatch
from qilbee_core.errors import QilbeeError, StorageError, StoreClosedError, StoreLockedError
from qilbee_core.interfaces import (
    SingleProcess,
    StorageBackend,
    SupportsCheckpoint,
    SupportsCompaction,
    SupportsErase,
    SupportsReopen,
    SupportsSequence,
)
from qilbee_core.testing._backend_processes import fork, hold, in_child, try_to_open, write_and_die
from qilbee_core.testing._backend_uses import (
    AT_ONCE_S,
    KEYS,
    PATIENCE_S,
    ROWS,
    VALUE_BYTES_MAX,
    contents,
    offered,
    put,
    together,
)
from qilbee_core.testing.backends import BackendContract

__all__ = ["PersistentBackendContract"]


class PersistentBackendContract(BackendContract):
    """The contract of an engine whose content survives ``close``, and the death of the process."""

    persistent = True

    def test_everything_survives_closing(self, backend: StorageBackend, path: Path) -> None:
        put(backend, *ROWS, (b"large", b"x" * VALUE_BYTES_MAX))
        backend.write(WriteBatch([Put(b"a", b"changed"), Delete(b"b"), DeleteRange(b"\x7f", b"\xff")]))
        rows = list(backend.scan())
        backend.close()
        with closing(self.open_backend(path)) as again:
            self._shows(again, rows)

    def test_it_can_be_opened_again_and_again(self, path: Path) -> None:
        for number in range(5):
            with closing(self.open_backend(path)) as backend:
                assert [key for key, _ in backend.scan()] == [b"%d" % earlier for earlier in range(number)]
                put(backend, (b"%d" % number, b""))
                if number % 2:
                    backend.sync()

    def test_views_left_open_do_not_stop_it_from_opening_again(self, backend: StorageBackend, path: Path) -> None:
        put(backend, *ROWS)
        views = [backend.snapshot(), backend.scan(), backend.snapshot().scan()]
        backend.close()
        with closing(self.open_backend(path)) as again:
            assert list(again.scan()) == ROWS
        del views

    def test_reopening_keeps_everything_and_writes_go_on(self, backend: StorageBackend, path: Path) -> None:
        reopened = offered(backend, SupportsReopen)
        put(backend, *ROWS)
        for number in range(3):
            reopened.reopen()
            assert list(backend.scan(b"", b"\xff\xff\xff")) == ROWS
            put(backend, (b"\xff\xff\xff", b"%d" % number))
            assert backend.get(b"\xff\xff\xff") == b"%d" % number
            with closing(backend.snapshot()) as snapshot:
                assert snapshot.get(b"a") == b"value of a"
            backend.sync()
        backend.close()
        with closing(self.open_backend(path)) as again:
            assert list(again.scan()) == [*ROWS, (b"\xff\xff\xff", b"2")]

    def test_reads_wait_while_it_is_reopened(self, backend: StorageBackend) -> None:
        reopened = offered(backend, SupportsReopen)
        put(backend, *ROWS)
        done = threading.Event()

        def reopen() -> None:
            try:
                for _ in range(10):
                    reopened.reopen()
            finally:
                done.set()

        def read() -> None:
            while not done.is_set():
                assert backend.get(b"a") == b"value of a"
                assert backend.get_many(KEYS * 8) == [value for _, value in ROWS] * 8
                backend.snapshot().close()

        together(reopen, read, read)

    def test_views_of_before_a_reopening_show_their_instant_or_say_that_they_are_closed(
        self, backend: StorageBackend
    ) -> None:
        reopened = offered(backend, SupportsReopen)
        put(backend, *ROWS)
        with closing(backend.snapshot()) as snapshot:
            scan = backend.scan()
            reopened.reopen()
            backend.write(WriteBatch([DeleteRange(b"", b"\xff\xff\xff")]))
            with suppress(StoreClosedError):
                assert list(scan) == ROWS
            with suppress(StoreClosedError):
                assert list(snapshot.scan()) == ROWS

    def test_the_sequence_never_falls_over_closing(self, backend: StorageBackend, path: Path) -> None:
        counter = offered(backend, SupportsSequence)
        put(backend, *ROWS)
        before = counter.sequence()
        backend.close()
        for _ in range(3):
            with closing(self.open_backend(path)) as again:
                assert offered(again, SupportsSequence).sequence() >= before

    def test_the_sequence_never_falls_over_the_death_of_the_process(self, path: Path) -> None:
        with closing(self.open_backend(path)) as backend:
            offered(backend, SupportsSequence)
        with in_child(self, write_and_die, path) as child:
            said = child.lines()
        with closing(self.open_backend(path)) as again:
            assert offered(again, SupportsSequence).sequence() >= int(said[-1])

    # Death of the process

    def test_writes_survive_the_death_of_the_process(self, path: Path) -> None:
        with in_child(self, write_and_die, path) as child:
            child.lines()
            assert child.process.returncode == -signal.SIGKILL
        with closing(self.open_backend(path)) as backend:
            assert list(backend.scan(b"row", b"rox")) == [
                (b"row%04d" % number, b"x" * 100) for number in range(100, 1000)
            ]
            assert backend.get_many([b"synced", b"deleted", b"last"]) == [b"1", None, b"1"]

    # One opener at a time

    def test_a_second_opener_in_this_process_is_refused_at_once(self, backend: StorageBackend, path: Path) -> None:
        offered(backend, SingleProcess)
        put(backend, (b"a", b"1"))
        began = time.monotonic()
        with pytest.raises(StoreLockedError) as caught:
            self.open_backend(path)
        assert time.monotonic() - began < AT_ONCE_S
        assert str(os.getpid()) in str(caught.value)
        assert str(path) in str(caught.value)
        put(backend, (b"b", b"2"))
        assert list(backend.scan()) == [(b"a", b"1"), (b"b", b"2")]

    def test_a_second_opener_in_another_process_is_refused_at_once(self, backend: StorageBackend, path: Path) -> None:
        offered(backend, SingleProcess)
        with in_child(self, try_to_open, path) as child:
            kind, seconds, text = child.lines()
        assert kind == "StoreLockedError"
        assert float(seconds) < AT_ONCE_S
        assert str(os.getpid()) in text
        assert str(path) in text
        put(backend, (b"a", b"1"))

    def test_it_can_be_opened_elsewhere_once_it_is_closed(self, backend: StorageBackend, path: Path) -> None:
        offered(backend, SingleProcess)
        put(backend, (b"a", b"1"))
        backend.close()
        with in_child(self, try_to_open, path) as child:
            assert child.lines() == ["opened"]

    def test_it_can_be_opened_once_its_holder_was_killed(self, path: Path) -> None:
        with closing(self.open_backend(path)) as backend:
            offered(backend, SingleProcess)
        with in_child(self, hold, path) as child:
            assert child.line() == "opened"
            with pytest.raises(StoreLockedError, match=str(child.process.pid)):
                self.open_backend(path)
            child.process.kill()
            child.process.wait(PATIENCE_S)
            with closing(self.open_backend(path)) as backend:
                assert backend.get(b"held") == b"1"

    def test_a_forked_child_is_told_and_its_parent_goes_on(self, backend: StorageBackend, path: Path) -> None:
        offered(backend, SingleProcess)
        backend.close()
        with in_child(self, fork, path) as child:
            said = child.lines()
            assert child.process.returncode == 0, said
        outcomes = json.loads(said[0])
        assert outcomes == dict.fromkeys(outcomes, "StoreClosedError")
        assert said[1:] == ["child ended with 0", "parent went on"]
        with closing(self.open_backend(path)) as again:
            assert dict(again.scan())[b"after"] == b"1"

    # What an engine may offer

    def test_compaction_gives_space_back(self, backend: StorageBackend, path: Path) -> None:
        compactor = offered(backend, SupportsCompaction)
        put(backend, (b"kept", b"1"), *((b"%06d" % number, os.urandom(1000)) for number in range(8000)))
        compactor.compact()
        before = _size_of(path)
        backend.write(WriteBatch([DeleteRange(b"0", b"1")]))
        compactor.compact()
        compactor.compact()
        assert _size_of(path) < before / 2
        assert list(backend.scan()) == [(b"kept", b"1")]

    def test_a_checkpoint_opens_by_itself_and_is_one_instant(self, backend: StorageBackend, tmp_path: Path) -> None:
        source, target = offered(backend, SupportsCheckpoint), tmp_path / "checkpoint"
        put(backend, *ROWS)
        source.checkpoint(target)
        put(backend, (b"later", b"1"))
        with closing(self.open_backend(target)) as copy:
            assert list(copy.scan()) == ROWS
            put(copy, (b"only in the copy", b"1"))
        assert backend.get_many([b"later", b"only in the copy"]) == [b"1", None]

    def test_a_checkpoint_never_replaces_what_is_there(self, backend: StorageBackend, tmp_path: Path) -> None:
        target = tmp_path / "checkpoint"
        target.mkdir()
        (target / "precious").write_text("data")
        with pytest.raises(QilbeeError):
            offered(backend, SupportsCheckpoint).checkpoint(target)
        assert [file.name for file in target.iterdir()] == ["precious"]

    def test_a_checkpoint_is_whole_while_others_write(self, backend: StorageBackend, tmp_path: Path) -> None:
        source, done = offered(backend, SupportsCheckpoint), threading.Event()

        def write() -> None:
            for number in itertools.count():
                put(backend, (b"a", b"%d" % number), (b"z", b"%d" % number), (b"%06d" % number, b"x" * 200))
                if done.is_set():
                    return

        def copy() -> None:
            try:
                for number in range(3):
                    source.checkpoint(tmp_path / f"checkpoint{number}")
            finally:
                done.set()

        together(write, copy)
        for number in range(3):
            with closing(self.open_backend(tmp_path / f"checkpoint{number}")) as opened:
                assert opened.get(b"a") == opened.get(b"z")

    @pytest.mark.parametrize("around", [0, 10, 3000])
    @pytest.mark.parametrize("size", [20, 5000])
    @pytest.mark.parametrize("compacted", [False, True])
    def test_erased_bytes_are_in_no_file(
        self, backend: StorageBackend, path: Path, around: int, size: int, compacted: bool
    ) -> None:
        eraser = offered(backend, SupportsErase)
        rows = [(b"row/%05d" % number, os.urandom(200)) for number in range(around)]
        middle = b"row/%05d/" % (around // 2)
        secrets = [os.urandom(16) for _ in range(5)]
        single, overwritten, ranged, brief = (secret * (size // 16 + 1) for secret in secrets[:4])
        key = middle + b"3" + secrets[4]
        put(backend, *rows[::2], (middle + b"1", single), (middle + b"2", overwritten), (key, ranged))
        if compacted and isinstance(backend, SupportsCompaction):
            backend.compact()
        # Put and deleted with nothing between, so that both may come to lie in one file.
        put(backend, (middle + b"4", brief))
        backend.write(WriteBatch([Delete(middle + b"4")]))
        put(backend, (middle + b"2", b"harmless"), *rows[1::2])
        backend.write(WriteBatch([Delete(middle + b"1"), DeleteRange(middle + b"3", middle + b"4")]))
        backend.sync()
        assert _files_with(path, secrets), "the secrets never reached a file, so this proves nothing"

        eraser.erase([(middle + b"1", middle + b"1\0"), (middle + b"2", middle + b"5")])
        assert _files_with(path, secrets) == []
        assert list(backend.scan()) == sorted([*rows, (middle + b"2", b"harmless")])
        backend.close()
        assert _files_with(path, secrets) == []
        with closing(self.open_backend(path)) as again:
            assert list(again.scan()) == sorted([*rows, (middle + b"2", b"harmless")])

    def test_everything_can_be_erased(self, backend: StorageBackend, path: Path) -> None:
        secret = os.urandom(16)
        put(backend, *((b"%04d" % number + secret, secret * 5) for number in range(1000)))
        backend.write(WriteBatch([DeleteRange(b"", b"\xff")]))
        offered(backend, SupportsErase).erase([(b"", None)])
        assert _files_with(path, [secret]) == []
        assert list(backend.scan()) == []

    def test_erasing_spares_what_was_not_deleted(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        offered(backend, SupportsErase).erase([(b"", None), (b"a", b"b"), (b"b", b"a"), (b"none", b"none\0")])
        self._shows(backend, ROWS)
        put(backend, (b"after", b"1"))
        assert backend.get(b"after") == b"1"

    def test_erasing_is_refused_where_a_snapshot_keeps_the_bytes(self, backend: StorageBackend, path: Path) -> None:
        eraser, secret = offered(backend, SupportsErase), os.urandom(16)
        rows = sorted([*ROWS, (b"secret", secret * 300)])
        put(backend, *rows)
        backend.sync()
        with closing(backend.snapshot()) as snapshot:
            backend.write(WriteBatch([Delete(b"secret")]))
            try:
                eraser.erase([(b"secret", b"secret\0")])
            except StorageError:
                pass
            else:
                assert _files_with(path, [secret]) == []
            self._shows(snapshot, rows)
        eraser.erase([(b"secret", b"secret\0")])
        assert _files_with(path, [secret]) == []


def _size_of(directory: Path) -> int:
    size = 0
    for file in directory.rglob("*"):
        with suppress(FileNotFoundError):  # the engine deletes in a thread of its own
            if file.is_file():
                size += file.stat().st_blocks * 512
    return size


def _files_with(directory: Path, secrets: Sequence[bytes]) -> list[str]:
    return [file.name for file, content in contents(directory) for secret in secrets if secret in content]
