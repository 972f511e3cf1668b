"""Our policies keep the contract, and the kit sees those that break it."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import cache
from random import random

import pytest
from shared.chat_endpoint import serving

from qilbee_core import ConsolidationPolicy, Episode, Plan, PluginError, load_plugins
from qilbee_core.testing import PolicyContract

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)
SAID = (
    ("Ana", "Hello there! I moved to Oslo in March, into a small flat near the harbour."),
    ("Ben", "Oh wow, congratulations. How is the flat?"),
    ("Ana", "It is bright and warm, but the rent went up to 14,000 crowns in January."),
    ("Ben", "That is a lot. My sister Carla pays 9,000 in Bergen."),
    ("Ana", "I know! I start at the hospital on Monday, as a nurse."),
)


@cache
def endpoint_url() -> str:
    """A server that lives as long as the process: this one, or the one that the kit starts."""
    servers = ExitStack()
    atexit.register(servers.close)
    return servers.enter_context(serving()).url


def talk() -> list[Episode]:
    """Two sessions with a week between them."""
    return [
        Episode(
            "bot",
            "message",
            {"text": text},
            metadata={"speaker": speaker, "session_id": f"week {week}"},
            event_time=MONDAY + timedelta(weeks=week, minutes=minute),
        )
        for week in range(2)
        for minute, (speaker, text) in enumerate(SAID)
    ]


class TestDuplicates(PolicyContract):
    def open_policy(self) -> ConsolidationPolicy:
        return load_plugins().policies.create("duplicates")

    def offer(self) -> Sequence[Episode]:
        return talk()


class TestSessions(PolicyContract):
    def open_policy(self) -> ConsolidationPolicy:
        return load_plugins().policies.create("sessions", ratio=0.4)

    def offer(self) -> Sequence[Episode]:
        return talk()


class TestLlm(PolicyContract):
    """With a model that answers the same question alike."""

    def open_policy(self) -> ConsolidationPolicy:
        return load_plugins().policies.create("llm", base_url=endpoint_url(), model="test")

    def offer(self) -> Sequence[Episode]:
        return talk()


# What the kit sees


class Forgets:
    """A policy that breaks no rule; those below break one each."""

    name = "acme.forgets"

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return Plan(forget=[episode.id for episode in episodes if episode.event_time <= now])


class ForgetsByChance(Forgets):
    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return Plan(forget=[episode.id for episode in episodes if random() < 0.5])


class ForgetsByHash(Forgets):
    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return Plan(forget=[episode.id for episode in episodes if hash(f"{episode.content}") % 2])


class ForgetsWhatItSaw(Forgets):
    def __init__(self) -> None:
        self._seen: set[str] = set()

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        fresh = [episode.id for episode in episodes if episode.id not in self._seen]
        self._seen.update(fresh)
        return Plan(forget=fresh)


class ForgetsByWriting(Forgets):
    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        for episode in episodes:
            episode.metadata = {**episode.metadata, "forgotten": True}
        return super().plan(episodes, now=now)


class ForgetsTooMuch(Forgets):
    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return Plan(forget=[*super().plan(episodes, now=now).forget, Episode.observation("bot", "x").id])


class CreatesAnew(Forgets):
    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return Plan(create=[Episode("bot", "note", {"count": len(episodes)}, event_time=now)] if episodes else ())


def contract_of(policy: type[Forgets]) -> PolicyContract:
    class Contract(PolicyContract):
        def open_policy(self) -> ConsolidationPolicy:
            return policy()

        def offer(self) -> Sequence[Episode]:
            return talk()

    return Contract()


class KitForgetsByHash(PolicyContract):
    def open_policy(self) -> ConsolidationPolicy:
        return ForgetsByHash()

    def offer(self) -> Sequence[Episode]:
        return talk()


def test_a_policy_that_keeps_the_contract_passes() -> None:
    contract = contract_of(Forgets)
    contract.test_it_has_a_plan_for_what_it_is_made_for()
    contract.test_the_same_episodes_give_the_same_plan_whatever_was_planned_before()
    contract.test_the_offered_episodes_stay_as_they_were()


@pytest.mark.parametrize("policy", [ForgetsByChance, ForgetsWhatItSaw, CreatesAnew])
def test_a_plan_that_changes_from_call_to_call_is_seen(policy: type[Forgets]) -> None:
    with pytest.raises(AssertionError):
        contract_of(policy).test_the_same_episodes_give_the_same_plan_whatever_was_planned_before()


def test_a_plan_that_follows_the_hash_seed_is_seen() -> None:
    with pytest.raises(AssertionError):
        KitForgetsByHash().test_another_process_plans_the_same()


def test_a_policy_that_writes_into_what_it_was_offered_is_seen() -> None:
    with pytest.raises(AssertionError):
        contract_of(ForgetsByWriting).test_the_offered_episodes_stay_as_they_were()


def test_a_plan_beyond_what_was_offered_is_seen() -> None:
    with pytest.raises(PluginError, match=r"'acme\.forgets' broke its contract: forget names .* never offered"):
        contract_of(ForgetsTooMuch).test_it_has_a_plan_for_what_it_is_made_for()


def test_a_policy_that_plans_nothing_for_what_it_is_made_for_is_seen() -> None:
    class Idle(Forgets):
        def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
            return Plan()

    with pytest.raises(AssertionError):
        contract_of(Idle).test_it_has_a_plan_for_what_it_is_made_for()
