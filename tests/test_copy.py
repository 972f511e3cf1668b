"""Copying a store to another place: all of it or nothing, whatever interrupts it, and the same on every engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared.embedders import HashesPlugin, plugins_with
from shared.killed_copy import killed_copy
from shared.open_files import copy_open_store
from typer.testing import CliRunner

from qilbee_core import (
    BackendOptions,
    ConflictError,
    CopyReport,
    CorruptRecordError,
    Delete,
    Episode,
    FormatVersionError,
    InvalidError,
    MemorySettings,
    NotFoundError,
    Put,
    QilbeeError,
    SearchSettings,
    Settings,
    StorageBackend,
    StorageFullError,
    Store,
    StoreLockedError,
    UnfinishedCopyError,
    WriteBatch,
    copy_store,
    load_plugins,
    open_store,
)
from qilbee_core import copying as copying_module
from qilbee_core.backends.rocksdb import RocksDBBackend
from qilbee_core.cli import app
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import parse_change
from qilbee_core.watermark import WATERMARK_NAME, Watermark

pytestmark = pytest.mark.usefixtures("search_as_by_default")

WRITERS = {
    "leveldb": "qilbee_core.backends.leveldb:LevelDBBackend",
    "rocksdb": "qilbee_core.backends.rocksdb:RocksDBBackend",
}
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*/*.tar.gz"))
PACKAGES = {"rocksdb": "rocksdict", "leveldb": "plyvel"}
START = datetime(2026, 3, 1, tzinfo=UTC)
NEVER = datetime(9000, 1, 1, tzinfo=UTC)


def fill(store: Store, episodes: int = 60) -> None:
    """Two agents with something of everything there is."""
    for agent_id in ("bot", "bot:東京"):
        memory = store.agent_memory(agent_id)
        ids = memory.store_episodes(
            Episode.conversation(
                agent_id,
                f"How is heron number {number}?",
                f"Heron {number} stands in the reeds, as ever, and so does heron {number + 1}.",
                event_time=START + timedelta(minutes=number),
                relevance=1 - number % 60 / 100,
            )
            for number in range(episodes)
        )
        memory.store_episode(Episode.observation(agent_id, "known by its key"), idempotency_key="key")
        memory.store_episode(Episode(agent_id, "note", {"text": "it ends"}, expires_at=NEVER))
        memory.update_episode(ids[1], content={"text": "the second version"})
        memory.pin(ids[2])
        memory.boost(ids[30], 0.5)
        memory.delete_episode(ids[3])
        memory.invalidate(ids[4])
        twins = [Episode.observation(agent_id, "said twice", event_time=START + timedelta(days=n)) for n in range(3)]
        memory.store_episodes(twins)
        assert memory.consolidate("duplicates").superseded
        memory.search_episodes("heron")
        memory.store_episode(Episode.observation(agent_id, "and one more"))
    rows = store.account_rows()
    rows.write({"user/7": b"ann", "audit/0000000000000001": bytes(1000)})


def told(store: Store) -> dict[str, Any]:
    """All that can be read from a store."""
    agents: dict[str, Any] = {}
    for agent_id in store.agents():
        memory = store.agent_memory(agent_id)
        episodes = list(memory.episodes())
        statistics = memory.get_statistics()
        agents[agent_id] = {
            "episodes": [_told(episode) for episode in episodes],
            "history": {each.id: [_told(version) for version in memory.history(each.id)] for each in episodes},
            "past": [_told(episode) for episode in memory.episodes(as_of=datetime.now(UTC) - timedelta(seconds=0.01))],
            "recall": [episode.id for episode in memory.recall(1000)],
            "search": [episode.id for episode in memory.search_episodes("heron 7 reeds", limit=20)],
            "types": dict(statistics.episodes_by_type),
            "consolidations": [each.consolidation_id for each in memory.consolidations()],
        }
    return {"agents": agents, "accounts": list(store.account_rows().scan(""))}


def _told(episode: Episode) -> tuple[object, ...]:
    return (
        episode.id,
        episode.episode_type,
        episode.memory_type,
        json.dumps(episode.content),
        json.dumps(episode.metadata),
        episode.transaction_time,
        episode.expires_at,
        episode.pinned,
        episode.ended_at,
        episode.superseded_by,
    )


def rows_of(path: Path, engine: str) -> dict[bytes, bytes]:
    """Everything, behind the interface's back."""
    backend = opened(path, engine)
    try:
        return dict(backend.scan())
    finally:
        backend.close()


def opened(path: Path, engine: str) -> StorageBackend:
    watermark = Watermark(path / engine / WATERMARK_NAME)
    return load_plugins().backends.create(
        engine,
        BackendOptions(path=path / engine, may_open=lambda *_, **__: watermark is not None),
    )


@pytest.fixture(autouse=True)
def reading_changes_nothing(monkeypatch: pytest.MonkeyPatch, no_settings_of_the_user: None) -> None:
    monkeypatch.setenv("QILBEE_MEMORY_REINFORCEMENT_SHARE", "0")


@pytest.fixture(params=["rocksdb", "leveldb"])
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(PACKAGES[request.param])
    name: str = request.param
    return name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A store on RocksDB."""
    with open_store(tmp_path / "source") as store:
        fill(store)
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def as_read(path: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
    """What a store tells, read from a copy of its files, so that reading changes nothing."""
    there = tmp_path / "read"
    shutil.copytree(path, there)
    with open_store(there, **options) as store:
        assert store.verify().problems == []
        found = told(store)
    shutil.rmtree(there)
    return found


def assert_equal(source: Path, target: Path, tmp_path: Path) -> None:
    assert as_read(target, tmp_path) == as_read(source, tmp_path)


# --- what goes over


@pytest.mark.parametrize(
    "options",
    [{}, {"compression_type": "zstd"}, {"compression_type": "lz4", "compression_scope": "value"}],
    ids=lambda options: "-".join(options.values()) or "default",
)
def test_a_copy_tells_all_that_the_source_tells(
    source: Path, target: Path, engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    report = copy_store(source, target, backend=engine, **options)
    assert (report.agents, report.problems) == (2, [])
    assert report.copied == report.rows > 0
    assert_equal(source, target, tmp_path)


def test_there_and_back_again_it_is_what_it_was(source: Path, target: Path, engine: str, tmp_path: Path) -> None:
    copy_store(source, target, backend=engine, compression_type="zstd", compression_scope="value")
    copy_store(target, tmp_path / "back", backend="rocksdb")
    header, note = b"\x01header", b"\x01copy"
    before, after = rows_of(source, "rocksdb"), rows_of(tmp_path / "back", "rocksdb")
    assert before.pop(header) != after.pop(header)
    assert note not in after
    added = {key: after.pop(key) for key in after.keys() - before.keys()}
    assert {key[:7] for key in added} <= {b"\x01codec/"}
    assert after == before


@pytest.mark.parametrize("archive", GOLDEN, ids=lambda path: path.name.removesuffix(".tar.gz"))
def test_what_any_release_has_written_goes_over(archive: Path, target: Path, tmp_path: Path) -> None:
    """All serializers, all codecs, in blocks and on values, retired episodes, and what a killed process has left."""
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    engine = json.loads((tmp_path / "expected.json").read_text())["backend"]
    for package in PACKAGES.values():
        pytest.importorskip(package)
    other = {"rocksdb": "leveldb", "leveldb": "rocksdb"}[engine]
    assert copy_store(tmp_path / "data", target, backend=other, compression_type="snappy").problems == []
    assert_equal(tmp_path / "data", target, tmp_path)


def test_records_are_compressed_as_the_copy_wants_it_and_the_figures_follow(source: Path, tmp_path: Path) -> None:
    sizes = {}
    for codec in ("none", "zstd"):
        copy_store(source, tmp_path / codec, compression_type=codec, compression_scope="value")
        with open_store(tmp_path / codec) as store:
            sizes[codec] = store.agent_memory("bot").get_statistics().bytes
        rows = rows_of(tmp_path / codec, "rocksdb")
        prefix = AgentKeys("bot").episodes
        assert sizes[codec] == sum(len(key) + len(value) for key, value in rows.items() if key.startswith(prefix))
    assert sizes["zstd"] < 0.8 * sizes["none"]


def test_a_head_that_lags_behind_its_log_is_brought_up_to_date(tmp_path: Path, target: Path, engine: str) -> None:
    """On an engine with several writers nobody would do it, and the next write would take a number that is taken."""
    with open_store(tmp_path / "open", backend=engine) as store:
        memory = store.agent_memory("bot")
        for number in range(20):
            memory.store_episode(Episode.observation("bot", f"heron {number}"))
        store.flush()
        copy_open_store(tmp_path / "open", tmp_path / "killed")
    keys = AgentKeys("bot")
    lagging = Head.decode(keys.head, rows_of(tmp_path / "killed", engine)[keys.head])
    copy_store(tmp_path / "killed", target, backend="rocksdb")
    rows = rows_of(target, "rocksdb")
    head = Head.decode(keys.head, rows[keys.head])
    last = max(key for key in rows if key.startswith(keys.changes))
    assert lagging.sequence < head.sequence == int.from_bytes(last[-8:], "big") == 20
    assert head.transaction_us == parse_change(last, rows[last]).transaction_us
    assert head.episodes == 20


def test_a_copy_is_a_store_of_its_own_with_the_clock_of_its_source(source: Path, target: Path) -> None:
    copy_store(source, target)
    with open_store(source) as one, open_store(target) as other:
        assert one.stats()["store_id"] != other.stats()["store_id"]
        headers = [store._context.catalog.header for store in (one, other)]
        assert headers[0].created_us == headers[1].created_us  # decay is counted from there
        other.agent_memory("bot").clear()
        assert one.agents() == ["bot", "bot:東京"]


def test_vectors_go_over_and_nothing_is_embedded_again(tmp_path: Path, target: Path, engine: str) -> None:
    plugin = HashesPlugin()
    settings = Settings(search=SearchSettings(embedder="test.hashes", indexing="inline"))
    source = settings.at(tmp_path / "source")
    with open_store(source, plugins=plugins_with(plugin)) as store:
        memory = store.agent_memory("bot")
        memory.store_episodes(Episode.observation("bot", f"heron {number}") for number in range(50))
        deadline = time.monotonic() + 60
        while store.stats()["search"]["vectors_pending"]:  # type: ignore[index, call-overload]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        expected = [found.episode.id for found in memory.semantic_search("heron 7")]
    copy_store(source, target, backend=engine)
    asked = len(plugin.made[0].asked)
    with open_store(settings.at(target), plugins=plugins_with(plugin)) as store:
        assert store.verify().problems == []
        assert [found.episode.id for found in store.agent_memory("bot").semantic_search("heron 7")] == expected
        assert all(asked == ["heron 7"] for made in plugin.made[1:] for asked in made.asked)
    assert len(plugin.made[0].asked) == asked


def test_a_store_on_its_way_to_other_half_lives_goes_on_there(source: Path, target: Path, engine: str) -> None:
    other = MemorySettings(relevance_decay_days=1)
    settings = Settings(memory=other)
    open_store(settings.at(source)).close()  # it has hardly begun
    assert copy_store(source, target, backend=engine).problems == []
    with open_store(settings.at(target)) as store:
        deadline = time.monotonic() + 60
        while store.stats()["reindexing"]["running"]:  # type: ignore[index, call-overload]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.verify().problems == []


def test_what_is_durable_is_noted_for_the_copy(source: Path, target: Path) -> None:
    copy_store(source, target)
    with open_store(target) as store:
        store_id = store.stats()["store_id"]
    shutil.rmtree(target)
    copy_store(source, target)
    watermark = Watermark(target / "rocksdb" / WATERMARK_NAME)
    assert watermark.sequence > 0
    assert watermark._mark is not None
    assert watermark._mark.store_id != store_id


def test_the_source_is_left_as_it_is(source: Path, target: Path) -> None:
    before = rows_of(source, "rocksdb")
    copy_store(source, target)
    assert rows_of(source, "rocksdb") == before


def test_settings_of_the_source_come_from_its_directory(
    tmp_path: Path, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("plyvel")
    monkeypatch.setenv("QILBEE_STORAGE_BACKEND", "leveldb")  # what is configured is about the copy
    copy_store(source, target)
    assert (target / "leveldb").is_dir()
    copy_store(Settings().at(target), Settings().at(tmp_path / "third"))
    assert (tmp_path / "third" / "rocksdb").is_dir()


def test_batches_are_bounded(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path / "source") as store:
        for number in range(20):
            store.agent_memory("bot").store_episode(Episode("bot", "blob", {"text": f"{number}" * 400_000}))
    batches = list(watched_writes(monkeypatch, lambda: copy_store(tmp_path / "source", target)))
    sizes = [sum(len(put.value) for put in batch.operations if isinstance(put, Put)) for batch in batches]
    assert max(sizes) < (4 << 20) + 1_000_000
    assert len([size for size in sizes if size > 1 << 20]) >= 3


def watched_writes(monkeypatch: pytest.MonkeyPatch, copy: Callable[[], object]) -> list[WriteBatch]:
    """The batches that a copy writes to RocksDB."""
    batches: list[WriteBatch] = []
    write = RocksDBBackend.write

    def watched(backend: RocksDBBackend, batch: WriteBatch) -> None:
        batches.append(batch)
        write(backend, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RocksDBBackend, "write", watched)
        copy()
    return batches


# --- interrupted


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying_module, "_BATCH_ROWS", 40)


def interrupted(
    monkeypatch: pytest.MonkeyPatch, number: int, copy: Callable[[], CopyReport], *, after: bool
) -> CopyReport | None:
    """Copy until the given write, and be interrupted just before or after it; None where it was."""
    count = 0
    write = RocksDBBackend.write

    def interrupting(backend: RocksDBBackend, batch: WriteBatch) -> None:
        nonlocal count
        count += 1
        if count == number and not after:
            raise KeyboardInterrupt
        write(backend, batch)
        if count == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RocksDBBackend, "write", interrupting)
        try:
            return copy()
        except KeyboardInterrupt:
            return None


def assert_refused(target: Path, source: Path, *, may_read: bool = True) -> None:
    for read_only in (False, True)[: 1 + may_read]:
        with pytest.raises(UnfinishedCopyError, match=f"copy of {source}.*qilbee copy again.*or remove"):
            open_store(target, read_only=read_only)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_interrupted_at_any_write_it_is_no_store_and_goes_on(
    source: Path, target: Path, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = as_read(source, tmp_path)
    writes = len(watched_writes(monkeypatch, lambda: copy_store(source, tmp_path / "whole")))
    whole = rows_of(tmp_path / "whole", "rocksdb").keys()
    assert writes > 12
    for number in range(1, writes + 1):
        shutil.rmtree(target, ignore_errors=True)
        assert interrupted(monkeypatch, number, lambda: copy_store(source, target), after=after) is None
        is_begun, is_complete = number > 1 or after, number == writes and after
        if is_begun and not is_complete:
            assert_refused(target, source)
            with pytest.raises(UnfinishedCopyError):
                copy_store(target, tmp_path / "no copy of a part")
        report = copy_store(source, target)
        assert report.copied < report.rows or number < 5
        assert (report.copied == 0) == is_complete or number > writes - 3
        assert rows_of(target, "rocksdb").keys() == whole
    assert as_read(target, tmp_path) == expected


@pytest.mark.usefixtures("small_batches")
def test_nothing_is_copied_twice(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    report = None
    write = RocksDBBackend.write
    runs = 0
    while report is None:
        runs += 1

        def noting(backend: RocksDBBackend, batch: WriteBatch) -> None:
            write(backend, batch)
            written.extend(put.key for put in batch.operations if isinstance(put, Put) and put.key[0] > Space.AGENT)

        with monkeypatch.context() as patch:
            patch.setattr(RocksDBBackend, "write", noting)
            report = interrupted(monkeypatch, 4, lambda: copy_store(source, target), after=True)
    assert runs > 3
    assert len(written) == len(set(written)) == report.rows


def test_killed_again_and_again_it_is_refused_until_it_is_complete_and_then_equal(
    tmp_path: Path, target: Path, engine: str
) -> None:
    source = tmp_path / "source"
    with open_store(source) as store:
        fill(store, 400)
    kills = 0
    for number in range(3, 1000):
        moment = ("before", "after")[number % 2]
        done = killed_copy(source, target, WRITERS[engine], batch_rows=100, write=number, moment=moment)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        assert_refused(target, source, may_read=engine == "rocksdb")
    assert kills > 2
    assert_equal(source, target, tmp_path)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_the_last_write_it_is_no_store_or_the_whole(
    source: Path, target: Path, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying_module, "_BATCH_ROWS", 100)
    last = len(watched_writes(monkeypatch, lambda: copy_store(source, tmp_path / "whole")))
    done = killed_copy(source, target, WRITERS["rocksdb"], batch_rows=100, write=last, moment=moment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if moment == "before":
        assert_refused(target, source)
        copy_store(source, target)
    assert_equal(source, target, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", directory], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"only root can mount a small disk: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_stops_it_and_space_lets_it_go_on(small_disk: Path, tmp_path: Path, engine: str) -> None:
    source, target = tmp_path / "source", small_disk / "target"
    with open_store(source) as store:
        for _ in range(30):
            store.agent_memory("bot").store_episode(Episode("bot", "blob", {"text": os.urandom(200_000).hex()}))
    (small_disk / "ballast").write_bytes(bytes(58 << 20))
    with pytest.raises(StorageFullError, match="free some space"):
        copy_store(source, target, backend=engine, compression_type="none")
    (small_disk / "ballast").unlink()
    assert_refused(target, source, may_read=engine == "rocksdb")
    assert copy_store(source, target, backend=engine, compression_type="none").copied < 90
    assert_equal(source, target, tmp_path)


# --- a source that changes between two runs


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("number", [3, 6, 9, 12])
def test_what_the_source_became_since_the_last_run_is_what_is_copied(
    source: Path, target: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interrupted(monkeypatch, number, lambda: copy_store(source, target), after=True) is None
    with open_store(source) as store:
        memory = store.agent_memory("bot")
        first, second, *_ = memory.episodes()
        memory.delete_episode(first.id)
        memory.update_episode(second.id, content={"text": "another now"})
        memory.store_episode(Episode.observation("bot", "stored in between"))
        store.agent_memory("bot:東京").clear()
        store.agent_memory("a new one").store_episode(Episode.observation("a new one", "heron"))
    report = copy_store(source, target)
    assert report.problems == []
    assert_equal(source, target, tmp_path)


@pytest.mark.usefixtures("small_batches")
def test_a_source_that_used_another_codec_in_between_is_told_to_begin_anew(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_value: dict[str, Any] = {"compression_scope": "value"}

    def copy() -> CopyReport:
        return copy_store(source, target, compression_type="zstd", **by_value)

    assert interrupted(monkeypatch, 8, copy, after=True) is None
    with open_store(source, compression_type="snappy", **by_value) as store:
        store.agent_memory("bot").store_episode(Episode.observation("bot", "heron " * 100))
    with pytest.raises(ConflictError, match=r"another codec since .* remove what is there"):
        copy()
    shutil.rmtree(target)
    assert copy().problems == []


# --- what is refused, and left alone


def contents(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file() and "LOG" not in each.name}


def test_a_finished_copy_is_not_made_again(source: Path, target: Path) -> None:
    assert copy_store(source, target).copied > 0
    again = copy_store(source, target)
    assert (again.copied, again.agents, again.problems) == (0, 2, [])
    with open_store(target) as store:
        store.agent_memory("bot").store_episode(Episode.observation("bot", "it goes its own way"))
    before = rows_of(target, "rocksdb")
    with pytest.raises(InvalidError, match="one of the two has changed since: name another destination"):
        copy_store(source, target)
    assert rows_of(target, "rocksdb") == before


def test_a_place_that_holds_another_store_is_left_alone(source: Path, target: Path) -> None:
    with open_store(target) as store:
        store.agent_memory("other").store_episode(Episode.observation("other", "mine"))
    before = rows_of(target, "rocksdb")
    with pytest.raises(InvalidError, match=f"{target} holds another store: name another destination"):
        copy_store(source, target)
    assert rows_of(target, "rocksdb") == before


@pytest.mark.usefixtures("small_batches")
def test_an_unfinished_copy_of_another_store_is_left_alone(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 6, lambda: copy_store(source, target), after=True)
    with open_store(tmp_path / "another") as store:
        fill(store, 40)
    before = rows_of(target, "rocksdb")
    with pytest.raises(InvalidError, match=f"unfinished copy of another store, which was at {source}"):
        copy_store(tmp_path / "another", target)
    assert rows_of(target, "rocksdb") == before


def test_other_things_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter").write_text("dear")
    with pytest.raises(FormatVersionError, match="is not a store: it holds letter: name an empty or a new"):
        copy_store(source, tmp_path / "letters")
    with pytest.raises(FormatVersionError, match="is not a directory"):
        copy_store(source, tmp_path / "letters" / "letter")
    strange = tmp_path / "strange"
    open_store(strange).close()
    backend = opened(strange, "rocksdb")
    backend.write(WriteBatch([Delete(b"\x01header")]))
    backend.close()
    with pytest.raises(FormatVersionError, match="records but no header"):
        copy_store(source, strange)


def test_a_place_is_not_copied_to_itself(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for same in (source, tmp_path / "link", source / ".." / "source", source / "inside"):
        with pytest.raises(InvalidError, match="is the source itself, or inside it"):
            copy_store(source, same)
    shutil.copytree(source, tmp_path / "files")
    with pytest.raises(InvalidError, match="are one and the same store"):
        copy_store(source, tmp_path / "files")


def test_what_is_no_place_is_an_error_of_ours(source: Path, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for no_place in ("\ud800", tmp_path / "circle", "x" * 5_000):
        for places in ((source, no_place), (no_place, tmp_path / "copy")):
            with pytest.raises(QilbeeError) as caught:
                copy_store(*places)
            str(caught.value).encode()


def test_where_nothing_is_nothing_is_made(tmp_path: Path, target: Path) -> None:
    (tmp_path / "empty").mkdir()
    for missing in ("missing", "empty"):
        with pytest.raises(NotFoundError, match=f"there is no store in {tmp_path / missing}: check the path"):
            copy_store(tmp_path / missing, target)
    assert sorted(os.listdir(tmp_path)) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


def test_a_store_that_is_open_is_neither_copied_nor_copied_to(source: Path, target: Path) -> None:
    with open_store(source), pytest.raises(StoreLockedError, match=f"held by process {os.getpid()}"):
        copy_store(source, target)
    assert not target.exists()
    with open_store(target), pytest.raises(StoreLockedError, match=f"held by process {os.getpid()}"):
        copy_store(source, target)


def test_an_engine_that_keeps_nothing_is_no_place_to_copy_to(source: Path) -> None:
    with pytest.raises(InvalidError, match="the ephemeral backend keeps nothing when it is closed"):
        copy_store(source, "unused", backend="ephemeral")


# --- damage


def damage(path: Path, change: Callable[[bytes, bytes], bytes | None], space: Space) -> None:
    """Change the first row of a family of agent ``bot``."""
    backend = opened(path, "rocksdb")
    key, value = next(backend.scan(*AgentKeys("bot").range(space)))
    changed = change(key, value)
    backend.write(WriteBatch([Delete(key) if changed is None else Put(key, changed)]))
    backend.close()


def flipped(key: bytes, value: bytes) -> bytes:
    return value[:-5] + bytes((value[-5] ^ 1,)) + value[-4:]


@pytest.mark.parametrize(
    ("space", "invariant"),
    [
        (Space.EPISODE, "record-corrupt"),
        (Space.HISTORY, "record-corrupt"),
        (Space.VITALITY, "vitality-wrong"),
        (Space.CHANGE, "change-corrupt"),
    ],
)
def test_damage_of_the_source_goes_over_as_it_is_and_is_told(
    source: Path, target: Path, space: Space, invariant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(source, lambda key, value: flipped(key, value) if len(value) > 4 else b"?", space)
    report = copy_store(source, target, compression_type="zstd", compression_scope="value")
    assert invariant in {problem.invariant for problem in report.problems}
    monkeypatch.setenv("QILBEE_SEARCH_INDEXING", "off")  # or a thread mends some of it
    with open_store(source) as one, open_store(target) as other:
        found = [[(each.invariant, each.key) for each in store.verify().problems] for store in (one, other)]
    assert found[0] == found[1]


def test_a_head_that_cannot_be_read_is_to_be_repaired_first(source: Path, target: Path, tmp_path: Path) -> None:
    damage(source, flipped, Space.AGENT)
    with pytest.raises(CorruptRecordError, match=r"head of agent 'bot' is damaged .* run qilbee repair on the source"):
        copy_store(source, target)
    assert_refused(target, source)
    with open_store(source) as store:
        assert store.repair().after.ok
    copy_store(source, target)
    assert_equal(source, target, tmp_path)


@pytest.mark.parametrize("space", [Space.EPISODE, Space.TERMS, Space.STATE])
def test_a_place_that_keeps_something_else_than_it_is_given_is_found_out(
    source: Path, target: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RocksDBBackend.write

    def losing(backend: RocksDBBackend, batch: WriteBatch) -> None:
        altered = [
            Put(each.key, flipped(each.key, each.value)) if isinstance(each, Put) and each.key[0] == space else each
            for each in batch.operations
        ]
        write(backend, WriteBatch(altered, batch.expects))

    with monkeypatch.context() as patch:
        patch.setattr(RocksDBBackend, "write", losing)
        with pytest.raises(CorruptRecordError, match=r"rows of .* were not what had been written there"):
            copy_store(source, target)
    assert_refused(target, source)


@given(*[st.dictionaries(st.binary(max_size=2), st.binary(max_size=1))] * 2)
def test_two_stores_are_read_side_by_side(mine: dict[bytes, bytes], theirs: dict[bytes, bytes]) -> None:
    merged = list(copying_module._merged(iter(sorted(mine.items())), iter(sorted(theirs.items()))))
    assert merged == [(key, mine.get(key), theirs.get(key)) for key in sorted({**mine, **theirs})]


# --- progress


def test_what_is_done_is_told_with_how_much_there_is(source: Path, target: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    report = copy_store(source, target, progress=lambda *step: steps.append(step))
    assert list(dict.fromkeys(step for step, _, _ in steps)) == ["counting", "copying", "comparing", "verifying"]
    assert ("copying", report.rows, report.rows) in steps


# --- the command


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_the_command_says_what_is_there_then(source: Path, target: Path, tmp_path: Path) -> None:
    (source / "accounts.secret").write_text("of a server")
    status, output = run("copy", source, target, "--compression", "zstd")
    assert status == 0
    assert re.search(
        rf"^{target} holds 2 agents, 1\d\d episodes, [\d,]+ rows of [\d,]+ bytes; [\d,]+ copied now$", output, re.M
    )
    assert f"left in {source}, for they are no part of the store: accounts.secret (see docs/operations.md)" in output
    status, output = run("copy", source, target)
    assert (status, output.splitlines()[0]) == (0, f"{target} is this copy already, complete and equal")
    assert_equal(source, target, tmp_path)


def test_the_command_takes_settings_for_both_places(source: Path, target: Path, tmp_path: Path) -> None:
    pytest.importorskip("plyvel")
    (tmp_path / "copy.toml").write_text(
        '[storage]\nbackend = "leveldb"\n[storage.engine]\nwrite_buffer_bytes = 1048576\n'
    )
    (tmp_path / "source.toml").write_text("[storage.engine]\nwrite_buffer_bytes = 1048576\n")
    files = ("--config", tmp_path / "copy.toml", "--source-config", tmp_path / "source.toml")
    assert run("copy", source, target, *files)[0] == 0
    assert (target / "leveldb").is_dir()


def test_the_command_tells_of_damage_that_the_source_had(source: Path, target: Path) -> None:
    damage(source, flipped, Space.EPISODE)
    status, output = run("copy", source, target)
    assert status == 1
    assert "record-corrupt" in output
    assert re.search(r"error: the copy is complete, with \d problems? that the source has too: qilbee repair", output)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("missing", "there"), "error: there is no store in missing: check the path"),
        (("source", "source"), "error: source is the source itself"),
        (("source", "there", "--backend", "ephemeral"), "error: the ephemeral backend keeps nothing"),
        (("source", "there", "--backend", "rockdb"), "error: no backend 'rockdb'; installed are"),
        (("source", "oracle://me:secret@db/x"), "error: no engine that is installed opens oracle:// URLs"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_mistake_is_one_line(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = run("copy", *arguments)
    assert status == 1
    assert output.startswith(complaint)
    assert output.count("\n") == 1
    assert "secret" not in output
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_ctrl_c_says_what_to_do_and_the_same_command_goes_on(tmp_path: Path, target: Path) -> None:
    with open_store(tmp_path / "source") as store:
        store.agent_memory("bot").import_episodes(Episode("bot", "note", {"number": n}) for n in range(30_000))
    command = [sys.executable, "-m", "qilbee_core.cli", "copy", str(tmp_path / "source"), str(target)]
    default = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", default, *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (target / "rocksdb" / "db").exists() or not list((target / "rocksdb" / "db").glob("*.log")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while max(path.stat().st_size for path in (target / "rocksdb" / "db").glob("*.log")) < 100_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted: run the same command again: it goes on where it was" in errors
    assert "Traceback" not in errors
    assert_refused(target, tmp_path / "source")
    for verb in ("show", "verify", "repair", "stats", "compact"):
        status, output = run(verb, target)
        assert status == 1
        assert output.startswith("error: this is no store yet: of a copy of")
    status, output = run("copy", tmp_path / "source", target)
    assert status == 0
    assert int(re.findall(r"([\d,]+) copied now", output)[0].replace(",", "")) < 90_000


# --- opening without making


@pytest.mark.parametrize("there", ["nothing", "an empty directory", "a marker alone"])
def test_a_store_can_be_opened_only_if_it_is_there(target: Path, there: str) -> None:
    if there != "nothing":
        target.mkdir()
    if there == "a marker alone":
        open_store(target).close()
        shutil.rmtree(target / "rocksdb")
    with pytest.raises(NotFoundError, match=r"there is no store .*open_store\(\) makes one"):
        open_store(target, create=False)
    if there == "nothing":
        assert not target.exists()
    open_store(target).close()
    open_store(target, create=False).close()
    with pytest.raises(InvalidError, match="create"):
        open_store(target, create="no")  # type: ignore[arg-type]
