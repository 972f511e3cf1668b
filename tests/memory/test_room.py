"""Reading no more than there is room for: what fits is given, what does not is named, and together it is the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared.notes import AGENT, NOON, at, ids_of

from qilbee_core import AsyncAgentMemory, AsyncStore, Episode, Room, Settings, Store, open_store, read_within
from qilbee_core.memory.filters import ANY

SIZES = st.lists(st.integers(1, 3000), min_size=1, max_size=40)
READS: dict[str, Callable[[AsyncAgentMemory, list[str]], Awaitable[Any]]] = {
    "recent": lambda memory, _: memory.get_recent_episodes(40),
    "recent of a type": lambda memory, _: memory.get_recent_episodes(40, episode_type="note"),
    "recent as of": lambda memory, _: memory.get_recent_episodes(40, as_of=NOON + timedelta(days=36500)),
    "get": lambda memory, ids: memory.get_episodes(ids),
    "get as of": lambda memory, ids: memory.get_episodes(ids, as_of=NOON + timedelta(days=36500)),
    "recall": lambda memory, _: memory.recall(40),
    "search": lambda memory, _: memory.search_episodes("tea", 40),
    "search as of": lambda memory, _: memory.search_episodes("tea", 40, as_of=NOON + timedelta(days=36500)),
    "hybrid": lambda memory, _: memory.hybrid_search("tea", 40),
    "history": lambda memory, ids: memory.history(ids[0]),
}


def encoded(episode: Episode) -> bytes:
    return str(episode.content["text"]).encode()


def episodes_of(answer: list[Any]) -> list[Episode]:
    return [getattr(each, "episode", each) for each in answer]


@pytest.fixture(scope="module")
def searched() -> Iterator[Store]:
    tables = {"storage": {"backend": "ephemeral"}, "search": {"indexing": "inline"}}
    with open_store(Settings.load(tables, environ={})) as store:
        yield store


@pytest.mark.parametrize("read", READS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, bytes_max=st.integers(1, 20_000))
def test_what_fits_and_what_is_left_are_the_answer(
    searched: Store, read: str, sizes: list[int], bytes_max: int
) -> None:
    plain = searched.agent_memory(AGENT)
    plain.clear()
    ids = plain.store_episodes([at(number, "tea " + "x" * size) for number, size in enumerate(sizes)])
    if read == "history":
        for size in sizes:
            plain.update_episode(ids[0], content={"text": "y" * size})

    async def both() -> tuple[list[Any], list[Any], Room]:
        memory, room = AsyncStore(searched).agent_memory(AGENT), Room(bytes_max, encoded)
        return await READS[read](memory, ids), await READS[read](read_within(memory, room), ids), room

    whole, part, room = asyncio.run(both())
    assert episodes_of(part) == episodes_of(whole)[: len(part)]
    assert room.taken == [encoded(episode) for episode in episodes_of(part)]
    assert part
    assert sum(map(len, room.taken)) <= bytes_max or len(part) == 1
    assert room.is_full == (len(part) < len(whole))
    if room.is_full:  # and the next one would not have fitted
        assert sum(map(len, room.taken)) + len(encoded(episodes_of(whole)[len(part)])) > bytes_max
    if read.startswith(("recall", "search", "hybrid")):
        assert [each.id for each in room.left] == ids_of(episodes_of(whole)[len(part) :])
    if read == "hybrid":
        assert [each.score for each in room.left] == [each.score for each in whole[len(part) :]]


def test_no_more_is_read_than_a_part_beyond_what_fits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = store.agent_memory(AGENT).store_episodes([at(number, "x" * 1000) for number in range(200)])
    opened = 0
    open_record = store._context.records.open

    def counting(*given: Any) -> Any:
        nonlocal opened
        opened += 1
        return open_record(*given)

    monkeypatch.setattr(store._context.records, "open", counting)

    async def read_all() -> None:
        memory = AsyncStore(store).agent_memory(AGENT)
        for read in (
            lambda within: within.get_recent_episodes(200),
            lambda within: within.get_episodes(ids),
            lambda within: within.get_episodes(ids, as_of=datetime.max),
            every,
        ):
            nonlocal opened
            opened = 0
            room = Room(20_000, encoded)
            await read(read_within(memory, room))
            assert len(room.taken) == 20
            assert 20 < opened <= 40

    async def every(memory: AsyncAgentMemory) -> None:
        async for _ in memory.episodes():
            pass

    asyncio.run(read_all())


def test_room_is_for_so_many_episodes_too(store: Store) -> None:
    memory = store.agent_memory(AGENT)
    memory.store_episodes([at(number) for number in range(20)])

    async def read(episodes_max: int) -> tuple[int, bool]:
        room = Room(1 << 20, encoded, episodes_max=episodes_max)
        found = read_within(AsyncStore(store).agent_memory(AGENT), room).episodes()
        return len([each async for each in found]), room.is_full

    assert asyncio.run(read(5)) == (5, True)
    assert asyncio.run(read(20)) == (20, False)


def test_a_recall_that_begins_anew_leaves_nothing_of_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = store.agent_memory(AGENT)
    memory.store_episodes([at(number, "x" * 100) for number in range(10)])
    room = Room(350, encoded)
    its = AsyncStore(store).agent_memory(AGENT)
    operations = its._operations.within(room)
    in_force = operations._orders()
    others = (*in_force[:-1], in_force[-1])
    told = [in_force, others, others, others]  # in the first reading others take their place
    monkeypatch.setattr(operations, "_orders", lambda: told.pop(0))
    found = operations.recall(10, None, ANY)
    assert not told
    assert len(found) == len(room.taken) == 3
    assert len({each.id for each in room.left}) == len(room.left) == 7


def test_history_goes_on_after_a_time(store: Store) -> None:
    memory = store.agent_memory(AGENT)
    (episode_id,) = memory.store_episodes([at(0, "1")])
    for text in "23456":
        memory.update_episode(episode_id, content={"text": text})
    versions = memory.history(episode_id)
    assert [each.content["text"] for each in versions] == list("12345")
    for number, version in enumerate(versions, 1):
        assert version.ended_at is not None
        assert memory.history(episode_id, after=version.ended_at) == versions[number:]
        assert memory.history(episode_id, after=version.ended_at - timedelta(microseconds=1)) == versions[number - 1 :]
    memory.invalidate(episode_id)
    *_, last = memory.history(episode_id)
    assert last.content["text"] == "6"
    assert versions[-1].ended_at is not None
    assert memory.history(episode_id, after=versions[-1].ended_at) == [last]
    assert memory.history(episode_id, after=last.ended_at) == []
    assert len(memory.history(episode_id, after=datetime(1900, 1, 1))) == 6
