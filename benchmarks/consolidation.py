"""What our consolidation policies keep, find and cost.

    python benchmarks/consolidation.py --data locomo5.json
    python benchmarks/consolidation.py --only duplicates

``sessions`` needs conversations in LoCoMo's format, which are not part of this project. One turn is one episode of a
store, whose consolidate() summarises each session and supersedes its turns; an undo must bring all of them back. Both
before and after, memories are ranked for each question (categories 1 to 4): by a plain BM25 of this file, so that
nothing is tuned to the summaries, and by the hybrid search of a store. A turn that is evidence for the answer counts as
found

- before: when it is one of the ten best memories;
- after: when one of the ten best memories is made of it and holds one of its sentences word for word. A sentence here
  has three words or more, unless the turn has none so long. ``words`` counts it as the share of its words that are
  held in that way, which is stricter.

Tokens are words. Of a turn its text is counted without its speaker, of a summary everything, speakers and dates too.

*Lead* and *random* take sentences from the beginning of the session and from anywhere, as many as fit into the length
of our summary, and are written down in the same way, with speakers and dates.

``duplicates`` is shown pairs that a generator makes (near duplicates, and hard negatives that differ in one thing that
matters), each with its seed, and then 100 k episodes at once.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

import msgspec
from _duplicates import LOOSE, facts, pairs
from _measure import console, machine, verdict
from rich.table import Table

from qilbee_core import Episode, Settings, StorageSettings, open_store
from qilbee_core.policies.contract import plan_of
from qilbee_core.policies.duplicates import Duplicates
from qilbee_core.search.analysis import analyser

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IN_RAM = Settings(storage=StorageSettings(backend="ephemeral"))
TOP = 10
RANDOM_SEEDS = range(5)
FEWER_LEAST, BETTER_LEAST = 5.0, 1.2
PAIRS = 1000
PAIR_SEEDS = range(1, 6)
TOLD_APART_LEAST = 0.95
SIZES = (1_000, 10_000, 100_000)

_WORDS = re.compile(r"\w+").findall
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+").split


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file in LoCoMo's format, for sessions")
    parser.add_argument("--only", choices=["sessions", "duplicates"], help="one of the two")
    arguments = parser.parse_args()
    if arguments.data is None and arguments.only != "duplicates":
        parser.error("--data is needed for sessions")
    console.print(machine())
    if arguments.only != "duplicates":
        sessions([conversation(sample) for sample in msgspec.json.decode(arguments.data.read_bytes())])
    if arguments.only != "sessions":
        told_apart()
        loosely()
        at_scale()


# Sessions


class Turn(NamedTuple):
    """One turn of a conversation."""

    turn_id: str
    episode: Episode


class Conversation(NamedTuple):
    """One agent: turns, and questions with the ids of the turns that answer them."""

    turns: list[Turn]
    questions: list[tuple[str, frozenset[str]]]


class Memory(NamedTuple):
    """What is ranked: a text, and of which turns it holds how much."""

    episode: Episode
    text: str
    counted: str
    """What is counted of it: of a turn its text without the speaker, of a summary everything."""
    held: Mapping[str, float]
    """Turn -> share of its words; only turns of which a sentence counts."""


def conversation(sample: Any) -> Conversation:
    """What a user of the public API would store of one sample."""
    spoken = sample["conversation"]
    turns = []
    for key in sorted((key for key in spoken if re.fullmatch(r"session_\d+", key)), key=lambda key: int(key[8:])):
        began = datetime.strptime(spoken[f"{key}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
        for number, turn in enumerate(spoken[key]):
            shared = f" [shares {turn['blip_caption']}]" if turn.get("blip_caption") else ""
            episode = Episode(
                sample["sample_id"],
                "message",
                {"text": turn["text"] + shared},
                metadata={"speaker": turn["speaker"], "session_id": key},
                event_time=began + timedelta(seconds=number),
            )
            turns.append(Turn(turn["dia_id"], episode))
    known = {turn.turn_id for turn in turns}
    questions = []
    for question in sample["qa"]:
        evidence = frozenset(re.findall(r"D\d+:\d+", " ".join(question.get("evidence", [])))) & known
        if question["category"] in {1, 2, 3, 4} and evidence:
            questions.append((question["question"], evidence))
    return Conversation(turns, questions)


def sessions(conversations: Sequence[Conversation]) -> None:
    """Tokens and evidence recall, before and after, and with lead and random sentences in the place of ours."""
    stacks: dict[str, Callable[[Conversation], list[Memory]]] = {
        "before: every turn": every_turn,
        "sessions": summarised,
        "lead sentences": lambda each: replaced(each, lead),
    }
    for seed in RANDOM_SEEDS:
        stacks[f"random sentences, seed {seed}"] = lambda each, seed=seed: replaced(
            each, lambda found: shuffled(found, seed)
        )  # type: ignore[misc]
    measured = {name: recall(conversations, stack) for name, stack in stacks.items()}
    random = [measured.pop(f"random sentences, seed {seed}") for seed in RANDOM_SEEDS]
    measured["random sentences, mean of 5 seeds"] = Recall(
        tokens=fmean(each.tokens for each in random),
        characters=fmean(each.characters for each in random),
        searched=fmean(each.searched for each in random),
        recall=fmean(each.recall for each in random),
        words=fmean(each.words for each in random),
        each=[fmean(values) for values in zip(*(each.each for each in random), strict=True)],
    )
    whole, ours = measured["before: every turn"], measured["sessions"]
    table = Table(title=f"sessions: evidence recall@{TOP}", title_justify="left")
    for heading in (
        "",
        "tokens",
        "fewer",
        "characters fewer",
        "recall",
        "sessions / it",
        "words",
        "sessions / it",
        "by the store's search",
        "sessions / it",
        "by conversation",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for name, figures in measured.items():
        table.add_row(
            name,
            f"{figures.tokens:.0f}",
            f"{whole.tokens / figures.tokens:.2f}",
            f"{whole.characters / figures.characters:.2f}",
            f"{figures.recall:.3f}",
            f"{ours.recall / figures.recall:.2f}",
            f"{figures.words:.3f}",
            f"{ours.words / figures.words:.2f}",
            f"{figures.searched:.3f}",
            f"{ours.searched / figures.searched:.2f}",
            " ".join(f"{each:.3f}" for each in figures.each),
        )
    console.print(table)
    console.print(
        f"targets: at least {FEWER_LEAST:g} x fewer tokens; recall at least {BETTER_LEAST:g} x that of lead and random"
    )


class Recall(NamedTuple):
    """Of one stack, over all questions."""

    tokens: float
    characters: float
    recall: float
    words: float
    searched: float
    """Recall by the store's own search."""
    each: list[float]
    """Recall of each conversation."""


def recall(conversations: Sequence[Conversation], stack: Callable[[Conversation], list[Memory]]) -> Recall:
    """Rank what ``stack`` makes of each conversation for each of its questions."""
    tokens = characters = 0
    found: list[float] = []
    words: list[float] = []
    searched: list[float] = []
    each = []
    for talk in conversations:
        memories = stack(talk)
        tokens += sum(len(_WORDS(memory.counted)) for memory in memories)
        characters += sum(len(memory.counted) for memory in memories)
        rank = BM25([memory.text for memory in memories])
        first = len(found)
        with open_store(IN_RAM) as store:
            stored = store.agent_memory(memories[0].episode.agent_id)
            stored.import_episodes(memory.episode for memory in memories)
            by_id = {memory.episode.id: memory for memory in memories}
            for question, evidence in talk.questions:
                held: dict[str, float] = {}
                for number in rank.top(question, TOP):
                    held.update(memories[number].held)
                found.append(len(evidence & held.keys()) / len(evidence))
                words.append(sum(held.get(turn, 0.0) for turn in evidence) / len(evidence))
                turns = {turn for hit in stored.hybrid_search(question, TOP) for turn in by_id[hit.episode.id].held}
                searched.append(len(evidence & turns) / len(evidence))
        each.append(fmean(found[first:]))
    return Recall(tokens, characters, fmean(found), fmean(words), fmean(searched), each)


def every_turn(talk: Conversation) -> list[Memory]:
    """A memory for each turn."""
    texts = [(turn, text_of(turn.episode)) for turn in talk.turns]
    return [
        Memory(turn.episode, f"{turn.episode.metadata['speaker']}: {text}", text, {turn.turn_id: 1.0})
        for turn, text in texts
    ]


def consolidated(talk: Conversation) -> tuple[list[Episode], set[str]]:
    """The summaries that a store makes of a conversation, and the ids of the turns that it keeps beside them."""
    with open_store(IN_RAM) as store:
        memory = store.agent_memory(talk.turns[0].episode.agent_id)
        memory.import_episodes(turn.episode for turn in talk.turns)
        before = list(memory.episodes())
        result = memory.consolidate("sessions")
        after = list(memory.episodes())
        assert result.consolidation_id is not None
        memory.undo(result.consolidation_id)
        assert list(memory.episodes()) == before, "an undo brings back everything"
        assert store.verify().ok
    made = [episode for episode in after if episode.episode_type == "summary"]
    return made, {episode.id for episode in after} - {episode.id for episode in made}


def summarised(talk: Conversation) -> list[Memory]:
    """Derived and kept memories after ``sessions``."""
    turns = {turn.episode.id: turn for turn in talk.turns}
    made, kept = consolidated(talk)
    memories = [memory_of(each, text_of(each), [turns[source] for source in sources_of(each)]) for each in made]
    return memories + every_turn(Conversation([turns[id_] for id_ in sorted(kept)], []))


def sources_of(made: Episode) -> list[str]:
    """The ids of what a memory is made of."""
    return [str(source) for source in made.metadata["sources"]]  # type: ignore[union-attr]


Choice = Callable[[list[tuple[Turn, str]]], list[tuple[Turn, str]]]


def replaced(talk: Conversation, choice: Choice) -> list[Memory]:
    """As long as what ``sessions`` makes, of the sentences that ``choice`` puts first."""
    episodes = {turn.episode.id: turn for turn in talk.turns}
    memories = []
    for made in consolidated(talk)[0]:
        turns = [episodes[source] for source in sources_of(made)]
        heading = text_of(made).split("\n", 1)[0]
        sentences = [(turn, sentence) for turn in turns for sentence in sentences_of(turn.episode)]
        order = {id(pair): number for number, pair in enumerate(sentences)}
        chosen: list[tuple[Turn, str]] = []
        text = heading
        for pair in choice(sentences):
            longer = sorted([*chosen, pair], key=lambda each: order[id(each)])
            candidate = written(heading, longer)
            if len(candidate) <= len(text_of(made)):
                chosen, text = longer, candidate
        episode = Episode(made.agent_id, "summary", {"summary": text}, metadata=made.metadata, id=made.id)
        memories.append(memory_of(episode, text, turns))
    return memories


def lead(sentences: list[tuple[Turn, str]]) -> list[tuple[Turn, str]]:
    """As they were said."""
    return sentences


def shuffled(sentences: list[tuple[Turn, str]], seed: int) -> list[tuple[Turn, str]]:
    """In any order."""
    return Random(f"{seed} {sentences[0][0].turn_id}").sample(sentences, len(sentences))


def written(heading: str, sentences: Sequence[tuple[Turn, str]]) -> str:
    """As ``sessions`` writes it."""
    text, speaker = heading, None
    for turn, sentence in sentences:
        said = turn.episode.metadata["speaker"]
        text += f" {sentence}" if said == speaker else f"\n{said}: {sentence}"
        speaker = said
    return text


def memory_of(episode: Episode, text: str, turns: Sequence[Turn]) -> Memory:
    """What a summary of ``turns`` holds of each."""
    held = {}
    for turn in turns:
        sentences = sentences_of(turn.episode)
        counting = [each for each in sentences if len(_WORDS(each)) >= 3] or sentences
        inside = [each for each in counting if each in text]
        if inside:
            held[turn.turn_id] = sum(len(_WORDS(each)) for each in inside) / sum(len(_WORDS(each)) for each in counting)
    return Memory(episode, text, text, held)


def sentences_of(episode: Episode) -> list[str]:
    """The sentences of a turn, with single spaces."""
    return [" ".join(each.split()) for each in _SENTENCES(text_of(episode)) if _WORDS(each)]


def text_of(episode: Episode) -> str:
    """The one text of an episode."""
    (text,) = episode.content.values()
    assert isinstance(text, str)
    return text


class BM25:
    """Okapi BM25 with Snowball stems and without stop words; ties to the later text."""

    def __init__(self, texts: Sequence[str], *, k1: float = 0.9, b: float = 0.3) -> None:
        documents = [Counter(self._terms(text)) for text in texts]
        spread = Counter(term for document in documents for term in document)
        mean = fmean(document.total() for document in documents)
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, document in enumerate(documents):
            norm = k1 * (1 - b + b * document.total() / mean)
            for term, count in document.items():
                idf = math.log(1 + (len(texts) - spread[term] + 0.5) / (spread[term] + 0.5))
                self._postings[term].append((number, idf * count * (k1 + 1) / (count + norm)))

    def top(self, query: str, count: int) -> list[int]:
        """Numbers of the best texts, best first."""
        scores: dict[int, float] = defaultdict(float)
        for term in dict.fromkeys(self._terms(query)):
            for number, score in self._postings.get(term, ()):
                scores[number] += score
        return sorted(scores, key=lambda number: (-scores[number], -number))[:count]

    def _terms(self, text: str) -> list[str]:
        english = analyser("english")
        return english.stems(english.words(text))


# Duplicates


def told_apart() -> None:
    """Precision and recall of pairs, all offered at once and each pair alone."""
    table = Table(title=f"duplicates: {PAIRS} near duplicates and as many hard negatives", title_justify="left")
    for heading in ("seed", "offered", "precision", "recall", "target", "", "missed, by edit", "confused, by edit"):
        table.add_column(heading)
    for seed in PAIR_SEEDS:
        made = list(pairs(PAIRS, seed))
        offered = [[Episode.observation("bot", text, event_time=NOW) for text in pair[:2]] for pair in made]
        together = superseded([episode for pair in offered for episode in pair])
        for title, gone in (("together", [together] * len(made)), ("alone", [superseded(pair) for pair in offered])):
            found = [
                by.get(first.id, first.id) == by.get(second.id, second.id)
                for (first, second), by in zip(offered, gone, strict=True)
            ]
            right = sum(seen and pair.same for seen, pair in zip(found, made, strict=True))
            precision, recalled = right / max(1, sum(found)), right / PAIRS
            missed = Counter(
                edit for seen, pair in zip(found, made, strict=True) if pair.same and not seen for edit in pair.edits
            )
            confused = Counter(
                edit for seen, pair in zip(found, made, strict=True) if seen and not pair.same for edit in pair.edits
            )
            table.add_row(
                str(seed),
                title,
                f"{precision:.3f}",
                f"{recalled:.3f}",
                f">= {TOLD_APART_LEAST}",
                verdict(TOLD_APART_LEAST, min(precision, recalled)),
                " ".join(f"{edit} {count}" for edit, count in missed.most_common(3)),
                " ".join(f"{edit} {count}" for edit, count in confused.most_common(3)),
            )
    console.print(table)


def loosely() -> None:
    """Recall on edits that the policy was not made for; there is no target."""
    table = Table(title="duplicates: other edits", title_justify="left")
    for heading in ("edit", "pairs", "found"):
        table.add_column(heading)
    for name, edit in LOOSE.items():
        random = Random(1)
        source = facts(random)
        texts = dict.fromkeys(next(source) for _ in range(2 * PAIRS))
        edited = [(text, other) for text in texts if (other := edit(text, random)) not in {None, text}]
        offered = [[Episode.observation("bot", str(text), event_time=NOW) for text in pair] for pair in edited]
        gone = superseded([episode for pair in offered for episode in pair])
        found = fmean(gone.get(one.id, one.id) == gone.get(other.id, other.id) for one, other in offered)
        table.add_row(name, str(len(offered)), f"{found:.2f}")
    console.print(table)


def superseded(episodes: Sequence[Episode]) -> Mapping[str, str]:
    """What ``duplicates`` plans."""
    return plan_of(Duplicates(), episodes, now=NOW).supersede


def at_scale() -> None:
    """Seconds that one plan takes, by how many episodes are offered: it must not grow with the pairs."""
    table = Table(title="duplicates: one plan", title_justify="left")
    for heading in ("episodes", "superseded", "seconds of CPU", "us an episode"):
        table.add_column(heading, justify="right")
    for count in SIZES:
        source = facts(Random(count))
        again = [pair.second for pair in pairs(count // 8, count)]
        texts = [*again, *(next(source) for _ in range(count - len(again)))]
        episodes = [Episode.observation("bot", text, event_time=NOW) for text in texts]
        before = time.process_time()
        gone = superseded(episodes)
        taken_s = time.process_time() - before
        table.add_row(f"{count:,}", f"{len(gone):,}", f"{taken_s:.1f}", f"{1e6 * taken_s / count:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
