"""The rows of a server's accounts: whole, durable, and theirs alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from qilbee_core import (
    ConflictError,
    CorruptRecordError,
    Episode,
    InvalidError,
    Put,
    ReadOnlyError,
    SingleProcess,
    Store,
    StoreClosedError,
    WriteBatch,
    open_store,
)
from qilbee_core.account_rows import ACCOUNT_ROW_BYTES_MAX
from qilbee_core.keys import account_key


def test_rows_come_back_under_their_names_in_order(store: Store) -> None:
    rows = store.account_rows()
    rows.write({"user/b": b"2", "user/a": b"1", "key/z": b"", "users": b"other"})
    assert rows.get("user/a") == b"1"
    assert rows.get("key/z") == b""
    assert rows.get("user/c") is None
    assert list(rows.scan("user/")) == [("user/a", b"1"), ("user/b", b"2")]
    assert list(rows.scan("user/", reverse=True)) == [("user/b", b"2"), ("user/a", b"1")]
    assert [name for name, _ in rows.scan("")] == ["key/z", "user/a", "user/b", "users"]


def test_a_scan_shows_the_moment_in_which_it_was_called(store: Store) -> None:
    rows = store.account_rows()
    rows.write({"a": b"1"})
    scan = rows.scan("")
    rows.write({"b": b"2"})
    assert list(scan) == [("a", b"1")]


def test_a_write_is_all_or_nothing_and_needs_what_it_expects(store: Store) -> None:
    rows = store.account_rows()
    rows.write({"a": b"1"}, {"a": None})
    for expects in ({"a": None}, {"a": b"2"}, {"a": b"1", "b": b""}):
        with pytest.raises(ConflictError):
            rows.write({"a": b"9", "c": b"9"}, expects)
        assert list(rows.scan("")) == [("a", b"1")]
    rows.write({"a": None, "c": b"3"}, {"a": b"1", "b": None})
    assert list(rows.scan("")) == [("c", b"3")]


def test_writers_that_expect_what_they_read_lose_no_update(store: Store) -> None:
    rows = store.account_rows()
    rows.write({"count": b"0"})

    def count() -> None:
        for _ in range(50):
            while True:
                read = rows.get("count")
                assert read is not None
                try:
                    rows.write({"count": b"%d" % (int(read) + 1)}, {"count": read})
                    break
                except ConflictError:
                    continue

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert rows.get("count") == b"200"


def test_the_version_changes_with_every_write_where_nobody_else_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._context, "single_process", True)
    rows, others = store.account_rows(), store.account_rows()
    seen = {rows.version}
    for changes in ({"a": b"1"}, {"a": b"1"}, {"a": None}):
        others.write(changes)
        assert rows.version == others.version
        assert rows.version not in seen
        seen.add(rows.version)
    assert rows.get("a") is None
    store.agent_memory("bot").store_episode(Episode.observation("bot", "tea"))
    assert rows.version in seen
    monkeypatch.setattr(store._context, "single_process", False)
    assert rows.version is None


def test_an_engine_of_one_process_has_a_version_and_one_that_is_shared_has_none(store: Store) -> None:
    assert (store.account_rows().version is None) == (not isinstance(store._backend, SingleProcess))


def test_rows_and_memories_do_not_see_each_other(store: Store) -> None:
    memory = store.agent_memory("bot")
    memory.store_episode(Episode.observation("bot", "tea"))
    store.account_rows().write({"user/bot": b"1"})
    assert store.agents() == ["bot"]
    memory.clear()
    assert store.account_rows().get("user/bot") == b"1"
    assert store.repair().after.ok
    assert store.account_rows().get("user/bot") == b"1"


def test_a_damaged_row_is_named_by_verify_and_not_read(store: Store) -> None:
    rows = store.account_rows()
    rows.write({"user/1": b"ann", "user/2": b"bob"})
    assert store.verify().ok
    value = store._backend.get(account_key("user/1"))
    assert value is not None
    for damaged in (value[:-1] + bytes((value[-1] ^ 1,)), bytes((value[0] ^ 1,)) + value[1:], b""):
        store._backend.write(WriteBatch([Put(account_key("user/1"), damaged)]))
        assert [(found.invariant, found.key, found.derived) for found in store.verify().problems] == [
            ("account-corrupt", account_key("user/1"), False)
        ]
        with pytest.raises(CorruptRecordError):
            rows.get("user/1")
        with pytest.raises(CorruptRecordError):
            list(rows.scan("user/"))
    # A good value under another name is none of that name.
    store._backend.write(WriteBatch([Put(account_key("user/1"), store._backend.get(account_key("user/2")) or b"")]))
    assert [found.invariant for found in store.verify().problems] == ["account-corrupt"]


def test_names_and_values_have_limits(store: Store) -> None:
    rows = store.account_rows()
    for name in ("", "x" * 256, "\ud800"):
        with pytest.raises(InvalidError):
            rows.write({name: b""})
        with pytest.raises(InvalidError):
            rows.get(name)
    with pytest.raises(InvalidError, match="1048577"):
        rows.write({"a": b"x" * (ACCOUNT_ROW_BYTES_MAX + 1), "b": b""})
    assert list(rows.scan("")) == []
    rows.write({"x" * 255: b"x" * ACCOUNT_ROW_BYTES_MAX})


def test_a_closed_store_gives_no_rows_and_takes_none(open_here: Callable[..., Store]) -> None:
    store = open_here()
    rows = store.account_rows()
    rows.write({"a": b"1"})
    store.close()
    with pytest.raises(StoreClosedError):
        store.account_rows()
    with pytest.raises(StoreClosedError):
        rows.get("a")
    with pytest.raises(StoreClosedError):
        rows.write({"a": b"2"})


def test_a_store_that_is_read_only_takes_no_rows(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as store:
        store.account_rows().write({"a": b"1"})
    with open_store(tmp_path / "data", read_only=True) as store:
        assert store.account_rows().get("a") == b"1"
        with pytest.raises(ReadOnlyError):
            store.account_rows().write({"a": b"2"})


@pytest.mark.parametrize("level", ["interval", "sync", "async", "none"])
def test_a_durable_write_is_synced_when_it_returns_at_every_level(open_here: Callable[..., Store], level: str) -> None:
    store = open_here(durability=level, wal_sync_interval_ms=3_600_000)
    syncs: list[int] = []
    sync = store._backend.sync

    def counted() -> None:
        sync()
        syncs.append(1)

    store._backend.sync = counted  # type: ignore[method-assign]
    store.account_rows().write({"a": b"1"})
    assert len(syncs) == (1 if level == "sync" else 0)
    store.account_rows().write({"a": b"2"}, durable=True)
    assert len(syncs) == (2 if level == "sync" else 1)
    assert store.durability().unsynced_age_ms == 0


CHILD = """
import sys
from qilbee_core import open_store
rows = open_store(sys.argv[1], backend=sys.argv[2]).account_rows()
number = 0
while True:
    rows.write({"count": b"%d" % number, f"row/{number}": b"x"})
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
def test_acknowledged_rows_survive_kill_9(tmp_path: Path, engine: str) -> None:
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "data"), engine], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(200)]
    os.kill(child.pid, signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait(30)
    child.stdout.close()
    last = int(said[-1])
    assert last >= 199
    with open_store(tmp_path / "data") as store:
        rows = store.account_rows()
        count = rows.get("count")
        assert count is not None
        assert int(count) >= last
        assert len(list(rows.scan("row/"))) == int(count) + 1
        assert store.verify().ok
