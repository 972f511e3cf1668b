"""The policy ``sessions``: one extractive summary for each finished session, in the place of its episodes.

Sentences are chosen to cover what the session was about, within a length. A stem ``t`` that is in ``n`` sentences of
the session and in ``d`` of all ``N`` sessions weighs ::

    w(t) = sqrt(n) * ln(1 + (N - d + 1/2) / (d + 1/2))

(central to this session, rare in others: Luhn 1958 and the IDF of BM25), and a choice ``S`` of sentences is worth ::

    f(S) = sum over t of w(t) * sqrt(number of sentences in S that have t)

The root makes a second mention worth less: a monotone submodular function, which rewards coverage and diversity at
once (Lin and Bilmes, "A Class of Submodular Functions for Document Summarization", 2011). It is climbed greedily, by
gain for each character, and lazily (Minoux 1978): the gain of a sentence only falls. A question counts half, since it
tells less than an answer, and what opens a session up to half more (Edmundson 1969: location).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from heapq import heapify, heappop, heappush
from math import exp, log, sqrt
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from qilbee_core.episode import Episode, Plan
from qilbee_core.policies.conversation import finished, parts_of, said_in, sessions_of
from qilbee_core.policies.derived import derived_episode
from qilbee_core.search.analysis import analyser

__all__ = ["SessionSettings", "Sessions"]

SENTENCE_CHARACTERS_MAX = 400
SUMMARY_CHARACTERS_MAX = 20_000

_END = re.compile(r"(?<=[.!?\u2026\u3002\uff01\uff1f])[\"')\]]*\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_QUESTION = re.compile(r"[?\uff1f\u061f][\"')\]]*$")
_BESIDE_CHARACTERS = 16  # added to each length: without it the shortest sentences would win too often
_QUESTION_WEIGHT = 0.5
_OPENING_WEIGHT, _OPENING_SHARE = 0.5, 0.15
# Not calendar.month_name, which follows the locale of the process.
_MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905
_STEMS_MIN = 2  # "Wow, thanks!" tells nothing


class SessionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of ``sessions``."""

    ratio: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """The longest a summary may be, speakers and dates included: a share of the characters of its sources' texts."""
    language: str = "english"
    """Of the stop words and the stemmer, as search has them; "none" does without."""


class Sentence(NamedTuple):
    """Part of a turn."""

    speaker: str
    text: str
    stems: frozenset[str]


class Sessions:
    """See the module.

    >>> from datetime import UTC, timedelta
    >>> said = ["Hi there! I moved to Oslo in March.", "Wow. How do you like the flat?", "It is small but warm."]
    >>> day = datetime(2026, 3, 2, 9, tzinfo=UTC)
    >>> episodes = [
    ...     Episode("bot", "message", {"text": text}, metadata={"speaker": name}, event_time=day + timedelta(minutes=n))
    ...     for n, (name, text) in enumerate(zip(["Ana", "Ben", "Ana"], said))
    ... ]
    >>> plan = Sessions(SessionSettings(ratio=0.85)).plan(episodes, now=day + timedelta(days=1))
    >>> print(plan.create[0].content["summary"])
    2 March 2026
    Ana: I moved to Oslo in March. It is small but warm.
    """

    name = "sessions"

    def __init__(self, settings: SessionSettings = SessionSettings()) -> None:  # noqa: B008 - frozen
        self._ratio = settings.ratio
        self._analyser = analyser(settings.language)

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        """A summary for each session that is over; what is not episodic, or not text alone, is left as it is."""
        told = [episode for episode in episodes if episode.memory_type == "episodic" and said_in(episode)]
        sessions = [(session, self._sentences(session)) for session in sessions_of(told)]
        spread = Counter(
            word for _, sentences in sessions for word in frozenset().union(*(each.stems for each in sentences))
        )
        create: list[Episode] = []
        supersede: dict[str, str] = {}
        for session, _ in sessions:
            if not finished(session, now):
                continue
            for part in parts_of(session):
                summary = self._summary(part, spread, len(sessions))
                if summary is not None:
                    create.append(summary)
                    supersede.update((source.id, summary.id) for source in part)
        return Plan(create=create, supersede=supersede)

    def _summary(self, sources: Sequence[Episode], spread: Counter[str], sessions: int) -> Episode | None:
        sentences = self._sentences(sources)
        heading = _dates(sources)
        length = sum(len(text) for source in sources for _, text in said_in(source))
        room = min(int(self._ratio * length), SUMMARY_CHARACTERS_MAX) - len(heading)
        frequency = Counter(stem for sentence in sentences for stem in sentence.stems)
        weights = {
            stem: sqrt(count) * log(1 + (sessions - spread[stem] + 0.5) / (spread[stem] + 0.5))
            for stem, count in frequency.items()
        }
        chosen = _choose(sentences, weights, room)
        if not chosen:
            return None
        text = heading + "".join(_lines([sentences[number] for number in chosen]))
        first, last = sources[0].event_time, sources[-1].event_time
        return derived_episode(
            self.name,
            sources,
            "summary",
            {"summary": text},
            metadata={
                "speakers": sorted({sentences[number].speaker for number in chosen} - {""}),
                "began": first.isoformat(),
                "ended": last.isoformat(),
            },
        )

    def _sentences(self, episodes: Sequence[Episode]) -> list[Sentence]:
        return [
            Sentence(speaker, piece, frozenset(self._analyser.stems(self._analyser.words(piece))))
            for episode in episodes
            for speaker, text in said_in(episode)
            for sentence in _END.split(text)
            for piece in _pieces(" ".join(sentence.split()))
        ]


def _pieces(sentence: str) -> list[str]:
    """A sentence, cut where it is longer than any sentence is."""
    return [
        sentence[start : start + SENTENCE_CHARACTERS_MAX] for start in range(0, len(sentence), SENTENCE_CHARACTERS_MAX)
    ]


def _choose(sentences: Sequence[Sentence], weights: dict[str, float], room: int) -> list[int]:
    """Numbers of the sentences to keep, in order; with their speakers they take at most ``room`` characters."""
    covered: Counter[str] = Counter()
    chosen: list[int] = []

    def worth(number: int) -> float:
        stems = sentences[number].stems
        # Summed in one order, whatever the hash seed: floats do not add up alike in another.
        gain = sum(weights[stem] * (sqrt(covered[stem] + 1) - sqrt(covered[stem])) for stem in sorted(stems))
        return priors[number] * gain / (len(sentences[number].text) + _BESIDE_CHARACTERS)

    priors = [
        (_QUESTION_WEIGHT if _QUESTION.search(sentence.text) else 1.0)
        * (1 + _OPENING_WEIGHT * exp(-number / (_OPENING_SHARE * len(sentences))))
        for number, sentence in enumerate(sentences)
    ]
    # What is said again in the same words, or in too few to tell anything, is not looked at.
    first = {each.stems: number for number, each in reversed([*enumerate(sentences)]) if len(each.stems) >= _STEMS_MIN}
    heap = [(-worth(number), number) for number in first.values()]
    heapify(heap)
    while heap:
        _, number = heappop(heap)
        now = -worth(number)
        if heap and (now, number) > heap[0]:  # others were chosen since: worth less, look again
            heappush(heap, (now, number))
            continue
        at = bisect_left(chosen, number)
        cost = _cost(sentences, chosen[at - 1 : at], number, chosen[at : at + 1])
        if now < 0 and cost <= room:
            room -= cost
            chosen.insert(at, number)
            covered.update(sentences[number].stems)
    return chosen


def _cost(sentences: Sequence[Sentence], before: list[int], number: int, after: list[int]) -> int:
    """Characters that a sentence adds between its neighbours."""

    def length(numbers: list[int]) -> int:
        return sum(len(line) for line in _lines([sentences[each] for each in numbers]))

    return length([*before, number, *after]) - length([*before, *after])


def _lines(sentences: Sequence[Sentence]) -> list[str]:
    """What is added to a text, sentence by sentence: a new line where another speaks."""
    lines = []
    speaker = None
    for sentence in sentences:
        if sentence.speaker == speaker:
            lines.append(f" {sentence.text}")
        else:
            lines.append(f"\n{sentence.speaker}: {sentence.text}" if sentence.speaker else f"\n{sentence.text}")
        speaker = sentence.speaker
    return lines


def _dates(sources: Sequence[Episode]) -> str:
    """The day of the session, or its first and last day, as people write them."""
    moments = (sources[0].event_time, sources[-1].event_time)
    days = [f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}" for moment in moments]
    return " to ".join(dict.fromkeys(days))
