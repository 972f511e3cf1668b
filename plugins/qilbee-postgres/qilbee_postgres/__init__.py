"""The storage engine ``postgres``: a table in PostgreSQL, shared by any number of processes.

It is opened by its URL, ``open_store("postgresql://...")``, or by ``dsn`` in ``[storage]``, once this package is
installed.
"""

from __future__ import annotations

from collections.abc import Iterable

from qilbee_core import BackendOptions, Provider, StorageBackend, hookimpl

__all__ = ["qilbee_register_backends"]


@hookimpl
def qilbee_register_backends() -> Iterable[Provider[StorageBackend]]:
    """The backend ``postgres``."""
    return [
        Provider(
            "postgres",
            _open,
            "a table in PostgreSQL, for several processes at once",
            install="pip install qilbee-postgres",
            directory=False,
            schemes=("postgresql", "postgres"),
        )
    ]


def _open(options: BackendOptions) -> StorageBackend:
    # Imported here, so that looking at what is installed does not load an engine nobody asked for.
    from qilbee_postgres.backend import PostgresBackend  # noqa: PLC0415

    return PostgresBackend(options)
