"""Opening a RocksDB database to read only, while another process may be writing to it.

RocksDB can, but the binding puts a file of its own into the directory, and RocksDB reads files that the writer may have
deleted by then, a log among them without a word. So all files of one moment are held open first, and RocksDB is given a
directory of links to them, which can go once it is open. Whether it was one moment tells CURRENT: it names another
manifest after every change of the files, and no file goes before that.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rocksdict import AccessType, DBRecoveryMode, Options, Rdict

from qilbee_core.errors import NotFoundError, StorageError

__all__ = ["open_read_only"]

_PATIENCE_S = 10.0


def open_read_only(directory: Path, engine: Options, recovery_mode: Callable[[Path], DBRecoveryMode]) -> Rdict:
    """The database as it is now; later writes are not seen."""
    engine.set_max_open_files(-1)  # RocksDB opens all of them now
    with tempfile.TemporaryDirectory(prefix="qilbee-") as links, ExitStack() as held:
        for name, handle in _files_of_one_moment(directory, held).items():
            Path(links, name).symlink_to(f"/proc/self/fd/{handle}")
        engine.set_wal_recovery_mode(recovery_mode(Path(links)))
        return Rdict(links, engine, column_families={"default": engine}, access_type=AccessType.read_only())


def _files_of_one_moment(directory: Path, held: ExitStack) -> dict[str, int]:
    """Name and descriptor of each file; ``held`` closes them."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        current = _current(directory)
        with ExitStack() as opened:
            found: dict[str, int] = {}
            try:
                for name in os.listdir(directory):
                    if name == "CURRENT" or name.endswith((".sst", ".log")) or name.startswith("MANIFEST-"):
                        found[name] = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
                        opened.callback(os.close, found[name])
            except FileNotFoundError:
                continue
            if _current(directory) == current:
                held.enter_context(opened.pop_all())
                return found
    raise StorageError(f"the files of {directory} change all the time", remedy="try again")


def _current(directory: Path) -> bytes:
    try:
        return (directory / "CURRENT").read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no database in {directory} yet", remedy="open it for writing first") from None
