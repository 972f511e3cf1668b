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

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qilbee_core.search.columns import maximum_at, reached_by, scratch
from qilbee_core.search.index import TIME_WORDS_MAX, AgentIndex
from qilbee_core.search.question import DAY_US, Question
from qilbee_core.search.timeline import NOWHERE

__all__ = ["EVERYTHING", "MEANING", "Filter", "Scores"]

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
_ROUNDED = 1.0 - 1e-4
"""What is left of a sum, at least, when its parts are added in another order."""
ASKED_DISCOUNT = 0.4
"""How much less a word counts that is only asked."""
_SPARSE = 8
"""Where fewer than one turn of so many has a term, it is added to these alone."""
_ASKED = 0xFF

_COUNTS = np.arange(1 << 16).astype(np.float32)
_SAID = (_COUNTS // 256 - ASKED_DISCOUNT * (_COUNTS % 256)).astype(np.float32)
"""By the counts of a term in a turn: how often it counts as said."""


class Filter(NamedTuple):
    """Which episodes may be found; None means any. Times are microseconds: ``start_us <= event time < end_us``."""

    episode_type: str | None = None
    memory_type: int | None = None
    start_us: int | None = None
    end_us: int | None = None

    def mask(self, index: AgentIndex) -> NDArray[np.bool_] | None:
        """For each turn whether it may be found, never for removed ones; None where all may."""
        turns, timeline, size = index.turns, index.timeline, index.turns.size
        if self == EVERYTHING and index.live_turns == size - 1:
            return None
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


EVERYTHING = Filter()


class Scores:
    """The parts of all turns' scores for one question.

    The *common* parts are cheap enough to ask of many turns, the *rest* is worth something only where they are.
    """

    def __init__(self, index: AgentIndex, question: Question) -> None:
        self._index = index
        self._question = question
        self._size = size = index.turns.size
        average = index.words_average or 1.0
        long = average / (average + 40.0)
        self._k1, b = 0.7 + 0.9 * long, 0.2 + 0.4 * long
        self._per_word, self._at_least = np.float32(self._k1 * b / average), np.float32(self._k1 * (1.0 - b))
        if index.worth_once is None:
            index.worth_once = self._worth_once()
        self._once = index.worth_once
        self._is_plain = np.array([not term.is_name for term in question.terms], np.bool_)
        names = not self._is_plain.all()
        sums = scratch(2 + names + len(question.terms), size)
        self._asked, self._plain, self._own = sums[0], sums[1], sums[1 + names]
        self._lines = sums[2 + names :]
        """For each term of the question and each turn what it is worth there, as a part of ``_once``."""
        self._match()
        self._plain *= self._once  # ``own`` without names
        if names:
            self._own *= self._once
            self._own += self._plain
        self._session_best = index.timeline.best_of_sessions(self._own)

    def _worth_once(self) -> NDArray[np.float32]:
        """What a term is worth in a turn that says it once, as a part of its weight; 0 in a removed one."""
        worth = self._saturation(slice(0, self._size))
        worth += np.float32(1.0)
        np.divide(np.float32(self._k1 + 1.0), worth, out=worth)
        if self._index.live_turns < self._size - 1:
            worth[self._index.timeline.session[: self._size] == NOWHERE] = 0.0
        return worth

    def _saturation(self, turns: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Of each turn the count at which a word is worth (k1 + 1) / 2."""
        saturation: NDArray[np.float32] = self._index.turns.length[turns].astype(np.float32)
        saturation *= self._per_word
        saturation += self._at_least
        return saturation

    def _match(self) -> None:
        """Find what each term of the question is worth in each turn, by the best of those it finds, and add that up.

        What is said is as a part of ``_once`` yet.
        """
        terms, lines, size = self._question.terms, self._lines, self._size
        # Of each the greatest weight last, which is then what stands there.
        finds = sorted((row, weight, number) for row, term in enumerate(terms) for number, weight in term.finds)
        once, (turns, counts, sizes) = self._index.find([number for _, _, number in finds])
        for (row, weight, _), once_turns in zip(finds, once, strict=True):
            lines[row][once_turns] = weight
        rows = np.array([row for row, _, _ in finds], np.int64)
        weights = np.repeat(np.array([weight for _, weight, _ in finds], np.float32), sizes)
        saturation = self._saturation(turns)
        worth = weights * _relative(_SAID[counts], saturation)
        maximum_at(lines.reshape(-1), np.repeat(rows * size, sizes) + turns, worth)
        first = np.searchsorted(rows, np.arange(len(terms) + 1))
        ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[first]
        (asked,) = np.nonzero((counts & _ASKED) != 0)
        asked_ends = np.searchsorted(asked, ends).tolist()
        asked_turns = turns[asked]
        worth = weights[asked] * _relative(_COUNTS[counts[asked] & _ASKED], saturation[asked])
        best = np.empty(size, np.float32)
        first, ends = first.tolist(), ends.tolist()
        for row, term in enumerate(terms):
            here = [*once[first[row] : first[row + 1]], turns[ends[row] : ends[row + 1]]]
            _add(self._own if term.is_name else self._plain, lines[row], here)
            start, stop = asked_ends[row : row + 2]
            if not term.is_name and start < stop:
                at = asked_turns[start:stop]
                best[at] = worth[start:stop]
                maximum_at(best, at, worth[start:stop])
                self._asked[at] += best[at]  # of one that is there twice both assign the same sum
        self._asked *= self._once

    def promising(self, count: int, mask: NDArray[np.bool_] | None) -> NDArray[np.intp]:
        """Some of the turns under ``mask``, among them the ``count`` best by :meth:`rough`: of many a small part."""
        index, question = self._index, self._question
        timeline = index.timeline
        before = ASKED * self._asked
        after = BEFORE * self._plain
        before += after
        np.multiply(self._plain, AFTER, out=after)
        sure = timeline.of_others(before, after)
        sure += self._own
        sure += timeline.of_sessions(SESSION * self._session_best)
        if question.days:
            sure += DATE * self._fit(timeline.event_us[: self._size])
        if question.speaker:
            speaks = (timeline.speaker[: self._size] == question.speaker).astype(np.float32)
            sure += SPEAKER * speaks
            speaks *= SPEAKER_FACTOR
            speaks += np.float32(1.0)
            sure *= speaks
        if mask is not None:
            sure *= mask
        # This is all but for words of time, which make it more, and by so much at most:
        factor = prod(float(each[-1] / each[0]) for each in self._factors().values())
        reached = reached_by(sure, count)
        if reached <= 0.0:
            return np.flatnonzero(sure)
        if factor > 1.0:
            scores = self.rough(np.flatnonzero(sure >= reached))
            reached = float(np.partition(scores, -count)[-count])
        return np.flatnonzero(sure >= reached * _ROUNDED / factor)

    def rough(self, turns: NDArray[np.intp]) -> NDArray[np.float32]:
        """The score of some turns by the common parts alone."""
        return sum(self.common(turns).values(), np.zeros(len(turns), np.float32)) * self.factor(turns)

    def factor(self, turns: NDArray[np.intp]) -> NDArray[np.float32]:
        """The product of the factors."""
        factor = np.ones(len(turns), np.float32)
        for each in self.factors(turns).values():
            factor *= each
        return factor

    def common(self, turns: NDArray[np.intp]) -> dict[str, NDArray[np.float32]]:
        """The parts that are cheap enough to ask of every turn."""
        timeline, question = self._index.timeline, self._question
        before = timeline.before_other[turns].astype(np.intp)
        after = timeline.after_other[turns].astype(np.intp)
        parts = {
            "own": self._own[turns],
            "asked": ASKED * self._asked[before],
            "before": BEFORE * self._plain[before],
            "after": AFTER * self._plain[after],
            "session": SESSION * self._session_best[timeline.session[turns].astype(np.intp)],
        }
        if question.days:
            parts["date"] = DATE * self._fit(timeline.event_us[turns])
        if question.speaker:
            parts["speaker"] = np.float32(SPEAKER) * (timeline.speaker[turns] == question.speaker)
        return parts

    def rest(self, turns: NDArray[np.intp]) -> dict[str, NDArray[np.float32]]:
        """The other parts, but for ``meaning``: worth something only where the common ones are."""
        timeline = self._index.timeline
        before, after = timeline.before[turns].astype(np.intp), timeline.after[turns].astype(np.intp)
        two_before, two_after = timeline.before[before].astype(np.intp), timeline.after[after].astype(np.intp)
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

    def _around(self, turns: NDArray[np.intp], *neighbours: NDArray[np.intp]) -> NDArray[np.float32]:
        """Over the terms but names, how much better the best of the neighbours matches than the turn."""
        all_turns = np.concatenate([turns, *neighbours])
        matches = (self._lines[:, all_turns] * self._once[all_turns]).reshape(
            len(self._lines), 1 + len(neighbours), len(turns)
        )
        more = matches.max(axis=1) - matches[:, 0]
        more[~self._is_plain] = 0.0
        # Row by row, in the order of the question.
        return sum(more, np.zeros(len(turns), np.float32))

    def factors(self, turns: NDArray[np.intp]) -> dict[str, NDArray[np.float32]]:
        """What the sum of the parts is multiplied by, where that is not 1 for all."""
        time_words = self._index.turns.time_words[turns]
        found = {name: factor[time_words] for name, factor in self._factors().items()}
        if "speaker" in found:
            speaks = self._index.timeline.speaker[turns] == self._question.speaker
            found["speaker"] = np.where(speaks, found["speaker"], np.float32(1.0))
        return found

    def _factors(self) -> dict[str, NDArray[np.float32]]:
        """The factors by the number of words of time."""
        words = np.arange(TIME_WORDS_MAX + 1, dtype=np.float32)
        found = {}
        if self._question.asks_when:
            found["time"] = 1.0 + WHEN_TIME_FACTOR * words
        if self._question.speaker:
            found["speaker"] = (1.0 + SPEAKER_FACTOR) * (1.0 + SPEAKER_TIME_FACTOR * words)
        return found


def _relative(count: NDArray[np.float32], saturation: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a term is worth in turns that say it so often, as a part of what it is where they say it once."""
    worth = saturation + np.float32(1.0)
    worth *= count
    worth /= saturation + count
    return worth


def _add(target: NDArray[np.float32], line: NDArray[np.float32], where: Sequence[NDArray[np.int64]]) -> None:
    """Add a line, which is zero elsewhere than ``where``."""
    if sum(map(len, where)) * _SPARSE > len(line):
        target += line
    else:
        at = np.concatenate(where)
        target[at] += line[at]  # of one that is there twice both assign the same sum
