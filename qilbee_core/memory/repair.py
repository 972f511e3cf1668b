"""Rebuilding what is derived, from the episodes."""

from __future__ import annotations

from msgspec import Struct

from qilbee_core.batch import DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.envelope import frame
from qilbee_core.errors import DataError, ProviderNotFoundError
from qilbee_core.keys import Space
from qilbee_core.memory.commit import Agent, Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import count_episode
from qilbee_core.memory.verify import VerifyReport, agent_ids, verify

__all__ = ["RepairReport", "repair"]

_BATCH_OPERATIONS = 2000
_DERIVED_SPACES = (Space.VITALITY, Space.KEY, Space.CHANGE)


class RepairReport(Struct, frozen=True, kw_only=True):
    """What :meth:`Store.repair` rebuilt, and what verify() says afterwards."""

    agents: int
    episodes: int
    after: VerifyReport


def repair(context: Context) -> RepairReport:
    """Rebuild the catalog's entries, and of each agent the head, the relevance order and the idempotency marks.

    Interrupted, it leaves a store that verify() complains of and that it mends when it is run again.
    """
    context.backend.write(WriteBatch([Put(key, value) for key, value in context.catalog.entries().items()]))
    snapshot = context.backend.snapshot()
    try:
        agents = sorted(agent_ids(snapshot))
    finally:
        snapshot.close()
    episodes = sum(_repair_agent(context, context.agent(agent_id)) for agent_id in agents)
    context.durability.wrote()
    context.durability.flush()
    return RepairReport(agents=len(agents), episodes=episodes, after=verify(context))


def _repair_agent(context: Context, agent: Agent) -> int:
    keys = agent.keys
    with agent.lock:
        context.forget(agent)
        # Another process that stores meanwhile changes the head, and the repair fails instead of mixing with it.
        before = context.backend.get(keys.head)
        expects = [Expect(keys.head, before)]
        head = Head()  # a new generation: whoever followed the change log begins anew
        try:
            if before is not None:
                old = Head.decode(keys.head, before)
                head.sequence = head.trimmed = old.sequence
                head.transaction_us, head.newest_id = old.transaction_us, old.newest_id
        except DataError:
            pass
        operations: list[Operation] = [DeleteRange(*keys.range(space)) for space in _DERIVED_SPACES]
        for key, value in context.backend.scan(*keys.range(Space.EPISODE)):
            id_bytes = key[-16:]
            head.newest_id = max(head.newest_id, id_bytes)
            try:
                document = EpisodeDocument.from_fields(context.records.open(key, value))
            except (DataError, ProviderNotFoundError):
                continue  # named by verify()
            order, place = count_episode(head, key, value, document, context.orders)
            operations.append(Put(keys.vitality(order.number, place, id_bytes), b""))
            if document.idempotency_digest:
                mark = keys.idempotency_key(bytes.fromhex(document.idempotency_digest))
                operations.append(Put(mark, frame(mark, id_bytes)))
            if len(operations) >= _BATCH_OPERATIONS:
                context.backend.write(WriteBatch(operations, expects))
                operations = []
        if any(head.newest_id):
            operations.append(Put(keys.head, head.encode(keys.head)))
        context.backend.write(WriteBatch(operations, expects))
        return head.episodes
