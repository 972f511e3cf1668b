"""Keys keep agents apart and sort as what they stand for; nothing but CorruptRecordError comes out of parsing."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qilbee_core import CorruptRecordError, InvalidError
from qilbee_core import ids as ids_module
from qilbee_core.ids import EVENT_US_MAX, draw_id, event_us_of, format_id, lowest_id, parse_id
from qilbee_core.keys import (
    AGENT_ID_BYTES_MAX,
    AgentKeys,
    Space,
    account_key,
    catalog_key,
    encode_agent_id,
    parse,
    range_of,
)

EVENT_US_MIN = -62_135_596_800_000_000

agent_ids = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=40
).filter(lambda text: text not in {".", ".."} and len(unicodedata.normalize("NFC", text).encode()) <= 255)
event_times = st.integers(EVENT_US_MIN, EVENT_US_MAX)
vitalities = st.integers(-(1 << 63), (1 << 63) - 1)
ids = st.builds(
    lambda event_us, low: lowest_id(event_us)[:8] + (2 << 62 | low).to_bytes(8, "big"),
    event_times,
    st.integers(0, (1 << 62) - 1),
)
HOSTILE = [
    "a",
    "a:b",
    "a:",
    "a ",
    "aa",
    "ab",
    "b",
    "A",
    "\u00e9",
    "e",
    "a" * 255,
    "a" * 254,
    "\U0010ffff",
    "%00",
    "a..",
    "~",
]


def families(keys: AgentKeys, id_bytes: bytes, number: int) -> dict[Space, bytes]:
    """A key of each family of an agent."""
    return {
        Space.AGENT: keys.head,
        Space.EPISODE: keys.episode(id_bytes),
        Space.STATE: keys.state(id_bytes),
        Space.HISTORY: keys.history(id_bytes, number),
        Space.VITALITY: keys.vitality(number % 256, number, id_bytes),
        Space.EXPIRY: keys.expiry(number, id_bytes),
        Space.CHANGE: keys.change(number),
        Space.KEY: keys.idempotency_key(id_bytes),
        Space.TERMS: keys.row(number % 256, id_bytes),
        Space.VECTOR: keys.vector(number % 256, id_bytes),
        Space.PLAN: keys.undo(number),
    }


@given(agent_ids, ids, st.integers(0, (1 << 63) - 1))
def test_parsing_undoes_building_for_every_family(agent_id: str, id_bytes: bytes, number: int) -> None:
    built = families(AgentKeys(agent_id), id_bytes, number)
    assert [*built, Space.CATALOG, Space.ACCOUNT] == sorted(Space, key=[*built, Space.CATALOG, Space.ACCOUNT].index)
    for space, key in built.items():
        parsed = parse(key)
        assert (parsed.space, parsed.agent_id) == (space, unicodedata.normalize("NFC", agent_id))
        if space not in (Space.AGENT, Space.CHANGE, Space.PLAN):
            assert parsed.id_bytes == id_bytes
        again = AgentKeys(parsed.agent_id or "")
        if space is Space.HISTORY:
            assert again.history(parsed.id_bytes, int.from_bytes(parsed.fields[16:], "big")) == key
        else:
            assert again.prefix(space) + parsed.fields == key


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_parsing_undoes_building_for_the_catalog(name: str) -> None:
    parsed = parse(catalog_key(name))
    assert (parsed.space, parsed.agent_id, parsed.fields) == (Space.CATALOG, None, name.encode())


@given(st.lists(st.tuples(event_times, st.integers(0, (1 << 42) - 1)), min_size=2, max_size=30))
def test_episode_keys_sort_by_event_time_and_then_by_creation(moments: list[tuple[int, int]]) -> None:
    keys = AgentKeys("bot")
    made: list[tuple[int, int, bytes]] = []
    for event_us, created_ms in moments:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ids_module, "_last_low", 0)
            patch.setattr(time, "time_ns", lambda created_ms=created_ms: created_ms * 1_000_000)
            made.append((event_us, created_ms, keys.episode(draw_id(event_us))))
    by_key = sorted(made, key=lambda each: each[2])
    assert [each[:2] for each in by_key] == sorted(each[:2] for each in made)


@given(event_times)
def test_of_one_event_time_the_ids_rise_as_they_are_made(event_us: int) -> None:
    drawn = [draw_id(event_us) for _ in range(50)]
    assert drawn == sorted(set(drawn))
    assert {event_us_of(id_bytes) for id_bytes in drawn} == {event_us}
    assert all(parse_id(format_id(id_bytes)) == id_bytes for id_bytes in drawn)


@given(event_times, event_times)
def test_the_lowest_id_of_a_time_parts_what_is_before_from_what_is_not(one: int, other: int) -> None:
    assert (draw_id(one) < lowest_id(other)) == (one < other)


@pytest.mark.parametrize("event_us", [EVENT_US_MIN - 1, EVENT_US_MAX + 1, -(1 << 63), 1 << 63])
def test_a_time_outside_the_years_1_to_9999_gets_no_id(event_us: int) -> None:
    with pytest.raises(InvalidError, match="years 1 to 9999"):
        draw_id(event_us)


@given(st.lists(st.tuples(st.integers(0, 255), vitalities), min_size=2, max_size=30))
def test_vitality_keys_sort_by_order_and_then_by_vitality(places: list[tuple[int, int]]) -> None:
    keys = AgentKeys("bot")
    built = {keys.vitality(order, place, bytes(16)): (order, place) for order, place in places}
    assert [built[key] for key in sorted(built)] == sorted(set(places))


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=2, max_size=30))
def test_changes_and_histories_sort_by_number(numbers: list[int]) -> None:
    keys = AgentKeys("bot")
    assert sorted(keys.change(number) for number in numbers) == [keys.change(number) for number in sorted(numbers)]
    histories = [keys.history(bytes(16), number) for number in sorted(numbers)]
    assert sorted(histories) == histories
    start, stop = keys.history_range(bytes(16))
    assert all(start <= key < stop for key in histories)


@given(ids, ids)
def test_the_history_of_an_episode_is_one_range_that_no_other_reaches_into(one: bytes, other: bytes) -> None:
    assume(one != other)
    keys = AgentKeys("bot")
    start, stop = keys.history_range(one)
    assert all(not start <= keys.history(other, number) < stop for number in (0, 1, (1 << 64) - 1))


def assert_apart(one: str, other: str) -> None:
    here, there = AgentKeys(one), AgentKeys(other)
    for space, key in families(there, b"\xff" * 16, (1 << 63) - 1).items():
        start, stop = here.range(space)
        assert not start <= key < stop
        start, stop = there.range(space)
        assert start <= key < stop


@pytest.mark.parametrize("one", HOSTILE, ids=ascii)
def test_no_key_of_an_agent_lies_in_the_range_of_a_hostile_neighbour(one: str) -> None:
    for other in HOSTILE:
        if other != one:
            assert_apart(one, other)


@given(agent_ids, agent_ids)
def test_no_key_of_an_agent_lies_in_the_range_of_another(one: str, other: str) -> None:
    assume(encode_agent_id(one) != encode_agent_id(other))
    assert_apart(one, other)


@pytest.mark.parametrize(
    "agent_id",
    [
        "",
        ".",
        "..",
        "a/b",
        "/",
        "a\0b",
        "a\n",
        "\x7f",
        "\x85",
        "\ud800",
        "a" * 256,
        "\u00e9" * 128,
        None,
        7,
        b"bot",
        ["a"],
    ],
    ids=ascii,
)
def test_an_agent_id_that_is_not_plain_text_of_1_to_255_bytes_is_refused_with_the_rule(agent_id: object) -> None:
    with pytest.raises(InvalidError, match="use 1 to 255 bytes of text without control characters or '/'"):
        AgentKeys(agent_id)  # type: ignore[arg-type]


def test_an_agent_id_may_be_as_long_as_its_length_byte_can_say() -> None:
    for agent_id in ("a" * AGENT_ID_BYTES_MAX, "\u00e9" * 127):
        assert parse(AgentKeys(agent_id).head).agent_id == agent_id


def test_ids_that_look_the_same_are_the_same_agent() -> None:
    assert AgentKeys("caf\u00e9").head == AgentKeys("cafe\u0301").head


@given(agent_ids, st.sampled_from(sorted(Space)))
def test_the_range_of_a_prefix_holds_all_that_begins_with_it_and_nothing_else(agent_id: str, space: Space) -> None:
    prefix = AgentKeys(agent_id).prefix(space)
    start, stop = range_of(prefix)
    assert start <= prefix < stop
    assert start <= prefix + b"\xff" * 64 < stop
    assert not start <= prefix[:-1] < stop
    assert not start <= prefix[:-1] + bytes((prefix[-1] + 1,)) < stop


def random_bytes(dice: Random) -> bytes:
    return dice.randbytes(dice.randrange(60))


def random_tail(dice: Random) -> bytes:
    return bytes((dice.choice(list(Space)),)) + dice.randbytes(dice.randrange(60))


def damaged_key(dice: Random) -> bytes:
    number = dice.randrange(1 << 63)
    key = bytearray(dice.choice(list(families(AgentKeys(dice.choice(HOSTILE)), dice.randbytes(16), number).values())))
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(key) + 1)
        key[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
    return bytes(key)


@pytest.mark.parametrize("draw", [random_bytes, random_tail, damaged_key])
def test_nothing_that_is_parsed_raises_anything_but_a_corrupt_record_error(draw: Callable[[Random], bytes]) -> None:
    dice = Random(7)
    understood = 0
    for _ in range(10_000):
        with suppress(CorruptRecordError):
            parse(draw(dice))
            understood += 1
    assert understood < 10_000


@pytest.mark.parametrize("draw", [random_bytes, random_tail, damaged_key])
def test_what_parses_is_exactly_what_is_built_of_its_parts(draw: Callable[[Random], bytes]) -> None:
    dice = Random(8)
    for _ in range(10_000):
        key = draw(dice)
        with suppress(CorruptRecordError):
            parsed = parse(key)
            agent = b"" if parsed.agent_id is None else AgentKeys(parsed.agent_id).agent
            assert bytes((parsed.space,)) + agent + parsed.fields == key


@pytest.mark.parametrize("length", [0, 1, 2, 4, 5, 255])
def test_a_length_byte_that_lies_about_the_agent_is_noticed(length: int) -> None:
    assert parse(b"\x10\x03bot").agent_id == "bot"
    with pytest.raises(CorruptRecordError):
        parse(bytes((Space.AGENT, length)) + b"bot")


def test_a_space_byte_without_more_is_a_key_of_no_agent() -> None:
    for space in Space:
        if space is Space.CATALOG:
            assert parse(bytes((space,))).fields == b""
        else:
            with pytest.raises(CorruptRecordError, match=r"no agent id|no name"):
                parse(bytes((space,)))


@given(st.text(min_size=1, max_size=60).filter(lambda name: "\ud800" not in ascii(name)))
def test_the_name_of_a_row_of_accounts_comes_back_from_its_key(name: str) -> None:
    parsed = parse(account_key(name))
    assert (parsed.space, parsed.agent_id, parsed.fields.decode()) == (Space.ACCOUNT, None, name)


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "\ud800"])
def test_a_name_of_a_row_of_accounts_that_fits_no_key_is_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        account_key(name)


ID = "0e30b9ee-5b68-8000-99c9-36e387babcde"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "a" * 10_000,
            ID[:-1],
            ID + "0",
            " " + ID,
            ID + "\n",
            "{" + ID + "}",
            ID.upper(),
            ID.replace("-", ""),
        ),
        *(ID.replace("8000", "4000"), ID.replace("99c9", "d9c9"), ID.replace("99c9", "19c9")),
        *(ID.replace("0e30b9ee-5b68", "0e30b9e-e5b68"), "\u0660" + ID[1:], "ffffffff-ffff-8fff-bfff-ffffffffffff"),
        *(None, 7, ID.encode(), [ID]),
    ],
    ids=lambda text: ascii(text)[:50],
)
def test_text_that_is_not_an_id_of_ours_is_refused(text: object) -> None:
    assert format_id(parse_id(ID)) == ID
    with pytest.raises(InvalidError, match="is not an episode id"):
        parse_id(text)  # type: ignore[arg-type]
