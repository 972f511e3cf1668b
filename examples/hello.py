"""Store two conversations, close the store, open it again, and find them.

python examples/hello.py [DIRECTORY]
"""

import sys

from qilbee_core import Episode, open_store

directory = sys.argv[1] if len(sys.argv) > 1 else "hello-data"

with open_store(directory) as store:
    memory = store.agent_memory("support")
    memory.store_episode(Episode.conversation("support", "Where is my order?", "It comes on Friday."))
    memory.store_episode(Episode.conversation("support", "Can it come on Monday?", "Yes, I have moved it."))

with open_store(directory) as store:
    memory = store.agent_memory("support")
    for episode in memory.get_recent_episodes(limit=2):
        print(f"{episode.event_time:%H:%M:%S} {episode.content['user_input']} {episode.content['agent_response']}")
    print(f"{memory.get_statistics().total_episodes} episodes are stored")
