"""One filter for every verb that gives episodes: what passes comes as if there were nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qilbee_core import (
    AgentMemory,
    Episode,
    InvalidError,
    MemorySettings,
    SearchSettings,
    Settings,
    StorageSettings,
    Store,
    open_store,
)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MOMENTS = [NOON + timedelta(hours=hours) for hours in range(4)]
WORDS = ("tea", "oak", "ink", "violin", "order")
TYPES = ("note", "other", "conversation")
MEMORY_TYPES = ("episodic", "semantic", "procedural", "factual")
ALL = 1000
_numbers = count()


@pytest.fixture(scope="module")
def one_store(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Store]:
    """A store that is searched, and in which nothing but the test changes what is relevant."""
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel", "ephemeral": "qilbee_core"}[engine])
    given = Settings(
        storage=StorageSettings(data_path=str(tmp_path_factory.mktemp("filters") / "data"), backend=engine),
        search=SearchSettings(indexing="inline"),
        memory=MemorySettings(reinforcement_share=0),
    )
    with open_store(given) as store:
        yield store


VERBS: dict[str, Callable[..., list[Episode]]] = {
    "recent": lambda memory, limit, **asked: memory.get_recent_episodes(limit, **asked),
    "all": lambda memory, limit, **asked: list(islice(memory.episodes(**asked), limit)),
    "all backwards": lambda memory, limit, **asked: list(islice(memory.episodes(reverse=True, **asked), limit)),
    "recall": lambda memory, limit, **asked: memory.recall(limit, **asked),
    "keyword": lambda memory, limit, **asked: memory.search_episodes("tea and oak", limit, **asked),
    "semantic": lambda memory, limit, **asked: found(memory.semantic_search("a beverage", limit, **asked)),
    "words alone": lambda memory, limit, **asked: found(memory.hybrid_search("ink and oak", limit, 0, **asked)),
    "both": lambda memory, limit, **asked: found(memory.hybrid_search("music and tea", limit, 0.5, **asked)),
    "meaning alone": lambda memory, limit, **asked: found(memory.hybrid_search("wood", limit, 1, **asked)),
    "similar": lambda memory, limit, **asked: found(memory.find_similar_episodes(some_id(memory), limit, **asked)),
}


def found(results: Any) -> list[Episode]:
    return [result.episode for result in results]


def some_id(memory: AgentMemory) -> str:
    return memory.get_recent_episodes(1)[0].id


def passes(episode: Episode, asked: dict[str, Any]) -> bool:
    """The whole meaning of the four filters."""
    return (
        asked.get("episode_type") in (None, episode.episode_type)
        and asked.get("memory_type") in (None, episode.memory_type)
        and (asked.get("start") is None or asked["start"] <= episode.event_time)
        and (asked.get("end") is None or episode.event_time < asked["end"])
    )


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """What happens to an agent's memory."""
    stored = st.tuples(
        st.just("store"),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
        st.sampled_from(TYPES),
        st.sampled_from(MEMORY_TYPES),
        st.sampled_from(MOMENTS),
        st.sampled_from([0.2, 0.5, 1.0]),
        st.booleans(),  # whether it will have expired
    )
    which = st.integers(0, 30)
    changed = st.tuples(st.sampled_from(["retype", "reword", "invalidate", "delete", "pin", "consolidate"]), which)
    return draw(st.lists(st.one_of(stored, stored, changed), min_size=1, max_size=16))


def live(memory: AgentMemory, life: list[tuple[Any, ...]], expiry: datetime) -> list[datetime]:
    """Let it happen; gives the transaction times."""
    ids: list[str] = []
    times = []
    for verb, *rest in life:
        if verb == "store":
            words, kind, memory_type, moment, relevance, expires = rest
            episode = Episode(
                memory.agent_id,
                kind,
                {"text": " ".join(words)},
                memory_type=memory_type,
                event_time=moment,
                relevance=relevance,
                expires_at=expiry if expires else None,
            )
            ids.append(memory.store_episode(episode))
        elif ids:
            change(memory, verb, ids[rest[0] % len(ids)])
        times += [each.transaction_time for each in memory.get_recent_episodes(ALL) if each.transaction_time]
    return sorted(set(times))


def change(memory: AgentMemory, verb: str, id: str) -> None:
    if verb == "delete":
        memory.delete_episode(id)
    elif verb == "consolidate":
        memory.consolidate("duplicates")
    elif verb == "invalidate":
        memory.invalidate(id)
    elif memory.get_episode(id) is not None:
        if verb == "pin":
            memory.pin(id)
        elif verb == "reword":
            memory.update_episode(id, content={"text": "tea and ink"})
        else:
            memory.update_episode(id, episode_type="note")


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "episode_type": st.sampled_from([*TYPES, "never"]),
        "memory_type": st.sampled_from(MEMORY_TYPES),
        "start": st.sampled_from(MOMENTS),
        "end": st.sampled_from(MOMENTS),
    },
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=lives(), asked=st.lists(FILTERS, min_size=1, max_size=4), limit=st.integers(1, 6), data=st.data())
def test_a_filtered_answer_is_the_best_of_what_passes(
    store: Store, clock: Any, life: list[tuple[Any, ...]], asked: list[dict[str, Any]], limit: int, data: st.DataObject
) -> None:
    memory = store.agent_memory(f"agent {next(_numbers)}")
    times = live(memory, life, clock.now + timedelta(minutes=30))
    clock.forward(hours=1)  # what was to expire has
    memory.store_episode(Episode(memory.agent_id, "note", {"text": "oak"}, event_time=MOMENTS[2]))
    as_of = data.draw(st.sampled_from([None, *times]), label="as of")
    for name, verb in VERBS.items():
        then = {} if as_of is None or name == "recall" else {"as_of": as_of}
        everything = verb(memory, ALL, **then)
        for each in asked:
            expected = [episode for episode in everything if passes(episode, each)][:limit]
            answer = verb(memory, limit, **each, **then)
            assert answer == expected, (name, each, then)
            assert [episode.relevance for episode in answer] == [episode.relevance for episode in expected]


@pytest.mark.parametrize("name", ["keyword", "semantic", "both", "similar"])
def test_a_filter_is_applied_before_the_best_are_chosen(store: Store, name: str) -> None:
    memory = store.agent_memory("bot")
    rare = Episode("bot", "rare", {"text": "Letters of a harbour, trains, invoices, some tea, a violin and much else."})
    memory.store_episode(rare)
    memory.store_episodes([Episode("bot", "note", {"text": "An invoice came."}) for _ in range(400)])
    memory.store_episodes([Episode("bot", "note", {"text": "Tea, oak, music: a beverage."}) for _ in range(300)])
    assert VERBS[name](memory, 3, episode_type="rare") == [rare]
    assert rare not in VERBS[name](memory, 3)


def test_a_filter_goes_by_the_type_of_the_time_that_is_asked_for(store: Store) -> None:
    memory = store.agent_memory("bot")
    memory.store_episode(Episode("bot", "other", {"text": "oak"}, event_time=NOON + timedelta(days=1)))
    stored = memory.store_episode(Episode("bot", "draft", {"text": "tea in the wood, with a beverage and oak"}))
    first = memory.get_episode(stored)
    assert first is not None
    memory.update_episode(stored, episode_type="note")
    for name in sorted(VERBS.keys() - {"recall", "similar"}):
        verb = VERBS[name]
        then = {"as_of": first.transaction_time}
        assert verb(memory, 5, episode_type="draft") == verb(memory, 5, episode_type="note", **then) == [], name
        assert [each.episode_type for each in verb(memory, 5, episode_type="note")] == ["note"], name
        assert [each.episode_type for each in verb(memory, 5, episode_type="draft", **then)] == ["draft"], name


def test_a_reading_that_broke_off_goes_on_behind_its_last_episode(store: Store) -> None:
    memory = store.agent_memory("bot")
    batch = [Episode.observation("bot", str(number), event_time=MOMENTS[number // 10]) for number in range(40)]
    memory.store_episodes(batch)
    ids = [episode.id for episode in batch]
    memory.delete_episode(ids[14])
    del ids[14]
    after = batch[14].id  # it is gone, and its place is known all the same
    assert [each.id for each in memory.episodes(after=after)] == ids[14:]
    assert [each.id for each in memory.episodes(after=after, reverse=True)] == ids[:14][::-1]
    assert [each.id for each in memory.episodes(MOMENTS[2], MOMENTS[3], after=after)] == ids[19:29]
    assert [each.id for each in memory.episodes(end=MOMENTS[1], after=after)] == []
    assert [each.id for each in memory.episodes(after=ids[-1])] == []
    known = memory.get_recent_episodes(1)[0].transaction_time
    assert [each.id for each in memory.episodes(after=ids[20], as_of=known)] == ids[21:]
    assert [each.id for each in memory.episodes(after=ids[20], as_of=known, reverse=True)] == ids[:20][::-1]
    with pytest.raises(InvalidError, match="episode id"):
        memory.episodes(after="7")


MISTAKES: dict[str, Any] = {"episode_type": 7, "memory_type": "episode", "start": 7, "end": "today"}


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("key", MISTAKES)
def test_every_verb_refuses_the_same_mistakes(store: Store, name: str, key: str) -> None:
    memory = store.agent_memory("bot")
    memory.store_episode(Episode.observation("bot", "tea"))
    with pytest.raises(InvalidError, match=key if key != "memory_type" else "memory"):
        VERBS[name](memory, 3, **{key: MISTAKES[key]})
