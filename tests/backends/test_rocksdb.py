"""The RocksDB engine: the contract, then a test for each trap of the binding that touches it."""

from __future__ import annotations

from pathlib import Path

from qilbee_core.backends.rocksdb import RocksDBBackend
from qilbee_core.interfaces import BackendOptions
from qilbee_core.testing import PersistentBackendContract


class TestRocksDB(PersistentBackendContract):
    def open_backend(self, path: Path) -> RocksDBBackend:
        return RocksDBBackend(BackendOptions(path=path))
