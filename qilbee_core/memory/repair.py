"""Rebuilding what is derived, from the episodes."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from msgspec import Struct

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.envelope import frame
from qilbee_core.errors import DataError, ProviderNotFoundError
from qilbee_core.keys import Space, parse
from qilbee_core.memory.commit import Agent, Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import count_episode
from qilbee_core.memory.state import State, decode_state, first_state
from qilbee_core.memory.verify import VerifyReport, agent_ids, read_episode, verify
from qilbee_core.patience import patiently

__all__ = ["RepairReport", "repair"]

_BATCH_OPERATIONS = 2000


class RepairReport(Struct, frozen=True, kw_only=True):
    """What :meth:`Store.repair` rebuilt, and what verify() said before and says afterwards.

    An episode that is gone cannot be brought back, and nothing points to it afterwards: ``before`` names it.
    """

    agents: int
    episodes: int
    before: VerifyReport
    after: VerifyReport


def repair(context: Context) -> RepairReport:
    """Rebuild the catalog's entries, and of each agent the head, the relevance order, the expiries and the marks.

    A state that cannot be read is dropped: its episode is again as strong as its record says, and not pinned.

    Interrupted, it leaves a store that verify() complains of and that it mends when it is run again.
    """
    before = verify(context)
    if context.durability.failure is not None:
        context.durability.refuse()
    catalog = WriteBatch([Put(key, value) for key, value in context.catalog.entries().items()])
    patiently(partial(context.backend.write, catalog))
    snapshot = context.backend.snapshot()
    try:
        agents = sorted(agent_ids(snapshot))
    finally:
        snapshot.close()
    episodes = sum(_repair_agent(context, context.agent(agent_id)) for agent_id in agents)
    context.durability.wrote()
    context.durability.flush()
    return RepairReport(agents=len(agents), episodes=episodes, before=before, after=verify(context))


def _repair_agent(context: Context, agent: Agent) -> int:
    keys = agent.keys
    with agent.lock:
        context.forget(agent)
        if not _is_readable(context, agent):
            return 0
        # Another process that stores meanwhile changes the head, and the repair fails instead of mixing with it.
        before = context.backend.get(keys.head)
        expects = [Expect(keys.head, before)]
        head = Head()  # a new generation: whoever followed the change log begins anew
        with suppress(DataError):
            old = Head.decode(keys.head, before or b"")
            head.sequence = head.trimmed = old.sequence
            head.transaction_us, head.newest_id = old.transaction_us, old.newest_id
        # Search terms are made anew from the cursor on that then is missing: see memory/indexing.py.
        derived = (Space.VITALITY, Space.EXPIRY, Space.KEY, Space.TERMS)
        operations: list[Operation] = [DeleteRange(*keys.range(space)) for space in derived]
        has_states = False
        for key, _ in context.backend.scan(*keys.range(Space.STATE)):
            has_states = True
            if context.backend.get(keys.episode(key[-16:])) is None:
                operations.append(Delete(key))
        for key, value in context.backend.scan(*keys.range(Space.EPISODE)):
            id_bytes = key[-16:]
            try:
                parse(key)
                head.newest_id = max(head.newest_id, id_bytes)
                document = read_episode(context.records, key, value)
            except DataError:
                continue  # named by verify()
            stored = context.backend.get(keys.state(id_bytes)) if has_states else None
            state = None if stored is None else _worth_keeping(keys.state(id_bytes), stored, document)
            if stored is not None and state is None:
                operations.append(Delete(keys.state(id_bytes)))
            order, place = count_episode(head, key, value, document, state, context.orders)
            operations.append(Put(keys.vitality(order.number, place, id_bytes), b""))
            if document.expires_us and not (state and state.pinned):
                operations.append(Put(keys.expiry(document.expires_us, id_bytes), b""))
            if document.idempotency_digest:
                mark = keys.idempotency_key(bytes.fromhex(document.idempotency_digest))
                operations.append(Put(mark, frame(mark, id_bytes)))
            if len(operations) >= _BATCH_OPERATIONS:
                patiently(partial(context.backend.write, WriteBatch(operations, expects)))
                operations = []
        # The log goes together with the old head, which may need it to be moved on, and not before.
        operations.append(DeleteRange(*keys.range(Space.CHANGE)))
        operations.append(Put(keys.head, head.encode(keys.head)) if any(head.newest_id) else Delete(keys.head))
        patiently(partial(context.backend.write, WriteBatch(operations, expects)))
        return head.episodes


def _worth_keeping(key: bytes, value: bytes, document: EpisodeDocument) -> State | None:
    """A state, if it can be read and says something else than the record."""
    with suppress(DataError):
        state = decode_state(key, value)
        return None if state == first_state(document) else state
    return None


def _is_readable(context: Context, agent: Agent) -> bool:
    """Whether no record of the agent waits for a plugin that is not installed: what it adds would be lost."""
    for key, value in context.backend.scan(*agent.keys.range(Space.EPISODE)):
        try:
            context.records.open(key, value)
        except ProviderNotFoundError:
            return False
        except DataError:
            continue
    return True
