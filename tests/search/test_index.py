"""The index in RAM: what it is made of does not depend on how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qilbee_core import Episode, JSONObject
from qilbee_core.ids import draw_id, event_us_of, parse_id
from qilbee_core.search import index as index_module
from qilbee_core.search import search
from qilbee_core.search.analysis import analyser
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.lexicon import lexicon
from qilbee_core.search.rows import Row, row_of
from qilbee_core.search.score import Filter
from qilbee_core.search.timeline import SESSION_GAP_US, event_us_of_halves

NO_ID = bytes(16)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = [
    "parcel",
    "order",
    "48213",
    "paint",
    "painted",
    "mural",
    "Ann",
    "hike",
    "trail",
    "yesterday",
    "qzxv",
    "the",
    "?",
]
QUESTIONS = [
    "Where is parcel 48213?",
    "What did Ann paint?",
    "When did Ben hike",
    "mural",
    "order in January 2026",
    "Ann",
    "on 1 January 2026",
    "qzxv trail user",
    "the",
]


def new_index() -> AgentIndex:
    return AgentIndex(lexicon("english"))


def indexed(episodes: Sequence[Episode]) -> AgentIndex:
    index = new_index()
    rows = {parse_id(each.id): row_of(each, analyser("english")) for each in episodes}
    index.load(sorted(rows.items()))
    return index


def said(text: str, minute: float = 0, **metadata: str) -> Episode:
    given_metadata: JSONObject = metadata
    return Episode.observation("bot", text, metadata=given_metadata, event_time=BEGIN + timedelta(minutes=minute))


def neighbours(index: AgentIndex, episode: Episode) -> tuple[bytes, bytes]:
    """The ids before and after."""
    (turn,) = index.turns_of(parse_id(episode.id))
    id_of = index.timeline.id_of
    return id_of(index.timeline.before[turn]), id_of(index.timeline.after[turn])


def picture(index: AgentIndex) -> object:
    """All that is known of all episodes, without the numbers that depend on how they came."""
    timeline, turns, forward = index.timeline, index.turns, index.forward
    names = {number: name for name, number in index.speakers.items()}
    known = {}
    sessions: dict[int, set[bytes]] = {}
    for id_bytes in index.ids():
        for half, turn in enumerate(index.turns_of(id_bytes)):
            start, stop = turns.entries_end[turn - 1], turns.entries_end[turn]
            terms = zip(forward.term[start:stop].tolist(), forward.counts[start:stop].tolist(), strict=True)
            sessions.setdefault(int(timeline.session[turn]), set()).add(id_bytes)
            known[id_bytes, half] = (
                names.get(int(timeline.speaker[turn])),
                timeline.name_of_session(turn),
                [timeline.id_of(column[turn]) for column in (timeline.before, timeline.after)],
                [timeline.id_of(column[turn]) for column in (timeline.before_other, timeline.after_other)],
                {index.stems[term]: counts for term, counts in terms},
                [int(column[turn]) for column in (turns.length, turns.time_words, turns.memory_type)],
            )
    frequencies = {stem: int(index.terms.frequency[term]) for stem, term in index.numbers.items()}
    speakers = {name: index.turns_of_speaker[number] for name, number in index.speakers.items()}
    words = {stem: len(numbers) for stem, numbers in index.speakers_of_word.items()}
    totals = index.live_turns, index.live_words
    return known, sorted(map(sorted, sessions.values())), frequencies, speakers, words, totals


def answers(index: AgentIndex) -> list[object]:
    found: list[object] = []
    for question in QUESTIONS:
        found.append(search.keyword(index, question, at_us=0))
        found.append(search.hybrid(index, question, at_us=0))
        found.append(search.semantic(index, question))
    found += [search.similar(index, id_bytes, 3) for id_bytes in sorted(index.ids())]
    return found


def history_of(seed: int, length: int) -> list[tuple[bytes, Row | None]]:
    """Adds, updates and removals of some episodes, several of them at the same time."""
    random = Random(seed)
    ids = [
        draw_id(random.choice((0, 1, SESSION_GAP_US, SESSION_GAP_US + 1, 3 * SESSION_GAP_US)) + 10**15)
        for _ in range(12)
    ]
    history: list[tuple[bytes, Row | None]] = []
    for _ in range(length):
        id_bytes = random.choice(ids)
        if random.random() < 0.3:
            history.append((id_bytes, None))
            continue
        metadata: dict[str, str] = {}
        if random.random() < 0.5:
            metadata["session_id"] = random.choice("ab")
        if random.random() < 0.7:
            metadata["speaker"] = random.choice(("Ann", "Ben", "Ann Lee"))
        text, answer = (" ".join(random.choices(WORDS, k=random.randrange(8))) for _ in range(2))
        if random.random() < 0.3:
            episode = Episode.conversation("bot", text, answer, metadata=metadata)
        else:
            episode = Episode.observation("bot", text, metadata=metadata)
        history.append((id_bytes, row_of(episode, analyser("english"))))
    return history


@given(st.integers(0, 1 << 32), st.integers(0, 40), st.booleans())
@settings(max_examples=150)
def test_an_index_that_was_kept_up_equals_one_that_is_made_anew(seed: int, length: int, compacts: bool) -> None:
    history = history_of(seed, length)
    with pytest.MonkeyPatch.context() as patch:
        if compacts:
            patch.setattr(index_module, "COMPACT_LEAST", 0)
        kept = new_index()
        rows: dict[bytes, Row] = {}
        for id_bytes, row in history:
            if row is None:
                assert kept.remove(id_bytes) == (rows.pop(id_bytes, None) is not None)
            else:
                kept.add(id_bytes, row)
                rows[id_bytes] = row
    loaded = new_index()
    loaded.load(sorted(rows.items()))
    added = new_index()
    for id_bytes, row in sorted(rows.items()):
        added.add(id_bytes, row)
    assert len(kept) == len(rows)
    assert picture(kept) == picture(loaded) == picture(added)
    assert answers(kept) == answers(loaded) == answers(added)


@pytest.mark.parametrize("unsorted_least", [20, 100, 10_000])
@pytest.mark.parametrize(("at_once", "in_order"), [(1, False), (100, False), (100, True)])
def test_a_large_index_answers_alike_however_it_was_made(
    monkeypatch: pytest.MonkeyPatch, at_once: int, in_order: bool, unsorted_least: int
) -> None:
    monkeypatch.setattr(index_module, "_UNSORTED_LEAST", unsorted_least)
    random = Random(7)
    episodes = []
    for _ in range(1500):
        places = [{"session_id": str(random.randrange(40))}, {"speaker": random.choice(["Ann", "Ben"])}, {}]
        words = " ".join(random.choices(WORDS, k=6))
        episodes.append(said(words, random.randrange(100_000), **random.choice(places)))
    rows = [(parse_id(each.id), row_of(each, analyser("english"))) for each in episodes]
    if in_order:
        rows.sort()
    kept, loaded = new_index(), new_index()
    for start in range(0, len(rows), at_once):
        kept.put(rows[start : start + at_once])
    kept.put([(id_bytes, rows[0][1]) for id_bytes, _ in rows[:200]])  # what is said again is said in place of it
    kept.put(rows[:200])
    gone = random.sample(rows, 700)
    for id_bytes, _ in gone:
        kept.remove(id_bytes)
    removed = {id_bytes for id_bytes, _ in gone}
    loaded.load(sorted((id_bytes, row) for id_bytes, row in dict(rows).items() if id_bytes not in removed))
    assert picture(kept) == picture(loaded)
    for question in QUESTIONS:
        for limit in (1, 10, 300):
            assert search.hybrid(kept, question, limit, at_us=0) == search.hybrid(loaded, question, limit, at_us=0)


def test_what_only_a_removed_episode_said_is_gone() -> None:
    secret = said("qzxvsecret", speaker="Zebedee")
    index = indexed([secret, said("tea")])
    index.remove(parse_id(secret.id))
    assert "qzxvsecret" not in index.numbers
    assert "qzxvsecret" not in index.stems
    assert "Zebedee" not in index.speakers
    assert not {"zebede", "zebedee"} & {str(word) for word in index.speakers_of_word}
    assert parse_id(secret.id) not in index


def test_compaction_frees_what_removed_episodes_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "COMPACT_LEAST", 10)
    episodes = [said(f"word{number} tea", number) for number in range(100)]
    index = indexed(episodes)
    for each in episodes[:80]:
        index.remove(parse_id(each.id))
    assert index.turns.size < 60
    assert len(index) == 20
    assert [hit.id_bytes for hit in search.keyword(index, "word90", 1)] == [parse_id(episodes[90].id)]


def test_a_word_that_is_said_very_often_counts_as_often_as_a_count_can_tell() -> None:
    episode = said("tea " * 1000 + "Tea? " * 300)
    by_load, by_add = indexed([episode]), new_index()
    by_add.add(parse_id(episode.id), row_of(episode, analyser("english")))
    assert picture(by_load) == picture(by_add)
    assert by_load.forward.counts[0] == 255 << 8 | 255
    assert by_load.turns.length[1] == 1300


def test_episodes_of_one_session_id_are_neighbours_however_far_apart() -> None:
    one, two, three = (
        said("a1", 0, session_id="s"),
        said("b1", 60 * 24 * 30, session_id="s"),
        said("c1", 1, session_id="t"),
    )
    index = indexed([one, two, three])
    assert neighbours(index, one) == (NO_ID, parse_id(two.id))
    assert neighbours(index, two) == (parse_id(one.id), NO_ID)
    assert neighbours(index, three) == (NO_ID, NO_ID)


def test_a_gap_of_more_than_six_hours_begins_a_session() -> None:
    one, two = said("a1", 0, speaker="Ann"), said("b1", 360, speaker="Ben")
    three = said("c1", 720.001, speaker="Ann")
    index = indexed([one, two, three])
    assert neighbours(index, one) == (NO_ID, parse_id(two.id))
    assert neighbours(index, two) == (parse_id(one.id), NO_ID)
    assert neighbours(index, three) == (NO_ID, NO_ID)


def test_an_episode_in_the_gap_joins_two_sessions_and_its_removal_parts_them() -> None:
    one, between, three = said("a1", 0, speaker="A"), said("b1", 300, speaker="B"), said("c1", 600, speaker="A")
    index = indexed([one, three])
    index.add(parse_id(between.id), row_of(between, analyser("english")))
    sessions = index.timeline.session
    turns = [index.turns_of(parse_id(each.id))[0] for each in (one, between, three)]
    assert len({int(sessions[turn]) for turn in turns}) == 1
    index.remove(parse_id(between.id))
    assert sessions[turns[0]] != sessions[turns[2]]
    assert neighbours(index, one) == neighbours(index, three) == (NO_ID, NO_ID)


def test_an_episode_without_session_and_speaker_is_alone() -> None:
    one, two = said("a1", 0), said("b1", 1)
    index = indexed([one, two])
    assert neighbours(index, one) == neighbours(index, two) == (NO_ID, NO_ID)
    assert index.timeline.session[1] != index.timeline.session[2]


def test_the_halves_of_a_conversation_are_neighbours() -> None:
    episode = Episode.conversation("bot", "one", "two")
    index = indexed([episode])
    first, second = index.turns_of(parse_id(episode.id))
    assert (index.timeline.after_other[first], index.timeline.before_other[second]) == (second, first)


def test_event_times_of_many_ids_are_those_of_each() -> None:
    ids = [draw_id(us) for us in (-62135596800000000, -1, 0, 1, 1_800_000_000_123_456, 253402300799999999)]
    halves = np.frombuffer(b"".join(ids), ">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
    assert event_us_of_halves(halves).tolist() == [event_us_of(id_bytes) for id_bytes in ids]


def test_types_filter_and_so_do_times() -> None:
    fact = Episode("bot", "note", {"text": "tea"}, memory_type="factual", event_time=BEGIN)
    seen = said("tea", 10)
    index = indexed([fact, seen])

    def found(where: Filter) -> list[bytes]:
        return [hit.id_bytes for hit in search.keyword(index, "tea", where=where)]

    us = event_us_of(parse_id(seen.id))
    assert found(Filter()) == [parse_id(seen.id), parse_id(fact.id)]
    assert found(Filter(episode_type="note")) == found(Filter(memory_type=3)) == [parse_id(fact.id)]
    assert found(Filter(episode_type="observation")) == found(Filter(start_us=us)) == [parse_id(seen.id)]
    assert found(Filter(end_us=us)) == [parse_id(fact.id)]
    assert found(Filter(episode_type="never")) == found(Filter(start_us=us + 1)) == []
