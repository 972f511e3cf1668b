"""Snappy: fast both ways."""

from __future__ import annotations

import snappy  # type: ignore[import-untyped]

from qilbee_core.errors import CorruptRecordError

__all__ = ["SnappyCodec"]


class SnappyCodec:
    """Snappy in its raw format: the decoded length as a varint, then the elements.

    >>> codec = SnappyCodec()
    >>> codec.decode(codec.encode(b"tea, " * 100), 500) == b"tea, " * 100
    True
    """

    name = "snappy"

    def encode(self, data: bytes) -> bytes:
        """One raw Snappy stream."""
        encoded: bytes = snappy.compress(data)
        return encoded

    def decode(self, data: bytes, size: int) -> bytes:
        """The ``size`` bytes of one raw Snappy stream."""
        # The library allocates whatever length the data declare, so they must declare ours.
        if not data.startswith(_varint(size)):
            raise CorruptRecordError(f"the Snappy stream does not declare {size} bytes")
        try:
            decoded: bytes = snappy.uncompress(data)
        except snappy.UncompressError as error:
            raise CorruptRecordError(f"not a Snappy stream of {size} bytes: {error}") from error
        return decoded


def _varint(number: int) -> bytes:
    """``number`` in groups of seven bits, lowest first, the top bit set on all but the last.

    >>> _varint(300).hex()
    'ac02'
    """
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
