"""Episodes to measure with, made of the sample conversations that the package ships, and the raw database beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import msgspec
from rocksdict import BottommostLevelCompaction, CompactOptions, Rdict
from rocksdict import WriteBatch as RawBatch

import qilbee_core
from qilbee_core import (
    BackendOptions,
    DeleteRange,
    Episode,
    JSONObject,
    Put,
    SearchSettings,
    Settings,
    Store,
    WriteBatch,
    open_store,
)
from qilbee_core.backends._rocksdb_options import EngineSettings, rocksdb_options, write_options
from qilbee_core.keys import Space

__all__ = [
    "RECORD_BYTES",
    "Given",
    "RawWrite",
    "compacted_bytes",
    "conversations",
    "fresh_store",
    "given",
    "made",
    "raw_database",
    "recorded",
]

RECORD_BYTES = (500, 250)
"""Sizes of the sealed records that are measured, about."""

# What a record takes beside the two texts: envelope, names of fields, type, transaction time, metadata.
_BESIDE_BYTES = 106


class Given(msgspec.Struct):
    """What a caller has in hand before it makes an episode."""

    user_input: str
    agent_response: str
    metadata: JSONObject


def _sentences() -> list[str]:
    """What was said in the sample conversations, by both sides."""
    lines = (Path(qilbee_core.__file__).parent / "samples" / "conversations.jsonl").read_bytes().splitlines()
    turns = [msgspec.json.decode(line) for line in lines]
    return [text for turn in turns for text in (turn["user_input"], turn["agent_response"])]


def conversations(record_bytes: int, *, seed: int = 1) -> Iterator[Given]:
    """Exchanges without end that make records of about ``record_bytes``, in sessions of ten."""
    random = Random(seed)
    sentences = _sentences()
    side_bytes = (record_bytes - _BESIDE_BYTES) // 2

    def said(characters: int) -> str:
        text = random.choice(sentences)
        while len(text) < characters:
            text = f"{text} {random.choice(sentences)}"
        return text[:characters]

    for number in count():
        length = random.randint(side_bytes // 2, side_bytes * 3 // 2)
        session = f"session-{number // 10:06d}"
        user = f"user-{number // 10 % 97:04d}"
        yield Given(said(length), said(2 * side_bytes - length), {"session_id": session, "user": user})


def given(record_bytes: int, number: int) -> list[Given]:
    """The first ``number`` exchanges."""
    source = conversations(record_bytes)
    return [next(source) for _ in range(number)]


def made(agent_id: str, exchanges: list[Given]) -> list[Episode]:
    """Episodes of them, with ids of now."""
    return [
        Episode.conversation(agent_id, each.user_input, each.agent_response, metadata=each.metadata)
        for each in exchanges
    ]


@contextmanager
def fresh_store(indexing: Literal["background", "off"] = "off", /, **overrides: object) -> Iterator[Store]:
    """A new store on disk with default settings but for ``overrides``, gone afterwards; without search by default."""
    with TemporaryDirectory(prefix="qilbee-bench-") as directory:
        settings = Settings(search=SearchSettings(indexing=indexing)).with_storage(
            {"data_path": directory, **overrides}
        )
        with open_store(settings) as store:
            yield store


class RawWrite(NamedTuple):
    """What one batch of ours consists of, for rocksdict alone."""

    puts: list[tuple[bytes, bytes]]
    ranges: list[tuple[bytes, bytes]]

    @property
    def record(self) -> tuple[bytes, bytes]:
        """Key and sealed value of the episode, the first thing that a store writes."""
        return self.puts[0]

    def to(self, database: Rdict) -> None:
        """Write it, with nothing around it that rocksdict does not ask for."""
        raw = RawBatch(True)
        put = raw.put
        for key, value in self.puts:
            put(key, value)
        for start, stop in self.ranges:
            raw.delete_range(start, stop)
        database.write(raw)


def recorded(agent_id: str, exchanges: list[Given]) -> list[RawWrite]:
    """What the store hands to its engine for these exchanges, stored one after another in a new store."""
    batches: list[WriteBatch] = []
    with fresh_store() as store:
        write = store._backend.write

        def write_and_keep(batch: WriteBatch) -> None:
            batches.append(batch)
            write(batch)

        store._backend.write = write_and_keep  # type: ignore[method-assign]
        memory = store.agent_memory(agent_id)
        for episode in made(agent_id, exchanges):
            memory.store_episode(episode)
    writes = []
    # Without what closing writes, and what search writes meanwhile.
    stores = (batch for batch in batches if isinstance(batch.operations[0], Put) and is_record(batch.operations[0].key))
    for batch in stores:
        puts = [(each.key, each.value) for each in batch.operations if isinstance(each, Put)]
        ranges = [(each.start, each.stop) for each in batch.operations if isinstance(each, DeleteRange)]
        assert len(puts) + len(ranges) == len(batch.operations)
        writes.append(RawWrite(puts, ranges))
    return writes


def is_record(key: bytes) -> bool:
    """Whether it is the key of an episode's record, which a store writes first."""
    return key[0] == Space.EPISODE


@contextmanager
def raw_database(compression: str = "lz4") -> Iterator[Rdict]:
    """A new database with the very options of our backend, without our backend: log on, no sync."""
    with TemporaryDirectory(prefix="qilbee-bench-raw-") as directory:
        options = BackendOptions(path=Path(directory), compression=compression)
        engine = rocksdb_options(options, EngineSettings())
        database = Rdict(f"{directory}/db", engine, column_families={"default": engine})
        try:
            database.set_write_options(write_options(options))
            yield database
        finally:
            database.close()


def compacted_bytes(pairs: list[tuple[bytes, bytes]], compression: str) -> int:
    """What such a database needs for ``pairs`` alone, all of them in its lowest level."""
    with raw_database(compression) as database:
        RawWrite(pairs, []).to(database)
        database.flush()
        forced = CompactOptions()
        forced.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        database.compact_range(None, None, forced)
        return sum(file["size"] for file in database.live_files())
