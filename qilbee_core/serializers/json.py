"""JSON: readable by anything."""

from __future__ import annotations

import msgspec

from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import Document

__all__ = ["JsonSerializer"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list).decode


class JsonSerializer:
    """Documents as JSON.

    >>> serializer = JsonSerializer()
    >>> serializer.dumps(["note", {"text": "likes tea"}, 1.0])
    b'["note",{"text":"likes tea"},1.0]'
    """

    name = "json"

    def dumps(self, document: Document) -> bytes:
        """The JSON of ``document``; ValueError for NaN and infinity, UnicodeEncodeError for lone surrogates."""
        data = _encode(document)
        # msgspec writes NaN and infinity as null, silently: where there is a null, it must be one of ours.
        if b"null" in data and _decode(data) != document:
            raise ValueError("NaN and infinity have no JSON")
        return data

    def loads(self, data: bytes) -> Document:
        """The document of ``data``."""
        try:
            return _decode(data)
        except (ValueError, RecursionError) as error:
            raise CorruptRecordError(f"not a document in JSON: {error}") from error
