"""Many conversations at once: asyncio tasks that store what they say, durable when each ``await`` returns.

python examples/async_agent.py [DIRECTORY]
"""

import asyncio
import sys

from qilbee_core import AsyncAgentMemory, Episode, aopen_store


async def answer(memory: AsyncAgentMemory, customer: int, question: str) -> None:
    """What an agent does: think (here: wait), answer, remember."""
    await asyncio.sleep(0.001 * (customer % 7))
    reply = f"Dear customer {customer}, we look into it."
    await memory.store_episode(
        Episode.conversation(memory.agent_id, question, reply, metadata={"customer": customer}),
        idempotency_key=f"customer {customer}: {question}",
    )


async def main(directory: str) -> None:
    """Ask for all of them at once. Tasks that wait for the disk share one sync."""
    async with await aopen_store(directory, sync_writes=True) as store:
        memory = store.agent_memory("support")
        await asyncio.gather(*(answer(memory, customer, "Where is my parcel?") for customer in range(200)))
        statistics = await memory.get_statistics()
        print(f"{statistics.total_episodes} conversations survive a power cut")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "async-data"))
