"""Copying a store while it is open."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from qilbee_core.directory import fsync_directory
from qilbee_core.errors import InvalidError
from qilbee_core.interfaces import StorageBackend, SupportsCheckpoint
from qilbee_core.marker import claim, directory_error

__all__ = ["checkpoint"]


def checkpoint(backend: StorageBackend, directory: Path, target: Path) -> int:
    """Make ``target`` a store of its own, of what ``backend`` holds at this moment for the store in ``directory``.

    It appears whole or not at all. Gives the bytes of its files, of which some may be links to those of the store.
    """
    if not isinstance(backend, SupportsCheckpoint):
        raise InvalidError(
            f"the {backend.name} engine cannot copy a store that is open", remedy="close it and copy its directory"
        )
    try:
        if os.path.lexists(target):
            raise InvalidError(f"{target} exists", remedy="name a directory that does not exist yet")
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            name, _ = claim(directory, None, create=False)
            claim(unfinished, name, create=True)
            backend.checkpoint(unfinished / name)
            unfinished.rename(target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        fsync_directory(target.parent)
        return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    except (OSError, UnicodeError) as error:
        raise directory_error(target, error) from error
