"""How well search finds the evidence: conversations with questions whose evidence is known.

    python benchmarks/retrieval.py --data locomo5.json
    python benchmarks/retrieval.py --data locomo5.json --embedder minilm

The data is in the format of LoCoMo and no part of this project. Every turn is stored as one episode, by the public
names: what was said and what a shared picture shows, the speaker and the session in its metadata, its event time
that of the session and twenty seconds for each turn before. A question's evidence shall be among the first it
finds in the memory of its conversation. Beside it:

    substring  turns that hold the whole query
    BM25       plain: k1 0.9, b 0.3, stemmed, stop words out; the speaker's name before the text, so that it knows
               what we know

R@k is the share of a question's evidence among the first k, nDCG and MRR are of the first ten, and all are means
over the questions of a category. ``--unknown`` leaves out speakers, sessions, or both. ``--embedder`` asks the same
store once more after it was re-embedded with that one, whose settings come from the environment
(``QILBEE_SEARCH_EMBEDDERS``), and says what that took.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import msgspec
from _measure import console, machine
from rich.table import Table

from qilbee_core import AgentMemory, Episode, open_store
from qilbee_core.search.analysis import analyser

CATEGORIES = {1: "several turns", 2: "time", 3: "inference", 4: "one turn"}
TURN = timedelta(seconds=20)
K1, B = 0.9, 0.3
DEPTH = 10


class Question(NamedTuple):
    """A question and the ids of the episodes that answer it."""

    text: str
    category: int
    evidence: frozenset[str]


class Conversation(NamedTuple):
    """One agent's memory."""

    name: str
    episodes: list[Episode]
    questions: list[Question]


class Figures(NamedTuple):
    """How well one question was answered."""

    recall_5: float
    recall_10: float
    ndcg: float
    reciprocal_rank: float


Stack = Callable[[str], Sequence[str]]
"""The ids of the first ten for a query, best first."""


class Turn(msgspec.Struct):
    """A turn of the data."""

    speaker: str
    dia_id: str
    text: str
    blip_caption: str = ""


def conversations(path: Path, unknown: frozenset[str]) -> Iterator[Conversation]:
    """All of the data, without the metadata that ``unknown`` names."""
    for sample in json.loads(path.read_text()):
        talk, episodes, ids = sample["conversation"], [], {}
        sessions = [int(key[len("session_") :]) for key in talk if re.fullmatch(r"session_\d+", key)]
        for session in sorted(sessions):
            begin = datetime.strptime(talk[f"session_{session}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
            for number, turn in enumerate(msgspec.convert(talk[f"session_{session}"], list[Turn])):
                text = f"{turn.text} [shares {turn.blip_caption}]" if turn.blip_caption else turn.text
                metadata = {"speaker": turn.speaker, "session_id": str(session)}
                episode = Episode.observation(
                    sample["sample_id"],
                    text,
                    metadata={key: value for key, value in metadata.items() if key not in unknown},
                    event_time=begin + number * TURN,
                )
                episodes.append(episode)
                ids[turn.dia_id] = episode.id
        questions = []
        for asked in sample["qa"]:
            named = [name for each in asked.get("evidence", ()) for name in re.findall(r"D\d+:\d+", each)]
            evidence = frozenset(ids[name] for name in named if name in ids)
            if asked["category"] in CATEGORIES and evidence:
                questions.append(Question(asked["question"], asked["category"], evidence))
        yield Conversation(sample["sample_id"], episodes, questions)


def substring(episodes: list[Episode]) -> Stack:
    """Newest first, as a search without ranking would."""
    texts = [(str(each.content["observation"]).lower(), each.id) for each in reversed(episodes)]
    return lambda query: [number for text, number in texts if query.lower() in text][:DEPTH]


def plain_bm25(episodes: list[Episode]) -> Stack:
    """Robertson's formula over stems, with nothing around it."""
    english = analyser("english")
    texts = [f"{each.metadata.get('speaker', '')} {each.content['observation']}" for each in episodes]
    stems = [english.stems(english.words(text)) for text in texts]
    average = mean(map(len, stems))
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, words in enumerate(stems):
        for stem, count in Counter(words).items():
            gain = count * (K1 + 1) / (count + K1 * (1 - B + B * len(words) / average))
            postings[stem].append((number, gain))

    def ask(query: str) -> list[str]:
        scores: dict[int, float] = defaultdict(float)
        for stem in dict.fromkeys(english.stems(english.words(query))):
            found = postings.get(stem, ())
            idf = math.log(1 + (len(stems) - len(found) + 0.5) / (len(found) + 0.5))
            for number, gain in found:
                scores[number] += idf * gain
        best = sorted(scores, key=lambda number: (scores[number], number), reverse=True)
        return [episodes[number].id for number in best[:DEPTH]]

    return ask


def stacks_of(memory: AgentMemory, episodes: list[Episode]) -> dict[str, Stack]:
    """What is compared, by name."""
    return {
        "substring": substring(episodes),
        "BM25": plain_bm25(episodes),
        "keyword": lambda query: [each.id for each in memory.search_episodes(query, DEPTH)],
        **stacks_of_meaning(memory),
    }


def stacks_of_meaning(memory: AgentMemory, embedder: str = "") -> dict[str, Stack]:
    """What an embedder makes a difference to."""
    return {
        f"semantic{embedder}": lambda query: [each.episode.id for each in memory.semantic_search(query, DEPTH)],
        f"hybrid{embedder}": lambda query: [each.episode.id for each in memory.hybrid_search(query, DEPTH)],
    }


def judged(found: Sequence[str], evidence: frozenset[str]) -> Figures:
    """The figures of one answer."""
    ranks = [rank for rank, each in enumerate(found) if each in evidence]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(DEPTH, len(evidence))))
    return Figures(
        sum(rank < 5 for rank in ranks) / len(evidence),
        len(ranks) / len(evidence),
        sum(1 / math.log2(rank + 2) for rank in ranks) / ideal,
        1 / (ranks[0] + 1) if ranks else 0.0,
    )


def averaged(figures: list[Figures]) -> list[str]:
    """Cells: the mean of each."""
    return [f"{mean(each):.3f}" for each in zip(*figures, strict=True)]


def main() -> None:
    """Ask everything, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="conversations in the format of LoCoMo")
    parser.add_argument("--unknown", nargs="+", choices=["speaker", "session_id"], default=[], help="leave these out")
    parser.add_argument("--embedder", help="ask with this one too")
    options = parser.parse_args()
    by_category: dict[str, dict[int, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    by_conversation: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = defaultdict(float)

    def ask_all(conversation: Conversation, stacks: dict[str, Stack]) -> None:
        for name, ask in stacks.items():
            ask("warm up")
            for question in conversation.questions:
                started = time.perf_counter()
                found = ask(question.text)
                seconds[name] += time.perf_counter() - started
                figures = judged(found, question.evidence)
                by_category[name][question.category].append(figures)
                by_conversation[name][conversation.name].append(figures)

    asked: list[tuple[Conversation, AgentMemory]] = []
    with open_store(backend="ephemeral") as store:
        for conversation in conversations(options.data, frozenset(options.unknown)):
            memory = store.agent_memory(conversation.name)
            for start in range(0, len(conversation.episodes), 500):
                memory.store_episodes(conversation.episodes[start : start + 500])
            asked.append((conversation, memory))
            ask_all(conversation, stacks_of(memory, conversation.episodes))
        if options.embedder:
            started = time.perf_counter()
            made = store.reembed(options.embedder)
            took_ms = 1e3 * (time.perf_counter() - started)
            for conversation, memory in asked:
                ask_all(conversation, stacks_of_meaning(memory, f", {options.embedder}"))
    console.print(machine())
    if options.embedder:
        console.print(f"{made:,} vectors of {options.embedder}, {took_ms / made:.1f} ms each")
    table = Table(title="evidence found", title_justify="left")
    for heading in ("", "questions", "R@5", "R@10", "nDCG@10", "MRR", "ms a question"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, categories in by_category.items():
        everything = [figures for each in categories.values() for figures in each]
        milliseconds = f"{1e3 * seconds[name] / len(everything):.2f}"
        table.add_row(f"[bold]{name}[/]", str(len(everything)), *averaged(everything), milliseconds)
        for number, label in CATEGORIES.items():
            if categories[number]:
                table.add_row(f"  {label}", str(len(categories[number])), *averaged(categories[number]))
        table.add_section()
    console.print(table)
    table = Table(title="R@10 by conversation", title_justify="left")
    table.add_column("")
    for conversation_name in by_conversation["BM25"]:
        table.add_column(conversation_name, justify="right")
    for name, found_in in by_conversation.items():
        table.add_row(name, *(f"{mean(each.recall_10 for each in figures):.3f}" for figures in found_in.values()))
    console.print(table)


if __name__ == "__main__":
    main()
