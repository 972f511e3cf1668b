"""Of memories that say the same one stays; those that differ in one thing that matters all stay."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import Episode, JSONObject, load_plugins
from qilbee_core.policies.contract import plan_of
from qilbee_core.policies.duplicates import Duplicates
from qilbee_core.testing import offered_episodes

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = datetime(2026, 3, 2, 9, tzinfo=UTC)


def superseded(episodes: Sequence[Episode], **settings: object) -> dict[str, str]:
    policy = load_plugins().policies.find("duplicates").create(**settings)
    return dict(plan_of(policy, episodes, now=NOW).supersede)


def same(*texts: str) -> bool:
    """Whether one of the texts takes the place of all others."""
    episodes = [Episode.observation("bot", text, event_time=DAY) for text in texts]
    return len(superseded(episodes)) == len(texts) - 1


# What makes no difference


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ana moved to Oslo.", "Ana moved to Oslo."),
        ("Ana moved to Oslo.", "ANA MOVED TO OSLO"),
        ("Ana moved to Oslo.", "  ana\tmoved  to oslo!!! "),
        ("Ana moved to Oslo.", "- “Ana moved to Oslo”"),
        ("It isn't far.", "it is not far"),
        ("It isn\u2019t far.", "It isn't far."),
        ("I can't come.", "I cannot come."),
        ("We need milk, eggs and bread.", "We need bread, milk, and eggs."),
        ("Buy salt & pepper.", "Buy pepper and salt."),
        ("Ana and Ben went home.", "Ben and Ana went home."),
        ("Tea or coffee", "Coffee or tea"),
        (
            "We need green apples, ripe plums and red onions today.",
            "We need red onions, green apples and ripe plums today.",
        ),
        ("The order was received.", "The order was recieved."),
        ("The order was shipped to Oslo.", "The oredr was shippped to Oslo."),
        ("Well, the shop is closed, you know.", "The shop is closed."),
        ("By the way, the shop actually is closed.", "The shop is really just closed."),
        ("The price is 1,000 euros.", "The price is 1000 euros"),
        ("She has two cats.", "She has 2 cats."),
        ("It costs 5% more.", "It costs 5 percent more."),
        ("We meet at 3 p.m.", "We meet at 3pm"),
        ("She left because it rained.", "She left cause it rained."),
        ("Yesterday Ana called the doctor.", "Ana called the doctor yesterday."),
        ("The refund of the order is late.", "Refund for the order is late."),
        ("我喜欢茶。", "我喜欢茶"),
        ("\uff26\uff55ll width", "full width"),
        ("Remember that Ana moved to Oslo, by the way.", "Ana moved to Oslo 🙂"),
        ("We need milk, eggs and bread.", "we need milk eggs and bread"),
        ("That's what I don't like.", "thats what i dont like"),
        ("٣ شاي", "3 شاي"),
        ("👍", " 👍 "),
        ("", "  "),
        ("...", "..."),
    ],
)
def test_how_a_text_is_written_makes_no_difference(one: str, other: str) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The order 4711 was sent.", "The order 4712 was sent."),
        ("It is -5 degrees.", "It is 5 degrees."),
        ("Version 1.2", "Version 12"),
        ("She has two cats.", "She has three cats."),
        ("We meet at 3 am.", "We meet at 3 pm."),
        ("We meet at 3 am.", "We meet at 3."),
        ("It takes 5 km.", "It takes 5 miles."),
        ("It costs $5.", "It costs €5."),
        ("Paid in 5 days.", "Paid for 5 days."),
        ("On 3 May.", "On 3 June."),
        ("Carla called the bank.", "Karla called the bank."),
        ("Call Marina now, please.", "Call Martina now, please."),
        ("We met Dana at the bank.", "We met Dina at the bank."),
        ("Ana paid Ben.", "Ben paid Ana."),
        ("She called Tom and Anna left.", "She called Anna and Tom left."),
        ("The flight from Oslo to Bergen.", "The flight to Oslo from Bergen."),
        ("The shop is open.", "The shop is not open."),
        ("The shop is open.", "The shop isn't open."),
        ("I can come.", "I can't come."),
        ("He never eats meat.", "He always eats meat."),
        ("With sugar, please.", "Without sugar, please."),
        ("The sales increase.", "The sales decrease."),
        ("Before lunch we walk.", "After lunch we walk."),
        ("Yes, she came.", "No, she came."),
        ("Tea or coffee.", "Tea and coffee."),
        ("Turn the light on.", "Turn the light off."),
        ("Look for the keys.", "Look at the keys."),
        ("You like tea?", "You like tea."),
        ("She is ill.", "She was ill."),
        ("x > 5", "x < 5"),
        ("👍", "👎"),
        ("Ana moved to Oslo 👍", "Ana moved to Oslo 👎"),
        ("...", "!"),
        ("We adopt the plan.", "We adapt the plan."),
        ("The orders came.", "The order came."),
        ("This is moral.", "This is amoral."),
        ("You have to call Ben.", "You call Ben."),
        ("我喜欢茶", "我不喜欢茶"),
        (
            "Ich mag den starken Tee aus der kleinen Stadt im Norden nicht.",
            "Ich mag den starken Tee aus der kleinen Stadt im Norden.",
        ),
        ("Pidän teestä talossa aina aamulla.", "Pidän teestä talosta aina aamulla."),
    ],
)
def test_what_a_text_says_makes_a_difference(one: str, other: str) -> None:
    assert not same(one, other)


def test_one_ordinary_word_more_in_a_long_text_is_the_fuller_memory_and_stays() -> None:
    shorter = Episode.observation("bot", "The customer wants the lamp sent back to the shop before her holiday begins.")
    fuller = Episode.observation(
        "bot", "The customer wants the broken lamp sent back to the shop before her holiday begins."
    )
    assert superseded([fuller, shorter]) == {shorter.id: fuller.id}


@pytest.mark.parametrize("word", ["never", "only", "maybe", "seven", "7", "Ben", "Friday", "hardly", "almost"])
def test_one_word_more_that_can_turn_it_round_makes_another_memory(word: str) -> None:
    assert not same(
        "The customer wants the lamp sent back to the shop before her holiday begins.",
        f"The customer wants the lamp sent back to the {word} shop before her holiday begins.",
    )


def test_one_word_more_in_a_short_text_makes_another_memory() -> None:
    assert not same("She bought a car.", "She bought a red car.")


def test_a_day_that_is_only_told_as_today_must_be_the_same_day() -> None:
    first, later = (
        Episode.observation("bot", "Saw the doctor yesterday.", event_time=DAY + timedelta(days=day)) for day in (0, 30)
    )
    again = Episode.observation("bot", "saw the doctor yesterday", event_time=DAY + timedelta(hours=1))
    assert superseded([first, later, again]) == {first.id: again.id}


# Which stays


def test_of_equal_ones_the_newest_by_event_time_stays_in_whatever_order_they_are_offered() -> None:
    old, middle, new = (
        Episode.observation("bot", "Likes tea.", event_time=DAY + timedelta(days=day)) for day in range(3)
    )
    expected = {old.id: new.id, middle.id: new.id}
    assert superseded([old, middle, new]) == superseded([new, old, middle]) == expected


@given(episodes=offered_episodes())
def test_the_order_of_the_offer_makes_no_difference(episodes: list[Episode]) -> None:
    plan = Duplicates().plan(episodes, now=NOW)
    assert Duplicates().plan(episodes[::-1], now=NOW).supersede == plan.supersede


@given(episodes=offered_episodes())
def test_nothing_is_duplicated_in_what_is_left(episodes: list[Episode]) -> None:
    gone = Duplicates().plan(episodes, now=NOW).supersede
    left = [episode for episode in episodes if episode.id not in gone]
    exact = [repr((each.episode_type, each.memory_type, each.content, each.metadata)) for each in left]
    days = [each.event_time.date() for each in left]
    assert len(set(zip(exact, days, strict=True))) == len(left)


# What else must be equal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"episode_type": "note"}, {"episode_type": "observation"}),
        ({"memory_type": "factual"}, {"memory_type": "semantic"}),
        ({"metadata": {"speaker": "Ana"}}, {"metadata": {"speaker": "Ben"}}),
        ({"metadata": {"order": 1}}, {"metadata": {"order": 2}}),
        ({"metadata": {"order": 1}}, {"metadata": {}}),
        ({"metadata": {"flag": 1}}, {"metadata": {"flag": True}}),
        ({"content": {"text": "x", "n": 1}}, {"content": {"text": "x", "n": 2}}),
        ({"content": {"text": "x"}}, {"content": {"title": "x"}}),
        ({"content": {"a": "x", "b": "y"}}, {"content": {"a": "y", "b": "x"}}),
        ({"content": {"a": ["x", "y"]}}, {"content": {"a": ["x y"]}}),
        ({"content": {"a": "x y", "b": ""}}, {"content": {"a": "x", "b": "y"}}),
        ({"content": {"a": None}}, {"content": {"a": False}}),
    ],
    ids=str,
)
def test_type_metadata_and_every_other_value_must_be_equal(one: JSONObject, other: JSONObject) -> None:
    fields: dict[str, object] = {"episode_type": "note", "content": {"text": "Likes tea."}}
    episodes = [Episode("bot", event_time=DAY, **{**fields, **each}) for each in (one, other)]  # type: ignore[arg-type]
    assert superseded(episodes) == {}
    twice = [Episode("bot", event_time=DAY, **{**fields, **one}) for _ in range(2)]  # type: ignore[arg-type]
    assert len(superseded(twice)) == 1


def test_both_halves_of_a_conversation_count() -> None:
    asked = "Where is my order?"
    first, again, other = (
        Episode.conversation("bot", asked, answer, event_time=DAY)
        for answer in ("It comes on Friday.", "it comes on friday", "It comes on Monday.")
    )
    assert superseded([first, again, other]) == {first.id: again.id}


def test_sessions_may_differ_and_so_may_what_ignore_metadata_names() -> None:
    first, again = (
        Episode.observation("bot", "Likes tea.", metadata={"session_id": number, "message": number}) for number in "12"
    )
    assert superseded([first, again]) == {}
    assert superseded([first, again], ignore_metadata=["session_id", "message"]) == {first.id: again.id}


def test_spelling_can_be_left_as_it_is() -> None:
    first, again = (Episode.observation("bot", f"The order was {word} in Oslo.") for word in ("received", "recieved"))
    assert superseded([first, again]) == {first.id: again.id}
    assert superseded([first, again], correct_spelling=False) == {}


# Pairs that a generator makes; benchmarks/consolidation.py has the figures for more seeds


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "_duplicates.py"
    spec = importlib.util.spec_from_file_location("_duplicates", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_duplicates"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [101, 102])
def test_near_duplicates_are_told_from_hard_negatives(generator: ModuleType, seed: int) -> None:
    pairs = list(generator.pairs(400, seed))
    offered = [[Episode.observation("bot", text, event_time=DAY) for text in pair[:2]] for pair in pairs]
    gone = superseded([episode for pair in offered for episode in pair])
    found = [gone.get(first.id, first.id) == gone.get(second.id, second.id) for first, second in offered]
    right = sum(seen and pair.same for seen, pair in zip(found, pairs, strict=True))
    assert right / sum(found) >= 0.95, f"precision, seed {seed}"
    assert right / sum(pair.same for pair in pairs) >= 0.95, f"recall, seed {seed}"


def test_the_generator_makes_the_same_pairs_of_a_seed_and_all_its_kinds_of_edits(generator: ModuleType) -> None:
    pairs = list(generator.pairs(400, 7))
    assert pairs == list(generator.pairs(400, 7))
    assert {edit for pair in pairs for edit in pair.edits} == {*generator.NEAR, *generator.HARD}
    assert all(pair.first != pair.second for pair in pairs)


# Hostile texts


@pytest.mark.parametrize(
    "text",
    [
        " " * 300_000,
        "\n" * 300_000,
        "." * 300_000,
        "a" * 300_000,
        "," * 300_000,
        "a" + ",and" * 100_000,
        "a, " * 100_000,
        "you know, " * 30_000,
        "7" * 300_000,
        "and " * 100_000,
        "'" * 300_000,
        "-" * 300_000,
        "a'" * 100_000,
        "\u0301" * 100_000,
        "? " * 100_000,
    ],
    ids=lambda text: repr(text[:10]),
)
def test_texts_without_sense_or_end_are_read_in_no_time(text: str) -> None:
    first, again = (Episode("bot", "note", {"text": text}, event_time=DAY) for _ in range(2))
    assert superseded([first, again]) == {first.id: again.id}


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=2, max_size=4))
def test_any_text_is_a_duplicate_of_itself(texts: list[str]) -> None:
    episodes = [Episode("bot", "note", {"text": text}, event_time=DAY) for text in [*texts, *texts]]
    gone = superseded(episodes)
    firsts = {gone.get(each.id, each.id) for each in episodes[: len(texts)]}
    assert firsts == {gone.get(each.id, each.id) for each in episodes[len(texts) :]}
