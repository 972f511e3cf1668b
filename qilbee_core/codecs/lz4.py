"""LZ4 blocks: the fastest to decode."""

from __future__ import annotations

import lz4.block  # type: ignore[import-untyped]

from qilbee_core.errors import CorruptRecordError

__all__ = ["Lz4Codec"]


class Lz4Codec:
    """LZ4 in its block format, without the length prefix of the Python binding.

    The envelope knows the length already, and a prefix would be a second one that could lie.

    >>> codec = Lz4Codec()
    >>> codec.decode(codec.encode(b"tea, " * 100), 500) == b"tea, " * 100
    True
    """

    name = "lz4"

    def encode(self, data: bytes) -> bytes:
        """One LZ4 block."""
        block: bytes = lz4.block.compress(data, store_size=False)
        return block

    def decode(self, data: bytes, size: int) -> bytes:
        """The ``size`` bytes of one LZ4 block, decoded into a buffer of that size."""
        try:
            decoded: bytes = lz4.block.decompress(data, uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise CorruptRecordError(f"not an LZ4 block of {size} bytes: {error}") from error
        if len(decoded) != size:
            raise CorruptRecordError(f"the LZ4 block holds {len(decoded)} bytes, not {size}")
        return decoded
