"""A finished session becomes one summary: what it holds, what it takes the place of, and what is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import JSON, Episode, InvalidError, MemoryType, Plan, derived_episode, load_plugins
from qilbee_core.policies.contract import check_plan, plan_of
from qilbee_core.policies.derived import SOURCES_MAX
from qilbee_core.testing import offered_episodes

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)
NOW = MONDAY + timedelta(days=60)
TALK = (
    ("Ana", "Hello there! I moved to Oslo in March, into a small flat near the harbour."),
    ("Ben", "Oh wow. How is it?"),
    ("Ana", "The flat is bright, but the rent went up to 14,000 crowns in January. Anyway!"),
    ("Ben", "My sister Carla pays 9,000 in Bergen for two rooms."),
    ("Ana", "I start at the hospital on Monday, as a nurse. I can hardly wait."),
    ("Ben", "Good luck! Thanks for the call."),
)


def message(
    text: str,
    *,
    speaker: str = "Ana",
    session: JSON = "s1",
    at: datetime = MONDAY,
    memory_type: MemoryType = "episodic",
) -> Episode:
    metadata = {"speaker": speaker} if session is None else {"speaker": speaker, "session_id": session}
    return Episode("bot", "message", {"text": text}, metadata=metadata, event_time=at, memory_type=memory_type)


def talk(session: JSON = "s1", began: datetime = MONDAY) -> list[Episode]:
    return [
        message(text, speaker=speaker, session=session, at=began + timedelta(minutes=minute))
        for minute, (speaker, text) in enumerate(TALK)
    ]


def planned(episodes: Sequence[Episode], now: datetime = NOW, **settings: object) -> Plan:
    return plan_of(load_plugins().policies.find("sessions").create(**settings), episodes, now=now)


def text_of(summary: Episode) -> str:
    text = summary.content["summary"]
    assert isinstance(text, str)
    return text


# What a summary is


def test_a_summary_says_when_and_who_and_holds_sentences_word_for_word_in_their_order() -> None:
    (summary,) = planned(talk(), ratio=0.5).create
    heading, *lines = text_of(summary).split("\n")
    assert heading == "2 March 2026"
    said = {speaker: " ".join(text for by, text in TALK if by == speaker) for speaker in ("Ana", "Ben")}
    places = []
    for line in lines:
        speaker, sentences = line.split(": ", 1)
        for sentence in sentences.replace(". ", ".\n").split("\n"):
            assert sentence in said[speaker]
            places.append(next(at for at, (_, text) in enumerate(TALK) if sentence in text))
    assert places == sorted(places)
    assert len(places) >= 3


def test_it_takes_the_place_of_all_its_sources_and_names_them() -> None:
    episodes = talk()
    plan = planned(episodes, ratio=0.4)
    (summary,) = plan.create
    assert plan.supersede == dict.fromkeys((each.id for each in episodes), summary.id)
    assert summary.metadata == {
        "session_id": "s1",
        "speakers": ["Ana", "Ben"],
        "began": "2026-03-02T09:00:00+00:00",
        "ended": "2026-03-02T09:05:00+00:00",
        "policy": "sessions",
        "sources": [each.id for each in episodes],
    }
    assert (summary.episode_type, summary.memory_type, summary.event_time) == (
        "summary",
        "semantic",
        episodes[-1].event_time,
    )


@given(episodes=offered_episodes(), ratio=st.floats(0.05, 1))
def test_no_summary_is_longer_than_its_share(episodes: list[Episode], ratio: float) -> None:
    plan = planned(episodes, ratio=ratio)
    by_id = {episode.id: episode for episode in episodes}
    for summary in plan.create:
        sources = [by_id[str(source)] for source in summary.metadata["sources"]]  # type: ignore[union-attr]
        length = sum(len(text) for each in sources for text in each.content.values() if isinstance(text, str))
        assert len(text_of(summary)) <= ratio * length


def test_the_shipped_ratio_makes_a_fifth() -> None:
    episodes = [message(text, at=MONDAY + timedelta(minutes=at)) for at, (_, text) in enumerate(TALK * 5)]
    (summary,) = planned(episodes).create
    assert 0.1 < len(text_of(summary)) / sum(len(text) for _, text in TALK * 5) <= 0.21


def test_it_prefers_what_is_said_in_this_session_alone_and_says_nothing_twice() -> None:
    small_talk = "How are you? It is good to hear your voice again."
    days = [MONDAY + timedelta(days=day) for day in range(6)]
    episodes = [
        each
        for number, day in enumerate(days)
        for each in (
            message(small_talk, session=f"s{number}", at=day),
            message(
                f"The project {number}{number}7 got its grant.", session=f"s{number}", at=day + timedelta(minutes=1)
            ),
            message(
                f"Yes, the project {number}{number}7 got its grant.",
                session=f"s{number}",
                at=day + timedelta(minutes=2),
            ),
            message(
                f"Doctor Number{number} visits on the {number + 3}rd.",
                session=f"s{number}",
                at=day + timedelta(minutes=3),
            ),
        )
    ]
    for number, summary in enumerate(planned(episodes, ratio=0.7).create):
        assert f"Number{number}" in text_of(summary)
        assert text_of(summary).count(f"{number}{number}7") == 1
        assert "voice" not in text_of(summary)


def test_the_halves_of_a_conversation_are_told_apart() -> None:
    episodes = [
        Episode.conversation(
            "bot", "I moved to Oslo in March.", "Congratulations on the harbour flat.", event_time=MONDAY
        ),
        Episode.conversation("bot", "The rent is 14,000 crowns.", "Carla pays 9,000 in Bergen.", event_time=MONDAY),
    ]
    (summary,) = planned(episodes, ratio=1.0).create
    assert "user: I moved" in text_of(summary)
    assert "agent: " in text_of(summary)


def test_a_session_over_midnight_says_both_days() -> None:
    late = datetime(2026, 3, 2, 23, 58, tzinfo=UTC)
    (summary,) = planned(talk(began=late), ratio=0.5).create
    assert text_of(summary).startswith("2 March 2026 to 3 March 2026\n")


# What is a session, and which are over


def test_sessions_are_told_by_their_id_even_where_they_overlap() -> None:
    one, other = talk("s1"), talk("s2", MONDAY + timedelta(seconds=30))
    plan = planned([*one, *other], ratio=0.5)
    assert [made.metadata["session_id"] for made in plan.create] == ["s1", "s2"]
    assert [made.metadata["sources"] for made in plan.create] == [[each.id for each in found] for found in (one, other)]


def test_without_an_id_six_hours_of_silence_divide() -> None:
    def found(gap: timedelta) -> int:
        return len(planned([*talk(None), *talk(None, MONDAY + gap)], ratio=0.5).create)

    assert found(timedelta(hours=6, minutes=5)) == 1
    assert found(timedelta(hours=6, minutes=6)) == 2


def test_a_session_is_over_after_six_hours_of_silence() -> None:
    ended = MONDAY + timedelta(minutes=len(TALK) - 1)
    assert planned(talk(), now=ended + timedelta(hours=6), ratio=0.5) == Plan(create=[], supersede={})
    assert len(planned(talk(), now=ended + timedelta(hours=6, seconds=1), ratio=0.5).create) == 1


def test_a_very_long_session_gets_several_summaries_of_500_episodes_at_most() -> None:
    episodes = [
        message(f"The parcel number {number} went to shelf {number % 7}.", at=MONDAY + timedelta(seconds=number))
        for number in range(SOURCES_MAX * 2 + 1)
    ]
    plan = planned(episodes)
    check_plan(plan, episodes, policy="sessions")
    assert [len(made.metadata["sources"]) for made in plan.create] == [333, 334, 334]  # type: ignore[arg-type]
    assert len(plan.supersede) == len(episodes)


# What is left alone


@pytest.mark.parametrize("memory_type", ["semantic", "procedural", "factual"])
def test_only_episodic_memories_are_summarised(memory_type: MemoryType) -> None:
    episodes = [message(text, memory_type=memory_type) for _, text in TALK]
    assert planned(episodes, ratio=0.5) == Plan(create=[], supersede={})


def test_summaries_are_not_summarised_again() -> None:
    summaries = list(planned([*talk("s1"), *talk("s2")], ratio=0.5).create)
    assert planned(summaries, ratio=0.9) == Plan(create=[], supersede={})


def test_what_holds_more_than_texts_is_left_as_it_is() -> None:
    reading = Episode(
        "bot", "reading", {"sensor": "cellar", "degrees": 21}, metadata={"session_id": "s1"}, event_time=MONDAY
    )
    assert reading.id not in planned([*talk(), reading], ratio=0.5).supersede


def test_a_session_too_short_for_a_sentence_within_its_share_stays_as_it_is() -> None:
    assert planned(talk()[:2]) == Plan(create=[], supersede={})


def test_talk_without_words_stays_as_it_is() -> None:
    assert planned([message("..."), message("!"), message("👍")], ratio=1.0) == Plan(create=[], supersede={})


# Derived memories


def test_memories_derived_from_an_import_of_one_moment_do_not_meet() -> None:
    sources = [Episode("bot", "note", {}, id=f"0e30b9ee-5b68-8000-99c9-36e3{number:08x}") for number in range(5000)]
    made = {derived_episode("acme.p", [source], "fact", {"fact": "x"}).id for source in sources}
    assert len(made) == 5000
    assert made.isdisjoint(source.id for source in sources)


def test_whoever_derives_the_same_makes_the_same_episode() -> None:
    sources = talk()
    content = {"summary": "x"}
    first = derived_episode("acme.p", sources, "summary", content)
    assert derived_episode("acme.p", sources[::-1], "summary", dict(content)).id == first.id
    others = [
        derived_episode("acme.q", sources, "summary", content),
        derived_episode("acme.p", sources[1:], "summary", content),
        derived_episode("acme.p", sources, "summary", {"summary": "y"}),
        derived_episode("acme.p", sources, "summary", content, memory_type="factual"),
    ]
    assert len({first.id, *(each.id for each in others)}) == 5
    assert {each.event_time for each in (first, *others)} == {sources[-1].event_time}


def test_what_is_alike_in_all_sources_is_kept_and_what_is_not_is_not() -> None:
    sources = [
        Episode.observation("bot", "x", metadata={"user": "ana", "number": number, "one": one, "tags": ["a"]})
        for number, one in ((1, 1), (2, True))
    ]
    made = derived_episode("acme.p", sources, "note", {}, metadata={"extra": 1})
    assert made.metadata == {"user": "ana", "extra": 1, "policy": "acme.p", "sources": [each.id for each in sources]}


def test_it_is_as_relevant_as_the_most_relevant_source() -> None:
    sources = [Episode.observation("bot", "x", relevance=relevance) for relevance in (0.2, 0.7, 0.1)]
    assert derived_episode("acme.p", sources, "note", {}).relevance == 0.7


@pytest.mark.parametrize("count", [0, SOURCES_MAX + 1])
def test_too_few_or_too_many_sources_are_refused(count: int) -> None:
    with pytest.raises(InvalidError, match=f"{count} sources"):
        derived_episode("acme.p", [Episode.observation("bot", "x")] * count, "note", {})


def test_the_largest_derived_memory_can_be_stored() -> None:
    metadata = {f"key {number}": "x" * 100 for number in range(300)}
    sources = [Episode.observation("bot", "x", metadata=metadata) for _ in range(SOURCES_MAX)]
    made = derived_episode("acme.p", sources, "note", {})
    check_plan(Plan(create=[made]), sources, policy="acme.p")
