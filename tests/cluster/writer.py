"""The program that stores while the cluster fails: some writers, each with one episode under way, and their ledger.

    python -m cluster.writer LOAD

LOAD is a :class:`Load` in JSON. Whatever is not acknowledged is sent again, the same episode with the same id, until it
is. The ledger goes to standard output; times are in seconds on the clock that all processes share:

==============================  ======================================================
``opened``                      the store is open
``begun TEXT``                  before the first call for an episode
``done TEXT TIME TOOK``         after a call for it has returned
``failed TEXT TIME TOOK KIND``  after a call for it has raised
==============================  ======================================================

It ends when standard input does, as soon as each writer has its episode acknowledged.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time

import msgspec

from qilbee_core import Episode, OutcomeUnknownError, StorageError, Store, open_store

_PAUSE_S = 0.05


class Load(msgspec.Struct, kw_only=True):
    """What to do: one writer for each of ``agents``."""

    name: str
    dsn: str
    seed: int
    agents: list[str]
    engine: dict[str, str | int]


def write(store: Store, load: Load, agent: str, ending: threading.Event) -> None:
    """Store one episode after the other; every fourth under a key, for which the store draws the id."""
    memory = store.agent_memory(agent)
    random_ = random.Random(f"{load.seed} {load.name} {agent}")
    number = 0
    while not ending.is_set():
        number += 1
        text = f"{load.name}/{agent}/{number}"
        content = {"text": text, "padding": "x" * random_.randrange(1500)}
        episode = Episode(agent, "note", content)
        key = text if random_.random() < 0.25 else None
        tell(f"begun {text}")
        while True:
            began = time.monotonic()
            try:
                if key is None:
                    memory.store_episode(episode)
                else:
                    memory.store_episode(Episode(agent, "note", content), idempotency_key=key)
            except (OutcomeUnknownError, StorageError) as error:
                now = time.monotonic()
                tell(f"failed {text} {now:.4f} {now - began:.4f} {type(error).__name__}")
                time.sleep(_PAUSE_S)
            else:
                now = time.monotonic()
                tell(f"done {text} {now:.4f} {now - began:.4f}")
                break


def tell(line: str) -> None:
    """Write a line of the ledger, at once and whole."""
    os.write(1, f"{line}\n".encode())


def main() -> None:
    """Do the load that the command line holds."""
    load = msgspec.json.decode(sys.argv[1], type=Load)
    ending = threading.Event()
    with open_store(load.dsn, durability="sync", engine=load.engine) as store:
        tell("opened")
        threads = [threading.Thread(target=write, args=(store, load, agent, ending)) for agent in load.agents]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        ending.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
