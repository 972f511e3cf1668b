from pathlib import Path

from qilbee_core import BackendOptions, Delete, Put, StorageBackend, WriteBatch
from qilbee_core.backends.leveldb import LevelDBBackend
from qilbee_core.testing import PersistentBackendContract


class TestLevelDBBackend(PersistentBackendContract):
    def open_backend(self, path: Path) -> StorageBackend:
        return LevelDBBackend(BackendOptions(path=path))
