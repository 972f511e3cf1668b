"""SIGKILL at a random moment, again and again on one store; one time in ten while it opens."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec

from qilbee_core import open_store

from .oracle import Course, Judgement, Ledger, judge
from .shim import command, environment
from .worker import Load

__all__ = ["Kill", "kill_again_and_again"]

_OPENING_SECONDS_MAX = 60.0
_CYCLES_PER_STORE = 20
"""Then a new one is begun, so that the walks through it stay short."""
_CODECS = ("none", "lz4", "zstd", "snappy")


class Kill(NamedTuple):
    """What became of one cycle."""

    cycle: int
    while_opening: bool
    steps: int
    """How many were acknowledged in it."""
    judgement: Judgement
    stderr: str
    """What the program said before it was killed: nothing, if all was well."""

    @property
    def problems(self) -> list[str]:
        """All that was wrong."""
        lost = [f"{self.judgement.lost} acknowledged steps lost"] if self.judgement.lost else []
        return lost + self.judgement.problems + ([self.stderr] if self.stderr else [])


def kill_again_and_again(
    directory: Path,
    settings: Mapping[str, Any],
    cycles: int,
    *,
    seed: int,
    agents: int = 8,
    readers: int = 2,
    repairs: bool = False,
    codecs: bool = False,
    library: Path | None = None,
) -> Iterator[Kill]:
    """Run ``cycles`` of load, kill, open and judge, in ``directory``, which must not exist.

    ``repairs`` has repair() run all the time; ``codecs`` opens the store with another codec in each cycle; with
    ``library``, the shim, the clock jumps by up to three years, forwards and back, in every process.
    """
    random = Random(seed)
    directory.mkdir()
    courses: dict[str, Course] = {}
    ledger = Ledger()
    for cycle in range(cycles):
        data = directory / f"data-{cycle // _CYCLES_PER_STORE}"
        if not data.exists():
            for old in directory.iterdir():
                shutil.rmtree(old)
            courses = {f"agent-{number}": Course(f"agent-{number}", seed + cycle) for number in range(agents)}
            ledger, store_seed = Ledger(), seed + cycle
        codec = {"compression_type": random.choice(_CODECS)} if codecs else {}
        load = Load(
            path=str(data),
            settings={**settings, **codec},
            seed=store_seed,
            begin={agent: ledger.begun.get(agent, 0) for agent in courses},
            tasks=cycle % 3 == 2,
            readers=readers,
            repairs=repairs,
            clock_jumps=library is not None,
        )
        while_opening = cycle % 10 == 9
        delay_s = random.uniform(0, 0.03) if while_opening else random.uniform(0, 0.4)
        env = environment(library, directory)
        stderr = _run_and_kill(load, ledger, delay_s, while_opening=while_opening, env=env)
        steps = sum(max(0, ledger.done.get(agent, 0) - begin) for agent, begin in load.begin.items())
        with open_store(data, **{**settings, **codec}) as store:
            judgement = judge(store, courses, ledger)
        yield Kill(cycle, while_opening, steps, judgement, stderr)
        # Sent again by now, and so both begun and done.
        ledger.done = dict(ledger.begun)
        if judgement.problems or judgement.lost:
            return


def _run_and_kill(load: Load, ledger: Ledger, delay_s: float, *, while_opening: bool, env: dict[str, str]) -> str:
    """Start the load, kill it, and read its ledger; gives what it wrote to stderr."""
    awaited = threading.Event()
    with subprocess.Popen(
        command("worker", msgspec.json.encode(load)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = process.stdout

        def read() -> None:
            for line in lines:
                ledger.read([line])
                if line.startswith("opening" if while_opening else "opened"):
                    awaited.set()
            awaited.set()

        reader = threading.Thread(target=read)
        reader.start()
        came = awaited.wait(_OPENING_SECONDS_MAX)
        threading.Event().wait(delay_s)
        process.send_signal(signal.SIGKILL)
        reader.join()
        stderr = process.stderr.read()
    ended = "" if process.returncode == -signal.SIGKILL else f"it ended by itself with {process.returncode}. "
    return f"{'' if came else 'it did not open in time. '}{ended}{stderr[-2000:]}"
