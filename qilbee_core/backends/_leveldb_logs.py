"""LevelDB's write-ahead logs after a power cut, cut back to a prefix before LevelDB reads them.

Pages that were not synced reach the disk in any order or not at all, and those that do not read as
zeros. LevelDB does not mind what is missing: it goes on behind a lost page where it can, or with the
next log where the end of one is lost, and shows later batches without earlier ones. Where it cannot go
on it refuses to open, though only batches are missing that nobody was promised.

Every batch carries its sequence number, so a hole can be seen. What follows one is removed; a batch
that was synced is never among it, unless the disk lied. Any other damage is left for LevelDB to refuse.

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
from pathlib import Path

from qilbee_core.directory import fsync_directory

__all__ = ["cut_to_prefix", "first_sequence", "logs_in"]

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


def cut_to_prefix(directory: Path) -> None:
    """Remove from the logs of ``directory`` what follows the first hole in the row of batches."""
    with (directory / "LOCK").open("ab") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # Another program is writing them. LevelDB refuses to open then.
        _cut_to_prefix(directory)


def _cut_to_prefix(directory: Path) -> None:
    current = _current_state(directory)
    if current is None:
        return
    oldest, sequence = current
    logs = [path for path in logs_in(directory) if _number_of(path) >= oldest]
    for index, path in enumerate(logs):
        content = path.read_bytes()
        whole, sequence, then = _read(content, sequence)
        if then == "damage":
            return
        if then == "hole":
            newer = logs[index + 1 :]
            lost = len(content) - whole + sum(other.stat().st_size for other in newer)
            log.warning("%s: a power cut left a hole in the log; the %d bytes behind it are removed", directory, lost)
            for other in reversed(newer):
                other.unlink()
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
            fsync_directory(directory)
            return


def _number_of(path: Path) -> int:
    return int(path.stem)


def _read(content: bytes, sequence: int) -> tuple[int, int, str]:
    """Where the whole batches that follow ``sequence`` end, the number of the last operation, and what comes then.

    That is the ``end``, which may be torn, or a ``hole``, or other ``damage``.
    """
    zeros = _zeros(content)
    at = whole = 0
    begun: int | None = None
    head = b""
    for start, end, kind in _fragments(content):
        if zeros and _overlap(zeros, start, end) and not _is_intact(content, start):
            return whole, sequence, "hole"
        payload = content[start + _FRAGMENT.size : min(end, start + _FRAGMENT.size + _BATCH.size)]
        if kind in {_WHOLE, _FIRST} or begun is None:
            begun, head = start, payload
        else:
            head += payload
        if kind in {_WHOLE, _LAST}:
            if len(head) < _BATCH.size:
                return whole, sequence, "damage"
            first, count = _BATCH.unpack(head[: _BATCH.size])
            if first > sequence + 1:
                return whole, sequence, "hole" if _is_intact(content, begun) else "damage"
            sequence = max(sequence, first + count - 1)
            whole, begun = end, None
        at = end
    if _BLOCK_BYTES - at % _BLOCK_BYTES < _FRAGMENT.size:
        at += _BLOCK_BYTES - at % _BLOCK_BYTES
    rest = content[at:]
    if len(rest) < _FRAGMENT.size:
        return whole, sequence, "end"
    if _overlap(zeros, at, at + _FRAGMENT.size):
        # LevelDB passes over zeros, unless a batch should go on there.
        return whole, sequence, "end" if begun is None and not any(rest) else "hole"
    _, length, kind = _FRAGMENT.unpack_from(rest)
    torn = _WHOLE <= kind <= _LAST and at % _BLOCK_BYTES + _FRAGMENT.size + length <= _BLOCK_BYTES
    return whole, sequence, "end" if torn else "damage"


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
