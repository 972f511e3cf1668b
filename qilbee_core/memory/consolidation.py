"""Consolidation: a policy is shown what an agent remembers, and what it plans is carried out; and undone.

The policy is asked without a lock, about what was stored when it began. Then each group of its plan is committed if all
that it rests on is still as it was offered: the new memories, the retirement of what gives way to them, and the row
that undoes it, in one batch. What has changed meanwhile is left as it is, and said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import replace

from qilbee_core.batch import Delete, Operation, Put, WriteBatch
from qilbee_core.config import MemorySettings
from qilbee_core.episode import Consolidation, ConsolidationResult, Episode, UndoReceipt
from qilbee_core.errors import DataError, InvalidError, NotFoundError, ProviderNotFoundError, QilbeeError, shown
from qilbee_core.ids import datetime_of_us, draw_id, event_us_of, format_id, lowest_id, parse_id, us_of_datetime
from qilbee_core.interfaces import ConsolidationPolicy
from qilbee_core.keys import Space
from qilbee_core.limits import EPISODE_TYPES_MAX, check_flag, check_moment
from qilbee_core.memory.commit import Context, Touched
from qilbee_core.memory.groups import Group, batches_of, groups_of
from qilbee_core.memory.head import Head
from qilbee_core.memory.indexing import Indexing
from qilbee_core.memory.log import ChangeKind
from qilbee_core.memory.reads import Found
from qilbee_core.memory.searching import Searches
from qilbee_core.memory.state import decode_state, first_state
from qilbee_core.memory.undo import UndoRow, decode_undo, parts, remove_from_undo, undo_us
from qilbee_core.memory.writes import REMOVED_AT_ONCE_MAX, is_same
from qilbee_core.patience import patiently
from qilbee_core.plugins import Plugins
from qilbee_core.policies.contract import plan_of

__all__ = ["Consolidations"]

OFFERED_EPISODES_MAX = 100_000
OFFERED_BYTES_MAX = 128 << 20
"""Of their records. An agent that has more is consolidated in parts, one after another by event time."""
_STRONGER_LEAST = 0.01
"""What takes the place of others gains relevance from them where it is this much: less is not worth a state."""


class _Batch(NamedTuple):
    """What became of some groups: id and what took its place, or why it stays."""

    consolidation: bytes
    created: list[Episode]
    superseded: dict[str, str]
    forgotten: list[str]
    dropped: dict[str, str]


class _Undone(NamedTuple):
    """What became of one row."""

    restored: list[str]
    removed: list[str]
    kept: dict[str, str]


class Consolidations(Searches):
    """The operations that consolidate, and undo it; and all below them."""

    def __init__(
        self, context: Context, indexing: Indexing, plugins: Plugins, settings: MemorySettings, agent_id: str
    ) -> None:
        super().__init__(
            context,
            indexing,
            agent_id,
            episodes_stored=plugins.episodes_stored,
            keep_history=settings.keep_history,
        )
        self._plugins = plugins
        self._settings = settings

    # --- consolidating

    def consolidate(
        self,
        policy: str | ConsolidationPolicy,
        since: datetime | None,
        *,
        dry_run: bool,
        progress: Callable[[int], object] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[ConsolidationResult, int]:
        """Offer, plan, and carry out; ``stop`` is asked before each plan and each batch."""
        check_flag(dry_run, "dry_run")
        if since is not None:
            check_moment(since, "since")
        if progress is not None and not callable(progress):
            raise InvalidError(f"progress is {shown(progress)}", remedy="give a function of one number")
        chosen = self._policy(policy)
        if not dry_run:
            self._context.durability.refuse()  # before a policy has thought for nothing
            self.end_undo()
        offered, groups = self._planned(chosen, since, stop)
        ticket = self._context.durability.last_ticket
        done = _Batch(b"", [], {}, [], {})
        if dry_run:
            for group in groups:
                _add(done, self._as_planned(group))
        for batch in () if dry_run else batches_of(groups, REMOVED_AT_ONCE_MAX):
            if stop():
                break
            carried, ticket = self._commit(ChangeKind.RETIRE, self._plan_batch, batch, chosen.name, done.consolidation)
            self._indexing.refresh(self._agent, [parse_id(id_) for id_ in (*carried.superseded, *carried.forgotten)])
            self._stored(carried.created)
            done = _add(done, carried)
            if progress is not None:
                progress(len(done.superseded) + len(done.forgotten))
        result = ConsolidationResult(
            consolidation_id=format_id(done.consolidation) if done.consolidation else None,
            policy=chosen.name,
            offered=offered,
            created=done.created,
            superseded=done.superseded,
            forgotten=done.forgotten,
            dropped=done.dropped,
            undo_until=self._undo_until(event_us_of(done.consolidation)) if done.consolidation else None,
            dry_run=dry_run,
        )
        if done.consolidation:
            if not self._settings.undo_days:
                self.end_undo()
            if self._plugins.memory_consolidated is not None:
                self._plugins.memory_consolidated(self.agent_id, result)
        return result, ticket

    def _policy(self, policy: str | ConsolidationPolicy) -> ConsolidationPolicy:
        if isinstance(policy, str):
            settings: dict[str, Any] = dict(self._settings.policies.get(policy, {}))
            return self._plugins.policies.create(policy, **settings)
        if not callable(getattr(policy, "plan", None)) or not isinstance(getattr(policy, "name", None), str):
            raise InvalidError(f"policy is {shown(policy)}", remedy="give its name, or an object with name and plan()")
        return policy

    def _planned(
        self, policy: ConsolidationPolicy, since: datetime | None, stop: Callable[[], bool]
    ) -> tuple[int, list[Group]]:
        """How many episodes were offered, and the groups of what is planned for them."""
        head = self._context.head(self._agent)
        offered, groups = 0, list[Group]()
        low = b"" if since is None else lowest_id(us_of_datetime(since))
        while head is not None and not stop():
            episodes, low = self._offered(low, head.transaction_us)
            if not episodes:
                break
            offered += len(episodes)
            known = {episode.id: episode._transaction_us or 0 for episode in episodes}
            plan = plan_of(policy, episodes, now=datetime_of_us(self._context.now_us()))
            groups += groups_of(plan, known, policy=policy.name)
        if head is not None:
            types = head.types.keys() | {episode.episode_type for group in groups for episode in group.create}
            if len(types) > EPISODE_TYPES_MAX:
                raise InvalidError(
                    f"with what policy {policy.name!r} creates, agent {self.agent_id!r} would have {len(types)} "
                    f"episode types, the most is {EPISODE_TYPES_MAX}",
                    remedy="use fewer types, and metadata for what varies",
                )
        return offered, groups

    def _offered(self, low: bytes, until_us: int) -> tuple[list[Episode], bytes]:
        """Some episodes from ``low`` on that were stored up to a time, and where the next ones begin.

        What is pinned stays as it is, and nothing may be made of what is to expire that would outlive it: neither is
        offered.
        """
        now_us = self._context.now_us()
        episodes: list[Episode] = []
        offered_bytes = 0
        snapshot = self._backend.snapshot()
        try:
            has_states = next(snapshot.scan(*self._keys.range(Space.STATE)), None) is not None
            for key, value in snapshot.scan(self._keys.episode(low), self._keys.range(Space.EPISODE)[1]):
                if len(episodes) == OFFERED_EPISODES_MAX or offered_bytes > OFFERED_BYTES_MAX:
                    break
                low = key[-16:] + b"\x00"
                with suppress(DataError, ProviderNotFoundError):  # it stays, for verify() to name it
                    document = self._open(key[-16:], value)
                    state_key = self._keys.state(key[-16:])
                    found = snapshot.get(state_key) if has_states else None
                    state = None if found is None else decode_state(state_key, found)
                    if document.expires_us or document.transaction_us > until_us or (state and state.pinned):
                        continue
                    episodes.append(self._episode(key[-16:], document, state, now_us))
                    offered_bytes += len(value)
        finally:
            snapshot.close()
        return episodes, low

    @staticmethod
    def _as_planned(group: Group) -> _Batch:
        superseded = {format_id(source): format_id(survivor) for source, survivor in group.supersede.items()}
        return _Batch(b"", group.create, superseded, [format_id(id_bytes) for id_bytes in group.forget], {})

    def _plan_batch(
        self, head: Head, operations: list[Operation], groups: Sequence[Group], policy: str, consolidation: bytes
    ) -> tuple[_Batch, Touched]:
        """Carry out those groups that rest on what is as it was, and note what undoes it."""
        touched: Touched = {}
        done = _Batch(b"", [], {}, [], {})
        superseded: list[bytes] = []
        forgotten: list[bytes] = []
        stronger: dict[bytes, float] = {}
        for group in groups:
            found = {id_bytes: self._find(id_bytes) for id_bytes in group.needed}
            dropped = self._dropped(group, found)
            if dropped:
                done.dropped.update(dropped)
                continue
            for episode in group.create:
                episode._id_fixed = True  # another id would not be the one that its sources are superseded by
                kept = self._find_kept(episode._id)  # the same, made before and retired since
                record = None if kept is None else self._put_back(head, operations, kept)
                if kept is not None and record is not None:
                    # Where another consolidation took it away, that has nothing left of it to bring back.
                    remove_from_undo(self._backend, self._keys.undo(kept.document.ended_us), operations, episode._id)
                    touched[episode._id] = record
                    done.created.append(episode)
            stored, records = self._plan_store(
                head, operations, [episode for episode in group.create if episode._id not in touched], b""
            )
            touched.update(records)
            done.created.extend(stored)
            for id_bytes in group.retired:
                survivor = group.supersede.get(id_bytes)
                source = found[id_bytes]
                assert source is not None, "else it was dropped"
                self._retire(head, operations, source, survivor)
                touched[id_bytes] = None
                if survivor is None:
                    forgotten.append(id_bytes)
                    done.forgotten.append(format_id(id_bytes))
                else:
                    if survivor in found:
                        stronger[survivor] = max(stronger.get(survivor, 0.0), self._shown(source).relevance)
                    superseded.append(id_bytes)
                    done.superseded[format_id(id_bytes)] = format_id(survivor)
        if not touched:
            return done, touched
        touched.update(self._strengthen(head, operations, stronger))
        # The id says when the first batch was committed: the rows of a consolidation are found from there on.
        consolidation = consolidation or draw_id(head.transaction_us)
        key = self._keys.undo(head.transaction_us)
        row = UndoRow.of(consolidation, policy, (each._id for each in done.created), superseded, forgotten)
        operations.append(Put(key, row.encode(key)))
        return done._replace(consolidation=consolidation), touched

    def _strengthen(self, head: Head, operations: list[Operation], relevances: Mapping[bytes, float]) -> Touched:
        """Let what takes the place of others be as relevant as the most relevant of them: it was told again."""
        touched: Touched = {}
        now_us = self._context.now_us()
        for id_bytes, relevance in relevances.items():
            found = self._find(id_bytes)
            if found is not None and self._shown(found).relevance < relevance - _STRONGER_LEAST:
                before = found.state or first_state(found.document)
                state = replace(before, strength=relevance, reinforced_us=max(now_us, before.reinforced_us))
                self._set_state(head, operations, found, state)
                touched[id_bytes] = found.value
        return touched

    def _dropped(self, group: Group, found: Mapping[bytes, Found | None]) -> dict[str, str]:
        """What of a group has to stay, and why; nothing where all of it is as it was."""
        reasons: dict[str, str] = {}
        retired = set(group.retired)
        for id_bytes, offered_us in group.needed.items():
            episode = found[id_bytes]
            if episode is None:
                reasons[format_id(id_bytes)] = "gone"
            elif episode.document.transaction_us != offered_us:
                reasons[format_id(id_bytes)] = "changed"
            elif id_bytes in retired and episode.state is not None and episode.state.pinned:
                reasons[format_id(id_bytes)] = "pinned"
        for created in group.create:
            stored = self._find_kept(created._id)
            if stored is not None and not is_same(stored.document, created):
                reasons[created.id] = "changed"
        if reasons:
            for id_bytes in retired:
                reasons.setdefault(format_id(id_bytes), "group")
        return reasons

    # --- undoing

    def consolidations(self) -> list[Consolidation]:
        """Those that can be undone, the newest first."""
        with suppress(QilbeeError):  # a store that takes no writes can be read
            self.end_undo()
        found: dict[bytes, Consolidation] = {}
        for _, row in self._undo_rows():
            begun_us = event_us_of(row.consolidation)
            if self._is_over(begun_us):
                continue
            before = found.get(row.consolidation)
            found[row.consolidation] = Consolidation(
                consolidation_id=format_id(row.consolidation),
                policy=row.policy,
                consolidated_at=datetime_of_us(begun_us),
                undo_until=self._undo_until(begun_us),
                created=len(parts(row.created)) + (before.created if before else 0),
                superseded=len(parts(row.superseded)) + (before.superseded if before else 0),
                forgotten=len(parts(row.forgotten)) + (before.forgotten if before else 0),
            )
        return [found[id_bytes] for id_bytes in sorted(found, reverse=True)]

    def undo(self, consolidation_id: str) -> tuple[UndoReceipt, int]:
        """Bring back what a consolidation took away, and take away what it created."""
        try:
            id_bytes = parse_id(consolidation_id)
        except InvalidError:
            raise InvalidError(
                f"{shown(consolidation_id)} is not the id of a consolidation",
                remedy="use the consolidation_id that consolidate() or consolidations() gave",
            ) from None
        self.end_undo()
        keys = [key for key, row in self._undo_rows(max(0, event_us_of(id_bytes))) if row.consolidation == id_bytes]
        if not keys:
            raise NotFoundError(
                f"agent {self.agent_id!r} has no consolidation {consolidation_id} that can be undone",
                remedy="consolidations() lists those that can",
            )
        ticket = self._context.durability.last_ticket
        restored, removed, kept = list[str](), list[str](), dict[str, str]()
        for key in reversed(keys):
            undone, ticket = self._commit(ChangeKind.RETIRE, self._plan_undo, key)
            if not undone.restored and not undone.removed:
                ticket = self._drop_row(key)
            self._indexing.refresh(self._agent, [parse_id(id_) for id_ in (*undone.restored, *undone.removed)])
            restored += undone.restored
            removed += undone.removed
            kept |= undone.kept
        receipt = UndoReceipt(consolidation_id=consolidation_id, restored=restored, removed=removed, kept=kept)
        return receipt, ticket

    def _plan_undo(self, head: Head, operations: list[Operation], key: bytes) -> tuple[_Undone, Touched]:
        """Bring back what went with one row, which goes itself."""
        touched: Touched = {}
        done = _Undone([], [], {})
        value = self._backend.get(key)
        if value is None:
            return done, touched  # another one undid it meanwhile
        row, at_us = decode_undo(key, value), undo_us(key)
        for id_bytes in parts(row.created):
            found = self._find_kept(id_bytes)
            reason = None if found is None else self._why_kept(found)
            if found is not None and reason is None:
                self._retire(head, operations, found)
                touched[id_bytes] = None
                done.removed.append(format_id(id_bytes))
            elif reason is not None:
                done.kept[format_id(id_bytes)] = reason
        for id_bytes in row.gone():
            found = self._find_kept(id_bytes)
            record = self._put_back(head, operations, found) if found and found.document.ended_us == at_us else None
            if record is not None:
                touched[id_bytes] = record
                done.restored.append(format_id(id_bytes))
        operations.append(Delete(key))
        return done, touched

    @staticmethod
    def _why_kept(created: Found) -> str | None:
        if created.document.ended_us:
            return "retired"
        if created.document.origin:
            return "changed"
        return "pinned" if created.state is not None and created.state.pinned else None

    def end_undo(self, *, stop: Callable[[], bool] = lambda: False) -> int:
        """Do away with what undoes the consolidations that are too old for it; gives how many rows.

        What a plan forgot is deleted then, and in a store that keeps no history what was superseded too.
        """
        ended = 0
        for key, row in self._undo_rows():
            if not self._is_over(event_us_of(row.consolidation)) or stop():
                break
            if row.forgotten or not self._keep_history:
                self._commit(ChangeKind.DELETE, self._plan_end, key)
            self._drop_row(key)
            ended += 1
        return ended

    def _plan_end(self, head: Head, operations: list[Operation], key: bytes) -> tuple[None, Touched]:
        touched: Touched = {}
        value = self._backend.get(key)
        row = None if value is None else decode_undo(key, value)
        for id_bytes in () if row is None else parts(row.forgotten) if self._keep_history else row.gone():
            found = self._find_kept(id_bytes)
            if found is not None and found.document.ended_us == undo_us(key):
                self._remove(head, operations, found)
                touched[id_bytes] = None
        return None, touched

    def _drop_row(self, key: bytes) -> int:
        """Remove a row; no episode changes by that, so the change log does not tell. Gives a ticket."""
        context = self._context
        with self._agent.lock:
            if context.durability.failure is not None:
                context.durability.refuse()  # under the lock: reload() waits for those who have passed this
            try:
                patiently(partial(self._backend.write, WriteBatch([Delete(key)])))
            except BaseException as error:
                context.durability.write_failed(error)
                raise
            return context.durability.wrote()

    def _undo_rows(self, from_us: int = 0) -> Iterator[tuple[bytes, UndoRow]]:
        """The rows of this agent from a time on, in the order of their times."""
        for key, value in self._backend.scan(self._keys.undo(from_us), self._keys.range(Space.PLAN)[1]):
            with suppress(DataError):  # verify() names it
                yield key, decode_undo(key, value)

    def _is_over(self, begun_us: int) -> bool:
        return self._undo_until(begun_us) <= datetime_of_us(self._context.now_us())

    def _undo_until(self, begun_us: int) -> datetime:
        try:
            return datetime_of_us(begun_us) + timedelta(days=self._settings.undo_days)
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)


def _add(done: _Batch, more: _Batch) -> _Batch:
    done.created.extend(more.created)
    done.superseded.update(more.superseded)
    done.forgotten.extend(more.forgotten)
    done.dropped.update(more.dropped)
    return done._replace(consolidation=done.consolidation or more.consolidation)
