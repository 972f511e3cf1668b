"""Stores that earlier releases wrote are read for ever; stores that are damaged or of the future fail as they should.

The stores in ``tests/golden`` were made by ``tests/golden/make.py``, once for each release.
"""

from __future__ import annotations

import importlib.util
import json
import math
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qilbee_core import (
    BackendOptions,
    ConflictError,
    CorruptRecordError,
    DataError,
    DeleteRange,
    Episode,
    FormatVersionError,
    Put,
    QilbeeError,
    StorageBackend,
    Store,
    WriteBatch,
    load_plugins,
    open_store,
)
from qilbee_core.envelope import frame, unframe
from qilbee_core.keys import AgentKeys, Space, catalog_key

GOLDEN = Path(__file__).parent / "golden"
STORES = sorted(GOLDEN.glob("*/*.tar.gz"))
PACKAGES = {"rocksdb": "rocksdict", "leveldb": "plyvel"}
HALF_LIFE_DAYS = {"episodic": 30, "semantic": 180}


def make() -> ModuleType:
    """tests/golden/make.py, for what it knows of the episodes it stored."""
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name.removesuffix('.tar.gz')}"


def unpacked(archive: Path, target: Path) -> tuple[Path, dict[str, Any]]:
    """The data directory and what must be read from it; skips where its engine is not installed."""
    with tarfile.open(archive) as packed:
        packed.extractall(target, filter="data")
    expected: dict[str, Any] = json.loads((target / "expected.json").read_text())
    pytest.importorskip(PACKAGES[expected["backend"]], reason=f"{expected['backend']} is not installed")
    return target / "data", expected


@pytest.fixture(autouse=True)
def reading_changes_nothing(monkeypatch: pytest.MonkeyPatch, no_settings_of_the_user: None) -> None:
    monkeypatch.setenv("QILBEE_MEMORY_REINFORCEMENT_SHARE", "0")


@pytest.fixture(params=STORES, ids=name_of)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    return unpacked(request.param, tmp_path)


@pytest.fixture(params=["rocksdb-none-msgpack", "leveldb-none-json"])
def present(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A store of the newest release, to be tampered with."""
    return unpacked(STORES[-1].parent / f"{request.param}.tar.gz", tmp_path)


def exact(value: object) -> str:
    """Equal only where the values are of the same type and bits, -0.0 and 1.0 included."""
    return json.dumps(value, sort_keys=True)


def assert_reads_as_expected(store: Store, expected: dict[str, Any]) -> None:
    described = make().described
    assert store.agents() == sorted(expected["agents"])
    now = datetime.now(UTC)
    for agent_id, agent in expected["agents"].items():
        memory = store.agent_memory(agent_id)
        episodes = list(memory.episodes())
        rows = {row["id"]: row for row in agent["episodes"]}
        assert [episode.id for episode in episodes] == list(rows)
        for episode in episodes:
            row = rows[episode.id]
            strength, decays_from = row.pop("strength"), datetime.fromisoformat(row.pop("decays_from"))
            assert exact(described(episode)) == exact(row)
            days = HALF_LIFE_DAYS.get(episode.memory_type, math.inf)
            age_days = max(0.0, (now - decays_from).total_seconds()) / 86_400
            assert episode.relevance == pytest.approx(
                max(strength, 2**-20) * 2 ** (-age_days / days), rel=1e-3, abs=1e-9
            )
            versions = [described(version) for version in memory.history(episode.id)]
            assert exact(versions) == exact(agent["history"].get(episode.id, []))
        assert memory.get_episodes(list(rows)) == episodes
        assert memory.get_recent_episodes(1000) == episodes[::-1]
        statistics = memory.get_statistics()
        assert statistics.total_episodes == agent["total_episodes"] == len(rows)
        assert statistics.episodes_by_type == agent["episodes_by_type"]
        assert statistics.bytes == agent["bytes"]
        relevances = [episode.relevance for episode in episodes]
        assert statistics.avg_relevance == pytest.approx(sum(relevances) / len(relevances), rel=1e-4)


def test_there_are_golden_stores_and_they_are_small() -> None:
    assert {path.parent.name for path in STORES} >= {"0.1.0"}
    for release in {path.parent for path in STORES}:
        assert sum(path.stat().st_size for path in release.iterdir()) < 300_000


def test_every_serializer_every_codec_in_blocks_and_on_values_and_a_killed_process_are_among_them() -> None:
    names = {path.name.removesuffix(".tar.gz") for path in STORES if path.parent.name == "0.1.0"}
    assert names == set(make().STORES)
    for part in ("msgpack", "json", "none", "killed", *("lz4", "snappy", "zstd")):
        assert any(part in name for name in names)


# --- reading what was written


def test_a_golden_store_is_read_as_it_was_written(golden: tuple[Path, dict[str, Any]]) -> None:
    data, expected = golden
    for _ in range(2):  # the second time after this release has opened and closed it
        with open_store(data, durability="async") as store:
            assert store.stats()["backend"] == expected["backend"]
            report = store.verify()
            assert report.problems == []
            assert_reads_as_expected(store, json.loads(json.dumps(expected)))


def test_a_golden_store_knows_what_was_stored_before_and_goes_on(golden: tuple[Path, dict[str, Any]]) -> None:
    data, expected = golden
    with open_store(data, durability="async") as store:
        for agent_id, agent in expected["agents"].items():
            memory = store.agent_memory(agent_id)
            before = memory.get_statistics()
            assert agent["idempotency_keys"]
            for episode, key in make().episodes_of(agent_id):
                if key is None:
                    assert memory.store_episode(episode) == episode.id
                    episode.content = {"text": "other content"}
                    with pytest.raises(ConflictError):
                        memory.store_episode(episode)
                else:
                    again = Episode(
                        agent_id,
                        episode.episode_type,
                        episode.content,
                        metadata=episode.metadata,
                        memory_type=episode.memory_type,
                    )
                    assert memory.store_episode(again, idempotency_key=key) == agent["idempotency_keys"][key]
            assert memory.get_statistics().total_episodes == before.total_episodes
            ids = [row["id"] for row in agent["episodes"]]
            memory.store_episode(Episode.observation(agent_id, "of this release"))
            memory.update_episode(ids[3], metadata={"seen by": "this release"})
            for stored_id in ids[::2]:
                assert memory.delete_episode(stored_id) is True
            assert store.verify().problems == []
            assert memory.get_statistics().total_episodes == len(ids) + 1 - len(ids[::2])
    with open_store(data) as store:
        assert store.verify().problems == []
        assert store.repair().before.ok
        for agent_id in expected["agents"]:
            store.agent_memory(agent_id).clear()
        assert store.agents() == []
        assert [key for key, _ in store._backend.scan() if key[0] != Space.CATALOG] == []


def test_what_was_retired_in_a_golden_store_is_known_as_it_was(golden: tuple[Path, dict[str, Any]]) -> None:
    data, expected = golden
    ended = make().ended
    with open_store(data, durability="async") as store:
        for agent_id, agent in expected["agents"].items():
            memory = store.agent_memory(agent_id)
            for id_, versions in agent.get("retired", {}).items():
                assert memory.get_episode(id_) is None
                assert exact([ended(version) for version in memory.history(id_)]) == exact(versions)
                for version in memory.history(id_):
                    assert memory.get_episode(id_, as_of=version.transaction_time) == version
                assert memory.get_episode(id_, as_of=version.ended_at) is None
            if agent.get("retired"):
                again = Episode(agent_id, "note", {"text": "known by its key"})
                assert memory.store_episode(again, idempotency_key="of a retired one") in agent["retired"]
                assert sum(1 for versions in agent["retired"].values() if versions[-1]["superseded_by"]) == 3
                assert memory.purge(datetime.now(UTC)).episodes == len(agent["retired"])
                assert [id_ for id_ in agent["retired"] if memory.history(id_)] == []
        assert store.verify().problems == []


# --- the future


@contextmanager
def tampering(data: Path, expected: dict[str, Any]) -> Iterator[StorageBackend]:
    """The engine alone, below the store."""
    name = expected["backend"]
    backend = load_plugins().backends.create(name, BackendOptions(path=data / name))
    try:
        yield backend
    finally:
        backend.close()


def contents(data: Path, expected: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    with tampering(data, expected) as backend:
        return list(backend.scan())


def change_header(data: Path, expected: dict[str, Any], **changes: object) -> None:
    key = catalog_key("header")
    with tampering(data, expected) as backend:
        value = backend.get(key)
        assert value is not None
        header = json.loads(unframe(key, value)) | changes
        backend.write(WriteBatch([Put(key, frame(key, json.dumps(header).encode()))]))


def change_marker(data: Path, **changes: object) -> None:
    marker = json.loads((data / "qilbee.json").read_text()) | changes
    (data / "qilbee.json").write_text(json.dumps(marker))


def test_a_directory_of_a_newer_layout_is_refused(present: tuple[Path, dict[str, Any]]) -> None:
    data, _ = present
    change_marker(data, layout=2)
    with pytest.raises(FormatVersionError, match="layout 2, this release knows 1: upgrade qilbee-core"):
        open_store(data)


def test_a_database_that_this_release_may_not_read_is_refused_and_left_alone(
    present: tuple[Path, dict[str, Any]],
) -> None:
    data, expected = present
    change_header(data, expected, layout=2, readable_by=2)
    before = contents(data, expected)
    with pytest.raises(
        FormatVersionError, match="layout 2, readable from 2; this release knows 1: upgrade qilbee-core"
    ):
        open_store(data)
    assert contents(data, expected) == before


def test_a_database_of_a_newer_layout_that_this_release_may_read_opens(present: tuple[Path, dict[str, Any]]) -> None:
    data, expected = present
    change_header(data, expected, layout=2, readable_by=1, envelope=2, schema=3)
    change_marker(data, later="a field of a later release")
    with open_store(data) as store:
        assert_reads_as_expected(store, expected)


def record_keys(backend: StorageBackend) -> list[bytes]:
    keys = AgentKeys("bot")
    return [key for key, _ in backend.scan(*keys.range(Space.EPISODE))]


def change_record(data: Path, expected: dict[str, Any], change: Callable[[bytes, bytes], bytes]) -> str:
    """Change the value of one record; gives its id."""
    with tampering(data, expected) as backend:
        key = record_keys(backend)[5]
        backend.write(WriteBatch([Put(key, change(key, backend.get(key) or b""))]))
    found: str = expected["agents"]["bot"]["episodes"][5]["id"]
    return found


def assert_only_one_is_lost(
    data: Path, expected: dict[str, Any], lost: str, error: type[DataError], words: str
) -> None:
    with open_store(data) as store:
        memory = store.agent_memory("bot")
        with pytest.raises(error, match=words):
            memory.get_episode(lost)
        for row in expected["agents"]["bot"]["episodes"]:
            if row["id"] != lost:
                assert memory.get_episode(row["id"]) is not None
        problems = store.verify().problems
        assert {(problem.invariant, problem.agent_id) for problem in problems} == {
            ("record-corrupt", "bot"),
            ("head-counts", "bot"),
        }
        assert [problem.invariant for problem in store.repair().after.problems] == ["record-corrupt"]


def test_a_record_of_a_newer_envelope_is_told_from_damage_and_the_others_are_read(
    present: tuple[Path, dict[str, Any]],
) -> None:
    data, expected = present
    lost = change_record(data, expected, lambda key, value: frame(key, b"\x02" + value[1:-4]))
    assert_only_one_is_lost(data, expected, lost, FormatVersionError, "envelope version 2, this release reads 1")


# --- damage


def test_a_record_with_a_flipped_bit_is_noticed_and_the_others_are_read(present: tuple[Path, dict[str, Any]]) -> None:
    data, expected = present
    middle = 20
    lost = change_record(
        data, expected, lambda key, value: value[:middle] + bytes((value[middle] ^ 4,)) + value[middle + 1 :]
    )
    assert_only_one_is_lost(data, expected, lost, CorruptRecordError, "checksum")


@pytest.mark.parametrize("length", [0, 1, 8, 30])
def test_a_record_that_was_cut_short_is_noticed_and_the_others_are_read(
    present: tuple[Path, dict[str, Any]], length: int
) -> None:
    data, expected = present
    lost = change_record(data, expected, lambda key, value: value[:length])
    assert_only_one_is_lost(data, expected, lost, CorruptRecordError, "checksum")


def test_flipped_bytes_in_the_files_of_the_engine_never_give_a_wrong_answer(
    present: tuple[Path, dict[str, Any]],
) -> None:
    data, expected = present
    tables = sorted(path for path in data.rglob("*") if path.suffix in {".sst", ".ldb"})
    assert tables
    table = max(tables, key=lambda path: path.stat().st_size)
    whole = table.read_bytes()
    noticed = 0
    for part in range(16):
        at = len(whole) * part // 16 + 11
        table.write_bytes(whole[:at] + bytes((whole[at] ^ 0x10,)) + whole[at + 1 :])
        saved = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
        try:
            with open_store(data, durability="async") as store:
                report = store.verify()
                noticed += not report.ok
                if report.ok:
                    assert_reads_as_expected(store, json.loads(json.dumps(expected)))
        except DataError:
            noticed += 1
        for path in data.rglob("*"):
            if path.is_file() and path not in saved:
                path.unlink()
        for path, content in saved.items():
            path.write_bytes(content)
    assert noticed > 10


def test_every_flipped_bit_of_the_marker_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with open_store(data) as store:
        stored_id = store.agent_memory("bot").store_episode(Episode.observation("bot", "tea"))
    marker = data / "qilbee.json"
    whole = marker.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        marker.write_bytes(flipped)
        try:
            opened = open_store(data)
        except QilbeeError:
            continue
        with opened:
            assert opened.agent_memory("bot").get_episode(stored_id) is not None
    assert {path.name for path in data.iterdir()} == {"qilbee.json", "rocksdb"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"7", b"{}", b"\xff\xfe", b'{"format":"qilbee-store"}', b'{"format":"\xff"}']
)
def test_a_marker_that_is_empty_or_no_marker_is_refused_and_left_alone(
    present: tuple[Path, dict[str, Any]], content: bytes
) -> None:
    data, _ = present
    (data / "qilbee.json").write_bytes(content)
    with pytest.raises(FormatVersionError, match=r"qilbee\.json"):
        open_store(data)
    assert (data / "qilbee.json").read_bytes() == content


def test_a_marker_of_another_format_is_refused(present: tuple[Path, dict[str, Any]]) -> None:
    data, _ = present
    change_marker(data, format="acme-store")
    with pytest.raises(FormatVersionError, match="acme-store"):
        open_store(data)


def test_a_store_without_its_marker_is_refused_and_left_alone(present: tuple[Path, dict[str, Any]]) -> None:
    data, expected = present
    (data / "qilbee.json").unlink()
    with pytest.raises(FormatVersionError, match="is not a store: it holds"):
        open_store(data)
    assert [path.name for path in data.iterdir()] == [expected["backend"]]


def test_a_directory_with_foreign_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("photo.jpg", "notes.txt", ".hidden", "z", "a"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(
        FormatVersionError, match=r"it holds \.hidden, a, notes\.txt and 2 more: name an empty or a new"
    ):
        open_store(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a", "notes.txt", "photo.jpg", "z"]


def test_a_file_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(FormatVersionError, match="is not a directory"):
        open_store(tmp_path / "data")


def test_a_database_that_lost_its_header_is_refused_and_left_alone(present: tuple[Path, dict[str, Any]]) -> None:
    data, expected = present
    with tampering(data, expected) as backend:
        backend.write(WriteBatch([DeleteRange(catalog_key("header"), catalog_key("header\x00"))]))
    before = contents(data, expected)
    with pytest.raises(FormatVersionError, match="no header"):
        open_store(data)
    assert contents(data, expected) == before


def test_a_directory_with_the_marker_alone_is_a_store_about_to_be_made(tmp_path: Path) -> None:
    (tmp_path / "qilbee.json").write_text('{"format":"qilbee-store","layout":1,"backend":"rocksdb"}')
    with open_store(tmp_path) as store:
        assert store.agents() == []


# --- the maker


def test_what_a_release_wrote_is_never_written_again() -> None:
    said: list[str] = []
    before = {path: path.read_bytes() for path in STORES}
    assert make().main(["0.1.0"], said.append) == 1
    assert "never written again" in said[0]
    assert {path: path.read_bytes() for path in STORES} == before
