"""The files of a store that is open: what a process that dies at this moment would leave."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path


def copy_open_store(source: Path, target: Path) -> None:
    """Copy the files of ``source``, which is open. What its engine deletes or renames meanwhile it does not need."""
    shutil.copytree(source, target, copy_function=_copy_if_there)


def _copy_if_there(source: str, target: str) -> None:
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)
