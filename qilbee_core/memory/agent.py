"""The memory of one agent, for plain (synchronous) programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import ParamSpec, TypeVar

from qilbee_core.durability import Durability
from qilbee_core.episode import Consolidation, ConsolidationResult, Episode, JSONObject, MemoryType, UndoReceipt
from qilbee_core.errors import ConflictError, InvalidError, NotFoundError, shown
from qilbee_core.ids import format_id, parse_id
from qilbee_core.interfaces import ConsolidationPolicy
from qilbee_core.limits import BATCH_EPISODES_MAX
from qilbee_core.memory.filters import EpisodeFilter
from qilbee_core.memory.found import SearchResult, SearchStatus
from qilbee_core.memory.operations import BatchTooLargeError, Operations
from qilbee_core.memory.statistics import ClearReceipt, ForgetReceipt, MemoryStatistics, PurgeReceipt

__all__ = ["AgentMemory"]

P = ParamSpec("P")
T = TypeVar("T")


class AgentMemory:
    """What one agent remembers. Got from ``Store.agent_memory(agent_id)``; safe to use from any thread.

    No verb of it can reach another agent's episodes. Every write is one atomic batch with all its
    indexes and counters, and is as durable as the store's level says when the call returns.

    >>> from qilbee_core import Episode, open_store
    >>> with open_store(backend="ephemeral") as store:
    ...     memory = store.agent_memory("sales-agent")
    ...     id = memory.store_episode(Episode.conversation("sales-agent", "Price?", "Ten a month."))
    ...     print(memory.get_episode(id).content["agent_response"])
    ...     print(memory.get_statistics().total_episodes)
    Ten a month.
    1
    """

    def __init__(self, operations: Operations, durability: Durability) -> None:
        self._operations = operations
        self._durability = durability

    @property
    def agent_id(self) -> str:
        """Whose memory it is."""
        return self._operations.agent_id

    def __repr__(self) -> str:
        return f"AgentMemory({self.agent_id!r})"

    def _durable(self, operation: Callable[P, tuple[T, int]], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            value, ticket = operation(*args, **kwargs)
        except (ConflictError, NotFoundError):
            self._durability.wait_for_earlier()
            raise
        self._durability.wait(ticket)
        return value

    def store_episode(self, episode: Episode, *, idempotency_key: str | None = None) -> str:
        """Store an episode and give its id.

        The same id, or the same ``idempotency_key``, with the same content again is the same episode;
        with other content it is ConflictError. InvalidError names what is wrong with the episode.
        """
        try:
            if self._durability.is_syncing and idempotency_key is None:
                (stored_id, _), ticket = self._operations.store_with_others(episode)
            else:
                (stored_id, _), ticket = self._operations.store_one(episode, idempotency_key)
        except ConflictError:
            self._durability.wait_for_earlier()
            raise
        if ticket:
            self._durability.wait(ticket)
        return stored_id

    def store_episodes(self, episodes: Iterable[Episode]) -> list[str]:
        """Store up to 1000 episodes in one atomic batch, all or none; gives their ids in order."""
        return self._durable(self._operations.store, next(batches(episodes, BATCH_EPISODES_MAX + 1), []))

    def import_episodes(self, episodes: Iterable[Episode], *, progress: Callable[[int], object] | None = None) -> int:
        """Store any number of episodes in bounded batches; gives how many.

        ``progress`` is called with the number so far after each batch. Whatever stops the import, the
        exception carries ``stored_ids``, the ids that are stored by then. Importing episodes with the
        same ids again goes on where it stopped: what is stored already is not stored twice.
        """
        stored = ImportedIds()
        try:
            self._import(episodes, progress, stored)
        except BaseException as error:
            stored.explain(error)
            raise
        return len(stored)

    def _import(
        self,
        episodes: Iterable[Episode],
        progress: Callable[[int], object] | None,
        stored: ImportedIds,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Store them and add their ids to ``stored``; ``stop`` is asked after each batch."""
        if progress is not None and not callable(progress):
            raise InvalidError(f"progress is {shown(progress)}", remedy="give a function of one number")
        for batch in batches(episodes):
            for ids in self._store_in_parts(batch):
                stored.add(ids)
                if progress is not None:
                    progress(len(stored))
                if stop():
                    return

    def _store_in_parts(self, batch: list[Episode]) -> Iterator[list[str]]:
        try:
            yield self.store_episodes(batch)
        except BatchTooLargeError:
            half = len(batch) // 2
            yield from self._store_in_parts(batch[:half])
            yield from self._store_in_parts(batch[half:])

    def get_episode(self, id: str, *, as_of: datetime | None = None) -> Episode | None:
        """The episode with that id, or None.

        With ``as_of`` it is the version that was current at that transaction time, also of an episode that was updated
        or retired since. What was deleted, forgotten or purged, or has expired, is gone from the past too. To look back
        reinforces nothing.
        """
        return self._operations.get(id, as_of)

    def get_episodes(self, ids: Sequence[str], *, as_of: datetime | None = None) -> list[Episode | None]:
        """One answer for each of up to 1000 ids, in the order given; None where there is (or was) no episode."""
        return self._operations.get_many(ids, as_of)

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
        """The newest episodes by event time, newest first.

        ``before`` is the id of an episode, usually the last of the page before: only older ones are
        given. Going from page to page gives each episode once; one that is stored late, with an event time
        that lies between pages already given, is not in them.

        Only what is of the types given, with ``start <= event time < end``, is in the answer. A time is read and
        nothing beside it; a type that few episodes have reads through the others. These four mean the same wherever
        they are taken.

        With ``as_of`` they are those of that transaction time, as they were, see :meth:`get_episode`. It reads through
        what was stored since, and through what has ended.
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return self._operations.recent(limit, before, where, as_of)

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
        """The most relevant episodes now, most relevant first, at the same cost for any number of episodes.

        What is pinned comes first, the newest before the older ones. ``min_relevance`` (0 to 1) leaves out what is less
        relevant. To recall is not to access: it reinforces nothing. A filter by episode type or time that few match
        reads through those that do not; one by memory type costs nothing.

        >>> from qilbee_core import open_store
        >>> with open_store(backend="ephemeral") as store:
        ...     memory = store.agent_memory("bot")
        ...     for text, relevance in ("tea", 0.5), ("oak", 0.9), ("ink", 0.1):
        ...         id = memory.store_episode(Episode.observation("bot", text, relevance=relevance))
        ...     [episode.content["observation"] for episode in memory.recall(2)]
        ['oak', 'tea']
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return self._operations.recall(limit, min_relevance, where)

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
        """All episodes with ``start <= event time < end``, oldest first, read as they are asked for.

        They are those of the moment of the call, whatever is written meanwhile. ``after`` is the id of an episode,
        also of one that is gone: what comes after it in this order is given, so a reading that broke off goes on.
        With ``as_of`` they are those of that transaction time, as they were, see :meth:`get_episode`.

        >>> from datetime import UTC, datetime, timedelta
        >>> from qilbee_core import open_store
        >>> with open_store(backend="ephemeral") as store:
        ...     memory = store.agent_memory("bot")
        ...     id = memory.store_episode(Episode.observation("bot", "Ana lives in Oslo."))
        ...     known = memory.get_episode(id).transaction_time
        ...     fact = memory.update_episode(id, content={"observation": "Ana lives in Rome."})
        ...     [episode.content["observation"] for episode in memory.episodes(as_of=known)]
        ['Ana lives in Oslo.']
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return self._operations.between(where, after, reverse=reverse, as_of=as_of)

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
        """The episodes that fit a query best by their words, best first.

        Forms of a word count as one, and near words count too; so do what was said just before and after, the session,
        who speaks, and the days that the query names. Only what is of the types given, with ``start <= event time <
        end``, is found. Whatever was stored before the call can be found; what fits in nothing is left out.

        With ``as_of`` only what was known at that transaction time is given, as it was and if it was of the types then;
        see :meth:`get_episode`. It is found by what it says now, so what is retired by now is not, and it must be among
        the thousand best of today. That holds for all searches.

        >>> from qilbee_core import Episode, open_store
        >>> with open_store(backend="ephemeral") as store:
        ...     memory = store.agent_memory("bot")
        ...     for text in "The order number is 48213.", "Tea is served at five.":
        ...         id = memory.store_episode(Episode.observation("bot", text))
        ...     [episode.content["observation"] for episode in memory.search_episodes("number of my order")]
        ['The order number is 48213.']
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return self._operations.search(query, limit, where, as_of)

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
        """The episodes that are nearest to a query in meaning, best first: also those that share no word with it.

        ``min_score`` leaves out what is less near; 1 or about it is the same, 0 is unrelated.
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return self._operations.search_by_meaning(query, limit, min_score, where, as_of, explain=explain)

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
        """The episodes that fit a query best by words and meaning together, best first.

        ``semantic_weight`` is the share of meaning, from 0 (words alone, as :meth:`search_episodes` finds them) to 1
        (meaning alone); left out, it is the one that finds most. With ``explain`` each result says which part of its
        score comes from what.
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return self._operations.search_by_both(query, limit, semantic_weight, where, as_of, explain=explain)

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
        """The episodes that are nearest in meaning to a stored one, best first, without itself.

        NotFoundError where there is no such episode.
        """
        where = EpisodeFilter.of(episode_type, memory_type, start, end)
        return self._operations.find_similar(id, limit, where, as_of, explain=explain)

    def get_semantic_search_status(self) -> SearchStatus:
        """Whether search is on, what it was made with, and how many episodes wait to be indexed."""
        return self._operations.search_status()

    def update_episode(
        self,
        id: str,
        *,
        content: JSONObject | None = None,
        metadata: JSONObject | None = None,
        episode_type: str | None = None,
    ) -> Episode:
        """Replace what is given and keep the rest; gives the episode as it is now.

        Id and event time are fixed: a wrong event time is corrected by a new episode. NotFoundError
        where there is no such episode. The version before is kept, see :meth:`history`, unless history is switched off.
        """
        return self._durable(self._operations.update, id, content=content, metadata=metadata, episode_type=episode_type)

    def history(self, id: str, *, after: datetime | None = None) -> list[Episode]:
        """The versions of an episode that have ended, oldest first; empty for one that was never changed.

        With ``after`` only those that ended after that time.

        Each has the ``transaction_time`` it was recorded at, and ``ended_at``: when an update replaced it, or the
        episode was retired. In the second case ``superseded_by`` is the id of what took its place, if anything did. The
        current version is not among them: :meth:`get_episode` gives it.
        """
        return self._operations.history(id, after)

    def invalidate(self, id: str) -> bool:
        """Retire an episode that is no longer true, and keep what was once known; gives False where there is none.

        No verb of the present finds it any more. :meth:`history` and ``as_of`` do, until it is deleted or purged. It
        stays stored: to store the same episode again does not bring it back. In a store that keeps no history it is
        deleted.
        """
        return self._durable(self._operations.invalidate, id)

    def purge(self, before: datetime, *, erase: bool = False) -> PurgeReceipt:
        """Remove for good every version that ended before a time, and whole episodes that were retired before it.

        What is current stays, and so does what was current at ``before`` or later: ``as_of`` such a time gives the same
        answers as ever. It goes in batches of 256 episodes, each atomic; interrupted, it can be called again. With
        ``erase`` the bytes have left the files too when the call returns, see :meth:`delete_episode`.
        """
        return self._durable(self._operations.purge, before, erase=erase)

    def boost(self, id: str, share: float = 0.5) -> Episode:
        """Make an episode more relevant; gives it as it is now.

        Its relevance r becomes ``r + share * (1 - r)``, and decays anew from there; with a share of 1 it is as fresh
        as a new one. NotFoundError where there is no such episode.
        """
        return self._durable(self._operations.boost, id, share)

    def pin(self, id: str) -> Episode:
        """Keep an episode: fully relevant, first in :meth:`recall`, never forgotten, and not expiring; gives it.

        NotFoundError where there is no such episode. It can be updated, deleted and cleared like any other.
        """
        return self._durable(self._operations.pin, id, pinned=True)

    def unpin(self, id: str) -> Episode:
        """Let a pinned episode go on as if it had never been pinned; gives it.

        So it may be faded at once, or have expired. NotFoundError where there is no such episode.
        """
        return self._durable(self._operations.pin, id, pinned=False)

    def forget(
        self,
        min_relevance: float = 0.1,
        *,
        max_episodes: int | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> ForgetReceipt:
        """Delete what is less relevant now than ``min_relevance``, and the least relevant while there is too much.

        With ``max_episodes`` or ``max_bytes`` (of records, as get_statistics() counts them) more is forgotten until so
        much is left; ``forget(0, max_episodes=1000)`` keeps the thousand most relevant. What is pinned stays, and
        counts. With ``dry_run`` nothing is deleted: the receipt says what would be.

        It costs what is forgotten, not what is kept, and goes in batches of 256 episodes, each atomic: interrupted, it
        has forgotten the least relevant, and can be called again. What expires goes by itself and is not counted here.
        """
        return self._durable(self._operations.forget, min_relevance, max_episodes, max_bytes, dry_run=dry_run)

    def consolidate(
        self,
        policy: str | ConsolidationPolicy = "duplicates",
        *,
        dry_run: bool = False,
        since: datetime | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> ConsolidationResult:
        """Let a policy make less of what the agent remembers, and carry out what it plans.

        ``policy`` is the name of one (``duplicates``, ``sessions``, ``llm``, or a plugin's), with its settings from the
        configuration, or an object of your own. It is offered what happened ``since``, but for what is pinned or
        expires. With ``dry_run`` nothing changes: the result says what would. ``progress`` is called with the number of
        episodes that gave way so far after each batch.

        Memories that others take the place of are retired, like by :meth:`invalidate`; :meth:`undo` brings them back.
        Stores may go on meanwhile: what changes before it gives way stays, and the result says so. Interrupted, it
        leaves whole groups (a new memory with all that it is made of), and can be called again.

        Raises PluginError, and changes nothing, where the policy fails or breaks its contract; ProviderNotFoundError
        for a name that nobody provides; SettingsError for settings that the policy has not.

        >>> from qilbee_core import open_store
        >>> with open_store(backend="ephemeral") as store:
        ...     memory = store.agent_memory("bot")
        ...     for text in "Order 7 is sent.", "Well, order 7 is sent!", "Order 8 is sent.":
        ...         id = memory.store_episode(Episode.observation("bot", text))
        ...     result = memory.consolidate("duplicates")
        ...     print(len(result.superseded), memory.get_statistics().total_episodes)
        ...     receipt = memory.undo(result.consolidation_id)
        ...     print(len(receipt.restored), memory.get_statistics().total_episodes)
        1 2
        1 3
        """
        return self._durable(self._operations.consolidate, policy, since, dry_run=dry_run, progress=progress)

    def consolidations(self) -> list[Consolidation]:
        """The consolidations that can be undone, the newest first."""
        return self._operations.consolidations()

    def undo(self, consolidation_id: str) -> UndoReceipt:
        """Bring back the episodes that a consolidation took away, and retire the memories that it created.

        They come back as they were: text, strength, pin, idempotency key, place in every index. A created memory that
        was updated or pinned since, or retired by something else, stays as it is; an episode that was deleted or purged
        since stays gone. It goes in batches, each atomic; interrupted, it can be called again. NotFoundError where
        there is no such consolidation, or it is too old (``[memory] undo_days``).
        """
        return self._durable(self._operations.undo, consolidation_id)

    def delete_episode(self, id: str, *, erase: bool = False) -> bool:
        """Delete an episode with all its versions, also one that was retired; gives False where there is none.

        It is gone from every answer at once. With ``erase`` its bytes have left the files too when the
        call returns, which rewrites part of them; otherwise they leave with the next compactions.
        """
        return self._durable(self._operations.delete, id, erase=erase)

    def clear(self, *, erase: bool = False) -> ClearReceipt:
        """Delete everything this agent remembers, at once; gives the counts of what was deleted."""
        return self._durable(self._operations.clear, erase=erase)

    def get_statistics(self) -> MemoryStatistics:
        """Counts, sizes and average relevance, at the same cost for any number of episodes."""
        return self._operations.statistics()


def batches(episodes: Iterable[Episode], size: int = BATCH_EPISODES_MAX) -> Iterator[list[Episode]]:
    """Cut a stream into lists of at most ``size``."""
    if not isinstance(episodes, Iterable):
        raise InvalidError(f"episodes is {shown(episodes)}", remedy="give a list, or any iterable, of Episode")
    remaining = iter(episodes)
    while batch := list(islice(remaining, size)):
        yield batch


class ImportedIds:
    """The ids an import has stored so far, at 16 bytes each."""

    def __init__(self) -> None:
        self._ids = bytearray()

    def __len__(self) -> int:
        return len(self._ids) // 16

    def add(self, ids: Iterable[str]) -> None:
        """Remember what was stored."""
        for text in ids:
            self._ids += parse_id(text)

    def explain(self, error: BaseException) -> None:
        """Tell, in the exception that stops the import, what is stored."""
        stored_ids = [format_id(bytes(self._ids[at : at + 16])) for at in range(0, len(self._ids), 16)]
        error.stored_ids = stored_ids  # type: ignore[attr-defined]  # any exception may stop it
        error.add_note(f"{len(self)} episodes were stored before this; their ids are in stored_ids")
