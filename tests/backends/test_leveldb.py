from pathlib import Path

from qilbee_core import BackendOptions, StorageBackend
from qilbee_core.backends.leveldb import LevelDBBackend
from qilbee_core.testing import PersistentBackendContract


class TestLevelDBBackend(PersistentBackendContract):
    def open_backend(self, path: Path) -> StorageBackend:
        return LevelDBBackend(BackendOptions(path=path))
