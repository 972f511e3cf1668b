"""One suite for every memory there is: embedded and behind a server, called and awaited.

What a program sees must not depend on where the memory is: the same answers, and the same errors for the same mistakes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import count, islice, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qilbeedb import QilbeeDB
from qilbeedb.exceptions import ConflictError, InvalidError, NotFoundError, QilbeeError
from qilbeedb.memory import AgentMemory, Episode

from .conftest import PLACES

pytestmark = pytest.mark.parametrize("place", PLACES, indirect=True, scope="module")

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)
UNKNOWN_ID = Episode.observation("nobody", "never stored").id
_numbers = count()


def note(memory: AgentMemory, text: str, **given: Any) -> Episode:
    """A stored observation."""
    episode = Episode.observation(memory.agent_id, text, **given)
    assert memory.store_episode(episode) == episode.id
    return episode


def texts(episodes: Any) -> list[str]:
    return [episode.content["observation"] for episode in episodes]


# Storing and reading


def test_what_was_stored_comes_back_equal(memory: AgentMemory) -> None:
    agent = memory.agent_id
    episodes = [
        Episode.conversation(agent, "Where is my order?", "On its way.", metadata={"order": 48213}),
        Episode.observation(agent, "CPU at 85 %", event_time=MONDAY),
        Episode.action(agent, "Scaled to 4", "Latency fell", relevance=0.25),
        Episode(agent, "préférence", {"likes": ["oak", None, 1.5, {"a": True}]}, memory_type="factual"),
    ]
    for episode in episodes:
        assert memory.store_episode(episode) == episode.id
        found = memory.get_episode(episode.id)
        assert found == episode
        assert found is not None
        assert found.event_time == episode.event_time
        assert found.transaction_time is not None
        assert found.relevance == pytest.approx(episode.relevance, abs=1e-3)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=OBJECTS, metadata=OBJECTS)
def test_any_json_comes_back_as_it_was_sent(memory: AgentMemory, content: Any, metadata: Any) -> None:
    episode = Episode(memory.agent_id, "anything", content, metadata=metadata)
    memory.store_episode(episode)
    found = memory.get_episode(episode.id)
    assert found is not None
    # By their text too: 1 and 1.0 are equal, and so are 0.0 and -0.0.
    assert (repr(found.content), repr(found.metadata)) == (repr(content), repr(metadata))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moment=st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))])))
def test_any_event_time_comes_back_to_the_microsecond(memory: AgentMemory, moment: datetime) -> None:
    try:
        episode = note(memory, "then", event_time=moment)
    except InvalidError:
        assert moment.year in {1, 9999}  # beyond them in UTC
        return
    found = memory.get_episode(episode.id)
    assert found is not None
    assert found.event_time == moment


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program whose local time is not UTC."""
    monkeypatch.setenv("TZ", "XXX+11")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
def test_a_time_without_a_zone_is_in_utc_wherever_the_program_runs(memory: AgentMemory) -> None:
    naive, end = MONDAY.replace(tzinfo=None), MONDAY.replace(tzinfo=None, hour=10)
    found = note(memory, "breakfast", event_time=naive)
    assert found.event_time == MONDAY
    assert (
        texts(memory.episodes(naive, end)) == texts(memory.get_recent_episodes(start=naive, end=end)) == ["breakfast"]
    )
    assert (
        texts(memory.recall(start=naive, end=end))
        == texts(memory.search_episodes("breakfast", start=naive))
        == ["breakfast"]
    )
    known = memory.get_episode(found.id)
    assert known is not None
    assert known.transaction_time is not None
    stored = known.transaction_time.replace(tzinfo=None)
    assert memory.get_episode(found.id, as_of=stored) is not None
    assert memory.get_episode(found.id, as_of=stored - timedelta(hours=1)) is None
    memory.update_episode(found.id, metadata={"a": 1})
    memory.purge(stored - timedelta(hours=1))
    assert len(memory.history(found.id, after=stored)) == 1


def test_the_first_and_the_last_moment_there_are_mean_always(memory: AgentMemory) -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    old, new = note(memory, "first", event_time=first), note(memory, "last", event_time=last, expires_at=last)
    now = note(memory, "now")
    found = memory.get_recent_episodes()
    assert [each.event_time for each in found] == [last, now.event_time, first]
    assert found[0].expires_at == pytest.approx(last, abs=timedelta(microseconds=31))
    statistics = memory.get_statistics()
    assert statistics.oldest_episode == first
    assert statistics.newest_episode == pytest.approx(last, abs=timedelta(microseconds=31))
    ends = [
        (datetime.min, datetime.max),
        (first.replace(tzinfo=timezone(timedelta(hours=14))), last.replace(tzinfo=timezone(timedelta(hours=-12)))),
    ]
    for start, end in ends:
        assert {"first", "now"} <= set(texts(memory.episodes(start, end)))
        assert {"first", "now"} <= set(texts(memory.get_recent_episodes(as_of=end)))  # the last one expires then
        assert memory.get_recent_episodes(as_of=start) == []
        assert memory.consolidate("duplicates", since=start, dry_run=True).offered >= 2
    memory.update_episode(now.id, metadata={"a": 1})
    assert len(memory.history(now.id, after=ends[1][0])) == 1
    assert memory.purge(ends[1][0]).versions == 0
    assert memory.purge(ends[1][1]).versions == 1
    assert memory.store_episodes([old, new]) == [old.id, new.id]


def test_what_is_stored_again_is_stored_once(memory: AgentMemory) -> None:
    episode = note(memory, "once")
    assert memory.store_episode(episode) == episode.id
    assert memory.store_episodes([episode, episode]) == [episode.id, episode.id]
    assert memory.get_statistics().total_episodes == 1
    episode.content = {"observation": "twice"}
    with pytest.raises(ConflictError):
        memory.store_episode(episode)
    assert texts(memory.get_recent_episodes()) == ["once"]


def test_an_idempotency_key_finds_what_was_stored_under_it(memory: AgentMemory) -> None:
    first, again = (Episode.observation(memory.agent_id, "Any news?") for _ in range(2))
    assert memory.store_episode(first, idempotency_key="message 1") == first.id
    assert memory.store_episode(again, idempotency_key="message 1") == first.id
    with pytest.raises(ConflictError):
        memory.store_episode(Episode.observation(memory.agent_id, "News!"), idempotency_key="message 1")
    assert memory.get_statistics().total_episodes == 1


def test_a_batch_is_stored_in_order_and_whole_or_not_at_all(memory: AgentMemory) -> None:
    batch = [Episode.observation(memory.agent_id, str(number)) for number in range(50)]
    assert memory.store_episodes(batch) == [episode.id for episode in batch]
    assert memory.store_episodes([]) == []
    bad = [Episode.observation(memory.agent_id, "good"), Episode.observation("somebody else", "bad")]
    with pytest.raises(InvalidError, match="somebody else"):
        memory.store_episodes(bad)
    changed = [Episode.observation(memory.agent_id, "good"), batch[0]]
    batch[0].content = {"observation": "changed"}
    with pytest.raises(ConflictError):
        memory.store_episodes(changed)
    assert memory.get_statistics().total_episodes == 50


def test_an_import_stores_any_number_and_any_size(memory: AgentMemory) -> None:
    large = "x" * 700_000
    stream = (Episode.observation(memory.agent_id, large if number % 300 == 0 else "x") for number in range(1500))
    seen: list[int] = []
    assert memory.import_episodes(stream, progress=seen.append) == 1500
    assert seen == sorted(seen)
    assert seen[-1] == memory.get_statistics().total_episodes == 1500


def test_an_import_that_is_stopped_says_what_is_stored(memory: AgentMemory) -> None:
    episodes = [Episode.observation(memory.agent_id, str(number)) for number in range(1500)]
    episodes[1200].content = {"observation": float("nan")}
    with pytest.raises(InvalidError) as caught:
        memory.import_episodes(episodes)
    stored: list[str] = caught.value.stored_ids  # type: ignore[attr-defined]
    assert stored == [episode.id for episode in episodes[: len(stored)]]
    assert len(stored) == memory.get_statistics().total_episodes
    assert "stored before this" in caught.value.__notes__[0]


def test_several_are_read_at_once_in_the_order_asked_for(memory: AgentMemory) -> None:
    first, second = note(memory, "first"), note(memory, "second")
    found = memory.get_episodes([second.id, UNKNOWN_ID, first.id, second.id])
    assert found == [second, None, first, second]
    assert memory.get_episodes([]) == []
    assert memory.get_episode(UNKNOWN_ID) is None


def test_the_newest_come_first_page_by_page(memory: AgentMemory) -> None:
    batch = [
        Episode.observation(memory.agent_id, str(number), event_time=MONDAY + timedelta(minutes=number))
        for number in range(25)
    ]
    memory.store_episodes(batch)
    memory.store_episode(Episode(memory.agent_id, "rare", {}, event_time=MONDAY, memory_type="factual"))
    assert texts(memory.get_recent_episodes()) == [str(number) for number in range(24, 14, -1)]
    pages, before = [], None
    while page := memory.get_recent_episodes(10, before=before, episode_type="observation"):
        pages.append(len(page))
        before = page[-1].id
    assert pages == [10, 10, 5]
    assert [each.episode_type for each in memory.get_recent_episodes(memory_type="factual")] == ["rare"]


def test_a_time_range_is_read_whole_in_either_direction(memory: AgentMemory) -> None:
    # More than a page, and more at one moment than a page.
    moments = [MONDAY + timedelta(seconds=min(number, 300)) for number in range(650)]
    memory.store_episodes(
        [Episode.observation(memory.agent_id, str(number), event_time=at) for number, at in enumerate(moments)]
    )
    everything = texts(memory.episodes())
    assert everything == [str(number) for number in range(650)]
    assert texts(memory.episodes(reverse=True)) == everything[::-1]
    some = texts(memory.episodes(MONDAY + timedelta(seconds=10), MONDAY + timedelta(seconds=20)))
    assert some == [str(number) for number in range(10, 20)]
    assert texts(memory.episodes(MONDAY + timedelta(seconds=300, microseconds=1))) == []


# Agents


AGENTS = [
    "a b",
    "ä",
    "日本",
    "a%2Fb",
    "%",
    "%2e%2e",
    "a?b#c",
    "a;b=c&d",
    "+",
    "~",
    "...",
    "a:b",
    "a\\b",
    "{id}",
    "épée" * 20,
]


@pytest.mark.parametrize("agent_id", AGENTS)
def test_any_agent_has_its_own_memory_whatever_its_name(database: QilbeeDB, agent_id: str) -> None:
    memory, other = database.agent_memory(agent_id), database.agent_memory(f"{agent_id}!")
    before = memory.get_statistics().total_episodes
    episode = note(memory, "mine")
    assert memory.get_statistics().total_episodes == before + 1
    assert other.get_episode(episode.id) is None
    assert memory.agent_id in database.agents()
    assert memory.delete_episode(episode.id)


def test_agent_ids_are_compared_in_their_composed_form(database: QilbeeDB) -> None:
    composed, decomposed = database.agent_memory("caf\u00e9"), database.agent_memory("cafe\u0301")
    assert decomposed.agent_id == composed.agent_id
    episode = Episode.observation("cafe\u0301", "coffee")
    composed.store_episode(episode)
    assert decomposed.get_episode(episode.id) is not None


@pytest.mark.parametrize("agent_id", ["", ".", "..", "a/b", "a\0b", "a\nb", "x" * 256, "\ud800", 7, None])
def test_what_is_no_agent_id_is_refused(database: QilbeeDB, agent_id: Any) -> None:
    with pytest.raises(InvalidError, match="agent id"):
        database.agent_memory(agent_id)


# Finding


def test_search_finds_by_words_meaning_and_both(memory: AgentMemory) -> None:
    order = note(memory, "The order number is 48213.", event_time=MONDAY)
    note(memory, "Tea is served at five.", event_time=MONDAY + timedelta(days=1))
    assert memory.search_episodes("number of my order", limit=1) == [order]
    assert memory.search_episodes("order", start=MONDAY + timedelta(hours=1)) == []
    assert memory.search_episodes("order", episode_type="conversation") == []
    semantic = memory.semantic_search("a beverage in the afternoon", 1)
    assert semantic[0].episode.content == {"observation": "Tea is served at five."}
    hybrid = memory.hybrid_search("order number", 1, 0.5, explain=True)[0]
    assert hybrid.episode == order
    assert hybrid.score == pytest.approx(hybrid.keyword_score + hybrid.semantic_score)
    assert hybrid.explanation is not None
    assert sum(hybrid.explanation.values()) == pytest.approx(hybrid.score)
    assert memory.hybrid_search("order number", 1)[0].explanation is None
    assert memory.semantic_search("order", min_score=100.0) == []


def test_what_is_like_an_episode_is_found(memory: AgentMemory) -> None:
    first = note(memory, "The customer wants to cancel her subscription.")
    second = note(memory, "A client asked to end the subscription.")
    note(memory, "Tea is served at five.")
    assert memory.find_similar_episodes(first.id, 1)[0].episode == second
    with pytest.raises(NotFoundError):
        memory.find_similar_episodes(UNKNOWN_ID)


VERBS: dict[str, Callable[..., list[Episode]]] = {
    "recent": lambda memory, limit, **asked: memory.get_recent_episodes(limit, **asked),
    "all": lambda memory, limit, **asked: list(islice(memory.episodes(**asked), limit)),
    "recall": lambda memory, limit, **asked: memory.recall(limit, **asked),
    "keyword": lambda memory, limit, **asked: memory.search_episodes("tea and oak", limit, **asked),
    "semantic": lambda memory, limit, **asked: found(memory.semantic_search("a beverage", limit, **asked)),
    "hybrid": lambda memory, limit, **asked: found(memory.hybrid_search("tea and oak", limit, 0.5, **asked)),
    "similar": lambda memory, limit, **asked: found(memory.find_similar_episodes(anchor(memory), limit, **asked)),
}


def found(results: Any) -> list[Episode]:
    return [result.episode for result in results]


def anchor(memory: AgentMemory) -> str:
    return memory.get_recent_episodes(1)[0].id


@pytest.fixture(scope="module")
def mixed(database: QilbeeDB) -> AgentMemory:
    """A memory of all types and times, for tests that only read."""
    memory = database.agent_memory("mixed")
    kinds = product(["note", "fact"], ["episodic", "semantic", "procedural", "factual"], range(3))
    memory.store_episodes(
        [
            Episode(
                memory.agent_id,
                kind,
                {"observation": f"tea under oak number {number}" if number % 2 else f"a beverage in room {number}"},
                memory_type=memory_type,  # type: ignore[arg-type]
                event_time=MONDAY + timedelta(hours=hours),
                relevance=0.9 - number / 100,
            )
            for number, (kind, memory_type, hours) in enumerate(kinds)
        ]
    )
    return memory


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    verb=st.sampled_from(sorted(VERBS)),
    limit=st.integers(1, 8),
    asked=st.fixed_dictionaries(
        {},
        optional={
            "episode_type": st.sampled_from(["note", "fact", "never"]),
            "memory_type": st.sampled_from(["episodic", "semantic", "procedural", "factual"]),
            "start": st.integers(0, 3).map(lambda hours: MONDAY + timedelta(hours=hours)),
            "end": st.integers(0, 3).map(lambda hours: MONDAY + timedelta(hours=hours)),
        },
    ),
)
def test_every_verb_that_gives_episodes_takes_the_same_filters(
    mixed: AgentMemory, verb: str, limit: int, asked: dict[str, Any]
) -> None:
    expected = [
        episode
        for episode in VERBS[verb](mixed, 1000)
        if asked.get("episode_type", episode.episode_type) == episode.episode_type
        and asked.get("memory_type", episode.memory_type) == episode.memory_type
        and asked.get("start", MONDAY) <= episode.event_time < asked.get("end", MONDAY + timedelta(days=1))
    ]
    assert VERBS[verb](mixed, limit, **asked) == expected[:limit]


def test_a_search_by_words_can_be_explained(mixed: AgentMemory) -> None:
    results = mixed.hybrid_search("tea and oak", 5, 0, memory_type="factual", explain=True)
    assert found(results) == mixed.search_episodes("tea and oak", 5, memory_type="factual")
    for result in results:
        assert result.explanation is not None
        assert sum(result.explanation.values()) == pytest.approx(result.score)


def test_a_reading_goes_on_behind_any_episode(memory: AgentMemory) -> None:
    batch = [Episode.observation(memory.agent_id, str(number), event_time=MONDAY) for number in range(600)]
    memory.store_episodes(batch)
    assert texts(memory.episodes(after=batch[299].id)) == [str(number) for number in range(300, 600)]
    assert texts(memory.episodes(after=batch[299].id, reverse=True)) == [str(number) for number in range(299)][::-1]
    assert texts(memory.episodes(after=batch[-1].id)) == []


def test_search_tells_its_status(memory: AgentMemory) -> None:
    note(memory, "something")
    memory.search_episodes("something")
    status = memory.get_semantic_search_status()
    assert (status.enabled, status.indexing, status.indexed, status.pending) == (True, "background", 1, 0)
    assert status.dimensions > 0


def test_the_most_relevant_are_recalled(memory: AgentMemory) -> None:
    for text, relevance in ("tea", 0.5), ("oak", 0.9), ("ink", 0.1):
        note(memory, text, relevance=relevance)
    assert texts(memory.recall(2)) == ["oak", "tea"]
    assert texts(memory.recall(min_relevance=0.8)) == ["oak"]
    assert memory.recall(memory_type="semantic") == []


# Changing and forgetting


def test_an_update_replaces_what_is_given_and_keeps_the_version_before(memory: AgentMemory) -> None:
    episode = note(memory, "old", metadata={"source": "chat"})
    updated = memory.update_episode(episode.id, content={"observation": "new"})
    assert (updated.content, updated.metadata) == ({"observation": "new"}, {"source": "chat"})
    assert memory.get_episode(episode.id) == updated
    assert texts(memory.history(episode.id)) == ["old"]
    assert memory.update_episode(episode.id, episode_type="fact").episode_type == "fact"
    with pytest.raises(NotFoundError):
        memory.update_episode(UNKNOWN_ID, metadata={})
    with pytest.raises(InvalidError, match="metadata"):
        memory.update_episode(episode.id, metadata={"at": (1, 2)})


def test_boosted_and_pinned_is_more_relevant(memory: AgentMemory) -> None:
    episode = note(memory, "faint", relevance=0.2)
    assert memory.boost(episode.id, 0.5).relevance == pytest.approx(0.6, abs=1e-3)
    pinned = memory.pin(episode.id)
    assert (pinned.pinned, pinned.relevance) == (True, 1.0)
    found = memory.get_episode(episode.id)
    assert found is not None
    assert found.pinned
    assert not memory.unpin(episode.id).pinned
    for verb in (memory.boost, memory.pin, memory.unpin):
        with pytest.raises(NotFoundError):
            verb(UNKNOWN_ID)


def test_what_is_not_relevant_is_forgotten(memory: AgentMemory) -> None:
    faint = note(memory, "faint", relevance=0.05)
    note(memory, "strong")
    planned = memory.forget(dry_run=True)
    assert (planned.episodes, planned.ids, planned.dry_run) == (1, [faint.id], True)
    done = memory.forget()
    assert (done.episodes, done.ids, done.by_memory_type) == (1, [faint.id], {"episodic": 1})
    assert (done.bytes, done.rows) == (planned.bytes, planned.rows)
    assert texts(memory.get_recent_episodes()) == ["strong"]
    assert memory.forget(0, max_episodes=0).episodes == 1


def test_what_has_expired_is_absent(memory: AgentMemory) -> None:
    gone = note(memory, "gone", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    stays = note(memory, "stays", ttl=timedelta(days=1))
    assert memory.get_episode(gone.id) is None
    found = memory.get_episode(stays.id)
    assert found is not None
    assert found.expires_at == stays.expires_at


@pytest.mark.parametrize("erase", [False, True])
def test_deleted_is_gone(memory: AgentMemory, erase: bool) -> None:
    first, _ = note(memory, "first"), note(memory, "second")
    assert memory.delete_episode(first.id, erase=erase) is True
    assert memory.delete_episode(first.id, erase=erase) is False
    assert texts(memory.get_recent_episodes()) == ["second"]
    receipt = memory.clear(erase=erase)
    assert receipt.episodes == 1
    assert receipt.bytes > 0
    assert memory.clear().episodes == 0
    assert memory.get_recent_episodes() == []


def test_statistics_are_exact(memory: AgentMemory) -> None:
    empty = memory.get_statistics()
    assert (empty.total_episodes, empty.oldest_episode, empty.avg_relevance) == (0, None, 0.0)
    last = MONDAY + timedelta(microseconds=123_457)
    note(memory, "first", event_time=MONDAY)
    memory.store_episode(Episode.action(memory.agent_id, "did", "well", event_time=last, relevance=0.5))
    found = memory.get_statistics()
    assert found.total_episodes == 2
    assert found.episodes_by_type == {"observation": 1, "action": 1}
    assert (found.oldest_episode, found.newest_episode) == (MONDAY, last)
    assert found.avg_relevance == pytest.approx(0.75, abs=1e-3)
    assert found.bytes > 0


# What was once known


def test_an_episode_is_given_as_it_was_at_a_time(memory: AgentMemory) -> None:
    episode = note(memory, "The office is in Malmö.")
    stored = memory.get_episode(episode.id)
    assert stored is not None
    then = stored.transaction_time
    memory.update_episode(episode.id, content={"observation": "The office is in Lund."})
    for found in (
        memory.get_episode(episode.id, as_of=then),
        memory.get_episodes([episode.id], as_of=then)[0],
        memory.get_recent_episodes(as_of=then)[0],
        next(iter(memory.episodes(as_of=then))),
        memory.search_episodes("office", as_of=then)[0],
        memory.semantic_search("office", as_of=then)[0].episode,
        memory.hybrid_search("office", as_of=then)[0].episode,
    ):
        assert found is not None
        assert found.content == {"observation": "The office is in Malmö."}
    assert memory.get_recent_episodes(as_of=MONDAY) == []


def test_what_is_no_longer_true_is_retired_and_can_be_purged(memory: AgentMemory) -> None:
    first = note(memory, "The customer wants to cancel her subscription.")
    second = note(memory, "A client asked to end the subscription.")
    (stored,) = memory.get_episodes([second.id])
    assert stored is not None
    then = stored.transaction_time
    assert memory.invalidate(first.id) is True
    assert memory.invalidate(first.id) is False
    assert memory.get_episode(first.id) is None
    assert memory.find_similar_episodes(second.id) == []
    assert memory.find_similar_episodes(second.id, as_of=then) == []  # retired is not found any more
    assert memory.get_episode(first.id, as_of=then) == first
    (ended,) = memory.history(first.id)
    assert ended.ended_at is not None
    assert ended.superseded_by is None
    receipt = memory.purge(datetime.now(UTC) + timedelta(seconds=1))
    assert (receipt.episodes, receipt.versions) == (1, 1)
    assert receipt.bytes > 0
    assert memory.history(first.id) == []


def test_a_consolidation_can_be_undone(memory: AgentMemory) -> None:
    stored = [note(memory, text) for text in ("Order 7 is sent.", "Well, order 7 is sent!", "Order 8 is sent.")]
    planned = memory.consolidate(dry_run=True)
    assert (planned.dry_run, planned.consolidation_id, planned.policy) == (True, None, "duplicates")
    assert memory.get_statistics().total_episodes == 3
    done = memory.consolidate("duplicates")
    assert (done.offered, done.superseded, list(done.forgotten)) == (3, planned.superseded, [])
    assert memory.get_statistics().total_episodes == 2
    (undoable,) = memory.consolidations()
    assert (undoable.consolidation_id, undoable.superseded) == (done.consolidation_id, 1)
    assert undoable.undo_until == done.undo_until
    (gone,) = done.superseded
    assert memory.history(gone)[-1].superseded_by == done.superseded[gone]
    receipt = memory.undo(undoable.consolidation_id)
    assert (list(receipt.restored), list(receipt.removed), receipt.kept) == ([gone], [], {})
    assert memory.get_episodes([each.id for each in stored]) == stored
    with pytest.raises(NotFoundError):
        memory.undo(undoable.consolidation_id)


def test_a_policy_may_make_new_memories(memory: AgentMemory) -> None:
    begin = MONDAY - timedelta(days=60)
    for number in range(6):
        memory.store_episode(
            Episode.conversation(
                memory.agent_id,
                f"Question {number} about oak?",
                "Oak it is.",
                event_time=begin + timedelta(minutes=number),
            )
        )
    planned = memory.consolidate("sessions", dry_run=True)
    assert planned.offered == 6
    done = memory.consolidate("sessions")
    assert [each.content for each in done.created] == [each.content for each in planned.created]
    for each in done.created:
        assert memory.get_episode(each.id) == each


# Mistakes

BAD: dict[str, Callable[[Any], object]] = {
    "an episode that is none": lambda memory: memory.store_episode({"content": {}}),
    "an episode of another agent": lambda memory: memory.store_episode(Episode.observation("other", "x")),
    "a content that is no object": lambda memory: memory.store_episode(
        Episode(memory.agent_id, "x", ["text"])  # type: ignore[arg-type]
    ),
    "a tuple": lambda memory: note(memory, "x", metadata={"at": (1, 2)}),
    "NaN": lambda memory: note(memory, "x", metadata={"at": float("nan")}),
    "bytes": lambda memory: note(memory, "x", metadata={"at": b"1"}),
    "a moment": lambda memory: note(memory, "x", metadata={"at": MONDAY}),
    "a key that is no text": lambda memory: note(memory, "x", metadata={1: "at"}),
    "a huge integer": lambda memory: note(memory, "x", metadata={"at": 2**64}),
    "a lone surrogate": lambda memory: note(memory, "\ud800"),
    "a content of two megabytes": lambda memory: note(memory, "x" * (2 << 20)),
    "a metadata of 65 kB": lambda memory: note(memory, "x", metadata={"at": "x" * (65 << 10)}),
    "nesting": lambda memory: note(memory, "x", metadata=nested(40)),
    "an unknown memory type": lambda memory: note(memory, "x", memory_type="episode"),
    "an episode type of nothing": lambda memory: memory.store_episode(Episode(memory.agent_id, "", {})),
    "a relevance above one": lambda memory: note(memory, "x", relevance=1.5),
    "a relevance that is text": lambda memory: note(memory, "x", relevance="0.5"),
    "an idempotency key that is none": lambda memory: memory.store_episode(
        Episode.observation(memory.agent_id, "x"), idempotency_key=7
    ),
    "an empty idempotency key": lambda memory: memory.store_episode(
        Episode.observation(memory.agent_id, "x"), idempotency_key=""
    ),
    "no episodes at all": lambda memory: memory.store_episodes(7),
    "a thousand and one episodes": lambda memory: memory.store_episodes(
        [Episode.observation(memory.agent_id, "x") for _ in range(1001)]
    ),
    "a progress that cannot be called": lambda memory: memory.import_episodes([], progress=7),
    "an id that is none": lambda memory: memory.get_episode("7"),
    "an id that is a path": lambda memory: memory.get_episode("../../../health"),
    "an id that is a number": lambda memory: memory.get_episode(7),
    "an id of capital letters": lambda memory: memory.get_episode(UNKNOWN_ID.upper()),
    "an id of no event time": lambda memory: memory.get_episode("0" * 8 + UNKNOWN_ID[8:14] + "0" + UNKNOWN_ID[15:]),
    "ids with one that is none": lambda memory: memory.get_episodes([UNKNOWN_ID, "7"]),
    "ids that are a number": lambda memory: memory.get_episodes(7),
    "ids that are one text": lambda memory: memory.get_episodes(""),
    "ids that are a table": lambda memory: memory.get_episodes({}),
    "a thousand and one ids": lambda memory: memory.get_episodes([UNKNOWN_ID] * 1001),
    "a limit of zero": lambda memory: memory.get_recent_episodes(0),
    "a limit of a thousand and one": lambda memory: memory.get_recent_episodes(1001),
    "a limit that is text": lambda memory: memory.get_recent_episodes("10"),
    "a limit that is true": lambda memory: memory.recall(True),
    "a cursor that is none": lambda memory: memory.get_recent_episodes(before="7"),
    "a filter that is no type": lambda memory: memory.get_recent_episodes(memory_type="episode"),
    "a start that is a number": lambda memory: list(memory.episodes(7)),
    "a direction that is none": lambda memory: list(memory.episodes(reverse="yes")),
    "a place to go on at that is none": lambda memory: list(memory.episodes(after="7")),
    "a type that is a number": lambda memory: memory.get_recent_episodes(episode_type=7),
    "a type to list that is a number": lambda memory: list(memory.episodes(episode_type=7)),
    "a memory type to recall that is none": lambda memory: memory.recall(memory_type="episode"),
    "a start of what is similar that is text": lambda memory: memory.find_similar_episodes(anchor(memory), start="now"),
    "an end of what is meant that is a number": lambda memory: memory.semantic_search("tea", end=7),
    "a type of both that is none": lambda memory: memory.hybrid_search("tea", memory_type=7),
    "a query that is bytes": lambda memory: memory.search_episodes(b"tea"),
    "a query with a lone surrogate": lambda memory: memory.search_episodes("\ud800"),
    "a search for none": lambda memory: memory.search_episodes("tea", 0),
    "an end that is text": lambda memory: memory.search_episodes("tea", end="today"),
    "a score that is none": lambda memory: memory.semantic_search("tea", 1, float("nan")),
    "a weight above one": lambda memory: memory.hybrid_search("tea", 1, 1.5),
    "an explanation that is none": lambda memory: memory.hybrid_search("tea", explain="yes"),
    "a relevance to recall above one": lambda memory: memory.recall(min_relevance=1.1),
    "a boost below zero": lambda memory: memory.boost(UNKNOWN_ID, -0.1),
    "a boost of nothing known": lambda memory: memory.boost(UNKNOWN_ID, float("nan")),
    "forgetting above one": lambda memory: memory.forget(1.1),
    "forgetting to less than nothing": lambda memory: memory.forget(max_episodes=-1),
    "a dry run that is none": lambda memory: memory.forget(dry_run="yes"),
    "a time that is a number": lambda memory: memory.get_episode(UNKNOWN_ID, as_of=7),
    "a time that is text": lambda memory: memory.search_episodes("tea", as_of="then"),
    "a purge without a time": lambda memory: memory.purge(None),
    "a purge that erases somehow": lambda memory: memory.purge(MONDAY, erase="yes"),
    "a policy that nobody has": lambda memory: memory.consolidate("magic"),
    "a policy that is a number": lambda memory: memory.consolidate(7),
    "a consolidation of when": lambda memory: memory.consolidate(since=7),
    "an undo of a number": lambda memory: memory.undo(7),
    "an undo of nothing": lambda memory: memory.undo(""),
    "an undo of a lone surrogate": lambda memory: memory.undo("\ud800"),
    "an undo of a path": lambda memory: memory.undo("../../clear"),
    "an id to retire that is none": lambda memory: memory.invalidate("7"),
    "erasing that is none": lambda memory: memory.delete_episode(UNKNOWN_ID, erase="yes"),
    "clearing that is none": lambda memory: memory.clear(erase=1),
}


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"in": value}
    return value


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_refused_alike_and_changes_nothing(memory: AgentMemory, mistake: str) -> None:
    note(memory, "there")
    with pytest.raises(InvalidError) as caught:
        BAD[mistake](memory)
    assert isinstance(caught.value, QilbeeError)
    assert str(caught.value)
    assert memory.get_statistics().total_episodes == 1
