"""The memory of one agent, for plain (synchronous) programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import ParamSpec, TypeVar

from qilbee_core.durability import Durability
from qilbee_core.episode import Episode, JSONObject, MemoryType
from qilbee_core.errors import ConflictError, InvalidError, NotFoundError, shown
from qilbee_core.ids import format_id, parse_id
from qilbee_core.limits import BATCH_EPISODES_MAX
from qilbee_core.memory.operations import BatchTooLargeError, Operations
from qilbee_core.memory.statistics import ClearReceipt, MemoryStatistics

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
            ids, ticket = self._operations.store((episode,), idempotency_key)
        except ConflictError:
            self._durability.wait_for_earlier()
            raise
        self._durability.wait(ticket)
        return ids[0]

    def store_episodes(self, episodes: Iterable[Episode]) -> list[str]:
        """Store up to 1000 episodes in one atomic batch, all or none; gives their ids in order."""
        return self._durable(self._operations.store, next(batches(episodes, BATCH_EPISODES_MAX + 1), []))

    def import_episodes(self, episodes: Iterable[Episode], *, progress: Callable[[int], object] | None = None) -> int:
        """Store any number of episodes in bounded batches; gives how many.

        ``progress`` is called with the number so far after each batch. Whatever stops the import, the
        exception carries ``stored_ids``, the ids that are stored by then. Importing episodes with the
        same ids again goes on where it stopped: what is stored already is not stored twice.
        """
        if progress is not None and not callable(progress):
            raise InvalidError(f"progress is {shown(progress)}", remedy="give a function of one number")
        stored = ImportedIds()
        try:
            for batch in batches(episodes):
                for ids in self._store_in_parts(batch):
                    stored.add(ids)
                    if progress is not None:
                        progress(len(stored))
        except BaseException as error:
            stored.explain(error)
            raise
        return len(stored)

    def _store_in_parts(self, batch: list[Episode]) -> Iterator[list[str]]:
        try:
            yield self.store_episodes(batch)
        except BatchTooLargeError:
            half = len(batch) // 2
            yield from self._store_in_parts(batch[:half])
            yield from self._store_in_parts(batch[half:])

    def get_episode(self, id: str) -> Episode | None:
        """The episode with that id, or None."""
        return self._operations.get(id)

    def get_episodes(self, ids: Sequence[str]) -> list[Episode | None]:
        """One answer for each of up to 1000 ids, in the order given; None where there is no episode."""
        return self._operations.get_many(ids)

    def get_recent_episodes(
        self,
        limit: int = 10,
        *,
        before: str | None = None,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
    ) -> list[Episode]:
        """The newest episodes by event time, newest first.

        ``before`` is the id of an episode, usually the last of the page before: only older ones are
        given. A page stays the same whatever is stored later. A filter that few episodes match reads
        through those that do not.
        """
        return self._operations.recent(limit, before, episode_type, memory_type)

    def episodes(
        self, start: datetime | None = None, end: datetime | None = None, *, reverse: bool = False
    ) -> Iterator[Episode]:
        """All episodes with ``start <= event time < end``, oldest first, read as they are asked for.

        They are those of the moment of the call, whatever is written meanwhile.
        """
        return self._operations.between(start, end, reverse=reverse)

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
        where there is no such episode. The version before is kept, see :meth:`history`.
        """
        return self._durable(self._operations.update, id, content=content, metadata=metadata, episode_type=episode_type)

    def history(self, id: str) -> list[Episode]:
        """The versions that updates replaced, oldest first; empty for an episode that was never updated."""
        return self._operations.history(id)

    def delete_episode(self, id: str, *, erase: bool = False) -> bool:
        """Delete an episode with all its versions; gives False where there is none.

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
