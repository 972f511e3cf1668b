"""The three questions, and what is similar to an episode, over the index of one agent.

``keyword`` needs no vectors. ``semantic`` looks at meaning alone. ``hybrid`` is both. The answers are ids, best first,
with their scores; equal scores are ordered by recency. A conversation counts by the better of its halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qilbee_core.errors import InvalidError, NotFoundError, shown
from qilbee_core.ids import format_id, now_us
from qilbee_core.limits import check_limit
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.meaning import Meaning
from qilbee_core.search.question import idf, question_of
from qilbee_core.search.score import MEANING, Filter, Scores

__all__ = ["SEMANTIC_WEIGHT", "Hit", "Nearness", "hybrid", "keyword", "semantic", "similar"]

SEMANTIC_WEIGHT = MEANING / (1.0 + MEANING)
"""The share of meaning in a hybrid score where the caller gives none."""
CANDIDATES_MIN = 200
"""Turns that are scored in full; the best by the common parts."""
EVERYTHING = Filter()
_BLOCK = 64
_LEAST = np.finfo(np.float64).min


class Hit(Struct, frozen=True):
    """An episode that was found. The values of ``parts`` add up to ``score``."""

    id_bytes: bytes
    score: float
    parts: Mapping[str, float]

    @property
    def semantic_score(self) -> float:
        """What meaning contributes."""
        return self.parts.get("meaning", 0.0)

    @property
    def keyword_score(self) -> float:
        """What everything else contributes."""
        return self.score - self.semantic_score


class Nearness(Protocol):
    """How near turns are in meaning to what is asked; -1..1 or about it."""

    def of_turns(self, turns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of some turns."""
        ...

    def of_all(self) -> NDArray[np.float64]:
        """Of every turn."""
        ...


def keyword(
    index: AgentIndex,
    query: str,
    limit: int = 10,
    *,
    where: Filter = EVERYTHING,
    min_score: float | None = None,
    at_us: int | None = None,
) -> list[Hit]:
    """Episodes by their words and those of their neighbours, by speaker, session and date.

    ``at_us`` is the time that "yesterday" in a query counts from; now where it is not given.
    """
    return _ranked(index, query, limit, 0.0, None, where, min_score, at_us)


def hybrid(
    index: AgentIndex,
    query: str,
    limit: int = 10,
    *,
    semantic_weight: float | None = None,
    nearness: Nearness | None = None,
    where: Filter = EVERYTHING,
    min_score: float | None = None,
    at_us: int | None = None,
) -> list[Hit]:
    """By keywords and meaning. ``semantic_weight`` is the share of meaning, 0 to 1; SEMANTIC_WEIGHT if not given.

    ``nearness`` is that of an encoder; else the static table serves.
    """
    if semantic_weight is None:
        semantic_weight = SEMANTIC_WEIGHT
    elif (
        isinstance(semantic_weight, bool)
        or not isinstance(semantic_weight, int | float)
        or not 0 <= semantic_weight <= 1
    ):
        raise InvalidError(f"semantic_weight is {shown(semantic_weight)}", remedy="give a number from 0 to 1")
    return _ranked(index, query, limit, semantic_weight, nearness, where, min_score, at_us)


def semantic(
    index: AgentIndex,
    query: str,
    limit: int = 10,
    *,
    nearness: Nearness | None = None,
    where: Filter = EVERYTHING,
    min_score: float | None = None,
) -> list[Hit]:
    """Episodes nearest in meaning; those that have nothing to do with the query are left out."""
    check_limit(limit)
    if nearness is None:
        nearness = Meaning(index, question_of(query, index, 0).idfs)
    return _nearest(index, nearness, limit, where.mask(index), min_score)


def similar(
    index: AgentIndex,
    id_bytes: bytes,
    limit: int = 10,
    *,
    nearness: Nearness | None = None,
    where: Filter = EVERYTHING,
    min_score: float | None = None,
) -> list[Hit]:
    """Episodes nearest in meaning to one of them, without itself. NotFoundError where it is not known."""
    check_limit(limit)
    if id_bytes not in index:
        raise NotFoundError(f"episode {format_id(id_bytes)} is not in the index", remedy="use the id of a stored one")
    turns = np.array(index.turns_of(id_bytes))
    if nearness is None:
        weights: dict[int | str, float] = {}
        _, terms, counts = index.entries(turns)
        for term, count in zip(terms.tolist(), (counts >> 8).tolist(), strict=True):
            stem = index.stems[term]
            weights[stem] = weights.get(stem, 0.0) + count * idf(index.live_turns, index.frequency_of(stem))
        nearness = Meaning(index, weights)
    mask = where.mask(index)
    mask[turns] = False
    return _nearest(index, nearness, limit, mask, min_score)


def _nearest(
    index: AgentIndex, nearness: Nearness, limit: int, mask: NDArray[np.bool_], min_score: float | None
) -> list[Hit]:
    near = nearness.of_all()
    mask &= near > 0
    turns = _best(index, near, mask, _candidates(limit))
    return _hits(index, turns, near[turns], {"meaning": near[turns]}, limit, min_score)


def _ranked(
    index: AgentIndex,
    query: str,
    limit: int,
    semantic_weight: float,
    nearness: Nearness | None,
    where: Filter,
    min_score: float | None,
    at_us: int | None,
) -> list[Hit]:
    check_limit(limit)
    question = question_of(query, index, now_us() if at_us is None else at_us)
    if nearness is None and semantic_weight:
        nearness = Meaning(index, question.idfs)
    scores = Scores(index, question)
    # Scaled so that keywords count in full at the usual share of meaning, and where there is none.
    scale = 1 / (1 - min(semantic_weight, SEMANTIC_WEIGHT))
    words, meaning = (1 - semantic_weight) * scale, semantic_weight * scale
    everywhere = slice(0, index.turns.size)
    rough = words * sum(scores.common(everywhere).values(), np.zeros(index.turns.size, np.float32))
    mask = where.mask(index)
    # The table's view of every turn is asked for where it counts much, or where words alone find too little.
    if nearness is not None and (
        meaning > MEANING or not isinstance(nearness, Meaning) or np.count_nonzero(mask & (rough > 0)) < limit
    ):
        rough = rough + meaning * nearness.of_all()
    for factor in scores.factors(everywhere).values():
        rough = rough * factor
    turns = _best(index, rough, mask & (rough > 0), _candidates(limit))
    if not len(turns):
        return []
    parts = {
        name: words * part.astype(np.float64) for name, part in (scores.common(turns) | scores.rest(turns)).items()
    }
    if nearness is not None:
        parts["meaning"] = meaning * nearness.of_turns(turns)
    score = sum(parts.values(), np.zeros(len(turns)))
    for name, factor in scores.factors(turns).items():
        more = score * (factor - 1.0)
        parts[name] = parts.get(name, 0.0) + more
        score = score + more
    return _hits(index, turns, score, parts, limit, min_score)


def _candidates(limit: int) -> int:
    # Twice the limit, since an episode may have two turns.
    return max(CANDIDATES_MIN, 2 * limit)


def _best(index: AgentIndex, values: NDArray[np.floating], mask: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The turns of the ``count`` greatest values under ``mask``; of equal ones the newest."""
    values = np.where(mask, values, -np.inf)
    # At least ``count`` values are as great as the ``count`` greatest of all blocks' greatest.
    blocks = len(values) // _BLOCK
    if blocks > count:
        greatest = values[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        (turns,) = np.nonzero(values >= max(np.partition(greatest, -count)[-count], _LEAST))
    else:
        (turns,) = np.nonzero(mask)
    if len(turns) <= count:
        return turns
    values = values[turns]
    least = np.partition(values, -count)[-count]
    sure, ties = turns[values > least], turns[values == least]
    missing = count - len(sure)
    if len(ties) > missing:
        event_us = index.timeline.event_us[ties]
        oldest = np.partition(event_us, -missing)[-missing]
        certain, ties = ties[event_us > oldest], ties[event_us == oldest]
        ids = index.timeline.ids
        newest = sorted(ties.tolist(), key=lambda turn: (ids[turn], -turn), reverse=True)[: missing - len(certain)]
        ties = np.concatenate([certain, np.array(newest, np.int64)])
    return np.concatenate([sure, ties])


def _hits(
    index: AgentIndex,
    turns: NDArray[np.int64],
    score: NDArray[np.float64],
    parts: Mapping[str, NDArray[np.float64]],
    limit: int,
    min_score: float | None,
) -> list[Hit]:
    ids = [index.timeline.ids[turn] for turn in turns.tolist()]
    ranked = sorted(zip(score.tolist(), ids, (-turns).tolist(), range(len(ids)), strict=True), reverse=True)
    hits: dict[bytes, Hit] = {}
    for value, id_bytes, _, at in ranked:
        if len(hits) == limit or (min_score is not None and value < min_score):
            break
        if id_bytes not in hits:
            hits[id_bytes] = Hit(id_bytes, value, {name: float(part[at]) for name, part in parts.items() if part[at]})
    return list(hits.values())
