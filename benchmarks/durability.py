"""What durability costs, and how much of it group commit gives back: ratios within one run.

    python benchmarks/durability.py
    python benchmarks/durability.py --only slow --rounds 11

Four parts. "slow": every fsync takes 2 ms longer, in all arms, as on a disk without a cache of its own; the shim of
tests/crash does that, so this part needs a C compiler. "disk": syncs as this disk does them. "stall": every fsync takes
200 ms, and another thread looks at the clock. "interval": what a background sync costs a writer, beside none at all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

import plyvel  # type: ignore[import-untyped]
from _episodes import fresh_store, given, made, raw_database, recorded
from _measure import Arm, Slices, Timing, console, interleave, machine
from rich.table import Table
from rocksdict import WriteOptions

from qilbee_core import AgentMemory, AsyncAgentMemory, AsyncStore, BackendOptions, Episode
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.durability import Durability

AGENT = "support-desk"
RECORD_BYTES = 500
THREADS = 32
TASKS = 128
SLICES = 4
WARM_UP = 64
SLOW_MS = 2
FROZEN_MS = 200
STALL_MS_MAX = 50.0
SHIM = Path(__file__).parents[1] / "tests" / "crash" / "shim.c"
SYNC = 2
"""The bit of syncs in the shim's numbering of calls."""


class Ratio(NamedTuple):
    """``arm`` does at least ``least`` times as many operations a second as ``floor``; None asks for nothing."""

    arm: str
    floor: str
    least: float | None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds, each in fresh databases (default 7)")
    parser.add_argument("--operations", type=int, default=12_800, help="writes of an arm in a round (default 12800)")
    parser.add_argument("--only", choices=["slow", "disk", "stall", "interval"], help="one part of it")
    parser.add_argument("--under-shim", choices=["slow", "stall"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.under_shim == "slow":
        slow(arguments.rounds, arguments.operations)
        return
    if arguments.under_shim == "stall":
        stall()
        return
    console.print(machine())
    for part in [arguments.only] if arguments.only else ["slow", "disk", "stall", "interval"]:
        if part in {"slow", "stall"}:
            under_shim(part, arguments)
        elif part == "disk":
            disk(arguments.rounds, arguments.operations)
        else:
            interval(arguments.rounds, arguments.operations)


def under_shim(part: str, arguments: argparse.Namespace) -> None:
    """Run one part in a process whose syncs take longer."""
    with TemporaryDirectory(prefix="qilbee-bench-shim-") as directory:
        library = Path(directory) / "shim.so"
        root = Path(directory) / "root"
        root.mkdir()
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SHIM), "-ldl"], check=True)
        delay_ms = SLOW_MS if part == "slow" else FROZEN_MS
        shim = {
            "LD_PRELOAD": str(library),
            "QILBEE_SHIM_ROOT": str(root),
            "QILBEE_SHIM_DELAY": f"{SYNC}:{1000 * delay_ms}",
            "TMPDIR": str(root),
        }
        options = ["--rounds", str(arguments.rounds), "--operations", str(arguments.operations)]
        subprocess.run(
            [sys.executable, __file__, "--under-shim", part, *options], env={**os.environ, **shim}, check=True
        )


# Arms. Each stores the same episodes; the operations of a slice are one episode each.


def in_slices(operations: int, work: Callable[[Sequence[Episode]], object]) -> Slices:
    """Time ``work`` on one slice of new episodes after another, by the clock; they are made before it starts."""
    episodes = made(AGENT, given(RECORD_BYTES, operations + WARM_UP))
    work(episodes[:WARM_UP])
    size = operations // SLICES
    for at in range(WARM_UP, WARM_UP + SLICES * size, size):
        some = episodes[at : at + size]
        began_s = time.perf_counter()
        work(some)
        yield Timing(time.perf_counter() - began_s, 0.0, size)


@contextmanager
def threads(count: int) -> Iterator[Callable[[Callable[[Episode], object], Sequence[Episode]], None]]:
    """Give what calls a function for each episode, in so many threads."""
    with ThreadPoolExecutor(count) as pool:

        def each(store: Callable[[Episode], object], episodes: Sequence[Episode]) -> None:
            def some(first: int) -> None:
                for episode in episodes[first::count]:
                    store(episode)

            for done in [pool.submit(some, first) for first in range(count)]:
                done.result()

        yield each


def in_threads(count: int, operations: int, **settings: object) -> Slices:
    """Our store, called by so many threads."""
    with fresh_store(**settings) as store, threads(count) as each:
        memory = store.agent_memory(AGENT)
        yield from in_slices(operations, partial(each, memory.store_episode))


def in_tasks(operations: int, **settings: object) -> Slices:
    """Our store, awaited by so many tasks of one event loop."""
    with ExitStack() as stack:
        store = stack.enter_context(fresh_store(**settings))
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        memory = AsyncStore(store).agent_memory(AGENT)
        yield from in_slices(operations, lambda episodes: loop.run_until_complete(gather(memory, episodes)))


async def gather(memory: AsyncAgentMemory, episodes: Sequence[Episode]) -> None:
    """Store them in TASKS tasks."""

    async def some(first: int) -> None:
        for episode in episodes[first::TASKS]:
            await memory.store_episode(episode)

    await asyncio.gather(*(some(first) for first in range(TASKS)))


def raw_in_loop(operations: int) -> Slices:
    """What one does without us: rocksdict's own ``put`` with sync, called in the event loop."""
    with raw_database() as database, closing(asyncio.new_event_loop()) as loop:
        options = synced()
        puts = iter(records(operations))

        async def some(count: int) -> None:
            for _ in range(count):
                key, value = next(puts)
                database.put(key, value, write_opt=options)

        async def all_tasks(episodes: Sequence[Episode]) -> None:
            await asyncio.gather(*(some(len(episodes[first::TASKS])) for first in range(TASKS)))

        yield from in_slices(operations, lambda episodes: loop.run_until_complete(all_tasks(episodes)))


def synced() -> WriteOptions:
    """Options of a write that syncs by itself."""
    options = WriteOptions()
    options.sync = True
    return options


def plyvel_in_threads(operations: int) -> Slices:
    """``plyvel.DB.put(sync=True)`` in THREADS threads: LevelDB's own group commit, which is native, without the GIL."""
    with (
        TemporaryDirectory(prefix="qilbee-bench-plyvel-") as directory,
        closing(plyvel.DB(directory, create_if_missing=True, write_buffer_size=16 << 20)) as database,
        threads(THREADS) as each,
    ):
        puts = iter(records(operations))
        lock = threading.Lock()

        def put(_: Episode) -> None:
            with lock:
                key, value = next(puts)
            database.put(key, value, sync=True)

        yield from in_slices(operations, partial(each, put))


def waiting_in_threads(operations: int) -> Slices:
    """Our group commit, with a file that only grows in place of a store: what waiting for each other costs alone."""
    with (
        TemporaryFile(prefix="qilbee-bench-file-", buffering=0) as file,
        closing(_Appended(file.fileno())) as appended,
        threads(THREADS) as each,
    ):
        durability = Durability(appended, "sync", 0)
        puts = iter(records(operations))
        lock = threading.Lock()

        def append(_: Episode) -> None:
            with lock:
                file.write(b"".join(next(puts)))
                ticket = durability.wrote()
            durability.wait(ticket)

        yield from in_slices(operations, partial(each, append))


class _Appended(EphemeralBackend):
    """Syncs a file, and holds nothing."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(BackendOptions(path=Path()))
        self._descriptor = descriptor

    def sync(self) -> None:
        """Return once every earlier write to the file survives a power cut."""
        os.fdatasync(self._descriptor)


def records(operations: int) -> list[tuple[bytes, bytes]]:
    """Keys and values as the store would write them, for whoever writes without it."""
    if operations not in _records:
        _records[operations] = [each.record for each in recorded(AGENT, given(RECORD_BYTES, operations + WARM_UP))]
    return _records[operations]


_records: dict[int, list[tuple[bytes, bytes]]] = {}


# Parts


def slow(rounds: int, operations: int) -> None:
    """Group commit where it matters: syncs of 2 ms and more."""
    few = max(SLICES, operations // 16)
    compare(
        f"fsync slowed by {SLOW_MS} ms",
        {
            "1 thread": partial(in_threads, 1, few, sync_writes=True),
            f"{THREADS} threads": partial(in_threads, THREADS, operations, sync_writes=True),
            "raw put(sync=True) in the loop": partial(raw_in_loop, few),
            f"{TASKS} tasks": partial(in_tasks, operations, sync_writes=True),
        },
        rounds,
        [
            Ratio(f"{THREADS} threads", "1 thread", 15),
            Ratio(f"{TASKS} tasks", "raw put(sync=True) in the loop", 20),
        ],
    )


def disk(rounds: int, operations: int) -> None:
    """Group commit on the disk of the temporary directory."""
    compare(
        "fsync as this disk does it",
        {
            "1 thread": partial(in_threads, 1, max(SLICES, operations // 8), sync_writes=True),
            f"{THREADS} threads": partial(in_threads, THREADS, operations, sync_writes=True),
            f"{THREADS} threads, leveldb": partial(
                in_threads, THREADS, operations, sync_writes=True, backend="leveldb"
            ),
            f"{THREADS} threads of plyvel put(sync=True)": partial(plyvel_in_threads, operations),
            f"{THREADS} threads, a file and no store": partial(waiting_in_threads, operations),
            f"{TASKS} tasks": partial(in_tasks, operations, sync_writes=True),
            f"{TASKS} tasks at interval": partial(in_tasks, operations),
        },
        rounds,
        [
            Ratio(f"{THREADS} threads", "1 thread", 5),
            Ratio(f"{THREADS} threads", f"{THREADS} threads of plyvel put(sync=True)", 0.9),
            Ratio(f"{THREADS} threads, a file and no store", f"{THREADS} threads of plyvel put(sync=True)", None),
            Ratio(f"{TASKS} tasks", f"{TASKS} tasks at interval", 0.5),
        ],
    )


def compare(title: str, arms: Mapping[str, Arm], rounds: int, ratios: Sequence[Ratio]) -> None:
    """Run the arms side by side, and print their rates and what one is to the other."""
    samples = interleave(arms, rounds)
    table = Table(title=title, title_justify="left")
    for heading in ("", "a second", "ratio", "of rounds", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for name, sample in samples.items():
        table.add_row(name, f"{1e6 / median(sample.wall_us):,.0f}")
    table.add_section()
    for arm, floor, least in ratios:
        each = [b / a for a, b in zip(samples[arm].wall_us, samples[floor].wall_us, strict=True)]
        ratio = median(samples[floor].wall_us) / median(samples[arm].wall_us)
        spread = f"{min(each):.2f} - {max(each):.2f}"
        cells = [f"{arm} / {floor}", "", f"{ratio:.2f}", spread]
        if least is not None:
            cells += [f">= {least:g}", "[green]reached[/]" if ratio >= least else "[red]missed[/]"]
        table.add_row(*cells)
    console.print(table)


def stall() -> None:
    """How long another thread stands still while a writer waits for syncs of 200 ms."""
    table = Table(title=f"longest stall of another thread while fsync takes {FROZEN_MS} ms", title_justify="left")
    for heading in ("", "ms", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for name, work in (
        ("store_episode at sync", ours_frozen),
        ("AsyncStore at sync: of the event loop", ours_frozen_in_loop),
        ("raw put(sync=True)", raw_frozen),
    ):
        longest_ms = work()
        target = "" if name.startswith("raw") else f"< {STALL_MS_MAX:.0f}"
        reached = "" if not target else "[green]reached[/]" if longest_ms < STALL_MS_MAX else "[red]missed[/]"
        table.add_row(name, f"{longest_ms:.1f}", target, reached)
    console.print(table)


WRITES_FROZEN = 10


def ours_frozen() -> float:
    """The longest stall beside a thread that stores at sync."""
    with fresh_store(sync_writes=True) as store:
        memory: AgentMemory = store.agent_memory(AGENT)
        return longest_stall_ms(lambda: [memory.store_episode(each) for each in few_episodes()])


def raw_frozen() -> float:
    """The longest stall beside a thread that puts with sync."""
    with raw_database() as database:

        def put_all() -> None:
            for number in range(WRITES_FROZEN):
                database.put(bytes([number]), b"value", write_opt=synced())

        return longest_stall_ms(put_all)


def ours_frozen_in_loop() -> float:
    """The longest time that the event loop itself is held up while tasks store at sync."""
    with fresh_store(sync_writes=True) as store, closing(asyncio.new_event_loop()) as loop:
        return loop.run_until_complete(loop_stall_ms(AsyncStore(store).agent_memory(AGENT)))


async def loop_stall_ms(memory: AsyncAgentMemory) -> float:
    """Store in one task, and look at the clock in another."""
    storing = asyncio.gather(*(memory.store_episode(each) for each in few_episodes()))
    longest_s, last_s = 0.0, time.perf_counter()
    while not storing.done():
        await asyncio.sleep(0)
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return 1000 * longest_s


def few_episodes() -> list[Episode]:
    """As many as are written while a thread is watched."""
    return made(AGENT, given(RECORD_BYTES, WRITES_FROZEN))


def longest_stall_ms(work: Callable[[], object]) -> float:
    """The longest time between two looks at the clock of this thread while another does ``work``."""
    writer = threading.Thread(target=work)
    writer.start()
    longest_s, last_s = 0.0, time.perf_counter()
    while writer.is_alive():
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return 1000 * longest_s


def interval(rounds: int, operations: int) -> None:
    """What a writer notices of a sync in the background: single calls at "interval" and at "async"."""
    took_us: dict[str, list[float]] = {"interval": [], "async": []}
    medians: list[float] = []
    highs: list[float] = []
    for number in range(rounds):
        order = list(took_us) if number % 2 else list(took_us)[::-1]
        round_us: dict[str, list[float]] = {name: [] for name in took_us}
        with ExitStack() as stack:
            # The interval is short, so that there are syncs while we look: a hundred in the time of one.
            stores = {
                name: stack.enter_context(
                    fresh_store(**({"durability": "async"} if name == "async" else {"wal_sync_interval_ms": 10}))
                )
                for name in order
            }
            episodes = {name: iter(made(AGENT, given(RECORD_BYTES, operations + WARM_UP))) for name in order}
            for at in range(0, operations + WARM_UP, WARM_UP):
                for name in order:
                    store_episode = stores[name].agent_memory(AGENT).store_episode
                    for _ in range(min(WARM_UP, operations + WARM_UP - at)):
                        episode = next(episodes[name])
                        began_s = time.perf_counter()
                        store_episode(episode)
                        if at:
                            round_us[name].append(1e6 * (time.perf_counter() - began_s))
        for name, values in round_us.items():
            took_us[name] += values
        medians.append(median(round_us["interval"]) / median(round_us["async"]))
        highs.append(p99(round_us["interval"]) / p99(round_us["async"]))
    table = Table(title="store_episode with a sync every 10 ms beside none", title_justify="left")
    for heading in ("", "interval us", "async us", "ratio", "of rounds", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for name, of, ratios, most in (("median", median, medians, 1.05), ("p99", p99, highs, 1.5)):
        ratio = median(ratios)
        table.add_row(
            name,
            f"{of(took_us['interval']):.1f}",
            f"{of(took_us['async']):.1f}",
            f"{ratio:.2f}",
            f"{min(ratios):.2f} - {max(ratios):.2f}",
            f"<= {most:g}",
            "[green]reached[/]" if ratio <= most else "[red]missed[/]",
        )
    console.print(table)


def p99(values: list[float]) -> float:
    """The 99th of a hundred."""
    return quantiles(values, n=100)[98]


if __name__ == "__main__":
    main()
