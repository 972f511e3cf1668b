"""Another encoder for a store: its vectors are made beside the old ones, and one key switches to them.

Up to the switch search goes by the old ones, and whatever is stored meanwhile gets them too. An episode that is changed
or removed loses both. Interrupted, it goes on where it was when it is called again with the same encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qilbee_core.catalog import Vectors
from qilbee_core.errors import ConflictError, PluginError
from qilbee_core.memory.commit import Context
from qilbee_core.memory.embedding import TEXTS_MAX, Embedding
from qilbee_core.memory.encoder import Encoder
from qilbee_core.memory.resident import Agent

__all__ = ["Progress", "reembed"]

Progress = Callable[[int, int], object]
"""Told how many episodes have their vector, and how many there are."""

_PASSES_MAX = 3
"""What is stored meanwhile is left to the thread after so many."""


def reembed(context: Context, embedding: Embedding, encoder: Encoder | None, progress: Progress | None) -> int:
    """Make the vectors of ``encoder``, switch to them, and remove the others; gives how many were made.

    None: go by the table of words, and keep no vectors. Raises what the encoder raises; the old vectors stay in use.
    """
    if context.durability.failure is not None:
        context.durability.refuse()
    catalog = context.catalog
    before = catalog.vectors
    number = 0 if encoder is None else encoder.number
    made = 0
    if number != before.model:
        leaving = {*before.leaving, before.building} - {number, 0}
        catalog.keep_vectors(Vectors(before.model, number, tuple(sorted(leaving))))
    if encoder is not None:
        for _ in range(_PASSES_MAX):
            made_now = _fill(context, embedding, encoder, progress)
            made += made_now
            if not made_now:
                break
        embedding.check_open()  # who closes the store meanwhile ends the passes early
    if number != before.model:
        now = catalog.vectors
        leaving = {*now.leaving, now.model} - {0}
        catalog.keep_vectors(Vectors(number, 0, tuple(sorted(leaving))))
        embedding.use(encoder)
        embedding.remove_leaving()
    elif embedding.encoder is None:
        embedding.use(encoder)
    return made


def _fill(context: Context, embedding: Embedding, encoder: Encoder, progress: Progress | None) -> int:
    """Make what is missing of every agent now."""
    agents = list(embedding.agents())
    heads = [context.head(agent) for agent in agents]
    done, total, made = 0, sum(head.episodes for head in heads if head is not None), 0
    for agent, head in zip(agents, heads, strict=True):
        missing = embedding.missing(agent, encoder)
        done += max(0, (0 if head is None else head.episodes) - len(missing))
        for at in range(0, len(missing), TEXTS_MAX):
            ids = missing[at : at + TEXTS_MAX]
            made += _encode(embedding, agent, ids, encoder)
            done += len(ids)
            if progress is not None:
                progress(min(done, total), total)
    return made


def _encode(embedding: Embedding, agent: Agent, ids: Sequence[bytes], encoder: Encoder) -> int:
    """Make the vectors of some episodes, without those that the encoder refuses while it takes others."""
    while True:
        part = embedding.read(agent, ids, encoder)
        try:
            vectors = embedding.encode(part.texts, encoder)
        except PluginError:
            if len(ids) > 1:
                return sum(_encode(embedding, agent, [id_bytes], encoder) for id_bytes in ids)
            if not embedding.takes_others(encoder):
                raise
            return 0
        try:
            embedding.write(part, vectors, encoder)
        except ConflictError:
            embedding.check_building(encoder)
            continue
        return len(part.ids)
