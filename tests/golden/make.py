"""Make the golden stores of this release: stores as it writes them, and all that must be read from them for ever.

Run once for each release, and never again for that release::

    python tests/golden/make.py 0.1.0

Each store is a .tar.gz with ``data`` (the data directory) and ``expected.json``.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from qilbee_core import AgentMemory, Episode, JSONObject, MemoryType, Plan, Store, open_store

HERE = Path(__file__).parent
# What engines write beside their data: diagnostics, locks.
STRIPPED = ("LOG", "LOG.old*", "LOCK", "qilbee.lock")

VALUE = {"compression_scope": "value"}
# Name -> the openings that wrote the store, one after the other.
STORES: dict[str, list[dict[str, Any]]] = {
    "rocksdb-none-msgpack": [{"compression_type": "none"}],
    "rocksdb-lz4-block-msgpack": [{"compression_type": "lz4"}],
    "rocksdb-snappy-block-json": [{"compression_type": "snappy", "serializer": "json"}],
    "rocksdb-zstd-block-msgpack": [{"compression_type": "zstd"}],
    "rocksdb-lz4-value-json": [{"compression_type": "lz4", "serializer": "json", **VALUE}],
    "rocksdb-snappy-value-msgpack": [{"compression_type": "snappy", **VALUE}],
    "rocksdb-zstd-value-msgpack": [{"compression_type": "zstd", **VALUE}],
    "rocksdb-mixed": [
        {"compression_type": "zstd", **VALUE},
        {"compression_type": "none", "serializer": "json"},
        {"compression_type": "lz4", "serializer": "json", **VALUE},
        {"compression_type": "snappy"},
    ],
    "rocksdb-killed": [{"compression_type": "lz4", "sync_writes": True}],
    "rocksdb-retired": [{"compression_type": "zstd"}],
    "leveldb-none-json": [{"compression_type": "none", "serializer": "json"}],
    "leveldb-snappy-block-msgpack": [{"compression_type": "snappy"}],
    "leveldb-zstd-value-msgpack": [{"compression_type": "zstd"}],
    "leveldb-killed": [{"compression_type": "none", "sync_writes": True}],
    "leveldb-retired": [{"compression_type": "snappy", "serializer": "json"}],
}

AGENTS = ("bot", "bot:\u6771\u4eac \U0001f375")
FAR_AWAY = datetime(9000, 1, 1, tzinfo=UTC)
START = datetime(2026, 1, 5, 9, 30, 0, 123_456, tzinfo=UTC)
TALK = "The order was placed on Monday and has not arrived. The parcel left the depot on Tuesday. "
MEMORY_TYPES: tuple[MemoryType, ...] = ("episodic", "semantic", "procedural", "factual")
ALL_OF_JSON: JSONObject = {
    "": "an empty key",
    "text": 'caf\u00e9 \u6771\u4eac \U0001f375 \u202eright to left\u202c \x00\x1f\x7f "quoted" \\ /',
    "numbers": [0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 0.1, -0.0, 1e308, 5e-324, 1.0],
    "constants": [None, True, False],
    "empty": [{}, [], ""],
    "nested": {"a": [{"b": [{"c": [{"d": "deep"}]}]}]},
}


def id_at(event_time: datetime, number: int) -> str:
    """An id that is the same on every run."""
    high = (event_time - datetime(1, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    low = 2 << 62 | 1_767_605_400_000 << 20 | number
    text = f"{(high >> 12) << 80 | 8 << 76 | (high & 0xFFF) << 64 | low:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def episodes_of(agent_id: str) -> list[tuple[Episode, str | None]]:
    """Episodes of every kind with their idempotency keys, in the order of storing."""
    made: list[tuple[Episode, str | None]] = []

    def add(
        kind: str,
        content: JSONObject,
        *,
        at: datetime | None = None,
        metadata: JSONObject | None = None,
        memory_type: MemoryType = "episodic",
        relevance: float = 1.0,
        key: str | None = None,
    ) -> None:
        event_time = START + timedelta(minutes=7 * len(made)) if at is None else at
        given_id = id_at(event_time, len(made))
        episode = Episode(
            agent_id, kind, content, metadata=metadata, memory_type=memory_type, relevance=relevance, id=given_id
        )
        made.append((episode, key))

    for number in range(6):
        content = {"user_input": TALK + str(number), "agent_response": TALK * 2}
        add("conversation", content, metadata={"turn": number, "channel": "chat"})
    for memory_type in MEMORY_TYPES:
        for relevance in (1.0, 0.5, 0.3, 0.0):
            content = {"observation": f"{memory_type} at {relevance}"}
            key = f"{memory_type} {relevance}" if relevance == 0.5 else None
            add("observation", content, memory_type=memory_type, relevance=relevance, key=key)
    add("action", {"action": "scaled to 4 instances", "result": "latency reduced"}, key="scaled")
    add("caf\u00e9 \u6771\u4eac", ALL_OF_JSON, metadata=ALL_OF_JSON)
    add("empty", {})
    add("long", {"text": TALK * 200, "lines": [TALK + str(number) for number in range(50)]})
    add("first", {"text": "the first moment there is"}, at=datetime(1, 1, 1, tzinfo=UTC))
    add("last", {"text": "the last"}, at=datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    add("before 1970", {"text": "a moon landing"}, at=datetime(1969, 7, 20, 20, 17, 40, tzinfo=UTC))
    return made


def fill(memory: AgentMemory, part: slice) -> None:
    """Store a part of the episodes, singly and in a batch; update some, delete some."""
    agent_id = memory.agent_id
    episodes = episodes_of(agent_id)[part]
    batch = [episode for episode, key in episodes if key is None][-3:]
    for episode, key in episodes:
        if episode not in batch:
            memory.store_episode(episode, idempotency_key=key)
    memory.store_episodes(batch)
    first, second = episodes[0][0], episodes[1][0]
    for version in range(3):
        memory.update_episode(first.id, content={"text": f"version {version}"}, metadata={"version": version})
    memory.update_episode(second.id, episode_type="corrected")
    for number in range(3):
        at = START + timedelta(days=1, minutes=number)
        gone = Episode(agent_id, "secret", {"text": "deleted-canary"}, id=id_at(at, 900 + number))
        memory.store_episode(gone, idempotency_key=f"gone {number}" if number else None)
        memory.update_episode(gone.id, metadata={"seen": True})
        memory.delete_episode(gone.id)
    for number in range(20):  # on an engine with one opener the stored head lags behind these
        at = START + timedelta(days=part.start + 2, minutes=number)
        memory.store_episode(Episode(agent_id, "note", {"text": f"late {number}"}, id=id_at(at, 500 + number)))


class OneForFour:
    """A consolidation policy: of the notes one takes the place of three, and one is forgotten."""

    name = "golden.notes"

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        first, *others = [episode for episode in episodes if episode.episode_type == "note"][:5]
        return Plan(supersede={each.id: first.id for each in others[:3]}, forget=[others[3].id])


def retire(memory: AgentMemory) -> list[str]:
    """Retire episodes in every way there is; gives their ids."""
    notes = [episode.id for episode in memory.episodes() if episode.episode_type == "note"]
    memory.update_episode(notes[0], content={"text": "an earlier version"}, metadata={"seen": True})
    memory.pin(notes[1])
    last = START + timedelta(days=9)
    keyed = Episode(memory.agent_id, "note", {"text": "known by its key"}, id=id_at(last, 990), expires_at=FAR_AWAY)
    memory.store_episode(keyed, idempotency_key="of a retired one")
    gone = [notes[0], notes[1], keyed.id]
    for stored_id in gone:
        memory.invalidate(stored_id)
    result = memory.consolidate(OneForFour())
    return [*gone, *result.superseded, *result.forgotten]


def ended(version: Episode) -> dict[str, Any]:
    assert version.ended_at is not None
    return described(version) | {"ended_at": version.ended_at.isoformat(), "superseded_by": version.superseded_by}


def described(episode: Episode) -> dict[str, Any]:
    assert episode.transaction_time is not None
    return {
        "id": episode.id,
        "agent_id": episode.agent_id,
        "episode_type": episode.episode_type,
        "memory_type": episode.memory_type,
        "content": episode.content,
        "metadata": episode.metadata,
        "event_time": episode.event_time.isoformat(),
        "transaction_time": episode.transaction_time.isoformat(),
    }


def expected_of(store: Store, openings: list[dict[str, Any]], retired: dict[str, list[str]]) -> dict[str, Any]:
    """All that can be read, and what was given that cannot: strength and idempotency keys."""
    agents: dict[str, Any] = {}
    for agent_id in store.agents():
        memory = store.agent_memory(agent_id)
        statistics = memory.get_statistics()
        given = {episode.id: (episode, key) for episode, key in episodes_of(agent_id)}
        episodes = list(memory.episodes())
        versions = {episode.id: memory.history(episode.id) for episode in episodes}
        rows = []
        for episode in episodes:
            first = (versions[episode.id] or [episode])[0]
            strength = given[episode.id][0].relevance if episode.id in given else 1.0
            rows.append(
                described(episode) | {"strength": strength, "decays_from": described(first)["transaction_time"]}
            )
        agents[agent_id] = {
            "episodes": rows,
            "retired": {key: [ended(version) for version in memory.history(key)] for key in retired.get(agent_id, [])},
            "history": {key: [described(version) for version in found] for key, found in versions.items() if found},
            "idempotency_keys": {key: episode.id for episode, key in given.values() if key and episode.id in versions},
            "total_episodes": statistics.total_episodes,
            "episodes_by_type": dict(statistics.episodes_by_type),
            "bytes": statistics.bytes,
        }
    return {"backend": store.stats()["backend"], "openings": openings, "agents": agents}


def make(name: str, openings: list[dict[str, Any]], target: Path) -> None:
    """Write one store and pack it."""
    backend = name.partition("-")[0]
    killed = name.endswith("killed")
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        whole = len(episodes_of("bot"))
        step = -(-whole // len(openings))
        for number, opening in enumerate(openings):
            store = open_store(data, backend=backend, **opening)
            part = slice(number * step, min(whole, (number + 1) * step))
            for agent_id in (*AGENTS, "cleared"):
                fill(store.agent_memory(agent_id), part)
            store.agent_memory("cleared").clear()
            retires = name.endswith("retired")
            retired = {agent_id: retire(store.agent_memory(agent_id)) for agent_id in AGENTS if retires}
            expected = expected_of(store, openings, retired)
            if killed:  # the directory as the death of the process would leave it
                shutil.copytree(data, Path(scratch) / "copy")
            else:
                store.compact()
            store.close()
        pack(target, Path(scratch) / "copy" if killed else data, json.dumps(expected, indent=1).encode())


def pack(target: Path, data: Path, expected: bytes) -> None:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        add(archive, "expected.json", expected)
        for path in sorted(data.rglob("*")):
            if path.is_file() and not any(path.match(pattern) for pattern in STRIPPED):
                add(archive, f"data/{path.relative_to(data)}", path.read_bytes())
    with target.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as compressed:
        compressed.write(packed.getvalue())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    archive.addfile(info, BytesIO(content))


def main(arguments: list[str], say: Callable[[str], object] = print) -> int:
    if len(arguments) != 1:
        say(f"usage: {sys.argv[0]} RELEASE")
        return 2
    directory = HERE / arguments[0]
    if directory.exists():
        say(f"{directory} exists: what a release wrote is never written again")
        return 1
    directory.mkdir()
    for name, openings in STORES.items():
        make(name, openings, directory / f"{name}.tar.gz")
        say(f"{name}: {(directory / f'{name}.tar.gz').stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
