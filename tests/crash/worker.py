"""The program that is crashed: opens a store, does the steps of its agents, and keeps the ledger on standard output.

    python -m crash.worker LOAD

LOAD is a :class:`Load` in JSON. Each step is sent twice at the same time, and both answers go into the ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from qilbee_core import AgentMemory, AsyncAgentMemory, AsyncStore, Store, open_store

from .oracle import Course, Step, observe, send


class Load(msgspec.Struct, kw_only=True):
    """What to do: ``begin`` holds the index of the first step of each agent, ``count`` how many each does."""

    path: str
    settings: dict[str, Any]
    seed: int
    begin: dict[str, int]
    count: int = 1 << 40
    tasks: bool = False
    readers: int = 0
    pause_ms: float = 0.0
    compact_at: int = -1
    repairs: bool = False
    clock_jumps: bool = False


class Work:
    """The load under way."""

    def __init__(self, load: Load, store: Store) -> None:
        self.load = load
        self.store = store
        self.courses = {agent: Course(agent, load.seed) for agent in load.begin}
        self.begun = dict(load.begin)
        self.done = dict(load.begin)
        self.ending = threading.Event()

    def note_begun(self, agent: str, index: int) -> None:
        self.begun[agent] = index + 1
        tell(f"begun {agent} {index}")

    def note_done(self, agent: str, index: int) -> None:
        self.done[agent] = index + 1
        tell(f"done {agent} {index}")

    def between(self, agent: str, index: int) -> None:
        """What else happens between two steps."""
        if index == self.load.compact_at and agent == next(iter(self.courses)):
            self.store.flush()
            self.store.compact()
        if self.load.clock_jumps and index % 5 == 0:
            set_clock(random.randint(-(10**8), 10**8))

    # In threads

    def drive(self, agent: str) -> None:
        memory = self.store.agent_memory(agent)
        course, begin = self.courses[agent], self.load.begin[agent]
        with ThreadPoolExecutor(1) as twin:
            for index in range(begin, begin + self.load.count):
                step = course.step(index)
                self.between(agent, index)
                self.note_begun(agent, index)
                other = twin.submit(self.once, memory, agent, index, step)
                self.once(memory, agent, index, step)
                other.result()
                if self.load.pause_ms:
                    self.ending.wait(self.load.pause_ms / 1000)

    def once(self, memory: AgentMemory, agent: str, index: int, step: Step) -> None:
        send(memory, step)
        self.note_done(agent, index)

    def read(self, number: int) -> None:
        """Look at one agent after another: what it holds is what some number of its steps makes."""
        draw = random.Random(number)
        courses = {agent: Course(agent, self.load.seed) for agent in self.courses}
        while not self.ending.is_set():
            agent = draw.choice(list(courses))
            least = self.done[agent] - 1  # an earlier answer of the pair may be about to be told
            state = observe(self.store.agent_memory(agent).episodes())
            most = self.begun[agent]
            if not any(courses[agent].state(count) == state for count in range(max(0, least), most + 1)):
                tell(f"wrong a reader of {agent} saw {len(state)} episodes between its steps {least} and {most}")

    def repair(self) -> None:
        while not self.ending.is_set():
            self.store.repair()

    def in_threads(self) -> None:
        helpers = [threading.Thread(target=self.read, args=(number,)) for number in range(self.load.readers)]
        if self.load.repairs:
            helpers.append(threading.Thread(target=self.repair))
        for helper in helpers:
            helper.start()
        try:
            with ThreadPoolExecutor(len(self.courses)) as pool:
                for future in [pool.submit(self.drive, agent) for agent in self.courses]:
                    future.result()
        finally:
            self.ending.set()
            for helper in helpers:
                helper.join()

    # In tasks

    async def in_tasks(self) -> None:
        store = AsyncStore(self.store)
        await asyncio.gather(*(self.drive_async(store, agent) for agent in self.courses))

    async def drive_async(self, store: AsyncStore, agent: str) -> None:
        memory = store.agent_memory(agent)
        course, begin = self.courses[agent], self.load.begin[agent]
        for index in range(begin, begin + self.load.count):
            step = course.step(index)
            self.between(agent, index)
            self.note_begun(agent, index)
            await asyncio.gather(
                self.once_async(memory, agent, index, step), self.once_async(memory, agent, index, step)
            )
            await asyncio.sleep(self.load.pause_ms / 1000)

    async def once_async(self, memory: AsyncAgentMemory, agent: str, index: int, step: Step) -> None:
        await send(memory, step)
        self.note_done(agent, index)


def tell(line: str) -> None:
    """Write a line of the ledger, at once and whole."""
    os.write(1, f"{line}\n".encode())


def set_clock(seconds: int) -> None:
    """Set the clock of this process so many seconds off."""
    import ctypes

    ctypes.CDLL(None).qilbee_shim_clock(ctypes.c_int64(seconds))


def main() -> None:
    """Do the load that the command line holds."""
    load = msgspec.json.decode(sys.argv[1], type=Load)
    if load.clock_jumps:
        set_clock(random.randint(-(10**8), 10**8))
    tell("opening")
    with open_store(load.path, **load.settings) as store:
        tell("opened")
        work = Work(load, store)
        if load.tasks:
            asyncio.run(work.in_tasks())
        else:
            work.in_threads()


if __name__ == "__main__":
    main()
