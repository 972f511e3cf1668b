"""A database behind a server, and the memories in it, for programs that block and for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

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
from qilbeedb import account_calls
from qilbeedb.calls import Imported, MemoryCalls, Page, filters
from qilbeedb.exchange import Call
from qilbeedb.transport import AsyncConnection, Connection
from qilbeedb.wire import HealthAnswer

__all__ = ["AsyncRemote", "AsyncRemoteMemory", "Remote", "RemoteMemory"]

T = TypeVar("T")

Progress = Callable[[int], object]


class Remote(Connection):
    """A server: :class:`~qilbeedb.embedded.Embedded` has the same verbs."""

    def agent_memory(self, agent_id: str) -> RemoteMemory:
        """The memory of one agent."""
        return RemoteMemory(self, agent_id)

    def login(self, username: str, password: str) -> None:
        """Begin a session, which renews itself."""
        self.credentials.tokens = self.run(account_calls.login(username, password))

    def logout(self) -> None:
        """End the session, here in any case."""
        try:
            if self.credentials.tokens is not None:
                self.run(account_calls.logout())
        finally:
            self.credentials.tokens = None

    def health(self) -> HealthAnswer:
        """Whether the server takes writes."""
        return self.run(account_calls.health())

    def agents(self) -> list[str]:
        """Those that the caller may see."""
        return self.run(account_calls.agents())


class AsyncRemote(AsyncConnection):
    """The same for asyncio."""

    async def open(self) -> None:
        """Nothing: connections are made when they are needed."""

    def agent_memory(self, agent_id: str) -> AsyncRemoteMemory:
        """The memory of one agent."""
        return AsyncRemoteMemory(self, agent_id)

    async def login(self, username: str, password: str) -> None:
        """Begin a session, which renews itself."""
        self.credentials.tokens = await self.run(account_calls.login(username, password))

    async def logout(self) -> None:
        """End the session, here in any case."""
        try:
            if self.credentials.tokens is not None:
                await self.run(account_calls.logout())
        finally:
            self.credentials.tokens = None

    async def health(self) -> HealthAnswer:
        """Whether the server takes writes."""
        return await self.run(account_calls.health())

    async def agents(self) -> list[str]:
        """Those that the caller may see."""
        return await self.run(account_calls.agents())


class RemoteMemory:
    """What one agent remembers, behind a server: an :class:`~qilbeedb.memory.AgentMemory`."""

    def __init__(self, connection: Connection, agent_id: str) -> None:
        self._run = connection.run
        self._calls = MemoryCalls(agent_id)

    @property
    def agent_id(self) -> str:
        """Whose memory it is."""
        return self._calls.agent_id

    def __repr__(self) -> str:
        return f"RemoteMemory({self.agent_id!r})"

    def store_episode(self, episode: Episode, *, idempotency_key: str | None = None) -> str:
        """Store an episode and give its id; the same one again, or sent again after a lost answer, is stored once."""
        return self._run(self._calls.store(episode, idempotency_key))

    def store_episodes(self, episodes: Iterable[Episode]) -> list[str]:
        """Store up to 1000 episodes in one atomic batch, all or none; gives their ids in order."""
        return self._run(self._calls.store_many(episodes))

    def import_episodes(self, episodes: Iterable[Episode], *, progress: Progress | None = None) -> int:
        """Store any number of episodes in bounded batches; gives how many.

        Whatever stops the import, the exception carries ``stored_ids``, the ids that are stored by then.
        """
        with Imported(progress) as stored:
            for part in self._calls.parts(episodes):
                stored.add(self.store_episodes(part))
        return len(stored.ids)

    def get_episode(self, id: str, *, as_of: datetime | None = None) -> Episode | None:
        """The episode with that id, or None."""
        return self._run(self._calls.get(id, as_of))

    def get_episodes(self, ids: Sequence[str], *, as_of: datetime | None = None) -> list[Episode | None]:
        """One answer for each of up to 1000 ids, in the order given; None where there is no episode."""
        return list(self._pages(self._calls.get_many(ids, as_of)))

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
        where = filters(episode_type, memory_type, start, end)
        return list(self._pages(self._calls.recent(limit, before, where, as_of)))

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
        where = filters(episode_type, memory_type, start, end)
        return list(self._pages(self._calls.recall(limit, min_relevance, where)))

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
        """All episodes with ``start <= event time < end``, oldest first, read page by page as they are asked for."""
        where = filters(episode_type, memory_type, start, end)
        return self._pages(self._calls.between(where, after, as_of, reverse=reverse))

    def _pages(self, call: Call[Page[T]] | None) -> Iterator[T]:
        while call is not None:
            page = self._run(call)
            yield from page.items
            call = page.rest

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
        where = filters(episode_type, memory_type, start, end)
        return list(self._pages(self._calls.search(query, limit, where, as_of)))

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
        where = filters(episode_type, memory_type, start, end)
        return list(self._pages(self._calls.semantic(query, limit, min_score, where, as_of, explain=explain)))

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
        where = filters(episode_type, memory_type, start, end)
        return list(self._pages(self._calls.hybrid(query, limit, semantic_weight, where, as_of, explain=explain)))

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
        where = filters(episode_type, memory_type, start, end)
        return list(self._pages(self._calls.similar(id, limit, where, as_of, explain=explain)))

    def get_semantic_search_status(self) -> SearchStatus:
        """Whether search is on, what it was made with, and how many episodes wait to be indexed."""
        return self._run(self._calls.search_status())

    def update_episode(
        self,
        id: str,
        *,
        content: JSONObject | None = None,
        metadata: JSONObject | None = None,
        episode_type: str | None = None,
    ) -> Episode:
        """Replace what is given and keep the rest; gives the episode as it is now."""
        return self._run(self._calls.update(id, content, metadata, episode_type))

    def history(self, id: str, *, after: datetime | None = None) -> list[Episode]:
        """The versions that have ended, oldest first; with ``after`` those that ended after that time."""
        return list(self._pages(self._calls.history(id, after)))

    def invalidate(self, id: str) -> bool:
        """Retire an episode that is no longer true, and keep what was once known; gives False where there is none."""
        return self._run(self._calls.invalidate(id))

    def purge(self, before: datetime, *, erase: bool = False) -> PurgeReceipt:
        """Remove for good every version that ended before a time, and whole episodes that were retired before it."""
        return self._run(self._calls.purge(before, erase=erase))

    def boost(self, id: str, share: float = 0.5) -> Episode:
        """Make an episode more relevant; gives it as it is now."""
        return self._run(self._calls.boost(id, share))

    def pin(self, id: str) -> Episode:
        """Keep an episode: fully relevant, never forgotten, and not expiring; gives it."""
        return self._run(self._calls.pin(id, pinned=True))

    def unpin(self, id: str) -> Episode:
        """Let a pinned episode go on as if it had never been pinned; gives it."""
        return self._run(self._calls.pin(id, pinned=False))

    def forget(
        self,
        min_relevance: float = 0.1,
        *,
        max_episodes: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> ForgetReceipt:
        """Delete what is less relevant now than ``min_relevance``, and the least relevant while there is too much."""
        return self._run(self._calls.forget(min_relevance, max_episodes, max_bytes, dry_run=dry_run))

    def consolidate(
        self, policy: str = "duplicates", *, dry_run: bool = False, since: datetime | None = None
    ) -> ConsolidationResult:
        """Let the policy of that name make less of what the agent remembers; :meth:`undo` takes it back."""
        return self._run(self._calls.consolidate(policy, dry_run=dry_run, since=since))

    def consolidations(self) -> list[Consolidation]:
        """The consolidations that can be undone, the newest first."""
        return self._run(self._calls.consolidations())

    def undo(self, consolidation_id: str) -> UndoReceipt:
        """Bring back the episodes that a consolidation took away, and retire the memories that it created."""
        return self._run(self._calls.undo(consolidation_id))

    def delete_episode(self, id: str, *, erase: bool = False) -> bool:
        """Delete an episode with all its versions; gives False where there is none."""
        return self._run(self._calls.delete(id, erase=erase))

    def clear(self, *, erase: bool = False) -> ClearReceipt:
        """Delete everything this agent remembers, at once; gives the counts of what was deleted."""
        return self._run(self._calls.clear(erase=erase))

    def get_statistics(self) -> MemoryStatistics:
        """Counts, sizes and average relevance."""
        return self._run(self._calls.statistics())


class AsyncRemoteMemory:
    """What one agent remembers, behind a server: an :class:`~qilbeedb.memory.AsyncAgentMemory`."""

    def __init__(self, connection: AsyncConnection, agent_id: str) -> None:
        self._run = connection.run
        self._calls = MemoryCalls(agent_id)

    @property
    def agent_id(self) -> str:
        """Whose memory it is."""
        return self._calls.agent_id

    def __repr__(self) -> str:
        return f"AsyncRemoteMemory({self.agent_id!r})"

    async def store_episode(self, episode: Episode, *, idempotency_key: str | None = None) -> str:
        """Store an episode and give its id; the same one again, or sent again after a lost answer, is stored once."""
        return await self._run(self._calls.store(episode, idempotency_key))

    async def store_episodes(self, episodes: Iterable[Episode]) -> list[str]:
        """Store up to 1000 episodes in one atomic batch, all or none; gives their ids in order."""
        return await self._run(self._calls.store_many(episodes))

    async def import_episodes(self, episodes: Iterable[Episode], *, progress: Progress | None = None) -> int:
        """Store any number of episodes in bounded batches; gives how many.

        Whatever stops the import, the exception carries ``stored_ids``, the ids that are stored by then.
        """
        with Imported(progress) as stored:
            for part in self._calls.parts(episodes):
                stored.add(await self.store_episodes(part))
        return len(stored.ids)

    async def get_episode(self, id: str, *, as_of: datetime | None = None) -> Episode | None:
        """The episode with that id, or None."""
        return await self._run(self._calls.get(id, as_of))

    async def get_episodes(self, ids: Sequence[str], *, as_of: datetime | None = None) -> list[Episode | None]:
        """One answer for each of up to 1000 ids, in the order given; None where there is no episode."""
        return [each async for each in self._pages(self._calls.get_many(ids, as_of))]

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
        where = filters(episode_type, memory_type, start, end)
        return [each async for each in self._pages(self._calls.recent(limit, before, where, as_of))]

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
        where = filters(episode_type, memory_type, start, end)
        return [each async for each in self._pages(self._calls.recall(limit, min_relevance, where))]

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
        """All episodes with ``start <= event time < end``, oldest first, read page by page as they are asked for."""
        where = filters(episode_type, memory_type, start, end)
        return self._pages(self._calls.between(where, after, as_of, reverse=reverse))

    async def _pages(self, call: Call[Page[T]] | None) -> AsyncIterator[T]:
        while call is not None:
            page = await self._run(call)
            for each in page.items:
                yield each
            call = page.rest

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
        where = filters(episode_type, memory_type, start, end)
        return [each async for each in self._pages(self._calls.search(query, limit, where, as_of))]

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
        where = filters(episode_type, memory_type, start, end)
        return [
            each
            async for each in self._pages(self._calls.semantic(query, limit, min_score, where, as_of, explain=explain))
        ]

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
        where = filters(episode_type, memory_type, start, end)
        return [
            each
            async for each in self._pages(
                self._calls.hybrid(query, limit, semantic_weight, where, as_of, explain=explain)
            )
        ]

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
        where = filters(episode_type, memory_type, start, end)
        return [each async for each in self._pages(self._calls.similar(id, limit, where, as_of, explain=explain))]

    async def get_semantic_search_status(self) -> SearchStatus:
        """Whether search is on, what it was made with, and how many episodes wait to be indexed."""
        return await self._run(self._calls.search_status())

    async def update_episode(
        self,
        id: str,
        *,
        content: JSONObject | None = None,
        metadata: JSONObject | None = None,
        episode_type: str | None = None,
    ) -> Episode:
        """Replace what is given and keep the rest; gives the episode as it is now."""
        return await self._run(self._calls.update(id, content, metadata, episode_type))

    async def history(self, id: str, *, after: datetime | None = None) -> list[Episode]:
        """The versions that have ended, oldest first; with ``after`` those that ended after that time."""
        return [each async for each in self._pages(self._calls.history(id, after))]

    async def invalidate(self, id: str) -> bool:
        """Retire an episode that is no longer true, and keep what was once known; gives False where there is none."""
        return await self._run(self._calls.invalidate(id))

    async def purge(self, before: datetime, *, erase: bool = False) -> PurgeReceipt:
        """Remove for good every version that ended before a time, and whole episodes that were retired before it."""
        return await self._run(self._calls.purge(before, erase=erase))

    async def boost(self, id: str, share: float = 0.5) -> Episode:
        """Make an episode more relevant; gives it as it is now."""
        return await self._run(self._calls.boost(id, share))

    async def pin(self, id: str) -> Episode:
        """Keep an episode: fully relevant, never forgotten, and not expiring; gives it."""
        return await self._run(self._calls.pin(id, pinned=True))

    async def unpin(self, id: str) -> Episode:
        """Let a pinned episode go on as if it had never been pinned; gives it."""
        return await self._run(self._calls.pin(id, pinned=False))

    async def forget(
        self,
        min_relevance: float = 0.1,
        *,
        max_episodes: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> ForgetReceipt:
        """Delete what is less relevant now than ``min_relevance``, and the least relevant while there is too much."""
        return await self._run(self._calls.forget(min_relevance, max_episodes, max_bytes, dry_run=dry_run))

    async def consolidate(
        self, policy: str = "duplicates", *, dry_run: bool = False, since: datetime | None = None
    ) -> ConsolidationResult:
        """Let the policy of that name make less of what the agent remembers; :meth:`undo` takes it back."""
        return await self._run(self._calls.consolidate(policy, dry_run=dry_run, since=since))

    async def consolidations(self) -> list[Consolidation]:
        """The consolidations that can be undone, the newest first."""
        return await self._run(self._calls.consolidations())

    async def undo(self, consolidation_id: str) -> UndoReceipt:
        """Bring back the episodes that a consolidation took away, and retire the memories that it created."""
        return await self._run(self._calls.undo(consolidation_id))

    async def delete_episode(self, id: str, *, erase: bool = False) -> bool:
        """Delete an episode with all its versions; gives False where there is none."""
        return await self._run(self._calls.delete(id, erase=erase))

    async def clear(self, *, erase: bool = False) -> ClearReceipt:
        """Delete everything this agent remembers, at once; gives the counts of what was deleted."""
        return await self._run(self._calls.clear(erase=erase))

    async def get_statistics(self) -> MemoryStatistics:
        """Counts, sizes and average relevance."""
        return await self._run(self._calls.statistics())
