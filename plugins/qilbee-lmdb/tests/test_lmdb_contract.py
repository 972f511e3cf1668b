"""LMDB keeps the contract of every persistent engine."""

from __future__ import annotations

from pathlib import Path

from qilbee_lmdb.backend import LmdbBackend

from qilbee_core import BackendOptions, Put, StorageBackend, WriteBatch
from qilbee_core.testing import PersistentBackendContract


class LmdbContract(PersistentBackendContract):
    def test_any_bytes_are_a_key(self, backend: StorageBackend) -> None:
        """The kit goes up to 4096 bytes, LMDB to 510; what a longer key gets is tested in test_lmdb.py."""
        keys = [bytes([byte]) * size for byte in range(256) for size in (1, 2, 300, 510)]
        backend.write(WriteBatch([Put(key, b"of " + key) for key in keys]))
        assert [backend.get(key) for key in keys] == [b"of " + key for key in keys]
        assert [key for key, _ in backend.scan()] == sorted(keys)


class TestLmdb(LmdbContract):
    def open_backend(self, path: Path) -> StorageBackend:
        return LmdbBackend(BackendOptions(path=path))


class TestLmdbThatOutgrowsItsMap(LmdbContract):
    """The same with a map of the smallest size, which every larger test outgrows in the middle."""

    state_machine_examples = 5

    def open_backend(self, path: Path) -> StorageBackend:
        return LmdbBackend(BackendOptions(path=path, engine={"map_bytes": 1 << 20}))
