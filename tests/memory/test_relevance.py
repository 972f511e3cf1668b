"""Relevance: an order that decay never changes, sums that stay exact, numbers that are the same on every machine."""

from __future__ import annotations

import importlib.util
import math
import random
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qilbee_core import Episode, Store
from qilbee_core.memory.relevance import (
    STRENGTH_MIN,
    Order,
    _log2,
    average,
    contribution,
    reinforced,
    relevance,
    vitality,
)

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
YEAR_US = 365 * DAY_US
EPOCH_US = 1_700_000_000_000_000

getcontext().prec = 60
LN2 = Decimal(2).ln()

strengths = st.floats(STRENGTH_MIN, 1.0)
ages = st.integers(0, 20 * YEAR_US)
half_lives = st.sampled_from([HOUR_US, 7 * DAY_US, 30 * DAY_US, 180 * DAY_US, 10 * YEAR_US]) | st.integers(
    HOUR_US, YEAR_US
)


def order(half_life_us: int | None) -> Order:
    return Order(0, "episodic", half_life_us, EPOCH_US)


def two_to(exponent: Decimal) -> Decimal:
    return (exponent * LN2).exp()


class TestOrder:
    @settings(max_examples=80)
    @given(strengths, strengths, ages, ages, half_lives, ages)
    def test_who_is_more_relevant_once_is_so_for_ever(
        self, strength: float, other: float, age: int, other_age: int, half_life_us: int, later: int
    ) -> None:
        by = order(half_life_us)
        one, two = vitality(by, strength, EPOCH_US + age), vitality(by, other, EPOCH_US + other_age)
        low, high = sorted((one, two))
        now = EPOCH_US + max(age, other_age) + later
        assert relevance(by, low, now) <= relevance(by, high, now)
        assert contribution(by, low) <= contribution(by, high)

    @settings(max_examples=80)
    @given(strengths, strengths, half_lives)
    def test_of_two_at_one_time_the_stronger_is_not_behind(self, a: float, b: float, half_life_us: int) -> None:
        weak, strong = sorted((a, b))
        for by in (order(half_life_us), order(None)):
            assert vitality(by, weak, EPOCH_US) <= vitality(by, strong, EPOCH_US)

    @given(strengths, st.integers(1, YEAR_US), half_lives)
    def test_of_two_as_strong_the_later_is_before(self, strength: float, later: int, half_life_us: int) -> None:
        by = order(half_life_us)
        assert vitality(by, strength, EPOCH_US + later) - vitality(by, strength, EPOCH_US) == later

    @settings(max_examples=80)
    @given(strengths, ages, half_lives)
    def test_relevance_is_strength_times_decay(self, strength: float, age: int, half_life_us: int) -> None:
        by = order(half_life_us)
        expected = float(Decimal(strength) * two_to(Decimal(-age) / half_life_us))
        told = relevance(by, vitality(by, strength, EPOCH_US), EPOCH_US + age)
        assert told == pytest.approx(expected, rel=1e-9, abs=1e-300)

    @given(st.floats(0, 1), ages, st.integers(-YEAR_US, YEAR_US))
    def test_relevance_is_from_0_to_1_though_the_clock_was_set_back(
        self, strength: float, age: int, later: int
    ) -> None:
        for by in (order(30 * DAY_US), order(None)):
            assert 0.0 <= relevance(by, vitality(by, strength, EPOCH_US + age), EPOCH_US + age + later) <= 1.0

    @given(st.floats(2.0**-10, 1.0), ages, ages)
    def test_what_never_decays_keeps_its_strength_exactly(self, strength: float, age: int, later: int) -> None:
        by = order(None)
        assert relevance(by, vitality(by, strength, EPOCH_US + age), EPOCH_US + later) == strength

    @given(st.floats(STRENGTH_MIN, 2.0**-10), ages)
    def test_what_is_very_weak_keeps_it_to_a_billionth(self, strength: float, later: int) -> None:
        by = order(None)
        assert relevance(by, vitality(by, strength, EPOCH_US), EPOCH_US + later) == pytest.approx(strength, rel=1e-12)

    @given(st.floats(0, STRENGTH_MIN))
    def test_there_is_a_least_strength(self, strength: float) -> None:
        for by in (order(30 * DAY_US), order(None)):
            assert vitality(by, strength, EPOCH_US) == vitality(by, STRENGTH_MIN, EPOCH_US)

    @given(strengths, st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999), half_lives)
    def test_a_place_is_a_signed_integer_of_64_bits(self, strength: float, at_us: int, half_life_us: int) -> None:
        for by in (order(half_life_us), order(None)):
            assert -(1 << 63) <= vitality(by, strength, at_us) < 1 << 63


class TestReinforcement:
    @given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
    def test_it_never_makes_less_relevant_nor_more_than_fully_so(
        self, before: float, share: float, more: float
    ) -> None:
        after = reinforced(before, share)
        assert before <= after <= 1.0
        low, high = sorted((share, more))
        assert reinforced(before, low) <= reinforced(before, high)
        assert reinforced(before, 0.0) == before
        assert reinforced(before, 1.0) == pytest.approx(1.0)

    @given(st.floats(0, 0.98), st.floats(0.01, 1), half_lives, ages)
    def test_who_was_reinforced_is_ahead_ever_after(
        self, before: float, share: float, half_life_us: int, later: int
    ) -> None:
        by, now = order(half_life_us), EPOCH_US + later
        without = relevance(by, vitality(by, before, EPOCH_US), now)
        assert relevance(by, vitality(by, reinforced(before, share), EPOCH_US), now) >= without

    def test_the_picture_is_what_its_script_draws(self) -> None:
        docs = Path(__file__).parents[2] / "docs"
        spec = importlib.util.spec_from_file_location("plot_relevance", docs / "plot_relevance.py")
        assert spec is not None
        assert spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        assert script.drawing() == (docs / "relevance.svg").read_text()


class TestAccuracy:
    @settings(max_examples=80)
    @given(strengths)
    def test_log2_is_right_to_32_bits_and_never_above(self, strength: float) -> None:
        exact = Decimal(strength).ln() / LN2 * (1 << 32)
        assert -2 <= Decimal(_log2(strength)) - exact <= Decimal("1e-6")

    @pytest.mark.parametrize("power", range(21))
    def test_log2_of_a_power_of_two_is_exact(self, power: int) -> None:
        assert _log2(2.0**-power) == -power << 32

    @settings(max_examples=80)
    @given(st.integers(-3 * YEAR_US, 30 * YEAR_US), half_lives)
    def test_a_contribution_is_right_to_a_hundred_billionth(self, after_epoch_us: int, half_life_us: int) -> None:
        exact = two_to(Decimal(after_epoch_us) / half_life_us) * (1 << 64)
        told = contribution(order(half_life_us), EPOCH_US + after_epoch_us)
        assert abs(Decimal(told) - exact) <= exact * Decimal("2e-11") + 1

    def test_a_contribution_never_falls_from_one_step_of_its_table_to_the_next(self) -> None:
        by = order(256_000)
        steps = [contribution(by, EPOCH_US + at) for at in range(-1000 * 60, 1000 * 60, 37)]
        assert steps == sorted(steps)
        edges = [
            contribution(by, EPOCH_US + step * 1000 + beside) for step in range(-300, 300) for beside in (-1, 0, 1)
        ]
        assert edges == sorted(edges)

    def test_no_function_is_used_that_differs_between_machines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: float) -> float:
            raise AssertionError("a function of the C library")

        for name in ("log2", "log", "exp2", "exp", "pow", "log1p", "expm1"):
            monkeypatch.setattr(math, name, refuse)
        for by in (order(30 * DAY_US), order(None)):
            for strength in (1.0, 0.7, 0.001, 0.0):
                assert contribution(by, vitality(by, strength, EPOCH_US + 12_345)) > 0


VECTORS = [
    # half-life in days, strength, reinforced after the epoch, vitality (after the epoch), contribution
    (30, 1.0, 0, 0, 0x10000000000000000),
    (30, 0.5, 0, -2592000000000, 0x8000000000000000),
    (30, 0.3, 1, -4502214820548, 0x4CCCCCCCA3675400),
    (30, 0.1, 12_345_678_901, -8598091943527, 0x19AF45AD1D02A100),
    (30, 0.001, 400 * DAY_US + 7, 8728687133930, 0xA523EF68B60208000),
    (30, 2.0**-20, 3650 * DAY_US, 263520000000000, 0x32CBFD4A7AC3FC0000000000000000000000000000),
    (30, 0.0, 0, -51840000000000, 0x100000000000),
    (30, 0.9999999999999999, 5, -599, 0xFFFFFFFF4D6B7800),
    (30, 0.7, -30 * DAY_US, -3925773664155, 0x59999999870B5400),
    (180, 0.1, 12_345_678_901, -51650280055667, 0x199D3501F6203800),
    (180, 0.001, 400 * DAY_US + 7, -120427877196454, 0x131CC704C4A2010),
    (180, 0.7, -30 * DAY_US, -10594641984925, 0x9FA62828CB1F1800),
]
LASTING = [
    # strength, vitality, contribution
    (1.0, 1 << 62, 1 << 64),
    (0.5, 1 << 61, 1 << 63),
    (0.3, 1383505805528216320, 0x4CCCCCCCCCCCCC00),
    (0.1, 461168601842738816, 0x1999999999999A00),
    (2.0**-20, 1 << 42, 1 << 44),
    (0.0, 1 << 42, 1 << 44),
]


class TestDeterminism:
    """What stands in keys and heads on disk: another number would not be found again."""

    @pytest.mark.parametrize(("days", "strength", "after_us", "place", "adds"), VECTORS)
    def test_places_and_contributions_are_these(
        self, days: int, strength: float, after_us: int, place: int, adds: int
    ) -> None:
        by = order(days * DAY_US)
        assert vitality(by, strength, EPOCH_US + after_us) == EPOCH_US + place
        assert contribution(by, EPOCH_US + place) == adds

    @pytest.mark.parametrize(("strength", "place", "adds"), LASTING)
    def test_of_what_never_decays_they_are_these(self, strength: float, place: int, adds: int) -> None:
        by = order(None)
        assert vitality(by, strength, EPOCH_US) == place
        assert contribution(by, place) == adds


class TestSums:
    @settings(max_examples=30)
    @given(st.randoms(use_true_random=False), half_lives | st.none(), st.integers(1, 60))
    def test_the_average_is_that_of_a_full_recomputation_after_years_of_changes(
        self, draw: random.Random, half_life_us: int | None, operations: int
    ) -> None:
        by = order(half_life_us)
        places: list[int] = []
        total, now = 0, EPOCH_US
        for _ in range(operations):
            now += draw.randrange(90 * DAY_US)
            if places and draw.random() < 0.4:
                total -= contribution(by, places.pop(draw.randrange(len(places))))
            else:
                places.append(vitality(by, draw.choice([1.0, draw.random(), 0.0]), now))
                total += contribution(by, places[-1])
            assert total == sum(contribution(by, place) for place in places)
            if places:
                expected = math.fsum(relevance(by, place, now) for place in places) / len(places)
                assert average(by, total, len(places), now) == pytest.approx(expected, rel=1e-9, abs=1e-300)
        for place in places:
            total -= contribution(by, place)
        assert total == 0

    @pytest.mark.parametrize("years", [0, 1, 30, 300, 7000])
    def test_an_average_is_a_number_however_long_ago_everything_was(self, years: int) -> None:
        by = order(HOUR_US)
        told = average(by, 3 * contribution(by, EPOCH_US), 3, EPOCH_US + years * YEAR_US)
        assert told == pytest.approx(1.0 if years == 0 else 0.0, abs=1e-11)

    def test_an_average_before_the_store_was_made_is_a_number(self) -> None:
        by = order(30 * DAY_US)
        place = vitality(by, 1.0, EPOCH_US - 300 * DAY_US)
        told = average(by, contribution(by, place), 1, EPOCH_US - 270 * DAY_US)
        assert told == pytest.approx(0.5, rel=1e-9)

    @pytest.mark.parametrize("engine", ["ephemeral", "rocksdb"], scope="session")
    def test_statistics_agree_with_the_episodes_over_years(self, store: Store, clock: Any) -> None:
        memory = store.agent_memory("bot")
        draw = random.Random(3)
        types: list[Literal["episodic", "semantic", "procedural", "factual"]]
        types = ["episodic", "semantic", "procedural", "factual"]
        known: list[str] = []
        for step in range(100):
            clock.forward(microseconds=draw.randrange(40 * DAY_US))
            choice = draw.random()
            if known and choice < 0.3:
                memory.delete_episode(known.pop(draw.randrange(len(known))))
            elif known and choice < 0.5:
                memory.update_episode(draw.choice(known), metadata={"step": step})
            else:
                given = Episode("bot", "note", {}, memory_type=draw.choice(types), relevance=draw.random())
                known.append(memory.store_episode(given))
            episodes = list(memory.episodes())
            expected = math.fsum(episode.relevance for episode in episodes) / max(1, len(episodes))
            assert memory.get_statistics().avg_relevance == pytest.approx(expected, rel=1e-9)
        for id_ in known:
            memory.delete_episode(id_)
        head = store._context.head(store._context.agent("bot"))
        assert head is not None
        assert head.tallies == {}
