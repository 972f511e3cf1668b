"""The serializer ``cbor``, by name once this package is installed: ``serializer = "cbor"``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from types import NoneType
from typing import Any

import cbor2

from qilbee_core import CorruptRecordError, Document, Provider, Serializer, hookimpl

__all__ = ["CborSerializer", "qilbee_register_serializers"]

_SCALARS = (NoneType, bool, float, str)
_INTEGERS = range(-(1 << 63), 1 << 64)


@hookimpl
def qilbee_register_serializers() -> Iterable[Provider[Serializer]]:
    """The serializer ``cbor``."""
    return [Provider("cbor", CborSerializer, "RFC 8949, read by many other tools")]


class _NoTags(dict[int, Callable[..., Any]]):
    """No tag is decoded: JSON has nothing of their kind, and those for sharing make bombs and cycles."""

    def __missing__(self, tag: int) -> Callable[..., Any]:
        raise ValueError(f"tag {tag}")


_NO_TAGS = _NoTags()


class CborSerializer:
    """Documents as CBOR.

    >>> serializer = CborSerializer()
    >>> serializer.loads(serializer.dumps(["note", {"text": "likes tea"}, 1.0]))
    ['note', {'text': 'likes tea'}, 1.0]
    """

    name = "cbor"

    def dumps(self, document: Document) -> bytes:
        """The CBOR of ``document``; UnicodeEncodeError for lone surrogates."""
        return cbor2.dumps(document)

    def loads(self, data: bytes) -> Document:
        """The document of ``data``."""
        file = BytesIO(data)
        try:
            document = cbor2.CBORDecoder(file, semantic_decoders=_NO_TAGS).decode()
        except (cbor2.CBORDecodeError, ValueError, RecursionError) as error:
            raise CorruptRecordError(f"not a document in CBOR: {error}") from error
        if file.tell() != len(data):
            raise CorruptRecordError("a document in CBOR with bytes after its end")
        if type(document) is not list:
            raise CorruptRecordError(f"a {type(document).__name__} in CBOR, not a document")
        _refuse_what_json_has_not(document)
        return document


def _refuse_what_json_has_not(document: Document) -> None:
    found: list[Any] = [document]
    for value in found:  # which grows meanwhile: depth costs no stack
        if type(value) is list:
            found.extend(value)
        elif type(value) is dict:
            found.extend(value.values())
            if not all(type(key) is str for key in value):
                raise CorruptRecordError("a document in CBOR with a key that is not text")
        elif type(value) is int:
            if value not in _INTEGERS:
                raise CorruptRecordError("a document in CBOR with an integer beyond 64 bits")
        elif type(value) not in _SCALARS:
            raise CorruptRecordError(f"a document in CBOR with a {type(value).__name__}")
