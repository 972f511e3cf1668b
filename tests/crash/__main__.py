"""Crash a store in every way there is, for as long as you like, and see what it has kept.

    python -m tests.crash                     # all groups, all engines: about an hour
    python -m tests.crash cut --engine rocksdb --every 10
    python -m tests.crash kill --cycles 1000 --seed 7

The groups: "kill" SIGKILL at random moments; "cut" power cuts at every call that changes a file; "lie" the same on a
disk whose syncs do nothing, which must be noticed; "fail" a write, sync or rename that fails, each in turn; "full" a
full disk that gets space again; "flip" bits that flip, files that are cut short or gone. A table at the end says what
was found.
The exit status is 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .disk import Mode, Semantics
from .faults import ERRORS, KINDS, fail_every_call, fill_the_disk
from .flips import damage_everywhere, make_image
from .kills import kill_again_and_again
from .oracle import seed_without_clear
from .powercuts import SEMANTICS, Outcome, calls_in, cut_everywhere, longest_sync_ms, record
from .shim import COMPILER, build
from .worker import Load

GROUPS = ("kill", "cut", "lie", "fail", "full", "flip")
ENGINES = ("rocksdb", "leveldb")
LEVELS = ("sync", "interval")
INTERVAL_MS = 20
REPORTED_LEAST = 0.8
_PROBLEMS_SHOWN_MAX = 3

console = Console(width=150) if not sys.stdout.isatty() else Console()


class Result(NamedTuple):
    """A row of the table."""

    tried: int
    wrong: int
    figures: str


Trials = Generator[str, None, Result]
"""Gives what was wrong in each trial, or nothing, and at last the row."""


class Run(NamedTuple):
    """Trials of one kind, in a directory of their own; ``total`` is how many there will be, where that is known."""

    group: str
    name: str
    trials: Iterator[str]
    total: int | None


def settings_of(engine: str, level: str) -> dict[str, Any]:
    """A store that fills memtables and compacts in the course of a few hundred writes."""
    interval = {"wal_sync_interval_ms": INTERVAL_MS} if level == "interval" else {}
    return {"backend": engine, "durability": level, "engine": {"write_buffer_bytes": 64 << 10}, **interval}


def load_of(engine: str, level: str, seed: int, steps: int) -> Load:
    """The load that power is cut under: two agents, every step sent twice, a compaction in the middle."""
    return Load(
        path="",
        settings=settings_of(engine, level),
        seed=seed,
        begin={"one": 0, "two": 0},
        count=steps // 2,
        compact_at=steps // 4,
        pause_ms=2.0 if level == "interval" else 0.0,
    )


def kill(scratch: Path, engine: str, level: str, variant: str, options: argparse.Namespace) -> Trials:
    """SIGKILL."""
    library = build(scratch) if variant == "clock jumps" else None
    settings = settings_of(engine, level)
    tried = wrong = unknown = steps = 0
    for each in kill_again_and_again(
        scratch / "kill",
        settings,
        options.cycles,
        seed=options.seed,
        repairs=variant == "repairs",
        codecs=variant == "codecs",
        library=library,
    ):
        tried += 1
        wrong += bool(each.problems)
        unknown += each.judgement.unknown
        steps += each.steps
        yield f"cycle {each.cycle}: {some(each.problems)}" if each.problems else ""
    return Result(tried, wrong, f"{steps} acknowledged, {unknown} unknown, 0 lost" if not wrong else f"{wrong} wrong")


def cut(
    scratch: Path, engine: str, level: str, mode: Mode, semantics: Semantics, options: argparse.Namespace
) -> Trials:
    """Power cuts."""
    recording = record(build(scratch), scratch / "recording", load_of(engine, level, options.seed, options.steps))
    tried = wrong = lost = 0
    age_ms = 0.0
    for each in cut_everywhere(recording, scratch, mode, semantics, seed=options.seed, every=options.every):
        tried += 1
        problem = what_is_wrong(each, level)
        wrong += bool(problem)
        lost += bool(each.judgement and each.judgement.lost)
        age_ms = max(age_ms, each.lost_age_ms)
        yield f"cut {each.cut}: {problem}" if problem else ""
    figures = f"{calls_in(recording)} calls"
    if level != "sync":
        bound_ms = INTERVAL_MS + longest_sync_ms(recording)
        figures += f", {lost} lost a suffix of at most {age_ms:.0f} ms (interval and longest sync: {bound_ms:.0f})"
    return Result(tried, wrong, figures)


def what_is_wrong(outcome: Outcome, level: str) -> str:
    """What breaks the promise of ``level`` after a power cut."""
    if outcome.judgement is None:
        return f"it does not open: {type(outcome.refusal).__name__}: {outcome.refusal}"
    problems = list(outcome.judgement.problems)
    if level == "sync" and outcome.judgement.lost:
        problems.append(f"{outcome.judgement.lost} acknowledged steps are lost")
    if outcome.synced_loss:
        problems.append(f"{outcome.synced_loss} steps are lost that a sync had covered")
    return some(problems)


def some(problems: Sequence[str]) -> str:
    """The first few of them: one bug may show in every episode."""
    more = len(problems) - _PROBLEMS_SHOWN_MAX
    return "; ".join(problems[:_PROBLEMS_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")


def lie(scratch: Path, engine: str, what: str, options: argparse.Namespace) -> Trials:
    """Power cuts on a disk that lies: that the harness sees loss, and that the store does."""
    load = load_of(engine, "sync", options.seed, options.steps)
    load.seed = seed_without_clear(options.seed, load.begin, load.count)
    recording = record(build(scratch), scratch / "recording", load)
    tried = reported = refused = 0
    for each in cut_everywhere(
        recording,
        scratch,
        "drop",
        "ext4",
        seed=options.seed,
        every=options.every,
        lies=lambda name: what == "all files" or name.endswith(".log"),
    ):
        tried += 1
        refused += each.refusal is not None
        reported += each.judgement is None or bool(each.judgement.lost or each.judgement.problems)
        yield ""
    share = reported / max(1, tried)
    return Result(
        tried,
        int(share < REPORTED_LEAST),
        f"{100 * share:.0f} % reported, {100 * refused / max(1, tried):.0f} % by the store itself",
    )


def fail(scratch: Path, engine: str, options: argparse.Namespace) -> Trials:
    """Calls that fail."""
    library = build(scratch)
    tried = wrong = told = same = 0
    for calls in KINDS:
        for error in ERRORS:
            for sticky in (False, True):
                for each in fail_every_call(
                    library,
                    scratch / "stores",
                    settings_of(engine, "sync"),
                    calls,
                    error,
                    sticky=sticky,
                    every=options.every,
                ):
                    tried += 1
                    told += each.told
                    same += each.there_all_the_same
                    wrong += bool(each.problems)
                    where = f"{calls.name} {each.number}, {os.strerror(error)}{', from then on' if sticky else ''}"
                    yield f"{where}: {some(each.problems)}" if each.problems else ""
    return Result(tried, wrong, f"{told} raised an error, {same} refused writes are there all the same")


def full(scratch: Path, engine: str, options: argparse.Namespace) -> Trials:
    """Full disks."""
    tried = wrong = 0
    longest_ms = 0.0
    for each in fill_the_disk(build(scratch), scratch / "stores", settings_of(engine, "sync"), every=options.every):
        tried += 1
        wrong += bool(each.problems)
        longest_ms = max(longest_ms, each.writable_after_ms)
        yield f"full after {each.number} bytes: {some(each.problems)}" if each.problems else ""
    return Result(tried, wrong, f"writes were back after at most {longest_ms / 1000:.1f} s")


def flip(scratch: Path, engine: str, options: argparse.Namespace) -> Trials:
    """Damaged files."""
    verdicts: Counter[str] = Counter()
    image = make_image(scratch, {"backend": engine}, seed=options.seed)
    for each in damage_everywhere(image, scratch / "damaged", every=max(1, 8 * options.every)):
        verdicts[each.verdict] += 1
        yield f"{each.file}, {each.what}: {each.told}" if each.verdict == "silent" else ""
    return Result(
        verdicts.total(), verdicts["silent"], f"{verdicts['noticed']} noticed, {verdicts['harmless']} changed nothing"
    )


def runs(scratch: Path, options: argparse.Namespace) -> Iterator[Run]:
    """All that was asked for, each with a directory of its own."""

    def one(group: str, name: str, trials: partial[Trials], count: int | None = None) -> Run:
        directory = scratch / f"{group} {name}".replace(" ", "-").replace(",", "").replace("/", "-")
        directory.mkdir()
        return Run(group, name, trials(directory), count)

    for engine in options.engine or ENGINES:
        for level in options.level or LEVELS:
            if "kill" in options.groups:
                yield one(
                    "kill",
                    f"{engine}, {level}",
                    partial(kill, engine=engine, level=level, variant="", options=options),
                    options.cycles,
                )
            if "cut" in options.groups:
                for mode in options.mode or ("drop", "torn", "keep"):
                    for semantics in options.semantics or SEMANTICS[engine]:
                        yield one(
                            "cut",
                            f"{engine}, {level}, {mode}, {semantics}",
                            partial(cut, engine=engine, level=level, mode=mode, semantics=semantics, options=options),
                        )
        if "kill" in options.groups:
            fewer = argparse.Namespace(**{**vars(options), "cycles": -(-options.cycles // 4)})
            for variant in ("repairs", "codecs", "clock jumps"):
                yield one(
                    "kill",
                    f"{engine}, sync, {variant}",
                    partial(kill, engine=engine, level="sync", variant=variant, options=fewer),
                    fewer.cycles,
                )
        if "lie" in options.groups:
            for what in ("all files", "logs"):
                yield one("lie", f"{engine}, {what}", partial(lie, engine=engine, what=what, options=options))
        for group, trials in (("fail", fail), ("full", full), ("flip", flip)):
            if group in options.groups:
                yield one(group, engine, partial(trials, engine=engine, options=options))


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="which (default: all)", metavar="GROUP")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: each")
    parser.add_argument("--level", action="append", choices=LEVELS, help="of kill and cut; default: each")
    parser.add_argument("--mode", action="append", choices=["drop", "torn", "keep"], help="of cut; default: each")
    parser.add_argument(
        "--semantics", action="append", choices=["ext4", "strict"], help="of cut; default: all that the engine can do"
    )
    parser.add_argument(
        "--cycles", type=int, default=200, help="of each run of kill (default 200), a quarter of them of its variants"
    )
    parser.add_argument("--steps", type=int, default=300, help="writes of the load that is cut (default 300)")
    parser.add_argument("--every", type=int, default=1, help="try only each so many-th cut, fault or byte (default 1)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30), help="to see it again")
    parser.add_argument("--directory", type=Path, default=None, help="where to work (default: in RAM if there is some)")
    options = parser.parse_args(arguments)
    options.groups = options.groups or GROUPS
    if COMPILER is None and set(options.groups) - {"kill", "flip"}:
        parser.error("there is no C compiler, which all but kill and flip need")
    if options.directory is None:
        options.directory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None

    console.print(f"seed {options.seed}")
    table = Table(title=f"crashes, seed {options.seed}", title_justify="left")
    for heading in ("group", "of", "tried", "wrong", "", "s"):
        table.add_column(heading, justify="right" if heading in {"tried", "wrong", "s"} else "left")
    wrong = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="qilbee-crash-", dir=options.directory) as scratch,
        Progress(*columns, console=console) as progress,
    ):
        for run in runs(Path(scratch), options):
            result, seconds = follow(run, progress)
            wrong += result.wrong
            style = "red" if result.wrong else ""
            table.add_row(
                run.group, run.name, str(result.tried), str(result.wrong), result.figures, f"{seconds:.0f}", style=style
            )
    console.print(table)
    return 1 if wrong else 0


def follow(run: Run, progress: Progress) -> tuple[Result, float]:
    """Go through the trials and show how far they are, and what is wrong as soon as it is found."""
    began = time.monotonic()
    task = progress.add_task(f"{run.group} {run.name}", total=run.total)
    while True:
        try:
            problem = next(run.trials)
        except StopIteration as ended:
            result: Result = ended.value
            progress.update(task, total=result.tried)
            return result, time.monotonic() - began
        progress.advance(task)
        if problem:
            console.print(f"[red]{run.group} {run.name}[/] {escape(problem)}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
