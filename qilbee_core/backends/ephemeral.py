"""The ephemeral backend: sorted pairs in RAM, gone when closed. The reference for what an engine means."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qilbee_core.batch import Delete, Put, WriteBatch
from qilbee_core.errors import ConflictError, StoreClosedError
from qilbee_core.interfaces import BackendOptions

__all__ = ["EphemeralBackend"]

# A write copies one block, and the list of blocks: of a million pairs, some 10 kB and 60 kB of pointers.
_BLOCK_PAIRS_MAX = 256


class _Block(NamedTuple):
    """Neighbouring pairs. Never changed: a write puts another block in its place."""

    keys: list[bytes]
    values: list[bytes]


class _Version:
    """All pairs of one instant. Changed only while nobody else can see it, between ``copy`` and publication."""

    __slots__ = ("_blocks", "_bounds")

    def __init__(self, bounds: list[bytes], blocks: list[_Block]) -> None:
        # Block i holds the keys from bounds[i] up to bounds[i + 1]; bounds[0] is the lowest key there can be.
        self._bounds = bounds
        self._blocks = blocks

    def copy(self) -> _Version:
        return _Version(self._bounds.copy(), self._blocks.copy())

    def _block_of(self, key: bytes) -> int:
        return bisect_right(self._bounds, key) - 1

    def get(self, key: bytes) -> bytes | None:
        keys, values = self._blocks[self._block_of(key)]
        at = bisect_left(keys, key)
        return values[at] if at < len(keys) and keys[at] == key else None

    def rows(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        for block in range(self._block_of(start), len(self._blocks)):
            keys, values = self._blocks[block]
            for at in range(bisect_left(keys, start), len(keys)):
                if stop is not None and keys[at] >= stop:
                    return
                yield keys[at], values[at]

    def rows_backwards(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        last = len(self._blocks) - 1 if stop is None else self._block_of(stop)
        for block in range(last, -1, -1):
            keys, values = self._blocks[block]
            for at in range((len(keys) if stop is None else bisect_left(keys, stop)) - 1, -1, -1):
                if keys[at] < start:
                    return
                yield keys[at], values[at]

    def put(self, key: bytes, value: bytes) -> None:
        block = self._block_of(key)
        keys, values = self._blocks[block]
        at = bisect_left(keys, key)
        if at < len(keys) and keys[at] == key:
            self._blocks[block] = _Block(keys, [*values[:at], value, *values[at + 1 :]])
            return
        keys = [*keys[:at], key, *keys[at:]]
        values = [*values[:at], value, *values[at:]]
        if len(keys) <= _BLOCK_PAIRS_MAX:
            self._blocks[block] = _Block(keys, values)
            return
        half = len(keys) // 2
        self._blocks[block : block + 1] = [_Block(keys[:half], values[:half]), _Block(keys[half:], values[half:])]
        self._bounds.insert(block + 1, keys[half])

    def delete_range(self, start: bytes, stop: bytes) -> None:
        if start >= stop:
            return
        first, last = self._block_of(start), self._block_of(stop)
        below, above = self._blocks[first], self._blocks[last]
        end, begin = bisect_left(below.keys, start), bisect_left(above.keys, stop)
        left = _Block(below.keys[:end], below.values[:end])
        right = _Block(above.keys[begin:], above.values[begin:])
        self._blocks[first : last + 1] = [_Block(left.keys + right.keys, left.values + right.values)]
        del self._bounds[first + 1 : last + 1]
        if first and not self._blocks[first].keys:
            del self._blocks[first], self._bounds[first]


class _Reads(ABC):
    """What the backend and its snapshots share: reading from a version that nobody changes any more."""

    @abstractmethod
    def _version(self) -> _Version:
        """What to read from, or StoreClosedError."""

    def get(self, key: bytes) -> bytes | None:
        return self._version().get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        get = self._version().get
        return [get(key) for key in keys]

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        version = self._version()
        return self._while_open(version.rows_backwards(start, stop) if reverse else version.rows(start, stop))

    def _while_open(self, rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for row in rows:
            self._version()
            yield row


class EphemeralBackend(_Reads):
    """Sorted pairs in RAM. Each opening is a store of its own, and closing drops it.

    It is a persistent structure in the functional sense: a write builds the next version out of the
    blocks of the last one and publishes it with one assignment. So reads need no lock, a snapshot costs
    nothing, and a scan keeps its view for as long as somebody holds it.

    >>> from pathlib import Path
    >>> backend = EphemeralBackend(BackendOptions(path=Path("unused")))
    >>> backend.write(WriteBatch([Put(b"tea", b"green"), Put(b"ink", b"")]))
    >>> list(backend.scan())
    [(b'ink', b''), (b'tea', b'green')]
    """

    name = "ephemeral"

    def __init__(self, options: BackendOptions) -> None:
        del options  # Nothing of it applies: there is no directory, no log and no cache.
        self._lock = threading.Lock()
        self._latest: _Version | None = _Version([b""], [_Block([], [])])

    def _version(self) -> _Version:
        version = self._latest
        if version is None:
            raise StoreClosedError("the ephemeral backend is closed", remedy="open another; its content is gone")
        return version

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` whole, or raise and apply nothing."""
        with self._lock:
            version = self._version()
            for expect in batch.expects:
                if version.get(expect.key) != expect.value:
                    raise ConflictError(f"key {expect.key!r} does not hold what was expected")
            version = version.copy()
            for operation in batch.operations:
                if isinstance(operation, Put):
                    version.put(operation.key, operation.value)
                elif isinstance(operation, Delete):
                    version.delete_range(operation.key, operation.key + b"\0")
                else:
                    version.delete_range(operation.start, operation.stop)
            self._latest = version

    def sync(self) -> None:
        """Nothing to do: RAM does not survive a power cut, and this backend does not claim to."""
        self._version()

    def snapshot(self) -> EphemeralSnapshot:
        """This instant; taking it costs nothing."""
        return EphemeralSnapshot(self)

    def close(self) -> None:
        """Drop everything. Idempotent."""
        with self._lock:
            self._latest = None


class EphemeralSnapshot(_Reads):
    """One instant of an :class:`EphemeralBackend`."""

    def __init__(self, backend: EphemeralBackend) -> None:
        self._backend = backend
        self._instant: _Version | None = backend._version()

    def _version(self) -> _Version:
        self._backend._version()
        version = self._instant
        if version is None:
            raise StoreClosedError("the snapshot is closed", remedy="take another one")
        return version

    def close(self) -> None:
        """Let go of the instant. Idempotent."""
        self._instant = None
