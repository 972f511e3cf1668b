"""What search keeps of an agent in the store: a row for each episode, and a cursor that says how far they go.

Rows and cursor are derived and lie side by side, the cursor first, under an id that no episode has: one scan gives both
as of one moment. A row that is there is always right, since whatever changes or removes an episode removes its row in
the same batch. A row that is missing is either still to be made, which the cursor tells, or has been lost.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import CorruptRecordError
from qilbee_core.keys import AgentKeys
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.resident import Position
from qilbee_core.search.analysis import ANALYSER_VERSION, Analyser
from qilbee_core.search.rows import Row, decode_row, encode_row, row_of

__all__ = ["NO_ID", "Cursor", "cursor_key", "decode_cursor", "open_row", "row_key", "row_of_document", "seal_row"]

NO_ID = bytes(16)
"""Before every id."""


class Cursor(Struct, frozen=True, array_like=True):
    """Up to where the rows of an agent go: fields by position, only ever appended.

    ``generation``  of the head that the rest is about
    ``sequence``    the entries of the change log up to this one are covered
    ``done``        and so many of the ids that the next entry names
    ``language``    of the analyser that made the rows
    ``built``       None; or while all rows are made anew, the highest id that has its row
    """

    generation: int
    sequence: int
    done: int
    language: str
    built: bytes | None = None

    def encode(self, key: bytes) -> bytes:
        """The framed bytes to store under ``key``."""
        return frame(key, _encode(self))

    def holds(self, position: Position, language: str) -> bool:
        """Whether the log leads on from here; else all rows are to be made anew."""
        return (
            self.generation == position.generation
            and position.trimmed <= self.sequence <= position.sequence
            and self.language == language
        )


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Cursor)


def cursor_key(keys: AgentKeys) -> bytes:
    """Key of the cursor of an agent."""
    return keys.row(ANALYSER_VERSION, NO_ID)


def row_key(keys: AgentKeys, id_bytes: bytes) -> bytes:
    """Key of the row of an episode."""
    return keys.row(ANALYSER_VERSION, id_bytes)


def decode_cursor(key: bytes, value: bytes) -> Cursor:
    """The cursor stored under ``key``, or CorruptRecordError."""
    try:
        return _decoder.decode(unframe(key, value))
    except msgspec.DecodeError as error:
        raise CorruptRecordError(f"cursor {key.hex()} cannot be read: {error}") from error


def row_of_document(agent_id: str, id_bytes: bytes, document: EpisodeDocument, analyser: Analyser) -> Row:
    """The row of a stored episode."""
    return row_of(document.episode(agent_id, id_bytes, 0.0), analyser)


def seal_row(key: bytes, row: Row) -> bytes:
    """The framed bytes to store under ``key``."""
    return frame(key, encode_row(row))


def open_row(key: bytes, value: bytes) -> Row:
    """The row stored under ``key``, or a DataError."""
    return decode_row(unframe(key, value))
