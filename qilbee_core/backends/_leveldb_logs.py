"""LevelDB's write-ahead logs after a power cut or damage, cut back to a prefix before LevelDB reads them.

Pages that were not synced reach the disk in any order or not at all, and those that do not read as
zeros. LevelDB does not mind what is missing: it goes on behind a lost page where it can, or with the
next log where the end of one is lost, and shows later batches without earlier ones. Where it cannot go
on it refuses to open, though only batches are missing that nobody was promised.

Every batch carries its sequence number, so a hole can be seen. What follows one may be removed; a batch
that was synced is never among it, unless the disk lied. Of any other damage nobody knows that without being told
what was synced. LevelDB's own repair is of no use here: it keeps whatever it finds, in any order, and brings back
what was deleted.

A log is a row of blocks of 32 KiB, and a block a row of fragments, none of which crosses its end::

    4 bytes  masked crc32c of kind and payload, little endian as everything here
    2 bytes  length of the payload
    1 byte   kind: 1 a whole record, 2 its first fragment, 3 a middle one, 4 the last

The record of a log is a batch, which begins with the sequence number of its first operation (8 bytes)
and how many there are (4 bytes). That of a manifest is a change to what the database consists of.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from qilbee_core.directory import fsync_directory

__all__ = ["Logs", "cut", "examine", "first_sequence", "locked", "logs_in"]

log = logging.getLogger(__name__)

_BLOCK_BYTES = 32 << 10
_PAGE_BYTES = 4 << 10
_FRAGMENT = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_BATCH = struct.Struct("<QI")


def logs_in(directory: Path) -> list[Path]:
    """The write-ahead logs of the database in ``directory``, oldest first."""
    return sorted(directory.glob("*.log"), key=_number_of)


def first_sequence(path: Path) -> int:
    """The sequence number of the first batch of a log."""
    with path.open("rb") as file:
        number, _ = _BATCH.unpack(file.read(_FRAGMENT.size + _BATCH.size)[_FRAGMENT.size :])
    return int(number)


class Logs(NamedTuple):
    """What the logs of a database hold.

    ``sequence`` is the number of the last operation in the batches that are whole and follow each other, which
    end with the first ``bytes`` of the last of ``logs`` that is named, and ``then`` says what comes behind them:
    the end, which may be torn, a hole, or other damage. ``newer`` are logs behind that. ``is_empty`` says that there
    is no such batch: then ``sequence`` is what the manifest says, which is too much where a log is missing.
    """

    sequence: int
    is_empty: bool
    then: str
    log: Path | None
    bytes: int
    newer: list[Path]


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Keep other programs out of the database; False if one is in it, and LevelDB will refuse to open."""
    with (directory / "LOCK").open("ab") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def examine(directory: Path, *, checksums: bool = False) -> Logs | None:
    """What the logs of ``directory`` hold; None where its manifest cannot be read, and LevelDB says why.

    Without ``checksums`` (which take a second for each 10 MB) only the damage is seen that shows in the form.
    """
    current = _current_state(directory)
    if current is None:
        return None
    oldest, sequence = current
    reached: int | None = None  # unlike ``sequence``, it counts only what stands in the logs that are there
    logs = [path for path in logs_in(directory) if _number_of(path) >= oldest]
    for index, path in enumerate(logs):
        whole, sequence, reached, then = _read(path.read_bytes(), sequence, reached, checksums=checksums)
        if then != "end":
            newer = logs[index + 1 :]
            return Logs(sequence if reached is None else reached, reached is None, then, path, whole, newer)
    return Logs(sequence if reached is None else reached, reached is None, "end", None, 0, [])


def cut(directory: Path, logs: Logs) -> None:
    """Remove from the logs of ``directory`` what stands behind ``logs.sequence``."""
    if logs.log is None:
        return
    lost = logs.log.stat().st_size - logs.bytes + sum(other.stat().st_size for other in logs.newer)
    log.warning(
        "%s: %s in the log; what follows operation %d is dropped, %d bytes", directory, logs.then, logs.sequence, lost
    )
    for other in reversed(logs.newer):
        other.unlink()
    with logs.log.open("r+b") as file:
        file.truncate(logs.bytes)
        os.fsync(file.fileno())
    fsync_directory(directory)


def _number_of(path: Path) -> int:
    return int(path.stem)


def _read(content: bytes, sequence: int, reached: int | None, *, checksums: bool) -> tuple[int, int, int | None, str]:
    """Where the whole batches that follow ``sequence`` end, the number of the last operation, and what comes then.

    That is the ``end``, which may be torn, or a ``hole``, or other ``damage``.
    """
    zeros = _zeros(content)
    at = whole = 0
    begun: int | None = None
    head = b""
    for start, end, kind in _fragments(content):
        if zeros and _overlap(zeros, start, end) and not _is_intact(content, start):
            return whole, sequence, reached, "hole"
        if checksums and not _is_intact(content, start):
            return whole, sequence, reached, "damage"
        payload = content[start + _FRAGMENT.size : min(end, start + _FRAGMENT.size + _BATCH.size)]
        if kind in {_WHOLE, _FIRST} or begun is None:
            begun, head = start, payload
        else:
            head += payload
        if kind in {_WHOLE, _LAST}:
            if len(head) < _BATCH.size:
                return whole, sequence, reached, "damage"
            first, count = _BATCH.unpack(head[: _BATCH.size])
            if first > sequence + 1:
                return whole, sequence, reached, "hole" if _is_intact(content, begun) else "damage"
            reached = int(first + count - 1)
            sequence = max(sequence, reached)
            whole, begun = end, None
        at = end
    if _BLOCK_BYTES - at % _BLOCK_BYTES < _FRAGMENT.size:
        at += _BLOCK_BYTES - at % _BLOCK_BYTES
    rest = content[at:]
    if len(rest) < _FRAGMENT.size:
        return whole, sequence, reached, "end"
    if _overlap(zeros, at, at + _FRAGMENT.size):
        # LevelDB passes over zeros, unless a batch should go on there.
        return whole, sequence, reached, "end" if begun is None and not any(rest) else "hole"
    _, length, kind = _FRAGMENT.unpack_from(rest)
    torn = _WHOLE <= kind <= _LAST and at % _BLOCK_BYTES + _FRAGMENT.size + length <= _BLOCK_BYTES
    return whole, sequence, reached, "end" if torn else "damage"


def _fragments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, end and kind of each fragment, up to the first that is none."""
    size, at = len(content), 0
    while True:
        room = _BLOCK_BYTES - at % _BLOCK_BYTES
        if room < _FRAGMENT.size:  # Too little for another one: filled up with zeros.
            at += room
            room = _BLOCK_BYTES
        if at + _FRAGMENT.size > size:
            return
        _, length, kind = _FRAGMENT.unpack_from(content, at)
        end = at + _FRAGMENT.size + length
        if not _WHOLE <= kind <= _LAST or _FRAGMENT.size + length > room or end > size:
            return
        yield at, end, kind
        at = end


def _zeros(content: bytes) -> list[tuple[int, int]]:
    """Start and end of each page of zeros, and of the zeros at the end: where something may be lost."""
    page = bytes(_PAGE_BYTES)
    starts = range(0, len(content), _PAGE_BYTES)
    pages = [(start, start + _PAGE_BYTES) for start in starts if content.startswith(page, start)]
    written = len(content.rstrip(b"\0"))
    return pages if written == len(content) else [*pages, (written, len(content))]


def _overlap(ranges: list[tuple[int, int]], start: int, end: int) -> bool:
    return any(start < stop and begin < end for begin, stop in ranges)


def _is_intact(content: bytes, start: int) -> bool:
    """Whether the fragment at ``start`` is what was written."""
    masked, length, _ = _FRAGMENT.unpack_from(content, start)
    rotated: int = (masked - 0xA282EAD8) & 0xFFFFFFFF
    checksum = (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
    return _crc32c(content[start + _FRAGMENT.size - 1 : start + _FRAGMENT.size + length]) == checksum


def _crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def _current_state(directory: Path) -> tuple[int, int] | None:
    """The number of the oldest log that is not yet in tables, and the last sequence number that is known.

    None where the manifest cannot be read; LevelDB then says why.
    """
    try:
        manifest = (directory / (directory / "CURRENT").read_text().rstrip("\n")).read_bytes()
        oldest = sequence = 0
        record = b""
        for start, end, kind in _fragments(manifest):
            payload = manifest[start + _FRAGMENT.size : end]
            record = payload if kind in {_WHOLE, _FIRST} else record + payload
            if kind in {_WHOLE, _LAST}:
                changes = dict(_numbers_of(record))
                oldest, sequence = changes.get(2, oldest), changes.get(4, sequence)
    except (OSError, ValueError, LookupError):
        return None
    return oldest, sequence


def _numbers_of(record: bytes) -> Iterator[tuple[int, int]]:
    """The fields of a manifest's record that are one number, by tag: 2 oldest log, 4 last sequence number."""
    # What the other fields are made of: n a number, b counted bytes.
    forms = {1: "b", 2: "n", 3: "n", 4: "n", 5: "nb", 6: "nn", 7: "nnnbb", 9: "n"}
    at = 0
    while at < len(record):
        tag, at = _varint(record, at)
        number = 0
        for form in forms[tag]:
            number, at = _varint(record, at)
            if form == "b":
                at += number
        if forms[tag] == "n":
            yield tag, number


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
