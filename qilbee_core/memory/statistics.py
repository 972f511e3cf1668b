"""What an agent's memory holds, in figures."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

__all__ = ["ClearReceipt", "MemoryStatistics"]


class MemoryStatistics(Struct, frozen=True, kw_only=True):
    """Figures of one agent, kept with every write: reading them costs the same for ten episodes and ten million.

    ``avg_relevance`` is the average relevance now, 0.0 where there are no episodes. ``bytes`` counts the
    keys and values of the episode records, before the engine compresses its blocks.
    """

    total_episodes: int
    episodes_by_type: Mapping[str, int]
    oldest_episode: datetime | None
    newest_episode: datetime | None
    avg_relevance: float
    bytes: int


class ClearReceipt(Struct, frozen=True, kw_only=True):
    """What :meth:`AgentMemory.clear` deleted."""

    episodes: int
    bytes: int
