"""LMDB keeps the contract of every persistent engine."""

from __future__ import annotations

from pathlib import Path

from qilbee_lmdb.backend import LmdbBackend

from qilbee_core import BackendOptions, StorageBackend
from qilbee_core.testing import PersistentBackendContract


class TestLmdb(PersistentBackendContract):
    def open_backend(self, path: Path) -> StorageBackend:
        return LmdbBackend(BackendOptions(path=path))


class TestLmdbThatOutgrowsItsMap(PersistentBackendContract):
    """The same with a map of the smallest size, which every larger test outgrows in the middle."""

    state_machine_examples = 5

    def open_backend(self, path: Path) -> StorageBackend:
        return LmdbBackend(BackendOptions(path=path, engine={"map_bytes": 1 << 20}))
