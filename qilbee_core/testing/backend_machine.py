"""A storage backend used in random ways, and compared with a dict."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.errors import ConflictError, StoreClosedError
from qilbee_core.interfaces import Reader, Snapshot, SupportsCompaction
from qilbee_core.testing._backend_uses import OpenBackend, Row, in_range

__all__ = ["backend_state_machine"]

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
            rows = sorted(in_range(list(model.items()), start, stop), reverse=reverse)
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
