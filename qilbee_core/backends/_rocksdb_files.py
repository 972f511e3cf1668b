"""Rewriting and copying the files of an open RocksDB database."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rocksdict import BottommostLevelCompaction, Checkpoint, CompactOptions, Rdict

from qilbee_core.backends._rocksdb_errors import reraise
from qilbee_core.directory import fsync_directory
from qilbee_core.errors import StorageError

__all__ = ["checkpoint", "compact", "no_automatic_compaction", "obsolete_files"]


def compact(database: Rdict, start: bytes, stop: bytes | None, *, forced: bool) -> None:
    """Rewrite the files that overlap the range. Returns all the same if cancelled.

    ``forced``: also those on the lowest level over which there is nothing, so nothing that deletes any of theirs.
    """
    options = CompactOptions()
    if forced:
        options.set_bottommost_level_compaction(BottommostLevelCompaction.force())
    try:
        errors = database.property_int_value("rocksdb.background-errors")
        database.compact_range(start, stop, options)
        # It says nothing of a failure, for one over a damaged block.
        if database.property_int_value("rocksdb.background-errors") != errors:
            database.flush()  # which raises what is wrong, unless RocksDB got over it meanwhile
            raise StorageError("a compaction failed", remedy="try again")
    except Exception as error:
        reraise(error)


@contextmanager
def no_automatic_compaction(database: Rdict) -> Iterator[None]:
    """Keep RocksDB from compacting by itself.

    A compaction of its own that runs beside a forced one may carry bytes to a level below those which the forced one
    found files on when it began.
    """
    try:
        database.set_options({"disable_auto_compactions": "true"})
        try:
            while database.property_int_value("rocksdb.num-running-compactions"):
                time.sleep(0.001)
            yield
        finally:
            database.set_options({"disable_auto_compactions": "false"})
    except Exception as error:
        reraise(error)


def obsolete_files(database: Rdict, directory: Path) -> set[str]:
    """The files that RocksDB no longer needs and has not deleted, together with those it is still writing."""
    try:
        needed = {file["name"].lstrip("/") for file in database.live_files()}
        log_min = database.property_int_value("rocksdb.min-log-number-to-keep") or 0
        needed.add((directory / "CURRENT").read_text().strip())
        names = os.listdir(directory)
    except Exception as error:
        reraise(error)
    logs = {name for name in names if name.endswith(".log") and int(name[:-4]) < log_min}
    return logs | {name for name in names if name.endswith(".sst") or name.startswith("MANIFEST-")} - needed


def checkpoint(database: Rdict, target: Path, name: str) -> None:
    """Link or copy the files to ``target / name``; ``target`` appears whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        try:
            Checkpoint(database).create_checkpoint(str(scratch / name))
            fsync_directory(scratch)
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        fsync_directory(target.parent)
    except Exception as error:
        reraise(error)
