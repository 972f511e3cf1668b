"""Which file of the directory is the store, and how the next one is made.

::

    000001.lmdb         the store: the file with the highest number
    000001.lmdb-lock    LMDB's table of readers; means nothing once the file is closed
    000002.lmdb.new     the next file, while it is being made; without a meaning until it has its name

A file gets its name when all of it is on the disk, and from then on it is the store. So there is no moment
at which a crash leaves none, or half of one; whatever else lies around is removed at the next opening.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import lmdb

from qilbee_core import fsync_directory
from qilbee_lmdb.datafile import PREFIX
from qilbee_lmdb.errors import of_lmdb

__all__ = ["build", "current_file", "first_file", "publish", "remove_leftovers", "successor"]

_NAME = re.compile(r"(\d{6,})\.lmdb")
_OURS = re.compile(r"\d{6,}\.lmdb(\.new)?(-lock)?")
_PAIRS_PER_COMMIT = 1000


def first_file(directory: Path) -> Path:
    """Where a new store begins."""
    return directory / "000001.lmdb"


def successor(path: Path) -> Path:
    """The file that takes the place of ``path``."""
    return path.with_name(f"{int(path.stem) + 1:06}.lmdb")


def current_file(directory: Path) -> Path | None:
    """The file that is the store, or None where there is none yet."""
    files = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return max(files, key=lambda path: int(path.stem), default=None)


def remove_leftovers(directory: Path, current: Path) -> None:
    """Remove what a crash or an earlier file left: everything of ours but ``current`` and its table of readers."""
    for path in directory.iterdir():
        if _OURS.fullmatch(path.name) and path not in (current, _lock_file(current)):
            path.unlink()
    fsync_directory(directory)


def build(path: Path, pairs: Iterable[tuple[bytes, bytes]], map_bytes: int) -> Path:
    """Make a file of ``pairs``, which come in order, beside ``path``, whose name :func:`publish` then gives it.

    It is written pair by pair and not with LMDB's own compacting copy: that one copies pages, with what
    was deleted from a large value's last page and with what the heap held where a page is not full.
    """
    new = path.with_name(path.name + ".new")
    _remove(new)
    some: list[tuple[bytes, bytes]] = []
    try:
        with lmdb.open(str(new), map_bytes, subdir=False, sync=False, mode=0o600) as env:
            ahead = iter(pairs)
            while some := [(PREFIX + key, value) for key, value in islice(ahead, _PAIRS_PER_COMMIT)]:
                with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                    cursor.putmulti(some, append=True)
            env.sync(True)
    except BaseException as error:
        # Asked before it is removed: what it takes may be all there was.
        known = of_lmdb(error, new, writing_bytes=_size(some)) if isinstance(error, lmdb.Error) else error
        _remove(new)
        raise known from error
    _lock_file(new).unlink()
    return new


def publish(new: Path, path: Path) -> None:
    """Make ``new`` the store, now and after a power cut."""
    os.rename(new, path)
    fsync_directory(path.parent)


def _size(pairs: Iterable[tuple[bytes, bytes]]) -> int:
    return sum(len(key) + len(value) for key, value in pairs)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _lock_file(path).unlink(missing_ok=True)


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + "-lock")
