"""Run the tests of QilbeeDB itself on PostgreSQL: ``pytest -p memory_on_postgres tests/memory/...``.

They open stores in directories of their own; here each directory is a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import qilbee_postgres
from postgres_server import shared_url
from qilbee_postgres.backend import PostgresBackend

from qilbee_core import BackendOptions, Provider, StorageBackend, hookimpl

_URL = f"{shared_url()}/postgres"  # now, for each test takes the variables of QilbeeDB out of the environment


@hookimpl
def by_directory() -> Iterable[Provider[StorageBackend]]:
    """The backend ``postgres``, as if it kept its data in a directory."""
    return [Provider("postgres", _open, "a table for each directory")]


def _open(options: BackendOptions) -> StorageBackend:
    name = options.path / "table"  # a copy of the directory, as of a killed process, is the same table
    if not name.exists():
        options.path.mkdir(parents=True, exist_ok=True)
        name.write_text("m" + hashlib.sha256(str(options.path).encode()).hexdigest()[:30])
    return PostgresBackend(
        BackendOptions(
            path=options.path,
            dsn=_URL,
            durability=options.durability,
            engine={"table": name.read_text()},
        )
    )


qilbee_postgres.qilbee_register_backends = by_directory
