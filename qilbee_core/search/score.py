"""What makes an episode an answer: each part of the score is a constant here, with its reason and its formula.

A turn's score is a sum of parts, times factors. Parts are shares of the question: 1 is all of its words, once.

    own         BM25 over the words of the turn and their neighbours in meaning; of words in questions less counts
    asked       what the turn before, by another speaker, *asks* of the question: an answer need not repeat it
    before      what the turn before, by another speaker, says of it
    after       what the turn after, by another speaker, says of it
    before_own  what the speaker said two turns before
    after_own   what the speaker says two turns later
    around      words of the question that the two turns on either side say and this one does not
    session     the best ``own`` of the session: a session is about something
    meaning     nearness in meaning (see meaning.py); in hybrid search only
    date        how well the event time fits a date in the question
    speaker     a question that names one speaker is about what that one says, more so where it has words of time
    time        "yesterday", "in May": answers to "when" hold such words (a factor)

Names of speakers count in ``own`` only: everybody's neighbours mention each other all the time. Neighbours are of the
same session, and of one agent by construction.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009. Its k1 and b grow with the average length
of a turn, since in a chat a word said twice means little and length means less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qilbee_core.search.index import TIME_WORDS_MAX, AgentIndex
from qilbee_core.search.question import DAY_US, Question
from qilbee_core.search.timeline import NOWHERE

__all__ = ["MEANING", "Filter", "Scores"]

ASKED = 0.6
BEFORE = 0.25
AFTER = 0.2
BEFORE_OWN = 0.2
AFTER_OWN = 0.1
AROUND = 0.2
SESSION = 0.5
MEANING = 0.3
DATE = 1.0
SPEAKER, SPEAKER_FACTOR = 0.05, 0.5
SPEAKER_TIME_FACTOR = 0.07
WHEN_TIME_FACTOR = 0.15
ASKED_DISCOUNT = 0.4
"""How much less a word counts that is only asked."""

_COUNTS = np.arange(1 << 16)
_SAID = ((_COUNTS >> 8) - ASKED_DISCOUNT * (_COUNTS & 0xFF)).astype(np.float32)
"""By the counts of a term in a turn: how often it counts as said."""


class Filter(NamedTuple):
    """Which episodes may be found; None means any. Times are microseconds: ``start_us <= event time < end_us``."""

    episode_type: str | None = None
    memory_type: int | None = None
    start_us: int | None = None
    end_us: int | None = None

    def mask(self, index: AgentIndex) -> NDArray[np.bool_]:
        """For each turn whether it may be found; never for removed ones."""
        turns, timeline, size = index.turns, index.timeline, index.turns.size
        mask: NDArray[np.bool_] = timeline.session[:size] != NOWHERE
        if self.episode_type is not None:
            mask &= turns.episode_type[:size] == index.episode_types.get(self.episode_type, -1)
        if self.memory_type is not None:
            mask &= turns.memory_type[:size] == self.memory_type
        if self.start_us is not None:
            mask &= timeline.event_us[:size] >= self.start_us
        if self.end_us is not None:
            mask &= timeline.event_us[:size] < self.end_us
        return mask


class Scores:
    """The parts of all turns' scores for one question: what all turns have at once, the rest for those asked for."""

    def __init__(self, index: AgentIndex, question: Question) -> None:
        self._index = index
        self._question = question
        size = index.turns.size
        average = index.words_average or 1.0
        long = average / (average + 40.0)
        self._k1, b = 0.7 + 0.9 * long, 0.2 + 0.4 * long
        length = index.turns.length[:size].astype(np.float32)
        self._saturation = length * np.float32(self._k1 * b / average) + np.float32(self._k1 * (1.0 - b))
        """Of each turn: the count at which a word is worth (k1 + 1) / 2."""
        self._own = np.zeros(size, np.float32)
        self._plain = np.zeros(size, np.float32)
        """``own`` without names."""
        self._asked = np.zeros(size, np.float32)
        self._match()
        self._session_best = np.zeros(index.timeline.sessions, np.float32)
        # By runs of turns first: those of a session mostly came one after the other.
        session = index.timeline.session[:size]
        first = np.flatnonzero(np.diff(session, prepend=-1))
        _maximum_at(self._session_best, session[first], np.maximum.reduceat(self._own, first))
        self._session_best[NOWHERE] = 0.0

    def _match(self) -> None:
        """Add up, over the terms of the question, the best that any of the terms it finds is worth in a turn."""
        names = np.zeros_like(self._own)
        best = np.zeros_like(self._own)
        for term in self._question.terms:
            total = names if term.is_name else self._plain
            found = [self._index.postings_of(number) for number, _ in term.finds]
            sizes = [len(each) // 8 for each in found]
            packed = np.frombuffer(b"".join(found), np.int64)
            turns, counts = packed >> 16, packed & 0xFFFF
            weight = np.repeat(np.array([weight for _, weight in term.finds], np.float32), sizes)
            saturation = self._saturation[turns]
            worth = weight * self._gain(_SAID[counts], saturation)
            if len(found) == 1:
                total[turns] += worth
            else:
                stop = 0
                for size in sizes:
                    start, stop = stop, stop + size
                    here = turns[start:stop]
                    best[here] = np.maximum(best[here], worth[start:stop])
                _move(best, turns, total)
            if not term.is_name:
                (asked,) = np.nonzero(counts & 0xFF != 0)
                turns = turns[asked]
                gain = self._gain((counts[asked] & 0xFF).astype(np.float32), saturation[asked])
                _maximum_at(best, turns, weight[asked] * gain)
                _move(best, turns, self._asked)
        np.add(self._plain, names, out=self._own)

    def _gain(self, count: NDArray[np.float32], saturation: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a term is worth in a turn, as a part of its weight."""
        return np.float32(self._k1 + 1.0) * count / (count + saturation)

    def common(self, turns: NDArray[np.int64] | slice) -> dict[str, NDArray[np.float32]]:
        """The parts that are cheap enough to ask of every turn."""
        timeline, question = self._index.timeline, self._question
        before, after = timeline.before_other[turns], timeline.after_other[turns]
        parts = {
            "own": self._own[turns],
            "asked": ASKED * self._asked[before],
            "before": BEFORE * self._plain[before],
            "after": AFTER * self._plain[after],
            "session": SESSION * self._session_best[timeline.session[turns]],
        }
        if question.days:
            parts["date"] = DATE * self._fit(timeline.event_us[turns])
        if question.speaker:
            parts["speaker"] = np.float32(SPEAKER) * (timeline.speaker[turns] == question.speaker)
        return parts

    def rest(self, turns: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """The other parts, but for ``meaning``: worth something only where the common ones are."""
        timeline = self._index.timeline
        before, after = timeline.before[turns], timeline.after[turns]
        two_before, two_after = timeline.before[before], timeline.after[after]
        speaker = timeline.speaker[turns]
        return {
            "before_own": BEFORE_OWN * self._plain[two_before] * (timeline.speaker[two_before] == speaker),
            "after_own": AFTER_OWN * self._plain[two_after] * (timeline.speaker[two_after] == speaker),
            "around": AROUND * self._around(turns, before, after, two_before, two_after),
        }

    def _fit(self, event_us: NDArray[np.int64]) -> NDArray[np.float32]:
        """How well times fit the days of the question: by the best of its ranges."""
        fit = np.zeros(len(event_us), np.float32)
        for first, last, weight in self._question.days:
            within = (event_us >= first * DAY_US) & (event_us < (last + 1) * DAY_US)
            np.maximum(fit, np.float32(weight), out=fit, where=within)
        return fit

    def _around(self, turns: NDArray[np.int64], *neighbours: NDArray[np.int32]) -> NDArray[np.float32]:
        """Over the terms but names, how much better the best of the neighbours matches than the turn."""
        both = np.concatenate([turns, *neighbours])
        matches = self._matches(both).reshape(1 + len(neighbours), len(turns), -1)
        more: NDArray[np.float32] = np.maximum(matches.max(axis=0) - matches[0], 0.0).sum(axis=1)
        return more

    def _matches(self, turns: NDArray[np.int64]) -> NDArray[np.float32]:
        """For some turns (rows) what each term of the question but names is worth there (columns)."""
        index = self._index
        terms = [term for term in self._question.terms if not term.is_name]
        matches = np.zeros((len(turns), len(terms)), np.float32)
        weights: dict[int, NDArray[np.float32]] = {}
        for column, term in enumerate(terms):
            for number, weight in term.finds:
                weights.setdefault(number, np.zeros(len(terms), np.float32))[column] = weight
        if not weights:
            return matches
        owners, found, counts = index.entries(turns)
        row_of_term = np.full(index.terms.size, -1, np.int32)
        row_of_term[list(weights)] = np.arange(len(weights))
        rows = row_of_term[found]
        (wanted,) = np.nonzero(rows >= 0)
        if len(wanted):
            owners = owners[wanted]
            gain = self._gain(_SAID[counts[wanted]], self._saturation[turns[owners]])
            worth = np.array(list(weights.values()))[rows[wanted]] * gain[:, None]
            first = np.flatnonzero(np.diff(owners, prepend=-1))
            matches[owners[first]] = np.maximum.reduceat(worth, first, axis=0)
        return matches

    def factors(self, turns: NDArray[np.int64] | slice) -> dict[str, NDArray[np.float32]]:
        """What the sum of the parts is multiplied by, where that is not 1 for all."""
        question, time_words = self._question, self._index.turns.time_words[turns]
        factors = {}
        time = np.ones(TIME_WORDS_MAX + 1, np.float32)
        words = np.arange(TIME_WORDS_MAX + 1, dtype=np.float32)
        if question.asks_when:
            time += WHEN_TIME_FACTOR * words
            factors["time"] = time[time_words]
        if question.speaker:
            speaks = self._index.timeline.speaker[turns] == question.speaker
            of_speaker = (1.0 + SPEAKER_FACTOR) * (1.0 + SPEAKER_TIME_FACTOR * words)
            factors["speaker"] = np.where(speaks, of_speaker[time_words], np.float32(1.0))
        return factors


def _move(best: NDArray[np.float32], turns: NDArray[np.int64], total: NDArray[np.float32]) -> None:
    """Add to each of the turns its best, which is 0 then."""
    # One that is there twice is added to once: both assign the same sum.
    total[turns] += best[turns]
    best[turns] = 0.0


def _maximum_at(target: NDArray[np.float32], where: NDArray[np.signedinteger], values: NDArray[np.float32]) -> None:
    """The same as np.maximum.at, several times as fast: any of several values is written, until none is greater."""
    values = values.astype(np.float32, copy=False)  # a wider one would be greater than itself for ever
    values = values.astype(target.dtype, copy=False)  # what is rounded down would stay greater for ever
    while len(where):
        greater = values > target[where]
        where, values = where[greater], values[greater]
        target[where] = values
