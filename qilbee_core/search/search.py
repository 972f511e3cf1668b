"""The three questions, and what is similar to an episode, over the index of one agent.

``keyword`` needs no vectors. ``semantic`` looks at meaning alone. ``hybrid`` is both. The answers are ids, best first,
with their scores; equal scores are ordered by recency. A conversation counts by the better of its halves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qilbee_core.errors import InvalidError, NotFoundError, shown
from qilbee_core.ids import format_id, now_us
from qilbee_core.limits import check_limit
from qilbee_core.search.columns import reached_by
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.meaning import Meaning
from qilbee_core.search.nearest import Nearness
from qilbee_core.search.question import idf, question_of
from qilbee_core.search.score import EVERYTHING, MEANING, Filter, Scores, total

__all__ = ["ENCODER_WEIGHT", "SEMANTIC_WEIGHT", "Hit", "hybrid", "keyword", "semantic", "similar", "words_of"]

SEMANTIC_WEIGHT = MEANING / (1.0 + MEANING)
"""The share of meaning in a hybrid score where the caller gives none."""
ENCODER_WEIGHT = 0.31
"""The same where an encoder knows the meaning; from 0.23 to 0.47 it hardly matters."""
CANDIDATES_MIN = 64
"""Turns that are scored in full; the best by the common parts."""


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
    """By keywords and meaning. ``semantic_weight`` is the share of meaning, 0 to 1.

    ``nearness`` is that of an encoder; else the static table serves.
    """
    if semantic_weight is None:
        semantic_weight = SEMANTIC_WEIGHT if nearness is None else ENCODER_WEIGHT
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
    return _nearest(index, nearness, limit, where, min_score)


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
    nearness = nearness or words_of(index, id_bytes)
    return _nearest(index, nearness, limit, where, min_score, without=index.turns_of(id_bytes))


def words_of(index: AgentIndex, id_bytes: bytes) -> Meaning:
    """What an episode means by its words."""
    weights: dict[int | str, float] = {}
    _, terms, counts = index.entries(np.array(index.turns_of(id_bytes)))
    for term, count in zip(terms.tolist(), (counts >> 8).tolist(), strict=True):
        stem = index.stems[term]
        weights[stem] = weights.get(stem, 0.0) + count * idf(index.live_turns, index.frequency_of(stem))
    return Meaning(index, weights)


def _nearest(
    index: AgentIndex,
    nearness: Nearness,
    limit: int,
    where: Filter,
    min_score: float | None,
    *,
    without: range = range(0),
) -> list[Hit]:
    mask = where.mask(index)
    near = nearness.of_all(None if where == EVERYTHING else mask)
    near[without.start : without.stop] = 0.0
    turns = np.flatnonzero(near > 0 if mask is None else mask & (near > 0))
    near = near[turns]
    best = _best(index, turns, near, _candidates(limit))
    return _hits(index, turns[best], near[best], {"meaning": near[best]}, limit, min_score)


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
    mask = where.mask(index)
    turns = scores.promising(_candidates(limit), mask)
    common, factors = scores.common(turns), scores.factors(turns)
    rough = words * total(common, factors)
    # The table's view of every turn is asked for where it counts much, or where words alone find too little.
    if nearness is not None and (
        meaning > MEANING or not isinstance(nearness, Meaning) or np.count_nonzero(rough) < limit
    ):
        turns = np.arange(index.turns.size) if mask is None else np.flatnonzero(mask)
        common, factors = scores.common(turns), scores.factors(turns)
        near = nearness.of_all(None if where == EVERYTHING else mask)
        rough = words * total(common, factors) + meaning * total({"meaning": near[turns]}, factors)
    best = _best(index, turns, rough, _candidates(limit))
    best = best[rough[best] > 0]
    if not len(best):
        return []
    turns = turns[best]
    shares = {name: part[best] for name, part in common.items()} | scores.rest(turns)
    table = np.array(list(shares.values()), np.float64)
    table *= words
    parts = dict(zip(shares, table, strict=True))
    if nearness is not None:
        parts["meaning"] = meaning * nearness.of_turns(turns)
    score = sum(parts.values(), np.zeros(len(turns)))
    applied: dict[str, NDArray[np.floating]] = {name: factor[best] for name, factor in factors.items()}
    applied["telling"] = scores.telling(turns)
    for name, factor in applied.items():
        more = score * (factor - 1.0)
        parts[name] = parts.get(name, 0.0) + more
        score = score + more
    return _hits(index, turns, score, parts, limit, min_score)


def _candidates(limit: int) -> int:
    # Twice the limit, since an episode may have two turns.
    return max(CANDIDATES_MIN, 2 * limit)


def _best(index: AgentIndex, turns: NDArray[np.intp], values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """The positions of the ``count`` greatest values of some turns; of equal ones the newest."""
    reached = reached_by(values, count)
    (at,) = np.nonzero(values >= reached)
    if len(at) <= count:
        return at
    values = values[at]
    least = np.partition(values, -count)[-count]
    sure, ties = at[values > least], at[values == least]
    missing = count - len(sure)
    if len(ties) > missing:
        event_us = index.timeline.event_us[turns[ties]]
        oldest = np.partition(event_us, -missing)[-missing]
        certain, ties = ties[event_us > oldest], ties[event_us == oldest]
        newest = np.lexsort((-turns[ties], *index.timeline.halves_of(turns[ties])))[::-1]
        ties = np.concatenate([certain, ties[newest[: missing - len(certain)]]])
    return np.concatenate([sure, ties])


def _hits(
    index: AgentIndex,
    turns: NDArray[np.int64],
    score: NDArray[np.float64],
    parts: Mapping[str, NDArray[np.float64]],
    limit: int,
    min_score: float | None,
) -> list[Hit]:
    most = 2 * limit  # since an episode may have two turns
    ranked = np.flatnonzero(score >= np.partition(score, -most)[-most]) if len(score) > most else np.arange(len(score))
    order = np.lexsort((-turns[ranked], *index.timeline.halves_of(turns[ranked]), score[ranked]))
    ranked = ranked[order[::-1][:most]]
    values = zip(*(part[ranked].tolist() for part in (score, *parts.values())), strict=True)
    hits: dict[bytes, Hit] = {}
    for id_bytes, (value, *shares) in zip(index.timeline.ids_of(turns[ranked]), values, strict=True):
        if len(hits) == limit or (min_score is not None and value < min_score):
            break
        if id_bytes not in hits:
            named = zip(parts, shares, strict=True)
            hits[id_bytes] = Hit(id_bytes, value, {name: share for name, share in named if share})
    return list(hits.values())
