"""Dates in questions."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core.search.dates import asks_when, day_ranges

TODAY = (date(2026, 11, 22) - date(1970, 1, 1)).days
KNOWN = ((date(2022, 3, 1) - date(1970, 1, 1)).days, (date(2023, 9, 1) - date(1970, 1, 1)).days)


def fit(text: str, day: date) -> float:
    """How well an episode of that day fits."""
    number = (day - date(1970, 1, 1)).days
    ranges = day_ranges(text, TODAY, lambda: KNOWN)
    return max((each.weight for each in ranges if each.first <= number <= each.last), default=0.0)


@pytest.mark.parametrize(
    "text",
    [
        "on 2023-05-07?",
        "on 7 May 2023?",
        "on May 7, 2023",
        "the 7th of May, 2023",
        "on may 7th in 2023",
        "7 may 2023",
    ],
)
def test_a_day_is_known_by_any_of_its_forms(text: str) -> None:
    assert fit(text, date(2023, 5, 7)) == 1.0
    assert fit(text, date(2023, 5, 8)) == 0.7
    assert fit(text, date(2023, 5, 6)) == fit(text, date(2023, 5, 10)) == 0.5
    assert fit(text, date(2023, 5, 14)) == 0.25
    assert fit(text, date(2023, 5, 15)) == fit(text, date(2022, 5, 7)) == 0.0


def test_a_day_without_a_year_is_that_of_each_year_of_the_agent() -> None:
    assert fit("on 7 May", date(2022, 5, 7)) == fit("on 7 May", date(2023, 5, 7)) == 1.0
    assert fit("on 7 May", date(2021, 5, 7)) == 0.0


def test_a_month_is_told_of_until_ten_days_later() -> None:
    assert fit("in December 2022", date(2022, 12, 31)) == 0.6
    assert fit("in December 2022", date(2023, 1, 10)) == 0.3
    assert fit("in December 2022", date(2023, 1, 11)) == 0.0
    assert fit("last June", date(2023, 6, 1)) == fit("last June", date(2022, 6, 1)) == 0.6


def test_a_year_fits_a_little() -> None:
    assert fit("in 2022?", date(2022, 7, 1)) == 0.2
    assert fit("in 2022?", date(2023, 7, 1)) == 0.0


@pytest.mark.parametrize("text", ["may I march?", "it may rain", "Mar is a name", "48213", "room 1999a", "12345-12-12"])
def test_words_and_numbers_that_only_look_like_dates_are_none(text: str) -> None:
    assert day_ranges(text, TODAY, lambda: KNOWN) == []


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("\N{LATIN SMALL LETTER LONG S}eptember 2022", "September 2022"),
        ("Augu\N{LATIN SMALL LETTER LONG S}t 3, 2022", "August 3, 2022"),
        ("\N{LATIN SMALL LETTER LONG S}ix days ago", "six days ago"),
        ("two wee\N{KELVIN SIGN}s ago", "two weeks ago"),
        ("\N{ARABIC-INDIC DIGIT TWO}\N{ARABIC-INDIC DIGIT ZERO}22-05-07", "2022-05-07"),
    ],
)
def test_letters_and_digits_count_as_those_that_they_stand_for(text: str, same: str) -> None:
    ranges = day_ranges(same, TODAY, lambda: KNOWN)
    assert ranges
    assert day_ranges(text, TODAY, lambda: KNOWN) == ranges


@pytest.mark.parametrize("text", ["31 June 2023", "2023-02-30", "0000-01-01", "9999-12-31", "2023-13-01", "00 May"])
def test_days_that_are_not_do_no_harm(text: str) -> None:
    for each in day_ranges(text, TODAY, lambda: KNOWN):
        assert each.first <= each.last


@pytest.mark.parametrize(
    ("text", "day", "weight"),
    [
        ("yesterday", date(2026, 11, 21), 1.0),
        ("today", date(2026, 11, 22), 1.0),
        ("last week", date(2026, 11, 9), 0.6),
        ("last week", date(2026, 11, 16), 0.0),
        ("this month", date(2026, 11, 1), 0.6),
        ("last month", date(2026, 10, 31), 0.6),
        ("last year", date(2025, 1, 1), 0.6),
        ("three days ago", date(2026, 11, 19), 1.0),
        ("2 weeks ago", date(2026, 11, 8), 0.6),
    ],
)
def test_relative_dates_count_from_today(text: str, day: date, weight: float) -> None:
    assert fit(f"what did she say {text}?", day) == weight


@pytest.mark.parametrize("text", ["When did it rain?", "how long did it take", "In which month was it?", "what year"])
def test_questions_for_a_time_are_known(text: str) -> None:
    assert asks_when(text)


def test_other_questions_are_not() -> None:
    assert not asks_when("Who whenever asks what?")


@given(st.text(), st.integers(-700_000, 2_900_000), st.integers(-700_000, 2_900_000))
def test_any_text_can_be_asked(text: str, one: int, other: int) -> None:
    for each in day_ranges(
        f"{text} in May, {text} on 3 June {text} yesterday", TODAY, lambda: (min(one, other), max(one, other))
    ):
        assert each.first <= each.last
        assert 0 < each.weight <= 1
