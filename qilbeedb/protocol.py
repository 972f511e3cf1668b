"""What an agent's memory can do, wherever it is: in this process, or behind a server.

:class:`AgentMemory` is what ``QilbeeDB(...).agent_memory(agent_id)`` gives, :class:`AsyncAgentMemory` the same for
asyncio. ``qilbee_core.AgentMemory`` and the memories of a server both have exactly these verbs, and tests/client holds
both to the same promises; ``qilbee_core.AgentMemory`` says of each verb what it does.

What differs behind a server: ``episodes()`` reads page by page and so may see what is written meanwhile, and a batch of
``store_episodes`` must fit into one body of a request (2 MiB).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

from qilbee_core import (
    ClearReceipt,
    Consolidation,
    ConsolidationResult,
    Episode,
    ForgetReceipt,
    JSONObject,
    MemoryStatistics,
    MemoryType,
    PurgeReceipt,
    SearchResult,
    SearchStatus,
    UndoReceipt,
)

__all__ = ["AgentMemory", "AsyncAgentMemory"]


@runtime_checkable
class AgentMemory(Protocol):
    """What one agent remembers; safe to use from any thread."""

    @property
    def agent_id(self) -> str:
        """Whose memory it is."""
        ...

    def store_episode(self, episode: Episode, *, idempotency_key: str | None = None) -> str:
        """Store an episode and give its id; the same one again is stored once."""
        ...

    def store_episodes(self, episodes: Iterable[Episode]) -> list[str]:
        """Store up to 1000 episodes in one atomic batch, all or none; gives their ids in order."""
        ...

    def import_episodes(self, episodes: Iterable[Episode], *, progress: Callable[[int], object] | None = None) -> int:
        """Store any number of episodes in bounded batches; gives how many."""
        ...

    def get_episode(self, id: str, *, as_of: datetime | None = None) -> Episode | None:
        """The episode with that id, or None."""
        ...

    def get_episodes(self, ids: Sequence[str], *, as_of: datetime | None = None) -> list[Episode | None]:
        """One answer for each of up to 1000 ids, in the order given; None where there is no episode."""
        ...

    def get_recent_episodes(
        self,
        limit: int = 10,
        *,
        before: str | None = None,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        as_of: datetime | None = None,
    ) -> list[Episode]:
        """The newest episodes by event time, newest first."""
        ...

    def recall(
        self,
        limit: int = 10,
        *,
        min_relevance: float | None = None,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Episode]:
        """The most relevant episodes now, most relevant first."""
        ...

    def episodes(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        after: str | None = None,
        reverse: bool = False,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        as_of: datetime | None = None,
    ) -> Iterator[Episode]:
        """All episodes with ``start <= event time < end``, oldest first, read as they are asked for."""
        ...

    def search_episodes(
        self,
        query: str,
        limit: int = 10,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        as_of: datetime | None = None,
    ) -> list[Episode]:
        """The episodes that fit a query best by their words, best first."""
        ...

    def semantic_search(
        self,
        query: str,
        limit: int = 10,
        min_score: float | None = None,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        explain: bool = False,
        as_of: datetime | None = None,
    ) -> list[SearchResult]:
        """The episodes that are nearest to a query in meaning, best first."""
        ...

    def hybrid_search(
        self,
        query: str,
        limit: int = 10,
        semantic_weight: float | None = None,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        explain: bool = False,
        as_of: datetime | None = None,
    ) -> list[SearchResult]:
        """The episodes that fit a query best by words and meaning together, best first."""
        ...

    def find_similar_episodes(
        self,
        id: str,
        limit: int = 10,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        explain: bool = False,
        as_of: datetime | None = None,
    ) -> list[SearchResult]:
        """The episodes that are nearest in meaning to a stored one, best first, without itself."""
        ...

    def get_semantic_search_status(self) -> SearchStatus:
        """Whether search is on, what it was made with, and how many episodes wait to be indexed."""
        ...

    def update_episode(
        self,
        id: str,
        *,
        content: JSONObject | None = None,
        metadata: JSONObject | None = None,
        episode_type: str | None = None,
    ) -> Episode:
        """Replace what is given and keep the rest; gives the episode as it is now."""
        ...

    def history(self, id: str, *, after: datetime | None = None) -> list[Episode]:
        """The versions that have ended, oldest first; with ``after`` those that ended after that time."""
        ...

    def invalidate(self, id: str) -> bool:
        """Retire an episode that is no longer true, and keep what was once known; gives False where there is none."""
        ...

    def purge(self, before: datetime, *, erase: bool = False) -> PurgeReceipt:
        """Remove for good every version that ended before a time, and whole episodes that were retired before it."""
        ...

    def boost(self, id: str, share: float = 0.5) -> Episode:
        """Make an episode more relevant; gives it as it is now."""
        ...

    def pin(self, id: str) -> Episode:
        """Keep an episode: fully relevant, never forgotten, and not expiring; gives it."""
        ...

    def unpin(self, id: str) -> Episode:
        """Let a pinned episode go on as if it had never been pinned; gives it."""
        ...

    def forget(
        self,
        min_relevance: float = 0.1,
        *,
        max_episodes: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> ForgetReceipt:
        """Delete what is less relevant now than ``min_relevance``, and the least relevant while there is too much."""
        ...

    def consolidate(
        self, policy: str = "duplicates", *, dry_run: bool = False, since: datetime | None = None
    ) -> ConsolidationResult:
        """Let the policy of that name make less of what the agent remembers; :meth:`undo` takes it back."""
        ...

    def consolidations(self) -> list[Consolidation]:
        """The consolidations that can be undone, the newest first."""
        ...

    def undo(self, consolidation_id: str) -> UndoReceipt:
        """Bring back the episodes that a consolidation took away, and retire the memories that it created."""
        ...

    def delete_episode(self, id: str, *, erase: bool = False) -> bool:
        """Delete an episode with all its versions; gives False where there is none."""
        ...

    def clear(self, *, erase: bool = False) -> ClearReceipt:
        """Delete everything this agent remembers, at once; gives the counts of what was deleted."""
        ...

    def get_statistics(self) -> MemoryStatistics:
        """Counts, sizes and average relevance."""
        ...


@runtime_checkable
class AsyncAgentMemory(Protocol):
    """What one agent remembers; every verb but ``episodes`` is awaited."""

    @property
    def agent_id(self) -> str:
        """Whose memory it is."""
        ...

    async def store_episode(self, episode: Episode, *, idempotency_key: str | None = None) -> str:
        """Store an episode and give its id; the same one again is stored once."""
        ...

    async def store_episodes(self, episodes: Iterable[Episode]) -> list[str]:
        """Store up to 1000 episodes in one atomic batch, all or none; gives their ids in order."""
        ...

    async def import_episodes(
        self, episodes: Iterable[Episode], *, progress: Callable[[int], object] | None = None
    ) -> int:
        """Store any number of episodes in bounded batches; gives how many."""
        ...

    async def get_episode(self, id: str, *, as_of: datetime | None = None) -> Episode | None:
        """The episode with that id, or None."""
        ...

    async def get_episodes(self, ids: Sequence[str], *, as_of: datetime | None = None) -> list[Episode | None]:
        """One answer for each of up to 1000 ids, in the order given; None where there is no episode."""
        ...

    async def get_recent_episodes(
        self,
        limit: int = 10,
        *,
        before: str | None = None,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        as_of: datetime | None = None,
    ) -> list[Episode]:
        """The newest episodes by event time, newest first."""
        ...

    async def recall(
        self,
        limit: int = 10,
        *,
        min_relevance: float | None = None,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[Episode]:
        """The most relevant episodes now, most relevant first."""
        ...

    def episodes(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        after: str | None = None,
        reverse: bool = False,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        as_of: datetime | None = None,
    ) -> AsyncIterator[Episode]:
        """All episodes with ``start <= event time < end``, oldest first, read as they are asked for."""
        ...

    async def search_episodes(
        self,
        query: str,
        limit: int = 10,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        as_of: datetime | None = None,
    ) -> list[Episode]:
        """The episodes that fit a query best by their words, best first."""
        ...

    async def semantic_search(
        self,
        query: str,
        limit: int = 10,
        min_score: float | None = None,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        explain: bool = False,
        as_of: datetime | None = None,
    ) -> list[SearchResult]:
        """The episodes that are nearest to a query in meaning, best first."""
        ...

    async def hybrid_search(
        self,
        query: str,
        limit: int = 10,
        semantic_weight: float | None = None,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        explain: bool = False,
        as_of: datetime | None = None,
    ) -> list[SearchResult]:
        """The episodes that fit a query best by words and meaning together, best first."""
        ...

    async def find_similar_episodes(
        self,
        id: str,
        limit: int = 10,
        *,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        explain: bool = False,
        as_of: datetime | None = None,
    ) -> list[SearchResult]:
        """The episodes that are nearest in meaning to a stored one, best first, without itself."""
        ...

    async def get_semantic_search_status(self) -> SearchStatus:
        """Whether search is on, what it was made with, and how many episodes wait to be indexed."""
        ...

    async def update_episode(
        self,
        id: str,
        *,
        content: JSONObject | None = None,
        metadata: JSONObject | None = None,
        episode_type: str | None = None,
    ) -> Episode:
        """Replace what is given and keep the rest; gives the episode as it is now."""
        ...

    async def history(self, id: str, *, after: datetime | None = None) -> list[Episode]:
        """The versions that have ended, oldest first; with ``after`` those that ended after that time."""
        ...

    async def invalidate(self, id: str) -> bool:
        """Retire an episode that is no longer true, and keep what was once known; gives False where there is none."""
        ...

    async def purge(self, before: datetime, *, erase: bool = False) -> PurgeReceipt:
        """Remove for good every version that ended before a time, and whole episodes that were retired before it."""
        ...

    async def boost(self, id: str, share: float = 0.5) -> Episode:
        """Make an episode more relevant; gives it as it is now."""
        ...

    async def pin(self, id: str) -> Episode:
        """Keep an episode: fully relevant, never forgotten, and not expiring; gives it."""
        ...

    async def unpin(self, id: str) -> Episode:
        """Let a pinned episode go on as if it had never been pinned; gives it."""
        ...

    async def forget(
        self,
        min_relevance: float = 0.1,
        *,
        max_episodes: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> ForgetReceipt:
        """Delete what is less relevant now than ``min_relevance``, and the least relevant while there is too much."""
        ...

    async def consolidate(
        self, policy: str = "duplicates", *, dry_run: bool = False, since: datetime | None = None
    ) -> ConsolidationResult:
        """Let the policy of that name make less of what the agent remembers; :meth:`undo` takes it back."""
        ...

    async def consolidations(self) -> list[Consolidation]:
        """The consolidations that can be undone, the newest first."""
        ...

    async def undo(self, consolidation_id: str) -> UndoReceipt:
        """Bring back the episodes that a consolidation took away, and retire the memories that it created."""
        ...

    async def delete_episode(self, id: str, *, erase: bool = False) -> bool:
        """Delete an episode with all its versions; gives False where there is none."""
        ...

    async def clear(self, *, erase: bool = False) -> ClearReceipt:
        """Delete everything this agent remembers, at once; gives the counts of what was deleted."""
        ...

    async def get_statistics(self) -> MemoryStatistics:
        """Counts, sizes and average relevance."""
        ...
