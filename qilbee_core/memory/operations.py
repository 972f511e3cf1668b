"""Every operation on one agent's memory, in one place for the sync and the asyncio face alike.

What only reads is in :mod:`qilbee_core.memory.reads`, what stores, changes and removes in
:mod:`qilbee_core.memory.writes`, what searches in :mod:`qilbee_core.memory.searching`, what consolidates in
:mod:`qilbee_core.memory.consolidation`. Here is what becomes of memories with time: they are reinforced, pinned and
forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from qilbee_core.batch import DeleteRange, Operation
from qilbee_core.episode import MEMORY_TYPES, Episode
from qilbee_core.errors import DataError, InvalidError, ProviderNotFoundError, QilbeeError, shown
from qilbee_core.ids import datetime_of_us, event_us_of, format_id, parse_id
from qilbee_core.keys import Space
from qilbee_core.limits import check_flag, check_most, check_share
from qilbee_core.memory.commit import Touched
from qilbee_core.memory.consolidation import Consolidations
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind
from qilbee_core.memory.reads import Found, Ranked
from qilbee_core.memory.relevance import PINNED_ORDERS, average, reinforced, relevance, vitality
from qilbee_core.memory.resident import Ends
from qilbee_core.memory.state import State, first_state, standing
from qilbee_core.memory.statistics import ForgetReceipt, MemoryStatistics
from qilbee_core.memory.writes import REMOVED_AT_ONCE_MAX, BatchTooLargeError

__all__ = ["BatchTooLargeError", "Bounds", "Operations", "Page"]

_IDS_TOLD_MAX = 1000


class Bounds(NamedTuple):
    """What is to be forgotten: whatever is less relevant, and the least relevant while there is more than this."""

    min_relevance: float
    max_episodes: float
    max_bytes: float

    @classmethod
    def of(cls, min_relevance: float, max_episodes: int | None, max_bytes: int | None) -> Bounds:
        """With None for any number."""
        return cls(
            min_relevance, inf if max_episodes is None else max_episodes, inf if max_bytes is None else max_bytes
        )

    def keep(self, ranked: Ranked, head: Head) -> bool:
        """Whether this one stays, and with it all that are more relevant."""
        return (
            ranked.relevance >= self.min_relevance
            and head.episodes <= self.max_episodes
            and head.record_bytes <= self.max_bytes
        )


class Page(NamedTuple):
    """What is forgotten in one batch. ``done``: there is no more to forget."""

    found: list[Found]
    rows: Mapping[str, int]
    done: bool


class Operations(Consolidations):
    """The operations on the memory of one agent."""

    # --- reinforcement

    def boost(self, id: str, share: float) -> tuple[Episode, int]:
        """Move the strength of an episode by ``share`` of what is missing to 1; its decay begins anew."""
        check_share(share, "share")
        if not share:
            raise InvalidError(f"share is {shown(share)}", remedy="give a number above 0, and up to 1")

        def boosted(found: Found, state: State) -> State:
            return self._reinforced(found, state, share, self._context.now_us())

        return self._move(id, boosted)

    def pin(self, id: str, *, pinned: bool) -> tuple[Episode, int]:
        """Take an episode out of decay, forgetting and expiry, or put it back."""
        return self._move(id, lambda _, state: replace(state, pinned=pinned))

    def reinforce(self, accesses: Mapping[bytes, int], share: float) -> tuple[int, int]:
        """Reinforce what was accessed at these times, in microseconds; gives how many episodes."""
        return self._context.commit(self._agent, ChangeKind.STATE, self._plan_reinforcement, accesses, share)

    def _plan_reinforcement(
        self, head: Head, operations: list[Operation], accesses: Mapping[bytes, int], share: float
    ) -> tuple[int, Touched]:
        touched: Touched = {}
        for id_bytes, access_us in accesses.items():
            found = self._find(id_bytes)
            if found is None or found.has_expired(self._context.now_us()):
                continue
            state = found.state or first_state(found.document)
            if state.pinned or state.reinforced_us >= access_us or not self._decays(found):
                continue
            self._set_state(head, operations, found, self._reinforced(found, state, share, access_us))
            touched[id_bytes] = found.value
        return len(touched), touched

    def _decays(self, found: Found) -> bool:
        return self._agent.orders[found.document.memory_type].half_life_us is not None

    def _reinforced(self, found: Found, state: State, share: float, now_us: int) -> State:
        order = self._agent.orders[found.document.memory_type]
        before = relevance(order, vitality(order, state.strength, state.reinforced_us), now_us)
        after = reinforced(before, share)
        if order.half_life_us is None:
            return replace(state, strength=after)
        return replace(state, strength=after, reinforced_us=max(now_us, state.reinforced_us))

    def _move(self, id: str, moved: Callable[[Found, State], State]) -> tuple[Episode, int]:
        """Give an episode another state; NotFoundError where there is none."""
        id_bytes = parse_id(id)

        def plan(head: Head, operations: list[Operation]) -> tuple[Episode, Touched]:
            found = self._existing(id_bytes)
            old = found.state or first_state(found.document)
            new = moved(found, old)
            if new == old:
                return self._shown(found), {}
            self._set_state(head, operations, found, new)
            return self._shown(found._replace(state=new)), {id_bytes: found.value}

        return self._commit(ChangeKind.STATE, plan)

    # --- forgetting

    def forget(
        self, min_relevance: float, max_episodes: int | None, max_bytes: int | None, *, dry_run: bool
    ) -> tuple[ForgetReceipt, int]:
        """Remove the least relevant, in bounded batches."""
        check_share(min_relevance, "min_relevance")
        check_most(max_episodes, "max_episodes")
        check_most(max_bytes, "max_bytes")
        check_flag(dry_run, "dry_run")
        while not dry_run and self.remove_due()[0]:
            pass
        ticket = self._context.durability.last_ticket
        episodes = bytes_ = 0
        types: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        ids: list[str] = []
        for page, page_ticket in self.forgetting(Bounds.of(min_relevance, max_episodes, max_bytes), dry_run=dry_run):
            ticket = page_ticket
            for found in page.found:
                bytes_ += len(self._keys.episodes) + len(found.id_bytes) + len(found.value)
                types[MEMORY_TYPES[found.document.memory_type]] += 1
                if len(ids) < _IDS_TOLD_MAX:
                    ids.append(format_id(found.id_bytes))
            episodes += len(page.found)
            rows.update(page.rows)
        receipt = ForgetReceipt(
            episodes=episodes, bytes=bytes_, by_memory_type=dict(types), rows=dict(rows), ids=ids, dry_run=dry_run
        )
        return receipt, ticket

    def forgetting(self, bounds: Bounds, *, dry_run: bool = False) -> Iterator[tuple[Page, int]]:
        """Forget what is out of ``bounds``, a batch each time that another is asked for; gives it and its ticket."""
        while True:
            orders = self._orders()
            head, _ = self._head_now()
            if head is None:
                return
            ranked = self._ranked(orders, self._context.now_us(), reverse=False)
            if self._orders() is orders:
                break  # else others took their place in between, and their rows may be gone
        ticket, done = 0, False
        while not done and (rows := list(islice(ranked, REMOVED_AT_ONCE_MAX))):
            if bounds.keep(rows[0], head):
                break  # nobody has to wait for us to find that out
            if dry_run:
                page, _ = self._plan_forget(head, [], rows, bounds)
            else:
                page, ticket = self._commit(ChangeKind.DELETE, self._plan_forget, rows, bounds)
                self._indexing.refresh(self._agent, [found.id_bytes for found in page.found])
            yield page, ticket
            done = page.done
            if not dry_run and self._orders() is not orders:  # what is relevant is another now
                yield from self.forgetting(bounds)
                return

    def _plan_forget(
        self, head: Head, operations: list[Operation], page: Sequence[Ranked], bounds: Bounds
    ) -> tuple[Page, Touched]:
        now_us = self._context.now_us()
        forgotten: list[Found] = []
        done = False
        for ranked in page:
            if done := bounds.keep(ranked, head):
                break
            try:
                found = self._find(ranked.id_bytes)
            except (DataError, ProviderNotFoundError):
                continue  # it stays, for verify() to name it
            if found is None or found.has_expired(now_us):
                continue
            order, place = standing(self._context.orders_of(head.orders), found.document, found.state)
            if (order.number, place) == (ranked.order, ranked.place):  # else it has moved meanwhile
                self._remove(head, operations, found)
                forgotten.append(found)
        rows = Counter(Space(_key_of(operation)[0]).name.lower() for operation in operations)
        if self._indexing.mode == "off":
            del rows["terms"]  # there are none
        return Page(forgotten, rows, done), {found.id_bytes: None for found in forgotten}

    # --- figures

    def statistics(self) -> MemoryStatistics:
        """Figures from the head, and one look at either end; first some of what has expired is removed."""
        head, gone = self._head_now()
        if head is None or not head.types:
            return MemoryStatistics(
                total_episodes=0,
                episodes_by_type={},
                oldest_episode=None,
                newest_episode=None,
                avg_relevance=0.0,
                bytes=0,
            )
        now_us = max(self._context.now_us(), head.transaction_us)  # the clock may have been set back
        total = 0.0
        for order in (*self._context.orders_of(head.orders), *PINNED_ORDERS):
            if (tally := head.tallies.get(order.number)) is not None:
                total += average(order, tally.total, tally.count, now_us) * tally.count
        # Two seeks cost more the more tables there are: they are made once for each state of the agent.
        ends = self._agent.ends
        if ends is None or (ends.generation, ends.sequence) != (head.generation, head.sequence) or gone:
            oldest, newest = (
                next(
                    (datetime_of_us(event_us_of(id_bytes)) for id_bytes in self._ids(reverse) if id_bytes not in gone),
                    None,
                )
                for reverse in (False, True)
            )
            ends = Ends(head.generation, head.sequence, oldest, newest)
            if not gone:
                self._agent.ends = ends
        return MemoryStatistics(
            total_episodes=head.episodes,
            episodes_by_type=dict(head.types),
            oldest_episode=ends.oldest,
            newest_episode=ends.newest,
            avg_relevance=total / head.episodes,
            bytes=head.record_bytes,
        )

    def _head_now(self) -> tuple[Head | None, set[bytes]]:
        """The head without what has expired, and the ids of what has and is not removed yet."""
        now_us = self._context.now_us()
        head = self._context.head(self._agent)
        gone: set[bytes] = set()
        if head is None or head.expiry_us > now_us:
            return head, gone
        with suppress(QilbeeError):  # a store that takes no writes can be read
            self.remove_due()
            head = self._context.head(self._agent) or head
        for key, _ in self._backend.scan(*self._keys.due_range(now_us)):
            with suppress(DataError, ProviderNotFoundError):  # it counts until verify() has named it
                found = self._find(key[-16:])
                if found is not None and found.has_expired(now_us):
                    self._remove(head, [], found)
                    gone.add(found.id_bytes)
        return head, gone

    def _ids(self, reverse: bool) -> Iterator[bytes]:
        return (key[-16:] for key, _ in self._backend.scan(*self._keys.range(Space.EPISODE), reverse=reverse))


def _key_of(operation: Operation) -> bytes:
    return operation.start if isinstance(operation, DeleteRange) else operation.key
