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
# A protocol as the argument of offered() is what isinstance is given, never what is instantiated.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.errors import ConflictError, StoreClosedError
from qilbee_core.interfaces import (
    Reader,
    Snapshot,
    StorageBackend,
    SupportsCompaction,
    SupportsNativeCompression,
    SupportsPages,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.testing._backend_uses import (
    BETWEEN,
    KEY_BYTES_MAX,
    KEYS,
    ROWS,
    VALUE_BYTES_MAX,
    Row,
    close_while_in_use,
    every_call,
    exhaust,
    in_range,
    offered,
    outcome,
    put,
    together,
)
from qilbee_core.testing.backend_machine import backend_state_machine

__all__ = ["BackendContract"]


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
        keys = [*KEYS, *(bytes([byte]) for byte in range(256)), b"\xff" * KEY_BYTES_MAX, b"\0" * KEY_BYTES_MAX]
        for key in keys:
            put(backend, (key, b"of " + key))
        assert [backend.get(key) for key in keys] == [b"of " + key for key in keys]
        assert [key for key, _ in backend.scan()] == sorted(set(keys))

    @pytest.mark.parametrize("size", [0, 1, 255, 4096, 65_537, VALUE_BYTES_MAX])
    def test_any_bytes_are_a_value(self, backend: StorageBackend, size: int) -> None:
        plain, ends, noise = b"a" * size, (b"\0\xff" * size)[:size], os.urandom(size)
        put(backend, (b"plain", plain), (b"ends", ends), (b"noise", noise))
        assert backend.get_many([b"plain", b"ends", b"noise"]) == [plain, ends, noise]
        assert dict(backend.scan()) == {b"plain": plain, b"ends": ends, b"noise": noise}

    def test_what_was_not_put_is_missing(self, backend: StorageBackend) -> None:
        put(backend, (b"b", b"1"))
        assert [backend.get(key) for key in (b"", b"a", b"b\0", b"bb", b"c")] == [None] * 5

    def test_an_empty_value_is_not_a_missing_one(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b""))
        assert backend.get(b"a") == b""
        assert backend.get_many([b"a", b"b"]) == [b"", None]
        assert list(backend.scan()) == [(b"a", b"")]

    def test_a_put_replaces_the_value(self, backend: StorageBackend) -> None:
        for value in (b"long at first", b"", b"then other"):
            put(backend, (b"a", value))
            assert backend.get(b"a") == value
            assert list(backend.scan()) == [(b"a", value)]

    def test_a_deleted_key_is_missing_to_every_read(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"1"), (b"b", b"2"))
        backend.write(WriteBatch([Delete(b"a")]))
        assert backend.get(b"a") is None
        assert backend.get_many([b"a", b"b"]) == [None, b"2"]
        assert list(backend.scan()) == [(b"b", b"2")]
        assert list(backend.scan(reverse=True)) == [(b"b", b"2")]

    def test_deleting_what_is_missing_is_no_error(self, backend: StorageBackend) -> None:
        backend.write(WriteBatch([Delete(b"a"), DeleteRange(b"", b"z")]))
        assert list(backend.scan()) == []

    def test_get_many_keeps_the_order_and_the_duplicates(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"1"), (b"b", b"2"))
        assert backend.get_many([b"b", b"a", b"x", b"b", b"b", b"x"]) == [b"2", b"1", None, b"2", b"2", None]
        assert backend.get_many([b"a", b"b", b"a"] * 200) == [b"1", b"2", b"1"] * 200
        assert backend.get_many([]) == []

    # Scans

    def test_keys_are_ordered_as_unsigned_bytes(self, backend: StorageBackend) -> None:
        put(backend, *reversed(ROWS))
        assert sorted(KEYS) == KEYS
        assert list(backend.scan()) == ROWS

    def test_a_scan_is_half_open_in_both_directions(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        bounds = sorted(KEYS + BETWEEN)
        for start, stop in itertools.product(bounds, [*bounds, None]):
            expected = in_range(ROWS, start, stop)
            assert list(backend.scan(start, stop)) == expected, (start, stop)
            assert list(backend.scan(start, stop, reverse=True)) == expected[::-1], (start, stop)

    def test_an_empty_or_inverted_range_has_no_rows(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        for start, stop in [(b"", b""), (b"a", b"a"), (b"b", b"a"), (b"aa", b"aa"), (b"\xff\xff", b"\0")]:
            assert list(backend.scan(start, stop)) == []
            assert list(backend.scan(start, stop, reverse=True)) == []

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_view_of_a_scan_is_fixed_when_it_is_called(self, backend: StorageBackend, reverse: bool) -> None:
        put(backend, *ROWS)
        not_begun, begun = backend.scan(reverse=reverse), backend.scan(reverse=reverse)
        first = next(begun)
        put(backend, (b"a", b"changed"), (b"new", b"new"), (b"\xff\xff\xff", b"new"))
        backend.write(WriteBatch([Delete(b"b"), DeleteRange(b"\x7f", b"\xff")]))
        expected = ROWS[::-1] if reverse else ROWS
        assert list(not_begun) == expected
        assert [first, *begun] == expected

    def test_a_long_scan_keeps_its_view_while_everything_is_deleted(self, backend: StorageBackend) -> None:
        rows = [(b"%06d" % number, b"%d" % number * 50) for number in range(3000)]
        put(backend, *rows)
        forwards, backwards = backend.scan(), backend.scan(reverse=True)
        seen = [next(forwards)]
        backend.write(WriteBatch([DeleteRange(b"", b"\xff")]))
        if isinstance(backend, SupportsCompaction):
            backend.compact()
        assert [*seen, *forwards] == rows
        assert list(backwards) == rows[::-1]
        assert list(backend.scan()) == []

    def test_scans_go_on_side_by_side(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        upwards, downwards, part = backend.scan(), backend.scan(reverse=True), backend.scan(b"a", b"b")
        seen = list(itertools.zip_longest(upwards, downwards, part))
        assert [row for row, _, _ in seen] == ROWS
        assert [row for _, row, _ in seen] == ROWS[::-1]
        assert [row for _, _, row in seen if row is not None] == in_range(ROWS, b"a", b"b")

    def test_an_abandoned_scan_does_no_harm(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        for reverse in (False, True) * 100:
            backend.scan(reverse=reverse)
            next(backend.scan(reverse=reverse))
        kept = [backend.scan(), backend.scan(reverse=True)]
        next(kept[1])
        put(backend, (b"after", b""))
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
            backend.write(WriteBatch([DeleteRange(b"", b"\xff" * 9), *(Put(*row) for row in ROWS)]))
            backend.write(WriteBatch([DeleteRange(start, stop)]))
            deleted = in_range(ROWS, start, stop)
            kept = [row for row in ROWS if row not in deleted]
            assert list(backend.scan()) == kept, (start, stop)
            assert list(backend.scan(reverse=True)) == kept[::-1], (start, stop)
            assert backend.get_many(KEYS) == [dict(kept).get(key) for key in KEYS], (start, stop)

    def test_deleting_a_range_also_removes_what_the_batch_put_before(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"old"), (b"b", b"old"))
        backend.write(WriteBatch([Put(b"a", b"new"), Put(b"ab", b"new"), Put(b"z", b"new"), DeleteRange(b"a", b"c")]))
        assert list(backend.scan()) == [(b"z", b"new")]

    def test_deleting_a_range_spares_what_the_batch_puts_later(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"old"), (b"b", b"old"))
        backend.write(WriteBatch([DeleteRange(b"a", b"c"), Put(b"b", b"new"), Put(b"bb", b"new")]))
        assert list(backend.scan()) == [(b"b", b"new"), (b"bb", b"new")]

    def test_ranges_and_puts_may_take_turns(self, backend: StorageBackend) -> None:
        every = DeleteRange(b"", b"\xff")
        backend.write(WriteBatch([Put(b"a", b"1"), every, Put(b"b", b"2"), every, Put(b"a", b"3"), Delete(b"b")]))
        assert list(backend.scan()) == [(b"a", b"3")]

    def test_what_was_deleted_can_be_put_again(self, backend: StorageBackend) -> None:
        for value in (b"1", b"2", b"3"):
            put(backend, (b"a", value), (b"b", value))
            assert list(backend.scan()) == [(b"a", value), (b"b", value)]
            backend.write(WriteBatch([DeleteRange(b"a", b"b"), Delete(b"b")]))
            assert list(backend.scan()) == []

    def test_an_empty_batch_changes_nothing(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"1"))
        backend.write(WriteBatch([]))
        assert list(backend.scan()) == [(b"a", b"1")]

    def test_a_batch_may_be_large(self, backend: StorageBackend) -> None:
        rows = [(b"%05d" % number, os.urandom(200)) for number in range(10_000)]
        put(backend, *rows)
        assert list(backend.scan()) == rows

    # Preconditions

    @pytest.mark.parametrize("value", [None, b"", b"1", b"\0", b"1\0"])
    @pytest.mark.parametrize("expected", [None, b"", b"1", b"\0", b"1\0"])
    def test_a_batch_applies_exactly_if_the_key_holds_what_is_expected(
        self, backend: StorageBackend, value: bytes | None, expected: bytes | None
    ) -> None:
        if value is not None:
            put(backend, (b"a", value))
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
        put(backend, *ROWS)
        operations: list[Operation] = [Put(b"new", b"1"), Put(b"a", b"2"), Delete(b"b"), DeleteRange(b"\0", b"\xff")]
        for expects in (
            [Expect(b"a", b"other"), Expect(b"b", b"value of b")],
            [Expect(b"b", b"value of b"), Expect(b"a", b"other")],
            [Expect(b"new", b"")],
        ):
            with pytest.raises(ConflictError):
                backend.write(WriteBatch(operations, expects))
            assert list(backend.scan()) == ROWS

    def test_what_is_expected_is_the_state_before_the_batch(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"1"))
        backend.write(WriteBatch([Put(b"a", b"2"), Put(b"b", b"1")], [Expect(b"a", b"1"), Expect(b"b", None)]))
        with pytest.raises(ConflictError):
            backend.write(WriteBatch([DeleteRange(b"", b"z"), Put(b"a", b"3")], [Expect(b"a", b"3")]))
        with pytest.raises(ConflictError):
            backend.write(WriteBatch([DeleteRange(b"", b"z")], [Expect(b"a", None)]))
        assert list(backend.scan()) == [(b"a", b"2"), (b"b", b"1")]

    def test_expectations_may_stand_alone(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"1"))
        backend.write(WriteBatch([], [Expect(b"a", b"1"), Expect(b"b", None)]))
        with pytest.raises(ConflictError):
            backend.write(WriteBatch([], [Expect(b"a", None)]))

    def test_what_is_expected_sees_deletions(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"1"), (b"b", b"1"))
        backend.write(WriteBatch([Delete(b"a"), DeleteRange(b"b", b"c")]))
        backend.write(WriteBatch([Put(b"a", b"2"), Put(b"b", b"2")], [Expect(b"a", None), Expect(b"b", None)]))
        assert list(backend.scan()) == [(b"a", b"2"), (b"b", b"2")]

    # Snapshots

    def test_a_snapshot_shows_one_instant_to_get_get_many_and_scan(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        with closing(backend.snapshot()) as snapshot:
            put(backend, (b"a", b"changed"), (b"new", b"new"))
            backend.write(WriteBatch([Delete(b"b"), DeleteRange(b"\x7f", b"\xff\xff\xff")]))
            self._shows(snapshot, ROWS)
            assert snapshot.get(b"new") is None

    def test_each_snapshot_shows_its_own_instant(self, backend: StorageBackend) -> None:
        taken: list[tuple[Snapshot, list[Row]]] = [(backend.snapshot(), [])]
        for number in range(10):
            put(backend, (b"%d" % number, b"1"), (b"last", b"%d" % number))
            taken.append((backend.snapshot(), list(backend.scan())))
        for snapshot, rows in taken[::2]:
            self._shows(snapshot, rows)
            snapshot.close()
        for snapshot, rows in taken[1::2]:
            self._shows(snapshot, rows)
            snapshot.close()

    def test_a_snapshot_outlives_the_deletion_and_compaction_of_all_it_shows(self, backend: StorageBackend) -> None:
        rows = [(b"%06d" % number, b"%d" % number * 50) for number in range(3000)]
        put(backend, *rows)
        with closing(backend.snapshot()) as snapshot:
            backend.write(WriteBatch([DeleteRange(b"", b"\xff")]))
            backend.sync()
            if isinstance(backend, SupportsCompaction):
                backend.compact()
            assert list(backend.scan()) == []
            self._shows(snapshot, rows)

    def test_scans_of_one_snapshot_go_on_side_by_side(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        with closing(backend.snapshot()) as snapshot:
            upwards = snapshot.scan()
            backend.write(WriteBatch([DeleteRange(b"", b"\xff\xff\xff")]))
            seen = list(itertools.zip_longest(upwards, snapshot.scan(reverse=True), snapshot.scan(b"a", b"b")))
            assert snapshot.get(b"a") == b"value of a"
        assert [row[0] for row in seen] == ROWS
        assert [row[1] for row in seen] == ROWS[::-1]
        assert [row[2] for row in seen if row[2]] == in_range(ROWS, b"a", b"b")

    def test_a_snapshot_scans_half_open_in_both_directions(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        bounds = sorted(KEYS + BETWEEN)[::3]
        with closing(backend.snapshot()) as snapshot:
            for start, stop in itertools.product(bounds, [*bounds, None]):
                expected = in_range(ROWS, start, stop)
                assert list(snapshot.scan(start, stop)) == expected, (start, stop)
                assert list(snapshot.scan(start, stop, reverse=True)) == expected[::-1], (start, stop)

    def test_a_snapshot_can_be_read_from_any_thread(self, backend: StorageBackend) -> None:
        rows = [(b"%04d" % number, b"old") for number in range(500)]
        put(backend, *rows)
        with closing(backend.snapshot()) as snapshot:

            def read() -> None:
                for _ in range(5):
                    self._shows(snapshot, rows)

            def write() -> None:
                for number in range(500):
                    put(backend, (b"%04d" % number, b"new"), (b"x%04d" % number, b"new"))

            together(read, read, read, write)

    def test_closing_a_snapshot_leaves_the_others_open(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        first, second = backend.snapshot(), backend.snapshot()
        first.close()
        self._shows(second, ROWS)
        assert backend.get(b"a") == b"value of a"
        second.close()

    def test_a_closed_snapshot_says_so(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        snapshot = backend.snapshot()
        snapshot.close()
        snapshot.close()
        self._refuses(snapshot)

    def test_a_scan_whose_snapshot_is_closed_goes_on_or_says_so(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        snapshot = backend.snapshot()
        scan = snapshot.scan()
        seen = [next(scan)]
        snapshot.close()
        try:
            seen.extend(scan)
        except StoreClosedError:
            return
        assert seen == ROWS

    def test_a_snapshot_may_be_closed_while_others_read_from_it(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        for _ in range(20):
            snapshot = backend.snapshot()

            def read(snapshot: Snapshot = snapshot) -> None:
                assert snapshot.get(b"a") == b"value of a"
                assert next(snapshot.scan(b"a")) == (b"a", b"value of a")

            close_while_in_use(snapshot, [read, read], rounds=2)

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
        put(backend, *ROWS)
        backend.close()
        outcomes = {name: outcome(call) for name, call in every_call(backend, tmp_path).items()}
        assert outcomes == dict.fromkeys(outcomes, "StoreClosedError")

    def test_closing_twice_is_no_error(self, backend: StorageBackend) -> None:
        backend.close()
        backend.close()

    def test_closing_ends_snapshots(self, backend: StorageBackend) -> None:
        put(backend, *ROWS)
        snapshot = backend.snapshot()
        backend.close()
        self._refuses(snapshot)
        snapshot.close()

    @pytest.mark.parametrize("reverse", [False, True])
    def test_closing_ends_scans(self, backend: StorageBackend, reverse: bool) -> None:
        put(backend, *ROWS)
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
            put(backend, *((b"%04d" % number, b"x" * 100) for number in range(200)))

            def use_snapshot(backend: StorageBackend = backend) -> None:
                with closing(backend.snapshot()) as snapshot:
                    assert snapshot.get(b"0000") == b"x" * 100
                    assert len(list(snapshot.scan(reverse=True))) >= 200

            uses: list[Callable[[], object]] = [
                partial(backend.get_many, [b"0000", b"0100", b"none"]),
                partial(exhaust, backend.scan),
                partial(put, backend, (b"new", b"y" * 100)),
                backend.sync,
                use_snapshot,
            ]
            close_while_in_use(backend, uses, rounds=100)

    # Threads

    def test_writers_who_expect_lose_no_update(self, backend: StorageBackend) -> None:
        threads, rounds = 8, 25
        put(backend, (b"count", b"0"))

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

        together(*[count_up] * threads)
        assert backend.get(b"count") == b"%d" % (threads * rounds)

    def test_what_is_expected_also_holds_against_writers_who_expect_nothing(self, backend: StorageBackend) -> None:
        # One writer sets both keys; the other copies the first to the second where it has not changed meanwhile.
        put(backend, (b"a", b"0"), (b"z", b"0"))
        done = threading.Event()

        def set_both() -> None:
            for number in itertools.count():
                put(backend, (b"a", b"%d" % number), (b"z", b"%d" % number))
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

        together(set_both, copy)

    def test_writers_at_once_all_get_through(self, backend: StorageBackend) -> None:
        def write(thread: int) -> None:
            for number in range(50):
                put(backend, (b"%d/%02d" % (thread, number), b"1"))
                if number % 10 == 0:
                    backend.sync()

        together(*(partial(write, thread) for thread in range(8)))
        assert [key for key, _ in backend.scan()] == [
            b"%d/%02d" % (thread, number) for thread in range(8) for number in range(50)
        ]

    def test_readers_never_see_half_a_batch(self, backend: StorageBackend) -> None:
        put(backend, (b"a", b"0"), (b"z", b"0"))
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

        together(write, read, read)

    # What an engine may offer

    def test_compaction_keeps_what_is_there(self, backend: StorageBackend) -> None:
        compactor = offered(backend, SupportsCompaction)
        put(backend, *ROWS)
        backend.write(WriteBatch([Delete(b"b"), DeleteRange(b"a\0", b"a\xff")]))
        rows = list(backend.scan())
        compactor.compact(b"a", b"b")
        assert list(backend.scan()) == rows
        compactor.compact()
        assert list(backend.scan()) == rows

    def test_statistics_are_figures_by_name(self, backend: StorageBackend) -> None:
        stats = offered(backend, SupportsStats).stats()
        assert isinstance(stats, Mapping)
        assert stats
        assert all(isinstance(name, str) for name in stats)
        json.dumps(dict(stats), allow_nan=False)

    def test_the_sequence_rises_with_every_write(self, backend: StorageBackend) -> None:
        counter = offered(backend, SupportsSequence)
        seen = [counter.sequence()]
        for operation in (Put(b"a", b"1"), Put(b"a", b"1"), Delete(b"a"), Put(b"b", b"")):
            backend.write(WriteBatch([operation]))
            seen.append(counter.sequence())
        assert seen == sorted(set(seen))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_page_is_the_beginning_of_the_scan(self, backend: StorageBackend, reverse: bool) -> None:
        pages = offered(backend, SupportsPages)
        put(backend, *ROWS)
        for start, stop in [(b"", None), (b"a", b"b"), (b"a\0", None), (b"b", b"a"), (b"\xff", b"\xff\xff\0")]:
            rows = list(backend.scan(start, stop, reverse=reverse))
            for limit in (1, 2, len(ROWS), 1000):
                assert pages.page(start, stop, limit, reverse=reverse) == rows[:limit], (start, stop, limit)

    def test_native_codecs_are_names(self, backend: StorageBackend) -> None:
        codecs = offered(backend, SupportsNativeCompression).native_codecs
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
