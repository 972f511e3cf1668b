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
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TypeVar

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.catalog import Catalog
from qilbee_core.durability import Durability
from qilbee_core.envelope import frame
from qilbee_core.episode import MEMORY_TYPES, Episode
from qilbee_core.errors import ConflictError, StorageError
from qilbee_core.ids import now_us
from qilbee_core.interfaces import SingleProcess, StorageBackend
from qilbee_core.keys import AgentKeys
from qilbee_core.memory.head import Head
from qilbee_core.memory.relevance import Order
from qilbee_core.memory.statistics import ClearReceipt
from qilbee_core.memory.tail import Tail, Tails
from qilbee_core.records import Records

__all__ = ["CHANGES_KEPT", "Agent", "Change", "ChangeKind", "Context", "change_payload"]

T = TypeVar("T")

CHANGES_KEPT = 1024
"""Entries of an agent's change log that are kept for readers in RAM; trimmed when twice as many."""

_ATTEMPTS_MAX = 64
_BACKOFF_S_MAX = 0.05


class ChangeKind(IntEnum):
    """The operation byte of an entry of the change log."""

    STORE = 1
    UPDATE = 2
    DELETE = 3


class Agent:
    """What is kept in RAM of one agent while anybody uses it: its keys, its head, its newest episodes."""

    __slots__ = ("__weakref__", "head", "id", "keys", "lock", "tail")

    def __init__(self, agent_id: str) -> None:
        self.id = agent_id
        self.keys = AgentKeys(agent_id)
        self.lock = threading.Lock()
        self.head: Head | None = None
        self.tail = Tail()


class Change:
    """One logical write while it is planned: operations, and the head as it will be."""

    __slots__ = ("head", "ids", "kind", "operations", "puts", "stored")

    def __init__(self, kind: ChangeKind, head: Head) -> None:
        self.kind = kind
        self.head = new = head.copy()
        new.sequence += 1
        now = now_us()
        new.transaction_us = now if now > head.transaction_us else head.transaction_us + 1
        self.operations: list[Operation] = []
        self.ids: list[bytes] = []
        self.puts: list[tuple[bytes, bytes]] = []
        """Ids and values of the records that were written, for the tail."""
        self.stored: list[Episode] = []
        """What observers are told."""


def change_payload(kind: ChangeKind, transaction_us: int, ids: Sequence[bytes]) -> bytes:
    """An entry of the change log: which episodes an operation touched, never their text."""
    return (kind << 64 | transaction_us).to_bytes(9, "big") + b"".join(ids)


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
        episodes_stored: Callable[[str, Sequence[Episode]], None] | None,
    ) -> None:
        self.backend = backend
        self.catalog = catalog
        self.records = records
        self.durability = durability
        self.tails = Tails(recent_cache_bytes)
        self.episodes_stored = episodes_stored
        self.single_process = isinstance(backend, SingleProcess)
        self.orders = _orders_in_force(catalog)
        """The order of each memory type, by its position in MEMORY_TYPES."""
        self._agents: weakref.WeakValueDictionary[str, Agent] = weakref.WeakValueDictionary()
        self._agents_lock = threading.Lock()
        _contexts.add(self)

    def agent(self, agent_id: str) -> Agent:
        """The one :class:`Agent` of that id in this process."""
        agent = self._agents.get(agent_id)
        if agent is None:
            agent = Agent(agent_id)
            with self._agents_lock:
                agent = self._agents.setdefault(agent_id, agent)
        return agent

    def agents_in_use(self) -> list[Agent]:
        """Those that somebody holds."""
        with self._agents_lock:
            return list(self._agents.values())

    def head(self, agent: Agent) -> Head | None:
        """The agent's head now; None where it has stored nothing."""
        if agent.head is not None:
            return agent.head
        return self._read_head(agent)[0]

    def _read_head(self, agent: Agent) -> tuple[Head | None, bytes | None]:
        key = agent.keys.head
        value = self.backend.get(key)
        return (None if value is None else Head.decode(key, value)), value

    def commit(self, agent: Agent, plan: Callable[[Head], tuple[T, Change | None]]) -> tuple[T, int]:
        """Plan against the head, write, and publish; gives the plan's value and a ticket for durability.

        ``plan`` gives no change where there is nothing to write. It may be called again on a shared engine.
        """
        self.durability.check()
        keys = agent.keys
        with agent.lock:
            for attempt in range(_ATTEMPTS_MAX):
                head, expects = self._head_to_change(agent)
                value, change = plan(head)
                if change is None:
                    return value, self.durability.last_ticket
                new = change.head
                sequence = new.sequence
                operations = change.operations
                if sequence - new.trimmed >= 2 * CHANGES_KEPT:
                    operations.append(trim(keys, new, sequence - CHANGES_KEPT))
                entry_key = keys.change(sequence)
                entry = change_payload(change.kind, new.transaction_us, change.ids)
                operations.append(Put(entry_key, frame(entry_key, entry)))
                operations.append(Put(keys.head, new.encode(keys.head)))
                try:
                    self.backend.write(WriteBatch(operations, expects))
                except ConflictError:
                    time.sleep(random.uniform(0, min(_BACKOFF_S_MAX, 0.0005 * 2**attempt)))  # noqa: S311
                    continue
                except BaseException:
                    # Whether it was written is not known here: read the head again next time.
                    self.forget(agent)
                    raise
                if self.single_process:
                    self._publish(agent, change)
                break
            else:
                raise self._too_many_writers(agent)
        ticket = self.durability.wrote()
        if self.episodes_stored is not None and change.stored:
            self.episodes_stored(agent.id, change.stored)
        return value, ticket

    def clear(self, agent: Agent, ranges: Sequence[DeleteRange]) -> tuple[ClearReceipt, int]:
        """Remove the head and ``ranges`` in one batch. The next head has another generation."""
        self.durability.check()
        with agent.lock:
            for _ in range(_ATTEMPTS_MAX):
                head, value = self._read_head(agent)
                if value is None:
                    return ClearReceipt(episodes=0, bytes=0), self.durability.last_ticket
                self.forget(agent)
                batch = WriteBatch([*ranges, Delete(agent.keys.head)], [Expect(agent.keys.head, value)])
                try:
                    self.backend.write(batch)
                except ConflictError:
                    continue
                break
            else:
                raise self._too_many_writers(agent)
            assert head is not None
            return ClearReceipt(episodes=head.episodes, bytes=head.record_bytes), self.durability.wrote()

    def _head_to_change(self, agent: Agent) -> tuple[Head, Sequence[Expect]]:
        if agent.head is not None:
            return agent.head, ()
        head, value = self._read_head(agent)
        if not self.single_process:
            return head or Head(), (Expect(agent.keys.head, value),)
        if head is None:
            # Nobody else can store: the tail of an agent without episodes is known to be empty.
            head = Head()
            self.tails.fill(agent.tail, [], whole=True)
        agent.head = head
        return head, ()

    def _publish(self, agent: Agent, change: Change) -> None:
        agent.head = change.head
        if change.kind is ChangeKind.DELETE:
            for id_bytes in change.ids:
                self.tails.remove(agent.tail, id_bytes)
        else:
            for id_bytes, value in change.puts:
                self.tails.put(agent.tail, id_bytes, value)

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

    def trim_all(self) -> None:
        """Drop the change logs of the agents in use: nobody else follows them once a single opener closes."""
        if not self.single_process:
            return
        for agent in self.agents_in_use():
            with agent.lock:
                head = agent.head
                if head is not None and head.sequence > head.trimmed:
                    new = head.copy()
                    operation = trim(agent.keys, new, head.sequence)
                    self.backend.write(WriteBatch([operation, Put(agent.keys.head, new.encode(agent.keys.head))]))
                    self.durability.wrote()
                    agent.head = new

    def restart_locks(self) -> None:
        """In a forked child: locks that the parent's other threads held would never be released."""
        self._agents_lock = threading.Lock()
        for agent in self._agents.values():
            agent.lock = threading.Lock()


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
    return tuple(in_force[memory_type] for memory_type in MEMORY_TYPES)


_contexts: weakref.WeakSet[Context] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for context in list(_contexts):
        context.restart_locks()


os.register_at_fork(after_in_child=_after_fork_in_child)
