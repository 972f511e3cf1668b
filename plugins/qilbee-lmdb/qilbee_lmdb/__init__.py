"""The storage engine ``lmdb``: a memory-mapped B+ tree in one file.

It is opened by name, ``[storage] backend = "lmdb"``, once this package is installed.
"""

from __future__ import annotations

from collections.abc import Iterable

from qilbee_core import BackendOptions, Provider, StorageBackend, hookimpl

__all__ = ["qilbee_register_backends"]


@hookimpl
def qilbee_register_backends() -> Iterable[Provider[StorageBackend]]:
    """The backend ``lmdb``."""
    return [Provider("lmdb", _open, "B+ tree in a memory map, quick to read", install="pip install qilbee-lmdb")]


def _open(options: BackendOptions) -> StorageBackend:
    # Imported here, so that looking at what is installed does not load an engine nobody asked for.
    from qilbee_lmdb.backend import LmdbBackend  # noqa: PLC0415

    return LmdbBackend(options)
