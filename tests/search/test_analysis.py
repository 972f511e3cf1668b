"""What is taken from a text, and from an episode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import Episode, InvalidError, JSONObject
from qilbee_core.search.analysis import LANGUAGES, WORD_CHARACTERS_MAX, analyser, turns_of

english = analyser("english")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cats don't sleep, Rosalind's cats!", ["cats", "sleep", "rosalind", "cats"]),
        ("order_id 48213-B", ["order", "id", "48213", "b"]),
        ("caf\u00e9 na\u00efve Z\u00fcrich", ["cafe", "naive", "zurich"]),
        ("\u6771\u4eac\u3078", ["\u6771", "\u4eac", "\u3078", "\u6771\u4eac", "\u4eac\u3078"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 x", ["\u0939\u093f\u0928\u094d\u0926\u0940", "x"]),
        ("\U0001f600 \x00 ... ?!", []),
        ("\ufb01ne", ["fine"]),
        ("y" * 200 + " z", ["y" * WORD_CHARACTERS_MAX, "z"]),
        ("\u00fc" * 200, ["u" * WORD_CHARACTERS_MAX]),
    ],
)
def test_words_are_runs_of_letters_and_digits_without_stop_words(text: str, words: list[str]) -> None:
    assert english.words(text) == words


def test_accents_tell_words_apart_but_in_english() -> None:
    assert analyser("german").words("sch\u00f6n") == ["sch\u00f6n"]


def test_every_language_of_the_stemmer_and_none_can_be_used() -> None:
    assert {"none", "english", "german", "arabic"} <= set(LANGUAGES)
    for language in LANGUAGES:
        assert len(analyser(language).stems(["houses", "h\u00e4user"])) == 2
    assert analyser("none").stems(["houses"]) == ["houses"]
    assert analyser("german").stems(["h\u00e4user"]) == analyser("german").stems(["haus"])


def test_an_unknown_language_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidError, match=r"'klingon'.*none, .*english"):
        analyser("klingon")


@pytest.mark.parametrize(
    ("text", "said", "asked"),
    [
        ("I swim. Do you paint? Yes.", ["swim", "yes"], ["paint"]),
        ("Paint?", [], ["paint"]),
        ("one? two! three? four", ["two", "four"], ["one", "three"]),
        ("\u4f60\u597d\uff1f", [], ["\u4f60", "\u597d", "\u4f60\u597d"]),
        ("no question", ["question"], []),
    ],
)
def test_sentences_that_end_with_a_question_mark_are_counted_apart(
    text: str, said: list[str], asked: list[str]
) -> None:
    assert english.said_and_asked(text) == (said, asked)


@given(st.text())
def test_nothing_is_lost_or_added_by_telling_questions_apart(text: str) -> None:
    said, asked = english.said_and_asked(text)
    assert sorted(said + asked) == sorted(english.words(text))


@given(st.text(), st.sampled_from(LANGUAGES))
def test_any_text_has_words_without_spaces(text: str, language: str) -> None:
    words = analyser(language).words(text)
    assert all(word and not any(character.isspace() for character in word) for word in words)
    assert len(analyser(language).stems(words)) == len(words)


def test_the_halves_of_a_conversation_are_two_turns_of_user_and_agent() -> None:
    user, agent = turns_of(Episode.conversation("bot", "Where is it?", "Parcel lost."), english)
    assert (user.speaker, user.said, user.asked) == ("user", [], [])
    assert (agent.speaker, agent.said, agent.asked) == ("agent", ["parcel", "lost"], [])


def test_the_speaker_in_metadata_is_who_speaks_to_the_agent() -> None:
    halves = turns_of(Episode.conversation("bot", "Hi", "Hi", metadata={"speaker": "Ann"}), english)
    assert [each.speaker for each in halves] == ["Ann", "agent"]
    (turn,) = turns_of(Episode.observation("bot", "rain", metadata={"speaker": "Ann"}), english)
    assert turn.speaker == "Ann"
    (turn,) = turns_of(Episode.observation("bot", "rain", metadata={"speaker": 7}), english)
    assert turn.speaker is None


def test_everything_in_the_content_counts_and_metadata_does_not() -> None:
    content: JSONObject = {"favourite_colour": "blue", "orders": [48213, {"gift": True}], "note": None, "text": "tea"}
    (turn,) = turns_of(Episode("bot", "fact", content, metadata={"topic": "secret"}), english)
    assert turn.said == ["favourite", "colour", "blue", "orders", "48213", "gift", "note", "tea"]
    (turn,) = turns_of(Episode.action("bot", "refund", "accepted"), english)
    assert turn.said == ["refund", "accepted"]


def test_what_else_a_conversation_holds_is_the_agents() -> None:
    content = {"user_input": "hello", "agent_response": "dear", "tool": "calendar"}
    user, agent = turns_of(Episode("bot", "conversation", content), english)
    assert (user.said, agent.said) == (["hello"], ["dear", "tool", "calendar"])


def test_a_conversation_with_other_content_is_one_turn() -> None:
    (turn,) = turns_of(Episode("bot", "conversation", {"summary": "rain"}), english)
    assert turn.said == ["summary", "rain"]
