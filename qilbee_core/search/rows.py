"""The forward row of an episode: all that search keeps of it. It is what a store writes under Space.TERMS.

An array of MessagePack, fields only ever appended::

    version        ANALYSER_VERSION
    episode type   0 conversation, 1 observation, 2 action; else its name
    memory type    its position in MEMORY_TYPES
    session        metadata["session_id"] as text; nil where there is none
    turns          two for a conversation, else one; each an array of
        speaker    nil where nobody is named
        said       16-bit little-endian numbers of shipped words, sorted, one for each time a word was said
        asked      the same for sentences that end with a question mark
        rare said  words that are not among the shipped ones, sorted, with a space between them
        rare asked

The words are not stemmed, and neither counted nor weighed: all that follows from them is made anew at each opening.
"""

from __future__ import annotations

import struct

import msgspec
from msgspec import Struct

from qilbee_core.episode import MEMORY_TYPES, Episode
from qilbee_core.errors import CorruptRecordError, FormatVersionError
from qilbee_core.search.analysis import ANALYSER_VERSION, Analyser, Said, turns_of
from qilbee_core.search.table import numbers_of_words

__all__ = ["EPISODE_TYPES", "Row", "Turn", "decode_row", "encode_row", "row_of"]

EPISODE_TYPES = ("conversation", "observation", "action")
_NUMBERS_OF_TYPES = {name: number for number, name in enumerate(EPISODE_TYPES)}


class Turn(Struct, array_like=True, frozen=True, gc=False):
    """What one speaker said at one time."""

    speaker: str | None
    said: bytes
    asked: bytes
    rare_said: str
    rare_asked: str


class Row(Struct, array_like=True, frozen=True, gc=False):
    """An episode as search knows it."""

    version: int
    episode_type: int | str
    memory_type: int
    session: str | None
    turns: list[Turn]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Row).decode


def row_of(episode: Episode, language: Analyser) -> Row:
    """The row of an episode."""
    session = episode.metadata.get("session_id")
    kind = episode.episode_type
    return Row(
        ANALYSER_VERSION,
        _NUMBERS_OF_TYPES.get(kind, kind),
        MEMORY_TYPES.index(episode.memory_type),
        str(session)
        if isinstance(session, str | int | float) and type(session) is not bool and session != ""
        else None,
        [_turn(each) for each in turns_of(episode, language)],
    )


def _turn(said: Said) -> Turn:
    numbers, rare = _numbered(said.said)
    numbers_asked, rare_asked = _numbered(said.asked) if said.asked else (b"", "")
    return Turn(said.speaker, numbers, numbers_asked, rare, rare_asked)


def _numbered(words: list[str]) -> tuple[bytes, str]:
    numbers = list(map(numbers_of_words().get, words))
    known = sorted([number for number in numbers if number is not None])
    if len(known) == len(words):
        return struct.pack(f"<{len(known)}H", *known), ""
    rare = sorted([word for word, number in zip(words, numbers, strict=True) if number is None])
    return struct.pack(f"<{len(known)}H", *known), " ".join(rare)


def encode_row(row: Row) -> bytes:
    """The bytes of a row."""
    return _encode(row)


def decode_row(data: bytes) -> Row:
    """The row that :func:`encode_row` was given."""
    try:
        row = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptRecordError(f"a row of search terms cannot be read: {error}", remedy="repair()") from None
    if row.version != ANALYSER_VERSION:
        raise FormatVersionError(
            f"a row of search terms is of version {row.version}, this release reads {ANALYSER_VERSION}",
            remedy="repair() makes them anew",
        )
    return row
