"""The owner's specification, snippet by snippet, run as written: through our client, on a server at localhost:7474."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import gettempdir

import pytest

from qilbeedb.exceptions import QilbeeError, UnavailableError
from qilbeedb.memory import AgentMemory, Episode

from .serving import Server

PORT = 7474

DURABILITY_SNIPPET = """
from qilbeedb import QilbeeDB
from qilbeedb.memory import Episode

db = QilbeeDB("http://localhost:7474")
db.login("admin", "password")
memory = db.agent_memory("my-agent")

# This episode is automatically persisted to disk
episode = Episode.conversation(
    "my-agent",
    "What is QilbeeDB?",
    "QilbeeDB is a graph database with agent memory..."
)
episode_id = memory.store_episode(episode)

# Episode survives server restart
# No explicit save or flush required
"""

ISOLATION_SNIPPET = """
# Each agent has isolated storage
sales_memory = db.agent_memory("sales-agent")
support_memory = db.agent_memory("support-agent")

# Episodes are stored separately
sales_memory.store_episode(Episode.conversation(
    "sales-agent", "Pricing inquiry", "Our plans start at..."
))

support_memory.store_episode(Episode.conversation(
    "support-agent", "How do I reset?", "Click forgot password..."
))
"""

BASIC_SNIPPET = """
from qilbeedb import QilbeeDB
from qilbeedb.memory import Episode

# Connect to QilbeeDB
db = QilbeeDB("http://localhost:7474")
db.login("admin", "password")

# Get memory manager for an agent
memory = db.agent_memory("customer-service-bot")

# Store episodes (automatically persisted)
episode = Episode.conversation(
    "customer-service-bot",
    "I need help with my order",
    "I'd be happy to help! What's your order number?"
)
episode_id = memory.store_episode(episode)
print(f"Stored episode: {episode_id}")

# Episodes persist across sessions
# Restart your application or the server - data remains
"""

VERIFYING_SNIPPET = """
# After server restart, episodes are still available
db = QilbeeDB("http://localhost:7474")
db.login("admin", "password")
memory = db.agent_memory("customer-service-bot")

# Get statistics to verify data persisted
stats = memory.get_statistics()
print(f"Total episodes: {stats.total_episodes}")
print(f"Average relevance: {stats.avg_relevance}")

# Retrieve recent episodes
recent = memory.get_recent_episodes(limit=10)
for ep in recent:
    print(f"[{ep.episode_type}] {ep.content}")
"""

SEARCHING_SNIPPET = """
# Search through persisted episodes
results = memory.search_episodes("order number", limit=5)
for episode in results:
    print(f"Found: {episode.content}")
"""

DELETING_SNIPPET = """
# Delete a specific episode
deleted = memory.delete_episode(episode_id)
if deleted:
    print("Episode permanently removed from storage")

# Clear all episodes for an agent
memory.clear()
print("All episodes cleared for this agent")
"""

AGENT_IDS_SNIPPET = """
# Good: Descriptive and consistent
memory = db.agent_memory("customer-support-v2")
memory = db.agent_memory("sales-assistant-prod")

# Avoid: Generic or inconsistent names
memory = db.agent_memory("agent1")
memory = db.agent_memory("test")
"""

RETRY_SNIPPET = """
import time
from qilbeedb.exceptions import MemoryError

def store_with_retry(memory, episode, max_retries=3):
    for attempt in range(max_retries):
        try:
            return memory.store_episode(episode)
        except MemoryError as e:
            if attempt == max_retries - 1:
                raise
            time.sleep(1 * (attempt + 1))
"""

MONITORING_SNIPPET = """
stats = memory.get_statistics()

# Monitor episode count
if stats.total_episodes > 100000:
    print("Warning: High episode count, consider consolidation")

# Check relevance distribution
if stats.avg_relevance < 0.3:
    print("Many low-relevance episodes, consider forgetting")
"""

TYPES_SNIPPET = """
# Conversations: User interactions
Episode.conversation(agent_id, user_input, response)

# Observations: Environmental data
Episode.observation(agent_id, "CPU usage at 85%")

# Actions: Agent decisions and outcomes
Episode.action(agent_id, "Scaled to 4 instances", "Latency reduced")
"""


def run(snippet: str, names: dict[str, object]) -> None:
    exec(compile(snippet, "memory-persistence.md", "exec"), names)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with (Path(gettempdir()) / f"qilbeedb-test-{PORT}.lock").open("w") as turn:
        flock(turn, LOCK_EX)  # there is one such port, and tests run side by side
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                pytest.skip("somebody else listens on port 7474 of this machine")
        with Server(tmp_path, port=PORT, password="password") as server:
            yield server


def test_every_snippet_runs_as_written_and_in_this_order(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    run(DURABILITY_SNIPPET, names)
    first, first_id = names["episode"], names["episode_id"]
    run(ISOLATION_SNIPPET, names)
    run(BASIC_SNIPPET, names)
    episode_id = names["episode_id"]
    assert capsys.readouterr().out == f"Stored episode: {episode_id}\n"

    server.kill()
    server.start()
    run(VERIFYING_SNIPPET, names)
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"Total episodes: 1\n"
        r"Average relevance: 0\.99\d+\n"
        r"\[conversation\] {'user_input': 'I need help with my order'.*\n",
        said,
    )
    run(SEARCHING_SNIPPET, names)
    assert capsys.readouterr().out.startswith("Found: {'user_input': 'I need help with my order'")
    run(MONITORING_SNIPPET, names)
    assert capsys.readouterr().out == ""
    run(DELETING_SNIPPET, {**names, "episode_id": episode_id})
    assert capsys.readouterr().out == (
        "Episode permanently removed from storage\nAll episodes cleared for this agent\n"
    )
    run(AGENT_IDS_SNIPPET, names)
    run(TYPES_SNIPPET, {**names, "agent_id": "my-agent", "user_input": "Hello", "response": "Hi"})

    run(
        "memory = db.agent_memory('my-agent')\nfound = memory.get_episode(episode_id)",
        {**names, "episode_id": first_id},
    )
    run("found = db.agent_memory('my-agent').get_recent_episodes()", names)
    assert names["found"] == [first]


def test_the_retry_of_the_specification_works(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {}
    run(DURABILITY_SNIPPET, names)
    run(RETRY_SNIPPET, names)
    memory = names["memory"]
    assert isinstance(memory, AgentMemory)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    names["later"] = Episode.observation("my-agent", "stored when the server is back")
    server.kill()
    with pytest.raises(QilbeeError) as caught:
        run("store_with_retry(memory, later)", names)
    assert isinstance(caught.value, UnavailableError)
    server.start()
    run("id = store_with_retry(memory, later)", names)
    assert memory.get_statistics().total_episodes == 2
