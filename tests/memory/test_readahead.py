"""Gets that are answered from a scan give what gets give, and ask the engine less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import BackendOptions, Put, Snapshot, StoreClosedError, WriteBatch
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.memory.readahead import ReadAhead

KEYS = st.builds(lambda agent, order, number: b"\x30\x01" + agent + bytes((order, number)),
                 st.sampled_from([b"a", b"b"]), st.integers(0, 2), st.integers(0, 60))  # fmt: skip


class Counting:
    """A snapshot that counts what it is asked; a scan is read in pages of 64 rows."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.calls = 0
        self.get_many, self.close = snapshot.get_many, snapshot.close

    def get(self, key: bytes) -> bytes | None:
        self.calls += 1
        return self._snapshot.get(key)

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for number, row in enumerate(self._snapshot.scan(start, stop, reverse=reverse)):
            self.calls += number % 64 == 0
            yield row


def snapshot_of(keys: list[bytes]) -> Counting:
    backend = EphemeralBackend(BackendOptions(path=Path("unused")))
    backend.write(WriteBatch([Put(key, b"of " + key) for key in keys]))
    return Counting(backend.snapshot())


@given(st.lists(KEYS | st.binary(max_size=3)), st.lists(KEYS | st.binary(max_size=3), max_size=300), st.booleans())
def test_it_gives_what_the_snapshot_gives(stored: list[bytes], asked: list[bytes], in_order: bool) -> None:
    snapshot = snapshot_of(stored)
    reader = ReadAhead(snapshot)
    for key in sorted(asked) if in_order else asked:
        assert reader.get(key) == snapshot.get(key)


def test_gets_in_rising_order_cost_a_page_for_many() -> None:
    keys = [b"\x20\x03bot" + number.to_bytes(16, "big") for number in range(6400)]
    snapshot = snapshot_of(keys[::2])
    reader = ReadAhead(snapshot)
    assert [reader.get(key) for key in keys] == [
        b"of " + key if number % 2 == 0 else None for number, key in enumerate(keys)
    ]
    assert snapshot.calls < 60


def test_gets_that_jump_cost_little_more_than_one_call_each() -> None:
    keys = [b"\x20\x03bot" + number.to_bytes(16, "big") for number in range(64_000)]
    snapshot = snapshot_of(keys)
    reader = ReadAhead(snapshot)
    asked = Random(7).sample(keys, 500)
    assert [reader.get(key) for key in asked] == [b"of " + key for key in asked]
    assert snapshot.calls < 1.3 * len(asked)


def test_the_rest_is_that_of_the_snapshot() -> None:
    reader = ReadAhead(snapshot_of([b"a", b"b"]))
    assert (reader.get_many([b"b", b"c"]), list(reader.scan(b"b"))) == ([b"of b", None], [(b"b", b"of b")])
    reader.close()
    with pytest.raises(StoreClosedError):
        reader.get(b"a")
