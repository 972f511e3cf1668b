"""The program whose disk fails, run under ``shim.c``: one store after another, each with the fault one call later.

    python -m crash.failing PLAN

PLAN is a :class:`Plan` in JSON. For each fault one line of JSON, a :class:`Finding`, goes to standard output.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from qilbee_core import AgentMemory, OutcomeUnknownError, QilbeeError, StorageError, Store, StoreClosedError, open_store

from .oracle import Step, observe, send

_STEPS = 24
_TEXT_CHARACTERS = 3600
"""As many as it takes to fill a memtable in the course of it."""
_NEVER = 1 << 60
_SPACE_BACK_SECONDS_MAX = 60.0
"""Within that writes must work again once a full disk has space, however busy the machine."""
_shim = ctypes.CDLL(None)


class Plan(msgspec.Struct, kw_only=True):
    """Which faults: ``calls`` is the kind of call that fails, as a bit; 0 is a disk that is full after some bytes."""

    root: str
    settings: dict[str, Any]
    calls: int = 0
    errno: int = 0
    sticky: bool = False
    first: int = 1
    every: int = 1


class Finding(msgspec.Struct, kw_only=True):
    """What came of the fault at call ``number`` (or of a disk with ``number`` bytes free)."""

    number: int
    problems: list[str] = []
    hit: bool = False
    """Whether the fault was met at all; the first one that is not is the last that is tried."""
    told: bool = False
    """Whether a call of the store raised because of it."""
    there_all_the_same: int = 0
    """Steps that were refused, and are there."""
    writable_after_ms: float = 0.0


class Trial:
    """One store on a disk that fails."""

    def __init__(self, plan: Plan, number: int, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.finding = Finding(number=number)
        self.done: set[int] = set()
        self.unknown: set[int] = set()
        self.refused: set[int] = set()

    def run(self) -> Finding:
        """Store while the disk fails, then open once more on a good disk and look."""
        self.begin_failing()
        try:
            with open_store(self.directory, **self.plan.settings) as store:
                self.store(store)
                if self.full_disk and self.told_full:
                    self.make_space(store)
        except QilbeeError:
            self.finding.told = True
        except Exception as error:
            self.problem(f"opening or closing raised {type(error).__name__}: {error}")
        self.end_failing()
        gc.collect()
        try:
            with open_store(self.directory, **self.plan.settings) as store:
                self.judge(store)
        except Exception as error:
            self.problem(f"it does not open on a good disk: {type(error).__name__}: {error}")
        return self.finding

    @property
    def full_disk(self) -> bool:
        return not self.plan.calls

    @property
    def told_full(self) -> bool:
        return bool(self.refused | self.unknown)

    def begin_failing(self) -> None:
        if self.full_disk:
            _shim.qilbee_shim_space(ctypes.c_int64(self.finding.number))
        else:
            number = ctypes.c_long(self.finding.number)
            _shim.qilbee_shim_fail(self.plan.calls, number, self.plan.errno, int(self.plan.sticky))

    def end_failing(self) -> None:
        self.finding.hit = self.finding.hit or self.finding.told or _shim.qilbee_shim_failures() > 0
        _shim.qilbee_shim_space(ctypes.c_int64(-1))
        _shim.qilbee_shim_fail(0, ctypes.c_long(_NEVER), 0, 0)

    def store(self, store: Store) -> None:
        memory = store.agent_memory("bot")
        for number in range(_STEPS):
            self.attempt(memory, number)
            if number == _STEPS * 2 // 3:
                self.maintain(store)
        self.maintain(store)

    def attempt(self, memory: AgentMemory, number: int) -> bool:
        try:
            send(memory, _step(number))
        except OutcomeUnknownError:
            self.unknown.add(number)
        except StorageError:
            self.refused.add(number)
        except Exception as error:
            self.unknown.add(number)
            self.problem(f"a store raised {type(error).__name__}: {error}")
        else:
            self.done.add(number)
            return True
        self.finding.told = True
        self.read(memory)
        return False

    def read(self, memory: AgentMemory) -> None:
        """Reads go on, whatever happens to writes; but for a listing that a reopening cuts short, which says so."""
        try:
            missing = self.done - observe(memory.episodes()).keys()
            if missing:
                self.problem(f"while the disk failed {sorted(missing)} could not be read")
        except StoreClosedError as error:
            if "was reopened" not in error.message:
                self.problem(f"while the disk failed a read raised {error}")
        except StorageError as error:
            self.problem(f"while the disk failed a read raised {type(error).__name__}: {error}")

    def maintain(self, store: Store) -> None:
        for call in (store.flush, store.compact):
            try:
                call()
            except QilbeeError:
                self.finding.told = True
            except Exception as error:
                self.problem(f"{call.__name__} raised {type(error).__name__}: {error}")

    def make_space(self, store: Store) -> None:
        """Give space back, and store what was refused, without opening the store again."""
        self.end_failing()
        memory = store.agent_memory("bot")
        began = time.monotonic()
        for number in sorted(self.refused | self.unknown):
            while not self.attempt(memory, number):
                if time.monotonic() - began > _SPACE_BACK_SECONDS_MAX:
                    self.problem(f"writes do not come back within {_SPACE_BACK_SECONDS_MAX} s of space")
                    return
                time.sleep(0.02)
            if not self.finding.writable_after_ms:
                self.finding.writable_after_ms = 1000 * (time.monotonic() - began)

    def judge(self, store: Store) -> None:
        """What was acknowledged is there, what is there was sent; and everything again makes one of each."""
        memory = store.agent_memory("bot")
        there = observe(memory.episodes())
        if lost := self.done - there.keys():
            self.problem(f"acknowledged and lost: {sorted(lost)}")
        if strange := there.keys() - self.done - self.unknown - self.refused:
            self.problem(f"never sent and there: {sorted(strange)}")
        self.finding.there_all_the_same = len((self.refused - self.done) & there.keys())
        self.verify(store, "verify")
        for number in range(_STEPS):
            send(memory, _step(number))
        if sorted(observe(memory.episodes())) != list(range(_STEPS)):
            self.problem("sent again, there is not one of each")
        self.verify(store, "verify after sending again")

    def verify(self, store: Store, when: str) -> None:
        for problem in store.verify().problems:
            self.problem(f"{when}: {problem}")

    def problem(self, text: str) -> None:
        self.finding.problems.append(text)


def _step(number: int) -> Step:
    text = Random(number).randbytes(_TEXT_CHARACTERS // 2).hex()
    return Step("store", (number,), text)


def main(write: Callable[[bytes], object] = sys.stdout.buffer.write) -> None:
    """Try one fault after another, until one comes after the last call."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    number = plan.first
    while True:
        directory = Path(plan.root) / f"store-{number}"
        finding = Trial(plan, number, directory).run()
        shutil.rmtree(directory, ignore_errors=True)
        write(msgspec.json.encode(finding) + b"\n")
        sys.stdout.flush()
        if not finding.hit:
            return
        number += plan.every


if __name__ == "__main__":
    main()
