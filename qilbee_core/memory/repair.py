"""Rebuilding what is derived, from the episodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain

from msgspec import Struct

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.envelope import frame
from qilbee_core.errors import DataError, ProviderNotFoundError
from qilbee_core.keys import AgentKeys, Space, parse
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import count_episode, count_retired
from qilbee_core.memory.past import Past, last_rows
from qilbee_core.memory.resident import Agent
from qilbee_core.memory.state import State, decode_state, first_state
from qilbee_core.memory.undo import UndoRow, decode_undo, undo_us
from qilbee_core.memory.vectors import encoded_text, is_vector_of
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
        # In the orders that are wanted, whichever were in force or half built.
        head = Head(context.catalog.wanted)  # a new generation: whoever followed the change log begins anew
        with suppress(DataError):
            old = Head.decode(keys.head, before or b"")
            head.sequence = head.trimmed = old.sequence
            head.transaction_us, head.newest_id = old.transaction_us, old.newest_id
        # Search terms are made anew from the cursor on that then is missing: see memory/indexing.py.
        derived = (Space.VITALITY, Space.EXPIRY, Space.KEY, Space.TERMS)
        operations: list[Operation] = [DeleteRange(*keys.range(space)) for space in derived]
        # Vectors are dear: only what is wrong goes, and the cursors, so that what is missing is found out.
        for key, value in context.backend.scan(*keys.range(Space.VECTOR)):
            if not _is_right_vector(context, keys, key, value):
                operations.append(Delete(key))
                operations = _written_if_many(context, operations, expects)
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
            for order, place in count_episode(head, key, value, document, state, context.orders_of):
                operations.append(Put(keys.vitality(order.number, place, id_bytes), b""))
            operations += _end_and_mark(keys, id_bytes, document, pinned=state is not None and state.pinned)
            operations = _written_if_many(context, operations, expects)
        for key, value in last_rows(context.backend, keys):
            with suppress(DataError):
                parse(key)
                head.newest_id = max(head.newest_id, key[-24:-8])
                document = read_episode(context.records, key, value)
                if document.ended_us:
                    count_retired(head, key[-24:-8], document)
                    operations += _end_and_mark(keys, key[-24:-8], document, pinned=document.pinned)
            operations = _written_if_many(context, operations, expects)
        operations += _undo_rows(context, keys)
        # The log goes together with the old head, which may need it to be moved on, and not before.
        operations.append(DeleteRange(*keys.range(Space.CHANGE)))
        operations.append(Put(keys.head, head.encode(keys.head)) if any(head.newest_id) else Delete(keys.head))
        patiently(partial(context.backend.write, WriteBatch(operations, expects)))
        agent.orders = context.orders_of(head.orders)
        return head.episodes


def _written_if_many(context: Context, operations: list[Operation], expects: list[Expect]) -> list[Operation]:
    """Write what is planned so far where it is enough for a batch; gives what is still to be written."""
    if len(operations) < _BATCH_OPERATIONS:
        return operations
    patiently(partial(context.backend.write, WriteBatch(operations, expects)))
    return []


def _end_and_mark(keys: AgentKeys, id_bytes: bytes, document: EpisodeDocument, *, pinned: bool) -> Iterator[Put]:
    """What leads to an episode by its end and by its idempotency key, whether it is there or retired."""
    if document.expires_us and not pinned:
        yield Put(keys.expiry(document.expires_us, id_bytes), b"")
    if document.idempotency_digest:
        mark = keys.idempotency_key(bytes.fromhex(document.idempotency_digest))
        yield Put(mark, frame(mark, id_bytes))


def _undo_rows(context: Context, keys: AgentKeys) -> Iterator[Operation]:
    """What makes the undo data of an agent name no more than what can be brought back."""
    for key, value in context.backend.scan(*keys.range(Space.PLAN)):
        row: UndoRow | None = None
        with suppress(DataError):
            row = decode_undo(key, value)
        for id_bytes in row.gone() if row else ():
            if row is not None and not _was_retired(context, keys, id_bytes, undo_us(key)):
                row = row.without(id_bytes)
        if row is None:
            yield Delete(key)
        elif (mended := row.encode(key)) != value:
            yield Put(key, mended)


def _was_retired(context: Context, keys: AgentKeys, id_bytes: bytes, at_us: int) -> bool:
    """Whether an episode is retired since that very time, as far as can be told."""
    if context.backend.get(keys.episode(id_bytes)) is not None:
        return False
    try:
        ended = Past(context.backend, keys, context.records).retired(id_bytes)
    except (DataError, ProviderNotFoundError):
        return True
    return ended is not None and ended.ended_us == at_us


def _is_right_vector(context: Context, keys: AgentKeys, key: bytes, value: bytes) -> bool:
    """Whether it is of what its episode says, by a model of which vectors are kept."""
    with suppress(DataError, ProviderNotFoundError):
        number, record_key = parse(key).fields[0], keys.episode(key[-16:])
        record = context.backend.get(record_key)
        if record is not None and number in context.catalog.vectors.kept:
            text = encoded_text(read_episode(context.records, record_key, record))
            return is_vector_of(key, value, context.catalog.model(number).dimensions, text)
    return False


def _worth_keeping(key: bytes, value: bytes, document: EpisodeDocument) -> State | None:
    """A state, if it can be read and says something else than the record."""
    with suppress(DataError):
        state = decode_state(key, value)
        return None if state == first_state(document) else state
    return None


def _is_readable(context: Context, agent: Agent) -> bool:
    """Whether no record of the agent waits for a plugin that is not installed: what it adds would be lost."""
    records = context.backend.scan(*agent.keys.range(Space.EPISODE))
    for key, value in chain(records, last_rows(context.backend, agent.keys)):
        try:
            context.records.open(key, value)
        except ProviderNotFoundError:
            return False
        except DataError:
            continue
    return True
