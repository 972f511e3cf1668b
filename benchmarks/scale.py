"""A large store: how fast it loads, in how much RAM, how fast it opens, and whether small questions stay small.

    python benchmarks/scale.py
    python benchmarks/scale.py --episodes 200000 --agents 1

Loading runs in a process of its own, by ``import_episodes``, and ends without closing the store. So the first open
has the log to read again; the later ones, each in a fresh process too, find what a clean close leaves. The time to
open is measured around ``open_store`` alone; what starting Python and importing the package take stands beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec

RECORD_BYTES = 500
SAMPLES = 10
OPENS = 9
CALLS = 2000
FEW = 1000
OPEN_MS_MOST = 100
RSS_GROWTH_MOST = 1.25


class Loaded(msgspec.Struct):
    """What the loading process tells."""

    seconds: float
    curve: list[tuple[int, float]]
    """Episodes so far, and the resident set in MiB."""


class Opened(msgspec.Struct):
    """What a process that opens the store tells."""

    start_ms: float
    open_ms: float
    open_cpu_ms: float
    """Of all threads, RocksDB's too."""
    statistics_us: float
    recent_us: float
    """One call each, as the first one of the process: nothing is in any cache of ours."""
    statistics_again_us: float
    recent_again_us: float
    """Median of many more."""


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1_000_000, help="episodes of the large store (default 1000000)")
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 1000], help="spread over so many (default 1 1000)")
    parser.add_argument("--load", metavar="DIRECTORY", help=argparse.SUPPRESS)
    parser.add_argument("--open", metavar="DIRECTORY", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load, arguments.episodes, arguments.agents[0])
    elif arguments.open:
        open_and_ask(arguments.open, arguments.started)
    else:
        for agents in arguments.agents:
            measure(arguments.episodes, agents)


def agent_id(number: int) -> str:
    """The id of one agent."""
    return f"agent-{number:04d}"


# In processes of their own


def load(directory: str, episodes: int, agents: int) -> None:
    """Fill a store and tell how it went."""
    from _episodes import conversations, made  # noqa: PLC0415

    from qilbee_core import Episode, open_store  # noqa: PLC0415

    source = conversations(RECORD_BYTES)
    store = open_store(directory)
    curve = [(0, resident_mib())]
    seconds = 0.0
    for agent in range(agents):
        share = episodes // agents
        done = agent * share

        def stream(agent: int = agent, share: int = share) -> Iterator[Episode]:
            for _ in range(share):
                yield from made(agent_id(agent), [next(source)])

        def sample(stored: int, done: int = done) -> None:
            if (done + stored) * SAMPLES // episodes >= len(curve):
                curve.append((done + stored, resident_mib()))

        began = time.perf_counter()
        store.agent_memory(agent_id(agent)).import_episodes(stream(), progress=sample)
        seconds += time.perf_counter() - began
    answer(Loaded(seconds, curve))
    sys.stdout.flush()
    os._exit(0)  # the store is not closed: like a process that was killed


def resident_mib() -> float:
    """What of this process is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_and_ask(directory: str, started: float) -> None:
    """Open a store and ask what must not take longer for its size."""
    from qilbee_core import open_store  # noqa: PLC0415

    start_ms = (time.time() - started) * 1000

    def us(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e6

    cpu_s, began = time.process_time(), time.perf_counter()
    store = open_store(directory)
    open_ms, open_cpu_ms = (time.perf_counter() - began) * 1000, (time.process_time() - cpu_s) * 1000
    with store:
        memory = store.agent_memory(agent_id(0))
        answer(
            Opened(
                start_ms,
                open_ms,
                open_cpu_ms,
                us(memory.get_statistics),
                us(memory.get_recent_episodes),
                median(us(memory.get_statistics) for _ in range(CALLS)),
                median(us(memory.get_recent_episodes) for _ in range(CALLS)),
            )
        )


def answer(told: Loaded | Opened) -> None:
    """Tell it to the process that waits for it."""
    print(msgspec.json.encode(told).decode())


def child(*options: str) -> bytes:
    """What such a process tells."""
    command = [sys.executable, __file__, *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


# In the process that asks


def measure(episodes: int, agents: int) -> None:
    """One store of so many episodes, spread over so many agents."""
    from _measure import console, machine  # noqa: PLC0415

    console.print(machine())
    with TemporaryDirectory(prefix="qilbee-scale-") as directory:
        few, many = f"{directory}/few", f"{directory}/many"
        child("--load", few, "--episodes", str(FEW), "--agents", "1")
        loaded = msgspec.json.decode(
            child("--load", many, "--episodes", str(episodes), "--agents", str(agents)), type=Loaded
        )
        crashed = opened(many)
        settled: list[Opened] = []
        small: list[Opened] = []
        opened(few)
        for _ in range(OPENS):
            settled.append(opened(many))
            small.append(opened(few))
        disk_bytes = sum(path.stat().st_size for path in Path(many).rglob("*") if path.is_file())
    report_loading(loaded, episodes, agents, disk_bytes)
    report_opening(crashed, settled, small, episodes, agents)


def opened(directory: str) -> Opened:
    """What a fresh process finds."""
    return msgspec.json.decode(child("--open", directory, "--started", repr(time.time())), type=Opened)


def report_loading(loaded: Loaded, episodes: int, agents: int, disk_bytes: int) -> None:
    """Rate and RAM."""
    from _measure import console, verdict  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"loading {episodes:,} episodes over {agents:,} agents: resident set", title_justify="left")
    table.add_column("episodes", justify="right")
    table.add_column("MiB", justify="right")
    for number, mib in loaded.curve:
        table.add_row(f"{number:,}", f"{mib:.0f}")
    console.print(table)
    half = [mib for number, mib in loaded.curve if 0 < number <= episodes / 2]
    rest = [mib for number, mib in loaded.curve if number > episodes / 2]
    growth = max(rest) / max(half)
    console.print(
        f"plateau: at most {max(half):.0f} MiB in the first half, {max(rest):.0f} MiB in the second: x {growth:.2f}, "
        f"target <= {RSS_GROWTH_MOST}: {verdict(growth, RSS_GROWTH_MOST)}"
    )
    console.print(
        f"rate: {episodes / loaded.seconds:,.0f} episodes/s, {loaded.seconds:.1f} s, their making included; "
        f"{disk_bytes / episodes:.0f} bytes each on disk before any compaction that was asked for"
    )


def report_opening(crashed: Opened, settled: list[Opened], small: list[Opened], episodes: int, agents: int) -> None:
    """Times to open, and of the questions after it."""
    from _measure import console, verdict  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"opening {episodes:,} episodes over {agents:,} agents, fresh processes", title_justify="left")
    for heading in ("", f"{FEW:,}", f"{episodes:,}", "min - max", "ratio", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, field: str, most: float | None = None, ratio_most: float | None = None) -> None:
        few, many = ([getattr(each, field) for each in answers] for answers in (small, settled))
        ratio = median(many) / median(few)
        target = f"<= {most:g} ms" if most else f"ratio <= {ratio_most:g}" if ratio_most else ""
        met = verdict(median(many), most) if most else verdict(ratio, ratio_most)
        spread = f"{min(many):.1f} - {max(many):.1f}"
        table.add_row(name, f"{median(few):.1f}", f"{median(many):.1f}", spread, f"{ratio:.2f}", target, met)

    row("start Python, import qilbee_core (ms)", "start_ms")
    row(f"open_store, median of {OPENS} (ms)", "open_ms", OPEN_MS_MOST)
    row("the same in CPU time (ms)", "open_cpu_ms")
    table.add_row("open_store after a kill while loading (ms)", "", f"{crashed.open_ms:.1f}", "once", "", "", "")
    row("first get_statistics (us)", "statistics_us")
    row("first get_recent_episodes(10) (us)", "recent_us")
    row("get_statistics again (us)", "statistics_again_us", ratio_most=1.25)
    row("get_recent_episodes(10) again (us)", "recent_again_us", ratio_most=1.25)
    console.print(table)


if __name__ == "__main__":
    main()
