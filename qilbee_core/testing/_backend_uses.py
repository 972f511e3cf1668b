"""What the tests of a storage backend do with it, and the rows they do it with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from qilbee_core.batch import Expect, Put, WriteBatch
from qilbee_core.errors import StoreClosedError
from qilbee_core.interfaces import (
    Snapshot,
    StorageBackend,
    SupportsCheckpoint,
    SupportsCompaction,
    SupportsErase,
    SupportsPages,
    SupportsReopen,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.patience import patiently

T = TypeVar("T")
Row = tuple[bytes, bytes]
OpenBackend = Callable[[Path], StorageBackend]

# Far more than any of these takes, and far less than a test run that hangs.
PATIENCE_S = 60.0
# Longer than it takes to say no on a busy machine, and shorter than anybody who waits for a lock would wait.
AT_ONCE_S = 30.0

# More than the longest key and the largest value that the store writes.
KEY_BYTES_MAX = 500
VALUE_BYTES_MAX = 1_200_000

# In order, and with every kind of neighbour: prefixes of each other, the lowest byte, the highest.
KEYS = [b"", b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0b", b"a\xff", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"]
ROWS = [(key, b"value of " + key) for key in KEYS]
BETWEEN = [b"\0\x01", b"`", b"a\0\0", b"aa", b"\x7f\xff", b"\xff\0", b"\xff\xff\xff"]


def put(backend: StorageBackend, *rows: Row) -> None:
    # Patiently, for an engine may stall its writers.
    patiently(partial(backend.write, WriteBatch([Put(key, value) for key, value in rows])))


def in_range(rows: Sequence[Row], start: bytes, stop: bytes | None) -> list[Row]:
    return [row for row in rows if start <= row[0] and (stop is None or row[0] < stop)]


def offered(backend: StorageBackend, protocol: type[T]) -> T:
    """The backend as ``protocol``, or skip."""
    if not isinstance(backend, protocol):
        pytest.skip(f"{backend.name} is no {protocol.__name__}")
    return backend


def together(*tasks: Callable[[], None]) -> None:
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
    deadline = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), f"a thread hangs after {PATIENCE_S} s"
    if errors:
        raise errors[0]


def close_while_in_use(closable: StorageBackend | Snapshot, uses: Sequence[Callable[[], object]], rounds: int) -> None:
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
            assert used.acquire(timeout=PATIENCE_S)
        closable.close()

    together(close, *(partial(use, call) for call in uses))


def exhaust(scan: Callable[[], Iterator[Row]]) -> None:
    for _ in scan():
        pass


def every_call(backend: StorageBackend, path: Path) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: backend.get(b"a"),
        "get_many": lambda: backend.get_many([b"a"]),
        "scan": lambda: list(backend.scan()),
        "scan, before it is iterated": backend.scan,
        "scan in reverse": lambda: list(backend.scan(reverse=True)),
        "write": lambda: put(backend, (b"a", b"")),
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


def contents(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """The files that are there; one that the engine deletes meanwhile, in a thread of its own, is not."""
    for file in directory.rglob("*"):
        with suppress(FileNotFoundError):
            if file.is_file():
                yield file, file.read_bytes()


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "no error"
