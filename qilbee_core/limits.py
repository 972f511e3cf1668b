"""The bounds of everything a caller may hand in, and the check at the door of the store.

Content and metadata are JSON values and come back equal, so what JSON cannot say is refused here,
with the path to it, before anything is written.
"""

from __future__ import annotations

import math

import msgspec

from qilbee_core.episode import JSON, MEMORY_TYPES, Episode, JSONObject
from qilbee_core.errors import InvalidError

__all__ = [
    "BATCH_BYTES_MAX",
    "BATCH_EPISODES_MAX",
    "CONTENT_BYTES_MAX",
    "EPISODE_TYPES_MAX",
    "EPISODE_TYPE_BYTES_MAX",
    "IDEMPOTENCY_KEY_BYTES_MAX",
    "JSON_DEPTH_MAX",
    "JSON_KEYS_MAX",
    "LIMIT_MAX",
    "METADATA_BYTES_MAX",
    "check_episode",
    "check_limit",
    "check_object",
    "check_relevance",
    "check_text",
    "surrogate_error",
]

CONTENT_BYTES_MAX = 1 << 20
METADATA_BYTES_MAX = 64 << 10
JSON_DEPTH_MAX = 32
JSON_KEYS_MAX = 1000
"""Keys in all objects of one content or metadata together."""
EPISODE_TYPE_BYTES_MAX = 64
EPISODE_TYPES_MAX = 256
"""Different episode types of one agent, since statistics count each."""
IDEMPOTENCY_KEY_BYTES_MAX = 1024
LIMIT_MAX = 1000
BATCH_EPISODES_MAX = 1000
BATCH_BYTES_MAX = 32 << 20
_EPISODE_TYPES = frozenset({"conversation", "observation", "action"})
_MEMORY_TYPES = frozenset(MEMORY_TYPES)
_encode = msgspec.msgpack.Encoder().encode
_INTEGER_MIN, _INTEGER_MAX = -(1 << 63), (1 << 64) - 1


def check_limit(limit: int) -> None:
    """Refuse what is not a whole number from 1 to LIMIT_MAX."""
    if type(limit) is not int or not 1 <= limit <= LIMIT_MAX:
        raise InvalidError(f"limit is {limit!r}", remedy=f"give a whole number from 1 to {LIMIT_MAX}")


def check_text(value: object, name: str, bytes_max: int) -> None:
    """Refuse what is not text of 1 to ``bytes_max`` bytes."""
    try:
        length = len(value.encode()) if isinstance(value, str) else -1
    except UnicodeEncodeError:
        raise InvalidError(f"{name} holds a lone surrogate", remedy="replace it: it is not a character") from None
    if not 1 <= length <= bytes_max:
        shown = type(value).__name__ if length < 0 else f"{length} bytes long"
        raise InvalidError(f"{name} is {shown}", remedy=f"give text of 1 to {bytes_max} bytes")


def check_episode(episode: Episode) -> None:
    """Refuse an episode with anything of a wrong type or out of bounds."""
    if type(episode) is not Episode:
        raise InvalidError(
            f"{type(episode).__name__} is not an Episode",
            remedy="make one with Episode.conversation(...) or Episode(...)",
        )
    kind = episode.episode_type
    if type(kind) is not str or kind not in _EPISODE_TYPES:
        check_text(kind, "episode_type", EPISODE_TYPE_BYTES_MAX)
    relevance = episode.relevance
    if relevance != 1.0 or type(relevance) is bool:
        check_relevance(relevance)
    if episode.memory_type not in _MEMORY_TYPES:
        raise InvalidError(f"memory_type is {episode.memory_type!r}", remedy=f"give one of {', '.join(MEMORY_TYPES)}")
    check_object(episode.content, "content", CONTENT_BYTES_MAX)
    check_object(episode.metadata, "metadata", METADATA_BYTES_MAX)


def check_relevance(relevance: object) -> None:
    """Refuse what is not a number from 0 to 1."""
    if (type(relevance) is not float and type(relevance) is not int) or not 0 <= relevance <= 1:
        raise InvalidError(f"relevance is {relevance!r}", remedy="give a number from 0 to 1")


def check_object(value: JSONObject, name: str, bytes_max: int) -> None:
    """Refuse what is not a JSON object of at most ``bytes_max`` bytes, measured as MessagePack.

    ``name`` begins the path that the error gives.

    >>> check_object({"a": {1, 2}}, "content", CONTENT_BYTES_MAX)
    Traceback (most recent call last):
    ...
    qilbee_core.errors.InvalidError: content.a is set, not a JSON value: ...
    """
    if type(value) is not dict:
        raise InvalidError(
            f"{name} is {type(value).__name__}, not a dict", remedy=f'wrap it, for example {name}={{"text": ...}}'
        )
    if not value:
        return
    # The common case, a few short texts, costs one loop. A character takes at most 4 bytes, and a text up to 5 more.
    room = bytes_max >> 2
    for key, item in value.items():
        if type(key) is not str or type(item) is not str:
            break
        room -= len(key) + len(item) + 3
    else:
        if room > 0 and len(value) <= JSON_KEYS_MAX:
            return
    _walk(value, name)
    try:
        size = len(_encode(value))
    except UnicodeEncodeError:
        raise surrogate_error(value, name) from None
    if size > bytes_max:
        raise InvalidError(f"{name} takes {size} bytes, the most is {bytes_max}", remedy="store it in parts")


def _walk(root: JSON, name: str) -> None:
    stack: list[tuple[object, str, int]] = [(root, name, 1)]
    keys = 0
    while stack:
        value, path, depth = stack.pop()
        if depth > JSON_DEPTH_MAX:
            raise InvalidError(f"{name} is nested more than {JSON_DEPTH_MAX} deep", remedy="flatten it")
        if type(value) is dict:
            keys += len(value)
            if keys > JSON_KEYS_MAX:
                raise InvalidError(f"{name} has more than {JSON_KEYS_MAX} keys", remedy="store several episodes")
            for key, item in value.items():
                if type(key) is not str:
                    raise InvalidError(f"key {key!r} of {path} is {type(key).__name__}", remedy="use text as keys")
                stack.append((item, f"{path}.{key}", depth + 1))
        elif type(value) is list:
            stack.extend((item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
        elif type(value) is float:
            if not math.isfinite(value):
                raise InvalidError(f"{path} is {value}", remedy="numbers must be finite; leave it out or use None")
        elif type(value) is int:
            if not _INTEGER_MIN <= value <= _INTEGER_MAX:
                raise InvalidError(f"{path} is an integer of more than 64 bits", remedy="store it as text")
        elif value is not None and type(value) is not str and type(value) is not bool:
            hint = "a list" if isinstance(value, tuple | set | frozenset) else "text or a number"
            raise InvalidError(
                f"{path} is {type(value).__name__}, not a JSON value", remedy=f"turn it into {hint} first"
            )


def surrogate_error(root: JSON, name: str) -> InvalidError:
    """The error for a value that cannot be encoded as UTF-8, with the path to what cannot."""
    stack: list[tuple[object, str]] = [(root, name)]
    path = name
    while stack:
        value, path = stack.pop()
        if isinstance(value, dict):
            stack.extend((key, f"a key of {path}") for key in value)
            stack.extend((item, f"{path}.{ascii(key)[1:-1]}") for key, item in value.items())
        elif isinstance(value, list):
            stack.extend((item, f"{path}[{index}]") for index, item in enumerate(value))
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            break
    return InvalidError(f"{path} holds a lone surrogate", remedy="replace it: it is not a character")
