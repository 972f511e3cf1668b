"""The marker of a data directory: whose it is, and which engine holds it.

It is the first file of a store. A directory without one, and with anything else in it, is a stranger's.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
from pathlib import Path

import msgspec
from msgspec import Struct

from qilbee_core.catalog import LAYOUT_VERSION
from qilbee_core.directory import fsync_directory
from qilbee_core.errors import (
    FormatVersionError,
    NotFoundError,
    QilbeeError,
    SettingsError,
    StorageError,
    StorageFullError,
)

__all__ = ["MARKER_NAME", "claim", "directory_error", "unclaim"]

log = logging.getLogger(__name__)

MARKER_NAME = "qilbee.json"
_DEFAULT_BACKEND = "rocksdb"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class _Marker(Struct, frozen=True):
    """What ``qilbee.json`` in a data directory says: whose it is, and which engine holds it."""

    format: str
    layout: int
    backend: str


def claim(directory: Path, wanted: str | None, *, create: bool) -> tuple[str, bool]:
    """Make sure that ``directory`` is a store of ours, or ``create`` one; gives its engine, and whether it is new.

    The marker comes first: a directory that has it, and nothing else yet, is a store about to be made.
    """
    str(directory.absolute()).encode()  # RocksDB opens no path that is not UTF-8, and no log could name it
    marker_path = directory / MARKER_NAME
    is_new = not marker_path.exists()
    if is_new and not create:
        raise NotFoundError(f"there is no store in {directory}", remedy="check the path; open_store() makes one")
    if is_new:
        missing = [each for each in (directory, *directory.parents) if not each.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in missing:
            fsync_directory(each.parent)
        _write_marker(directory, marker_path, wanted or _DEFAULT_BACKEND)
    if (mode := stat.S_IMODE(directory.stat().st_mode)) & 0o077:
        log.warning("%s has mode %03o: other users may look into what agents remember; chmod 700 it", directory, mode)
    try:
        marker = msgspec.json.decode(marker_path.read_bytes(), type=_Marker)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatVersionError(
            f"{marker_path} cannot be read: {error}", remedy="restore it from a copy, or open another directory"
        ) from error
    if marker.format != "qilbee-store" or marker.layout > LAYOUT_VERSION:
        raise FormatVersionError(
            f"{directory} is a {marker.format} of layout {marker.layout}, this release knows {LAYOUT_VERSION}",
            remedy="upgrade qilbee-core",
        )
    if wanted not in (None, marker.backend):
        raise SettingsError(
            f"{directory} was made with backend {marker.backend!r}, not {wanted!r}",
            remedy=f"leave backend out or give {marker.backend!r}; another engine needs another directory",
        )
    return marker.backend, is_new


def unclaim(directory: Path) -> None:
    """Take the claim back: of a store that could not be made."""
    (directory / MARKER_NAME).unlink(missing_ok=True)


def _write_marker(directory: Path, marker_path: Path, backend: str) -> None:
    temporary = directory / f".{MARKER_NAME}.{os.getpid()}.{threading.get_ident()}"
    strangers = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith(f".{MARKER_NAME}"))
    if marker_path.exists():
        return  # another process makes the same store at this moment
    if strangers:
        raise FormatVersionError(
            f"{directory} is not a store: it holds {', '.join(strangers[:3])}"
            + (f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""),
            remedy="name an empty or a new directory",
        )
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(_Marker("qilbee-store", LAYOUT_VERSION, backend)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    # A link, not a rename: of two who make a store at once the second reads what the first has said.
    try:
        marker_path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_if_first(temporary, marker_path)
    temporary.unlink(missing_ok=True)
    fsync_directory(directory)


def _rename_if_first(temporary: Path, marker_path: Path) -> None:
    """What a hard link does, on a file system without them."""
    handle = os.open(marker_path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not marker_path.exists():
            temporary.rename(marker_path)
    finally:
        os.close(handle)


def directory_error(directory: Path, error: OSError | UnicodeError) -> QilbeeError:
    """What an operation on a data directory could not do, as an error that names the remedy."""
    if isinstance(error, UnicodeError):  # a message of the path as it is could not be shown
        return SettingsError(f"the path {str(directory)!a} is not UTF-8: {error}", remedy="name another directory")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"no space for {directory}: {error.strerror}")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return FormatVersionError(f"{directory} is not a directory", remedy="name a directory")
    if error.errno == errno.ENAMETOOLONG:
        return SettingsError(f"the path of {len(str(directory))} characters is too long", remedy="name a shorter one")
    return StorageError(
        f"cannot use {directory}: {error.strerror}",
        remedy=f"make it a directory that user {os.getuid()} may read and write",
    )
