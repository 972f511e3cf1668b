"""What makes an episode an answer: each part of the score is a constant here, with its reason and its formula.

A turn's score is a sum of parts, times factors. Parts are shares of the question: 1 is all of its words, once.

    own         BM25 over the words of the turn and their neighbours in meaning; of words in questions less counts
    asked       what the turn before, by another speaker, *asks* of the question, in its very words: an answer need
                not repeat it
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
    telling     "Thanks! That sounds great" tells nothing: frequent words, and asked ones, make a turn worth less (a
                factor); looked at last, where it can change the order and no more

Names of speakers count in ``own`` only: everybody's neighbours mention each other all the time. Neighbours are of the
same session, and of one agent by construction.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009. Its k1 and b grow with the average length
of a turn, since in a chat a word said twice means little and length means less.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qilbee_core.search.columns import reached_by, scratch
from qilbee_core.search.index import TIME_WORDS_MAX, AgentIndex
from qilbee_core.search.question import DAY_US, Question, idf, idfs
from qilbee_core.search.timeline import NOWHERE

__all__ = ["EVERYTHING", "MEANING", "Filter", "Scores", "total"]

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
TELLING = 0.5
"""How much less a turn is worth that tells nothing at all; in full where turns are short, as chats are."""
_ROUNDED = 1.0 - 1e-4
"""What is left of a sum, at least, when its parts are added in another order."""
ASKED_DISCOUNT = 0.4
"""How much less a word counts that is only asked."""
_ASKED = 0xFF

_SCALE = 1 << 16
"""Frequencies are summed as integers of this unit, so that the order of the words in RAM does not matter."""

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
        k1, b = 0.7 + 0.9 * long, 0.2 + 0.4 * long
        self._telling = TELLING * (1.0 - long)
        if index.worth_once is None:
            index.worth_once = _worth_once(index, k1, k1 * b / average, k1 * (1.0 - b))
        self._once, self._most = index.worth_once, np.float32(k1 + 1.0)
        """What a term is worth, as a part of its weight, in each turn that says it once; and where it has no end."""
        # Names last, so that the lines of the others are together.
        self._terms = sorted(question.terms, key=lambda term: term.is_name)
        names = sum(term.is_name for term in self._terms)
        rows = scratch(3 + len(self._terms), size)
        self._asked, self._plain, self._own = rows[:3]
        """By turn: the part ``asked`` that it is to the next one, ``own`` without names, ``own``."""
        self._lines = rows[3 : len(rows) - names]
        """For each term but names and each turn what it is worth there, as a part of ``_once``."""
        self._match(rows[3:])
        self._plain *= self._once
        if names:
            self._own *= self._once
            self._own += self._plain
        else:
            self._own = self._plain
        self._session_best = index.timeline.best_of_sessions(self._own)

    def _match(self, lines: NDArray[np.float32]) -> None:
        """Find what each term of the question is worth in each turn, by the best of those it finds, and add that up.

        What is said is as a part of ``_once`` yet.
        """
        # Of each the greatest weight last, which is then what stands there.
        finds = [sorted(term.finds, key=lambda each: each[::-1]) for term in self._terms]
        once, turns, counts, sizes = self._index.find([number for each in finds for number, _ in each])
        weights = np.repeat(np.array([weight for each in finds for _, weight in each], np.float32), sizes)
        share = self._once.take(turns)
        share /= self._most
        said = _relative(_SAID.take(counts), share)
        said *= weights
        words = [None if term.is_name else self._index.numbers.get(term.stem) for term in self._terms]
        itself = np.array([number == word for word, each in zip(words, finds, strict=True) for number, _ in each], bool)
        (asking,) = np.nonzero(np.repeat(itself, sizes) & (counts & _ASKED != 0))
        share = share.take(asking)
        asked = _relative(_COUNTS.take(counts.take(asking) & _ASKED), share)
        asked *= weights.take(asking)
        asked *= share
        asked *= ASKED * self._most
        self._asked.fill(0.0)
        np.add.at(self._asked, turns.take(asking), asked)
        if not len(self._lines):
            self._plain.fill(0.0)
        found = iter(zip(once, sizes, strict=True))
        start = stop = 0
        # One line after the other, while it is in the processor's cache.
        for number, (term, line, weighed) in enumerate(zip(self._terms, lines, finds, strict=True)):
            here = list(islice(found, len(weighed)))
            start, stop = stop, stop + sum(size for _, size in here)
            line.fill(0.0)
            for (_, weight), (places, _) in zip(weighed, here, strict=True):
                for once_turns in places:
                    line[once_turns] = weight
            np.maximum.at(line, turns[start:stop], said[start:stop])
            total_line = self._own if term.is_name else self._plain
            if number in {0, len(self._lines)}:
                total_line[:] = line  # the first of its kind
            else:
                total_line += line

    def promising(self, count: int, mask: NDArray[np.bool_] | None) -> NDArray[np.intp]:
        """Some of the turns under ``mask``, among them the ``count`` best by :meth:`rough`: of many a small part."""
        index, question = self._index, self._question
        timeline = index.timeline
        sure = timeline.of_sessions(SESSION * self._session_best)
        sure += self._own
        lent = BEFORE * self._plain
        lent += self._asked
        timeline.add_before(sure, lent)
        np.multiply(self._plain, AFTER, out=lent)
        timeline.add_after(sure, lent)
        if question.days:
            sure += DATE * self._fit(timeline.event_us[: self._size])
        if question.speaker:
            more = np.multiply(sure, SPEAKER_FACTOR, out=lent)
            more += np.float32(SPEAKER * (1.0 + SPEAKER_FACTOR))
            more *= (timeline.speaker[: self._size] == question.speaker).astype(np.float32)
            sure += more
        if mask is not None:
            sure *= mask
        # This is all but for words of time, which make it more, and by so much at most:
        factor = prod(float(each[-1] / each[0]) for each in self._factors().values())
        reached = reached_by(sure, count)
        if reached <= 0.0:
            return np.flatnonzero(sure)
        return np.flatnonzero(sure >= reached * _ROUNDED / factor)

    def rough(self, turns: NDArray[np.intp]) -> NDArray[np.floating]:
        """The score of some turns by the common parts alone."""
        return total(self.common(turns), self.factors(turns))

    def common(self, turns: NDArray[np.intp]) -> dict[str, NDArray[np.float32]]:
        """The parts that are cheap enough to ask of every turn."""
        timeline, question = self._index.timeline, self._question
        before = timeline.before_other[turns].astype(np.intp)
        after = timeline.after_other[turns].astype(np.intp)
        parts = {
            "own": self._own[turns],
            "asked": self._asked[before],
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
        matches = (self._lines.take(all_turns, axis=1) * self._once[all_turns]).reshape(
            len(self._lines), 1 + len(neighbours), len(turns)
        )
        more = matches.max(axis=1) - matches[:, 0]
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

    def telling(self, turns: NDArray[np.intp]) -> NDArray[np.float64]:
        """What the score of some turns is multiplied by for how much they tell, 1 at most.

        That is the mean inverse document frequency of their words, as a part of what it is for one that is said once
        only; what is asked counts less, as it does in ``own``.
        """
        index = self._index
        owners, terms, counts = index.entries(turns)
        worth = idfs(index.live_turns, index.terms.frequency.take(terms))
        worth /= idf(index.live_turns, 1)
        worth *= _SAID.take(counts)
        worth *= _SCALE
        told = np.bincount(owners, np.rint(worth, out=worth), minlength=len(turns)) / _SCALE
        return 1.0 - self._telling * (1.0 - told / np.maximum(index.turns.length[turns], 1))

    def _factors(self) -> dict[str, NDArray[np.float32]]:
        """The factors by the number of words of time."""
        words = np.arange(TIME_WORDS_MAX + 1, dtype=np.float32)
        found = {}
        if self._question.asks_when:
            found["time"] = 1.0 + WHEN_TIME_FACTOR * words
        if self._question.speaker:
            found["speaker"] = (1.0 + SPEAKER_FACTOR) * (1.0 + SPEAKER_TIME_FACTOR * words)
        return found


def total(
    parts: Mapping[str, NDArray[np.floating]], factors: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.floating]:
    """The sum of some parts, times the factors."""
    first, *others = parts.values()
    value: NDArray[np.floating] = sum(others, first)
    for factor in factors.values():
        value = value * factor
    return value


def _worth_once(index: AgentIndex, k1: float, per_word: float, at_least: float) -> NDArray[np.float32]:
    """What a term is worth in a turn that says it once, as a part of its weight; 0 in a removed one."""
    size = index.turns.size
    worth: NDArray[np.float32] = index.turns.length[:size].astype(np.float32)
    worth *= np.float32(per_word)
    worth += np.float32(at_least + 1.0)
    np.divide(np.float32(k1 + 1.0), worth, out=worth)
    if index.live_turns < size - 1:
        worth[index.timeline.session[:size] == NOWHERE] = 0.0
    return worth


def _relative(count: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a term is worth in turns that say it so often, as a part of what it is where they say it once.

    ``share`` is the latter as a part of what it is worth where they say it without end.
    """
    worth = count - np.float32(1.0)
    worth *= share
    worth += np.float32(1.0)
    np.divide(count, worth, out=worth)
    return worth
