"""Several processes on one store."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from postgres_server import fresh_url, needs_postgres

from qilbee_core import AgentMemory, Episode, OutcomeUnknownError, StorageError, open_store

pytestmark = needs_postgres

WRITER = Path(__file__).with_name("postgres_writer.py")
COUNT = 60
PATIENCE_S = 120.0


@pytest.mark.parametrize("agents", [["one"], ["one", "two", "three"]])
def test_writers_in_three_processes_lose_nothing_and_store_nothing_twice(agents: list[str]) -> None:
    url, names = fresh_url(), ["heron", "otter", "badger"]
    with open_store(url) as store:
        writers = [
            subprocess.Popen([sys.executable, WRITER, url, name, ",".join(agents), str(COUNT)]) for name in names
        ]
        for writer in writers:
            assert writer.wait(PATIENCE_S) == 0

        kept = {number for number in range(COUNT) if number % 10 and number % 7}
        expected = Counter(f"{name}word number {number}" for name in names for number in kept)
        expected.update(f"shared {number}" for number in range(0, COUNT, 10))
        memories = [store.agent_memory(agent) for agent in agents]
        assert store.agents() == sorted(agents)
        found = Counter(str(each.content["observation"]) for memory in memories for each in memory.episodes())
        assert found == expected
        assert sum(memory.get_statistics().total_episodes for memory in memories) == expected.total()
        assert store.verify().problems == []


def test_each_process_finds_what_the_other_has_stored() -> None:
    url = fresh_url()
    with open_store(url) as mine, open_store(url) as other:  # two stores: nothing in RAM is shared
        words = ["heron", "otter", "badger"]
        for word in words:
            mine.agent_memory("bot").store_episode(Episode.observation("bot", f"a {word} by the river"))
            _finds(other.agent_memory("bot"), word)
            other.agent_memory("bot").store_episode(Episode.observation("bot", f"the {word}x has gone"))
            _finds(mine.agent_memory("bot"), f"{word}x")
        assert mine.verify().problems == other.verify().problems == []


def _finds(memory: AgentMemory, word: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(word in str(each.episode.content) for each in memory.semantic_search(word, 3)):
        assert time.monotonic() < deadline, f"{word} is not found: {memory.get_semantic_search_status()}"
        time.sleep(0.01)


def test_a_process_that_is_killed_while_it_stores_leaves_whole_writes() -> None:
    url = fresh_url()
    with open_store(url) as store:
        writer = subprocess.Popen([sys.executable, WRITER, url, "heron", "one", "100000"])
        memory, deadline, beside = store.agent_memory("one"), time.monotonic() + PATIENCE_S, 0
        while memory.get_statistics().total_episodes < beside + 30:
            assert time.monotonic() < deadline
            try:
                memory.store_episode(Episode.observation("one", "beside"))
                beside += 1
            except (OutcomeUnknownError, StorageError) as error:
                pytest.fail(f"a writer beside it was disturbed: {error}")
        writer.kill()
        writer.wait(PATIENCE_S)
        memory.store_episode(Episode.observation("one", "after"))
        assert memory.get_statistics().total_episodes == len(list(memory.episodes()))
        assert store.verify().problems == []
