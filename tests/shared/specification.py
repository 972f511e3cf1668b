"""The snippets of the owner's specification, word for word, for the tests that run them as written."""

from __future__ import annotations

STORING = """
episode = Episode.conversation(
    "my-agent",
    "What is QilbeeDB?",
    "QilbeeDB is a graph database with agent memory..."
)
episode_id = memory.store_episode(episode)
"""

DURABILITY = f"""
from qilbeedb import QilbeeDB
from qilbeedb.memory import Episode

db = QilbeeDB("http://localhost:7474")
db.login("admin", "password")
memory = db.agent_memory("my-agent")

# This episode is automatically persisted to disk
{STORING.strip()}

# Episode survives server restart
# No explicit save or flush required
"""

ISOLATION = """
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

BASIC = """
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

STATISTICS = """
# Get statistics to verify data persisted
stats = memory.get_statistics()
print(f"Total episodes: {stats.total_episodes}")
print(f"Average relevance: {stats.avg_relevance}")

# Retrieve recent episodes
recent = memory.get_recent_episodes(limit=10)
for ep in recent:
    print(f"[{ep.episode_type}] {ep.content}")
"""

VERIFYING = f"""
# After server restart, episodes are still available
db = QilbeeDB("http://localhost:7474")
db.login("admin", "password")
memory = db.agent_memory("customer-service-bot")

{STATISTICS.strip()}
"""

SEARCHING = """
# Search through persisted episodes
results = memory.search_episodes("order number", limit=5)
for episode in results:
    print(f"Found: {episode.content}")
"""

DELETING = """
# Delete a specific episode
deleted = memory.delete_episode(episode_id)
if deleted:
    print("Episode permanently removed from storage")

# Clear all episodes for an agent
memory.clear()
print("All episodes cleared for this agent")
"""

AGENT_IDS = """
# Good: Descriptive and consistent
memory = db.agent_memory("customer-support-v2")
memory = db.agent_memory("sales-assistant-prod")

# Avoid: Generic or inconsistent names
memory = db.agent_memory("agent1")
memory = db.agent_memory("test")
"""

RETRY = """
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

MONITORING = """
stats = memory.get_statistics()

# Monitor episode count
if stats.total_episodes > 100000:
    print("Warning: High episode count, consider consolidation")

# Check relevance distribution
if stats.avg_relevance < 0.3:
    print("Many low-relevance episodes, consider forgetting")
"""

TYPES = """
# Conversations: User interactions
Episode.conversation(agent_id, user_input, response)

# Observations: Environmental data
Episode.observation(agent_id, "CPU usage at 85%")

# Actions: Agent decisions and outcomes
Episode.action(agent_id, "Scaled to 4 instances", "Latency reduced")
"""

SETTINGS = """
[storage]
data_path = "{data_path}"
enable_wal = true           # Enable write-ahead logging
sync_writes = true          # Sync each write (safer, slower)
wal_sync_interval_ms = 1000 # Sync interval for async writes
enable_compression = true
compression_type = "lz4"    # Options: none, lz4, snappy, zstd
"""
"""``data_path`` is to be put in."""


def run(snippet: str, names: dict[str, object]) -> dict[str, object]:
    """Run a snippet with these names, and give them with those that it makes."""
    exec(compile(snippet, "memory-persistence.md", "exec"), names)
    return names
