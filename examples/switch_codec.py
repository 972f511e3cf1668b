"""Switch the compression of a store that is in use: what was written before stays readable.

python examples/switch_codec.py [DIRECTORY]
"""

import sys
from pathlib import Path

from qilbee_core import Episode, open_store

directory = Path(sys.argv[1] if len(sys.argv) > 1 else "codec-data")

# "value" compresses each record by itself. Left out, RocksDB compresses blocks of many, which is smaller.
for codec in ("none", "snappy", "lz4", "zstd"):
    with open_store(directory, compression_type=codec, compression_scope="value") as store:
        memory = store.agent_memory("bot")
        before = memory.get_statistics().bytes
        memory.store_episodes(
            Episode.conversation("bot", f"What is {n} times {n}?", f"{n} times {n} makes {n * n}.") for n in range(500)
        )
        written = memory.get_statistics().bytes - before
        print(f"{codec:6} {written:7,} bytes for 500 episodes")

with open_store(directory) as store:
    report = store.verify()
    print(f"{report.episodes:,} episodes in four codecs, {len(report.problems)} problems")
