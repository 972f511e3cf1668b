"""The policy keeps the contract of every policy, and the last observation of each thing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from qilbee_keep_last import KeepLast

from qilbee_core import JSON, ConsolidationPolicy, Episode, SettingsError, load_plugins
from qilbee_core.testing import PolicyContract

DAY = datetime(2026, 3, 2, tzinfo=UTC)


def noticed(what: str, subject: JSON, hour: int = 0) -> Episode:
    return Episode.observation("bot", what, metadata={"subject": subject}, event_time=DAY + timedelta(hours=hour))


class TestKeepLast(PolicyContract):
    def open_policy(self) -> ConsolidationPolicy:
        return KeepLast()

    def offer(self) -> Sequence[Episode]:
        return [noticed(f"{20 + hour} degrees", "cellar", hour) for hour in range(3)]


def test_the_last_by_event_time_stays_whatever_came_in_first() -> None:
    today, late = noticed("Malmö", "parcel", 20), noticed("Hamburg", "parcel", 2)
    assert KeepLast().plan([today, late], now=DAY).supersede == {late.id: today.id}


def test_what_is_about_another_thing_or_none_is_left_as_it_is() -> None:
    kept = [
        noticed("21 degrees", "cellar"),
        noticed("19 degrees", "attic"),
        noticed("a", 1),
        noticed("b", True),
        noticed("c", None),
        noticed("d", ["cellar"]),
        Episode.observation("bot", "rain"),
        Episode.action("bot", "open", "done", metadata={"subject": "cellar"}),
    ]
    assert KeepLast().plan(kept, now=DAY).supersede == {}


def test_another_key_can_be_named() -> None:
    first, later = (Episode.observation("bot", text, metadata={"sensor": 7}) for text in ("on", "off"))
    assert KeepLast(key="sensor").plan([first, later], now=DAY).supersede == {first.id: later.id}
    assert KeepLast().plan([first, later], now=DAY).supersede == {}


def test_it_is_found_by_name() -> None:
    plugins = load_plugins()
    assert plugins.policies.create("keep-last", key="sensor").name == "keep-last"
    assert plugins.policies.distributions["keep-last"] == "qilbee-keep-last"
    with pytest.raises(SettingsError, match="key is ''"):
        plugins.policies.create("keep-last", key="")
