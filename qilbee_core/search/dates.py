"""Dates that a question names, as ranges of days with weights; words of a text that tell when something was.

English month and weekday names; dates in figures as ISO 8601 has them (2023-05-07). Days are those of UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import NamedTuple

__all__ = ["TIME_WORDS", "DayRange", "asks_when", "day_ranges"]

_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

TIME_WORDS = frozenset(
    {
        "yesterday", "today", "tonight", "tomorrow", "ago", "recently", "weekend",
        "day", "days", "week", "weeks", "month", "months", "year", "years",
        "spring", "summer", "autumn", "fall", "winter",
    }
) | {month for month in _MONTHS if month != "may"} | set(_WEEKDAYS)  # fmt: skip
"""What a text that answers "when" tends to hold."""

YEARS_MAX = 100
"""A date without a year is looked for in the newest so many years of an agent."""

_DAY = timedelta(days=1)
_EPOCH = date(1970, 1, 1)
_NUMBERS = {name: number for number, name in enumerate(_MONTHS, 1)} | {
    name[:3]: number for number, name in enumerate(_MONTHS, 1)
} | {"sept": 9}  # fmt: skip
_MONTH = rf"(?P<month>{'|'.join(sorted(_NUMBERS, key=len, reverse=True))})"
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_DAY_OF_MONTH = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
# In this order, each on what those before have left.
_PATTERNS = tuple(
    re.compile(rf"\b{pattern}\b", re.IGNORECASE)
    for pattern in (
        r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)",
        rf"{_DAY_OF_MONTH}(?:\s+of)?\s+{_MONTH}\.?(?:,?\s+(?:in\s+|of\s+)?{_YEAR})?",
        rf"{_MONTH}\.?\s+{_DAY_OF_MONTH}(?:,?\s+(?:in\s+|of\s+)?{_YEAR})?",
        rf"{_MONTH}\.?,?\s+(?:in\s+|of\s+)?{_YEAR}",
        _MONTH,
        _YEAR,
    )
)
_RELATIVE = re.compile(
    r"\b(?:(?P<word>today|yesterday)|(?P<which>this|last) (?P<span>week|month|year)"
    r"|(?P<count>\d{1,3}|an?|one|two|three|four|five|six) (?P<unit>day|week|month|year)s? ago)\b",
    re.IGNORECASE,
)
_ANY = re.compile("\\d|jan|feb|ma[ry]|apr|ju[nl]|aug|sep|oct|nov|dec|day|this|last|ago")
"""Something that each of these patterns needs, in small letters: most questions name no date."""
_COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_ASKS_WHEN = re.compile(r"\b(?:when|how long|(?:what|which) (?:year|month|week|day|date|time))\b", re.IGNORECASE)

SAME_DAY, NEXT_DAY, NEARBY, SAME_WEEK = 1.0, 0.7, 0.5, 0.25
SAME_MONTH, AFTER_MONTH, SAME_YEAR = 0.6, 0.3, 0.2
"""How well an episode fits a date: people tell of a day on that day or soon after."""


class DayRange(NamedTuple):
    """Days ``first`` to ``last``, both included, since 1970-01-01; an episode of then fits by ``weight``."""

    first: int
    last: int
    weight: float


def asks_when(text: str) -> bool:
    """Whether a question asks for a time.

    >>> asks_when("When did she move?"), asks_when("How long was it?"), asks_when("Who came?")
    (True, True, False)
    """
    return _ASKS_WHEN.search(text) is not None


def day_ranges(text: str, today: int, known: Callable[[], tuple[int, int]]) -> list[DayRange]:
    """The days that ``text`` names.

    ``today`` is what "yesterday" counts from. A date without a year stands for that of each year from the first to
    the second of the days that ``known`` gives. All are days since 1970-01-01.

    >>> [tuple(each) for each in day_ranges("in May 2023", 0, lambda: (0, 0))]
    [(19478, 19508, 0.6), (19509, 19518, 0.3)]
    """
    ranges: list[DayRange] = []
    if _ANY.search(text.casefold()) is None:
        return ranges

    def take(found: re.Match[str]) -> str:
        named = found.groupdict()
        month = named.get("month")
        if month is not None and not named.get("day") and not named.get("year") and not _is_month(found):
            return found.group()
        number = None if month is None else _NUMBERS.get(month.casefold()) or int(month)
        day = int(named["day"]) if named.get("day") else None
        if named.get("year"):
            years = range(int(named["year"]), int(named["year"]) + 1)
        else:
            oldest, newest = map(_year_of, known())
            years = range(max(oldest, newest - YEARS_MAX + 1), newest + 1)
        for year in years:
            ranges.extend(_ranges(year, number, day))
        return " "

    for pattern in _PATTERNS:
        text = pattern.sub(take, text)
    for found in _RELATIVE.finditer(text):
        ranges.extend(_relative(found, today))
    return ranges


def _is_month(found: re.Match[str]) -> bool:
    """Whether a month alone is meant as one: "may", "march" and the short names are words too."""
    name = found.group()
    if len(name) > 3 and name.lower() not in {"march", "sept"}:
        return True
    before = found.string[: found.start()].rstrip().lower()
    return name[0].isupper() and before.endswith((" in", " of", " during", " since", " last", " this", " by", " until"))


def _ranges(year: int, month: int | None, day: int | None) -> Iterator[DayRange]:
    try:
        first = _number(date(year, month or 1, day or 1))
        if day is not None:
            yield DayRange(first, first, SAME_DAY)
            yield DayRange(first + 1, first + 1, NEXT_DAY)
            yield DayRange(first - 1, first + 3, NEARBY)
            yield DayRange(first - 7, first + 7, SAME_WEEK)
        elif month is not None:
            after = _number(_next_month(date(year, month, 1)))
            yield DayRange(first, after - 1, SAME_MONTH)
            yield DayRange(after, after + 9, AFTER_MONTH)
        else:
            yield DayRange(first, _number(date(year, 12, 31)), SAME_YEAR)
    except (ValueError, OverflowError):  # the 31st of June, the year 0
        return


def _relative(found: re.Match[str], today: int) -> Iterator[DayRange]:
    here = _EPOCH + today * _DAY
    word, which, span = (found["word"] or "").lower(), (found["which"] or "").lower(), (found["span"] or "").lower()
    if word:
        yield DayRange(today - (word == "yesterday"), today - (word == "yesterday"), SAME_DAY)
    elif span:
        starts: dict[str, Callable[[date], date]] = {
            "week": lambda day: day - day.weekday() * _DAY,
            "month": lambda day: day.replace(day=1),
            "year": lambda day: day.replace(month=1, day=1),
        }
        first = starts[span](here)
        if which == "last":
            yield DayRange(_number(starts[span](first - _DAY)), _number(first) - 1, SAME_MONTH)
        else:
            yield DayRange(_number(first), today, SAME_MONTH)
    else:
        count = _COUNTS.get(found["count"].casefold()) or int(found["count"])
        days = {"day": 1, "week": 7, "month": 30, "year": 365}[found["unit"].lower()]
        around = 0 if days == 1 else days // 4 + 2
        there = today - count * days
        yield DayRange(there - around, there + around, SAME_DAY if days == 1 else SAME_MONTH)


def _next_month(first: date) -> date:
    return (first + 31 * _DAY).replace(day=1)


def _number(day: date) -> int:
    return (day - _EPOCH).days


def _year_of(number: int) -> int:
    """The year of a day."""
    return (_EPOCH + number * _DAY).year
