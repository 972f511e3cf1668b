"""Copying a store while it is open."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import Episode, InvalidError, StorageError, Store, StoreClosedError, aopen_store, open_store
from qilbee_core.watermark import WATERMARK_NAME

OpenHere = Callable[..., Store]

COPIES = 5


@pytest.fixture(scope="session")
def engine() -> str:
    """An engine that can; the others are named where they are told so."""
    return "rocksdb"


def note(number: int) -> Episode:
    return Episode("bot", "note", {"number": number})


def numbers(store: Store) -> list[object]:
    """What there is, in its order, of a store that is sound."""
    report = store.verify()
    assert report.ok, report.problems
    return [episode.content["number"] for episode in store.agent_memory("bot").episodes()]


@pytest.mark.parametrize("durability", ["sync", "interval", "async", "none"])
def test_a_copy_opens_by_itself_with_what_was_there_at_that_moment(
    open_here: OpenHere, tmp_path: Path, durability: str
) -> None:
    store, target = open_here(durability=durability), tmp_path / "far" / "copy"
    memory = store.agent_memory("bot")
    for number in range(3):
        memory.store_episode(note(number))
    number_bytes = store.checkpoint(target)
    assert number_bytes == sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) > 0
    memory.store_episode(note(3))
    with open_store(target) as copy:
        assert numbers(copy) == [0, 1, 2]
        copy.agent_memory("bot").store_episode(note(100))
    assert numbers(store) == [0, 1, 2, 3]
    store.close()
    with open_store(target) as copy:
        assert numbers(copy) == [0, 1, 2, 100]


@pytest.mark.usefixtures("search_as_by_default")
def test_a_copy_is_searched_as_the_store_is(open_here: OpenHere, tmp_path: Path) -> None:
    store = open_here()
    stored_id = store.agent_memory("bot").store_episode(Episode.observation("bot", "Tea is served at five."))
    store.checkpoint(tmp_path / "copy")
    with open_store(tmp_path / "copy") as copy:
        assert [found.id for found in copy.agent_memory("bot").search_episodes("tea")] == [stored_id]


def test_a_copy_is_of_one_instant_while_others_write(open_here: OpenHere, tmp_path: Path) -> None:
    store, done = open_here(), threading.Event()
    memory = store.agent_memory("bot")
    memory.store_episode(note(0))

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            memory.store_episode(note(number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        least = []
        for copied in range(COPIES):
            least.append(memory.get_statistics().total_episodes)
            store.checkpoint(tmp_path / f"copy{copied}")
    finally:
        done.set()
        writer.join()
    for copied in range(COPIES):
        with open_store(tmp_path / f"copy{copied}") as copy:
            found = numbers(copy)
        assert found == list(range(len(found)))
        assert len(found) >= least[copied]


def test_nobody_else_may_look_into_a_copy_and_its_note_is_made_when_it_is_opened(
    open_here: OpenHere, tmp_path: Path
) -> None:
    open_here().checkpoint(tmp_path / "copy")
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o700
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["qilbee.json", "rocksdb"]
    note_of_copy = tmp_path / "copy" / "rocksdb" / WATERMARK_NAME
    assert not note_of_copy.exists()
    with open_store(tmp_path / "copy"):
        pass
    assert note_of_copy.exists()


@pytest.mark.parametrize("kind", ["directory", "file", "link to nothing"])
def test_nothing_is_ever_replaced_by_a_copy(open_here: OpenHere, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "copy"
    if kind == "directory":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nothing")
    with pytest.raises(InvalidError, match="exists"):
        open_here().checkpoint(target)
    assert not (tmp_path / "nothing").exists()
    assert target.is_symlink() or target.is_file() or not list(target.iterdir())


def test_a_copy_that_fails_leaves_nothing(open_here: OpenHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_here()

    def half(target: Path) -> None:
        target.mkdir()
        (target / "000001.sst").write_bytes(b"half")
        raise StorageError("the disk is gone")

    monkeypatch.setattr(store._backend, "checkpoint", half)
    with pytest.raises(StorageError, match="the disk is gone"):
        store.checkpoint(tmp_path / "copies" / "copy")
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize("engine", ["leveldb", "ephemeral"])
def test_an_engine_that_cannot_is_named(open_here: OpenHere, tmp_path: Path, engine: str) -> None:
    with pytest.raises(InvalidError, match=rf"the {engine} engine cannot copy a store that is open") as caught:
        open_here().checkpoint(tmp_path / "copy")
    assert "close it" in caught.value.remedy
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("target", [None, 7, b"copy", ["copy"], "a\0b"])
def test_a_copy_goes_to_a_path(open_here: OpenHere, target: Any) -> None:
    with pytest.raises(InvalidError, match=r"^target is .*: give the path of a directory$"):
        open_here().checkpoint(target)


def test_a_store_that_is_closed_is_not_copied(open_here: OpenHere, tmp_path: Path) -> None:
    store = open_here()
    store.close()
    with pytest.raises(StoreClosedError):
        store.checkpoint(tmp_path / "copy")


def test_asyncio_programs_copy_too(tmp_path: Path) -> None:
    async def main() -> int:
        async with await aopen_store(tmp_path / "data") as store:
            await store.agent_memory("bot").store_episode(note(7))
            return await store.checkpoint(tmp_path / "copy")

    assert asyncio.run(main()) > 0
    with open_store(tmp_path / "copy") as copy:
        assert numbers(copy) == [7]
