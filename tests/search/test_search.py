"""What is found, why, and that no question does harm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isclose
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import Episode, InvalidError, NotFoundError
from qilbee_core.ids import draw_id, parse_id
from qilbee_core.search.analysis import analyser
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.lexicon import lexicon
from qilbee_core.search.meaning import Meaning
from qilbee_core.search.question import question_of
from qilbee_core.search.rows import row_of
from qilbee_core.search.search import Hit, hybrid, keyword, semantic, similar

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
TALK = [
    ("Ann", "Good morning! How was the weekend?"),
    ("Ben", "We hiked up to the old mill with the children."),
    ("Ann", "Lovely. Which dog did you finally choose?"),
    ("Ben", "The small brown one, she is called Pepper."),
    ("Ann", "My sister bought a violin yesterday."),
    ("Ben", "Parcel 48213 came on Friday, by the way."),
    ("Ann", "The tax office wrote again."),
    ("Ben", "We saw a film about penguins."),
]


def talk(speakers: bool = True) -> list[Episode]:
    return [
        Episode.observation(
            "bot",
            text,
            metadata={"session_id": "s", **({"speaker": speaker} if speakers else {})},
            event_time=BEGIN + timedelta(minutes=number),
        )
        for number, (speaker, text) in enumerate(TALK)
    ]


EPISODES = talk()


def indexed(episodes: list[Episode], language: str = "english") -> AgentIndex:
    index = AgentIndex(lexicon(language))
    rows = {parse_id(each.id): row_of(each, analyser(language)) for each in episodes}
    index.load(sorted(rows.items()))
    return index


INDEX = indexed(EPISODES)


def texts(hits: list[Hit]) -> list[str]:
    known = {parse_id(each.id): str(each.content["observation"]) for each in EPISODES}
    return [known[hit.id_bytes] for hit in hits]


@pytest.mark.parametrize("ask", [keyword, hybrid])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("parcel 48213", "Parcel 48213"),
        ("hiking", "We hiked"),
        ("movie", "We saw a film"),
        ("Which dog did Ben choose?", "The small brown one"),
        ("When did Ann's sister buy a violin?", "My sister"),
    ],
)
def test_the_answer_stands_first(ask: object, question: str, answer: str) -> None:
    assert callable(ask)
    assert texts(ask(INDEX, question, 1))[0].startswith(answer)


def test_meaning_alone_finds_what_shares_no_word() -> None:
    assert texts(semantic(INDEX, "cinema", 1)) == ["We saw a film about penguins."]
    assert texts(similar(INDEX, parse_id(EPISODES[7].id), 1)) != [TALK[7][1]]


def test_where_no_word_is_shared_hybrid_goes_by_meaning() -> None:
    assert keyword(INDEX, "music") == []
    assert texts(hybrid(INDEX, "music", limit=1)) == ["My sister bought a violin yesterday."]


def test_a_rare_word_is_found_by_meaning_too_since_it_means_itself() -> None:
    index = indexed([Episode.observation("bot", "qzxv"), Episode.observation("bot", "tea")])
    assert len(semantic(index, "qzxv")) == 1


@pytest.mark.parametrize("language", ["german", "russian", "none"])
def test_other_languages_find_words(language: str) -> None:
    episodes = [
        Episode.observation("bot", text)
        for text in ("Die H\u00e4user brennen", "\u043a\u043d\u0438\u0433\u0438 \u043b\u0435\u0436\u0430\u0442")
    ]
    index = indexed(episodes, language)
    for ask in (keyword, hybrid, semantic):
        assert [hit.id_bytes for hit in ask(index, "H\u00e4user", 1)] == [parse_id(episodes[0].id)]
        assert [hit.id_bytes for hit in ask(index, "\u043a\u043d\u0438\u0433\u0438", 1)] == [parse_id(episodes[1].id)]


def test_a_question_lends_its_words_to_the_reply_in_its_session_only() -> None:
    together = indexed(EPISODES)
    apart = [
        Episode.observation("bot", text, metadata={"session_id": str(number), "speaker": speaker}, event_time=BEGIN)
        for number, (speaker, text) in enumerate(TALK)
    ]
    reply = parse_id(EPISODES[3].id)
    (hit,) = [hit for hit in keyword(together, "Which dog?") if hit.id_bytes == reply]
    assert hit.parts["asked"] > 0
    assert parse_id(apart[3].id) not in [hit.id_bytes for hit in keyword(indexed(apart), "Which dog?")]


def test_a_conversation_is_found_once_by_either_half() -> None:
    episode = Episode.conversation("bot", "Which tea shall I drink?", "Drink green tea.")
    index = indexed([episode, *EPISODES])
    hits = keyword(index, "green tea to drink")
    assert [hit.id_bytes for hit in hits].count(parse_id(episode.id)) == 1
    assert hits[0].id_bytes == parse_id(episode.id)


def test_a_date_finds_what_happened_then() -> None:
    old = Episode.observation("bot", "Rain.", event_time=datetime(2025, 5, 7, 12, tzinfo=UTC))
    index = indexed([old, *EPISODES])
    (first, *_) = keyword(index, "What happened on 7 May 2025?")
    assert (first.id_bytes, first.parts["date"]) == (parse_id(old.id), 1.0)


def test_yesterday_counts_from_the_given_time() -> None:
    at_us = int((BEGIN + timedelta(days=1)).timestamp() * 1e6)
    hits = keyword(INDEX, "What was said yesterday?", 3, at_us=at_us)
    assert all(hit.parts["date"] == 1.0 for hit in hits)
    assert len(hits) == 3


def test_a_question_that_names_one_speaker_prefers_what_that_one_said() -> None:
    both = [
        Episode.observation("bot", "I like jazz", metadata={"speaker": name, "session_id": name}, event_time=BEGIN)
        for name in ("Ann", "Ben")
    ]
    index = indexed(both)
    for name, episode in zip(("Ann", "Ben"), both, strict=True):
        assert keyword(index, f"What does {name} like?", 1)[0].id_bytes == parse_id(episode.id)
    assert question_of("Do Ann and Ben like it?", index, 0).speaker == 0


def test_of_speakers_with_a_name_in_common_the_full_name_tells() -> None:
    index = indexed(
        [Episode.observation("bot", "jazz", metadata={"speaker": name}) for name in ("Ann Lee", "Ben Lee", "Ann Poe")]
    )
    assert question_of("What does Ben Lee like?", index, 0).speaker == index.speakers["Ben Lee"]
    assert question_of("What does Lee like?", index, 0).speaker == 0


def test_a_turn_of_words_that_everybody_says_is_worth_less() -> None:
    answer = "The harbour pilot painted murals"
    small_talk = "Thanks, the murals sound great"
    others = ["Thanks, that sounds great", "Great, thanks", "Sounds great"]
    episodes = [
        Episode.observation("bot", text, metadata={"speaker": name}, event_time=BEGIN + timedelta(days=number))
        for number, (name, text) in enumerate(zip("ABCDE", [answer, small_talk, *others], strict=True))
    ]
    # Both say it once in four words, and what is said later stands first where nothing else tells.
    best, other = keyword(indexed(episodes), "murals", 2)
    assert best.id_bytes == parse_id(episodes[0].id)
    assert other.parts["telling"] < best.parts["telling"] < 0
    assert best.score - best.parts["telling"] == pytest.approx(other.score - other.parts["telling"])


def test_a_turn_that_only_asks_tells_less_and_is_found() -> None:
    texts = ["The violin has broken strings.", "The violin has broken strings?"]
    index = indexed([Episode.observation("bot", text, event_time=BEGIN) for text in texts])
    said, asked = (hit.parts["telling"] / (hit.score - hit.parts["telling"]) for hit in keyword(index, "violin"))
    assert asked < said < 0


def test_equal_scores_are_ordered_by_recency() -> None:
    episodes = [Episode.observation("bot", "tea", event_time=BEGIN + timedelta(days=n % 7)) for n in range(700)]
    newest = sorted((parse_id(each.id) for each in episodes), reverse=True)
    index = indexed(episodes)
    for limit in (1, 5, 300):
        for ask in (keyword, hybrid, semantic):
            assert [hit.id_bytes for hit in ask(index, "tea", limit)] == newest[:limit]


QUESTIONS = ["Which dog did Ben choose?", "When did Ann hike on 1 March 2026?", "film parcel", "Ann", "yesterday"]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("weight", [None, 0, 0.1, 0.5, 1])
def test_the_parts_of_a_score_add_up_to_it(question: str, weight: float | None) -> None:
    for hit in hybrid(INDEX, question, semantic_weight=weight):
        assert isclose(sum(hit.parts.values()), hit.score, rel_tol=1e-5)
        assert isclose(hit.keyword_score + hit.semantic_score, hit.score, rel_tol=1e-9)


def test_scores_fall_and_none_is_below_the_least_that_is_asked_for() -> None:
    scores = [hit.score for hit in hybrid(INDEX, QUESTIONS[0])]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 3
    assert [hit.score for hit in hybrid(INDEX, QUESTIONS[0], min_score=scores[2])] == scores[:3]


def test_weights_lead_from_keywords_to_meaning() -> None:
    def order(hits: list[Hit]) -> list[bytes]:
        return [hit.id_bytes for hit in hits]

    question = "film parcel"
    assert order(hybrid(INDEX, question, semantic_weight=0)) == order(keyword(INDEX, question))
    assert order(hybrid(INDEX, question, semantic_weight=1))[:2] == order(semantic(INDEX, question))[:2]


HOSTILE = {
    "empty": "",
    "spaces": " \t\n",
    "a megabyte": "parcel dog " * 100_000,
    "one long word": "x" * 1_000_000,
    "NUL": "parcel\x00dog\x00",
    "stop words": "who am i and what is this",
    "10,000 terms": " ".join(f"term{n}" for n in range(10_000)),
    "10,000 known terms": " ".join(["parcel dog film hike violin tax office penguins"] * 1250),
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "right to left": "\u0634\u0644\u0648\u0645 \u05e9\u05dc\u05d5\u05dd \u202eparcel",
    "surrogate": "\ud800 parcel",
    "dates": "on 1 May " * 2000 + "1 May 0001 9999-12-31 99 May",
    "question marks": "?" * 10_000,
    "operators": '"parcel" AND NOT (dog) OR * ^ ~ NEAR/3 \\',
    "half a megabyte of dates": "2023-05-07 yesterday " * 25_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_questions_are_answered(name: str) -> None:
    for ask in (keyword, hybrid, semantic):
        for index in (INDEX, indexed([])):
            assert len(ask(index, HOSTILE[name])) <= 10


@given(st.text(), st.integers(1, 12))
def test_any_text_can_be_asked(question: str, limit: int) -> None:
    for ask in (keyword, hybrid, semantic):
        assert len(ask(INDEX, question, limit)) <= limit


@pytest.mark.parametrize("question", [None, 7, b"parcel", ["parcel"]])
def test_what_is_no_text_is_refused(question: object) -> None:
    for ask in (keyword, hybrid, semantic):
        with pytest.raises(InvalidError, match="query is"):
            ask(INDEX, question)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, -1, 1001, 2.0, True, "10"])
def test_a_limit_out_of_bounds_is_refused(limit: object) -> None:
    for ask in (keyword, hybrid, semantic):
        with pytest.raises(InvalidError, match="limit"):
            ask(INDEX, "parcel", limit)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="limit"):
        similar(INDEX, parse_id(EPISODES[0].id), limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [-0.1, 1.1, True, "1", float("nan")])
def test_a_weight_out_of_bounds_is_refused(weight: float) -> None:
    with pytest.raises(InvalidError, match="semantic_weight"):
        hybrid(INDEX, "parcel", semantic_weight=weight)


def test_what_is_similar_to_an_unknown_episode_cannot_be_said() -> None:
    with pytest.raises(NotFoundError):
        similar(INDEX, draw_id(0))


def test_an_empty_index_finds_nothing() -> None:
    index = AgentIndex(lexicon("english"))
    for question in QUESTIONS:
        assert keyword(index, question) == hybrid(index, question) == semantic(index, question) == []


def test_the_meaning_of_some_turns_is_to_the_bit_what_it_is_among_all() -> None:
    random = Random(3)
    words = ["tea", "oak", "ink", "violin", "order", "harbour", "train", "letter", "invoice", "garden", "48213", "zqxj"]
    index = indexed([Episode.observation("bot", " ".join(random.choices(words, k=6))) for _ in range(300)])
    meaning = Meaning(index, question_of("music in the garden, 48213", index, 0).idfs)
    everything = meaning.of_all()
    for share in (0.0, 0.05, 0.3, 0.9):
        among = np.array([False, *(random.random() < share for _ in range(index.turns.size - 1))])
        assert meaning.of_all(among)[among].tobytes() == everything[among].tobytes()
