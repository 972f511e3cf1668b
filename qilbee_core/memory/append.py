"""The straight line of one new, usual episode: what most stores are, for half of what planning them costs.

It writes just what :meth:`Context.commit` writes for it, and the head only when that is due. Whatever is unusual is
left to that: an id that is stored already, a memory type, strength or episode type of which there is no other, an end,
a body that has to be measured, a log to be trimmed, another episode's end, an engine that others write to, or one that
takes no writes.
"""

from __future__ import annotations

from qilbee_core.batch import Put, WriteBatch
from qilbee_core.episode import Episode
from qilbee_core.errors import WriteStallError
from qilbee_core.limits import SURELY_FITTING_BYTES
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import usual_fields
from qilbee_core.memory.log import store_entry
from qilbee_core.memory.resident import STORES_AHEAD_MAX, Agent

__all__ = ["append"]


def append(context: Context, agent: Agent, episode: Episode) -> int | None:
    """Store a checked episode and give its ticket for durability; None, and nothing done, where it is not usual."""
    id_bytes, episode_type = episode._id, episode.episode_type
    with agent.lock:
        head, place = agent.head, agent.place  # both under the lock, for they change together
        if head is None or episode_type not in head.types:
            return None
        sequence = head.sequence + 1
        transaction_us = context.clock_ns() // 1000
        if transaction_us <= head.transaction_us:
            transaction_us = head.transaction_us + 1
        fields = usual_fields(episode, transaction_us)
        if (
            fields is None
            or sequence >= agent.trim_due
            or transaction_us >= head.expiry_us
            or not 0 <= transaction_us - place.decay_start_us < 1_000_000
            or context.durability.failure is not None
        ):
            return None
        keys, records = agent.keys, context.records
        key = keys.episodes + id_bytes
        is_late = id_bytes <= head.newest_id  # as where threads take turns; above it no id was ever stored
        if is_late and (head.retired or head.reindex is not None or context.backend.get(key) is not None):
            return None
        try:
            body = records.encode(fields)
        except UnicodeEncodeError:
            return None
        if len(body) > SURELY_FITTING_BYTES:
            return None
        value = records.seal_encoded(key, body)
        entry_key = keys.changes + sequence.to_bytes(8, "big")
        entry = store_entry(entry_key, transaction_us, id_bytes)
        operations = [Put(key, value), Put(place.key_start + id_bytes, b""), Put(entry_key, entry)]
        try:
            head.sequence, head.transaction_us = sequence, transaction_us
            if not is_late:
                head.newest_id = id_bytes
            head.add(episode_type, len(key) + len(value), place.order, place.contribution)
            if sequence >= agent.head_due:
                operations.append(Put(keys.head, head.encode(keys.head)))
                agent.head_due = sequence + STORES_AHEAD_MAX
            context.backend.write(WriteBatch(operations))
            if agent.tail.warm:
                context.tails.put(agent.tail, id_bytes, value)
            if not agent.unindexed:
                context.index_soon(agent)
            agent.unindexed += 1
        except BaseException as error:
            context.forget(agent)  # the head in RAM was changed, and whether anything was written may not be known
            if isinstance(error, WriteStallError):
                return None
            context.durability.write_failed(error)
            raise
        return context.durability.wrote()
