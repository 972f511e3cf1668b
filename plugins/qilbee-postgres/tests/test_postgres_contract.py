"""PostgreSQL keeps the contract of every persistent engine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from postgres_server import needs_postgres, shared_url
from qilbee_postgres.backend import PostgresBackend

from qilbee_core import BackendOptions, StorageBackend
from qilbee_core.testing import PersistentBackendContract

pytestmark = needs_postgres


class TestPostgres(PersistentBackendContract):
    """Each path of the kit is a table."""

    def open_backend(self, path: Path) -> StorageBackend:
        table = "t" + hashlib.sha256(str(path).encode()).hexdigest()[:30]
        url = f"{shared_url()}/postgres"
        return PostgresBackend(BackendOptions(path=path, dsn=url, engine={"table": table}))
