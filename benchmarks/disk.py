"""Bytes on disk beside the same episodes as JSON text, on real conversations.

    python benchmarks/disk.py --data locomo5.json

The data are conversations in LoCoMo's format, which are not part of this project. One conversation is one agent.
What is counted is the whole data directory after ``compact()`` and ``close()``: tables, logs, options, everything.
An engine's fixed files weigh on so small a store, so each figure is shown a second time with every conversation
stored under 20 agents. Those have ids and keys of their own and lie far apart, so they gain nothing from each other.
Each store is measured without search, and with the search terms of all its episodes.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from _episodes import compacted_bytes
from _measure import console, machine, verdict
from rich.table import Table

from qilbee_core import Episode, SearchSettings, Settings, Store, open_store
from qilbee_core.keys import Space

COPIES = 20
LZ4_MOST, ZSTD_MOST, VALUE_ZSTD_MOST = 40.0, 30.0, 66.0
LZ4_SEARCH_MOST, ZSTD_SEARCH_MOST = 55.0, 45.0

Pairs = list[tuple[bytes, bytes]]
Make = Callable[[list[Any]], Iterator[Episode]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file in LoCoMo's format")
    samples = msgspec.json.decode(parser.parse_args().data.read_bytes())
    console.print(machine())
    for title, make in (("a turn is an episode", turns), ("two turns are one exchange", exchanges)):
        for copies in (1, COPIES):
            blocks(title, make, samples, copies)
        values(title, make, samples)


# Episodes


def turns(samples: list[Any]) -> Iterator[Episode]:
    """One episode for each turn."""
    for agent_id, session, began, spoken in sessions(samples):
        for number, turn in enumerate(spoken):
            yield Episode(
                agent_id,
                "conversation",
                {"speaker": turn["speaker"], "text": turn["text"]},
                metadata={"session_id": session},
                event_time=began + timedelta(seconds=number),
            )


def exchanges(samples: list[Any]) -> Iterator[Episode]:
    """One episode for each two turns; the last of an odd number stays without an answer."""
    for agent_id, session, began, spoken in sessions(samples):
        for number in range(0, len(spoken), 2):
            first, second = (each["text"] for each in (*spoken[number : number + 2], {"text": ""})[:2])
            yield Episode.conversation(
                agent_id,
                first,
                second,
                metadata={"session_id": session},
                event_time=began + timedelta(seconds=number),
            )


def sessions(samples: list[Any]) -> Iterator[tuple[str, str, datetime, list[Any]]]:
    """Agent, session, its beginning, its turns."""
    for sample in samples:
        for name, spoken in sample["conversation"].items():
            if re.fullmatch(r"session_\d+", name):
                text = sample["conversation"][f"{name}_date_time"]
                began = datetime.strptime(text, "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
                yield sample["sample_id"], name, began, spoken


def wire_json(episode: Episode) -> bytes:
    """An episode as the HTTP interface gives it: compact, UTF-8, times in Unix seconds."""
    assert episode.transaction_time is not None
    return msgspec.json.encode(
        {
            "episodeId": episode.id,
            "agentId": episode.agent_id,
            "episodeType": episode.episode_type,
            "content": episode.content,
            "eventTime": seconds(episode.event_time),
            "metadata": episode.metadata,
            "transactionTime": seconds(episode.transaction_time),
            "relevance": 1.0,  # by the time it is read it has decayed to a longer number, which would flatter us
            "memoryType": episode.memory_type,
        }
    )


def seconds(moment: datetime) -> int | float:
    """Unix seconds: an integer where whole."""
    stamp = moment.timestamp()
    return int(stamp) if stamp.is_integer() else stamp


# Stores


def fill(store: Store, make: Make, samples: list[Any], copies: int) -> None:
    """Store every conversation under ``copies`` agents, one episode at a time as it was spoken."""
    for copy in range(copies):
        for episode in make(samples):
            if copy:
                episode.agent_id = f"{episode.agent_id}-{copy}"
            store.agent_memory(episode.agent_id).store_episode(episode)
    if store.settings.search.indexing != "off":
        for agent_id in store.agents():
            store.agent_memory(agent_id).search_episodes("?")  # which indexes all that is pending


def all_json_bytes(store: Store) -> tuple[int, int]:
    """How many episodes there are, and what they take as JSON."""
    sizes = [
        len(wire_json(episode)) for agent_id in store.agents() for episode in store.agent_memory(agent_id).episodes()
    ]
    return len(sizes), sum(sizes)


def directory_bytes(directory: str) -> dict[str, int]:
    """Bytes of all files below, by kind."""
    kinds: dict[str, int] = defaultdict(int)
    for path in Path(directory).rglob("*"):
        if path.is_file():
            kinds["tables" if path.suffix in {".sst", ".ldb"} else "all else"] += path.stat().st_size
    return kinds


def families(store: Store) -> dict[str, Pairs]:
    """Everything in the store, by the family of its key."""
    found: dict[str, Pairs] = defaultdict(list)
    for key, value in store._backend.scan():
        found[Space(key[0]).name].append((key, value))
    return found


# Figures


def blocks(title: str, make: Make, samples: list[Any], copies: int) -> None:
    """Engines that compress their own blocks."""
    times = f"{copies} agents for each conversation" if copies > 1 else "as it is"
    table = Table(title=f"data directory as a share of wire JSON: {title}, {times}", title_justify="left")
    for heading in (
        "engine, codec, search",
        "episodes",
        "JSON kB",
        "disk kB",
        "tables kB",
        "all else kB",
        "share",
        "target",
        "",
    ):
        table.add_column(heading, justify="right" if heading != "engine, codec, search" else "left")
    by_family: dict[str, dict[str, tuple[int, int, int]]] = {}
    arms: list[tuple[str, str, bool, float | None]] = [
        ("rocksdb", "lz4", False, LZ4_MOST),
        ("rocksdb", "zstd", False, ZSTD_MOST),
        ("rocksdb", "lz4", True, LZ4_SEARCH_MOST),
        ("rocksdb", "zstd", True, ZSTD_SEARCH_MOST),
        ("rocksdb", "none", True, None),
        ("leveldb", "snappy", True, None),
    ]
    for backend, codec, search, most in arms:
        with TemporaryDirectory(prefix="qilbee-disk-") as directory:
            settings = Settings(search=SearchSettings(indexing="background" if search else "off")).with_storage(
                {"data_path": directory, "backend": backend, "compression_type": codec}
            )
            with open_store(settings) as store:
                fill(store, make, samples, copies)
                number, json_bytes = all_json_bytes(store)
                store.compact()
                if backend == "rocksdb" and search:
                    by_family[codec] = {
                        name: (
                            len(pairs),
                            sum(len(key) + len(value) for key, value in pairs),
                            compacted_bytes(pairs, codec),
                        )
                        for name, pairs in families(store).items()
                    }
            kinds = directory_bytes(directory)
        share = 100 * sum(kinds.values()) / json_bytes
        table.add_row(
            f"{backend}, {codec}, {'on' if search else 'off'}",
            f"{number:,}",
            *(f"{size / 1000:.0f}" for size in (json_bytes, sum(kinds.values()), kinds["tables"], kinds["all else"])),
            f"{share:.1f} %",
            "" if most is None else f"<= {most:g} %",
            verdict(share, most),
        )
    console.print(table)
    family_table(by_family, json_bytes, f"{title}, {times}")


def family_table(by_family: dict[str, dict[str, tuple[int, int, int]]], json_bytes: int, title: str) -> None:
    """Where the bytes of the tables are: each family written to a database of its own, with the same options."""
    table = Table(title=f"rocksdb tables by key family, before closing: {title}", title_justify="left")
    for heading in ("family", "keys", "raw kB", *(f"{codec} kB" for codec in by_family), "lz4 share of JSON", "zstd"):
        table.add_column(heading, justify="right" if heading != "family" else "left")
    for name, (number, raw_bytes, lz4_bytes) in sorted(by_family["lz4"].items()):
        table.add_row(
            name,
            f"{number:,}",
            f"{raw_bytes / 1000:.0f}",
            *(f"{sizes[name][2] / 1000:.1f}" for sizes in by_family.values()),
            f"{100 * lz4_bytes / json_bytes:.1f} %",
            f"{100 * by_family['zstd'][name][2] / json_bytes:.1f} %",
        )
    console.print(table)


def values(title: str, make: Make, samples: list[Any]) -> None:
    """Engines that leave their blocks as they are: each record compressed by itself."""
    table = Table(title=f"each value compressed by itself: sealed records of {title}", title_justify="left")
    for heading in ("codec", "records kB", "share of uncompressed", "target", "", "share of wire JSON"):
        table.add_column(heading, justify="right" if heading != "codec" else "left")
    raw_bytes = 0
    for codec, most in (("none", None), ("lz4", None), ("snappy", None), ("zstd", VALUE_ZSTD_MOST)):
        settings = Settings().with_storage(
            {"backend": "ephemeral", "compression_type": codec, "compression_scope": "value"}
        )
        with open_store(settings) as store:
            fill(store, make, samples, 1)
            _, json_bytes = all_json_bytes(store)
            record_bytes = sum(len(value) for _, value in families(store)[Space.EPISODE.name])
        raw_bytes = raw_bytes or record_bytes
        share = 100 * record_bytes / raw_bytes
        table.add_row(
            codec,
            f"{record_bytes / 1000:.0f}",
            f"{share:.1f} %",
            "" if most is None else f"<= {most:g} %",
            verdict(share, most),
            f"{100 * record_bytes / json_bytes:.1f} %",
        )
    console.print(table)


if __name__ == "__main__":
    main()
