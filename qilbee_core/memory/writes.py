"""Changing an agent's memory: storing, updating, deleting.

A write gives its value and a ticket: the answer holds at the store's durability level once
:mod:`qilbee_core.durability` has waited for that ticket.

What has expired is gone for whoever asks, and its rows go with the writes that come after: each removes some of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, TypeVarTuple

from msgspec.structs import replace

from qilbee_core.batch import Delete, DeleteRange, Operation, Put
from qilbee_core.envelope import frame, unframe
from qilbee_core.episode import Episode, JSONObject
from qilbee_core.errors import (
    ConflictError,
    DataError,
    InvalidError,
    NotFoundError,
    ProviderNotFoundError,
    QilbeeError,
)
from qilbee_core.ids import format_id, parse_id
from qilbee_core.interfaces import Document, SupportsErase
from qilbee_core.keys import Space, encode_agent_id
from qilbee_core.limits import (
    BATCH_BYTES_MAX,
    BATCH_EPISODES_MAX,
    CONTENT_BYTES_MAX,
    EPISODE_TYPE_BYTES_MAX,
    EPISODE_TYPES_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    METADATA_BYTES_MAX,
    SURELY_FITTING_BYTES,
    check_episode,
    check_flag,
    check_object,
    check_sizes,
    check_text,
    surrogate_error,
)
from qilbee_core.memory.append import append
from qilbee_core.memory.commit import Context, Touched
from qilbee_core.memory.document import (
    MEMORY_TYPE_NUMBERS,
    EpisodeDocument,
    decay_start_us,
    digest_of,
    digest_of_key,
    fields_of,
    usual_fields,
)
from qilbee_core.memory.head import NEVER_US, Head
from qilbee_core.memory.indexing import Indexing
from qilbee_core.memory.log import ChangeKind
from qilbee_core.memory.reads import Found, Reads
from qilbee_core.memory.relevance import Order, contribution, vitality
from qilbee_core.memory.resident import Place, Waiting
from qilbee_core.memory.state import State, first_state, standing, standings
from qilbee_core.memory.statistics import ClearReceipt
from qilbee_core.memory.terms import row_key
from qilbee_core.memory.undo import remove_from_undo

__all__ = ["REMOVED_AT_ONCE_MAX", "BatchTooLargeError", "Writes"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

REMOVED_AT_ONCE_MAX = 256
"""Episodes in one batch that removes many: it holds up the agent's other writers for some milliseconds."""
_BATCHED_MIN = 4
"""As many are stored in one batch for less than one by one."""

# Of one agent, all that goes with clear(); the head is one key and goes by itself.
_AGENT_SPACES = (
    Space.EPISODE,
    Space.STATE,
    Space.HISTORY,
    Space.VITALITY,
    Space.EXPIRY,
    Space.CHANGE,
    Space.KEY,
    Space.TERMS,
    Space.VECTOR,
    Space.PLAN,
)
_STORE = ChangeKind.STORE  # a name of the module is found four times faster than a member of an enum
_TEXT_SPACES = (Space.EPISODE, Space.HISTORY, Space.TERMS, Space.VECTOR, Space.PLAN)


class BatchTooLargeError(InvalidError):
    """More bytes than one batch may hold; half as many episodes may fit."""


class _InTheWayError(Exception):
    """An episode that has expired has the id or the key that another is to be stored under."""

    def __init__(self, id_bytes: bytes) -> None:
        self.id_bytes = id_bytes


class Writes(Reads):
    """The operations that store, change and remove episodes, and all operations that only read."""

    def __init__(
        self,
        context: Context,
        indexing: Indexing,
        agent_id: str,
        *,
        episodes_stored: Callable[[str, Sequence[Episode]], None] | None = None,
        keep_history: bool = True,
    ) -> None:
        super().__init__(context, agent_id)
        self._indexing = indexing
        self._keep_history = keep_history
        self._observe = episodes_stored

    def _commit(
        self, kind: ChangeKind, plan: Callable[[Head, list[Operation], *Ts], tuple[T, Touched]], *args: *Ts
    ) -> tuple[T, int]:
        """Commit a write, and remove some of what has expired."""
        while True:
            try:
                unindexed = self._agent.unindexed
                done = self._context.commit(self._agent, kind, plan, *args)
                if self._agent.unindexed >= self._indexing.unindexed_max:
                    self._indexing.help(self._agent, self._agent.unindexed - unindexed)
                break
            except _InTheWayError as found:
                self._context.commit(self._agent, ChangeKind.DELETE, self._plan_removal, [found.id_bytes])
        if self._agent.expiry_us <= self._context.now_us():
            try:
                self.remove_due()
            except QilbeeError as error:  # this write is done, and the next one tries again
                log.warning("what has expired of agent %r is not removed yet: %s", self.agent_id, error)
        return done

    def store_one(self, episode: Episode, idempotency_key: str | None = None) -> tuple[tuple[str, bool], int]:
        """:meth:`store` of one episode, by the short way where it is usual; gives its id, and whether it is new."""
        if idempotency_key is not None:
            self._check_own(episode)
            return self._store_once(episode, idempotency_key)
        check_episode(episode)
        if episode.agent_id == self.agent_id:
            ticket = append(self._context, self._agent, episode)
            if ticket is not None:
                episode._id_fixed = True
                if self._agent.unindexed >= self._indexing.unindexed_max:
                    self._indexing.help(self._agent)
                if self._observe is not None:
                    self._observe(self.agent_id, (episode,))
                return (episode._id_text or episode.id, True), ticket
        self._check_own(episode)
        stored, ticket = self._commit(_STORE, self._plan_store, (episode,), b"")
        self._stored(stored)
        return (episode.id, bool(stored)), ticket

    def store_with_others(self, episode: Episode) -> tuple[tuple[str, bool], int]:
        """:meth:`store_one` for a thread that has to wait for the next sync anyway: whoever leads that stores it."""
        self._check_own(episode)
        waiting = Waiting(episode)
        self._agent.waiting.append(waiting)
        self._context.durability.wait_for_next(self._store_waiting)
        if waiting.ticket is None:
            return self.store_one(episode)  # which tells what is in the way; what is stored already is not stored twice
        if waiting.is_new:
            self._stored((episode,))
        return (episode.id, waiting.is_new), waiting.ticket

    def _store_waiting(self) -> None:
        """Store all that waits: in one batch, unless it is so little that the short way costs less."""
        queue = self._agent.waiting
        group = [queue.popleft() for _ in range(len(queue))]
        if len(group) >= _BATCHED_MIN:
            self._store_group(group)
            return
        for waiting in group:
            waiting.ticket = append(self._context, self._agent, waiting.episode)
            waiting.is_new = waiting.ticket is not None
            if waiting.ticket is None:
                self._store_group([waiting])

    def _store_group(self, group: Sequence[Waiting]) -> None:
        stored, ticket = self._commit(_STORE, self._plan_store, [waiting.episode for waiting in group], b"")
        stored.reverse()
        for waiting in group:
            waiting.is_new = bool(stored) and stored[-1] is waiting.episode
            if waiting.is_new:
                stored.pop()
            waiting.ticket = ticket

    def store(self, episodes: Sequence[Episode]) -> tuple[list[str], int]:
        """Store all of ``episodes`` or none; what is stored already, with the same content, stays as it is."""
        if len(episodes) > BATCH_EPISODES_MAX:
            raise InvalidError(
                f"a batch of {len(episodes)} episodes, the most is {BATCH_EPISODES_MAX}",
                remedy="use import_episodes(), which stores any number in bounded batches",
            )
        for episode in episodes:
            self._check_own(episode)
        stored, ticket = self._commit(_STORE, self._plan_store, episodes, b"")
        self._stored(stored)
        return [episode.id for episode in episodes], ticket

    def _check_own(self, episode: Episode) -> None:
        check_episode(episode)
        agent_id = self.agent_id
        if episode.agent_id != agent_id and encode_agent_id(episode.agent_id).decode() != agent_id:
            raise InvalidError(
                f"the episode belongs to agent {episode.agent_id!r}, this memory to {agent_id!r}",
                remedy=f"store it in agent_memory({episode.agent_id!r})",
            )

    def _store_once(self, episode: Episode, idempotency_key: str) -> tuple[tuple[str, bool], int]:
        check_text(idempotency_key, "idempotency_key", IDEMPOTENCY_KEY_BYTES_MAX)
        digest = digest_of_key(idempotency_key)
        while True:
            known, ticket = self._commit(ChangeKind.UPDATE, self._plan_mark, episode, digest)
            if known is not None:
                return (known, False), ticket
            stored, ticket = self._commit(_STORE, self._plan_store, (episode,), digest)
            if stored:
                self._stored(stored)
                return (episode.id, True), ticket
            # Somebody stored it meanwhile, perhaps without the key: now it gets the key.

    def _stored(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            episode._id_fixed = True
        if self._observe is not None and episodes:
            self._observe(self.agent_id, episodes)

    def _plan_store(
        self, head: Head, operations: list[Operation], episodes: Sequence[Episode], digest: bytes
    ) -> tuple[list[Episode], Touched]:
        # What a batch costs is spent here.
        keys_start, transaction_us = self._keys.episodes, head.transaction_us
        orders = self._context.orders_of(head.orders)
        start_us = decay_start_us(transaction_us)
        usual = self._agent.place
        if usual.decay_start_us != start_us or usual.order != head.orders[0]:
            usual = self._agent.place = self._place(orders[0], 1.0, start_us)
        batch_bytes = 0
        touched: Touched = {}
        stored: list[Episode] = []
        if digest and self._stored_under(digest, episodes[0]) is not None:
            return stored, touched  # somebody was quicker
        for episode in episodes:
            # No id above newest_id was ever stored: new episodes are not looked for.
            if episode._id <= head.newest_id and self._is_stored(head, touched, episode):
                continue
            id_bytes, episode_type = episode._id, episode.episode_type
            head.newest_id = max(head.newest_id, id_bytes)
            place, fields = usual, usual_fields(episode, transaction_us)
            if fields is None or digest:
                order = orders[MEMORY_TYPE_NUMBERS[episode.memory_type]]
                place = self._place(order, episode.relevance, start_us)
                fields = fields_of(episode, transaction_us, digest.hex())
                if episode._expires_us:
                    head.expiry_us = min(head.expiry_us, episode._expires_us)
                    operations.append(Put(self._keys.expiry(episode._expires_us, id_bytes), b""))
            key = keys_start + id_bytes
            value = self._sealed(key, fields, episode)
            batch_bytes += len(value)
            if batch_bytes > BATCH_BYTES_MAX and touched:
                raise BatchTooLargeError(
                    f"{len(touched) + 1} of {len(episodes)} episodes take {batch_bytes} bytes, "
                    f"the most in a batch is {BATCH_BYTES_MAX}",
                    remedy="use import_episodes(), which stores any number in bounded batches",
                )
            if episode_type not in head.types:
                self._check_new_type(head)
            head.add(episode_type, len(key) + len(value), place.order, place.contribution)
            operations.append(Put(key, value))
            operations.append(Put(place.key_start + id_bytes, b""))
            if head.reindex is not None:
                self._enter_coming(head, operations, episode, start_us)
            touched[id_bytes] = value
            stored.append(episode)
        if digest and stored:
            mark = self._keys.idempotency_key(digest)
            operations.append(Put(mark, frame(mark, stored[0]._id)))
        return stored, touched

    def _enter_coming(self, head: Head, operations: list[Operation], episode: Episode, start_us: int) -> None:
        """Put a new episode into the order that is being built too, if that is to hold its id by now."""
        reindex, memory_type = head.reindex, MEMORY_TYPE_NUMBERS[episode.memory_type]
        if reindex is None or episode._id > reindex.built or reindex.orders[memory_type] == head.orders[memory_type]:
            return
        place = self._place(self._context.orders_of(reindex.orders)[memory_type], episode.relevance, start_us)
        head.enter(place.order, place.contribution)
        operations.append(Put(place.key_start + episode._id, b""))

    def _sealed(self, key: bytes, fields: Document, episode: Episode) -> bytes:
        """The record of a new episode; InvalidError where it is too large or holds what no text can hold."""
        try:
            body = self._records.encode(fields)
            if len(body) > SURELY_FITTING_BYTES:
                check_sizes(episode.content, episode.metadata)
        except UnicodeEncodeError:
            raise surrogate_error({"content": episode.content, "metadata": episode.metadata}, "episode") from None
        return self._records.seal_encoded(key, body)

    def _plan_mark(
        self, head: Head, operations: list[Operation], episode: Episode, digest: bytes
    ) -> tuple[str | None, Touched]:
        """The id that an idempotency key stands for, where it does; an episode that is stored already gets the key."""
        known = self._stored_under(digest, episode)
        if known is not None:
            return format_id(known), {}
        found = self._find_kept(episode._id)
        if found is None or found.has_expired(self._context.now_us()) or not is_same(found.document, episode):
            return None, {}
        if found.document.ended_us:
            return episode.id, {}  # it was stored, and stays retired
        if found.document.idempotency_digest:
            raise ConflictError(
                f"episode {episode.id} is stored under another idempotency key", remedy="use the key it was stored with"
            )
        key = self._keys.episode(episode._id)
        sealed = self._records.seal(key, replace(found.document, idempotency_digest=digest.hex()).fields())
        head.record_bytes += len(sealed) - len(found.value)
        mark = self._keys.idempotency_key(digest)
        operations += (Put(key, sealed), Put(mark, frame(mark, episode._id)))
        return episode.id, {episode._id: sealed}

    def _is_stored(self, head: Head, touched: Touched, episode: Episode) -> bool:
        """Whether the episode is there already, or was retired; an id of ours that another has is drawn again."""
        while True:
            id_bytes = episode._id
            value = touched.get(id_bytes)
            if value is None:
                found = self._find_kept(id_bytes) if head.retired else self._find(id_bytes)
                if found is None:
                    return False
                self._check_out_of_the_way(found)
                document = found.document
            else:
                document = self._open(id_bytes, value)
            if is_same(document, episode):
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
            found, key = self._existing(id_bytes), self._keys.episode(id_bytes)
            old = found.document
            new = replace(
                old,
                content=old.content if content is None else content,
                metadata=old.metadata if metadata is None else metadata,
                episode_type=episode_type or old.episode_type,
                transaction_us=head.transaction_us,
                reinforced_us=old.decay_start_us(),
                origin=old.digest(),
                previous_us=old.transaction_us if self._keep_history else 0,
            )
            try:
                body = self._records.encode(new.fields())
                if len(body) > SURELY_FITTING_BYTES:
                    check_sizes(new.content, new.metadata)
                if new.own_digest() == old.own_digest():
                    return self._shown(found), {}
            except UnicodeEncodeError:
                raise surrogate_error({"content": new.content, "metadata": new.metadata}, "episode") from None
            sealed = self._records.seal_encoded(key, body)
            # Strength and decay are as before, and so is the place in the order of relevance.
            order, place = standing(self._context.orders_of(head.orders), old, found.state)
            moved = contribution(order, place)
            head.remove(old.episode_type, len(key) + len(found.value), order.number, moved)
            if new.episode_type not in head.types:
                self._check_new_type(head)
            head.add(new.episode_type, len(key) + len(sealed), order.number, moved)
            operations += (Put(key, sealed), Delete(row_key(self._keys, id_bytes)), *self._vectors_gone(id_bytes))
            if self._keep_history:
                history_key = self._keys.history(id_bytes, old.transaction_us)
                operations.append(Put(history_key, self._records.seal(history_key, old.fields())))
            elif old.previous_us:
                operations.append(DeleteRange(*self._keys.history_range(id_bytes)))
            return self._shown(found._replace(document=new)), {id_bytes: sealed}

        updated = self._commit(ChangeKind.UPDATE, plan)
        self._indexing.refresh(self._agent, [id_bytes])
        return updated

    def delete(self, id: str, *, erase: bool) -> tuple[bool, int]:
        """Remove an episode with its history; with ``erase`` its bytes leave the files before this returns."""
        id_bytes = parse_id(id)
        check_flag(erase, "erase")
        engine = self._erasing_engine() if erase else None

        def plan(head: Head, operations: list[Operation]) -> tuple[bool, Touched]:
            found = self._find_kept(id_bytes)
            if found is None:
                return False, {}
            self._remove(head, operations, found)
            return not found.has_expired(self._context.now_us()), {id_bytes: None}

        deleted, ticket = self._commit(ChangeKind.DELETE, plan)
        self._indexing.refresh(self._agent, [id_bytes])
        if engine is not None:
            vectors = [vector.key for vector in self._vectors_gone(id_bytes)]
            rows = (self._keys.episode(id_bytes), row_key(self._keys, id_bytes), *vectors)
            with self._indexing.paused():
                engine.erase([*((key, key + b"\x00") for key in rows), self._keys.history_range(id_bytes)])
        return deleted, ticket

    def clear(self, *, erase: bool) -> tuple[ClearReceipt, int]:
        """Remove everything of the agent in one batch; what it stores next begins a new generation."""
        check_flag(erase, "erase")
        engine = self._erasing_engine() if erase else None
        receipt, ticket = self._context.clear(
            self._agent, [DeleteRange(*self._keys.range(space)) for space in _AGENT_SPACES]
        )
        self._indexing.cleared(self._agent)
        if engine is not None:
            self._erase_texts(engine)
        return receipt, ticket

    def remove_due(self) -> tuple[int, int]:
        """Remove some of what has expired; gives how many episodes."""
        return self._context.commit(self._agent, ChangeKind.DELETE, self._plan_due)

    # --- parts of the above

    def _plan_due(self, head: Head, operations: list[Operation]) -> tuple[int, Touched]:
        now_us = self._context.now_us()
        touched: Touched = {}
        head.expiry_us = NEVER_US
        for key, _ in self._backend.scan(*self._keys.range(Space.EXPIRY)):
            expires_us = int.from_bytes(key[-24:-16], "big")
            if expires_us > now_us or len(touched) == REMOVED_AT_ONCE_MAX:
                head.expiry_us = expires_us
                break
            try:
                found = self._find_kept(key[-16:])
            except (DataError, ProviderNotFoundError):
                continue  # it stays, for verify() to name it
            if found is not None and found.has_expired(now_us):
                self._remove(head, operations, found)
                touched[found.id_bytes] = None
        return len(touched), touched

    def _plan_removal(self, head: Head, operations: list[Operation], ids: Iterable[bytes]) -> tuple[None, Touched]:
        touched: Touched = {}
        for id_bytes in ids:
            if (found := self._find_kept(id_bytes)) is not None:
                self._remove(head, operations, found)
                touched[id_bytes] = None
        return None, touched

    def _remove(self, head: Head, operations: list[Operation], found: Found) -> None:
        """Plan to remove all that is stored of an episode, also of one that was retired."""
        id_bytes, document, keys = found.id_bytes, found.document, self._keys
        if document.ended_us:
            head.retired = max(0, head.retired - 1)
            remove_from_undo(self._backend, keys.undo(document.ended_us), operations, id_bytes)
        else:
            self._take_out(head, operations, found)
        if document.previous_us or document.ended_us:
            operations.append(DeleteRange(*keys.history_range(id_bytes)))
        if document.idempotency_digest:
            operations.append(Delete(keys.idempotency_key(bytes.fromhex(document.idempotency_digest))))
        if document.expires_us:
            operations.append(Delete(keys.expiry(document.expires_us, id_bytes)))

    def _take_out(self, head: Head, operations: list[Operation], found: Found) -> None:
        """Plan to remove an episode from where the reads of the present look: its record and what is made of it.

        Its history stays, and so do its idempotency key and the row that says when it expires.
        """
        id_bytes, document, keys = found.id_bytes, found.document, self._keys
        (order, place), *others = standings(head, self._context.orders_of, id_bytes, document, found.state)
        key = keys.episode(id_bytes)
        head.remove(document.episode_type, len(key) + len(found.value), order.number, contribution(order, place))
        operations += (
            Delete(key),
            Delete(keys.vitality(order.number, place, id_bytes)),
            Delete(row_key(keys, id_bytes)),
            *self._vectors_gone(id_bytes),
        )
        for order, place in others:
            head.leave(order.number, contribution(order, place))
            operations.append(Delete(keys.vitality(order.number, place, id_bytes)))
        if found.state is not None:
            head.states = max(0, head.states - 1)
            operations.append(Delete(keys.state(id_bytes)))

    def _vectors_gone(self, id_bytes: bytes) -> list[Delete]:
        """Remove the vectors that there may be of an episode."""
        catalog = self._context.catalog
        if not self._context.single_process:
            catalog.read_vectors()  # another process may have begun to make some
        return [Delete(self._keys.vector(model, id_bytes)) for model in catalog.vectors.kept]

    def _set_state(self, head: Head, operations: list[Operation], found: Found, state: State) -> None:
        """Plan to give an episode that is there another state."""
        id_bytes, _, document, before = found
        keys, key = self._keys, self._keys.state(id_bytes)
        after = None if state == first_state(document) else state
        for order, place in standings(head, self._context.orders_of, id_bytes, document, before):
            head.leave(order.number, contribution(order, place))
            operations.append(Delete(keys.vitality(order.number, place, id_bytes)))
        for order, place in standings(head, self._context.orders_of, id_bytes, document, after):
            head.enter(order.number, contribution(order, place))
            operations.append(Put(keys.vitality(order.number, place, id_bytes), b""))
        operations.append(Delete(key) if after is None else Put(key, after.encode(key)))
        head.states += (after is not None) - (before is not None)
        if document.expires_us:
            expiry = keys.expiry(document.expires_us, id_bytes)
            if state.pinned:
                operations.append(Delete(expiry))
            else:
                operations.append(Put(expiry, b""))
                head.expiry_us = min(head.expiry_us, document.expires_us)

    def _existing(self, id_bytes: bytes) -> Found:
        found = self._find(id_bytes)
        if found is None or found.has_expired(self._context.now_us()):
            raise NotFoundError(f"agent {self.agent_id!r} has no episode {format_id(id_bytes)}")
        return found

    def _shown(self, found: Found) -> Episode:
        """The episode that the caller of a write is given."""
        return self._episode(found.id_bytes, found.document, found.state, self._context.now_us())

    def _place(self, order: Order, strength: float, start_us: int) -> Place:
        where = vitality(order, strength, start_us)
        return Place(start_us, order.number, contribution(order, where), self._keys.vitality(order.number, where, b""))

    def _check_new_type(self, head: Head) -> None:
        if len(head.types) >= EPISODE_TYPES_MAX:
            raise InvalidError(
                f"agent {self.agent_id!r} has {EPISODE_TYPES_MAX} episode types already",
                remedy="use fewer types, and metadata for what varies",
            )

    def _check_out_of_the_way(self, found: Found) -> None:
        if found.has_expired(self._context.now_us()):
            raise _InTheWayError(found.id_bytes)

    def _stored_under(self, digest: bytes, episode: Episode) -> bytes | None:
        """The id stored under an idempotency key, where there is one; ConflictError where its content differs."""
        mark = self._keys.idempotency_key(digest)
        framed = self._backend.get(mark)
        if framed is None:
            return None
        found = self._find_kept(unframe(mark, framed))
        if found is None:
            return None  # deleted since, and with it what the key stood for
        self._check_out_of_the_way(found)
        if not is_same(found.document, episode):
            raise ConflictError(
                f"the idempotency key stands for episode {format_id(found.id_bytes)}, which has other content",
                remedy="use another key for another episode",
            )
        return found.id_bytes

    def _erase_texts(self, engine: SupportsErase) -> None:
        """Rewrite all files that may hold texts of the agent."""
        with self._indexing.paused():
            engine.erase([self._keys.range(space) for space in _TEXT_SPACES])

    def _erasing_engine(self) -> SupportsErase:
        if not isinstance(self._backend, SupportsErase):
            raise InvalidError(
                f"the {self._backend.name} backend cannot erase bytes from its files",
                remedy="delete without erase=True; nothing was deleted",
            )
        return self._backend


def is_same(document: EpisodeDocument, episode: Episode) -> bool:
    """Whether what was first stored is the same episode."""
    memory_type = MEMORY_TYPE_NUMBERS[episode.memory_type]
    try:
        given = digest_of(episode.episode_type, episode.content, episode.metadata, memory_type)
    except UnicodeEncodeError:
        raise surrogate_error({"content": episode.content, "metadata": episode.metadata}, "episode") from None
    return document.digest() == given
