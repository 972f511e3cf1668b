"""The straight line of one new, usual episode: what most stores are, for half of what planning them costs.

It writes just what :meth:`Context.commit` writes for it. Whatever is unusual is left to that: an id that may be stored
already, a memory type, strength or episode type of which there is no other, an end, a body that has to be measured, a
head or another episode's end that is due, an engine that others write to, or one that takes no writes.
"""

from __future__ import annotations

from qilbee_core.batch import Put, WriteBatch
from qilbee_core.episode import Episode
from qilbee_core.errors import WriteStallError
from qilbee_core.limits import SURELY_FITTING_BYTES
from qilbee_core.memory.commit import Agent, Context
from qilbee_core.memory.document import usual_fields
from qilbee_core.memory.log import store_entry

__all__ = ["append"]


def append(context: Context, agent: Agent, episode: Episode) -> int | None:
    """Store a checked episode and give its ticket for durability; None, and nothing done, where it is not usual."""
    id_bytes, episode_type, place = episode._id, episode.episode_type, agent.place
    with agent.lock:
        head = agent.head
        if head is None or id_bytes <= head.newest_id or episode_type not in head.types:
            return None
        sequence = head.sequence + 1
        transaction_us = context.clock_ns() // 1000
        if transaction_us <= head.transaction_us:
            transaction_us = head.transaction_us + 1
        fields = usual_fields(episode, transaction_us)
        if (
            fields is None
            or sequence >= agent.head_due
            or transaction_us >= head.expiry_us
            or not 0 <= transaction_us - place.decay_start_us < 1_000_000
            or context.durability.failure is not None
        ):
            return None
        keys, records = agent.keys, context.records
        key = keys.episodes + id_bytes
        try:
            body = records.encode(fields)
        except UnicodeEncodeError:
            return None
        if len(body) > SURELY_FITTING_BYTES:
            return None
        value = records.seal_encoded(key, body)
        entry_key = keys.changes + sequence.to_bytes(8, "big")
        entry = store_entry(entry_key, transaction_us, id_bytes)
        try:
            context.backend.write(
                WriteBatch((Put(key, value), Put(place.key_start + id_bytes, b""), Put(entry_key, entry)))
            )
            head.sequence, head.transaction_us, head.newest_id = sequence, transaction_us, id_bytes
            head.add(episode_type, len(key) + len(value), place.order, place.contribution)
            if agent.tail.warm:
                context.tails.put(agent.tail, id_bytes, value)
            if not agent.unindexed:
                context.index_soon(agent)
            agent.unindexed += 1
        except WriteStallError:
            return None
        except BaseException as error:
            context.forget(agent)  # whether anything was written may not be known
            context.durability.write_failed(error)
            raise
        return context.durability.wrote()
