"""Reading an agent's memory: by id, by time, by relevance, and as it was.

What has expired is in no answer, whether or not it has been removed yet.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from datetime import datetime
from heapq import merge
from itertools import islice, repeat, takewhile
from operator import itemgetter
from typing import NamedTuple, Self

from qilbee_core.episode import Episode
from qilbee_core.errors import InvalidError
from qilbee_core.ids import format_id, parse_id, us_of_datetime
from qilbee_core.keys import Space, place_of
from qilbee_core.limits import LIMIT_MAX, check_flag, check_limit, check_moment, check_share
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import MEMORY_TYPE_NUMBERS, EpisodeDocument
from qilbee_core.memory.filters import ANY, EpisodeFilter
from qilbee_core.memory.past import Past, Version
from qilbee_core.memory.relevance import PINNED_ORDERS, STRENGTH_MIN, Order, relevance, vitality
from qilbee_core.memory.resident import Agent
from qilbee_core.memory.room import Room, Unread
from qilbee_core.memory.state import State, decode_state, first_state, has_expired

__all__ = ["FRESH", "Found", "Ranked", "Reads", "checked_us"]

FRESH = 0.99
"""What is as relevant as this gains too little from an access to be worth a write."""

_PART_EPISODES = 16
"""So many are read at once where there is not room for all."""


class Found(NamedTuple):
    """All that is stored of one episode. One that was retired has no value, and its document says when it ended."""

    id_bytes: bytes
    value: bytes
    document: EpisodeDocument
    state: State | None

    def has_expired(self, now_us: int) -> bool:
        """Whether no verb may find it any more."""
        return has_expired(self.document, self.state, now_us)


class Ranked(NamedTuple):
    """A row of an order of relevance, and what it means now."""

    relevance: float
    order: int
    place: int
    id_bytes: bytes


class Reads:
    """The operations that change nothing."""

    def __init__(self, context: Context, agent_id: str) -> None:
        self._context = context
        self._agent: Agent = context.agent(agent_id)
        self._keys = self._agent.keys
        self._backend = context.backend
        self._records = context.records
        self.agent_id = self._agent.id
        self._room: Room | None = None

    def within(self, room: Room) -> Self:
        """The same operations for one reading, which ends where ``room`` is full."""
        its = copy(self)
        its._room = room
        return its

    def get(self, id: str, as_of: datetime | None = None) -> Episode | None:
        """The episode, or None."""
        id_bytes = parse_id(id)
        if as_of is not None:
            return next(self._each_past([id_bytes], checked_us(as_of)))
        value = self._agent.tail.values.get(id_bytes) or self._backend.get(self._keys.episode(id_bytes))
        if value is None:
            return None
        episode = self._restore(id_bytes, value, self._state(id_bytes), self._context.now_us())
        if episode is not None:
            episode._id_text = id
            if episode.relevance < FRESH:
                self._accessed(episode)
        return episode

    def get_many(self, ids: Sequence[str], as_of: datetime | None = None) -> list[Episode | None]:
        """One answer for each id, in the order given."""
        if isinstance(ids, str) or not isinstance(ids, Sequence):
            raise InvalidError(f"ids is {type(ids).__name__}", remedy="give a list of ids")
        if len(ids) > LIMIT_MAX:
            raise InvalidError(f"{len(ids)} ids, the most is {LIMIT_MAX}", remedy="ask for them in parts")
        all_bytes = [parse_id(text) for text in ids]
        at_us = None if as_of is None else checked_us(as_of)
        episodes: list[Episode | None] = []
        with closing(self._each(all_bytes, at_us)) as found:
            for episode in found:
                if episode is not None:
                    if not self._takes(episode):
                        break
                    if at_us is None and episode.relevance < FRESH:
                        self._accessed(episode)
                episodes.append(episode)
        return episodes

    def _each(self, ids: Sequence[bytes], at_us: int | None) -> Generator[Episode | None]:
        """One answer for each id, in the order given; read in parts where there may not be room for all."""
        if at_us is not None:
            yield from self._each_past(ids, at_us)
            return
        part = len(ids) if self._room is None else _PART_EPISODES
        now_us = self._context.now_us()
        for start in range(0, len(ids), part or 1):
            asked = ids[start : start + part]
            values = self._backend.get_many([self._keys.episode(id_bytes) for id_bytes in asked])
            yield from self._restore_all(zip(asked, values, strict=True), asked, now_us)

    def recent(
        self, limit: int, before: str | None, where: EpisodeFilter = ANY, as_of: datetime | None = None
    ) -> list[Episode]:
        """The newest by event time, below ``before``."""
        check_limit(limit)
        low, high = where.bounds(before, reverse=True)
        if as_of is not None:
            past = self._past_between(low, high, as_of, reverse=True)
            return list(self._fitting(islice(filter(where.passes, past), limit)))
        if where == ANY and (self._room is None or limit <= _PART_EPISODES):
            pairs = self._newest(limit, high)
            restored_all = self._restore_all(pairs, [pair[0] for pair in pairs], self._context.now_us())
            episodes = [episode for episode in restored_all if episode is not None]
            if len(episodes) == len(pairs):
                return list(self._fitting(episodes))
            # Some have expired: there may be others behind them.
        return list(self._fitting(islice(filter(where.passes, self._scan(low, high, reverse=True)), limit)))

    def _newest(self, limit: int, before: bytes | None) -> list[tuple[bytes, bytes]]:
        context, agent = self._context, self._agent
        if before is not None or not context.single_process or not context.tails.bytes_max:
            return self._first(before, limit)
        known = context.tails.newest(agent.tail, limit, None)
        if known is None:
            # Under the lock, so that nothing is stored between what is read and what the tail believes.
            with agent.lock:
                known = self._first(None, limit)
                if known:
                    context.tails.fill(agent.tail, known, whole=len(known) < limit)
        return known

    def _first(self, before: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        return [pair_of(row) for row in self._context.first(*self._range(b"", before), limit, reverse=True)]

    def _scan(self, low: bytes, high: bytes | None, *, reverse: bool) -> Iterator[Episode]:
        """Episodes with ``low <= id < high``, one at a time; they are those of the moment of the call."""
        rows = self._backend.scan(*self._range(low, high), reverse=reverse)
        return self._restored(pair_of(row) for row in rows)

    def _range(self, low: bytes, high: bytes | None) -> tuple[bytes, bytes | None]:
        return self._keys.episode(low), self._keys.range(Space.EPISODE)[1] if high is None else self._keys.episode(high)

    def between(
        self, where: EpisodeFilter, after: str | None, *, reverse: bool, as_of: datetime | None = None
    ) -> Iterator[Episode]:
        """Episodes in the order of event time, from behind ``after`` on, as they are or were, one at a time."""
        check_flag(reverse, "reverse")
        low, high = where.bounds(after, reverse=reverse)
        if as_of is None:
            episodes = self._scan(low, high, reverse=reverse)
        else:
            episodes = self._past_between(low, high, as_of, reverse=reverse)
        return self._fitting(filter(where.passes, episodes) if where.has_types else episodes)

    def recall(self, limit: int, min_relevance: float | None, where: EpisodeFilter) -> list[Episode]:
        """The most relevant now, those that are pinned first."""
        check_limit(limit)
        if min_relevance is not None:
            check_share(min_relevance, "min_relevance")
        while True:
            in_force = self._orders()
            orders = [each for each in (*PINNED_ORDERS, *in_force) if where.memory_type in (None, each.memory_type)]
            if (head := self._agent.head) is not None:
                orders = [order for order in orders if order.number in head.tallies]  # the others are empty
            episodes = self._recalled(orders, limit, min_relevance, where)
            if self._orders() is in_force:
                return episodes
            # Others took their place meanwhile: some rows may be gone, and some relevances are those of the new ones.

    def _recalled(
        self, orders: Sequence[Order], limit: int, min_relevance: float | None, where: EpisodeFilter
    ) -> list[Episode]:
        now_us = self._context.now_us()
        low, high = where.bounds()
        if self._room is not None:
            self._room.begin()
        found: dict[bytes, Episode | None] = {}  # one that moves meanwhile may be met in two places
        for ranked in self._ranked(orders, now_us, reverse=True):
            if min_relevance is not None and ranked.relevance < min_relevance:
                break
            if ranked.id_bytes < low or (high is not None and ranked.id_bytes >= high) or ranked.id_bytes in found:
                continue
            value = self._backend.get(self._keys.episode(ranked.id_bytes))
            if value is None:
                continue
            episode = self._restore(ranked.id_bytes, value, self._state(ranked.id_bytes), now_us)
            if episode is not None and where.passes(episode):
                found[ranked.id_bytes] = episode if self._takes(episode) else None
                if len(found) == limit:
                    break
        if self._room is not None:
            self._room.left = [Unread(id=format_id(each)) for each, episode in found.items() if episode is None]
        return [episode for episode in found.values() if episode is not None]

    def _ranked(self, orders: Sequence[Order], now_us: int, *, reverse: bool) -> Iterator[Ranked]:
        """The rows of several orders by relevance, lowest first; of equal ones those of the first order.

        They are those of the moment of the call.
        """

        def rows_of(order: Order, rows: Iterator[tuple[bytes, bytes]]) -> Iterator[Ranked]:
            for key, _ in rows:
                place = place_of(key)
                yield Ranked(relevance(order, place, now_us), order.number, place, key[-16:])

        scans = [self._backend.scan(*self._keys.order_range(order.number), reverse=reverse) for order in orders]
        return merge(*map(rows_of, orders, scans), key=itemgetter(0), reverse=reverse)

    def _orders(self) -> tuple[Order, ...]:
        """The orders in force now, by memory type."""
        agent, context = self._agent, self._context
        if not context.single_process:
            agent.orders = context.stored_orders(agent)
        return agent.orders

    def history(self, id: str, after: datetime | None) -> list[Episode]:
        """Every version of an episode that ended after a time, oldest first."""
        id_bytes, now_us = parse_id(id), self._context.now_us()
        after_us = 0 if after is None else checked_us(after, "after")
        with self._past() as past:
            versions = (self._restore_version(version, now_us) for version in past.versions(id_bytes, after_us))
            return list(self._fitting(episode for episode in versions if episode is not None))

    # --- the past

    @contextmanager
    def _past(self) -> Iterator[Past]:
        """The versions of episodes, as of one moment."""
        snapshot = self._backend.snapshot()
        try:
            yield Past(snapshot, self._keys, self._records)
        finally:
            snapshot.close()

    def _each_past(self, ids: Sequence[bytes], at_us: int) -> Iterator[Episode | None]:
        """One answer for each id, as it was."""
        until_us = max(at_us, self._context.now_us())
        with self._past() as past:
            for id_bytes in ids:
                version = past.at(id_bytes, at_us)
                yield None if version is None else self._restore_version(version, until_us)

    def _past_between(self, low: bytes, high: bytes | None, as_of: datetime, *, reverse: bool) -> Iterator[Episode]:
        """Episodes with ``low <= id < high``, as they were, one at a time."""
        at_us = checked_us(as_of)
        snapshot = self._backend.snapshot()  # now, and not when the first one is asked for

        def restored() -> Iterator[Episode]:
            try:
                for version in Past(snapshot, self._keys, self._records).between(low, high, at_us, reverse=reverse):
                    episode = self._restore_version(version, max(at_us, self._context.now_us()))
                    if episode is not None:
                        yield episode
            finally:
                snapshot.close()

        return restored()

    def _restore_version(self, version: Version, now_us: int) -> Episode | None:
        """The version, as relevant as its episode is now or would be; None where that has expired."""
        id_bytes, document, ended_us, last = version
        state = (None if last.ended_us else self._state(id_bytes)) or first_state(last)
        if has_expired(document, state, now_us):
            return None
        episode = self._episode(id_bytes, document, state, self._context.now_us())
        if ended_us:
            episode._ended_us, episode._superseded_by = ended_us, document.superseded_by
        return episode

    def _find_kept(self, id_bytes: bytes) -> Found | None:
        """All that is stored of an episode, also where it has expired or was retired."""
        found = self._find(id_bytes)
        if found is None:
            retired = Past(self._backend, self._keys, self._records).retired(id_bytes)
            if retired is not None:
                found = Found(id_bytes, b"", retired, first_state(retired))
        return found

    # --- parts of the above

    def _takes(self, episode: Episode) -> bool:
        """Whether there is room for this one."""
        return self._room is None or self._room.takes(episode)

    def _fitting(self, episodes: Iterable[Episode]) -> Iterator[Episode]:
        """Those that there is room for."""
        return iter(episodes) if self._room is None else takewhile(self._room.takes, episodes)

    def _accessed(self, episode: Episode) -> None:
        """Note that a caller asked for this episode and got it, less than FRESH as it was."""
        accesses = self._context.accesses
        half_life_us = self._agent.orders[MEMORY_TYPE_NUMBERS[episode.memory_type]].half_life_us
        if accesses is not None and half_life_us is not None:
            accesses.note(self.agent_id, episode._id, self._context.now_us())

    def _find(self, id_bytes: bytes) -> Found | None:
        """All that is stored of an episode, also where it has expired."""
        value = self._backend.get(self._keys.episode(id_bytes))
        return None if value is None else Found(id_bytes, value, self._open(id_bytes, value), self._state(id_bytes))

    def _open(self, id_bytes: bytes, value: bytes) -> EpisodeDocument:
        return EpisodeDocument.from_fields(self._records.open(self._keys.episodes + id_bytes, value))

    def _state(self, id_bytes: bytes) -> State | None:
        head = self._agent.head
        if (head is not None and not head.states) or not self._context.may_have_states(self._agent):
            return None
        key = self._keys.state(id_bytes)
        value = self._backend.get(key)
        return None if value is None else decode_state(key, value)

    def _states(self, ids: Sequence[bytes]) -> Iterable[State | None]:
        """The states of several episodes, for as long as anybody asks."""
        if not self._context.may_have_states(self._agent):
            return repeat(None)
        keys = [self._keys.state(id_bytes) for id_bytes in ids]
        values = self._backend.get_many(keys)
        return [None if value is None else decode_state(key, value) for key, value in zip(keys, values, strict=True)]

    def _restore(self, id_bytes: bytes, value: bytes, state: State | None, now_us: int) -> Episode | None:
        """The episode, or None where it has expired."""
        document = self._open(id_bytes, value)
        if document.expires_us and has_expired(document, state, now_us):
            return None
        return self._episode(id_bytes, document, state, now_us)

    def _restore_all(
        self, pairs: Iterable[tuple[bytes, bytes | None]], ids: Sequence[bytes], now_us: int
    ) -> list[Episode | None]:
        """The same for several records at once, None also where there is none."""
        return [
            None if value is None else self._restore(id_bytes, value, state, now_us)
            for (id_bytes, value), state in zip(pairs, self._states(ids), strict=False)
        ]

    def _restored(self, pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[Episode]:
        """The same one after another, as they are asked for, without what has expired."""
        for id_bytes, value in pairs:
            episode = self._restore(id_bytes, value, self._state(id_bytes), self._context.now_us())
            if episode is not None:
                yield episode

    def _episode(self, id_bytes: bytes, document: EpisodeDocument, state: State | None, now_us: int) -> Episode:
        order = self._agent.orders[document.memory_type]
        if state is None:
            strength, start_us = document.strength, document.decay_start_us()
        elif state.pinned:
            return document.episode(self.agent_id, id_bytes, 1.0, pinned=True)
        else:
            strength, start_us = state.strength, state.reinforced_us
        if order.half_life_us is None:
            return document.episode(self.agent_id, id_bytes, max(strength, STRENGTH_MIN))
        now = relevance(order, vitality(order, strength, start_us), now_us)
        return document.episode(self.agent_id, id_bytes, now)


def pair_of(row: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Id and record of a row of EPISODE."""
    return row[0][-16:], row[1]


def checked_us(moment: datetime, name: str = "as_of") -> int:
    """A time in the past, in microseconds."""
    check_moment(moment, name)
    return us_of_datetime(moment)
