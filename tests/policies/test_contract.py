"""What a policy may plan: everything else is a PluginError that names the policy and its fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from qilbee_core import Episode, Plan, PluginError, SettingsError
from qilbee_core.policies.contract import check_plan, plan_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
A, B, C = (Episode.observation("bot", text) for text in "abc")
STRANGER = Episode.observation("bot", "never offered")
MADE = Episode("bot", "summary", {"summary": "a and b"})


def test_a_plan_within_what_was_offered_is_accepted() -> None:
    check_plan(Plan(), [], policy="p")
    check_plan(Plan(create=[MADE], supersede={A.id: MADE.id, B.id: C.id}), [A, B, C], policy="p")
    check_plan(Plan(create=(MADE,), forget=(A.id,)), (A, B), policy="p")


def changed(**fields: Any) -> Episode:
    episode = Episode("bot", "summary", {"summary": "x"})
    for name, value in fields.items():
        setattr(episode, name, value)
    return episode


FAULTS: dict[str, tuple[object, str]] = {
    "no plan": ({"create": []}, "gave dict, not a Plan"),
    "nothing": (None, "gave NoneType, not a Plan"),
    "wrong fields": (Plan(create=MADE), "a list, a dict and a list"),  # type: ignore[arg-type]
    "text for a list": (Plan(forget=A.id), "a list, a dict and a list"),
    "a stranger is forgotten": (Plan(forget=[STRANGER.id]), "forget names .*never offered"),
    "a number is forgotten": (Plan(forget=[7]), "forget names 7, which was never offered"),  # type: ignore[list-item]
    "forgotten twice": (Plan(forget=[A.id, A.id]), "names an episode twice"),
    "a stranger is superseded": (Plan(supersede={STRANGER.id: A.id}), "supersede names .*never offered"),
    "a stranger survives": (Plan(supersede={A.id: STRANGER.id}), "supersede points to .*never offered"),
    "superseded by itself": (Plan(supersede={A.id: A.id}), "is superseded itself"),
    "a chain": (Plan(supersede={A.id: B.id, B.id: C.id}), "is superseded itself"),
    "a circle": (Plan(supersede={A.id: B.id, B.id: A.id}), "is superseded itself"),
    "a forgotten survivor": (Plan(supersede={A.id: B.id}, forget=[B.id]), "and is forgotten"),
    "superseded and forgotten": (Plan(supersede={A.id: B.id}, forget=[A.id]), "both superseded and forgotten"),
    "created and forgotten": (Plan(create=[Episode("bot", "note", {}, id=A.id)], forget=[A.id]), "or forgotten"),
    "created and superseded": (
        Plan(create=[Episode("bot", "note", {}, id=A.id)], supersede={A.id: B.id}),
        "is created, and superseded",
    ),
    "created twice": (Plan(create=[MADE, MADE]), f"it creates {MADE.id} twice"),
    "created for somebody else": (Plan(create=[changed(agent_id="other")]), "the agent 'other', of whom nothing"),
    "no episode": (Plan(create=["text"]), "cannot be stored: str is not an Episode"),  # type: ignore[list-item]
    "no JSON": (Plan(create=[changed(content={"at": NOW})]), r"cannot be stored: content\.at is datetime"),
    "too large": (Plan(create=[changed(content={"text": "x" * (1 << 21)})]), "cannot be stored: content takes"),
    "too much metadata": (Plan(create=[changed(metadata={"x": "x" * (1 << 17)})]), "cannot be stored: metadata takes"),
    "half a character": (Plan(create=[changed(content={"text": "\ud800"})]), "cannot be stored: .*surrogate"),
    "half a character in metadata": (Plan(create=[changed(metadata={"\ud800": 1})]), "cannot be stored: .*surrogate"),
    "no such type": (Plan(create=[changed(memory_type="short")]), "cannot be stored: memory_type is 'short'"),
    "too relevant": (Plan(create=[changed(relevance=2.0)]), "cannot be stored: relevance is 2.0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_other_plan_is_refused_and_says_why(fault: str) -> None:
    plan, said = FAULTS[fault]
    with pytest.raises(PluginError, match=rf"policy 'acme\.tidy' broke its contract: .*{said}"):
        check_plan(plan, [A, B, C], policy="acme.tidy")  # type: ignore[arg-type]


def test_where_nothing_was_offered_nothing_can_be_created() -> None:
    with pytest.raises(PluginError, match="of whom nothing was offered"):
        check_plan(Plan(create=[MADE]), [], policy="p")


class Does:
    name = "acme.does"

    def __init__(self, what: Callable[[], Plan]) -> None:
        self._what = what

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return self._what()


def raising(error: Exception) -> Callable[[], Plan]:
    def what() -> Plan:
        raise error

    return what


def test_a_policy_that_fails_is_named() -> None:
    with pytest.raises(PluginError, match=r"policy 'acme\.does' failed: ZeroDivisionError"):
        plan_of(Does(raising(ZeroDivisionError("x"))), [A], now=NOW)


def test_an_error_of_ours_comes_through() -> None:
    with pytest.raises(SettingsError, match="no key"):
        plan_of(Does(raising(SettingsError("no key"))), [A], now=NOW)


def test_a_plan_is_checked_before_anybody_gets_it() -> None:
    assert plan_of(Does(lambda: Plan(forget=[A.id])), [A], now=NOW).forget == [A.id]
    with pytest.raises(PluginError, match="never offered"):
        plan_of(Does(lambda: Plan(forget=[B.id])), [A], now=NOW)
