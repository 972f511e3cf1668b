"""What a store takes on disk, measured against the same episodes without compression."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from qilbee_core.store import Store, open_store

__all__ = ["DiskUse", "disk_use", "uncompressed_disk_use"]

# RocksDB and LevelDB write down what they do, and RocksDB what it was opened with: some with every open.
_NOTES = re.compile(r"LOG(\.old.*)?|OPTIONS-\d+")


class DiskUse(NamedTuple):
    """Bytes in the files of one store."""

    data: int
    notes: int
    """the engine's diagnostic logs and options: the same for any amount of data"""


def disk_use(directory: Path) -> DiskUse:
    """The sizes of all files below ``directory``."""
    data = notes = 0
    for path in directory.rglob("*"):
        if path.is_file():
            size = path.stat().st_size
            if _NOTES.fullmatch(path.name):
                notes += size
            else:
                data += size
    return DiskUse(data, notes)


def uncompressed_disk_use(store: Store, progress: Callable[[int], object]) -> DiskUse:
    """What the episodes of ``store`` take with compression none, in a second, temporary store.

    ``progress`` is called with the number of episodes written so far.
    """
    done = 0
    with tempfile.TemporaryDirectory(prefix="qilbee-quickstart-") as directory:
        settings = store.settings.with_storage(
            {
                "data_path": directory,
                "backend": store.stats()["backend"],
                "compression_type": "none",
                "enable_wal": True,
                "sync_writes": False,
                "durability": "async",
            }
        )
        with open_store(settings) as copy:
            for agent_id in store.agents():
                before = done

                def told(count: int, before: int = before) -> None:
                    progress(before + count)

                episodes = store.agent_memory(agent_id).episodes()
                done += copy.agent_memory(agent_id).import_episodes(episodes, progress=told)
            copy.compact()
        return disk_use(Path(directory))
