"""What an agent's memory holds, in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec import Struct

__all__ = ["ClearReceipt", "ForgetReceipt", "MemoryStatistics", "PurgeReceipt"]


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


class PurgeReceipt(Struct, frozen=True, kw_only=True):
    """What :meth:`AgentMemory.purge` removed for good.

    ``episodes`` counts the retired ones of which nothing is left, ``versions`` all that went, of those and of others.
    ``bytes`` counts their keys and records in the history.
    """

    episodes: int
    versions: int
    bytes: int


class ForgetReceipt(Struct, frozen=True, kw_only=True):
    """What :meth:`AgentMemory.forget` removed, or with ``dry_run`` would remove.

    ``ids`` names the least relevant first, and no more than a thousand of them. ``bytes`` counts the keys and values of
    the episode records. ``rows`` says what went from where, by the names of docs/format.md: the records themselves
    (``episode``), and of each index its entries; the earlier versions of one episode (``history``) count as one, and so
    do its search ``terms``, also where they were not made yet.
    """

    episodes: int
    bytes: int
    by_memory_type: Mapping[str, int]
    rows: Mapping[str, int]
    ids: Sequence[str]
    dry_run: bool
