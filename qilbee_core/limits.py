"""The bounds of everything a caller may hand in, and the check at the door of the store.

Content and metadata are JSON values and come back equal, so what JSON cannot say is refused here,
with the path to it, before anything is written.
"""

from __future__ import annotations

import math
from datetime import datetime

import msgspec

from qilbee_core.episode import JSON, MEMORY_TYPES, Episode, JSONObject
from qilbee_core.errors import InvalidError, shown

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
    "SURELY_FITTING_BYTES",
    "check_episode",
    "check_flag",
    "check_limit",
    "check_memory_type",
    "check_moment",
    "check_most",
    "check_object",
    "check_share",
    "check_size",
    "check_sizes",
    "check_storable",
    "check_text",
    "surrogate_error",
]

CONTENT_BYTES_MAX = 1 << 20
METADATA_BYTES_MAX = 64 << 10
SURELY_FITTING_BYTES = METADATA_BYTES_MAX // 4
"""A body up to this fits, whatever wrote it: no serializer takes less than a quarter of what MessagePack takes."""
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
_encode = msgspec.msgpack.Encoder().encode
_INTEGER_MIN, _INTEGER_MAX = -(1 << 63), (1 << 64) - 1


def check_limit(limit: int) -> None:
    """Refuse what is not a whole number from 1 to LIMIT_MAX."""
    if type(limit) is not int or not 1 <= limit <= LIMIT_MAX:
        raise InvalidError(f"limit is {shown(limit)}", remedy=f"give a whole number from 1 to {LIMIT_MAX}")


def check_text(value: object, name: str, bytes_max: int) -> None:
    """Refuse what is not text of 1 to ``bytes_max`` bytes; a text of a class of its own is none that comes back."""
    try:
        length = len(value.encode()) if type(value) is str else -1
    except UnicodeEncodeError:
        raise InvalidError(f"{name} holds a lone surrogate", remedy="replace it: it is not a character") from None
    if not 1 <= length <= bytes_max:
        shown = type(value).__name__ if length < 0 else f"{length} bytes long"
        raise InvalidError(f"{name} is {shown}", remedy=f"give a plain str of 1 to {bytes_max} bytes")


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
    if type(relevance) is not float or relevance != 1.0:
        check_share(relevance, "relevance")
    if episode.memory_type != "episodic":
        check_memory_type(episode.memory_type)
    check_object(episode.content, "content", CONTENT_BYTES_MAX)
    check_object(episode.metadata, "metadata", METADATA_BYTES_MAX)


def check_storable(episode: Episode) -> None:
    """Refuse an episode that no store takes, wholly and at once: for those who send episodes to where a store is.

    >>> check_storable(Episode("bot", "note", {"at": (1, 2)}))
    Traceback (most recent call last):
    ...
    qilbee_core.errors.InvalidError: content.at is tuple, not a JSON value: turn it into a list first
    """
    check_episode(episode)
    try:
        check_sizes(episode.content, episode.metadata)
    except UnicodeEncodeError:
        raise surrogate_error({"content": episode.content, "metadata": episode.metadata}, "episode") from None


def check_memory_type(memory_type: object) -> None:
    """Refuse what is not one of MEMORY_TYPES."""
    if type(memory_type) is not str or memory_type not in MEMORY_TYPES:
        raise InvalidError(f"memory_type is {shown(memory_type)}", remedy=f"give one of {', '.join(MEMORY_TYPES)}")


def check_flag(value: object, name: str) -> None:
    """Refuse what is not True or False."""
    if type(value) is not bool:
        raise InvalidError(f"{name} is {shown(value)}", remedy="give True or False")


def check_moment(value: object, name: str) -> None:
    """Refuse what is not a datetime."""
    if not isinstance(value, datetime):
        raise InvalidError(
            f"{name} is {type(value).__name__}, not a datetime", remedy="give datetime.fromtimestamp(seconds, UTC)"
        )


def check_share(value: object, name: str) -> None:
    """Refuse what is not a number from 0 to 1."""
    if (type(value) is not float and type(value) is not int) or not 0 <= value <= 1:
        raise InvalidError(f"{name} is {shown(value)}", remedy="give a number from 0 to 1")


def check_most(value: object, name: str) -> None:
    """Refuse what is neither None nor a whole number from 0 up."""
    if value is not None and (type(value) is not int or value < 0):
        raise InvalidError(f"{name} is {shown(value)}", remedy="give a whole number from 0 up, or leave it out")


def check_object(value: JSONObject, name: str, bytes_max: int) -> None:
    """Refuse what is not a JSON object, or is one that cannot fit into ``bytes_max`` bytes.

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
    # The common case, a few texts, costs one short loop; check_sizes() follows once it is encoded.
    for key, item in value.items():
        if type(key) is not str or type(item) is not str:
            break
    else:
        if len(value) <= JSON_KEYS_MAX:
            return
    _walk(value, name, bytes_max)


def check_sizes(content: JSONObject, metadata: JSONObject) -> None:
    """Refuse a content or metadata that takes too many bytes."""
    check_size(content, "content", CONTENT_BYTES_MAX)
    check_size(metadata, "metadata", METADATA_BYTES_MAX)


def check_size(value: JSONObject, name: str, bytes_max: int) -> None:
    """Refuse what takes more than ``bytes_max`` bytes, measured as MessagePack."""
    size = len(_encode(value))
    if size > bytes_max:
        raise InvalidError(f"{name} takes {size} bytes, the most is {bytes_max}", remedy="store it in parts")


def _walk(root: JSON, name: str, bytes_max: int) -> None:
    stack: list[tuple[object, str, int]] = [(root, name, 1)]
    keys = items = 0
    while stack:
        value, path, depth = stack.pop()
        if type(value) is dict:
            keys += len(value)
            if keys > JSON_KEYS_MAX:
                raise InvalidError(f"{name} has more than {JSON_KEYS_MAX} keys", remedy="store several episodes")
            for key in value:
                if type(key) is not str:
                    raise InvalidError(f"{path} has the key {shown(key)}, not a text", remedy="use text as keys")
            stack.extend((item, f"{path}.{key}", depth + 1) for key, item in value.items())
        elif type(value) is list:
            # Each takes a byte at least: refused before it is walked, and however often one list is in another.
            items += len(value)
            if items > bytes_max:
                raise InvalidError(f"{name} takes more than {bytes_max} bytes", remedy="store it in parts")
            stack.extend((item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
        else:
            _check_scalar(value, path)
            continue
        if depth > JSON_DEPTH_MAX:
            raise InvalidError(f"{name} is nested more than {JSON_DEPTH_MAX} deep", remedy="flatten it")


def _check_scalar(value: object, path: str) -> None:
    if type(value) is float:
        if not math.isfinite(value):
            raise InvalidError(f"{path} is {value}", remedy="numbers must be finite; leave it out or use None")
    elif type(value) is int:
        if not _INTEGER_MIN <= value <= _INTEGER_MAX:
            raise InvalidError(f"{path} is an integer of more than 64 bits", remedy="store it as text")
    elif value is not None and type(value) is not str and type(value) is not bool:
        hint = "a list" if isinstance(value, tuple | set | frozenset) else "text or a number"
        raise InvalidError(f"{path} is {type(value).__name__}, not a JSON value", remedy=f"turn it into {hint} first")


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
