"""The frames around stored values. docs/format.md is the record.

A record (a serialized, perhaps compressed document)::

    version | codec tag | dictionary id (varint) | serializer tag | raw size (varint) | body | crc32

A small fact of a fixed form (heads, changes, catalog entries)::

    payload | crc32

The CRC-32 (of zlib, 4 bytes, big-endian) covers the key and everything before it: a good value under
the wrong key is caught too.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

from qilbee_core.errors import CorruptRecordError, FormatVersionError

__all__ = ["ENVELOPE_VERSION", "RECORD_BYTES_MAX", "Envelope", "frame", "header", "seal", "unframe", "unseal", "varint"]

ENVELOPE_VERSION = 1
RECORD_BYTES_MAX = 16 << 20
"""The most a document may take before compression."""


class Envelope(NamedTuple):
    """What a record says about its body."""

    codec_tag: int
    dictionary_id: int
    serializer_tag: int
    raw_bytes: int
    body: bytes


def varint(number: int) -> bytes:
    """Little-endian groups of seven bits; the high bit says that more follow.

    >>> varint(300).hex()
    'ac02'
    """
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def header(envelope: Envelope) -> bytes:
    """What stands before the body."""
    return (
        bytes((ENVELOPE_VERSION, envelope.codec_tag))
        + varint(envelope.dictionary_id)
        + bytes((envelope.serializer_tag,))
        + varint(envelope.raw_bytes)
    )


def seal(key: bytes, envelope: Envelope) -> bytes:
    """The bytes to store under ``key``.

    >>> seal(b"k", Envelope(0, 0, 1, 2, b"hi")).hex()
    '010000010268696ca6e368'
    """
    return frame(key, header(envelope) + envelope.body)


def unseal(key: bytes, value: bytes) -> tuple[int, int, int, int, bytes]:
    """The fields of the :class:`Envelope` that :func:`seal` was given, or CorruptRecordError.

    The raw size is within bounds.
    """
    version = value[0] if value else 0
    if version > ENVELOPE_VERSION:
        # Only a whole record may say so: a flipped bit must not read as a newer release.
        unframe(key, value)
        raise FormatVersionError(f"record {key.hex()} has envelope version {version}, this release reads 1")
    if len(value) < 9 or crc32(value[:-4], crc32(key)) != int.from_bytes(value[-4:], "big"):
        raise CorruptRecordError(f"record {key.hex()} does not match its checksum")
    try:
        if (dictionary_id := value[2]) < 0x80 <= value[4] and value[5] < 0x80:
            # The usual case, spelt out: no or a first dictionary, and 128 to 16,383 bytes.
            serializer_tag, raw_bytes, at = value[3], value[4] & 0x7F | value[5] << 7, 6
        else:
            dictionary_id, at = _read_varint(value, 2)
            serializer_tag = value[at]
            raw_bytes, at = _read_varint(value, at + 1)
    except IndexError:
        raise CorruptRecordError(f"record {key.hex()} ends within its header") from None
    if at > len(value) - 4:
        raise CorruptRecordError(f"record {key.hex()} ends within its header")
    if raw_bytes > RECORD_BYTES_MAX or version != ENVELOPE_VERSION:
        raise CorruptRecordError(f"record {key.hex()} claims version {version} and {raw_bytes} bytes")
    return value[1], dictionary_id, serializer_tag, raw_bytes, value[at:-4]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = data[at]
    if number < 0x80:
        return number, at + 1
    number &= 0x7F
    shift = 7
    while True:
        at += 1
        group = data[at]
        number |= (group & 0x7F) << shift
        if group < 0x80:
            return number, at + 1
        shift += 7


def frame(key: bytes, payload: bytes) -> bytes:
    """``payload`` with the checksum that binds it to ``key``."""
    return payload + crc32(payload, crc32(key)).to_bytes(4, "big")


def unframe(key: bytes, value: bytes) -> bytes:
    """What :func:`frame` was given, or CorruptRecordError."""
    payload = value[:-4]
    if len(value) < 4 or crc32(payload, crc32(key)) != int.from_bytes(value[-4:], "big"):
        raise CorruptRecordError(f"value of {key.hex()} does not match its checksum")
    return payload
