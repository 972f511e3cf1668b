"""A process that stores in a shared store: ``postgres_writer.py URL NAME AGENTS COUNT``."""

from __future__ import annotations

import random
import sys

from qilbee_core import Episode, open_store


def run(url: str, name: str, agents: list[str], count: int) -> None:
    """Store ``count`` episodes by turns, each one twice, and a tenth under keys that all processes share."""
    rng = random.Random(name)
    with open_store(url) as store:
        for number in range(count):
            memory = store.agent_memory(agents[number % len(agents)])
            if number % 10 == 0:
                key = f"shared {number}"
                memory.store_episode(Episode.observation(memory.agent_id, key), idempotency_key=key)
                continue
            episode = Episode.observation(memory.agent_id, f"{name}word number {number}")
            memory.store_episode(episode)
            if rng.random() < 0.5:
                memory.store_episode(episode)
            if number % 7 == 0:
                memory.delete_episode(episode.id)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3].split(","), int(sys.argv[4]))
