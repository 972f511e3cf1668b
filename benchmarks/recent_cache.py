"""What keeping the newest episodes of each agent in RAM is worth, and what it costs where nobody reads them.

    python benchmarks/recent_cache.py

Each workload runs with the cache as it is by default (16 MiB) and with ``recent_cache_bytes=0``, side by side. In RAM
means that the episodes are in the engine's memtable; on disk, that they were compacted into tables before, which the
engine's block cache then holds.
"""

from __future__ import annotations

import argparse
from functools import partial
from random import Random
from statistics import median
from typing import NamedTuple

from _episodes import fresh_store, given, made
from _measure import Slices, console, interleave, machine, timed
from rich.table import Table

from qilbee_core import Episode, Store
from qilbee_core.memory.agent import AgentMemory

RECORD_BYTES = 500
RECENT = 10
SLICE = 100
SLICES = 10
EPISODES = 20_000
EACH_MIN, EACH_MAX = 20, 2000
"""Episodes that each agent has to begin with: as many as all agents share, within these bounds."""
HELPS_LEAST = 1.05
DEFAULT_BYTES = 16 << 20


class Workload(NamedTuple):
    """One way of using the memory of some agents."""

    name: str
    agents: int
    stores: int
    """Episodes stored in each operation."""
    reads: int
    """Calls of ``get_recent_episodes(10)`` in each operation."""
    on_disk: bool


WORKLOADS = (
    Workload("a turn: store 1, read 1", 1, 1, 1, on_disk=False),
    Workload("a turn: store 1, read 1", 1, 1, 1, on_disk=True),
    Workload("read-mostly: store 1, read 19", 1, 1, 19, on_disk=False),
    Workload("read-mostly: store 1, read 19", 1, 1, 19, on_disk=True),
    Workload("read only", 1, 0, 1, on_disk=False),
    Workload("read only", 1, 0, 1, on_disk=True),
    Workload("a turn of one of 200 agents", 200, 1, 1, on_disk=True),
    Workload("read one of 200 agents", 200, 0, 1, on_disk=True),
    Workload("read one of 3000 agents: more than fit", 3000, 0, 1, on_disk=True),
    Workload("store only", 1, 1, 0, on_disk=False),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds, each in fresh stores (default 9)")
    rounds = parser.parse_args().rounds
    console.print(machine())
    table = Table(title="microseconds an operation takes, median of rounds", title_justify="left")
    for heading in (
        "workload",
        "episodes",
        "cache on",
        "cache off",
        "off / on, wall",
        "CPU",
        "of rounds",
        "hits",
        "helps",
    ):
        table.add_column(heading, justify="right" if heading not in {"workload", "episodes"} else "left")
    for workload in WORKLOADS:
        row(table, workload, rounds)
    console.print(table)


def row(table: Table, workload: Workload, rounds: int) -> None:
    """Measure one workload."""
    hits: list[float] = []
    samples = interleave(
        {"on": partial(arm, workload, DEFAULT_BYTES, hits), "off": partial(arm, workload, 0, [])}, rounds
    )
    on, off = samples["on"], samples["off"]
    wall, cpu = median(off.wall_us) / median(on.wall_us), median(off.cpu_us) / median(on.cpu_us)
    each = [a / b for a, b in zip(off.wall_us, on.wall_us, strict=True)]
    table.add_row(
        workload.name,
        "on disk" if workload.on_disk else "in RAM",
        f"{median(on.wall_us):.1f}",
        f"{median(off.wall_us):.1f}",
        f"{wall:.2f}",
        f"{cpu:.2f}",
        f"{min(each):.2f} - {max(each):.2f}",
        f"{100 * median(hits):.0f} %" if workload.reads else "",
        "yes" if min(wall, cpu) >= HELPS_LEAST else "no",
    )


def arm(workload: Workload, recent_cache_bytes: int, hits: list[float]) -> Slices:
    """Fill a store, then work on it."""
    with fresh_store(recent_cache_bytes=recent_cache_bytes) as store:
        ids = [f"agent-{number:04d}" for number in range(workload.agents)]
        exchanges = given(RECORD_BYTES, min(EACH_MAX, max(EACH_MIN, EPISODES // workload.agents)))
        memories = [store.agent_memory(agent_id) for agent_id in ids]
        for agent_id, memory in zip(ids, memories, strict=True):
            memory.import_episodes(made(agent_id, exchanges))
        if workload.on_disk:
            store.compact()
        random = Random(1)
        for memory in memories:
            memory.get_recent_episodes(RECENT)
        before = figures(store)
        for _ in range(SLICES):
            chosen = [random.randrange(workload.agents) for _ in range(SLICE)]
            episodes = [made(ids[each], exchanges[:1] * workload.stores) for each in chosen]
            yield timed(partial(work, [memories[each] for each in chosen], episodes, workload.reads), SLICE)
        found, missed = (now - then for now, then in zip(figures(store), before, strict=True))
        hits.append(found / max(1, found + missed))


def work(memories: list[AgentMemory], episodes: list[list[Episode]], reads: int) -> None:
    """One operation for each memory."""
    for memory, new in zip(memories, episodes, strict=True):
        for episode in new:
            memory.store_episode(episode)
        for _ in range(reads):
            memory.get_recent_episodes(RECENT)


def figures(store: Store) -> tuple[int, int]:
    """Hits and misses so far."""
    tails = store._context.tails
    return tails.hits, tails.misses


if __name__ == "__main__":
    main()
