"""Every operation on one agent's memory, in one place for the sync and the asyncio face alike.

Reads take what the backend holds and give episodes. Writes plan a :class:`~qilbee_core.memory.commit.Change`
and commit it. A write gives its value and a ticket: the answer holds at the store's durability level once
:mod:`qilbee_core.durability` has waited for that ticket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from msgspec.structs import replace

from qilbee_core.batch import Delete, DeleteRange, Operation, Put
from qilbee_core.envelope import frame, unframe
from qilbee_core.episode import Episode, JSONObject, MemoryType
from qilbee_core.errors import ConflictError, InvalidError, NotFoundError, shown
from qilbee_core.ids import (
    datetime_of_us,
    event_us_of,
    format_id,
    lowest_id,
    now_us,
    parse_id,
    us_of_datetime,
)
from qilbee_core.interfaces import SupportsErase
from qilbee_core.keys import Space, encode_agent_id
from qilbee_core.limits import (
    BATCH_BYTES_MAX,
    BATCH_EPISODES_MAX,
    CONTENT_BYTES_MAX,
    EPISODE_TYPE_BYTES_MAX,
    EPISODE_TYPES_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    LIMIT_MAX,
    METADATA_BYTES_MAX,
    check_episode,
    check_flag,
    check_limit,
    check_memory_type,
    check_moment,
    check_object,
    check_sizes,
    check_text,
    surrogate_error,
)
from qilbee_core.memory.commit import Agent, Context, Place, Touched
from qilbee_core.memory.document import (
    MEMORY_TYPE_NUMBERS,
    EpisodeDocument,
    decay_start_us,
    digest_of,
    digest_of_key,
    fields_of,
)
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind
from qilbee_core.memory.relevance import STRENGTH_MIN, Order, average, contribution, relevance, vitality
from qilbee_core.memory.statistics import ClearReceipt, MemoryStatistics

__all__ = ["BatchTooLargeError", "Operations"]

# Of one agent, all that goes with clear(); the head is one key and goes by itself.
_AGENT_SPACES = (
    Space.EPISODE,
    Space.STATE,
    Space.HISTORY,
    Space.VITALITY,
    Space.CHANGE,
    Space.KEY,
    Space.TERMS,
    Space.VECTOR,
    Space.PLAN,
)
_TEXT_SPACES = (Space.EPISODE, Space.HISTORY, Space.TERMS, Space.VECTOR, Space.PLAN)


_SURELY_FITTING_BYTES = METADATA_BYTES_MAX // 4
"""A body up to this fits, whatever wrote it: no serializer takes less than a quarter of what MessagePack takes."""


class BatchTooLargeError(InvalidError):
    """More bytes than one batch may hold; half as many episodes may fit."""


class Operations:
    """The operations on the memory of one agent."""

    def __init__(
        self,
        context: Context,
        agent_id: str,
        *,
        episodes_stored: Callable[[str, Sequence[Episode]], None] | None = None,
    ) -> None:
        self._context = context
        self._agent: Agent = context.agent(agent_id)
        self._keys = self._agent.keys
        self._backend = context.backend
        self._records = context.records
        self._observe = episodes_stored
        self.agent_id = self._agent.id

    # --- writes

    def store(self, episodes: Sequence[Episode], idempotency_key: str | None = None) -> tuple[list[str], int]:
        """Store all of ``episodes`` or none; what is stored already, with the same content, stays as it is.

        An idempotency key is for one episode.
        """
        if len(episodes) > BATCH_EPISODES_MAX:
            raise InvalidError(
                f"a batch of {len(episodes)} episodes, the most is {BATCH_EPISODES_MAX}",
                remedy="use import_episodes(), which stores any number in bounded batches",
            )
        agent_id = self.agent_id
        for episode in episodes:
            check_episode(episode)
            if episode.agent_id != agent_id and encode_agent_id(episode.agent_id).decode() != agent_id:
                raise InvalidError(
                    f"the episode belongs to agent {episode.agent_id!r}, this memory to {agent_id!r}",
                    remedy=f"store it in agent_memory({episode.agent_id!r})",
                )
        digest = b""
        if idempotency_key is not None:
            check_text(idempotency_key, "idempotency_key", IDEMPOTENCY_KEY_BYTES_MAX)
            digest = digest_of_key(idempotency_key)
            known, ticket = self._context.commit(self._agent, ChangeKind.UPDATE, self._plan_mark, episodes[0], digest)
            if known is not None:
                return [known], ticket
        stored: list[Episode] = []
        answer = self._context.commit(self._agent, ChangeKind.STORE, self._plan_store, episodes, digest, stored)
        if digest and not stored:
            # Somebody stored it meanwhile, perhaps without the key: now it gets the key.
            known, ticket = self._context.commit(self._agent, ChangeKind.UPDATE, self._plan_mark, episodes[0], digest)
            return ([known], ticket) if known is not None else answer
        if self._observe is not None and stored:
            self._observe(agent_id, stored)
        return answer

    def _plan_store(
        self,
        head: Head,
        operations: list[Operation],
        episodes: Sequence[Episode],
        digest: bytes,
        stored: list[Episode],
    ) -> tuple[list[str], Touched]:
        # What a store costs is spent here: this is one straight line for a new episode.
        keys, orders = self._keys, self._context.orders
        encode, seal = self._records.encode, self._records.seal_encoded
        transaction_us = head.transaction_us
        start_us = decay_start_us(transaction_us)
        touched: Touched = {}
        batch_bytes = 0
        stored.clear()
        if digest and (known := self._stored_under(digest, episodes[0])) is not None:
            return [format_id(known)], touched  # somebody was quicker
        for episode in episodes:
            # No id above newest_id was ever stored: new episodes are not looked for.
            if episode._id <= head.newest_id and self._is_stored(touched, episode):
                continue
            id_bytes = episode._id
            head.newest_id = max(head.newest_id, id_bytes)
            key = keys.episodes + id_bytes
            try:
                body = encode(fields_of(episode, transaction_us, digest.hex()))
                if len(body) > _SURELY_FITTING_BYTES:
                    check_sizes(episode.content, episode.metadata)
            except UnicodeEncodeError:
                raise surrogate_error({"content": episode.content, "metadata": episode.metadata}, "episode") from None
            value = seal(key, body)
            episode_type = episode.episode_type
            if episode_type not in head.types:
                self._check_new_type(head)
            order = orders[MEMORY_TYPE_NUMBERS[episode.memory_type]]
            place = self._agent.place
            if place.decay_start_us != start_us or place.order != order.number or episode.relevance != 1.0:
                place = self._place(order, episode.relevance, start_us)
            head.add(episode_type, len(key) + len(value), order.number, place.contribution)
            operations += (Put(key, value), Put(place.key_start + id_bytes, b""))
            episode._id_fixed = True
            if digest:
                mark = keys.idempotency_key(digest)
                operations.append(Put(mark, frame(mark, id_bytes)))
            touched[id_bytes] = value
            batch_bytes += len(value)
            stored.append(episode)
        if batch_bytes > BATCH_BYTES_MAX and len(episodes) > 1:
            raise BatchTooLargeError(
                f"the batch takes {batch_bytes} bytes, the most is {BATCH_BYTES_MAX}",
                remedy="use import_episodes(), which stores any number in bounded batches",
            )
        return [episode.id for episode in episodes], touched

    def _plan_mark(
        self, head: Head, operations: list[Operation], episode: Episode, digest: bytes
    ) -> tuple[str | None, Touched]:
        """The id that an idempotency key stands for, where it does; an episode that is stored already gets the key."""
        known = self._stored_under(digest, episode)
        if known is not None:
            return format_id(known), {}
        key = self._keys.episode(episode._id)
        value = self._backend.get(key)
        if value is None or not self._is_same(key, value, episode):
            return None, {}
        document = self._open(key, value)
        if document.idempotency_digest:
            raise ConflictError(
                f"episode {episode.id} is stored under another idempotency key", remedy="use the key it was stored with"
            )
        sealed = self._records.seal(key, replace(document, idempotency_digest=digest.hex()).fields())
        head.record_bytes += len(sealed) - len(value)
        mark = self._keys.idempotency_key(digest)
        operations += (Put(key, sealed), Put(mark, frame(mark, episode._id)))
        return episode.id, {episode._id: sealed}

    def _is_stored(self, touched: Touched, episode: Episode) -> bool:
        """Whether the episode is there already; an id of ours that another episode has is drawn again."""
        while True:
            id_bytes = episode._id
            key = self._keys.episode(id_bytes)
            value = touched.get(id_bytes) or self._backend.get(key)
            if value is None:
                return False
            if self._is_same(key, value, episode):
                return True
            if episode._id_fixed:
                raise ConflictError(
                    f"episode {episode.id} is stored with other content",
                    remedy="use update_episode() to change it, or leave the id out to store another",
                )
            episode._draw_again()

    def update(
        self,
        id: str,
        *,
        content: JSONObject | None,
        metadata: JSONObject | None,
        episode_type: str | None,
    ) -> tuple[Episode, int]:
        """Change what is given; the version before goes to the history."""
        id_bytes = parse_id(id)
        if content is not None:
            check_object(content, "content", CONTENT_BYTES_MAX)
        if metadata is not None:
            check_object(metadata, "metadata", METADATA_BYTES_MAX)
        if episode_type is not None:
            check_text(episode_type, "episode_type", EPISODE_TYPE_BYTES_MAX)

        def plan(head: Head, operations: list[Operation]) -> tuple[Episode, Touched]:
            key = self._keys.episode(id_bytes)
            value = self._backend.get(key)
            if value is None:
                raise NotFoundError(f"agent {self.agent_id!r} has no episode {id}")
            old = self._open(key, value)
            new = replace(
                old,
                content=old.content if content is None else content,
                metadata=old.metadata if metadata is None else metadata,
                episode_type=episode_type or old.episode_type,
                transaction_us=head.transaction_us,
                reinforced_us=old.decay_start_us(),
                origin=old.digest(),
                previous_us=old.transaction_us,
            )
            try:
                body = self._records.encode(new.fields())
                if len(body) > _SURELY_FITTING_BYTES:
                    check_sizes(new.content, new.metadata)
                if new.own_digest() == old.own_digest():
                    return self._episode(id_bytes, old), {}
            except UnicodeEncodeError:
                raise surrogate_error({"content": new.content, "metadata": new.metadata}, "episode") from None
            sealed = self._records.seal_encoded(key, body)
            # Strength and decay are as before, and so is the place in the order of relevance.
            order = self._context.orders[old.memory_type]
            moved = contribution(order, vitality(order, old.strength, old.decay_start_us()))
            head.remove(old.episode_type, len(key) + len(value), order.number, moved)
            if new.episode_type not in head.types:
                self._check_new_type(head)
            head.add(new.episode_type, len(key) + len(sealed), order.number, moved)
            history_key = self._keys.history(id_bytes, old.transaction_us)
            operations += (
                Put(history_key, self._records.seal(history_key, old.fields())),
                Put(key, sealed),
            )
            return self._episode(id_bytes, new), {id_bytes: sealed}

        return self._context.commit(self._agent, ChangeKind.UPDATE, plan)

    def delete(self, id: str, *, erase: bool) -> tuple[bool, int]:
        """Remove an episode with its history; with ``erase`` its bytes leave the files before this returns."""
        id_bytes = parse_id(id)
        check_flag(erase, "erase")
        engine = self._erasing_engine() if erase else None
        key = self._keys.episode(id_bytes)
        history = self._keys.history_range(id_bytes)

        def plan(head: Head, operations: list[Operation]) -> tuple[bool, Touched]:
            value = self._backend.get(key)
            if value is None:
                return False, {}
            document = self._open(key, value)
            order = self._context.orders[document.memory_type]
            place = vitality(order, document.strength, document.decay_start_us())
            head.remove(document.episode_type, len(key) + len(value), order.number, contribution(order, place))
            operations += (Delete(key), Delete(self._keys.vitality(order.number, place, id_bytes)))
            if document.previous_us:
                operations.append(DeleteRange(*history))
            if document.idempotency_digest:
                operations.append(Delete(self._keys.idempotency_key(bytes.fromhex(document.idempotency_digest))))
            return True, {id_bytes: None}

        deleted, ticket = self._context.commit(self._agent, ChangeKind.DELETE, plan)
        if engine is not None:
            engine.erase([(key, key + b"\x00"), history])
        return deleted, ticket

    def clear(self, *, erase: bool) -> tuple[ClearReceipt, int]:
        """Remove everything of the agent in one batch; what it stores next begins a new generation."""
        check_flag(erase, "erase")
        engine = self._erasing_engine() if erase else None
        receipt, ticket = self._context.clear(
            self._agent, [DeleteRange(*self._keys.range(space)) for space in _AGENT_SPACES]
        )
        if engine is not None:
            engine.erase([self._keys.range(space) for space in _TEXT_SPACES])
        return receipt, ticket

    # --- reads

    def get(self, id: str) -> Episode | None:
        """The episode, or None."""
        id_bytes = parse_id(id)
        value = self._agent.tail.values.get(id_bytes) or self._backend.get(self._keys.episode(id_bytes))
        return None if value is None else self._restore(id_bytes, value)

    def get_many(self, ids: Sequence[str]) -> list[Episode | None]:
        """One answer for each id, in the order given."""
        if isinstance(ids, str) or not isinstance(ids, Sequence):
            raise InvalidError(f"ids is {type(ids).__name__}", remedy="give a list of ids")
        if len(ids) > LIMIT_MAX:
            raise InvalidError(f"{len(ids)} ids, the most is {LIMIT_MAX}", remedy="ask for them in parts")
        all_bytes = [parse_id(text) for text in ids]
        values = self._backend.get_many([self._keys.episode(id_bytes) for id_bytes in all_bytes])
        return [
            None if value is None else self._restore(id_bytes, value)
            for id_bytes, value in zip(all_bytes, values, strict=True)
        ]

    def recent(
        self, limit: int, before: str | None, episode_type: str | None, memory_type: MemoryType | None
    ) -> list[Episode]:
        """The newest by event time, below ``before``."""
        check_limit(limit)
        before_bytes = None if before is None else parse_id(before)
        if memory_type is not None:
            check_memory_type(memory_type)
        if episode_type is not None and type(episode_type) is not str:
            raise InvalidError(f"episode_type is {shown(episode_type)}", remedy="give the name of a type")
        if episode_type is None and memory_type is None:
            return [self._restore(id_bytes, value) for id_bytes, value in self._newest(limit, before_bytes)]
        found: list[Episode] = []
        for key, value in self._scan(before_bytes):
            episode = self._restore(key[-16:], value)
            if episode_type in (None, episode.episode_type) and memory_type in (None, episode.memory_type):
                found.append(episode)
                if len(found) == limit:
                    break
        return found

    def _newest(self, limit: int, before: bytes | None) -> list[tuple[bytes, bytes]]:
        context, agent = self._context, self._agent
        if not context.single_process or before is not None:
            return self._take(self._scan(before), limit)
        known = context.tails.newest(agent.tail, limit, None)
        if known is None:
            # Under the lock, so that nothing is stored between what is read and what the tail believes.
            with agent.lock:
                known = self._take(self._scan(None), limit)
                if known:
                    context.tails.fill(agent.tail, known, whole=len(known) < limit)
        return known

    @staticmethod
    def _take(pairs: Iterator[tuple[bytes, bytes]], limit: int) -> list[tuple[bytes, bytes]]:
        taken: list[tuple[bytes, bytes]] = []
        for key, value in pairs:
            taken.append((key[-16:], value))
            if len(taken) == limit:
                break
        return taken

    def _scan(self, before: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        start, stop = self._keys.range(Space.EPISODE)
        return self._backend.scan(start, stop if before is None else self._keys.episode(before), reverse=True)

    def between(self, start: datetime | None, end: datetime | None, *, reverse: bool) -> Iterator[Episode]:
        """Episodes with ``start <= event time < end``, as they are now, one at a time."""
        check_flag(reverse, "reverse")
        low, high = self._keys.range(Space.EPISODE)
        if start is not None:
            check_moment(start, "start")
            low = self._keys.episode(lowest_id(us_of_datetime(start)))
        if end is not None:
            check_moment(end, "end")
            high = self._keys.episode(lowest_id(us_of_datetime(end)))
        pairs = self._backend.scan(low, high, reverse=reverse)
        return (self._restore(key[-16:], value) for key, value in pairs)

    def history(self, id: str) -> list[Episode]:
        """Every version of an episode that was replaced, oldest first."""
        id_bytes = parse_id(id)
        return [
            self._episode(id_bytes, self._open(key, value))
            for key, value in self._backend.scan(*self._keys.history_range(id_bytes))
        ]

    def statistics(self) -> MemoryStatistics:
        """Figures from the head, and one look at either end."""
        head = self._context.head(self._agent)
        if head is None or not head.types:
            return MemoryStatistics(
                total_episodes=0,
                episodes_by_type={},
                oldest_episode=None,
                newest_episode=None,
                avg_relevance=0.0,
                bytes=0,
            )
        now = max(now_us(), head.transaction_us)  # the clock may have been set back
        orders = {order.number: order for order in self._context.orders}
        total = sum(
            average(orders[number], tally.total, tally.count, now) * tally.count
            for number, tally in head.tallies.items()
        )
        oldest, newest = (
            next((datetime_of_us(event_us_of(key[-16:])) for key, _ in self._end(reverse=reverse)), None)
            for reverse in (False, True)
        )
        return MemoryStatistics(
            total_episodes=head.episodes,
            episodes_by_type=dict(head.types),
            oldest_episode=oldest,
            newest_episode=newest,
            avg_relevance=total / head.episodes,
            bytes=head.record_bytes,
        )

    def _end(self, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        return self._backend.scan(*self._keys.range(Space.EPISODE), reverse=reverse)

    # --- parts of the above

    def _place(self, order: Order, strength: float, start_us: int) -> Place:
        where = vitality(order, strength, start_us)
        key_start = self._keys.vitality(order.number, where, b"")
        place = Place(start_us, order.number, where, contribution(order, where), key_start)
        if strength == 1.0:
            self._agent.place = place
        return place

    def _check_new_type(self, head: Head) -> None:
        if len(head.types) >= EPISODE_TYPES_MAX:
            raise InvalidError(
                f"agent {self.agent_id!r} has {EPISODE_TYPES_MAX} episode types already",
                remedy="use fewer types, and metadata for what varies",
            )

    def _stored_under(self, digest: bytes, episode: Episode) -> bytes | None:
        """The id stored under an idempotency key, where there is one; ConflictError where its content differs."""
        mark = self._keys.idempotency_key(digest)
        framed = self._backend.get(mark)
        if framed is None:
            return None
        id_bytes = unframe(mark, framed)
        key = self._keys.episode(id_bytes)
        value = self._backend.get(key)
        if value is None:
            return None  # deleted since, and with it what the key stood for
        if not self._is_same(key, value, episode):
            raise ConflictError(
                f"the idempotency key stands for episode {format_id(id_bytes)}, which has other content",
                remedy="use another key for another episode",
            )
        return id_bytes

    def _is_same(self, key: bytes, value: bytes, episode: Episode) -> bool:
        memory_type = MEMORY_TYPE_NUMBERS[episode.memory_type]
        try:
            given = digest_of(episode.episode_type, episode.content, episode.metadata, memory_type)
        except UnicodeEncodeError:
            raise surrogate_error({"content": episode.content, "metadata": episode.metadata}, "episode") from None
        return self._open(key, value).digest() == given

    def _open(self, key: bytes, value: bytes) -> EpisodeDocument:
        return EpisodeDocument.from_fields(self._records.open(key, value))

    def _restore(self, id_bytes: bytes, value: bytes) -> Episode:
        return self._episode(id_bytes, self._open(self._keys.episode(id_bytes), value))

    def _episode(self, id_bytes: bytes, document: EpisodeDocument) -> Episode:
        order = self._context.orders[document.memory_type]
        if order.half_life_us is None:
            return document.episode(self.agent_id, id_bytes, max(document.strength, STRENGTH_MIN))
        place = vitality(order, document.strength, document.decay_start_us())
        return document.episode(self.agent_id, id_bytes, relevance(order, place, now_us()))

    def _erasing_engine(self) -> SupportsErase:
        if not isinstance(self._backend, SupportsErase):
            raise InvalidError(
                f"the {self._backend.name} backend cannot erase bytes from its files",
                remedy="delete without erase=True; nothing was deleted",
            )
        return self._backend
