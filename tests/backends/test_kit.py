"""The kit for backends is itself tested: each of these backends breaks one sentence, and is caught at it."""

import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from qilbee_core import (
    BackendOptions,
    ConflictError,
    DeleteRange,
    DirectoryLock,
    Expect,
    InvalidError,
    Put,
    SingleProcess,
    Snapshot,
    StorageBackend,
    StoreLockedError,
    WriteBatch,
)
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.testing import BackendContract, PersistentBackendContract, backend_state_machine

Row = tuple[bytes, bytes]


_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class FileBackend(EphemeralBackend, SingleProcess):
    """What an implementer might write: the ephemeral backend, and a file with all that was written."""

    name = "file"

    def __init__(self, options: BackendOptions) -> None:
        super().__init__(options)
        self._log_lock = Lock()
        self._count = 0
        self._directory_lock = DirectoryLock(options.path, on_fork=self._forked)
        self._path = options.path / "log"
        self._file = os.open(self._path, _APPEND)
        with self._path.open("rb") as file:
            while file.peek(1):
                super().write(pickle.load(file))
                self._count += 1

    def write(self, batch: WriteBatch) -> None:
        with self._log_lock:
            super().write(batch)
            self._count += 1
            os.write(self._file, pickle.dumps(batch))

    def sync(self) -> None:
        with self._log_lock:
            super().sync()
            os.fsync(self._file)

    def close(self) -> None:
        with self._log_lock:
            if self._latest is not None:
                os.close(self._file)
            super().close()
            self._directory_lock.release()

    def reopen(self) -> None:
        with self._log_lock:
            super().sync()
            os.fsync(self._file)
            os.close(self._file)
            self._file = os.open(self._path, _APPEND)

    def _forked(self) -> None:
        super().close()

    def sequence(self) -> int:
        super().sync()
        return self._count

    def stats(self) -> Mapping[str, int]:
        super().sync()
        return {"batches": self._count}

    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        with self._log_lock:
            whole = WriteBatch([Put(key, value) for key, value in self.scan()])
            # One for each that was written, so that the sequence does not fall.
            self._path.write_bytes(pickle.dumps(whole) + pickle.dumps(WriteBatch([])) * (self._count - 1))

    def compact(self, start: bytes = b"", stop: bytes | None = None) -> None:
        self.erase([(start, stop)])

    def checkpoint(self, target: Path) -> None:
        super().sync()
        if target.exists():
            raise InvalidError(f"{target} exists")
        target.mkdir()
        with self._log_lock:
            (target / "log").write_bytes(self._path.read_bytes())


class TestFileBackend(PersistentBackendContract):
    """Nothing in the kit asks for more than the contract: this one is no tree and has every option."""

    def open_backend(self, path: Path) -> StorageBackend:
        return FileBackend(BackendOptions(path=path))


class LooksLate(EphemeralBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        yield from super().scan(start, stop, reverse=reverse)


class LooksAgain(EphemeralBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        keys = [key for key, _ in super().scan(start, stop, reverse=reverse)]
        return ((key, self.get(key) or b"") for key in keys)


class IncludesStop(EphemeralBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        return super().scan(start, None if stop is None else stop + b"\0", reverse=reverse)


class ReverseLosesStart(EphemeralBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        return super().scan(start + b"\0" if reverse and start else start, stop, reverse=reverse)


class EmptyStopIsNoStop(EphemeralBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        return super().scan(start, stop or None, reverse=reverse)


class OrdersSigned(EphemeralBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        rows = list(super().scan(start, stop))
        return iter(sorted(rows, key=lambda row: [byte - 256 * (byte > 127) for byte in row[0]], reverse=reverse))


class ScansForever(EphemeralBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        return iter(list(super().scan(start, stop, reverse=reverse)))


class EmptyIsMissing(EphemeralBackend):
    def get(self, key: bytes) -> bytes | None:
        return super().get(key) or None


class CutsAtZero(EphemeralBackend):
    def get(self, key: bytes) -> bytes | None:
        return super().get(key.split(b"\0")[0])


class DropsDuplicates(EphemeralBackend):
    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return super().get_many(list(dict.fromkeys(keys)))


class AnswersInOrderOfKey(EphemeralBackend):
    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return super().get_many(sorted(keys))


class IgnoresExpects(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        super().write(WriteBatch(batch.operations))


class TakesEmptyForMissing(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        if any((self.get(expect.key) or None) != (expect.value or None) for expect in batch.expects):
            raise ConflictError("no")
        super().write(WriteBatch(batch.operations))


class LooksAtTheFirstExpect(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        super().write(WriteBatch(batch.operations, batch.expects[:1]))


class ExpectsAfterwards(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        super().write(WriteBatch(batch.operations))
        super().write(WriteBatch([], batch.expects))


class ExpectsWithoutLock(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        super().write(WriteBatch([], batch.expects))
        time.sleep(0.0001)
        super().write(WriteBatch(batch.operations))


class LocksOnlyWhoExpects(EphemeralBackend):
    def __init__(self, options: BackendOptions) -> None:
        super().__init__(options)
        self._expecting = Lock()

    def write(self, batch: WriteBatch) -> None:
        if not batch.expects:
            return super().write(batch)
        with self._expecting:
            super().write(WriteBatch([], batch.expects))
            time.sleep(0.0001)
            return super().write(WriteBatch(batch.operations))


class RangesFirst(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        ranges = [each for each in batch.operations if isinstance(each, DeleteRange)]
        others = [each for each in batch.operations if not isinstance(each, DeleteRange)]
        super().write(WriteBatch([*ranges, *others], batch.expects))


class RangesLast(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        ranges = [each for each in batch.operations if isinstance(each, DeleteRange)]
        others = [each for each in batch.operations if not isinstance(each, DeleteRange)]
        super().write(WriteBatch([*others, *ranges], batch.expects))


class RangesIncludeStop(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        operations = [
            DeleteRange(each.start, each.stop + b"\0") if isinstance(each, DeleteRange) else each
            for each in batch.operations
        ]
        super().write(WriteBatch(operations, batch.expects))


class FirstPutWins(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        super().write(WriteBatch(batch.operations[::-1], batch.expects))


class OneByOne(EphemeralBackend):
    def write(self, batch: WriteBatch) -> None:
        super().write(WriteBatch([], batch.expects))
        for operation in batch.operations:
            super().write(WriteBatch([operation]))
            time.sleep(0.0001)


class LiveSnapshot(EphemeralBackend):
    class View:
        def __init__(self, backend: EphemeralBackend) -> None:
            self.get, self.get_many, self.scan = backend.get, backend.get_many, backend.scan

        def close(self) -> None:
            pass

    def snapshot(self) -> Snapshot:  # type: ignore[override]
        return self.View(self)


class SnapshotScansLive(EphemeralBackend):
    def snapshot(self) -> Snapshot:  # type: ignore[override]
        snapshot = super().snapshot()
        snapshot.scan = self.scan  # type: ignore[method-assign]
        return snapshot


class SnapshotNeverCloses(EphemeralBackend):
    def snapshot(self) -> Snapshot:  # type: ignore[override]
        snapshot = super().snapshot()
        snapshot.close = lambda: None  # type: ignore[method-assign]
        return snapshot


class OneSnapshot(EphemeralBackend):
    def snapshot(self) -> Snapshot:  # type: ignore[override]
        if not hasattr(self, "_one"):
            self._one = super().snapshot()
        return self._one


class NeverCloses(EphemeralBackend):
    def close(self) -> None:
        pass


class ClosesOnce(EphemeralBackend):
    def close(self) -> None:
        self._version()
        super().close()


class SyncsWhenClosed(EphemeralBackend):
    def sync(self) -> None:
        pass


CAUGHT: list[tuple[type[EphemeralBackend], str, dict[str, object]]] = [
    (LooksLate, "test_the_view_of_a_scan_is_fixed_when_it_is_called", {"reverse": False}),
    (LooksLate, "test_a_long_scan_keeps_its_view_while_everything_is_deleted", {}),
    (LooksAgain, "test_the_view_of_a_scan_is_fixed_when_it_is_called", {"reverse": True}),
    (IncludesStop, "test_a_scan_is_half_open_in_both_directions", {}),
    (ReverseLosesStart, "test_a_scan_is_half_open_in_both_directions", {}),
    (EmptyStopIsNoStop, "test_an_empty_or_inverted_range_has_no_rows", {}),
    (OrdersSigned, "test_keys_are_ordered_as_unsigned_bytes", {}),
    (ScansForever, "test_closing_ends_scans", {"reverse": False}),
    (EmptyIsMissing, "test_an_empty_value_is_not_a_missing_one", {}),
    (CutsAtZero, "test_any_bytes_are_a_key", {}),
    (DropsDuplicates, "test_get_many_keeps_the_order_and_the_duplicates", {}),
    (AnswersInOrderOfKey, "test_get_many_keeps_the_order_and_the_duplicates", {}),
    (
        IgnoresExpects,
        "test_a_batch_applies_exactly_if_the_key_holds_what_is_expected",
        {"value": b"1", "expected": None},
    ),
    (
        TakesEmptyForMissing,
        "test_a_batch_applies_exactly_if_the_key_holds_what_is_expected",
        {"value": b"", "expected": None},
    ),
    (LooksAtTheFirstExpect, "test_a_failed_batch_has_no_effect_at_all", {}),
    (ExpectsAfterwards, "test_a_failed_batch_has_no_effect_at_all", {}),
    (ExpectsAfterwards, "test_what_is_expected_is_the_state_before_the_batch", {}),
    (ExpectsWithoutLock, "test_writers_who_expect_lose_no_update", {}),
    (LocksOnlyWhoExpects, "test_what_is_expected_also_holds_against_writers_who_expect_nothing", {}),
    (RangesFirst, "test_deleting_a_range_also_removes_what_the_batch_put_before", {}),
    (RangesLast, "test_deleting_a_range_spares_what_the_batch_puts_later", {}),
    (RangesIncludeStop, "test_a_range_is_deleted_half_open", {}),
    (FirstPutWins, "test_operations_take_effect_in_order", {}),
    (OneByOne, "test_readers_never_see_half_a_batch", {}),
    (LiveSnapshot, "test_a_snapshot_shows_one_instant_to_get_get_many_and_scan", {}),
    (SnapshotScansLive, "test_a_snapshot_shows_one_instant_to_get_get_many_and_scan", {}),
    (SnapshotScansLive, "test_scans_of_one_snapshot_go_on_side_by_side", {}),
    (SnapshotNeverCloses, "test_a_closed_snapshot_says_so", {}),
    (OneSnapshot, "test_each_snapshot_shows_its_own_instant", {}),
    (OneSnapshot, "test_closing_a_snapshot_leaves_the_others_open", {}),
    (NeverCloses, "test_after_close_every_call_says_so", {}),
    (NeverCloses, "test_closing_ends_snapshots", {}),
    (ClosesOnce, "test_closing_twice_is_no_error", {}),
    (SyncsWhenClosed, "test_after_close_every_call_says_so", {}),
]


@pytest.mark.parametrize(
    ("broken", "sentence", "arguments"), CAUGHT, ids=[f"{kind.__name__}-{test[5:]}" for kind, test, _ in CAUGHT]
)
def test_the_kit_catches(
    broken: type[EphemeralBackend], sentence: str, arguments: dict[str, object], tmp_path: Path
) -> None:
    backend = broken(BackendOptions(path=tmp_path))
    test = getattr(BackendContract(), sentence)
    if "tmp_path" in test.__code__.co_varnames[: test.__code__.co_argcount]:
        arguments = {**arguments, "tmp_path": tmp_path}
    with pytest.raises((Exception, pytest.fail.Exception)):
        test(backend, **arguments)


@pytest.mark.parametrize(
    "broken",
    [
        *(LooksLate, ReverseLosesStart, EmptyStopIsNoStop, EmptyIsMissing, DropsDuplicates, IgnoresExpects),
        *(TakesEmptyForMissing, ExpectsAfterwards, RangesFirst, RangesLast, FirstPutWins, SnapshotScansLive),
    ],
)
def test_the_state_machine_finds_by_itself(broken: type[EphemeralBackend], tmp_path: Path) -> None:
    machine = backend_state_machine(lambda path: broken(BackendOptions(path=path)), tmp_path, persistent=False)
    # To find one is enough; what makes it small takes long.
    once = settings(max_examples=500, phases=[Phase.generate], derandomize=True, deadline=None, database=None)
    with pytest.raises((Exception, pytest.fail.Exception)):
        run_state_machine_as_test(machine, settings=once)


# Those that keep a file. Contracts at the top of the module, as another process has to find them.


class Forgets(FileBackend):
    def write(self, batch: WriteBatch) -> None:
        EphemeralBackend.write(self, batch)


class WritesAtTheEnd(FileBackend):
    def __init__(self, options: BackendOptions) -> None:
        super().__init__(options)
        self._held_back: list[WriteBatch] = []

    def write(self, batch: WriteBatch) -> None:
        EphemeralBackend.write(self, batch)
        self._held_back.append(batch)

    def close(self) -> None:
        if self._latest is not None:
            os.write(self._file, b"".join(map(pickle.dumps, self._held_back)))
        super().close()


class LetsAnybodyIn(FileBackend):
    def __init__(self, options: BackendOptions) -> None:
        try:
            super().__init__(options)
        except StoreLockedError:
            self._directory_lock.release()


class DoesNotSayWho(FileBackend):
    def __init__(self, options: BackendOptions) -> None:
        try:
            super().__init__(options)
        except StoreLockedError:
            raise StoreLockedError("somebody else has it") from None


class KeepsTheLock(FileBackend):
    def close(self) -> None:
        EphemeralBackend.close(self)


class LivesOnInTheChild(FileBackend):
    def _forked(self) -> None:
        pass


class ErasesNothing(FileBackend):
    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        self.sync()


class ErasesTheLiving(FileBackend):
    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        for start, stop in ranges:
            self.write(WriteBatch([DeleteRange(start, stop or b"\xff" * 9)]))
        super().erase(ranges)


class CountsFromZero(FileBackend):
    def __init__(self, options: BackendOptions) -> None:
        super().__init__(options)
        self._count = 0


class CountsSyncsOnly(FileBackend):
    def write(self, batch: WriteBatch) -> None:
        super().write(batch)
        self._count -= 1


class CheckpointsOverAnything(FileBackend):
    def checkpoint(self, target: Path) -> None:
        target.mkdir(exist_ok=True)
        (target / "log").write_bytes(self._path.read_bytes())


class CheckpointIsALink(FileBackend):
    def checkpoint(self, target: Path) -> None:
        super().checkpoint(target)
        (target / "log").unlink()
        (target / "log").hardlink_to(self._path)


class ReopensEmpty(FileBackend):
    def reopen(self) -> None:
        super().reopen()
        with self._log_lock:
            EphemeralBackend.write(self, WriteBatch([DeleteRange(b"", b"\xff" * 9)]))


class ReopensForReadingOnly(FileBackend):
    def reopen(self) -> None:
        super().reopen()
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDONLY)


class LetsReadersFallThrough(FileBackend):
    def __init__(self, options: BackendOptions) -> None:
        super().__init__(options)
        self._has_fallen = Event()

    def _version(self) -> Any:
        if self._latest is None:
            self._has_fallen.set()
        return super()._version()

    def reopen(self) -> None:
        latest, self._latest = self._latest, None
        assert self._has_fallen.wait(60)
        self._latest = latest


class MixesInstantsOverReopening(FileBackend):
    def scan(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        yield from super().scan(start, stop, reverse=reverse)


def contract_of(kind: type[FileBackend]) -> type[PersistentBackendContract]:
    def open_backend(self: PersistentBackendContract, path: Path) -> StorageBackend:
        return kind(BackendOptions(path=path))

    name = f"{kind.__name__}Contract"
    return type(name, (PersistentBackendContract,), {"open_backend": open_backend, "__module__": __name__})


FILE_CAUGHT: list[tuple[type[FileBackend], str, dict[str, object]]] = [
    (Forgets, "test_everything_survives_closing", {}),
    (Forgets, "test_writes_survive_the_death_of_the_process", {}),
    (WritesAtTheEnd, "test_writes_survive_the_death_of_the_process", {}),
    (LetsAnybodyIn, "test_a_second_opener_in_this_process_is_refused_at_once", {}),
    (LetsAnybodyIn, "test_a_second_opener_in_another_process_is_refused_at_once", {}),
    (DoesNotSayWho, "test_a_second_opener_in_this_process_is_refused_at_once", {}),
    (KeepsTheLock, "test_it_can_be_opened_elsewhere_once_it_is_closed", {}),
    (LivesOnInTheChild, "test_a_forked_child_is_told_and_its_parent_goes_on", {}),
    (ErasesNothing, "test_erased_bytes_are_in_no_file", {"around": 10, "size": 20, "compacted": False}),
    (ErasesNothing, "test_everything_can_be_erased", {}),
    (ErasesTheLiving, "test_erasing_spares_what_was_not_deleted", {}),
    (CountsFromZero, "test_the_sequence_never_falls_over_closing", {}),
    (CountsFromZero, "test_the_sequence_never_falls_over_the_death_of_the_process", {}),
    (CountsSyncsOnly, "test_the_sequence_rises_with_every_write", {}),
    (CheckpointsOverAnything, "test_a_checkpoint_never_replaces_what_is_there", {}),
    (CheckpointIsALink, "test_a_checkpoint_opens_by_itself_and_is_one_instant", {}),
    (ReopensEmpty, "test_reopening_keeps_everything_and_writes_go_on", {}),
    (ReopensForReadingOnly, "test_reopening_keeps_everything_and_writes_go_on", {}),
    (LetsReadersFallThrough, "test_reads_wait_while_it_is_reopened", {}),
    (MixesInstantsOverReopening, "test_views_of_before_a_reopening_show_their_instant_or_say_that_they_are_closed", {}),
]

# Named in the module, so that another process finds them there.
CONTRACTS = {kind: contract_of(kind) for kind, _, _ in FILE_CAUGHT}
globals().update({contract.__name__: contract for contract in CONTRACTS.values()})


@pytest.mark.parametrize(
    ("broken", "sentence", "arguments"),
    FILE_CAUGHT,
    ids=[f"{kind.__name__}-{test[5:]}" for kind, test, _ in FILE_CAUGHT],
)
def test_the_kit_for_persistent_backends_catches(
    broken: type[FileBackend], sentence: str, arguments: dict[str, object], tmp_path: Path
) -> None:
    contract = CONTRACTS[broken]()
    test = getattr(contract, sentence)
    wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
    given: dict[str, Any] = {**arguments, "path": tmp_path / "store", "tmp_path": tmp_path}
    if "backend" in wanted:
        given["backend"] = contract.open_backend(tmp_path / "store")
    with pytest.raises((Exception, pytest.fail.Exception)):
        test(**{name: given[name] for name in wanted if name in given})
    if "backend" in given:
        given["backend"].close()


def test_expects_of_the_reference_are_plain(tmp_path: Path) -> None:
    backend = EphemeralBackend(BackendOptions(path=tmp_path))
    with pytest.raises(ConflictError, match="b'a'"):
        backend.write(WriteBatch([], [Expect(b"a", b"1")]))
