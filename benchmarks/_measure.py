"""Measuring side by side on a machine that others use too: interleaved rounds, medians, ratios.

An *arm* is one of the things compared. In each round every arm sets itself up anew and does its work, one arm after
another, so that whatever else the machine does in the course of a run meets them all. Absolute times of one run say
little; ratios within it are what to read.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from importlib.metadata import version
from operator import add
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

__all__ = [
    "Arm",
    "Samples",
    "Slices",
    "Target",
    "Timing",
    "comparison",
    "console",
    "interleave",
    "machine",
    "timed",
    "verdict",
]

console = Console(width=150, soft_wrap=True)


class Timing(NamedTuple):
    """What ``operations`` took: by the clock, and of the calling thread's CPU."""

    wall_s: float
    cpu_s: float
    operations: int


Slices = Generator[Timing, None, None]
Arm = Callable[[], Slices]
"""Sets up, then gives the timing of one slice of work after another, then tidies up."""


class Samples(NamedTuple):
    """Of one arm: microseconds per operation, one figure for each round."""

    wall_us: list[float]
    cpu_us: list[float]


class Target(NamedTuple):
    """An arm that should take at most ``most`` times what ``floor`` takes."""

    arm: str
    floor: str
    most: float | None = None


def timed(work: Callable[[], object], operations: int) -> Timing:
    """What one call of ``work`` takes. The garbage collector is left as it is, for every arm alike."""
    cpu_s = time.thread_time()
    wall_s = time.perf_counter()
    work()
    wall_s = time.perf_counter() - wall_s
    return Timing(wall_s, time.thread_time() - cpu_s, operations)


def interleave(arms: Mapping[str, Arm], rounds: int) -> dict[str, Samples]:
    """Run all arms in turn, ``rounds`` times.

    A round of an arm runs through without another in between: arms that change every few milliseconds push each other
    out of the processor's caches, which costs most whoever has the most code and data.
    """
    samples = {name: Samples([], []) for name in arms}
    for number in range(rounds):
        # Whoever goes first finds the machine as the last one left it: take turns at that too.
        names = list(arms) if number % 2 == 0 else list(arms)[::-1]
        totals = dict.fromkeys(names, Timing(0.0, 0.0, 0))
        for name in names:
            with closing(arms[name]()) as slices:
                for timing in slices:
                    totals[name] = Timing(*map(add, totals[name], timing))
        for name, total in totals.items():
            samples[name].wall_us.append(1e6 * total.wall_s / total.operations)
            samples[name].cpu_us.append(1e6 * total.cpu_s / total.operations)
    return samples


def verdict(figure: float, most: float | None) -> str:
    """Whether ``figure`` is at most ``most``."""
    if most is None:
        return ""
    return "[green]reached[/]" if figure <= most else "[red]missed[/]"


def _ratio_cells(samples: Mapping[str, Samples], arm: str, floor: str, most: float | None) -> list[str]:
    """Cells: ratio of medians by wall and by CPU, spread of the wall ratio over the rounds, target, verdict."""
    wall = median(samples[arm].wall_us) / median(samples[floor].wall_us)
    cpu = median(samples[arm].cpu_us) / median(samples[floor].cpu_us)
    each = [a / b for a, b in zip(samples[arm].wall_us, samples[floor].wall_us, strict=True)]
    target = "" if most is None else f"<= {most:g}"
    spread = f"{min(each):.2f} - {max(each):.2f}"
    return [f"{wall:.2f}", f"{cpu:.2f}", spread, target, verdict(max(wall, cpu), most)]


def comparison(title: str, samples: Mapping[str, Samples], targets: list[Target], *, unit: str = "us") -> None:
    """Print the medians of all arms, and below them the ratios that ``targets`` ask for."""
    table = Table(title=title, title_justify="left")
    for heading in ("", f"{unit} wall", f"{unit} CPU"):
        table.add_column(heading, justify="right" if heading else "left")
    for heading in ("ratio wall", "ratio CPU", "of rounds", "target", ""):
        table.add_column(heading, justify="right")
    for name, (wall_us, cpu_us) in samples.items():
        table.add_row(name, f"{median(wall_us):.2f}", f"{median(cpu_us):.2f}")
    table.add_section()
    for arm, floor, most in targets:
        table.add_row(f"{arm} / {floor}", "", "", *_ratio_cells(samples, arm, floor, most))
    console.print(table)


def machine() -> str:
    """One line about where and with what the figures were measured."""
    packages = " ".join(f"{name} {version(name)}" for name in ("rocksdict", "msgspec", "plyvel", "lz4", "zstandard"))
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')} | {_cpu_model()}, {os.cpu_count()} cores, load {load} | "
        f"{platform.system()} {platform.release()} | Python {platform.python_version()} {packages}"
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
