"""Memories that are made of others: where they come from, and ids that are the same whoever makes them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from qilbee_core.episode import JSON, Episode, JSONObject, MemoryType
from qilbee_core.errors import InvalidError
from qilbee_core.ids import format_id, parse_id

__all__ = ["SOURCES_MAX", "derived_episode"]

SOURCES_MAX = 500
"""Sources of one memory: their ids fit into its metadata, and all are superseded in one batch."""

_COMMON_BYTES_MAX = 4096
_DIGEST_BITS = 62
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def derived_episode(
    policy: str,
    sources: Sequence[Episode],
    episode_type: str,
    content: JSONObject,
    *,
    metadata: JSONObject | None = None,
    memory_type: MemoryType = "semantic",
) -> Episode:
    """A memory that ``policy`` makes of 1 to ``SOURCES_MAX`` others of one agent.

    It happened when the newest of them did. Behind the event time, its id is taken from a digest of everything that is
    given: who plans the same twice, here or in another process, makes the same episode. It is as
    relevant as the most relevant source. Metadata names ``policy`` and ``sources`` (ids, oldest first), and keeps
    what is alike in all of them and no list or object, such as a session or a user, up to 4 kB.

    >>> source = Episode.observation("bot", "Ana moved to Oslo.", metadata={"user": "ana"})
    >>> fact = derived_episode("acme.facts", [source], "fact", {"fact": "Ana lives in Oslo."})
    >>> fact.metadata["user"], fact.metadata["sources"] == [source.id], fact.event_time == source.event_time
    ('ana', True, True)
    """
    if not 1 <= len(sources) <= SOURCES_MAX:
        raise InvalidError(
            f"{len(sources)} sources for one derived memory", remedy=f"give 1 to {SOURCES_MAX}: derive several"
        )
    ordered = sorted(sources, key=lambda source: source.id)
    ids = [source.id for source in ordered]
    kept = {**_common(ordered), **(metadata or {}), "policy": policy, "sources": ids}
    return Episode(
        ordered[-1].agent_id,
        episode_type,
        content,
        metadata=kept,
        memory_type=memory_type,
        relevance=max(source.relevance for source in ordered),
        id=_derived_id(ids, _encode([policy, episode_type, memory_type, content, kept])),
    )


def _derived_id(ids: Sequence[str], given: bytes) -> str:
    """The event time of the last of ``ids``, and 62 bits of a digest: twenty would meet in a large import."""
    newest = int.from_bytes(parse_id(ids[-1]), "big") >> _DIGEST_BITS << _DIGEST_BITS
    digest = int.from_bytes(blake2b(given, digest_size=8).digest(), "big") >> 64 - _DIGEST_BITS
    return format_id((newest | digest).to_bytes(16, "big"))


def _common(sources: Sequence[Episode]) -> dict[str, JSON]:
    first, *others = (source.metadata for source in sources)
    common: dict[str, JSON] = {}
    room = _COMMON_BYTES_MAX
    for key, value in first.items():
        if isinstance(value, str | int | float) and all(key in each and _alike(each[key], value) for each in others):
            room -= len(_encode([key, value]))
            if room >= 0:
                common[key] = value
    return common


def _alike(one: JSON, other: JSON) -> bool:
    return type(one) is type(other) and one == other
