"""What the store costs beside the engine alone: ratios to raw rocksdict with the same bytes, in the same run.

    python benchmarks/store.py
    python benchmarks/store.py --rounds 25 --statistics-episodes 0

Every figure is of durability level "interval", with every index and counter on. The raw database has the options of
our backend, its log on and no sync. Episodes are made before the clock starts, save where their making is the figure.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from random import Random
from statistics import median, quantiles
from typing import Literal, TypeVar

from _episodes import RECORD_BYTES, Given, RawWrite, conversations, fresh_store, given, made, raw_database, recorded
from _measure import Arm, Slices, Target, comparison, console, interleave, machine, timed, verdict
from rich.table import Table

from qilbee_core import Episode
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.agent import AgentMemory

AGENT = "support-desk"
SLICE = 500
WARM_UP = 300
"""What is done before the clock starts: the first writes of a database allocate its memtable.

They are also enough for the recent episodes to be let go of, for nobody has read them.
"""
BATCH = 1000
RECENT = 10
READ_FROM = 20_000
BETWEEN_S = 0.001
STALL_MS_MOST = 2.0

T = TypeVar("T")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds, each in fresh databases (default 15)")
    parser.add_argument("--operations", type=int, default=4000, help="operations of a round (default 4000)")
    parser.add_argument("--only", choices=["store", "batch", "read", "stall", "statistics"], help="one part of it")
    parser.add_argument(
        "--statistics-episodes",
        type=int,
        default=1_000_000,
        help="episodes of the large store of get_statistics; 0 leaves it out (default 1000000)",
    )
    arguments = parser.parse_args()
    parts = {arguments.only} if arguments.only else {"store", "batch", "read", "stall", "statistics"}
    console.print(machine())
    for record_bytes in RECORD_BYTES:
        if "store" in parts:
            store_episode(record_bytes, arguments.rounds, arguments.operations)
        if "batch" in parts:
            store_episodes(record_bytes, arguments.rounds, arguments.operations)
        if "read" in parts:
            reads(record_bytes, arguments.rounds, arguments.operations)
    if "stall" in parts:
        stalls(arguments.rounds, arguments.operations)
    if "statistics" in parts and arguments.statistics_episodes:
        statistics(arguments.rounds, arguments.statistics_episodes)


def in_slices(work: Callable[[list[T]], object], items: list[T], before: Callable[[], object] = int) -> Slices:
    """Time ``work`` on a slice of ``items`` after another, and call ``before`` outside of the clock before each."""
    work(items[:WARM_UP])
    for at in range(WARM_UP, len(items) - SLICE + 1, SLICE):
        before()
        yield timed(partial(work, items[at : at + SLICE]), SLICE)


def store_episode(record_bytes: int, rounds: int, operations: int) -> None:
    """Episodes one at a time."""
    exchanges = given(record_bytes, operations + WARM_UP)
    writes = recorded(AGENT, exchanges)
    records = [write.record for write in writes]

    def raw_put() -> Slices:
        with raw_database() as database:
            put = database.put

            def work(pairs: list[tuple[bytes, bytes]]) -> None:
                for key, value in pairs:
                    put(key, value)

            yield from in_slices(work, records)

    def raw_batch() -> Slices:
        with raw_database() as database:

            def work(slice: list[RawWrite]) -> None:
                for write in slice:
                    write.to(database)

            yield from in_slices(work, writes)

    def store(*, read: bool = False, indexing: Literal["background", "off"] = "off") -> Slices:
        with fresh_store(indexing) as opened:
            memory = opened.agent_memory(AGENT)
            store_episode = memory.store_episode

            def work(episodes: list[Episode]) -> None:
                for episode in episodes:
                    store_episode(episode)

            yield from in_slices(work, made(AGENT, exchanges), memory.get_recent_episodes if read else int)

    def making() -> Slices:
        yield from in_slices(partial(made, AGENT), exchanges)

    arms: dict[str, Arm] = {
        "raw put of the record": raw_put,
        "raw batch of all keys": raw_batch,
        "store_episode": store,
        "store_episode, read meanwhile": partial(store, read=True),
        "store_episode, indexed meanwhile": partial(store, indexing="background"),
        "making the Episode": making,
    }
    bytes_mean = sum(len(value) for _, value in records) / len(records)
    keys_mean = sum(len(write.puts) + len(write.ranges) for write in writes) / len(writes)
    comparison(
        f"store_episode: records of {bytes_mean:.0f} bytes, {keys_mean:.2f} operations in each batch",
        interleave(arms, rounds),
        [
            Target("store_episode", "raw put of the record", 3.5),
            Target("store_episode", "raw batch of all keys", 1.8),
            Target("store_episode, read meanwhile", "raw put of the record", 3.5),
            Target("store_episode, read meanwhile", "raw batch of all keys", 1.8),
            Target("store_episode, indexed meanwhile", "store_episode", None),
            Target("making the Episode", "raw put of the record", None),
        ],
    )


def store_episodes(record_bytes: int, rounds: int, operations: int) -> None:
    """Episodes a thousand at a time. The raw batch has their records alone, without the keys that we add."""
    number = max(10, operations // BATCH)
    exchanges = given(record_bytes, BATCH * (1 + number))
    records = [write.record for write in recorded(AGENT, exchanges)]

    def in_batches(work: Callable[[list[T]], object], items: list[T]) -> Slices:
        work(items[:BATCH])
        for at in range(BATCH, len(items), BATCH):
            yield timed(partial(work, items[at : at + BATCH]), BATCH)

    def raw() -> Slices:
        with raw_database() as database:

            def work(pairs: list[tuple[bytes, bytes]]) -> None:
                RawWrite(pairs, []).to(database)

            yield from in_batches(work, records)

    def store() -> Slices:
        with fresh_store() as opened:
            yield from in_batches(opened.agent_memory(AGENT).store_episodes, made(AGENT, exchanges))

    comparison(
        f"store_episodes: batches of {BATCH}, records of about {record_bytes} bytes; for each episode",
        interleave({"raw batch of 1000 records": raw, "store_episodes": store}, rounds),
        [Target("store_episodes", "raw batch of 1000 records", 6.0)],
    )


def reads(record_bytes: int, rounds: int, operations: int) -> None:
    """Reading from the memtable, which holds the same in all arms."""
    exchanges = given(record_bytes, READ_FROM)
    writes = recorded(AGENT, exchanges)
    keys = [write.record[0] for write in writes]
    order = [Random(each).randrange(READ_FROM) for each in range(operations + WARM_UP)]
    low, high = AgentKeys(AGENT).range(Space.EPISODE)

    def raw(*, scan: bool) -> Slices:
        with raw_database() as database:
            for write in writes:
                write.to(database)
            get, iterator = database.get, database.iter

            def get_all(slice: list[int]) -> None:
                for each in slice:
                    get(keys[each])

            def scan_all(slice: list[int]) -> None:
                for _ in slice:
                    rows = iterator()
                    rows.seek_for_prev(high)
                    for _ in range(RECENT):
                        rows.key()
                        rows.value()
                        rows.prev()

            yield from in_slices(scan_all if scan else get_all, order)

    def store(work: Callable[[AgentMemory, list[str], list[int]], object], recent_cache_bytes: int) -> Slices:
        with fresh_store(recent_cache_bytes=recent_cache_bytes) as opened:
            memory = opened.agent_memory(AGENT)
            ids = [memory.store_episode(episode) for episode in made(AGENT, exchanges)]
            yield from in_slices(partial(work, memory, ids), order)

    def get_all(memory: AgentMemory, ids: list[str], slice: list[int]) -> None:
        get_episode = memory.get_episode
        for each in slice:
            get_episode(ids[each])

    def recent_all(memory: AgentMemory, ids: list[str], slice: list[int]) -> None:  # noqa: ARG001
        get_recent_episodes = memory.get_recent_episodes
        for _ in slice:
            get_recent_episodes(RECENT)

    arms: dict[str, Arm] = {
        "raw get": partial(raw, scan=False),
        "get_episode": partial(store, get_all, 16 << 20),
        "raw reverse scan of 10": partial(raw, scan=True),
        "get_recent_episodes(10)": partial(store, recent_all, 16 << 20),
        "get_recent_episodes(10), cache off": partial(store, recent_all, 0),
    }
    assert low <= keys[0] < high
    comparison(
        f"reading from a memtable of {READ_FROM} records of about {record_bytes} bytes",
        interleave(arms, rounds),
        [
            Target("get_episode", "raw get", 5.0),
            Target("get_recent_episodes(10)", "raw reverse scan of 10", 5.0),
            Target("get_recent_episodes(10), cache off", "raw reverse scan of 10", 5.0),
        ],
    )


def stalls(rounds: int, operations: int) -> None:
    """What one call takes by the clock, with a moment between calls as in a conversation, and indexing meanwhile."""
    exchanges = given(RECORD_BYTES[0], operations)
    percentiles: dict[str, list[tuple[float, float]]] = {"off": [], "background": []}
    for _ in range(rounds):
        for indexing, found in percentiles.items():
            with fresh_store(indexing) as opened:  # type: ignore[arg-type]
                memory, took_ms = opened.agent_memory(AGENT), []
                for episode in made(AGENT, exchanges):
                    time.sleep(BETWEEN_S)
                    began_s = time.perf_counter()
                    memory.store_episode(episode)
                    took_ms.append(1000 * (time.perf_counter() - began_s))
            hundredths = quantiles(took_ms, n=100)
            found.append((hundredths[49], hundredths[98]))
    table = Table(title=f"store_episode every {1000 * BETWEEN_S:g} ms: one call", title_justify="left")
    for heading in ("search.indexing", "ms p50", "ms p99", "target of p99", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for indexing, found in percentiles.items():
        p50, p99 = (median(column) for column in zip(*found, strict=True))
        most = STALL_MS_MOST if indexing == "background" else None
        table.add_row(indexing, f"{p50:.3f}", f"{p99:.3f}", "" if most is None else f"<= {most:g}", verdict(p99, most))
    console.print(table)


def statistics(rounds: int, episodes: int) -> None:
    """The same call on a small store and on a large one, each written once and compacted."""
    small, large = (f"get_statistics of {number:,} episodes" for number in (1000, episodes))
    with fresh_store() as few, fresh_store() as many:
        for store, number in ((few, 1000), (many, episodes)):
            source = conversations(RECORD_BYTES[1])
            store.agent_memory(AGENT).import_episodes(episode_of(next(source)) for _ in range(number))
            store.compact()

        def arm(memory: AgentMemory) -> Slices:
            def work(slice: list[int]) -> None:
                for _ in slice:
                    memory.get_statistics()

            yield from in_slices(work, list(range(WARM_UP + 10 * SLICE)))

        comparison(
            "get_statistics: the same at any number of episodes",
            interleave(
                {small: partial(arm, few.agent_memory(AGENT)), large: partial(arm, many.agent_memory(AGENT))}, rounds
            ),
            [Target(large, small, 1.25)],
        )


def episode_of(exchange: Given) -> Episode:
    """One episode of now."""
    return made(AGENT, [exchange])[0]


if __name__ == "__main__":
    main()
