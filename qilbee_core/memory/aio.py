"""The memory of one agent, for asyncio programs: the same names, awaited.

On an embedded engine a single episode is stored or read in microseconds, so those verbs run in the event
loop and only the shared sync is awaited. Whatever may take longer runs in the store's bounded pool, and so
does every verb of an engine whose calls may block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from datetime import datetime
from functools import partial
from itertools import islice
from typing import ParamSpec, TypeVar

from qilbee_core.durability import Durability
from qilbee_core.episode import Consolidation, ConsolidationResult, Episode, JSONObject, MemoryType, UndoReceipt
from qilbee_core.errors import ConflictError, NotFoundError, StoreClosedError
from qilbee_core.interfaces import ConsolidationPolicy
from qilbee_core.limits import BATCH_EPISODES_MAX
from qilbee_core.memory.agent import AgentMemory, ImportedIds, batches
from qilbee_core.memory.filters import ANY, EpisodeFilter
from qilbee_core.memory.found import SearchResult, SearchStatus
from qilbee_core.memory.operations import Operations
from qilbee_core.memory.room import Room
from qilbee_core.memory.statistics import ClearReceipt, ForgetReceipt, MemoryStatistics, PurgeReceipt
from qilbee_core.patience import patiently_async

__all__ = ["AsyncAgentMemory", "read_within", "run_in", "store_anew"]

P = ParamSpec("P")
T = TypeVar("T")

_PAGE_EPISODES = 256
_DIRECT_EPISODES_MAX = 16
"""A batch above this would hold up the event loop for longer than a hop to the pool takes."""


async def run_in(pool: Executor, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``verb`` in a thread of ``pool``; StoreClosedError where the pool has ended with its store."""

    def run() -> T:
        try:
            return verb(*args, **kwargs)
        except StopIteration as error:
            # Of a caller's function. A future cannot hold it, and nobody would wake its task.
            raise RuntimeError("StopIteration was raised") from error

    try:
        running = asyncio.get_running_loop().run_in_executor(pool, run)
    except RuntimeError as error:
        raise StoreClosedError("the store is closed") from error
    return await running


async def store_anew(
    memory: AsyncAgentMemory, episode: Episode, idempotency_key: str | None = None
) -> tuple[str, bool]:
    """``memory.store_episode(...)`` for a server that has to tell its caller whether the episode is new.

    Gives the id under which it is stored, and False where it was stored before: by its id or by the key.
    """
    return await memory._durable(memory._operations.store_one, episode, idempotency_key)


def read_within(memory: AsyncAgentMemory, room: Room) -> AsyncAgentMemory:
    """``memory`` for one reading of a server, whose answer gives what ``room`` takes and tells what is left."""
    operations = memory._operations.within(room)
    return AsyncAgentMemory(operations, memory._durability, memory._pool, direct=memory._direct)


class AsyncAgentMemory:
    """What one agent remembers, awaited. Got from ``AsyncStore.agent_memory(agent_id)``.

    Every verb promises what the one of that name of :class:`~qilbee_core.AgentMemory` promises.

    >>> import asyncio
    >>> from qilbee_core import Episode, aopen_store
    >>> async def main():
    ...     async with await aopen_store(backend="ephemeral") as store:
    ...         memory = store.agent_memory("bot")
    ...         id = await memory.store_episode(Episode.observation("bot", "CPU at 85 %"))
    ...         return (await memory.get_episode(id)).content
    >>> asyncio.run(main())
    {'observation': 'CPU at 85 %'}
    """

    def __init__(self, operations: Operations, durability: Durability, pool: Executor, *, direct: bool) -> None:
        self._memory = AgentMemory(operations, durability)
        self._operations = operations
        self._durability = durability
        self._pool = pool
        self._direct = direct

    @property
    def agent_id(self) -> str:
        """Whose memory it is."""
        return self._memory.agent_id

    def __repr__(self) -> str:
        return f"AsyncAgentMemory({self.agent_id!r})"

    async def _in_pool(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_in(self._pool, verb, *args, **kwargs)

    async def _quick(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._direct:
            return verb(*args, **kwargs)
        return await self._in_pool(verb, *args, **kwargs)

    async def _write_quick(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._direct:
            return await patiently_async(partial(verb, *args, **kwargs))
        return await self._in_pool(verb, *args, **kwargs)

    async def _durable(self, verb: Callable[P, tuple[T, int]], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            value, ticket = await self._write_quick(verb, *args, **kwargs)
        except (ConflictError, NotFoundError):
            await self._durability.wait_async(self._durability.last_ticket)
            raise
        if ticket:  # else there is nothing to wait for at this level
            await self._durability.wait_async(ticket)
        return value

    async def store_episode(self, episode: Episode, *, idempotency_key: str | None = None) -> str:
        """Store an episode and give its id."""
        return (await store_anew(self, episode, idempotency_key))[0]

    async def store_episodes(self, episodes: Iterable[Episode]) -> list[str]:
        """Store up to 1000 episodes in one atomic batch, all or none; gives their ids in order."""
        batch = next(batches(episodes, BATCH_EPISODES_MAX + 1), [])
        if len(batch) <= _DIRECT_EPISODES_MAX:
            return await self._durable(self._operations.store, batch)
        return await self._in_pool(self._memory.store_episodes, batch)

    async def import_episodes(
        self, episodes: Iterable[Episode], *, progress: Callable[[int], object] | None = None
    ) -> int:
        """Store any number of episodes in bounded batches; ``progress`` is called from a thread of the pool.

        Cancelled, it ends with the batch that is under way.
        """
        stored, cancelled = ImportedIds(), threading.Event()
        running = asyncio.ensure_future(
            self._in_pool(self._memory._import, episodes, progress, stored, cancelled.is_set)
        )
        try:
            await asyncio.shield(running)
        except BaseException as error:
            cancelled.set()
            await asyncio.wait([running])
            stored.explain(error)
            raise
        return len(stored)

    async def get_episode(self, id: str, *, as_of: datetime | None = None) -> Episode | None:
        """The episode with that id, or None."""
        return await self._quick(self._operations.get, id, as_of)

    async def get_episodes(self, ids: Sequence[str], *, as_of: datetime | None = None) -> list[Episode | None]:
        """One answer for each of up to 1000 ids, in the order given."""
        return await self._in_pool(self._operations.get_many, ids, as_of)

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
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        if where == ANY and as_of is None and type(limit) is int and limit <= _DIRECT_EPISODES_MAX:
            return await self._quick(self._operations.recent, limit, before)
        return await self._in_pool(self._operations.recent, limit, before, where, as_of)

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
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return await self._in_pool(self._operations.recall, limit, min_relevance, where)

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
        """All episodes with ``start <= event time < end``, read page by page as they are asked for.

        They are those of the moment of the call, whatever is written meanwhile; on an engine whose calls may
        block, those of the moment when the first one is asked for.
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        between = partial(self._operations.between, where, after, reverse=reverse, as_of=as_of)
        if not self._direct:
            return self._pages(between)
        remaining = between()
        return self._pages(lambda: remaining)

    async def _pages(self, begin: Callable[[], Iterator[Episode]]) -> AsyncIterator[Episode]:
        remaining = await self._in_pool(begin)
        while page := await self._in_pool(lambda: list(islice(remaining, _PAGE_EPISODES))):
            for episode in page:
                yield episode

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
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return await self._in_pool(self._operations.search, query, limit, where, as_of)

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
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        search = self._operations.search_by_meaning
        return await self._in_pool(search, query, limit, min_score, where, as_of, explain=explain)

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
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        search = self._operations.search_by_both
        return await self._in_pool(search, query, limit, semantic_weight, where, as_of, explain=explain)

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
        """The episodes that are nearest in meaning to a stored one, best first."""
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return await self._in_pool(self._operations.find_similar, id, limit, where, as_of, explain=explain)

    async def get_semantic_search_status(self) -> SearchStatus:
        """Whether search is on, what it was made with, and how many episodes wait to be indexed."""
        return await self._in_pool(self._memory.get_semantic_search_status)

    async def update_episode(
        self,
        id: str,
        *,
        content: JSONObject | None = None,
        metadata: JSONObject | None = None,
        episode_type: str | None = None,
    ) -> Episode:
        """Replace what is given and keep the rest; gives the episode as it is now."""
        return await self._durable(
            self._operations.update, id, content=content, metadata=metadata, episode_type=episode_type
        )

    async def history(self, id: str, *, after: datetime | None = None) -> list[Episode]:
        """The versions of an episode that have ended, oldest first; with ``after`` those that ended after it."""
        return await self._in_pool(self._operations.history, id, after)

    async def invalidate(self, id: str) -> bool:
        """Retire an episode that is no longer true; gives False where there is none."""
        return await self._durable(self._operations.invalidate, id)

    async def purge(self, before: datetime, *, erase: bool = False) -> PurgeReceipt:
        """Remove for good every version that ended before a time, and whole episodes that were retired before it."""
        return await self._in_pool(self._memory.purge, before, erase=erase)

    async def boost(self, id: str, share: float = 0.5) -> Episode:
        """Make an episode more relevant; gives it as it is now."""
        return await self._durable(self._operations.boost, id, share)

    async def pin(self, id: str) -> Episode:
        """Keep an episode: fully relevant, never forgotten, and not expiring; gives it."""
        return await self._durable(self._operations.pin, id, pinned=True)

    async def unpin(self, id: str) -> Episode:
        """Let a pinned episode go on as if it had never been pinned; gives it."""
        return await self._durable(self._operations.pin, id, pinned=False)

    async def forget(
        self,
        min_relevance: float = 0.1,
        *,
        max_episodes: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> ForgetReceipt:
        """Delete what is less relevant now than ``min_relevance``, and the least relevant while there is too much."""
        return await self._in_pool(
            self._memory.forget, min_relevance, max_episodes=max_episodes, max_bytes=max_bytes, dry_run=dry_run
        )

    async def consolidate(
        self,
        policy: str | ConsolidationPolicy = "duplicates",
        *,
        dry_run: bool = False,
        since: datetime | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> ConsolidationResult:
        """Let a policy make less of what the agent remembers; policy and ``progress`` run in a thread of the pool."""
        return await self._in_pool(self._memory.consolidate, policy, dry_run=dry_run, since=since, progress=progress)

    async def consolidations(self) -> list[Consolidation]:
        """The consolidations that can be undone, the newest first."""
        return await self._in_pool(self._memory.consolidations)

    async def undo(self, consolidation_id: str) -> UndoReceipt:
        """Bring back what a consolidation took away, and retire the memories that it created."""
        return await self._in_pool(self._memory.undo, consolidation_id)

    async def delete_episode(self, id: str, *, erase: bool = False) -> bool:
        """Delete an episode with all its versions; gives False where there is none."""
        if erase is True:
            return await self._in_pool(self._memory.delete_episode, id, erase=True)
        return await self._durable(self._operations.delete, id, erase=erase)

    async def clear(self, *, erase: bool = False) -> ClearReceipt:
        """Delete everything this agent remembers, at once; gives the counts of what was deleted."""
        return await self._in_pool(self._memory.clear, erase=erase)

    async def get_statistics(self) -> MemoryStatistics:
        """Counts, sizes and average relevance."""
        # As a write, for it removes some of what has expired.
        return await self._write_quick(self._operations.statistics)
