"""The forward row of an episode: all that search keeps of it. It is what a store writes under Space.TERMS.

An array of MessagePack, fields only ever appended::

    version        ANALYSER_VERSION
    episode type   0 conversation, 1 observation, 2 action; else its name
    memory type    its position in MEMORY_TYPES
    session        metadata["session_id"] as text; nil where there is none
    turns          two for a conversation, else one; each an array of
        speaker    nil where nobody is named
        said       numbers of shipped words, sorted, one for each time a word was said: each as what it is more than
                   the one before, in groups of seven bits, the low ones first; the high bit says that more follow
        asked      the same for sentences that end with a question mark
        rare said  words that are not among the shipped ones, sorted, with a space between them
        rare asked

The words are not stemmed, and neither counted nor weighed: all that follows from them is made anew at each opening.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qilbee_core.episode import MEMORY_TYPES, Episode
from qilbee_core.errors import CorruptRecordError, FormatVersionError
from qilbee_core.search.analysis import ANALYSER_VERSION, Analyser, Said, turns_of
from qilbee_core.search.table import numbers_of_words

__all__ = ["EPISODE_TYPES", "Row", "Turn", "decode_row", "encode_row", "pack", "row_of", "unpack", "unpack_all"]

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
        return pack(known), ""
    rare = sorted([word for word, number in zip(words, numbers, strict=True) if number is None])
    return pack(known), " ".join(rare)


def pack(numbers: Iterable[int]) -> bytes:
    """Sorted numbers of words as bytes.

    >>> pack([5, 5, 200, 20000]).hex()
    '0500c301d89a01'
    """
    packed = bytearray()
    before = 0
    for number in numbers:
        more, before = number - before, number
        while more >= 0x80:
            packed.append(more & 0x7F | 0x80)
            more >>= 7
        packed.append(more)
    return bytes(packed)


def unpack(packed: bytes) -> list[int]:
    """The numbers that :func:`pack` was given.

    >>> unpack(bytes.fromhex("0500c301d89a01"))
    [5, 5, 200, 20000]
    """
    numbers = []
    number = more = shift = 0
    for byte in packed:
        if byte >= 0x80:
            more |= (byte & 0x7F) << shift
            shift += 7
        else:
            number += more | byte << shift
            numbers.append(number)
            more = shift = 0
    return numbers


def unpack_all(packed: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """:func:`unpack` of many at once: how many numbers are in each, and all of them.

    >>> [array.tolist() for array in unpack_all([pack([7, 300]), b"", pack([2])])]
    [[2, 0, 1], [7, 300, 2]]
    """
    data = np.frombuffer(b"".join(packed), np.uint8).astype(np.int64)
    (ends,) = np.nonzero(data < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    more = data[starts] & 0x7F
    for place in range(1, int((ends - starts).max(initial=0)) + 1):
        (longer,) = np.nonzero(ends - starts >= place)
        more[longer] |= (data[starts[longer] + place] & 0x7F) << 7 * place
    cuts = np.cumsum([0, *map(len, packed)])
    first = np.searchsorted(ends, cuts)
    sums = np.concatenate([[0], np.cumsum(more)])
    counts = np.diff(first)
    return counts, sums[1:] - np.repeat(sums[first[:-1]], counts)


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
