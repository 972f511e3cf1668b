"""No compression: the bytes as they are."""

from __future__ import annotations

from qilbee_core.errors import CorruptRecordError

__all__ = ["NoneCodec"]


class NoneCodec:
    """Gives back what it is given; decoding still refuses a length that is not the one written down.

    >>> NoneCodec().decode(b"as it is", 8)
    b'as it is'
    """

    name = "none"

    def encode(self, data: bytes) -> bytes:
        """``data`` itself."""
        return data

    def decode(self, data: bytes, size: int) -> bytes:
        """``data`` itself, where it is ``size`` bytes long."""
        if len(data) != size:
            raise CorruptRecordError(f"the value has {len(data)} bytes, not {size}")
        return data
