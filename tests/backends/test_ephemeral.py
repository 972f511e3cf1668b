"""The ephemeral backend against the contract, and what it promises besides."""

import random
from pathlib import Path

from qilbee_core import BackendOptions, Delete, DeleteRange, Operation, Put, SingleProcess, StorageBackend, WriteBatch
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.testing import BackendContract


class TestEphemeralBackend(BackendContract):
    def open_backend(self, path: Path) -> StorageBackend:
        return EphemeralBackend(BackendOptions(path=path))


def test_each_opening_is_a_store_of_its_own_and_leaves_nothing_behind(tmp_path: Path) -> None:
    options = BackendOptions(path=tmp_path / "store")
    first, second = EphemeralBackend(options), EphemeralBackend(options)
    assert not isinstance(first, SingleProcess)
    first.write(WriteBatch([Put(b"a", b"1")]))
    first.sync()
    assert list(second.scan()) == []
    first.close()
    assert list(EphemeralBackend(options).scan()) == []
    assert not options.path.exists()


def test_it_is_right_over_many_blocks(tmp_path: Path) -> None:
    chance = random.Random(1)
    backend = EphemeralBackend(BackendOptions(path=tmp_path))
    model: dict[bytes, bytes] = {}
    snapshots = []
    for step in range(60):
        operations: list[Operation] = []
        for _ in range(300):
            key = b"%05d" % chance.randrange(20_000)
            operations.append(Delete(key) if chance.random() < 0.2 else Put(key, b"%d" % step))
        for operation in operations:
            if isinstance(operation, Put):
                model[operation.key] = operation.value
            elif isinstance(operation, Delete):
                model.pop(operation.key, None)
        if step % 5 == 4:
            start = chance.randrange(20_000)
            gap = DeleteRange(b"%05d" % start, b"%05d" % (start + chance.choice([10, 3000])))
            operations.append(gap)
            model = {key: value for key, value in model.items() if not gap.start <= key < gap.stop}
        backend.write(WriteBatch(operations))
        snapshots.append((backend.snapshot(), dict(model)))
    for snapshot, then in snapshots[::7]:
        rows = sorted(then.items())
        assert list(snapshot.scan()) == rows
        assert list(snapshot.scan(b"05000", b"15000", reverse=True)) == [
            row for row in rows[::-1] if b"05000" <= row[0] < b"15000"
        ]
        assert snapshot.get_many(list(then)) == list(then.values())


def test_blocks_that_become_empty_are_dropped(tmp_path: Path) -> None:
    backend = EphemeralBackend(BackendOptions(path=tmp_path))
    for number in range(20_000):  # A queue: what is put at one end is deleted at the other.
        backend.write(WriteBatch([Put(b"%05d" % number, b""), Delete(b"%05d" % (number - 100))]))
    assert len(list(backend.scan())) == 100
    assert len(backend._version()._blocks) < 5
