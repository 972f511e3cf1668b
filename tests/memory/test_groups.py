"""A plan falls into groups: whatever hangs together is in one, and everything is in one only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import Episode, Plan, derived_episode
from qilbee_core.ids import parse_id
from qilbee_core.memory.groups import batches_of, groups_of
from qilbee_core.policies.contract import check_plan

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
OFFERED = [Episode("bot", "note", {"n": number}, event_time=NOON + timedelta(minutes=number)) for number in range(20)]
TIMES = {episode.id: 1000 + number for number, episode in enumerate(OFFERED)}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan that keeps its contract."""
    ids = [episode.id for episode in OFFERED]
    stays = draw(st.sets(st.sampled_from(ids), min_size=1))
    create = {}
    for number in range(draw(st.integers(0, 4))):
        sources = draw(st.lists(st.sampled_from(OFFERED), min_size=1, max_size=5, unique_by=lambda each: each.id))
        made = derived_episode("test", sources, "made", {"number": number})
        create[made.id] = made
    survivors = [*sorted(stays), *create]
    supersede, forget = {}, []
    for id_ in ids:
        if id_ not in stays:
            what = draw(st.sampled_from(["nothing", "forget", *survivors]))
            if what == "forget":
                forget.append(id_)
            elif what != "nothing":
                supersede[id_] = what
    return Plan(create=list(create.values()), supersede=supersede, forget=forget)


@given(plans())
def test_everything_is_in_one_group_with_all_that_it_hangs_together_with(plan: Plan) -> None:
    check_plan(plan, OFFERED, policy="test")
    groups = groups_of(plan, TIMES, policy="test")
    retired = [id_bytes for group in groups for id_bytes in group.retired]
    assert sorted(retired) == sorted(map(parse_id, [*plan.supersede, *plan.forget]))
    created = [episode.id for group in groups for episode in group.create]
    assert sorted(created) == sorted(episode.id for episode in plan.create)
    home = {episode.id: group for group in groups for episode in group.create}
    for group in groups:
        for source, survivor in group.supersede.items():
            assert plan.supersede[next(id_ for id_ in TIMES if parse_id(id_) == source)] in {
                *(each.id for each in group.create if each._id == survivor),
                *(id_ for id_ in TIMES if parse_id(id_) == survivor),
            }
        assert all(
            TIMES[id_] == at_us for id_ in TIMES for known, at_us in group.needed.items() if parse_id(id_) == known
        )
        assert group.needed.keys() >= set(group.retired)
        assert group.size == len(group.create) + len(list(group.retired))
    gone = plan.supersede.keys() | set(plan.forget)
    for episode in plan.create:
        group = home[episode.id]
        named: list[str] = list(map(str, episode.metadata["sources"]))  # type: ignore[arg-type]
        for id_ in named:
            assert parse_id(id_) in group.needed
            assert id_ not in gone or parse_id(id_) in set(group.retired)
    alone = [group for group in groups if not group.create]
    assert all(group.size == 1 for group in alone)


@given(plans(), st.integers(1, 8))
def test_batches_hold_whole_groups_in_order_and_no_more_than_they_may(plan: Plan, episodes_max: int) -> None:
    groups = groups_of(plan, TIMES, policy="test")
    batches = list(batches_of(groups, episodes_max))
    assert [group for batch in batches for group in batch] == groups
    for batch in batches:
        assert len(batch) == 1 or sum(group.size for group in batch) <= episodes_max
    for one, other in pairwise(batches):
        assert sum(group.size for group in one) + other[0].size > episodes_max


def test_a_long_chain_of_memories_that_share_sources_is_one_group() -> None:
    made = [derived_episode("test", pair, "made", {}) for pair in pairwise(OFFERED)]
    plan = Plan(create=made, forget=[episode.id for episode in OFFERED])
    (group,) = groups_of(plan, TIMES, policy="test")
    assert group.size == len(made) + len(OFFERED)
    assert len(groups_of(Plan(create=made), TIMES, policy="test")) == len(made)
