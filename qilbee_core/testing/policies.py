"""The contract of a consolidation policy as tests: subclass :class:`PolicyContract`, say how to make yours, run pytest.

::

    class TestKeepLast(PolicyContract):
        def open_policy(self) -> ConsolidationPolicy:
            return KeepLast()

        def offer(self) -> Sequence[Episode]:
            return [Episode.observation("bot", "21 degrees"), Episode.observation("bot", "22 degrees")]
"""

# ruff: noqa: D102 - the name of a test is the sentence of the contract that it tests

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qilbee_core.episode import MEMORY_TYPES, Episode, Plan
from qilbee_core.ids import format_id, lowest_id, us_of_datetime
from qilbee_core.interfaces import ConsolidationPolicy
from qilbee_core.policies.contract import check_plan
from qilbee_core.store import open_store

__all__ = ["PolicyContract", "offered_episodes"]

_NOW = datetime(2026, 6, 1, tzinfo=UTC)
_PATIENCE_S = 60.0
_THREADS = 8

# Each subclass runs every test on itself, which is what a kit is for.
_quick = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    (
        "Ana moved to Oslo.",
        "ana moved to Oslo!!",
        "Ana moved to Bergen.",
        "Where is order 4711? It should be here by now. I ordered it on Monday.",
        "我喜欢茶。我住在奥斯陆。",
        "أنا أعيش في أوسلو؟",
        "👍🏽",
        "\0",
        "no full stop, " * 9,
    )
)
_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
_values = st.recursive(
    _scalars | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_contents = (
    st.fixed_dictionaries({"user_input": _text, "agent_response": _text})
    | st.fixed_dictionaries({"observation": _text})
    | st.fixed_dictionaries({"text": _text}, optional={"speaker": _text})
    | st.dictionaries(_text, _values, max_size=4)
)
_metadata = st.dictionaries(_text, _values, max_size=2) | st.fixed_dictionaries(
    {},
    optional={
        "session_id": st.sampled_from(("s1", "s2", "", 7, None, [])),
        "speaker": st.sampled_from(("Ana", "Ben", 3)),
    },
)
_moments = st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 8)) | st.sampled_from(
    (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC), _NOW)
)


def _id(moment: datetime, low: int) -> str:
    number = int.from_bytes(lowest_id(us_of_datetime(moment)), "big") | 2 << 62 | low
    return format_id((number | 8 << 76).to_bytes(16, "big"))


def offered_episodes() -> st.SearchStrategy[list[Episode]]:
    """What a policy may be offered: any episodes of one agent, oldest first."""
    episodes = st.builds(
        Episode,
        st.just("bot"),
        st.sampled_from(("conversation", "observation", "action", "message")),
        _contents,
        metadata=_metadata,
        memory_type=st.sampled_from(("episodic", *MEMORY_TYPES)),
        relevance=st.floats(0, 1),
        id=st.builds(_id, _moments, st.integers(0, (1 << 62) - 1)),
    )
    found = st.lists(episodes, max_size=12, unique_by=lambda episode: episode.id)
    return found.map(lambda episodes: sorted(episodes, key=lambda episode: episode.id))


class PolicyContract:
    """What every policy promises. ``open_policy`` is called for each test, and must give a new one.

    Some tests run in another process too, which imports the class anew: ``open_policy`` and ``offer`` may use what the
    module has, but no fixtures.
    """

    def open_policy(self) -> ConsolidationPolicy:
        """A new policy."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its policy is opened")

    def offer(self) -> Sequence[Episode]:
        """Some episodes of one agent of before June 2026, for which yours has something to plan."""
        raise NotImplementedError(f"{type(self).__name__} has to offer episodes")

    def test_its_name_can_stand_in_a_configuration(self) -> None:
        name = self.open_policy().name
        assert name
        assert all(character.isalnum() or character in "._-" for character in name)

    def test_where_nothing_is_offered_nothing_is_planned(self) -> None:
        assert _spelt(self.open_policy().plan([], now=_NOW)) == _spelt(Plan())

    def test_it_has_a_plan_for_what_it_is_made_for(self) -> None:
        plan = self._planned(self.offer())
        assert plan.create or plan.supersede or plan.forget

    def test_one_episode_alone_is_planned_for_too(self) -> None:
        for episode in self.offer():
            self._planned([episode])

    @_quick
    @given(episodes=offered_episodes())
    def test_whatever_is_offered_it_plans_within_it_twice_the_same_and_changes_nothing(
        self, episodes: list[Episode]
    ) -> None:
        before = [_told(episode) for episode in episodes]
        first = self._planned(episodes)
        assert [_told(episode) for episode in episodes] == before
        assert _spelt(self._planned(episodes)) == _spelt(first)

    def test_the_offered_episodes_stay_as_they_were(self) -> None:
        offered = self.offer()
        before = [_told(episode) for episode in offered]
        self._planned(offered)
        assert [_told(episode) for episode in offered] == before

    def test_the_same_episodes_give_the_same_plan_whatever_was_planned_before(self) -> None:
        offered = self.offer()
        policy = self.open_policy()
        first = policy.plan(offered, now=_NOW)
        policy.plan(offered[:1], now=_NOW + timedelta(days=1))
        assert _spelt(policy.plan(offered, now=_NOW)) == _spelt(first)
        assert _spelt(self.open_policy().plan(tuple(offered), now=_NOW)) == _spelt(first)

    @pytest.mark.parametrize("now", [datetime.min, _NOW, datetime.max], ids=lambda now: f"year {now.year}")
    def test_now_may_be_any_moment(self, now: datetime) -> None:
        offered = self.offer()
        check_plan(self.open_policy().plan(offered, now=now.replace(tzinfo=UTC)), offered, policy="the policy")

    def test_another_process_plans_the_same(self) -> None:
        """With another hash seed: a plan that follows the order of a set differs there."""
        offered = self.offer()
        plans = {_spelt(self._planned(offered)), *(_planned_elsewhere(self, offered, seed) for seed in ("1", "2"))}
        assert len(plans) == 1

    def test_eight_threads_share_one_policy(self) -> None:
        offered = self.offer()
        policy = self.open_policy()
        with ThreadPoolExecutor(_THREADS) as pool:
            plans = list(pool.map(lambda _: _spelt(policy.plan(offered, now=_NOW)), range(_THREADS * 4)))
        assert set(plans) == {_spelt(self._planned(offered))}

    def test_what_it_creates_can_be_stored_and_comes_back(self) -> None:
        created = list(self._planned(self.offer()).create)
        with open_store(backend="ephemeral") as store:
            for episode in created:
                memory = store.agent_memory(episode.agent_id)
                memory.store_episode(episode)
                assert memory.get_episode(episode.id) == episode

    def _planned(self, offered: Sequence[Episode]) -> Plan:
        policy = self.open_policy()
        plan = policy.plan(offered, now=_NOW)
        check_plan(plan, offered, policy=policy.name)
        return plan


def _told(episode: Episode) -> str:
    """Everything about an episode, with the types of its values."""
    return repr((episode, episode.relevance))


def _spelt(plan: Plan) -> str:
    created = sorted(_told(episode) for episode in plan.create)
    return json.dumps([created, sorted(plan.supersede.items()), sorted(plan.forget)])


def _planned_elsewhere(test: PolicyContract, offered: Sequence[Episode], seed: str) -> str:
    kind = type(test)
    fields = ("agent_id", "episode_type", "content", "metadata", "memory_type", "relevance", "id")
    episodes = json.dumps([{field: getattr(each, field) for field in fields} for each in offered])
    arguments = [kind.__module__, inspect.getfile(kind), kind.__qualname__]
    return subprocess.run(
        [sys.executable, "-c", f"import {__name__} as kit, sys; kit._plan_here(*sys.argv[1:])", *arguments],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        input=episodes,
        capture_output=True,
        encoding="utf-8",
        timeout=_PATIENCE_S,
        check=True,
    ).stdout


def _plan_here(module_name: str, file: str, class_name: str) -> None:
    """What the other process runs."""
    found: Any
    try:
        found = importlib.import_module(module_name)
    except ImportError:  # pytest may have imported it by its path alone
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for name in class_name.split("."):
        found = getattr(found, name)
    offered = [Episode(**fields) for fields in json.loads(sys.stdin.read())]
    sys.stdout.write(_spelt(found().open_policy().plan(offered, now=_NOW)))
