"""The index of one agent's memory, in RAM, made of forward rows and nothing else.

It can be kept up row by row or be made anew of all rows: both give the same answers to the last bit. Whatever is
summed is summed in the order of the question, or as integers; whatever ties is ordered by recency.

**Threads.** ``add``, ``remove`` and ``load`` want to be alone: hold one lock around them and around every search.
Searches may run beside each other; they change nothing.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qilbee_core.search.columns import Columns
from qilbee_core.search.lexicon import Lexicon
from qilbee_core.search.postings import ONCE, Entries, Found, Postings
from qilbee_core.search.rows import EPISODE_TYPES, Row, unpack, unpack_all
from qilbee_core.search.timeline import NOWHERE, Timeline
from qilbee_core.search.vectors import VectorIndex

__all__ = ["RARE", "TIME_WORDS_MAX", "AgentIndex", "Forward", "Terms", "Turns"]

COUNT_MAX = 255
"""A word counts so often in a turn at most."""
RARE = -1
_LONG_COUNT_BITS = 32
TIME_WORDS_MAX = 2
_AT_ONCE = 8192
"""Episodes of which all words are in RAM while an index is loaded."""
_AT_ONCE_LEAST = 48
"""Fewer are indexed one by one, which costs less then."""
_UNSORTED_LEAST = 512
_UNSORTED_PART = 128
"""Turns that are looked through one by one: so many, or one in so many of all that are sorted."""
COMPACT_LEAST = 1024
"""Removed turns below which an index is not compacted."""


class Turns(Columns):
    """For each turn what is not a matter of order."""

    dtypes: ClassVar[dict[str, DTypeLike]] = {
        "length": np.int32,
        "time_words": np.uint8,
        "episode_type": np.int32,
        "memory_type": np.uint8,
        "entries_end": np.uint32,
    }
    length: NDArray[np.int32]
    """Words."""
    time_words: NDArray[np.uint8]
    """Words that tell when, 2 at most."""
    episode_type: NDArray[np.int32]
    memory_type: NDArray[np.uint8]
    entries_end: NDArray[np.uint32]
    """Where its terms end in Forward; they begin where those of the turn before end."""


class Forward(Columns):
    """The terms of all turns, turn after turn."""

    dtypes: ClassVar[dict[str, DTypeLike]] = {"term": np.int32, "counts": np.uint16}
    term: NDArray[np.int32]
    counts: NDArray[np.uint16]
    """``count << 8 | asked``: how often it was said or asked there, and how often in questions."""


class Terms(Columns):
    """For each term of the agent."""

    dtypes: ClassVar[dict[str, DTypeLike]] = {"frequency": np.int32, "stem": np.int32}
    frequency: NDArray[np.int32]
    """Turns that hold it."""
    stem: NDArray[np.int32]
    """Its number in the lexicon; RARE where it has none."""


class AgentIndex:
    """Words, sessions, speakers and times of one agent's episodes."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.vectors: VectorIndex | None = None
        """Those of an encoder, where there is one, of some of the episodes here and of no others."""
        self.timeline = Timeline()
        self.turns = Turns()
        self.turns.extend(1)  # NOWHERE
        self.forward = Forward()
        self.numbers: dict[int | str, int] = {}
        """Number of a stem in the lexicon, or the stem where it has none -> number of the term here."""
        self.terms = Terms()
        self.stems: list[int | str] = []
        """Of each term."""
        self.postings = Postings()
        self._sorted_to = 1
        """Turns from this one on are not in the postings yet, but for their terms in Forward."""
        self.speakers: dict[str, int] = {}
        """Number of each speaker; 0 is nobody in particular."""
        self.turns_of_speaker: list[int] = [0]
        self.speakers_of_word: dict[int | str, set[int]] = {}
        """Stem -> the speakers whose name has it."""
        self.episode_types: dict[str, int] = {name: number for number, name in enumerate(EPISODE_TYPES)}
        self.live_turns = 0
        self.live_words = 0
        self.worth_once: NDArray[np.float32] | None = None
        """Kept by score.py as long as nothing changes."""

    def __len__(self) -> int:
        """Episodes."""
        return self.timeline.episodes

    def __contains__(self, id_bytes: bytes) -> bool:
        return bool(self.timeline.turns_of(id_bytes))

    @property
    def ram_bytes(self) -> int:
        """About what it takes: the arrays, and the objects of Python around them."""
        arrays = self.turns.ram_bytes + self.timeline.ram_bytes + self.forward.ram_bytes + self.postings.ram_bytes
        arrays += 0 if self.vectors is None else self.vectors.ram_bytes
        return arrays + 200 * len(self.stems)

    @property
    def words_average(self) -> float:
        """Words of a turn."""
        return self.live_words / self.live_turns if self.live_turns else 0.0

    def frequency_of(self, stem: int | str) -> int:
        """Turns that hold a stem; 0 where none does."""
        term = self.numbers.get(stem)
        return 0 if term is None else int(self.terms.frequency[term])

    def entries(self, turns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint16]]:
        """All terms of some turns, NOWHERE not among them: the position in ``turns``, the term, its counts."""
        ends = self.turns.entries_end
        starts = ends.take(turns - 1).astype(np.int64)
        sizes = ends.take(turns) - starts
        owners = np.repeat(np.arange(len(turns)), sizes)
        where = (starts - np.cumsum(sizes) + sizes).take(owners)
        where += np.arange(len(owners))
        return owners, self.forward.term.take(where), self.forward.counts.take(where)

    def find(self, terms: Sequence[int]) -> Found:
        """The turns that hold some terms; removed ones too, until compaction."""
        return self.postings.of(terms, self._unsorted(terms) if self._sorted_to < self.turns.size else None)

    def turns_of(self, id_bytes: bytes) -> range:
        """The turns of an episode, one after another; none where it is not known."""
        return self.timeline.turns_of(id_bytes)

    def ids(self) -> Iterator[bytes]:
        """All episodes, those first that came last."""
        return self.timeline.ids()

    def add(self, id_bytes: bytes, row: Row) -> None:
        """Index an episode, in place of what was known of it."""
        self.worth_once = None
        self.remove(id_bytes)
        self.timeline.append(id_bytes, row.session, [self._speaker(turn.speaker) for turn in row.turns])
        kind = self._episode_type(row.episode_type)
        stem_of_word, time_words, turns = self.lexicon.stem_of_word, self.lexicon.time_words, self.turns
        for turn in row.turns:
            said, asked = unpack(turn.said), unpack(turn.asked)
            rare_said = self.lexicon.stems_of(turn.rare_said.split()) if turn.rare_said else ()
            rare_asked = self.lexicon.stems_of(turn.rare_asked.split()) if turn.rare_asked else ()
            length = len(said) + len(asked) + len(rare_said) + len(rare_asked)
            one = ONCE if length <= COUNT_MAX else 1 << _LONG_COUNT_BITS
            counts: dict[int | str, int] = {}
            for word in said:
                stem = stem_of_word[word]
                counts[stem] = counts.get(stem, 0) + one
            for name in rare_said:
                counts[name] = counts.get(name, 0) + one
            for word in asked:
                stem = stem_of_word[word]
                counts[stem] = counts.get(stem, 0) + one + 1
            for name in rare_asked:
                counts[name] = counts.get(name, 0) + one + 1
            if length > COUNT_MAX:
                counts = {stem: _bounded(each) for stem, each in counts.items()}
            terms = self._terms(list(counts))
            self.terms.frequency[terms] += 1
            start = self.forward.extend(len(terms))
            self.forward.term[start : self.forward.size] = terms
            self.forward.counts[start : self.forward.size] = list(counts.values())
            number = turns.extend(1)
            turns.entries_end[number] = self.forward.size
            turns.episode_type[number] = kind
            turns.memory_type[number] = row.memory_type
            turns.length[number] = length
            if not time_words.isdisjoint(said):
                turns.time_words[number] = min(TIME_WORDS_MAX, sum([word in time_words for word in said]))
            self.live_words += length
        self.live_turns += len(row.turns)
        if self.turns.size - self._sorted_to > max(_UNSORTED_LEAST, self._sorted_to // _UNSORTED_PART):
            self._sort()

    def _terms(self, stems: Sequence[int | str]) -> list[int]:
        """The numbers of the terms of some different stems, perhaps new ones."""
        known = self.numbers
        new = [stem for stem in stems if stem not in known]
        if new:
            first = self.terms.extend(len(new))
            self.terms.stem[first : self.terms.size] = [stem if isinstance(stem, int) else RARE for stem in new]
            self.stems += new
            known.update(zip(new, range(first, self.terms.size), strict=True))
        return [known[stem] for stem in stems]

    def put(self, rows: Iterable[tuple[bytes, Row | None]]) -> None:
        """Index episodes as they are now, some of which may be gone."""
        now = dict(rows)
        there = [(id_bytes, row) for id_bytes, row in now.items() if row is not None]
        if len(there) < _AT_ONCE_LEAST:
            for id_bytes, row in now.items():
                if row is None:
                    self.remove(id_bytes)
                else:
                    self.add(id_bytes, row)
            return
        for id_bytes in now:
            self.remove(id_bytes)
        speakers = self._extend([row for _, row in there])
        ids, sessions = [id_bytes for id_bytes, _ in there], [row.session for _, row in there]
        turns_in = [len(row.turns) for _, row in there]
        if self.timeline.are_next(ids, sessions):
            self.timeline.append_all(b"".join(ids), sessions, np.array(turns_in), np.array(speakers))
        else:
            ends = np.cumsum(turns_in).tolist()
            for id_bytes, session, size, stop in zip(ids, sessions, turns_in, ends, strict=True):
                self.timeline.append(id_bytes, session, speakers[stop - size : stop])
        if self.turns.size - self._sorted_to > max(_UNSORTED_LEAST, self._sorted_to // _UNSORTED_PART):
            self._sort()

    def remove(self, id_bytes: bytes) -> bool:
        """Forget an episode; False where it is not known. What only it said is gone from RAM too."""
        turns = self.turns_of(id_bytes)
        if not turns:
            return False
        self.worth_once = None
        if self.vectors is not None:
            self.vectors.remove(id_bytes)
        for turn in turns:
            terms = self.forward.term[self.turns.entries_end[turn - 1] : self.turns.entries_end[turn]]
            self.terms.frequency[terms] -= 1
            for term in terms[self.terms.frequency[terms] == 0].tolist():
                del self.numbers[self.stems[term]]
                self.stems[term] = ""
            self._forget_speaker(int(self.timeline.speaker[turn]))
            self.live_words -= int(self.turns.length[turn])
        self.timeline.remove(turns)
        self.live_turns -= len(turns)
        if self.turns.size - 1 - self.live_turns > max(self.live_turns, COMPACT_LEAST):
            self._compact()
        return True

    def load(self, rows: Iterable[tuple[bytes, Row]]) -> None:
        """Index episodes in the order of their ids, several times as fast as one by one; the index must be empty.

        Rows are taken as they come and not kept.
        """
        assert not len(self)
        ids, turns_in, speakers = bytearray(), array("I"), array("I")
        sessions: list[str | None] = []
        names: dict[str | None, str | None] = {}
        rows = iter(rows)
        while some := list(islice(rows, _AT_ONCE)):
            ids += b"".join([id_bytes for id_bytes, _ in some])
            found = [row for _, row in some]
            turns_in.extend([len(row.turns) for row in found])
            sessions += [names.setdefault(row.session, row.session) for row in found]  # one object for each
            speakers.extend(self._extend(found))
        if ids:
            self.timeline.append_all(bytes(ids), sessions, np.array(turns_in), np.array(speakers))
            self._sort()

    def _extend(self, rows: list[Row]) -> list[int]:
        """Index the turns of some episodes but for their place in time; gives their speakers."""
        self.worth_once = None
        turns = [turn for row in rows for turn in row.turns]
        in_row = [len(row.turns) for row in rows]
        first = self.turns.extend(len(turns))
        here = slice(first, self.turns.size)
        self.turns.episode_type[here] = np.repeat([self._episode_type(row.episode_type) for row in rows], in_row)
        self.turns.memory_type[here] = np.repeat([row.memory_type for row in rows], in_row)
        of_said, said, time_words = self._words([turn.said for turn in turns], [turn.rare_said for turn in turns])
        of_asked, asked, _ = self._words([turn.asked for turn in turns], [turn.rare_asked for turn in turns])
        self.turns.time_words[here] = np.minimum(time_words, TIME_WORDS_MAX)
        of_turn = np.concatenate([of_said, of_asked])
        self.turns.length[here] = length = np.bincount(of_turn, minlength=len(turns))
        self.live_turns += len(turns)
        self.live_words += int(length.sum())
        # One entry for each term of a turn, with its counts: equal ones stand together once they are sorted.
        keys = (of_turn << 32 | np.concatenate([said, asked])) << 1
        keys[len(said) :] |= 1
        keys.sort()
        first_of = np.flatnonzero(np.diff(keys >> 1, prepend=-1))
        counts = np.minimum(np.diff(first_of, append=len(keys)), COUNT_MAX)
        asked_counts = np.minimum(np.add.reduceat(keys & 1, first_of), COUNT_MAX) if len(keys) else counts
        entries = keys[first_of] >> 1
        terms = entries & 0xFFFFFFFF
        self.terms.frequency[: self.terms.size] += np.bincount(terms, minlength=self.terms.size)
        start = self.forward.extend(len(entries))
        self.forward.term[start : self.forward.size] = terms
        self.forward.counts[start : self.forward.size] = counts << 8 | asked_counts
        self.turns.entries_end[here] = start + np.cumsum(np.bincount(entries >> 32, minlength=len(turns)))
        speakers = [turn.speaker for turn in turns]
        numbers = {name: self._speaker(name, many) for name, many in Counter(speakers).items()}
        return [numbers[name] for name in speakers]

    def _words(
        self, packed: list[bytes], rare: list[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For each word of some turns the turn and the term; for each turn how many words of time it has."""
        in_turn, words = unpack_all(packed)
        turn = np.repeat(np.arange(len(packed)), in_turn)
        time_words = np.bincount(turn[self.lexicon.is_time_word[words]], minlength=len(packed))
        stem = self.lexicon.stem_of_word_array[words]
        terms = np.zeros(len(self.lexicon.numbers), np.int64)
        used = np.flatnonzero(np.bincount(stem, minlength=len(terms)))
        terms[used] = self._terms(used.tolist())
        found = " ".join(filter(None, rare)).split(" ") if any(rare) else []
        different = list(dict.fromkeys(found))
        stems = self.lexicon.stems_of(different)
        families = list(dict.fromkeys(stems))
        term_of = dict(zip(families, self._terms(families), strict=True))
        number_of = {word: term_of[stem] for word, stem in zip(different, stems, strict=True)}
        rare_in_turn = [line.count(" ") + 1 if line else 0 for line in rare]
        return (
            np.concatenate([turn, np.repeat(np.arange(len(rare)), rare_in_turn)]),
            np.concatenate([terms[stem], np.array([number_of[word] for word in found], np.int64)]),
            time_words,
        )

    def _sort(self) -> None:
        """Bring the turns that came since the last time into the postings."""
        self.postings.merge(self._unsorted(), self.terms.size)
        self._sorted_to = self.turns.size

    def _unsorted(self, terms: Sequence[int] | None = None) -> Entries:
        """What is not in the postings yet; of some terms alone, where they are given."""
        ends = self.turns.entries_end[self._sorted_to - 1 : self.turns.size]
        first = int(ends[0])
        if terms is None:
            entries = np.arange(first, self.forward.size)
        else:
            wanted = np.zeros(self.terms.size, np.bool_)
            wanted[terms] = True
            entries = first + np.flatnonzero(wanted.take(self.forward.term[first : self.forward.size]))
        turns = self._sorted_to - 1 + np.searchsorted(ends, entries, side="right")
        return Entries(turns, self.forward.term[entries], self.forward.counts[entries])

    def _compact(self) -> None:
        """Make the index of itself anew, without what was removed."""
        ids = sorted(self.ids())
        in_episode = [self.turns_of(id_bytes) for id_bytes in ids]
        sessions = [self.timeline.name_of_session(each[0]) for each in in_episode]
        kept = np.array([turn for each in in_episode for turn in each], np.int64)
        owners, terms, counts = self.entries(kept)
        used = np.flatnonzero(np.bincount(terms, minlength=self.terms.size))
        new_number = np.zeros(self.terms.size, np.int32)
        new_number[used] = np.arange(len(used))
        speakers, timeline = self.timeline.speaker[kept], Timeline()
        if ids:
            timeline.append_all(b"".join(ids), sessions, np.array([len(each) for each in in_episode]), speakers)
        self.timeline = timeline
        self.turns = self.turns.taken(np.concatenate([[NOWHERE], kept]))
        self.turns.entries_end[1 : self.turns.size] = np.cumsum(np.bincount(owners, minlength=len(kept)))
        self.forward = Forward()
        self.forward.extend(len(terms))
        self.forward.term[: len(terms)] = new_number[terms]
        self.forward.counts[: len(terms)] = counts
        self.terms = self.terms.taken(used)
        self.stems = [self.stems[each] for each in used.tolist()]
        self.numbers = {stem: number for number, stem in enumerate(self.stems)}
        self.postings, self._sorted_to = Postings(), 1
        self._sort()

    def _episode_type(self, kind: int | str) -> int:
        return kind if isinstance(kind, int) else self.episode_types.setdefault(kind, len(self.episode_types))

    def _speaker(self, name: str | None, turns: int = 1) -> int:
        """The number of a speaker, who has so many turns more."""
        if name is None:
            return 0
        number = self.speakers.get(name)
        if number is None:
            number = self.speakers[name] = len(self.turns_of_speaker)
            self.turns_of_speaker.append(0)
            words = self.lexicon.stems_of(self.lexicon.language.words(name))
            for word in words:
                self.speakers_of_word.setdefault(word, set()).add(number)
        self.turns_of_speaker[number] += turns
        return number

    def _forget_speaker(self, number: int) -> None:
        """One turn less; forget who has none."""
        self.turns_of_speaker[number] -= 1
        if number and not self.turns_of_speaker[number]:
            name = next(name for name, known in self.speakers.items() if known == number)
            del self.speakers[name]
            for word in self.lexicon.stems_of(self.lexicon.language.words(name)):
                others = self.speakers_of_word.get(word, set())
                others.discard(number)
                if not others:
                    self.speakers_of_word.pop(word, None)


def _bounded(counts: int) -> int:
    asked = counts & (1 << _LONG_COUNT_BITS) - 1
    return min(counts >> _LONG_COUNT_BITS, COUNT_MAX) << 8 | min(asked, COUNT_MAX)
