"""Ending an episode without losing it, putting it back, and purging what has ended.

An episode that is retired leaves every place where the present is read, like a deleted one. Its last version goes to
HISTORY with all that is needed to put it back: when it ended, what took its place, and its state. So nothing else is
kept of it but its idempotency key, which still stands for it, and the row that says when it expires, for then all of it
goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby, islice

from msgspec.structs import replace

from qilbee_core.batch import DeleteRange, Operation, Put
from qilbee_core.errors import DataError, ProviderNotFoundError
from qilbee_core.ids import format_id, parse_id, us_of_datetime
from qilbee_core.keys import Space
from qilbee_core.limits import check_flag, check_moment
from qilbee_core.memory.commit import Touched
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind
from qilbee_core.memory.past import Ended, Past, recorded_us
from qilbee_core.memory.reads import Found
from qilbee_core.memory.relevance import contribution
from qilbee_core.memory.state import first_state, standings
from qilbee_core.memory.statistics import PurgeReceipt
from qilbee_core.memory.writes import REMOVED_AT_ONCE_MAX, Writes

__all__ = ["Retiring"]


class Retiring(Writes):
    """The operations that end versions and do away with those that have ended, and all those that read and write."""

    def invalidate(self, id: str) -> tuple[bool, int]:
        """Retire an episode; without history it is deleted."""
        id_bytes = parse_id(id)

        def plan(head: Head, operations: list[Operation]) -> tuple[bool, Touched]:
            found = self._find(id_bytes)
            if found is None or found.has_expired(self._context.now_us()):
                return False, {}
            if self._keep_history:
                self._retire(head, operations, found)
            else:
                self._remove(head, operations, found)
            return True, {id_bytes: None}

        done = self._commit(ChangeKind.RETIRE if self._keep_history else ChangeKind.DELETE, plan)
        self._indexing.refresh(self._agent, [id_bytes])
        return done

    def _retire(
        self, head: Head, operations: list[Operation], found: Found, superseded_by: bytes | None = None
    ) -> None:
        """Plan to end an episode that is there, at the transaction time of the batch.

        The batch is one of ChangeKind.RETIRE, and names the episode as removed. It is kept whatever the settings say
        of history.
        """
        state = found.state or first_state(found.document)
        ended = replace(
            found.document,
            strength=state.strength,
            reinforced_us=state.reinforced_us,
            ended_us=head.transaction_us,
            superseded_by="" if superseded_by is None else format_id(superseded_by),
            pinned=state.pinned,
        )
        self._take_out(head, operations, found)
        key = self._keys.history(found.id_bytes, ended.transaction_us)
        operations.append(Put(key, self._records.seal(key, ended.fields())))
        head.retired += 1

    def _put_back(self, head: Head, operations: list[Operation], found: Found) -> bytes | None:
        """Plan to put a retired episode back as it was; gives its record, None where there is nothing to put back.

        It is a new version with the transaction time of the batch, which is one of ChangeKind.RETIRE: until then it was
        not there, and the version that ended still says so. It goes on decaying as if it had never been retired.
        """
        if not found.document.ended_us or found.has_expired(self._context.now_us()):
            return None
        keys, id_bytes, ended = self._keys, found.id_bytes, found.document
        document = replace(
            ended,
            transaction_us=head.transaction_us,
            reinforced_us=ended.decay_start_us(),
            previous_us=ended.transaction_us if self._keep_history else 0,
            ended_us=0,
            superseded_by="",
            pinned=False,
        )
        if not self._keep_history:
            operations.append(DeleteRange(*keys.history_range(id_bytes)))
        state = first_state(document)
        if ended.pinned:
            state = replace(state, pinned=True)
            operations.append(Put(keys.state(id_bytes), state.encode(keys.state(id_bytes))))
            head.states += 1
        if document.episode_type not in head.types:
            self._check_new_type(head)
        key = keys.episode(id_bytes)
        value = self._records.seal(key, document.fields())
        (order, place), *others = standings(head, self._context.orders_of, id_bytes, document, state)
        head.add(document.episode_type, len(key) + len(value), order.number, contribution(order, place))
        operations += (Put(key, value), Put(keys.vitality(order.number, place, id_bytes), b""))
        for order, place in others:
            head.enter(order.number, contribution(order, place))
            operations.append(Put(keys.vitality(order.number, place, id_bytes), b""))
        head.retired = max(0, head.retired - 1)
        return value

    # --- purging

    def purge(self, before: datetime, *, erase: bool) -> tuple[PurgeReceipt, int]:
        """Remove the versions that ended before a time, in bounded batches."""
        check_moment(before, "before")
        check_flag(erase, "erase")
        engine = self._erasing_engine() if erase else None
        before_us = us_of_datetime(before)
        while self.remove_due()[0]:
            pass
        purged = _Purged()
        ticket = self._context.durability.last_ticket
        due = self._ids_due(before_us, purged)
        while page := list(islice(due, REMOVED_AT_ONCE_MAX)):
            for kind, whole in ((ChangeKind.RETIRE, False), (ChangeKind.DELETE, True)):
                part, ticket = self._commit(kind, self._plan_purge, page, before_us, whole)
                purged.add(part)
        if purged.bytes and (head := self._context.head(self._agent)) is not None:
            left_bytes = head.record_bytes + max(0, purged.seen_bytes - purged.bytes)
            self._context.freed(self._agent, purged.bytes, left_bytes)
        if engine is not None:
            self._erase_texts(engine)
        return purged.receipt(), ticket

    def _ids_due(self, before_us: int, purged: _Purged) -> Iterator[bytes]:
        """The episodes of which a version ended before a time, as far as can be told without the agent's lock.

        It counts what it walks over in ``purged``.
        """

        def rows() -> Iterator[tuple[bytes, bytes]]:
            for row in self._backend.scan(*self._keys.range(Space.HISTORY)):
                purged.seen_bytes += len(row[0]) + len(row[1])
                yield row

        for id_bytes, versions in groupby(rows(), key=lambda row: row[0][-24:-8]):
            (key, value), *following = islice(versions, 2)
            if following and recorded_us(following[0][0]) < before_us:
                yield id_bytes
                continue
            with suppress(DataError, ProviderNotFoundError):  # it stays, for verify() to name it
                ended_us = EpisodeDocument.from_fields(self._records.open(key, value)).ended_us
                if not ended_us and not following and (found := self._find(id_bytes)) is not None:
                    ended_us = found.document.transaction_us
                if 0 < ended_us < before_us:
                    yield id_bytes

    def _plan_purge(
        self, head: Head, operations: list[Operation], ids: Sequence[bytes], before_us: int, whole: bool
    ) -> tuple[_Purged, Touched]:
        """Remove what is due of these: of those that are to go ``whole``, or of those of which something stays."""
        purged = _Purged()
        touched: Touched = {}
        for id_bytes in ids:
            with suppress(DataError, ProviderNotFoundError):
                found = self._find_kept(id_bytes)
                if found is None:
                    continue
                is_retired = found.document.ended_us > 0
                oldest_kept: Ended | None = None
                due: list[bytes] = []
                due_bytes = 0
                past = Past(self._backend, self._keys, self._records)
                for each in past.ended(id_bytes, None if is_retired else found.document):
                    if each.ended_us >= before_us:
                        oldest_kept = each
                    else:
                        due.append(each.key)
                        due_bytes += len(each.key) + len(each.value)
                if not due or whole is not (is_retired and oldest_kept is None):
                    continue
                if whole:
                    self._remove(head, operations, found)
                    purged.ids.append(id_bytes)
                    touched[id_bytes] = None
                else:
                    operations.append(DeleteRange(due[-1], due[0] + b"\x00"))
                    touched[id_bytes] = self._cut(head, operations, found, oldest_kept)
                purged.versions += len(due)
                purged.bytes += due_bytes
        return purged, touched

    def _cut(self, head: Head, operations: list[Operation], found: Found, oldest: Ended | None) -> bytes | None:
        """Let the oldest version that stays (None: the current one) name none before it; gives the record."""
        if oldest is not None:
            document = replace(oldest.document, previous_us=0)
            operations.append(Put(oldest.key, self._records.seal(oldest.key, document.fields())))
            return found.value or None
        key = self._keys.episode(found.id_bytes)
        value = self._records.seal(key, replace(found.document, previous_us=0).fields())
        head.record_bytes += len(value) - len(found.value)
        operations.append(Put(key, value))
        return value


class _Purged:
    """What was purged so far."""

    def __init__(self) -> None:
        self.versions = 0
        self.bytes = 0
        self.seen_bytes = 0
        """Of all versions that had ended, whether they went or stay."""
        self.ids: list[bytes] = []
        """Of the retired episodes of which nothing is left."""

    def add(self, other: _Purged) -> None:
        self.versions += other.versions
        self.bytes += other.bytes
        self.ids += other.ids

    def receipt(self) -> PurgeReceipt:
        return PurgeReceipt(episodes=len(self.ids), versions=self.versions, bytes=self.bytes)
