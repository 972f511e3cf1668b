"""The conformance kit for storage backends: every sentence of their contract, as a test.

Subclass one class, say how to open yours, and run pytest::

    from qilbee_core import BackendOptions
    from qilbee_core.testing import PersistentBackendContract

    class TestAcme(PersistentBackendContract):
        def open_backend(self, path):
            return AcmeBackend(BackendOptions(path=path))

:class:`BackendContract` is for every engine, :class:`PersistentBackendContract` for those whose content
survives ``close``. What an engine may offer besides is found by ``isinstance``, as everywhere; the
tests of what it does not offer are skipped. Some tests open the backend in another process, where the
class is imported anew: ``open_backend`` may use what its module has, but no fixtures.
"""

# The names of the tests are the sentences of the contract; docstrings would only repeat them.
# ruff: noqa: D102
# A protocol as the argument of _offered is what isinstance is given, never what is instantiated.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.errors import ConflictError, QilbeeError, StorageError, StoreClosedError, StoreLockedError
from qilbee_core.interfaces import (
    Reader,
    SingleProcess,
    Snapshot,
    StorageBackend,
    SupportsCheckpoint,
    SupportsCompaction,
    SupportsErase,
    SupportsNativeCompression,
    SupportsPages,
    SupportsReopen,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.patience import patiently

__all__ = ["BackendContract", "PersistentBackendContract", "backend_state_machine"]

T = TypeVar("T")
Row = tuple[bytes, bytes]
OpenBackend = Callable[[Path], StorageBackend]

# Far more than any of these takes, and far less than a test run that hangs.
_PATIENCE_S = 60.0

# More than the longest key and the largest value that the store writes.
_KEY_BYTES_MAX = 500
_VALUE_BYTES_MAX = 1_200_000

# In order, and with every kind of neighbour: prefixes of each other, the lowest byte, the highest.
_KEYS = [b"", b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0b", b"a\xff", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"]
_ROWS = [(key, b"value of " + key) for key in _KEYS]
_BETWEEN = [b"\0\x01", b"`", b"a\0\0", b"aa", b"\x7f\xff", b"\xff\0", b"\xff\xff\xff"]


def _put(backend: StorageBackend, *rows: Row) -> None:
    # Patiently, for an engine may stall its writers.
    patiently(partial(backend.write, WriteBatch([Put(key, value) for key, value in rows])))


def _in_range(rows: Sequence[Row], start: bytes, stop: bytes | None) -> list[Row]:
    return [row for row in rows if start <= row[0] and (stop is None or row[0] < stop)]


def _offered(backend: StorageBackend, protocol: type[T]) -> T:
    """The backend as ``protocol``, or skip."""
    if not isinstance(backend, protocol):
        pytest.skip(f"{backend.name} is no {protocol.__name__}")
    return backend


def _together(*tasks: Callable[[], None]) -> None:
    """Run each task in a thread, and raise the first error."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), f"a thread hangs after {_PATIENCE_S} s"
    if errors:
        raise errors[0]


def _close_while_in_use(closable: StorageBackend | Snapshot, uses: Sequence[Callable[[], object]], rounds: int) -> None:
    """Close it after that many uses, and see each thread that uses it end with StoreClosedError."""
    used = threading.Semaphore(0)

    def use(call: Callable[[], object]) -> None:
        try:
            while True:
                call()
                used.release()
        except StoreClosedError:
            return

    def close() -> None:
        for _ in range(rounds):
            assert used.acquire(timeout=_PATIENCE_S)
        closable.close()

    _together(close, *(partial(use, call) for call in uses))


def _exhaust(scan: Callable[[], Iterator[Row]]) -> None:
    for _ in scan():
        pass


def _every_call(backend: StorageBackend, path: Path) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: backend.get(b"a"),
        "get_many": lambda: backend.get_many([b"a"]),
        "scan": lambda: list(backend.scan()),
        "scan, before it is iterated": backend.scan,
        "scan in reverse": lambda: list(backend.scan(reverse=True)),
        "write": lambda: _put(backend, (b"a", b"")),
        "write with Expect": lambda: backend.write(WriteBatch([], [Expect(b"a", None)])),
        "sync": backend.sync,
        "snapshot": backend.snapshot,
    }
    if isinstance(backend, SupportsCompaction):
        calls["compact"] = backend.compact
    if isinstance(backend, SupportsErase):
        calls["erase"] = lambda: backend.erase([(b"", None)])
    if isinstance(backend, SupportsCheckpoint):
        calls["checkpoint"] = lambda: backend.checkpoint(path / "checkpoint")
    if isinstance(backend, SupportsStats):
        calls["stats"] = backend.stats
    if isinstance(backend, SupportsPages):
        calls["page"] = partial(backend.page, limit=1)
    if isinstance(backend, SupportsSequence):
        calls["sequence"] = backend.sequence
    if isinstance(backend, SupportsReopen):
        calls["reopen"] = backend.reopen
    return calls


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "no error"


class BackendContract:
    """The contract of every :class:`~qilbee_core.interfaces.StorageBackend`."""

    state_machine_examples = 20
    """How many runs of the state machine; more find more."""

    persistent = False

    def open_backend(self, path: Path) -> StorageBackend:
        """Open the backend under test with its files, if it has any, in ``path``."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its backend is opened")

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Where the backend under test is; it does not exist yet."""
        return tmp_path / "store"

    @pytest.fixture
    def backend(self, path: Path) -> Iterator[StorageBackend]:
        """The backend under test, empty."""
        with closing(self.open_backend(path)) as backend:
            yield backend

    # Pairs

    def test_it_is_a_storage_backend_with_a_name(self, backend: StorageBackend) -> None:
        assert isinstance(backend, StorageBackend)
        assert isinstance(backend.name, str)
        assert backend.name

    def test_a_new_one_is_empty(self, backend: StorageBackend) -> None:
        assert list(backend.scan()) == []
        assert backend.get(b"") is None

    def test_any_bytes_are_a_key(self, backend: StorageBackend) -> None:
        keys = [*_KEYS, *(bytes([byte]) for byte in range(256)), b"\xff" * _KEY_BYTES_MAX, b"\0" * _KEY_BYTES_MAX]
        for key in keys:
            _put(backend, (key, b"of " + key))
        assert [backend.get(key) for key in keys] == [b"of " + key for key in keys]
        assert [key for key, _ in backend.scan()] == sorted(set(keys))

    @pytest.mark.parametrize("size", [0, 1, 255, 4096, 65_537, _VALUE_BYTES_MAX])
    def test_any_bytes_are_a_value(self, backend: StorageBackend, size: int) -> None:
        plain, ends, noise = b"a" * size, (b"\0\xff" * size)[:size], os.urandom(size)
        _put(backend, (b"plain", plain), (b"ends", ends), (b"noise", noise))
        assert backend.get_many([b"plain", b"ends", b"noise"]) == [plain, ends, noise]
        assert dict(backend.scan()) == {b"plain": plain, b"ends": ends, b"noise": noise}

    def test_what_was_not_put_is_missing(self, backend: StorageBackend) -> None:
        _put(backend, (b"b", b"1"))
        assert [backend.get(key) for key in (b"", b"a", b"b\0", b"bb", b"c")] == [None] * 5

    def test_an_empty_value_is_not_a_missing_one(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b""))
        assert backend.get(b"a") == b""
        assert backend.get_many([b"a", b"b"]) == [b"", None]
        assert list(backend.scan()) == [(b"a", b"")]

    def test_a_put_replaces_the_value(self, backend: StorageBackend) -> None:
        for value in (b"long at first", b"", b"then other"):
            _put(backend, (b"a", value))
            assert backend.get(b"a") == value
            assert list(backend.scan()) == [(b"a", value)]

    def test_a_deleted_key_is_missing_to_every_read(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"1"), (b"b", b"2"))
        backend.write(WriteBatch([Delete(b"a")]))
        assert backend.get(b"a") is None
        assert backend.get_many([b"a", b"b"]) == [None, b"2"]
        assert list(backend.scan()) == [(b"b", b"2")]
        assert list(backend.scan(reverse=True)) == [(b"b", b"2")]

    def test_deleting_what_is_missing_is_no_error(self, backend: StorageBackend) -> None:
        backend.write(WriteBatch([Delete(b"a"), DeleteRange(b"", b"z")]))
        assert list(backend.scan()) == []

    def test_get_many_keeps_the_order_and_the_duplicates(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"1"), (b"b", b"2"))
        assert backend.get_many([b"b", b"a", b"x", b"b", b"b", b"x"]) == [b"2", b"1", None, b"2", b"2", None]
        assert backend.get_many([b"a", b"b", b"a"] * 200) == [b"1", b"2", b"1"] * 200
        assert backend.get_many([]) == []

    # Scans

    def test_keys_are_ordered_as_unsigned_bytes(self, backend: StorageBackend) -> None:
        _put(backend, *reversed(_ROWS))
        assert sorted(_KEYS) == _KEYS
        assert list(backend.scan()) == _ROWS

    def test_a_scan_is_half_open_in_both_directions(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        bounds = sorted(_KEYS + _BETWEEN)
        for start, stop in itertools.product(bounds, [*bounds, None]):
            expected = _in_range(_ROWS, start, stop)
            assert list(backend.scan(start, stop)) == expected, (start, stop)
            assert list(backend.scan(start, stop, reverse=True)) == expected[::-1], (start, stop)

    def test_an_empty_or_inverted_range_has_no_rows(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        for start, stop in [(b"", b""), (b"a", b"a"), (b"b", b"a"), (b"aa", b"aa"), (b"\xff\xff", b"\0")]:
            assert list(backend.scan(start, stop)) == []
            assert list(backend.scan(start, stop, reverse=True)) == []

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_view_of_a_scan_is_fixed_when_it_is_called(self, backend: StorageBackend, reverse: bool) -> None:
        _put(backend, *_ROWS)
        not_begun, begun = backend.scan(reverse=reverse), backend.scan(reverse=reverse)
        first = next(begun)
        _put(backend, (b"a", b"changed"), (b"new", b"new"), (b"\xff\xff\xff", b"new"))
        backend.write(WriteBatch([Delete(b"b"), DeleteRange(b"\x7f", b"\xff")]))
        expected = _ROWS[::-1] if reverse else _ROWS
        assert list(not_begun) == expected
        assert [first, *begun] == expected

    def test_a_long_scan_keeps_its_view_while_everything_is_deleted(self, backend: StorageBackend) -> None:
        rows = [(b"%06d" % number, b"%d" % number * 50) for number in range(3000)]
        _put(backend, *rows)
        forwards, backwards = backend.scan(), backend.scan(reverse=True)
        seen = [next(forwards)]
        backend.write(WriteBatch([DeleteRange(b"", b"\xff")]))
        if isinstance(backend, SupportsCompaction):
            backend.compact()
        assert [*seen, *forwards] == rows
        assert list(backwards) == rows[::-1]
        assert list(backend.scan()) == []

    def test_scans_go_on_side_by_side(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        upwards, downwards, part = backend.scan(), backend.scan(reverse=True), backend.scan(b"a", b"b")
        seen = list(itertools.zip_longest(upwards, downwards, part))
        assert [row for row, _, _ in seen] == _ROWS
        assert [row for _, row, _ in seen] == _ROWS[::-1]
        assert [row for _, _, row in seen if row is not None] == _in_range(_ROWS, b"a", b"b")

    def test_an_abandoned_scan_does_no_harm(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        for reverse in (False, True) * 100:
            backend.scan(reverse=reverse)
            next(backend.scan(reverse=reverse))
        kept = [backend.scan(), backend.scan(reverse=True)]
        next(kept[1])
        _put(backend, (b"after", b""))
        assert backend.get(b"after") == b""
        backend.close()
        del kept

    # Batches

    def test_operations_take_effect_in_order(self, backend: StorageBackend) -> None:
        backend.write(
            WriteBatch(
                [
                    *(Put(b"a", b"1"), Put(b"a", b"2")),
                    *(Put(b"b", b"1"), Delete(b"b")),
                    *(Delete(b"c"), Put(b"c", b"1")),
                    *(Put(b"d", b"1"), Delete(b"d"), Put(b"d", b"2")),
                ]
            )
        )
        assert list(backend.scan()) == [(b"a", b"2"), (b"c", b"1"), (b"d", b"2")]

    def test_a_range_is_deleted_half_open(self, backend: StorageBackend) -> None:
        bounds = [b"", b"\0", b"a", b"a\0", b"aa", b"b", b"\xff", b"\xff\xff\xff"]
        for start, stop in itertools.product(bounds, bounds):
            backend.write(WriteBatch([DeleteRange(b"", b"\xff" * 9), *(Put(*row) for row in _ROWS)]))
            backend.write(WriteBatch([DeleteRange(start, stop)]))
            deleted = _in_range(_ROWS, start, stop)
            kept = [row for row in _ROWS if row not in deleted]
            assert list(backend.scan()) == kept, (start, stop)
            assert list(backend.scan(reverse=True)) == kept[::-1], (start, stop)
            assert backend.get_many(_KEYS) == [dict(kept).get(key) for key in _KEYS], (start, stop)

    def test_deleting_a_range_also_removes_what_the_batch_put_before(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"old"), (b"b", b"old"))
        backend.write(WriteBatch([Put(b"a", b"new"), Put(b"ab", b"new"), Put(b"z", b"new"), DeleteRange(b"a", b"c")]))
        assert list(backend.scan()) == [(b"z", b"new")]

    def test_deleting_a_range_spares_what_the_batch_puts_later(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"old"), (b"b", b"old"))
        backend.write(WriteBatch([DeleteRange(b"a", b"c"), Put(b"b", b"new"), Put(b"bb", b"new")]))
        assert list(backend.scan()) == [(b"b", b"new"), (b"bb", b"new")]

    def test_ranges_and_puts_may_take_turns(self, backend: StorageBackend) -> None:
        every = DeleteRange(b"", b"\xff")
        backend.write(WriteBatch([Put(b"a", b"1"), every, Put(b"b", b"2"), every, Put(b"a", b"3"), Delete(b"b")]))
        assert list(backend.scan()) == [(b"a", b"3")]

    def test_what_was_deleted_can_be_put_again(self, backend: StorageBackend) -> None:
        for value in (b"1", b"2", b"3"):
            _put(backend, (b"a", value), (b"b", value))
            assert list(backend.scan()) == [(b"a", value), (b"b", value)]
            backend.write(WriteBatch([DeleteRange(b"a", b"b"), Delete(b"b")]))
            assert list(backend.scan()) == []

    def test_an_empty_batch_changes_nothing(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"1"))
        backend.write(WriteBatch([]))
        assert list(backend.scan()) == [(b"a", b"1")]

    def test_a_batch_may_be_large(self, backend: StorageBackend) -> None:
        rows = [(b"%05d" % number, os.urandom(200)) for number in range(10_000)]
        _put(backend, *rows)
        assert list(backend.scan()) == rows

    # Preconditions

    @pytest.mark.parametrize("value", [None, b"", b"1", b"\0", b"1\0"])
    @pytest.mark.parametrize("expected", [None, b"", b"1", b"\0", b"1\0"])
    def test_a_batch_applies_exactly_if_the_key_holds_what_is_expected(
        self, backend: StorageBackend, value: bytes | None, expected: bytes | None
    ) -> None:
        if value is not None:
            _put(backend, (b"a", value))
        batch = WriteBatch([Put(b"new", b"new")], [Expect(b"a", expected)])
        if value == expected:
            backend.write(batch)
            assert backend.get(b"new") == b"new"
        else:
            with pytest.raises(ConflictError):
                backend.write(batch)
            assert backend.get(b"new") is None
        assert backend.get(b"a") == value

    def test_a_failed_batch_has_no_effect_at_all(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        operations: list[Operation] = [Put(b"new", b"1"), Put(b"a", b"2"), Delete(b"b"), DeleteRange(b"\0", b"\xff")]
        for expects in (
            [Expect(b"a", b"other"), Expect(b"b", b"value of b")],
            [Expect(b"b", b"value of b"), Expect(b"a", b"other")],
            [Expect(b"new", b"")],
        ):
            with pytest.raises(ConflictError):
                backend.write(WriteBatch(operations, expects))
            assert list(backend.scan()) == _ROWS

    def test_what_is_expected_is_the_state_before_the_batch(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"1"))
        backend.write(WriteBatch([Put(b"a", b"2"), Put(b"b", b"1")], [Expect(b"a", b"1"), Expect(b"b", None)]))
        with pytest.raises(ConflictError):
            backend.write(WriteBatch([DeleteRange(b"", b"z"), Put(b"a", b"3")], [Expect(b"a", b"3")]))
        with pytest.raises(ConflictError):
            backend.write(WriteBatch([DeleteRange(b"", b"z")], [Expect(b"a", None)]))
        assert list(backend.scan()) == [(b"a", b"2"), (b"b", b"1")]

    def test_expectations_may_stand_alone(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"1"))
        backend.write(WriteBatch([], [Expect(b"a", b"1"), Expect(b"b", None)]))
        with pytest.raises(ConflictError):
            backend.write(WriteBatch([], [Expect(b"a", None)]))

    def test_what_is_expected_sees_deletions(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"1"), (b"b", b"1"))
        backend.write(WriteBatch([Delete(b"a"), DeleteRange(b"b", b"c")]))
        backend.write(WriteBatch([Put(b"a", b"2"), Put(b"b", b"2")], [Expect(b"a", None), Expect(b"b", None)]))
        assert list(backend.scan()) == [(b"a", b"2"), (b"b", b"2")]

    # Snapshots

    def test_a_snapshot_shows_one_instant_to_get_get_many_and_scan(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        with closing(backend.snapshot()) as snapshot:
            _put(backend, (b"a", b"changed"), (b"new", b"new"))
            backend.write(WriteBatch([Delete(b"b"), DeleteRange(b"\x7f", b"\xff\xff\xff")]))
            self._shows(snapshot, _ROWS)
            assert snapshot.get(b"new") is None

    def test_each_snapshot_shows_its_own_instant(self, backend: StorageBackend) -> None:
        taken: list[tuple[Snapshot, list[Row]]] = [(backend.snapshot(), [])]
        for number in range(10):
            _put(backend, (b"%d" % number, b"1"), (b"last", b"%d" % number))
            taken.append((backend.snapshot(), list(backend.scan())))
        for snapshot, rows in taken[::2]:
            self._shows(snapshot, rows)
            snapshot.close()
        for snapshot, rows in taken[1::2]:
            self._shows(snapshot, rows)
            snapshot.close()

    def test_a_snapshot_outlives_the_deletion_and_compaction_of_all_it_shows(self, backend: StorageBackend) -> None:
        rows = [(b"%06d" % number, b"%d" % number * 50) for number in range(3000)]
        _put(backend, *rows)
        with closing(backend.snapshot()) as snapshot:
            backend.write(WriteBatch([DeleteRange(b"", b"\xff")]))
            backend.sync()
            if isinstance(backend, SupportsCompaction):
                backend.compact()
            assert list(backend.scan()) == []
            self._shows(snapshot, rows)

    def test_scans_of_one_snapshot_go_on_side_by_side(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        with closing(backend.snapshot()) as snapshot:
            upwards = snapshot.scan()
            backend.write(WriteBatch([DeleteRange(b"", b"\xff\xff\xff")]))
            seen = list(itertools.zip_longest(upwards, snapshot.scan(reverse=True), snapshot.scan(b"a", b"b")))
            assert snapshot.get(b"a") == b"value of a"
        assert [row[0] for row in seen] == _ROWS
        assert [row[1] for row in seen] == _ROWS[::-1]
        assert [row[2] for row in seen if row[2]] == _in_range(_ROWS, b"a", b"b")

    def test_a_snapshot_scans_half_open_in_both_directions(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        bounds = sorted(_KEYS + _BETWEEN)[::3]
        with closing(backend.snapshot()) as snapshot:
            for start, stop in itertools.product(bounds, [*bounds, None]):
                expected = _in_range(_ROWS, start, stop)
                assert list(snapshot.scan(start, stop)) == expected, (start, stop)
                assert list(snapshot.scan(start, stop, reverse=True)) == expected[::-1], (start, stop)

    def test_a_snapshot_can_be_read_from_any_thread(self, backend: StorageBackend) -> None:
        rows = [(b"%04d" % number, b"old") for number in range(500)]
        _put(backend, *rows)
        with closing(backend.snapshot()) as snapshot:

            def read() -> None:
                for _ in range(5):
                    self._shows(snapshot, rows)

            def write() -> None:
                for number in range(500):
                    _put(backend, (b"%04d" % number, b"new"), (b"x%04d" % number, b"new"))

            _together(read, read, read, write)

    def test_closing_a_snapshot_leaves_the_others_open(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        first, second = backend.snapshot(), backend.snapshot()
        first.close()
        self._shows(second, _ROWS)
        assert backend.get(b"a") == b"value of a"
        second.close()

    def test_a_closed_snapshot_says_so(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        snapshot = backend.snapshot()
        snapshot.close()
        snapshot.close()
        self._refuses(snapshot)

    def test_a_scan_whose_snapshot_is_closed_goes_on_or_says_so(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        snapshot = backend.snapshot()
        scan = snapshot.scan()
        seen = [next(scan)]
        snapshot.close()
        try:
            seen.extend(scan)
        except StoreClosedError:
            return
        assert seen == _ROWS

    def test_a_snapshot_may_be_closed_while_others_read_from_it(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        for _ in range(20):
            snapshot = backend.snapshot()

            def read(snapshot: Snapshot = snapshot) -> None:
                assert snapshot.get(b"a") == b"value of a"
                assert next(snapshot.scan(b"a")) == (b"a", b"value of a")

            _close_while_in_use(snapshot, [read, read], rounds=2)

    def _shows(self, reader: Reader, rows: Sequence[Row]) -> None:
        keys = [key for key, _ in rows]
        assert list(reader.scan()) == list(rows)
        assert list(reader.scan(reverse=True)) == list(rows)[::-1]
        assert reader.get_many(keys) == [value for _, value in rows]
        assert [reader.get(key) for key in keys[:50]] == [value for _, value in rows[:50]]

    def _refuses(self, reader: Reader) -> None:
        with pytest.raises(StoreClosedError):
            reader.get(b"a")
        with pytest.raises(StoreClosedError):
            reader.get_many([b"a"])
        with pytest.raises(StoreClosedError):
            reader.scan()

    # Closing

    def test_after_close_every_call_says_so(self, backend: StorageBackend, tmp_path: Path) -> None:
        _put(backend, *_ROWS)
        backend.close()
        outcomes = {name: _outcome(call) for name, call in _every_call(backend, tmp_path).items()}
        assert outcomes == dict.fromkeys(outcomes, "StoreClosedError")

    def test_closing_twice_is_no_error(self, backend: StorageBackend) -> None:
        backend.close()
        backend.close()

    def test_closing_ends_snapshots(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        snapshot = backend.snapshot()
        backend.close()
        self._refuses(snapshot)
        snapshot.close()

    @pytest.mark.parametrize("reverse", [False, True])
    def test_closing_ends_scans(self, backend: StorageBackend, reverse: bool) -> None:
        _put(backend, *_ROWS)
        snapshot = backend.snapshot()
        not_begun, begun, of_snapshot = [reader.scan(reverse=reverse) for reader in (backend, backend, snapshot)]
        next(begun)
        backend.close()
        for scan in (not_begun, begun, of_snapshot):
            with pytest.raises(StoreClosedError):
                next(scan)

    def test_closing_while_others_read_and_write_neither_crashes_nor_hangs(self, tmp_path: Path) -> None:
        for attempt in range(5):
            backend = self.open_backend(tmp_path / f"store{attempt}")
            _put(backend, *((b"%04d" % number, b"x" * 100) for number in range(200)))

            def use_snapshot(backend: StorageBackend = backend) -> None:
                with closing(backend.snapshot()) as snapshot:
                    assert snapshot.get(b"0000") == b"x" * 100
                    assert len(list(snapshot.scan(reverse=True))) >= 200

            uses: list[Callable[[], object]] = [
                partial(backend.get_many, [b"0000", b"0100", b"none"]),
                partial(_exhaust, backend.scan),
                partial(_put, backend, (b"new", b"y" * 100)),
                use_snapshot,
            ]
            _close_while_in_use(backend, uses, rounds=100)

    # Threads

    def test_writers_who_expect_lose_no_update(self, backend: StorageBackend) -> None:
        threads, rounds = 8, 25
        _put(backend, (b"count", b"0"))

        def count_up() -> None:
            for _ in range(rounds):
                while True:
                    seen = backend.get(b"count")
                    assert seen is not None
                    try:
                        backend.write(WriteBatch([Put(b"count", b"%d" % (int(seen) + 1))], [Expect(b"count", seen)]))
                    except ConflictError:
                        continue
                    break

        _together(*[count_up] * threads)
        assert backend.get(b"count") == b"%d" % (threads * rounds)

    def test_what_is_expected_also_holds_against_writers_who_expect_nothing(self, backend: StorageBackend) -> None:
        # One writer sets both keys; the other copies the first to the second where it has not changed meanwhile.
        _put(backend, (b"a", b"0"), (b"z", b"0"))
        done = threading.Event()

        def set_both() -> None:
            for number in itertools.count():
                _put(backend, (b"a", b"%d" % number), (b"z", b"%d" % number))
                if done.is_set():
                    return

        def copy() -> None:
            try:
                for _ in range(100):
                    seen = backend.get(b"a")
                    assert seen is not None
                    with suppress(ConflictError):
                        backend.write(WriteBatch([Put(b"z", seen)], [Expect(b"a", seen)]))
                    with closing(backend.snapshot()) as snapshot:
                        assert snapshot.get(b"a") == snapshot.get(b"z")
            finally:
                done.set()

        _together(set_both, copy)

    def test_writers_at_once_all_get_through(self, backend: StorageBackend) -> None:
        def write(thread: int) -> None:
            for number in range(50):
                _put(backend, (b"%d/%02d" % (thread, number), b"1"))
                if number % 10 == 0:
                    backend.sync()

        _together(*(partial(write, thread) for thread in range(8)))
        assert [key for key, _ in backend.scan()] == [
            b"%d/%02d" % (thread, number) for thread in range(8) for number in range(50)
        ]

    def test_readers_never_see_half_a_batch(self, backend: StorageBackend) -> None:
        _put(backend, (b"a", b"0"), (b"z", b"0"))
        done = threading.Event()

        def write() -> None:
            try:
                for number in range(500):
                    middle: Operation = Put(b"m", b"") if number % 2 else DeleteRange(b"b", b"y")
                    backend.write(WriteBatch([Put(b"a", b"%d" % number), middle, Put(b"z", b"%d" % number)]))
            finally:
                done.set()

        def read() -> None:
            while not done.is_set():
                rows = dict(backend.scan())
                assert rows[b"a"] == rows[b"z"]
                assert (b"m" in rows) == (int(rows[b"a"]) % 2 == 1)
                with closing(backend.snapshot()) as snapshot:
                    first, last = snapshot.get_many([b"a", b"z"])
                    assert first == last == snapshot.get(b"a") == snapshot.get(b"z")

        _together(write, read, read)

    # What an engine may offer

    def test_compaction_keeps_what_is_there(self, backend: StorageBackend) -> None:
        compactor = _offered(backend, SupportsCompaction)
        _put(backend, *_ROWS)
        backend.write(WriteBatch([Delete(b"b"), DeleteRange(b"a\0", b"a\xff")]))
        rows = list(backend.scan())
        compactor.compact(b"a", b"b")
        assert list(backend.scan()) == rows
        compactor.compact()
        assert list(backend.scan()) == rows

    def test_statistics_are_figures_by_name(self, backend: StorageBackend) -> None:
        stats = _offered(backend, SupportsStats).stats()
        assert isinstance(stats, Mapping)
        assert stats
        assert all(isinstance(name, str) for name in stats)
        json.dumps(dict(stats), allow_nan=False)

    def test_the_sequence_rises_with_every_write(self, backend: StorageBackend) -> None:
        counter = _offered(backend, SupportsSequence)
        seen = [counter.sequence()]
        for operation in (Put(b"a", b"1"), Put(b"a", b"1"), Delete(b"a"), Put(b"b", b"")):
            backend.write(WriteBatch([operation]))
            seen.append(counter.sequence())
        assert seen == sorted(set(seen))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_page_is_the_beginning_of_the_scan(self, backend: StorageBackend, reverse: bool) -> None:
        pages = _offered(backend, SupportsPages)
        _put(backend, *_ROWS)
        for start, stop in [(b"", None), (b"a", b"b"), (b"a\0", None), (b"b", b"a"), (b"\xff", b"\xff\xff\0")]:
            rows = list(backend.scan(start, stop, reverse=reverse))
            for limit in (1, 2, len(_ROWS), 1000):
                assert pages.page(start, stop, limit, reverse=reverse) == rows[:limit], (start, stop, limit)

    def test_native_codecs_are_names(self, backend: StorageBackend) -> None:
        codecs = _offered(backend, SupportsNativeCompression).native_codecs
        assert isinstance(codecs, frozenset)
        assert all(isinstance(codec, str) and codec for codec in codecs)

    # Everything else

    def test_it_is_like_a_sorted_dict_in_whatever_order_it_is_used(self, tmp_path: Path) -> None:
        machine = backend_state_machine(self.open_backend, tmp_path, persistent=self.persistent)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.state_machine_examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


class PersistentBackendContract(BackendContract):
    """The contract of an engine whose content survives ``close``, and the death of the process."""

    persistent = True

    def test_everything_survives_closing(self, backend: StorageBackend, path: Path) -> None:
        _put(backend, *_ROWS, (b"large", b"x" * _VALUE_BYTES_MAX))
        backend.write(WriteBatch([Put(b"a", b"changed"), Delete(b"b"), DeleteRange(b"\x7f", b"\xff")]))
        rows = list(backend.scan())
        backend.close()
        with closing(self.open_backend(path)) as again:
            self._shows(again, rows)

    def test_it_can_be_opened_again_and_again(self, path: Path) -> None:
        for number in range(5):
            with closing(self.open_backend(path)) as backend:
                assert [key for key, _ in backend.scan()] == [b"%d" % earlier for earlier in range(number)]
                _put(backend, (b"%d" % number, b""))
                if number % 2:
                    backend.sync()

    def test_views_left_open_do_not_stop_it_from_opening_again(self, backend: StorageBackend, path: Path) -> None:
        _put(backend, *_ROWS)
        views = [backend.snapshot(), backend.scan(), backend.snapshot().scan()]
        backend.close()
        with closing(self.open_backend(path)) as again:
            assert list(again.scan()) == _ROWS
        del views

    def test_reopening_keeps_everything_and_writes_go_on(self, backend: StorageBackend, path: Path) -> None:
        reopened = _offered(backend, SupportsReopen)
        _put(backend, *_ROWS)
        for number in range(3):
            reopened.reopen()
            assert list(backend.scan(b"", b"\xff\xff\xff")) == _ROWS
            _put(backend, (b"\xff\xff\xff", b"%d" % number))
            assert backend.get(b"\xff\xff\xff") == b"%d" % number
            with closing(backend.snapshot()) as snapshot:
                assert snapshot.get(b"a") == b"value of a"
            backend.sync()
        backend.close()
        with closing(self.open_backend(path)) as again:
            assert list(again.scan()) == [*_ROWS, (b"\xff\xff\xff", b"2")]

    def test_reads_wait_while_it_is_reopened(self, backend: StorageBackend) -> None:
        reopened = _offered(backend, SupportsReopen)
        _put(backend, *_ROWS)
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
                assert backend.get_many(_KEYS * 8) == [value for _, value in _ROWS] * 8
                backend.snapshot().close()

        _together(reopen, read, read)

    def test_views_of_before_a_reopening_show_their_instant_or_say_that_they_are_closed(
        self, backend: StorageBackend
    ) -> None:
        reopened = _offered(backend, SupportsReopen)
        _put(backend, *_ROWS)
        with closing(backend.snapshot()) as snapshot:
            scan = backend.scan()
            reopened.reopen()
            backend.write(WriteBatch([DeleteRange(b"", b"\xff\xff\xff")]))
            with suppress(StoreClosedError):
                assert list(scan) == _ROWS
            with suppress(StoreClosedError):
                assert list(snapshot.scan()) == _ROWS

    def test_the_sequence_never_falls_over_closing(self, backend: StorageBackend, path: Path) -> None:
        counter = _offered(backend, SupportsSequence)
        _put(backend, *_ROWS)
        before = counter.sequence()
        backend.close()
        for _ in range(3):
            with closing(self.open_backend(path)) as again:
                assert _offered(again, SupportsSequence).sequence() >= before

    def test_the_sequence_never_falls_over_the_death_of_the_process(self, path: Path) -> None:
        with closing(self.open_backend(path)) as backend:
            _offered(backend, SupportsSequence)
        with _child(self, _write_and_die, path) as child:
            said = child.lines()
        with closing(self.open_backend(path)) as again:
            assert _offered(again, SupportsSequence).sequence() >= int(said[-1])

    # Death of the process

    def test_writes_survive_the_death_of_the_process(self, path: Path) -> None:
        with _child(self, _write_and_die, path) as child:
            child.lines()
            assert child.process.returncode == -signal.SIGKILL
        with closing(self.open_backend(path)) as backend:
            assert list(backend.scan(b"row", b"rox")) == [
                (b"row%04d" % number, b"x" * 100) for number in range(100, 1000)
            ]
            assert backend.get_many([b"synced", b"deleted", b"last"]) == [b"1", None, b"1"]

    # One opener at a time

    def test_a_second_opener_in_this_process_is_refused_at_once(self, backend: StorageBackend, path: Path) -> None:
        _offered(backend, SingleProcess)
        _put(backend, (b"a", b"1"))
        began = time.monotonic()
        with pytest.raises(StoreLockedError) as caught:
            self.open_backend(path)
        assert time.monotonic() - began < 1.0
        assert str(os.getpid()) in str(caught.value)
        assert str(path) in str(caught.value)
        _put(backend, (b"b", b"2"))
        assert list(backend.scan()) == [(b"a", b"1"), (b"b", b"2")]

    def test_a_second_opener_in_another_process_is_refused_at_once(self, backend: StorageBackend, path: Path) -> None:
        _offered(backend, SingleProcess)
        with _child(self, _try_to_open, path) as child:
            kind, seconds, text = child.lines()
        assert kind == "StoreLockedError"
        assert float(seconds) < 1.0
        assert str(os.getpid()) in text
        assert str(path) in text
        _put(backend, (b"a", b"1"))

    def test_it_can_be_opened_elsewhere_once_it_is_closed(self, backend: StorageBackend, path: Path) -> None:
        _offered(backend, SingleProcess)
        _put(backend, (b"a", b"1"))
        backend.close()
        with _child(self, _try_to_open, path) as child:
            assert child.lines() == ["opened"]

    def test_it_can_be_opened_once_its_holder_was_killed(self, path: Path) -> None:
        with closing(self.open_backend(path)) as backend:
            _offered(backend, SingleProcess)
        with _child(self, _hold, path) as child:
            assert child.line() == "opened"
            with pytest.raises(StoreLockedError, match=str(child.process.pid)):
                self.open_backend(path)
            child.process.kill()
            child.process.wait(_PATIENCE_S)
            with closing(self.open_backend(path)) as backend:
                assert backend.get(b"held") == b"1"

    def test_a_forked_child_is_told_and_its_parent_goes_on(self, backend: StorageBackend, path: Path) -> None:
        _offered(backend, SingleProcess)
        backend.close()
        with _child(self, _fork, path) as child:
            said = child.lines()
            assert child.process.returncode == 0, said
        outcomes = json.loads(said[0])
        assert outcomes == dict.fromkeys(outcomes, "StoreClosedError")
        assert said[1:] == ["child ended with 0", "parent went on"]
        with closing(self.open_backend(path)) as again:
            assert dict(again.scan())[b"after"] == b"1"

    # What an engine may offer

    def test_compaction_gives_space_back(self, backend: StorageBackend, path: Path) -> None:
        compactor = _offered(backend, SupportsCompaction)
        _put(backend, (b"kept", b"1"), *((b"%06d" % number, os.urandom(1000)) for number in range(8000)))
        compactor.compact()
        before = _size_of(path)
        backend.write(WriteBatch([DeleteRange(b"0", b"1")]))
        compactor.compact()
        compactor.compact()
        assert _size_of(path) < before / 2
        assert list(backend.scan()) == [(b"kept", b"1")]

    def test_a_checkpoint_opens_by_itself_and_is_one_instant(self, backend: StorageBackend, tmp_path: Path) -> None:
        source, target = _offered(backend, SupportsCheckpoint), tmp_path / "checkpoint"
        _put(backend, *_ROWS)
        source.checkpoint(target)
        _put(backend, (b"later", b"1"))
        with closing(self.open_backend(target)) as copy:
            assert list(copy.scan()) == _ROWS
            _put(copy, (b"only in the copy", b"1"))
        assert backend.get_many([b"later", b"only in the copy"]) == [b"1", None]

    def test_a_checkpoint_never_replaces_what_is_there(self, backend: StorageBackend, tmp_path: Path) -> None:
        target = tmp_path / "checkpoint"
        target.mkdir()
        (target / "precious").write_text("data")
        with pytest.raises(QilbeeError):
            _offered(backend, SupportsCheckpoint).checkpoint(target)
        assert [file.name for file in target.iterdir()] == ["precious"]

    def test_a_checkpoint_is_whole_while_others_write(self, backend: StorageBackend, tmp_path: Path) -> None:
        source, done = _offered(backend, SupportsCheckpoint), threading.Event()

        def write() -> None:
            for number in itertools.count():
                _put(backend, (b"a", b"%d" % number), (b"z", b"%d" % number), (b"%06d" % number, b"x" * 200))
                if done.is_set():
                    return

        def copy() -> None:
            try:
                for number in range(3):
                    source.checkpoint(tmp_path / f"checkpoint{number}")
            finally:
                done.set()

        _together(write, copy)
        for number in range(3):
            with closing(self.open_backend(tmp_path / f"checkpoint{number}")) as opened:
                assert opened.get(b"a") == opened.get(b"z")

    @pytest.mark.parametrize("around", [0, 10, 3000])
    @pytest.mark.parametrize("size", [20, 5000])
    @pytest.mark.parametrize("compacted", [False, True])
    def test_erased_bytes_are_in_no_file(
        self, backend: StorageBackend, path: Path, around: int, size: int, compacted: bool
    ) -> None:
        eraser = _offered(backend, SupportsErase)
        rows = [(b"row/%05d" % number, os.urandom(200)) for number in range(around)]
        middle = b"row/%05d/" % (around // 2)
        secrets = [os.urandom(16) for _ in range(5)]
        single, overwritten, ranged, brief = (secret * (size // 16 + 1) for secret in secrets[:4])
        key = middle + b"3" + secrets[4]
        _put(backend, *rows[::2], (middle + b"1", single), (middle + b"2", overwritten), (key, ranged))
        if compacted and isinstance(backend, SupportsCompaction):
            backend.compact()
        # Put and deleted with nothing between, so that both may come to lie in one file.
        _put(backend, (middle + b"4", brief))
        backend.write(WriteBatch([Delete(middle + b"4")]))
        _put(backend, (middle + b"2", b"harmless"), *rows[1::2])
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
        _put(backend, *((b"%04d" % number + secret, secret * 5) for number in range(1000)))
        backend.write(WriteBatch([DeleteRange(b"", b"\xff")]))
        _offered(backend, SupportsErase).erase([(b"", None)])
        assert _files_with(path, [secret]) == []
        assert list(backend.scan()) == []

    def test_erasing_spares_what_was_not_deleted(self, backend: StorageBackend) -> None:
        _put(backend, *_ROWS)
        _offered(backend, SupportsErase).erase([(b"", None), (b"a", b"b"), (b"b", b"a"), (b"none", b"none\0")])
        self._shows(backend, _ROWS)
        _put(backend, (b"after", b"1"))
        assert backend.get(b"after") == b"1"

    def test_erasing_is_refused_where_a_snapshot_keeps_the_bytes(self, backend: StorageBackend, path: Path) -> None:
        eraser, secret = _offered(backend, SupportsErase), os.urandom(16)
        rows = sorted([*_ROWS, (b"secret", secret * 300)])
        _put(backend, *rows)
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
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())


def _files_with(directory: Path, secrets: Sequence[bytes]) -> list[str]:
    found: list[str] = []
    for file in directory.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            found.extend(file.name for secret in secrets if secret in content)
    return found


# The state machine

_BYTES = st.sampled_from([b"\0", b"a", b"b", b"\xff"])
_SOME_KEYS = st.lists(_BYTES, max_size=3).map(b"".join)
_SOME_VALUES = st.one_of(st.binary(max_size=4), st.sampled_from([b"", b"x" * 5000]))
_OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Put, _SOME_KEYS, _SOME_VALUES),
    st.builds(Put, _SOME_KEYS, _SOME_VALUES),
    st.builds(Delete, _SOME_KEYS),
    st.builds(DeleteRange, _SOME_KEYS, _SOME_KEYS),
)


def _apply(model: Mapping[bytes, bytes], operations: Sequence[Operation]) -> dict[bytes, bytes]:
    """What ``operations`` make of a plain dict."""
    after = dict(model)
    for operation in operations:
        if isinstance(operation, Put):
            after[operation.key] = operation.value
        elif isinstance(operation, Delete):
            after.pop(operation.key, None)
        else:
            after = {key: after[key] for key in after if not operation.start <= key < operation.stop}
    return after


def backend_state_machine(
    open_backend: OpenBackend, directory: Path, *, persistent: bool
) -> type[RuleBasedStateMachine]:
    """A Hypothesis machine that uses a backend in random ways and compares it with a dict.

    Each run opens a new backend in ``directory``. Where the engine is ``persistent`` it is also closed
    and opened again in between.
    """
    runs = itertools.count()

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.path = directory / f"machine{next(runs)}"
            self.backend = open_backend(self.path)
            self.model: dict[bytes, bytes] = {}
            self.snapshots: list[tuple[Snapshot, dict[bytes, bytes]]] = []
            self.scans: list[tuple[Iterator[Row], list[Row]]] = []

        def teardown(self) -> None:
            self.backend.close()

        def reader(self, choice: int) -> tuple[Reader, dict[bytes, bytes]]:
            """The backend or one of its snapshots, and what it should show."""
            readers: list[tuple[Reader, dict[bytes, bytes]]] = [(self.backend, self.model), *self.snapshots]
            return readers[choice % len(readers)]

        @rule(
            operations=st.lists(_OPERATIONS, max_size=6),
            expected=st.lists(_SOME_KEYS, max_size=2),
            wrongly=st.lists(st.tuples(_SOME_KEYS, st.none() | _SOME_VALUES), max_size=1),
        )
        def write(
            self, operations: list[Operation], expected: list[bytes], wrongly: list[tuple[bytes, bytes | None]]
        ) -> None:
            expects = [Expect(key, self.model.get(key)) for key in expected]
            expects += [Expect(key, value) for key, value in wrongly]
            if all(self.model.get(expect.key) == expect.value for expect in expects):
                self.backend.write(WriteBatch(operations, expects))
                self.model = _apply(self.model, operations)
            else:
                with pytest.raises(ConflictError):
                    self.backend.write(WriteBatch(operations, expects))

        @rule(choice=st.integers(0, 9), keys=st.lists(_SOME_KEYS, max_size=4))
        def read(self, choice: int, keys: list[bytes]) -> None:
            reader, model = self.reader(choice)
            assert reader.get_many(keys) == [model.get(key) for key in keys]
            assert [reader.get(key) for key in keys] == [model.get(key) for key in keys]

        @rule(choice=st.integers(0, 9), start=_SOME_KEYS, stop=st.none() | _SOME_KEYS, reverse=st.booleans())
        def scan(self, choice: int, start: bytes, stop: bytes | None, reverse: bool) -> None:
            reader, model = self.reader(choice)
            rows = sorted(_in_range(list(model.items()), start, stop), reverse=reverse)
            self.scans.append((reader.scan(start, stop, reverse=reverse), rows))
            assert list(reader.scan(start, stop, reverse=reverse)) == rows

        @precondition(lambda self: self.scans)
        @rule(choice=st.integers(0, 9), steps=st.integers(0, 5))
        def go_on_with_a_scan(self, choice: int, steps: int) -> None:
            scan, rows = self.scans.pop(choice % len(self.scans))
            assert list(itertools.islice(scan, steps)) == rows[:steps]
            if len(rows) > steps:
                self.scans.append((scan, rows[steps:]))

        @rule()
        def take_a_snapshot(self) -> None:
            self.snapshots.append((self.backend.snapshot(), self.model))

        @precondition(lambda self: self.snapshots and not self.scans)
        @rule(choice=st.integers(0, 9))
        def close_a_snapshot(self, choice: int) -> None:
            self.snapshots.pop(choice % len(self.snapshots))[0].close()

        @rule()
        def sync(self) -> None:
            self.backend.sync()

        @precondition(lambda self: isinstance(self.backend, SupportsCompaction))
        @rule()
        def compact(self) -> None:
            cast("SupportsCompaction", self.backend).compact()

        @precondition(lambda self: persistent)  # noqa: ARG005
        @rule()
        def open_again(self) -> None:
            self.backend.close()
            for snapshot, _ in self.snapshots:
                with pytest.raises(StoreClosedError):
                    snapshot.get(b"")
            self.snapshots, self.scans = [], []
            self.backend = open_backend(self.path)
            assert dict(self.backend.scan()) == self.model

    return Machine


# Other processes


class _Child:
    """A process that opens the backend of a test and does one task with it, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def lines(self) -> list[str]:
        """All it said, once it has ended."""
        return self.process.communicate(timeout=_PATIENCE_S)[0].splitlines()


@contextmanager
def _child(test: BackendContract, task: Callable[[BackendContract, Path], None], path: Path) -> Iterator[_Child]:
    # A new interpreter and not a fork: engines have threads, which a forked child would miss.
    kind = type(test)
    arguments = [kind.__module__, inspect.getfile(kind), kind.__qualname__, task.__name__, str(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", f"import {__name__} as kit, sys; kit._run_task(*sys.argv[1:])", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield _Child(process)
        finally:
            process.kill()


def _run_task(module_name: str, file: str, class_name: str, task: str, path: str) -> None:
    """What the other process runs."""
    found: Any
    try:
        found = importlib.import_module(module_name)
    except ImportError:  # pytest may have imported it by its path alone.
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for name in class_name.split("."):
        found = getattr(found, name)
    globals()[task](found(), Path(path))


def _say(text: object) -> None:
    print(text, flush=True)  # noqa: T201


def _write_and_die(test: BackendContract, path: Path) -> None:
    backend = test.open_backend(path)
    _put(backend, (b"synced", b"1"), (b"deleted", b"1"))
    backend.sync()
    for number in range(1000):
        _put(backend, (b"row%04d" % number, b"x" * 100))
    backend.write(WriteBatch([Delete(b"deleted"), DeleteRange(b"row0000", b"row0100"), Put(b"last", b"1")]))
    _say(backend.sequence() if isinstance(backend, SupportsSequence) else 0)
    os.kill(os.getpid(), signal.SIGKILL)


def _try_to_open(test: BackendContract, path: Path) -> None:
    began = time.monotonic()
    try:
        backend = test.open_backend(path)
    except QilbeeError as error:
        seconds = time.monotonic() - began
        _say(f"{type(error).__name__}\n{seconds}\n{str(error)!r}")
    else:
        _say("opened")
        backend.close()


def _hold(test: BackendContract, path: Path) -> None:
    backend = test.open_backend(path)
    _put(backend, (b"held", b"1"))
    _say("opened")
    sys.stdin.read()
    backend.close()


def _fork(test: BackendContract, path: Path) -> None:
    backend = test.open_backend(path)
    _put(backend, *_ROWS)
    snapshot, begun, not_begun = backend.snapshot(), backend.scan(), backend.scan(reverse=True)
    next(begun)
    pid = os.fork()
    if pid == 0:
        calls = _every_call(backend, path)
        calls["get of a snapshot"] = lambda: snapshot.get(b"a")
        calls["scan of a snapshot"] = snapshot.scan
        calls["begun scan"] = lambda: next(begun)
        calls["scan not begun"] = lambda: next(not_begun)
        _say(json.dumps({name: _outcome(call) for name, call in calls.items()}))
        snapshot.close()
        backend.close()
        return  # And so through the end of the interpreter, where destructors run.
    _, status = os.waitpid(pid, 0)
    _say(f"child ended with {os.waitstatus_to_exitcode(status)}")
    assert [next(not_begun), snapshot.get(b"a"), next(begun)] == [_ROWS[-1], b"value of a", _ROWS[1]]
    _put(backend, (b"after", b"1"))
    backend.sync()
    with closing(backend):
        assert backend.get(b"after") == b"1"
    _say("parent went on")
