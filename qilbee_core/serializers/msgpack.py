"""MessagePack: compact, the default."""

from __future__ import annotations

from types import NoneType
from typing import Any

import msgspec

from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import Document

__all__ = ["MsgpackSerializer"]

_SCALARS = (NoneType, bool, int, float, str)
_SHALLOW = 6


def _json_type(depth: int) -> Any:
    """The type of JSON values with at most ``depth`` containers one in another."""
    scalar = None | bool | int | float | str
    if depth == 0:
        return scalar
    inner = _json_type(depth - 1)
    return scalar | list[inner] | dict[str, inner]  # type: ignore[valid-type]


_encode = msgspec.msgpack.Encoder().encode
# MessagePack has bytes, times, and keys that are not text, where JSON has none. A type that refuses them
# costs nothing, but has to end somewhere; what goes deeper is decoded without one and looked through.
_decode_shallow = msgspec.msgpack.Decoder(list[_json_type(_SHALLOW)]).decode  # type: ignore[misc]
_decode_deep = msgspec.msgpack.Decoder(list).decode


class MsgpackSerializer:
    """Documents as MessagePack.

    >>> serializer = MsgpackSerializer()
    >>> serializer.loads(serializer.dumps(["note", {"text": "likes tea"}, 1.0]))
    ['note', {'text': 'likes tea'}, 1.0]
    """

    name = "msgpack"

    def dumps(self, document: Document) -> bytes:
        """The MessagePack of ``document``; OverflowError beyond 64 bits, UnicodeEncodeError for lone surrogates."""
        return _encode(document)

    def loads(self, data: bytes) -> Document:
        """The document of ``data``."""
        try:
            document: Document = _decode_shallow(data)
        except (ValueError, RecursionError):
            return _loads_deep(data)
        return document


def _loads_deep(data: bytes) -> Document:
    try:
        document: Document = _decode_deep(data)
    except (ValueError, RecursionError) as error:
        raise CorruptRecordError(f"not a document in MessagePack: {error}") from error
    found: list[Any] = [document]
    for value in found:  # which grows meanwhile: depth costs no stack
        if type(value) is list:
            found.extend(value)
        elif type(value) is dict:
            found.extend(value.values())
            if not all(type(key) is str for key in value):
                raise CorruptRecordError("a document in MessagePack with a key that is not text")
        elif type(value) not in _SCALARS:
            raise CorruptRecordError(f"a document in MessagePack with a {type(value).__name__}")
    return document
