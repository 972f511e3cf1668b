"""The index of one agent's memory, in RAM, made of forward rows and nothing else.

It can be kept up row by row or be made anew of all rows: both give the same answers to the last bit. Whatever is
summed is summed in the order of the question, or as integers; whatever ties is ordered by recency.

**Threads.** ``add``, ``remove`` and ``load`` want to be alone: hold one lock around them and around every search.
Searches may run beside each other; they change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qilbee_core.search.columns import Columns
from qilbee_core.search.lexicon import Lexicon
from qilbee_core.search.postings import ONCE, Postings
from qilbee_core.search.rows import EPISODE_TYPES, Row, unpack, unpack_all
from qilbee_core.search.timeline import Timeline
from qilbee_core.search.vectors import VectorIndex

__all__ = ["RARE", "TIME_WORDS_MAX", "AgentIndex", "Forward", "Terms", "Turns"]

COUNT_MAX = 255
"""A word counts so often in a turn at most."""
RARE = -1
_LONG_COUNT_BITS = 32
TIME_WORDS_MAX = 2
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
        self._clear()

    def _clear(self) -> None:
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
        self.speakers: dict[str, int] = {}
        """Number of each speaker; 0 is nobody in particular."""
        self.turns_of_speaker: list[int] = [0]
        self.speakers_of_word: dict[int | str, set[int]] = {}
        """Stem -> the speakers whose name has it."""
        self.episode_types: dict[str, int] = {name: number for number, name in enumerate(EPISODE_TYPES)}
        self.live_turns = 0
        self.live_words = 0

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
        starts = self.turns.entries_end[turns - 1].astype(np.int64)
        sizes = self.turns.entries_end[turns] - starts
        owners = np.repeat(np.arange(len(turns)), sizes)
        where = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(len(owners))
        return owners, self.forward.term[where], self.forward.counts[where]

    def turns_of(self, id_bytes: bytes) -> range:
        """The turns of an episode, one after another; none where it is not known."""
        return self.timeline.turns_of(id_bytes)

    def ids(self) -> Iterator[bytes]:
        """All episodes, those first that came last."""
        return self.timeline.ids()

    def add(self, id_bytes: bytes, row: Row) -> None:
        """Index an episode, in place of what was known of it."""
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
            number = turns.extend(1)
            turns.episode_type[number] = kind
            turns.memory_type[number] = row.memory_type
            turns.length[number] = length
            if not time_words.isdisjoint(said):
                turns.time_words[number] = min(TIME_WORDS_MAX, sum([word in time_words for word in said]))
            self._add_terms(number, counts)
            self.live_words += length
        self.live_turns += len(row.turns)

    def _add_terms(self, number: int, counts: dict[int | str, int]) -> None:
        terms = []
        known, add = self.numbers, self.postings.add
        for stem, each in counts.items():
            term = known.get(stem)
            if term is None:
                term = known[stem] = self.terms.extend(1)
                self.terms.stem[term] = stem if isinstance(stem, int) else RARE
                self.stems.append(stem)
            terms.append(term)
            add(number, term, each)
        self.terms.frequency[terms] += 1
        start = self.forward.extend(len(terms))
        self.turns.entries_end[number] = stop = start + len(terms)
        here = slice(start, stop)
        self.forward.term[here] = terms
        self.forward.counts[here] = list(counts.values())

    def put(self, id_bytes: bytes, row: Row | None) -> None:
        """Index an episode as it is now, which may be gone."""
        if row is None:
            self.remove(id_bytes)
        else:
            self.add(id_bytes, row)

    def remove(self, id_bytes: bytes) -> bool:
        """Forget an episode; False where it is not known. What only it said is gone from RAM too."""
        turns = self.turns_of(id_bytes)
        if not turns:
            return False
        if self.vectors is not None:
            self.vectors.remove(id_bytes)
        for turn in turns:
            terms = self.forward.term[self.turns.entries_end[turn - 1] : self.turns.entries_end[turn]]
            self.terms.frequency[terms] -= 1
            for term in terms[self.terms.frequency[terms] == 0].tolist():
                del self.numbers[self.stems[term]]
                self.stems[term] = ""
                self.postings.drop(term)
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
        ids: list[bytes] = []
        sessions: list[str | None] = []
        kinds: list[int] = []
        memory_types: list[int] = []
        turns_in: list[int] = []
        speakers: list[str | None] = []
        said: list[bytes] = []
        asked: list[bytes] = []
        rare_said: list[str] = []
        rare_asked: list[str] = []
        for id_bytes, row in rows:
            ids.append(id_bytes)
            sessions.append(row.session)
            kind = row.episode_type
            kinds.append(kind if isinstance(kind, int) else self._episode_type(kind))
            memory_types.append(row.memory_type)
            turns_in.append(len(row.turns))
            for turn in row.turns:
                speakers.append(turn.speaker)
                said.append(turn.said)
                asked.append(turn.asked)
                rare_said.append(turn.rare_said)
                rare_asked.append(turn.rare_asked)
        if not ids:
            return
        in_row = np.array(turns_in)
        numbers: dict[int | str, int] = {}
        of_said, stem_said, time_words = self._words(said, rare_said, numbers)
        of_asked, stem_asked, _ = self._words(asked, rare_asked, numbers)
        of_turn = np.concatenate([of_said, of_asked])
        stem = np.concatenate([stem_said, stem_asked])
        is_asked = np.concatenate([np.zeros(len(of_said), np.int64), np.ones(len(of_asked), np.int64)])
        # One entry for each stem of a turn, with its counts: equal ones stand together once they are sorted.
        stems = [*range(len(self.lexicon.numbers)), *numbers]
        keys = np.sort((of_turn * len(stems) + stem) << 1 | is_asked)
        first = np.flatnonzero(np.diff(keys >> 1, prepend=-1))
        counts = np.minimum(np.diff(first, append=len(keys)), COUNT_MAX)
        asked_counts = np.minimum(np.add.reduceat(keys & 1, first), COUNT_MAX) if len(keys) else counts
        entry_turn, entry_stem = np.divmod(keys[first] >> 1, len(stems))
        self._fill(
            ids=ids,
            sessions=sessions,
            turns_in=in_row,
            speakers=speakers,
            length=np.bincount(of_turn, minlength=len(said)),
            time_words=np.minimum(time_words, TIME_WORDS_MAX),
            episode_type=np.repeat(kinds, in_row),
            memory_type=np.repeat(memory_types, in_row),
            entry_turn=entry_turn,
            entry_term=entry_stem,
            stems=stems,
            counts=counts << 8 | asked_counts,
        )

    def _words(
        self, packed: list[bytes], rare: list[str], numbers: dict[int | str, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For each word of some turns the turn and the stem; for each turn how many words of time it has.

        Stems that are not shipped are numbered behind those that are.
        """
        in_turn, words = unpack_all(packed)
        turn = np.repeat(np.arange(len(packed)), in_turn)
        stem = self.lexicon.stem_of_word_array[words].astype(np.int64)
        time_words = np.bincount(turn[self.lexicon.is_time_word[words]], minlength=len(packed))
        found = " ".join(filter(None, rare)).split(" ") if any(rare) else []
        different = list(dict.fromkeys(found))
        shipped = len(self.lexicon.numbers)
        number_of = {
            word: each if isinstance(each, int) else shipped + numbers.setdefault(each, len(numbers))
            for word, each in zip(different, self.lexicon.stems_of(different), strict=True)
        }
        rare_in_turn = [line.count(" ") + 1 if line else 0 for line in rare]
        return (
            np.concatenate([turn, np.repeat(np.arange(len(rare)), rare_in_turn)]),
            np.concatenate([stem, np.array([number_of[word] for word in found], np.int64)]),
            time_words,
        )

    def _fill(
        self,
        *,
        ids: list[bytes],
        sessions: list[str | None],
        turns_in: NDArray[np.int64],
        speakers: list[str | None],
        length: NDArray[np.int64],
        time_words: NDArray[np.int64],
        episode_type: NDArray[np.int64],
        memory_type: NDArray[np.int64],
        entry_turn: NDArray[np.int64],
        entry_term: NDArray[np.int64],
        stems: list[int | str],
        counts: NDArray[np.int64],
    ) -> None:
        """Make an empty index of episodes, of their turns (``speakers`` and what follows), and of the entries.

        An entry is a term of a turn; they are sorted by turn, the first of which is 0 there. ``entry_term`` is a
        position in ``stems``; those that do not occur are left out.
        """
        number_of_turns = len(speakers)
        first = self.timeline.extend(number_of_turns)
        self.turns.extend(number_of_turns)
        here = slice(first, first + number_of_turns)
        self.timeline.speaker[here] = [self._speaker(name) for name in speakers]
        self.timeline.load(ids, sessions, turns_in)
        used = np.flatnonzero(np.bincount(entry_term, minlength=len(stems)))
        new_number = np.zeros(len(stems), np.int32)
        new_number[used] = np.arange(len(used))
        self.stems = [stems[each] for each in used.tolist()]
        self.numbers = {stem: number for number, stem in enumerate(self.stems)}
        self.turns.length[here] = length
        self.turns.time_words[here] = time_words
        self.turns.episode_type[here] = episode_type
        self.turns.memory_type[here] = memory_type
        self.turns.entries_end[here] = np.cumsum(np.bincount(entry_turn, minlength=number_of_turns))
        self.forward.extend(len(entry_term))
        self.forward.term[: len(entry_term)] = term = new_number[entry_term]
        self.forward.counts[: len(entry_term)] = counts
        self.postings.load(entry_turn + first, term, counts, len(used))
        frequency = np.bincount(term, minlength=len(used))
        self.terms.extend(len(used))
        self.terms.frequency[: len(used)] = frequency
        self.terms.stem[: len(used)] = [stem if isinstance(stem, int) else RARE for stem in self.stems]
        self.live_turns = number_of_turns
        self.live_words = int(length.sum())

    def _compact(self) -> None:
        """Make the index of itself anew, without what was removed."""
        turns, timeline, stems = self.turns, self.timeline, self.stems
        names: dict[int, str | None] = {number: name for name, number in self.speakers.items()}
        ids, kinds = sorted(self.ids()), self.episode_types
        if not ids:
            self._clear()
            return
        in_episode = [self.turns_of(id_bytes) for id_bytes in ids]
        sessions = [timeline.name_of_session(each[0]) for each in in_episode]
        kept = np.array([turn for each in in_episode for turn in each], np.int64)
        sizes = np.array([len(each) for each in in_episode])
        entry_turn, entry_term, counts = self.entries(kept)
        self._clear()
        self.episode_types = kinds
        self._fill(
            ids=ids,
            sessions=sessions,
            turns_in=sizes,
            speakers=[names.get(number) for number in timeline.speaker[kept].tolist()],
            length=turns.length[kept].astype(np.int64),
            time_words=turns.time_words[kept].astype(np.int64),
            episode_type=turns.episode_type[kept].astype(np.int64),
            memory_type=turns.memory_type[kept].astype(np.int64),
            entry_turn=entry_turn,
            entry_term=entry_term.astype(np.int64),
            stems=stems,
            counts=counts.astype(np.int64),
        )

    def _episode_type(self, kind: int | str) -> int:
        return kind if isinstance(kind, int) else self.episode_types.setdefault(kind, len(self.episode_types))

    def _speaker(self, name: str | None) -> int:
        """The number of a speaker, who has one turn more."""
        if name is None:
            return 0
        number = self.speakers.get(name)
        if number is None:
            number = self.speakers[name] = len(self.turns_of_speaker)
            self.turns_of_speaker.append(0)
            words = self.lexicon.stems_of(self.lexicon.language.words(name))
            for word in words:
                self.speakers_of_word.setdefault(word, set()).add(number)
        self.turns_of_speaker[number] += 1
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
