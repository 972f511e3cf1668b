"""What a question asks of an index: its terms and their neighbours with weights, the speaker and the days it names."""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qilbee_core.errors import InvalidError
from qilbee_core.search.dates import DayRange, asks_when, day_ranges
from qilbee_core.search.index import AgentIndex

__all__ = ["CHARACTERS_MAX", "DAY_US", "TERMS_MAX", "Question", "QuestionTerm", "idf", "idfs", "question_of"]

DAY_US = 86_400_000_000
CHARACTERS_MAX = 20_000
"""What stands behind in a query is not looked at."""
TERMS_MAX = 64
"""Of more terms than this the rarest count."""

NEIGHBOURS_MAX = 4
"""Terms nearest in meaning that a term of a question also finds."""
NEIGHBOUR_WEIGHT = 0.7
UNKNOWN_WEIGHT = 0.5
"""Of a word that nobody said, in the mass of the question, where a neighbour of it was said."""


class QuestionTerm(Struct, frozen=True):
    """One term of a question: where to look, and what a match is worth as a part of the whole question."""

    stem: int | str
    weight: float
    is_name: bool
    """Of a known speaker: who speaks is scored apart."""
    finds: list[tuple[int, float]]
    """Terms of the index, itself first where it is one, each with its weight."""


class Question(Struct, frozen=True):
    """A query, understood by what an agent knows."""

    terms: list[QuestionTerm]
    idfs: dict[int | str, float]
    """Stem -> its inverse document frequency, for what the question means as a whole."""
    speaker: int
    """The one known speaker whom it names; 0 for nobody or several."""
    days: list[DayRange]
    asks_when: bool


def idf(turns: int, frequency: int) -> float:
    """The inverse document frequency of BM25 as in Lucene: positive even for a term that is everywhere."""
    return math.log(1.0 + (turns - frequency + 0.5) / (frequency + 0.5))


def idfs(turns: int, frequencies: NDArray[np.int32]) -> NDArray[np.float64]:
    """:func:`idf` of many."""
    result: NDArray[np.float64] = np.log(1.0 + (turns - frequencies + 0.5) / (frequencies + 0.5))
    return result


def question_of(text: str, index: AgentIndex, now_us: int) -> Question:
    """Understand ``text``; ``now_us`` is what "yesterday" counts from."""
    if not isinstance(text, str):
        raise InvalidError(f"a query is {type(text).__name__}", remedy="give text")
    text = text[:CHARACTERS_MAX]
    lexicon, turns = index.lexicon, index.live_turns
    stems = list(dict.fromkeys(lexicon.stems_of(lexicon.language.words(text))))
    idfs = {stem: idf(turns, index.frequency_of(stem)) for stem in stems}
    if len(stems) > TERMS_MAX:
        known = sorted((stem for stem in stems if stem in index.numbers), key=idfs.__getitem__, reverse=True)
        kept = set(known[:TERMS_MAX])
        stems = [stem for stem in stems if stem in kept]
        idfs = {stem: idfs[stem] for stem in stems}
    found = [_term(stem, idfs[stem], index) for stem in stems]
    found = [term for term in found if term.finds]
    mass = sum(term.weight for term in found)
    terms = [
        QuestionTerm(term.stem, term.weight / mass, term.is_name, [(each, w / mass) for each, w in term.finds])
        for term in found
    ]
    days = day_ranges(text, now_us // DAY_US, lambda: _known_days(index))
    return Question(terms, idfs, _speaker(stems, index), days, asks_when(text))


def _term(stem: int | str, weight: float, index: AgentIndex) -> QuestionTerm:
    finds = []
    numbers, frequency_of, turns = index.numbers, index.terms.frequency.item, index.live_turns
    own = numbers.get(stem)
    own_frequency = 0
    if own is not None:
        finds.append((own, weight))
        own_frequency = frequency_of(own)
    if isinstance(stem, int):
        most = len(finds) + NEIGHBOURS_MAX
        for other, cosine in index.lexicon.neighbours(stem):
            term = numbers.get(other)
            if term is not None:
                # A frequent neighbour of a rare term says little.
                frequency = frequency_of(term)
                idf_least = weight if frequency <= own_frequency else idf(turns, frequency)
                finds.append((term, NEIGHBOUR_WEIGHT * cosine * idf_least))
                if len(finds) == most:
                    break
    return QuestionTerm(
        stem, weight if own is not None else UNKNOWN_WEIGHT * weight, stem in index.speakers_of_word, finds
    )


def _known_days(index: AgentIndex) -> tuple[int, int]:
    """The first and the last day of which anything is known."""
    timeline = index.timeline
    event_us = timeline.event_us[: timeline.size][timeline.session[: timeline.size] > 0]
    return (int(event_us.min()) // DAY_US, int(event_us.max()) // DAY_US) if len(event_us) else (0, 0)


def _speaker(stems: list[int | str], index: AgentIndex) -> int:
    """The speaker of whose name the question has most words, if there is one."""
    words: dict[int, int] = {}
    for stem in stems:
        for number in index.speakers_of_word.get(stem, ()):
            words[number] = words.get(number, 0) + 1
    if not words:
        return 0
    most = max(words.values())
    best = [number for number, count in words.items() if count == most]
    return best[0] if len(best) == 1 else 0
