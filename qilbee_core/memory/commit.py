"""The one way in: a logical write is planned against an agent's head and committed as one batch.

On an engine with one opener the head is kept in RAM, under a lock. On a shared engine it is read anew,
the batch expects it unchanged, and a conflict plans the write again.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar, TypeVarTuple

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.catalog import Catalog
from qilbee_core.durability import Durability
from qilbee_core.envelope import frame
from qilbee_core.episode import MEMORY_TYPES
from qilbee_core.errors import ConflictError, CorruptRecordError, DataError, ProviderNotFoundError, StorageError
from qilbee_core.interfaces import SingleProcess, StorageBackend
from qilbee_core.keys import AgentKeys, Space, encode_agent_id
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind, change_payload, read_head
from qilbee_core.memory.relevance import Order
from qilbee_core.memory.statistics import ClearReceipt
from qilbee_core.memory.tail import Tail, Tails
from qilbee_core.records import Records

__all__ = ["CHANGES_KEPT", "Agent", "Context", "Place", "Touched"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Touched = dict[bytes, bytes | None]
"""Id of each episode that a write touches -> its sealed record, or None where it is removed."""

CHANGES_KEPT = 1024
"""Entries of an agent's change log that are kept for readers in RAM; trimmed when twice as many."""

_STORES_AHEAD_MAX = 64
_STORE_IDS_AHEAD_MAX = 16
"""How far the log may run ahead of the stored head: what an open after a crash has to read again."""

_AGENTS_KEPT = 1024
"""Agents whose heads stay in RAM after their last AgentMemory is gone."""
_ATTEMPTS_MAX = 64
_BACKOFF_S_MAX = 0.05


_STORE = ChangeKind.STORE  # a name of the module is found four times faster than a member of an enum
_NEVER = -_STORES_AHEAD_MAX


class Place(NamedTuple):
    """Where new episodes of full strength stand in the order of relevance: the same place for a whole second."""

    decay_start_us: int
    order: int
    vitality: int
    contribution: int
    key_start: bytes


class Agent:
    """What is kept in RAM of one agent while anybody uses it: its keys, its head, its newest episodes."""

    __slots__ = ("__weakref__", "head", "id", "keys", "lock", "place", "stored_sequence", "tail")

    def __init__(self, agent_id: str) -> None:
        self.id = agent_id
        self.keys = AgentKeys(agent_id)
        self.lock = threading.Lock()
        self.head: Head | None = None
        self.stored_sequence = _NEVER
        """The sequence of the head as it is stored."""
        self.tail = Tail()
        self.place = Place(-1, -1, 0, 0, b"")


class Context:
    """What all agents of one open store share."""

    def __init__(
        self,
        backend: StorageBackend,
        catalog: Catalog,
        records: Records,
        durability: Durability,
        *,
        recent_cache_bytes: int,
    ) -> None:
        self.backend = backend
        self.catalog = catalog
        self.records = records
        self.durability = durability
        self.tails = Tails(recent_cache_bytes)
        self.single_process = isinstance(backend, SingleProcess)
        self.orders = _orders_in_force(catalog)
        """The order of each memory type, by its position in MEMORY_TYPES."""
        # One object for each agent, for as long as anybody holds it; the ones used last are held here.
        self._agents: weakref.WeakValueDictionary[str, Agent] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[str, Agent] = OrderedDict()
        self._agents_lock = threading.Lock()
        _contexts.add(self)

    def agent(self, agent_id: str) -> Agent:
        """The one :class:`Agent` of that id in this process; InvalidError where the id is not allowed."""
        # Under its NFC form: ids that are equal there have the same keys, and must have the same head.
        agent_id = encode_agent_id(agent_id).decode()
        with self._agents_lock:
            agent = self._agents.get(agent_id)
            if agent is None:
                agent = self._agents[agent_id] = Agent(agent_id)
            self._kept[agent_id] = agent
            self._kept.move_to_end(agent_id)
            if len(self._kept) > _AGENTS_KEPT:
                _, oldest = self._kept.popitem(last=False)
                self.tails.clear(oldest.tail)
        return agent

    def agents_in_use(self) -> list[Agent]:
        """Those that somebody holds, or used lately."""
        with self._agents_lock:
            return list(self._agents.values())

    def head(self, agent: Agent) -> Head | None:
        """A copy of the agent's head now; None where it has stored nothing."""
        with agent.lock:
            if agent.head is not None:
                return agent.head.copy() if agent.head.sequence else None
            value = self.backend.get(agent.keys.head)
            return None if value is None else self._moved_on(agent, value)

    def commit(
        self,
        agent: Agent,
        kind: ChangeKind,
        plan: Callable[[Head, list[Operation], *Ts], tuple[T, Touched]],
        *args: *Ts,
    ) -> tuple[T, int]:
        """Plan against the head, write, and publish; gives the plan's value and a ticket for durability.

        ``plan`` changes the head in place, adds its operations, and touches nothing where there is nothing
        to write. The entry of the change log and the head are added here. It may be called again on a
        shared engine.
        """
        if self.durability.failure is not None:
            self.durability.refuse()
        keys = agent.keys
        with agent.lock:
            for attempt in range(_ATTEMPTS_MAX):
                expects: Sequence[Expect] = ()
                if (head := agent.head) is None:
                    head, expects = self._load(agent)
                try:
                    now = time.time_ns() // 1000
                    head.transaction_us = now if now > head.transaction_us else head.transaction_us + 1
                    operations: list[Operation] = []
                    value, touched = plan(head, operations, *args)
                    if not touched:
                        return value, self.durability.last_ticket
                    head.sequence = sequence = head.sequence + 1
                    if trimming := sequence - head.trimmed >= 2 * CHANGES_KEPT:
                        operations.append(trim(keys, head, sequence - CHANGES_KEPT))
                    entry_key = keys.changes + sequence.to_bytes(8, "big")
                    entry = change_payload(kind, head.transaction_us, touched)
                    operations.append(Put(entry_key, frame(entry_key, entry)))
                    # A store moves the head in a way that the log tells, see read_head(): now and then is enough.
                    if (
                        kind is not _STORE
                        or trimming
                        or not self.single_process
                        or not 0 < sequence - agent.stored_sequence < _STORES_AHEAD_MAX
                        or len(touched) > _STORE_IDS_AHEAD_MAX
                    ):
                        operations.append(Put(keys.head, head.encode(keys.head)))
                        agent.stored_sequence = sequence
                except BaseException:
                    self.forget(agent)  # the head in RAM was changed
                    raise
                try:
                    self.backend.write(WriteBatch(operations, expects))
                    if agent.tail.warm:
                        self._show(agent.tail, touched)
                    # Under the lock: who finds this write there must find its ticket taken.
                    return value, self.durability.wrote()
                except ConflictError:
                    # Another process was quicker: plan again.
                    time.sleep(random.uniform(0, min(_BACKOFF_S_MAX, 0.0005 * 2**attempt)))  # noqa: S311
                except BaseException:
                    self.forget(agent)  # whether anything was written may not be known
                    raise
            raise self._too_many_writers(agent)

    def _show(self, tail: Tail, touched: Touched) -> None:
        for id_bytes, record in touched.items():
            if record is None:
                self.tails.remove(tail, id_bytes)
            else:
                self.tails.put(tail, id_bytes, record)

    def _load(self, agent: Agent) -> tuple[Head, Sequence[Expect]]:
        """The head to change, kept in RAM from now on, or else what to expect of it."""
        value = self.backend.get(agent.keys.head)
        head = None if value is None else self._moved_on(agent, value)
        if head is None and next(self.backend.scan(*agent.keys.range(Space.EPISODE)), None) is not None:
            # To begin anew would store over what is there.
            raise CorruptRecordError(f"agent {agent.id!r} has episodes and no head", remedy="run repair()")
        if not self.single_process:
            return head or Head(), (Expect(agent.keys.head, value),)
        if head is None or value is None:
            # Nobody else can store: the tail of an agent without episodes is known to be empty.
            agent.head = Head()
            agent.stored_sequence = _NEVER
            self.tails.fill(agent.tail, [], whole=True)
        else:
            agent.head = head
            agent.stored_sequence = Head.decode(agent.keys.head, value).sequence
        return agent.head, ()

    def _moved_on(self, agent: Agent, value: bytes) -> Head:
        return read_head(self.backend, agent.keys, value, self.records, self.orders)

    def clear(self, agent: Agent, ranges: Sequence[DeleteRange]) -> tuple[ClearReceipt, int]:
        """Remove the head and ``ranges`` in one batch. The next head has another generation."""
        if self.durability.failure is not None:
            self.durability.refuse()
        with agent.lock:
            for _ in range(_ATTEMPTS_MAX):
                value = self.backend.get(agent.keys.head)
                receipt = self._receipt(agent, value)
                if value is None and not receipt.episodes:
                    return receipt, self.durability.last_ticket
                self.forget(agent)
                batch = WriteBatch([*ranges, Delete(agent.keys.head)], [Expect(agent.keys.head, value)])
                try:
                    self.backend.write(batch)
                    break
                except ConflictError:
                    continue
            else:
                raise self._too_many_writers(agent)
            return receipt, self.durability.wrote()

    def _receipt(self, agent: Agent, value: bytes | None) -> ClearReceipt:
        """What clear() will remove: what the head says, or a count where it is broken, which must not be in the way."""
        with suppress(DataError, ProviderNotFoundError):
            if value is not None:
                head = self._moved_on(agent, value)
                return ClearReceipt(episodes=head.episodes, bytes=head.record_bytes)
        sizes = [len(key) + len(record) for key, record in self.backend.scan(*agent.keys.range(Space.EPISODE))]
        return ClearReceipt(episodes=len(sizes), bytes=sum(sizes))

    @staticmethod
    def _too_many_writers(agent: Agent) -> StorageError:
        return StorageError(
            f"{_ATTEMPTS_MAX} attempts to write to agent {agent.id!r} met other writers",
            remedy="write less often to one agent, or in batches",
        )

    def forget(self, agent: Agent) -> None:
        """Let go of what RAM holds of an agent, so that it is read again."""
        agent.head = None
        self.tails.clear(agent.tail)

    def settle(self) -> None:
        """Store the heads of a single opener, and drop the change logs, which nobody else follows."""
        if not self.single_process or self.durability.failure is not None:
            return
        for agent in self.agents_in_use():
            with agent.lock:
                head = agent.head
                if head is not None and head.sequence > head.trimmed:
                    operation = trim(agent.keys, head, head.sequence)
                    try:
                        self.backend.write(WriteBatch([operation, Put(agent.keys.head, head.encode(agent.keys.head))]))
                    except BaseException:
                        self.forget(agent)  # the head in RAM was changed
                        raise
                    agent.stored_sequence = head.sequence
                    self.durability.wrote()

    def restart_locks(self) -> None:
        """In a forked child: locks that the parent's other threads held would never be released."""
        self._agents_lock = threading.Lock()
        self.tails = Tails(0)
        self.durability.abandon()
        for agent in self._agents.values():
            agent.lock = threading.Lock()
            agent.tail = Tail()


def trim(keys: AgentKeys, head: Head, sequence: int) -> DeleteRange:
    """Drop the entries of the change log up to ``sequence``, and say so in ``head``."""
    operation = DeleteRange(keys.change(head.trimmed + 1), keys.change(sequence + 1))
    head.trimmed = sequence
    return operation


def _orders_in_force(catalog: Catalog) -> tuple[Order, ...]:
    in_force = {
        known.memory_type: Order(number, known.memory_type, known.half_life_us, catalog.header.created_us)
        for number, known in sorted(catalog.orders.items())
    }
    lost = [memory_type for memory_type in MEMORY_TYPES if memory_type not in in_force]
    if lost:
        raise CorruptRecordError(f"the catalog has no decay order for {', '.join(lost)}", remedy="restore a copy")
    return tuple(in_force[memory_type] for memory_type in MEMORY_TYPES)


_contexts: weakref.WeakSet[Context] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for context in list(_contexts):
        context.restart_locks()


os.register_at_fork(after_in_child=_after_fork_in_child)
