"""The ephemeral backend against the contract, and what it promises besides."""

from pathlib import Path

from qilbee_core import BackendOptions, StorageBackend
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.testing import BackendContract


class TestEphemeralBackend(BackendContract):
    def open_backend(self, path: Path) -> StorageBackend:
        return EphemeralBackend(BackendOptions(path=path))
