"""What forgetting and recalling cost, beside deleting and beside a small memory, in the same run.

    python benchmarks/lifecycle.py
    python benchmarks/lifecycle.py --episodes 100000

Forgetting is measured in slices of 500 episodes, 1 % of the large memory in all, with search off in every arm: from the
large memory, and from one that keeps 10,000. Beside it stands delete_episode() of as many ids, which are known.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from tempfile import TemporaryDirectory
from time import time_ns

from _episodes import conversations
from _measure import Arm, Slices, Target, comparison, console, interleave, machine, timed

from qilbee_core import Episode, SearchSettings, Settings, open_store
from qilbee_core.memory.agent import AgentMemory

AGENT = "support-desk"
KEPT_FEW = 10_000
SLICE = 500
RECALLS = 200
RECALL = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1_000_000, help="of the large memory (default 1000000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    arguments = parser.parse_args()
    console.print(machine())
    slices = max(arguments.rounds, arguments.episodes // 100 // SLICE)
    with ExitStack() as stack:
        few, thousand, many = (stack.enter_context(memory()) for _ in range(3))
        known = fill(many, arguments.episodes, slices)
        fill(few, KEPT_FEW, slices)
        fill(thousand, 1000, 0)
        averages(many)
        recalls(thousand, many, arguments.rounds, arguments.episodes)
        forgetting(few, many, known, slices, arguments.rounds)
        averages(many)


@contextmanager
def memory() -> Iterator[AgentMemory]:
    """A new memory on disk that reads do not change, gone afterwards."""
    with TemporaryDirectory(prefix="qilbee-bench-") as directory:
        settings = Settings(search=SearchSettings(indexing="off")).with_storage({"data_path": directory})
        with open_store(settings) as store:
            yield store.agent_memory(AGENT)


def fill(memory: AgentMemory, kept: int, slices: int) -> list[str]:
    """Fill it with ``kept`` episodes of at least half relevance, and slices of weaker ones here and there among them.

    Gives the ids of as many that are kept, from all over, to be deleted by id.
    """
    strengths = [0.5 + number % 50 / 100 for number in range(kept)]
    strengths += [weak(number // SLICE + 0.5, slices) for number in range(slices * SLICE)]
    Random(1).shuffle(strengths)
    known: list[str] = []

    def made() -> Iterator[Episode]:
        for strength, given in zip(strengths, conversations(500), strict=False):
            episode = Episode.conversation(
                AGENT, given.user_input, given.agent_response, metadata=given.metadata, relevance=strength
            )
            if strength >= 0.5:
                known.append(episode.id)
            yield episode

    memory.import_episodes(made())
    return Random(2).sample(known, min(kept, slices * SLICE))


def weak(slice_number: float, slices: int) -> float:
    """A relevance of the slice of that number."""
    return 0.4 * (slice_number + 1) / (slices + 1)


def forgetting(few: AgentMemory, many: AgentMemory, known: list[str], slices: int, rounds: int) -> None:
    """Forget slice after slice, and delete as many."""
    ids = iter(known)
    forgotten = [0, 0]

    def forget(memory: AgentMemory, which: int) -> Slices:
        for _ in range(slices // rounds):
            forgotten[which] += 1
            before = memory.get_statistics().total_episodes
            timing = timed(partial(memory.forget, weak(forgotten[which], slices)), SLICE)
            assert memory.get_statistics().total_episodes == before - SLICE
            yield timing

    def delete() -> Slices:
        for _ in range(slices // rounds):
            part = [next(ids) for _ in range(SLICE)]
            yield timed(partial(delete_all, part), SLICE)

    def delete_all(part: list[str]) -> None:
        for id_ in part:
            many.delete_episode(id_)

    total = many.get_statistics().total_episodes
    arms: dict[str, Arm] = {
        "delete_episode of known ids": delete,
        f"forget, {total:,} kept": partial(forget, many, 0),
        f"forget, {KEPT_FEW:,} kept": partial(forget, few, 1),
    }
    names = list(arms)
    comparison(
        "forgetting 1 %, for each episode",
        interleave(arms, rounds),
        [Target(names[1], names[0], 3.0), Target(names[2], names[0], 3.0), Target(names[1], names[2])],
    )


def recalls(thousand: AgentMemory, many: AgentMemory, rounds: int, episodes: int) -> None:
    """The most relevant ten."""

    def recall(memory: AgentMemory) -> Slices:
        for _ in range(10):
            yield timed(lambda: [memory.recall(RECALL) for _ in range(RECALLS)], RECALLS)

    small, large = (f"recall({RECALL}) of {number:,}" for number in (1000, episodes))
    samples = interleave({small: partial(recall, thousand), large: partial(recall, many)}, rounds)
    comparison("the most relevant", samples, [Target(large, small, 2.0)])


def averages(memory: AgentMemory) -> None:
    """avg_relevance beside the mean over all episodes, at one moment."""
    context = memory._operations._context
    now_ns = time_ns()
    context.clock_ns = lambda: now_ns
    told = memory.get_statistics()
    exact = math.fsum(episode.relevance for episode in memory.episodes()) / told.total_episodes
    context.clock_ns = time_ns
    console.print(
        f"avg_relevance of {told.total_episodes:,}: {told.avg_relevance:.12f}, of a full recomputation {exact:.12f}, "
        f"difference {abs(told.avg_relevance - exact):.1e} (target 1e-9)"
    )


if __name__ == "__main__":
    main()
