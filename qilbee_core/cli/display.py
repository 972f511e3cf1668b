"""How the command line shows things: tables that fit 80 columns, plain where the output is not a terminal.

What a store holds was written by anybody. So it is never read as markup, and no control character of it
reaches the terminal.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qilbee_core.episode import JSON, Episode

__all__ = [
    "ProgressBar",
    "Warnings",
    "counted",
    "episodes_table",
    "figures",
    "moment",
    "plain",
    "say",
    "say_aside",
    "table",
]

# Control characters, and those that change the direction of what follows them.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
_CELL_CHARACTERS_MAX = 500
_AGENT_COLUMNS_MAX = 20
_SAID_BY = {"user_input": "user", "agent_response": "agent"}
_PLAIN_PROGRESS_S = 2.0


def say(what: str | Table) -> None:
    """Show a sentence or a table on standard output; a sentence is broken only where a terminal needs it."""
    console = _console(stderr=False)
    if isinstance(what, str):
        console.print(plain(what), soft_wrap=not console.is_terminal)
    else:
        console.print(what)


def say_aside(what: str, style: str = "") -> None:
    """Show a sentence on standard error, in one line."""
    _console(stderr=True).print(plain(what, style), soft_wrap=True)


class Warnings(logging.Handler):
    """Shows what the library logs, each message in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show the message."""
        say_aside(f"warning: {record.getMessage()}", "yellow")


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def plain(value: object, style: str = "") -> Text:
    r"""``value`` as text that a terminal shows and does not obey.

    >>> plain("red: \x1b[31m[bold]").plain
    'red:  [31m[bold]'
    """
    return Text(_UNSAFE.sub(" ", str(value)), style)


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "agent"), counted(2000, "episode")
    ('1 agent', '2,000 episodes')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def moment(time: datetime | None) -> str:
    """A time to the minute, in UTC.

    >>> moment(datetime(2026, 3, 2, 9, 14, tzinfo=UTC))
    '2026-03-02 09:14'
    """
    return "" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose columns of numbers are aligned to the right and never broken."""
    filled = [list(row) for row in rows]
    made = _table(title)
    for place, column in enumerate(columns):
        numbers = bool(filled) and all(isinstance(row[place], int | float) for row in filled)
        made.add_column(column, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for row in filled:
        made.add_row(*(plain(f"{cell:,}" if isinstance(cell, int | float) else cell) for cell in row))
    return made


def _table(title: str) -> Table:
    return Table(title=Text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def episodes_table(title: str, episodes: Iterable[Episode]) -> Table:
    """Two lines of each episode, cut to fit."""
    made = _table(title)
    made.expand = True
    made.add_column("when (UTC)", no_wrap=True)
    made.add_column("agent", max_width=_AGENT_COLUMNS_MAX, overflow="ellipsis", no_wrap=True)
    made.add_column("what", ratio=1, no_wrap=True, overflow="ellipsis")
    for episode in episodes:
        said = [plain(f"{_SAID_BY.get(key, key)}: {_cut(value)}") for key, value in episode.content.items()]
        made.add_row(moment(episode.event_time), plain(episode.agent_id), Text("\n").join(said[:2]))
    return made


def _cut(value: JSON) -> str:
    return str(value)[:_CELL_CHARACTERS_MAX]


def figures(values: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and text of each figure, those of a mapping inside under ``outer.inner``.

    >>> list(figures({"bytes": 1000, "cache": {"hits": 3}}))
    [('bytes', '1,000'), ('cache.hits', '3')]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
        else:
            yield f"{prefix}{name}", str(value)


class ProgressBar:
    """A bar where there is a terminal, else a line of text every two seconds; a context manager.

    ``total`` is what ``done`` runs up to; None where nobody knows.
    """

    def __init__(self, title: str, total: int | None) -> None:
        console = _console(stderr=True)
        self._title = title
        self._told_s = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, text="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, text: str) -> None:
        """``done`` of the total is done; ``text`` says so in words."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif time.monotonic() - self._told_s >= _PLAIN_PROGRESS_S:
            self._told_s = time.monotonic()
            say_aside(f"{self._title}: {text}")
