"""Notes of an agent: episodes that tests of memory tell apart by their texts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qilbee_core import JSON, Episode

AGENT = "bot"
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)

on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])


def note(text: JSON = "tea", **given: Any) -> Episode:
    return Episode(AGENT, given.pop("episode_type", "note"), {"text": text}, **given)


def at(minute: float, text: JSON = "", **given: Any) -> Episode:
    return note(text or minute, event_time=NOON + timedelta(minutes=minute), **given)


def texts(episodes: Iterable[Episode]) -> list[object]:
    return [episode.content["text"] for episode in episodes]


def ids_of(episodes: Iterable[Episode]) -> list[str]:
    return [episode.id for episode in episodes]
