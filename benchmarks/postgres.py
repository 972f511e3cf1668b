"""Stores on PostgreSQL, as ratios to bare psycopg on the same server: ``python benchmarks/postgres.py postgresql://...``.

The URL names a database that may be written to; its tables ``bench_*`` are made and dropped. Both sides commit
asynchronously, as at durability ``interval``, and put the same rows; search is off.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from statistics import median

import psycopg

from qilbee_core import Episode, Put, SearchSettings, Settings, Store, WriteBatch, open_store

STORES, ROUNDS, THREADS, BATCH = 160, 21, 16, 1000
TEXT = "The parcel for the harbour office left at noon; ask for the blue door. " * 6
PUT = (
    "insert into bench_raw (k, v) select * from unnest(%b::bytea[], %b::bytea[]) "
    "on conflict (k) do update set v = excluded.v"
)
numbers = count()


def episode(agent: str) -> Episode:
    """One of some 500 bytes."""
    return Episode.observation(agent, f"{TEXT}{next(numbers)}")


def rate(threads: int, work: Callable[[int], object], times: int) -> float:
    """Calls of ``work`` a second, by so many threads."""

    def run(thread: int) -> None:
        for _ in range(times // threads):
            work(thread)

    workers = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return times // threads * threads / (time.perf_counter() - began)


def rows_of(store: Store) -> list[tuple[int, int]]:
    """Bytes of each key and value that one store of an episode writes; the head of the agent is the last."""
    backend, sizes = store._backend, []
    write = backend.write

    def noting(batch: WriteBatch) -> None:
        sizes.append([(len(each.key), len(each.value)) for each in batch.operations if isinstance(each, Put)])
        write(batch)

    backend.write = noting  # type: ignore[method-assign]
    memory = store.agent_memory("rows")
    for _ in range(3):
        memory.store_episode(episode("rows"))
    backend.write = write  # type: ignore[method-assign]
    return sizes[-1]


def main(url: str) -> None:
    """Measure, and print each figure with the least and the greatest of its rounds."""
    settings = Settings(search=SearchSettings(indexing="off"))
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("drop table if exists bench_store, bench_store_marker, bench_raw, bench_cas")
        admin.execute("create table bench_raw (k bytea primary key, v bytea not null)")
        admin.execute("create table bench_cas (k bytea primary key, v bytea not null)")
        admin.execute("insert into bench_cas values ('a', '0')")
    raws = [psycopg.connect(url, autocommit=True, prepare_threshold=0) for _ in range(THREADS)]
    for raw in raws:
        raw.execute("set synchronous_commit = off")
    with open_store(settings, dsn=url, backend="postgres", engine={"table": "bench_store"}) as store:
        *fresh, (head_bytes, _) = sizes = rows_of(store)
        values = [b"x" * value_bytes for _, value_bytes in sizes]
        memories = [store.agent_memory(f"agent {thread}") for thread in range(THREADS)]
        shared = store.agent_memory("shared")
        for memory in (*memories, shared):
            memory.store_episode(episode(memory.agent_id))

        def bare(thread: int) -> None:
            number = next(numbers)
            keys = [b"%x%d %0*d" % (thread, row, key_bytes - 3, number) for row, (key_bytes, _) in enumerate(fresh)]
            raws[thread].execute(PUT, ([*keys, (b"%x head" % thread).ljust(head_bytes)], values))

        def swap(thread: int) -> None:
            raw = raws[thread]
            while True:
                row = raw.execute("select v from bench_cas where k = 'a'", binary=True).fetchone()
                assert row is not None
                new = b"%d" % (int(row[0]) + 1)
                if raw.execute("update bench_cas set v = %b where k = 'a' and v = %b", (new, row[0])).rowcount:
                    return

        arms: dict[str, Callable[[], float]] = {
            "bare, 1 thread": lambda: rate(1, bare, STORES),
            "store, 1 thread": lambda: rate(1, lambda _: memories[0].store_episode(episode("agent 0")), STORES),
            "bare, 16 threads": lambda: rate(THREADS, bare, 2 * STORES),
            "store, 16 threads, 16 agents": lambda: rate(
                THREADS, lambda n: memories[n].store_episode(episode(f"agent {n}")), 2 * STORES
            ),
            "bare compare-and-set, 16 threads, 1 row": lambda: rate(THREADS, swap, STORES),
            "store, 16 threads, 1 agent": lambda: rate(
                THREADS, lambda _: shared.store_episode(episode("shared")), STORES
            ),
            "batches of 1000, episodes": lambda: (
                BATCH * rate(1, lambda _: memories[1].store_episodes([episode("agent 1") for _ in range(BATCH)]), 1)
            ),
        }
        seen: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(ROUNDS + 1):
            for name, arm in arms.items():
                figure = arm()
                if number:  # the first one warms up
                    seen[name].append(figure)
        for name, figures in seen.items():
            print(f"{name:42} {median(figures):9.0f}/s  ({min(figures):.0f} to {max(figures):.0f})")
        for name, ours, theirs, least in (
            ("1 thread / bare", "store, 1 thread", "bare, 1 thread", 0.6),
            ("16 threads / bare", "store, 16 threads, 16 agents", "bare, 16 threads", 0.6),
            (
                "16 threads on one agent / compare-and-set",
                "store, 16 threads, 1 agent",
                "bare compare-and-set, 16 threads, 1 row",
                0.8,
            ),
        ):
            ratios = [one / other for one, other in zip(seen[ours], seen[theirs], strict=True)]
            word = "reached" if median(ratios) >= least else "missed"
            print(f"{name:42} {median(ratios):9.2f}  ({min(ratios):.2f} to {max(ratios):.2f})  target {least}: {word}")
        assert store.verify().problems == []
    for raw in raws:
        raw.close()


if __name__ == "__main__":
    main(sys.argv[1])
