"""What is kept in the store of an encoder's vectors: one for each episode, and a cursor that says how far they go.

A vector that is there is always that of its episode as it is, since whatever changes or removes an episode removes its
vectors in the same batch. Vectors are made anew of the episodes, at the price of asking the encoder.
"""

from __future__ import annotations

from zlib import crc32

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import CorruptRecordError
from qilbee_core.keys import AgentKeys
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.terms import NO_ID
from qilbee_core.search.analysis import text_of

__all__ = [
    "VectorCursor",
    "decode_vector_cursor",
    "encoded_text",
    "is_vector_of",
    "open_vector",
    "seal_vector",
    "vector_cursor_key",
]

_CRC_BYTES = 4


class VectorCursor(Struct, frozen=True, array_like=True):
    """Every episode has its vector, but for those that the change log names behind this place."""

    generation: int
    sequence: int

    def encode(self, key: bytes) -> bytes:
        """The framed bytes to store under ``key``."""
        return frame(key, _encode(self))


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(VectorCursor)


def vector_cursor_key(keys: AgentKeys, model: int) -> bytes:
    """Key of the cursor of a model's vectors of an agent: before them all."""
    return keys.vector(model, NO_ID)


def decode_vector_cursor(key: bytes, value: bytes) -> VectorCursor:
    """The cursor stored under ``key``, or CorruptRecordError."""
    try:
        return _decoder.decode(unframe(key, value))
    except msgspec.DecodeError as error:
        raise CorruptRecordError(f"cursor {key.hex()} cannot be read: {error}") from error


def encoded_text(document: EpisodeDocument) -> str:
    """What an encoder is given of an episode: who speaks, where that is known, and all there is to read."""
    text, speaker = text_of(document.content).strip(), document.metadata.get("speaker")
    return f"{speaker}: {text}" if text and isinstance(speaker, str) and speaker else text


def seal_vector(key: bytes, text: str, vector: NDArray[np.int8] | None) -> bytes:
    """The framed bytes to store under ``key``, bound to the text; without a vector where there is no text."""
    return frame(key, _crc_of(text) + (b"" if vector is None else vector.tobytes()))


def open_vector(key: bytes, value: bytes, dimensions: int) -> NDArray[np.int8]:
    """The vector stored under ``key``, zeros where there was no text; or CorruptRecordError."""
    payload = unframe(key, value)
    if len(payload) == _CRC_BYTES:
        return np.zeros(dimensions, np.int8)
    if len(payload) != _CRC_BYTES + dimensions:
        raise CorruptRecordError(f"vector {key.hex()} is not of {dimensions} numbers", remedy="repair()")
    return np.frombuffer(payload, np.int8, offset=_CRC_BYTES)


def is_vector_of(key: bytes, value: bytes, dimensions: int, text: str) -> bool:
    """Whether a value is a vector of the right form, and of this text."""
    try:
        open_vector(key, value, dimensions)
    except CorruptRecordError:
        return False
    return value[:_CRC_BYTES] == _crc_of(text)


def _crc_of(text: str) -> bytes:
    return crc32(text.encode()).to_bytes(_CRC_BYTES, "big")
