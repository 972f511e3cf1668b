"""Storing for a server, which has to say whether an episode is new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from qilbee_core import AsyncStore, ConflictError, Episode, InvalidError, Store, store_anew

OpenHere = Callable[..., Store]

ONE = {
    "usual": Episode("bot", "note", {"n": 1}),
    "of another memory type": Episode("bot", "note", {"n": 1}, memory_type="factual"),
    "of long ago": Episode("bot", "note", {"n": 1}, event_time=datetime(1990, 1, 1, tzinfo=UTC)),
}


def told(store: Store, *stores: tuple[Episode, str | None]) -> list[tuple[str, bool]]:
    """What each of them is answered."""

    async def main() -> list[tuple[str, bool]]:
        memory = AsyncStore(store).agent_memory("bot")
        return [await store_anew(memory, episode, key) for episode, key in stores]

    return asyncio.run(main())


def copied(episode: Episode) -> Episode:
    """As it comes over the network once more."""
    return Episode(
        episode.agent_id, episode.episode_type, episode.content, memory_type=episode.memory_type, id=episode.id
    )


@pytest.mark.parametrize("kind", ONE)
def test_an_episode_is_new_once(open_here: OpenHere, kind: str) -> None:
    store, one = open_here(), copied(ONE[kind])
    assert told(store, (Episode("bot", "note", {}), None))[0][1]
    answers = told(store, (one, None), (copied(one), None), (one, None))
    assert answers == [(one.id, True), (one.id, False), (one.id, False)]
    assert store.agent_memory("bot").get_statistics().total_episodes == 2


def test_an_idempotency_key_is_new_once_and_gives_the_first_id(open_here: OpenHere) -> None:
    first, second = Episode("bot", "note", {"n": 1}), Episode("bot", "note", {"n": 1})
    answers = told(open_here(), (first, "key"), (copied(first), "key"), (second, "key"))
    assert answers == [(first.id, True), (first.id, False), (first.id, False)]


def test_what_is_there_without_a_key_gets_one_and_is_not_new(open_here: OpenHere) -> None:
    one = Episode("bot", "note", {"n": 1})
    assert told(open_here(), (one, None), (copied(one), "key")) == [(one.id, True), (one.id, False)]


def test_what_may_not_be_stored_is_refused_as_ever(open_here: OpenHere) -> None:
    store, one = open_here(), Episode("bot", "note", {"n": 1})
    told(store, (one, None))
    with pytest.raises(ConflictError):
        told(store, (Episode("bot", "note", {"n": 2}, id=one.id), None))
    for key in (None, "key"):
        with pytest.raises(InvalidError, match="belongs to agent"):
            told(store, (Episode("other", "note", {}), key))
