"""Conversations in a file of JSON lines: what ``qilbee quickstart`` reads.

Each line is one object, an exchange between a user and an agent::

    {"agent_id": "support", "user_input": "Where is my order?", "agent_response": "On its way.",
     "event_time": "2026-03-02T09:14:05Z", "metadata": {"user": "Maren"}}

``event_time`` and ``metadata`` may be left out. A line stands for the same episode however often it is
read: one with an event time by what it says, one without by what it says and its number.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from datetime import datetime
from hashlib import blake2b
from typing import BinaryIO, NamedTuple, cast

import msgspec
from msgspec import Struct

from qilbee_core.episode import Episode, JSONObject
from qilbee_core.errors import InvalidError
from qilbee_core.ids import draw_id, format_id, us_of_datetime
from qilbee_core.keys import encode_agent_id
from qilbee_core.limits import METADATA_BYTES_MAX, check_episode, check_sizes

__all__ = ["Line", "read_lines"]

LINE_BYTES_MAX = 8 << 20
"""More than an episode of the largest size takes as JSON."""

_EXPECTED = (
    'expected one object a line with the texts "agent_id", "user_input" and "agent_response", '
    'and if you like "event_time" (as 2026-03-02T09:14:05Z) and "metadata" (an object)'
)
_TIE_BITS = 62  # of an id, what stands behind the event time


class Line(NamedTuple):
    """One line of the file, as the episode it stands for.

    ``idempotency_key`` is to be stored with it; None where the id says already which episode it is.
    """

    number: int
    end_byte: int
    episode: Episode
    idempotency_key: str | None


class _Conversation(Struct, forbid_unknown_fields=True):
    agent_id: str
    user_input: str
    agent_response: str
    event_time: datetime | None = None
    metadata: dict[str, object] = {}


_decoder = msgspec.json.Decoder(_Conversation)


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The conversations of ``file`` one by one; blank lines are passed over.

    InvalidError names the number of a line that is not one, and what was expected.

    >>> from io import BytesIO
    >>> text = b'{"agent_id": "bot", "user_input": "Hi", "agent_response": "Hello"}'
    >>> [(line.number, line.episode.agent_id) for line in read_lines(BytesIO(text))]
    [(1, 'bot')]
    >>> list(read_lines(BytesIO(text[:-1] + b', "mood": "good"}')))
    Traceback (most recent call last):
    ...
    qilbee_core.errors.InvalidError: line 1: Object contains unknown field `mood`: expected one object a line ...
    """
    number = end_byte = 0
    while text := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        end_byte += len(text)
        if number == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        if len(text) > LINE_BYTES_MAX:
            raise InvalidError(f"line {number} is longer than {LINE_BYTES_MAX} bytes", remedy=_EXPECTED)
        if text.strip():
            episode, idempotency_key = _parse(text, number)
            yield Line(number, end_byte, episode, idempotency_key)


def _parse(text: bytes, number: int) -> tuple[Episode, str | None]:
    try:
        given = _decoder.decode(text)
        said = [given.agent_id, given.user_input, given.agent_response, given.metadata]
        digest = blake2b(msgspec.json.encode(said, order="deterministic"), digest_size=16).digest()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"line {number}: {error}", remedy=_EXPECTED) from error
    try:
        encode_agent_id(given.agent_id)
        episode = Episode.conversation(
            given.agent_id,
            given.user_input,
            given.agent_response,
            metadata=cast("JSONObject", given.metadata),
            event_time=given.event_time,
            id=None if given.event_time is None else _id_of(given.event_time, digest),
        )
        check_episode(episode)
        if len(text) > METADATA_BYTES_MAX:
            check_sizes(episode.content, episode.metadata)
    except InvalidError as error:
        raise InvalidError(f"line {number}: {error.message}", remedy=error.remedy) from error
    return episode, f"line {number} {digest.hex()}" if given.event_time is None else None


def _id_of(event_time: datetime, digest: bytes) -> str:
    """The same id for the same event time and digest: what is drawn of an id comes from the digest."""
    drawn = int.from_bytes(draw_id(us_of_datetime(event_time)))
    tie = int.from_bytes(digest) & (1 << _TIE_BITS) - 1
    return format_id((drawn >> _TIE_BITS << _TIE_BITS | tie).to_bytes(16))
