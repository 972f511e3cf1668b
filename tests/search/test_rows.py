"""Forward rows, both ways."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import CorruptRecordError, Episode, FormatVersionError
from qilbee_core.search.analysis import ANALYSER_VERSION, analyser, turns_of
from qilbee_core.search.rows import Row, Turn, decode_row, encode_row, pack, row_of, unpack, unpack_all
from qilbee_core.search.table import shipped_words

english = analyser("english")
turns = st.builds(
    Turn,
    st.none() | st.text(),
    st.binary(max_size=40),
    st.binary(max_size=9),
    st.text(max_size=20),
    st.text(max_size=9),
)
rows = st.builds(
    Row,
    st.just(ANALYSER_VERSION),
    st.integers(0, 2) | st.text(),
    st.integers(0, 3),
    st.none() | st.text(),
    st.lists(turns, min_size=1, max_size=2),
)


@given(rows)
def test_a_row_comes_back_equal(row: Row) -> None:
    assert decode_row(encode_row(row)) == row


@given(st.text(), st.text())
def test_a_row_holds_the_words_of_the_episode_and_nothing_else(question: str, answer: str) -> None:
    row = row_of(Episode.conversation("bot", question, answer), english)
    texts = []
    for turn in row.turns:
        for numbers, rare in ((turn.said, turn.rare_said), (turn.asked, turn.rare_asked)):
            known = [shipped_words()[number] for number in unpack(numbers)]
            texts.append(sorted(known + rare.split(" ") if rare else known))
    halves = turns_of(Episode.conversation("bot", question, answer), english)
    assert texts == [sorted(words) for half in halves for words in (half.said, half.asked)]


def test_the_bytes_of_a_row_are_those_of_the_first_release() -> None:
    # Never edit: rows that were stored are read by every later release, or made anew under another version.
    episode = Episode.conversation(
        "bot",
        "Where is parcel 48213?",
        "On its way to Ann.",
        metadata={"session_id": 7},
        event_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert encode_row(row_of(episode, english)).hex() == GOLDEN


GOLDEN = "95010000a1379295a475736572c400c4029a7ca0a5343832313395a56167656e74c4049901891ac400a0a0"


words = st.lists(st.integers(0, len(shipped_words()) - 1)).map(sorted)


@given(st.lists(words))
def test_numbers_of_words_come_back_one_by_one_and_all_at_once(lists: list[list[int]]) -> None:
    packed = [pack(numbers) for numbers in lists]
    assert [unpack(each) for each in packed] == lists
    counts, numbers = unpack_all(packed)
    assert counts.tolist() == [len(each) for each in lists]
    assert numbers.tolist() == [number for each in lists for number in each]


@pytest.mark.parametrize("session_id", ["a", 7, 1.5])
def test_a_session_id_of_text_or_number_is_kept_as_text(session_id: str | float) -> None:
    row = row_of(Episode.observation("bot", "x", metadata={"session_id": session_id}), english)
    assert row.session == str(session_id)


@pytest.mark.parametrize("session_id", [None, "", True, ["a"], {}])
def test_anything_else_is_no_session(session_id: object) -> None:
    row = row_of(Episode("bot", "note", {}, metadata={"session_id": session_id}), english)  # type: ignore[dict-item]
    assert row.session is None


def test_types_are_kept() -> None:
    assert row_of(Episode.observation("bot", "x"), english).episode_type == 1
    row = row_of(Episode("bot", "note", {}, memory_type="factual"), english)
    assert (row.episode_type, row.memory_type) == ("note", 3)


@given(st.binary())
def test_bytes_that_are_no_row_are_refused(data: bytes) -> None:
    try:
        row = decode_row(data)
    except (CorruptRecordError, FormatVersionError):
        return
    assert isinstance(row, Row)


def test_a_row_of_another_version_names_the_remedy() -> None:
    newer = msgspec.msgpack.encode([ANALYSER_VERSION + 1, 0, 0, None, []])
    with pytest.raises(FormatVersionError, match=r"version 2, this release reads 1.*repair"):
        decode_row(newer)
