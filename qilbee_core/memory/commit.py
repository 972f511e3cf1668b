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
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from time import sleep
from typing import TypeVar, TypeVarTuple

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.catalog import Catalog
from qilbee_core.durability import Durability
from qilbee_core.envelope import frame
from qilbee_core.episode import MEMORY_TYPES
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    DataError,
    ProviderNotFoundError,
    QilbeeError,
    StorageError,
    WriteStallError,
)
from qilbee_core.interfaces import SingleProcess, StorageBackend, SupportsPages
from qilbee_core.keys import AgentKeys, Space, encode_agent_id
from qilbee_core.memory.accesses import Accesses
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind, change_payload, read_head
from qilbee_core.memory.relevance import Order, OrderNumbers
from qilbee_core.memory.resident import CHANGES_KEPT, NO_PLACE, Agent, Position
from qilbee_core.memory.statistics import ClearReceipt
from qilbee_core.memory.tail import Tail, Tails
from qilbee_core.patience import patiently
from qilbee_core.records import Records

__all__ = ["Context", "Touched"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Touched = dict[bytes, bytes | None]
"""Id of each episode that a write touches -> its sealed record, or None where it is removed."""

_AGENTS_KEPT = 1024
"""Agents whose heads stay in RAM after their last AgentMemory is gone."""
_ATTEMPTS_MAX = 64
_BACKOFF_S_MAX = 0.05


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
        self._page = backend.page if isinstance(backend, SupportsPages) else None
        self.clock_ns: Callable[[], int] = time.time_ns
        """The time now, in nanoseconds since the Unix epoch: the one clock of a store's memories."""
        self.accesses: Accesses | None = None
        """What was read and has faded, where that is reinforced."""
        self.follows_log = False
        """Whether search follows the change logs, which are then kept until it has."""
        self.index_soon: Callable[[Agent], object] = lambda _: None
        """Called with an agent whose ``unindexed`` rises above 0, under its lock."""
        self.embed_soon: Callable[[Agent, Sequence[Operation]], object] = lambda *_: None
        """Called with rows of search terms that are about to be written, and again once they are, with nothing."""
        self.freed: Callable[[Agent, int, int], object] = lambda *_: None
        """Called with an agent, the bytes of records that it lost, and those that are left."""
        self.reloads = 0
        """How often the engine was opened anew; what it had shown before may have been lost then."""
        self._orders: dict[OrderNumbers, tuple[Order, ...]] = {}
        self.mixed = not self.single_process or len(catalog.orders) > len(MEMORY_TYPES)
        """Whether an agent may be in other orders of relevance than those that are wanted: its head says in which."""
        self.orders_of(catalog.wanted)  # or it is told here that they are lost
        # One object for each agent, for as long as anybody holds it; the ones used last are held here.
        self._agents: weakref.WeakValueDictionary[str, Agent] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[str, Agent] = OrderedDict()
        self._agents_lock = threading.Lock()
        self.accounts_lock = threading.Lock()
        """Held while a row of the server's accounts is written."""
        self.accounts_version = 0
        """Raised by whatever may have changed one of them."""
        _contexts.add(self)

    def agent(self, agent_id: str) -> Agent:
        """The one :class:`Agent` of that id in this process; InvalidError where the id is not allowed."""
        # Under its NFC form: ids that are equal there have the same keys, and must have the same head.
        agent_id = encode_agent_id(agent_id).decode()
        with self._agents_lock:
            agent = self._agents.get(agent_id)
            if agent is None:
                agent = Agent(agent_id)
                agent.orders = self.stored_orders(agent)
                self._agents[agent_id] = agent
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

    def orders_of(self, numbers: OrderNumbers) -> tuple[Order, ...]:
        """The orders with these numbers, by memory type, and always the same object; else CorruptRecordError."""
        orders = self._orders.get(numbers)
        if orders is None:
            made = []
            for number, memory_type in zip(numbers, MEMORY_TYPES, strict=True):
                known = self.catalog.order(number)
                if known.memory_type != memory_type:
                    raise CorruptRecordError(f"order {number} is of {known.memory_type} memories, not {memory_type}")
                made.append(Order(number, memory_type, known.half_life_us, self.catalog.header.created_us))
            orders = self._orders.setdefault(numbers, tuple(made))
        return orders

    def stored_orders(self, agent: Agent) -> tuple[Order, ...]:
        """The orders in force of an agent, as its stored head has them."""
        head = self._stored_head(agent) if self.mixed else None
        return self.orders_of(self.catalog.wanted if head is None else head.orders)

    def _stored_head(self, agent: Agent) -> Head | None:
        """The head as it is stored, which may lag behind; None where it cannot be read, which others tell."""
        with suppress(DataError):
            value = self.backend.get(agent.keys.head)
            if value is not None:
                head = Head.decode(agent.keys.head, value)
                self.orders_of(head.orders)
                return head
        return None

    def head(self, agent: Agent) -> Head | None:
        """A copy of the agent's head now; None where it has stored nothing."""
        with agent.lock:
            if agent.head is not None:
                return agent.head.copy() if any(agent.head.newest_id) else None  # a repaired one begins at 0 again
            value = self.backend.get(agent.keys.head)
            return None if value is None else self._moved_on(agent, value)

    def position(self, agent: Agent) -> Position | None:
        """Where the change log of an agent ends now; None where it has stored nothing."""
        with agent.lock:
            return self._position(agent)

    def _position(self, agent: Agent) -> Position | None:
        head = agent.head or self._load(agent)[0]
        if not any(head.newest_id):
            return None
        return Position(head.generation, head.sequence, head.trimmed, head.expiry_us)

    def write_rows(self, agent: Agent, batch: WriteBatch, covered: int, episodes: int) -> None:
        """Write search terms that go with the log up to ``covered``, with ``episodes`` of those that it names."""
        with agent.lock:
            self.embed_soon(agent, batch.operations)
            self._write_derived(batch)
            self.embed_soon(agent, ())
            agent.indexed = covered
            agent.unindexed = max(0, agent.unindexed - episodes)

    def write_vectors(self, agent: Agent, batch: WriteBatch) -> None:
        """Write vectors of an agent's episodes."""
        with agent.lock:
            self._write_derived(batch)

    def _write_derived(self, batch: WriteBatch) -> None:
        # No ticket: what a power cut takes of this is made again.
        if self.durability.failure is not None:
            self.durability.refuse()  # under the agent's lock, as in _commit()
        try:
            self.backend.write(batch)
        except (ConflictError, WriteStallError):
            raise
        except BaseException as error:
            self.durability.write_failed(error)
            raise

    def all_indexed(self, agent: Agent, position: Position | None) -> bool:
        """Take note that nothing is left to index, if the log ends where it did."""
        with agent.lock:
            if self._position(agent) != position:
                return False
            agent.unindexed = 0
            return True

    def first(
        self, start: bytes, stop: bytes | None, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """The first ``limit`` pairs of a scan, at what they cost the engine and no more."""
        if self._page is not None:
            return self._page(start, stop, limit, reverse=reverse)
        return list(islice(self.backend.scan(start, stop, reverse=reverse), limit))

    def now_us(self) -> int:
        """The time now, in microseconds since the Unix epoch."""
        return self.clock_ns() // 1000

    def may_have_states(self, agent: Agent) -> bool:
        """Whether any episode of the agent may have a state: where not, nobody looks for one. Waits for nobody."""
        head = agent.head
        if head is None:
            if not self.single_process:
                head = self._stored_head(agent)
                agent.orders = self.orders_of(self.catalog.wanted if head is None else head.orders)
                return head is None or head.states > 0
            if not agent.lock.acquire(blocking=False):
                return True
            try:
                head = agent.head or self._load(agent)[0]
            except (DataError, ProviderNotFoundError):
                return True  # what can be read is read, whatever the head is like
            finally:
                agent.lock.release()
        return head.states > 0

    def commit(
        self,
        agent: Agent,
        kind: ChangeKind,
        plan: Callable[[Head, list[Operation], *Ts], tuple[T, Touched]],
        *args: *Ts,
    ) -> tuple[T, int]:
        """Plan against the head, write and publish, once the engine takes writes; nobody waits for a lock meanwhile."""
        try:
            return self._commit(agent, kind, plan, *args)
        except WriteStallError:
            return patiently(partial(self._commit, agent, kind, plan, *args))

    def _commit(
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
        keys = agent.keys
        with agent.lock:
            if self.durability.failure is not None:
                self.durability.refuse()  # under the lock: reload() waits for those who have passed this
            for attempt in range(_ATTEMPTS_MAX):
                expects: Sequence[Expect] = ()
                # Tried first, for it spares a read. What it leads to counts only where it is expected and found.
                guess, agent.last_head = agent.last_head, None
                if (head := agent.head) is None:
                    head, expects = guess or self._load(agent)
                try:
                    record_bytes = head.record_bytes
                    now = self.clock_ns() // 1000
                    head.transaction_us = now if now > head.transaction_us else head.transaction_us + 1
                    operations: list[Operation] = []
                    value, touched = plan(head, operations, *args)
                    agent.expiry_us = head.expiry_us
                    if not touched:
                        if guess is not None:
                            continue
                        return value, self.durability.last_ticket
                    head.sequence = sequence = head.sequence + 1
                    if sequence - head.trimmed >= 2 * CHANGES_KEPT:
                        self._trim(agent, head, operations, sequence - CHANGES_KEPT)
                    entry_key = keys.changes + sequence.to_bytes(8, "big")
                    entry = frame(entry_key, change_payload(kind, head.transaction_us, touched))
                    operations += (Put(entry_key, entry), Put(keys.head, stored := head.encode(keys.head)))
                    agent.head_stored(head)
                except BaseException as error:
                    self.forget(agent)  # the head in RAM was changed
                    if guess is not None and isinstance(error, QilbeeError):
                        continue
                    raise
                try:
                    self.backend.write(WriteBatch(operations, expects))
                    if not self.single_process:
                        agent.last_head = head, (Expect(keys.head, stored),)
                    if agent.tail.warm:
                        self._show(agent.tail, touched)
                    if not agent.unindexed:
                        self.index_soon(agent)
                    agent.unindexed += len(touched)
                    if head.record_bytes < record_bytes:
                        self.freed(agent, record_bytes - head.record_bytes, head.record_bytes)
                    # Under the lock: who finds this write there must find its ticket taken.
                    return value, self.durability.wrote()
                except ConflictError:
                    # Another process was quicker: plan again.
                    sleep(random.uniform(0, min(_BACKOFF_S_MAX, 0.0005 * 2**attempt)))  # noqa: S311
                except BaseException as error:
                    self.forget(agent)  # whether anything was written may not be known
                    self.durability.write_failed(error)
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
        if head is None and self._has_memories(agent):
            if not self.single_process:
                value = self.backend.get(agent.keys.head)  # another process may have stored the first just now
            if value is None:  # to begin anew would store over what is there
                raise CorruptRecordError(f"agent {agent.id!r} has episodes and no head", remedy="run repair()")
            head = self._moved_on(agent, value)
        if not self.single_process:
            head = head or Head(self.catalog.wanted)
            agent.orders = self.orders_of(head.orders)
            return head, (Expect(agent.keys.head, value),)
        if head is None or value is None:
            # Nobody else can store: the tail of an agent without episodes is known to be empty.
            agent.head = Head(self.catalog.wanted)
            self.tails.fill(agent.tail, [], whole=True)
        else:
            agent.head = head
            agent.head_stored(Head.decode(agent.keys.head, value))
        agent.orders = self.orders_of(agent.head.orders)
        return agent.head, ()

    def _has_memories(self, agent: Agent) -> bool:
        """Whether there is any episode of the agent, or a version of one that was."""
        return any(self.first(*agent.keys.range(space), 1) for space in (Space.EPISODE, Space.HISTORY))

    def _moved_on(self, agent: Agent, value: bytes) -> Head:
        if not self.single_process:
            # Every write there writes the head, too; the log is ahead only where others wrote since it was read.
            head = Head.decode(agent.keys.head, value)
            self.orders_of(head.orders)
            return head
        return read_head(self.backend, agent.keys, value, self.records, self.orders_of)

    def rearrange(self, agent: Agent, plan: Callable[[Head, list[Operation]], T | None]) -> T | None:
        """Write what ``plan`` changes of an agent's orders of relevance, in which the change log has no part.

        None, and nothing is written, where there is nothing to do. ``plan`` is given a copy of the head.
        """
        with agent.lock:
            if self.durability.failure is not None:
                self.durability.refuse()
            head, expects = (agent.head, ()) if agent.head is not None else self._load(agent)
            head = head.copy()
            operations: list[Operation] = []
            value = plan(head, operations)
            if value is None:
                return None
            operations.append(Put(agent.keys.head, head.encode(agent.keys.head)))
            try:
                self.backend.write(WriteBatch(operations, expects))
            except (ConflictError, WriteStallError):
                raise
            except BaseException as error:
                self.forget(agent)
                self.durability.write_failed(error)
                raise
            agent.place = NO_PLACE
            agent.orders = self.orders_of(head.orders)  # before the head: who reads goes by them, and compares
            if self.single_process:
                agent.head = head
                agent.head_stored(head)
            self.durability.wrote()
            return value

    def clear(self, agent: Agent, ranges: Sequence[DeleteRange]) -> tuple[ClearReceipt, int]:
        """Remove the head and ``ranges`` in one batch. The next head has another generation."""
        with agent.lock:
            if self.durability.failure is not None:
                self.durability.refuse()
            for _ in range(_ATTEMPTS_MAX):
                value = self.backend.get(agent.keys.head)
                receipt = self._receipt(agent, value)
                if value is None and not self._has_memories(agent):
                    return receipt, self.durability.last_ticket
                self.forget(agent)
                batch = WriteBatch([*ranges, Delete(agent.keys.head)], [Expect(agent.keys.head, value)])
                try:
                    patiently(partial(self.backend.write, batch))
                    break
                except ConflictError:
                    continue
                except BaseException as error:
                    self.durability.write_failed(error)
                    raise
            else:
                raise self._too_many_writers(agent)
            self.freed(agent, receipt.bytes, 0)
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
        agent.head = agent.ends = agent.last_head = None
        agent.place = NO_PLACE
        agent.indexed = 0
        self.tails.clear(agent.tail)

    def _trim(self, agent: Agent, head: Head, operations: list[Operation], sequence: int) -> None:
        """Drop the entries of the change log up to ``sequence`` that nobody has to follow any more."""
        if self.follows_log:
            sequence = min(sequence, agent.indexed)
        if sequence > head.trimmed:
            operations.append(trim(agent.keys, head, sequence))

    def settle(self) -> None:
        """Store the heads of a single opener, and drop the change logs, which nobody else follows.

        What search has still to follow stays.
        """
        if not self.single_process:
            return
        for agent in self.agents_in_use():
            with agent.lock:
                head = agent.head
                if self.durability.failure is None and head is not None and head.sequence > head.trimmed:
                    operations: list[Operation] = []
                    self._trim(agent, head, operations, head.sequence)
                    batch = WriteBatch([*operations, Put(agent.keys.head, head.encode(agent.keys.head))])
                    try:
                        patiently(partial(self.backend.write, batch))
                    except BaseException:
                        self.forget(agent)  # the head in RAM was changed
                        raise
                    agent.head_stored(head)
                    self.durability.wrote()

    def drain(self) -> None:
        """Return when every write has ended that has passed the look at ``durability.failure``, under its lock."""
        for lock in (self.accounts_lock, *(agent.lock for agent in self.agents_in_use())):
            with lock:
                pass

    def reload(self, reopen: Callable[[], None]) -> None:
        """Call ``reopen`` while nobody writes or reads a head, and forget all that was read. No write may begin."""
        with ExitStack() as locked:
            locked.enter_context(self.accounts_lock)
            agents = self.agents_in_use()
            for agent in agents:
                locked.enter_context(agent.lock)
            reopen()
            self.reloads += 1
            self.accounts_version += 1
            for agent in agents:
                self.forget(agent)
                agent.orders = self.stored_orders(agent)
        for agent in self.agents_in_use():  # whoever was first asked for meanwhile
            with agent.lock:
                self.forget(agent)
        # An entry that was written just before and not synced; the records of this process name it.
        lost = [Put(key, value) for key, value in self.catalog.entries().items() if self.backend.get(key) is None]
        if lost:
            self.backend.write(WriteBatch(lost))
            self.backend.sync()

    def restart_locks(self) -> None:
        """In a forked child: locks that the parent's other threads held would never be released."""
        self._agents_lock = threading.Lock()
        self.accounts_lock = threading.Lock()
        self.tails = Tails(0)
        if self.accesses is not None:
            self.accesses = Accesses()
        self.durability.abandon()
        for agent in self._agents.values():
            agent.lock = threading.Lock()
            agent.tail = Tail()


def trim(keys: AgentKeys, head: Head, sequence: int) -> DeleteRange:
    """Drop the entries of the change log up to ``sequence``, and say so in ``head``."""
    operation = DeleteRange(keys.change(head.trimmed + 1), keys.change(sequence + 1))
    head.trimmed = sequence
    return operation


_contexts: weakref.WeakSet[Context] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for context in list(_contexts):
        context.restart_locks()


os.register_at_fork(after_in_child=_after_fork_in_child)
