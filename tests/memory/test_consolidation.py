"""A store carries out what a policy plans, as far as nothing has changed meanwhile, and can undo it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import (
    AgentMemory,
    AsyncStore,
    BackendOptions,
    ConsolidationPolicy,
    ConsolidationResult,
    Episode,
    InvalidError,
    MemorySettings,
    NotFoundError,
    Plan,
    PluginError,
    Provider,
    ProviderNotFoundError,
    Put,
    ReadOnlyError,
    SearchSettings,
    Settings,
    SettingsError,
    Store,
    WriteBatch,
    derived_episode,
    hookimpl,
    load_plugins,
    open_store,
)
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import consolidation, schedule
from qilbee_core.memory.undo import decode_undo

AGENT = "bot"
KEYS = AgentKeys(AGENT)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


class Policy:
    """Plans what a function plans."""

    def __init__(self, plan: Callable[[Sequence[Episode]], Plan], name: str = "test.policy") -> None:
        self._plan = plan
        self.name = name
        self.offered: list[str] = []
        self.now: datetime | None = None

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        self.offered, self.now = [episode.id for episode in episodes], now
        return self._plan(episodes)


def note(text: object, minute: int = 0, **given: Any) -> Episode:
    return Episode(AGENT, "note", {"text": str(text)}, event_time=NOON + timedelta(minutes=minute), **given)


def all_in_one(episodes: Sequence[Episode]) -> Plan:
    """One memory in the place of all."""
    if not episodes:
        return Plan()
    made = derived_episode("test.policy", episodes, "summary", {"summary": " ".join(map(text_of, episodes))})
    return Plan(create=[made], supersede={episode.id: made.id for episode in episodes})


def by_pairs(episodes: Sequence[Episode]) -> Plan:
    """Each two neighbours become one."""
    plans = [all_in_one(episodes[at : at + 2]) for at in range(0, len(episodes) - 1, 2)]
    return Plan(
        create=[made for plan in plans for made in plan.create],
        supersede={source: made for plan in plans for source, made in plan.supersede.items()},
    )


def keep_last(episodes: Sequence[Episode]) -> Plan:
    """The newest takes the place of all others."""
    return Plan(supersede={episode.id: episodes[-1].id for episode in episodes[:-1]})


def forget_all(episodes: Sequence[Episode]) -> Plan:
    return Plan(forget=[episode.id for episode in episodes])


def text_of(episode: Episode) -> str:
    return str(next(iter(episode.content.values())))


def texts(memory: AgentMemory) -> list[str]:
    return [text_of(episode) for episode in memory.episodes()]


def everything(store: Store) -> dict[bytes, bytes]:
    """All that is stored of the agent but its clocks and its change log."""
    kept = [space for space in Space if space not in (Space.CATALOG, Space.AGENT, Space.CHANGE, Space.ACCOUNT)]
    return {key: value for space in kept for key, value in store._backend.scan(*KEYS.range(space))}


def rows(store: Store, space: Space) -> list[tuple[bytes, bytes]]:
    return list(store._backend.scan(*KEYS.range(space)))


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.01)


def undo_id(result: ConsolidationResult) -> str:
    assert result.consolidation_id is not None
    return result.consolidation_id


@pytest.fixture
def memory(store: Store) -> AgentMemory:
    return store.agent_memory(AGENT)


@pytest.fixture
def sound(store: Store) -> Any:
    """Whatever a test does, verify() is content afterwards."""
    yield
    assert store.verify().problems == []


pytestmark = pytest.mark.usefixtures("sound")


class TestWhatIsOffered:
    def test_a_policy_is_offered_everything_in_order_of_time_and_told_the_time(
        self, memory: AgentMemory, clock: Any
    ) -> None:
        late, early = note("late", 9), note("early", 1)
        memory.store_episodes([late, early])
        policy = Policy(lambda episodes: Plan())
        result = memory.consolidate(policy)
        assert policy.offered == [early.id, late.id]
        assert policy.now == clock.now
        assert (result.offered, result.policy) == (2, "test.policy")

    def test_what_is_pinned_or_expires_is_not_offered(self, memory: AgentMemory, clock: Any) -> None:
        pinned, fleeting, plain = note("pinned", 1), note("fleeting", 2, ttl=timedelta(days=900)), note("plain", 3)
        memory.store_episodes([pinned, fleeting, plain])
        memory.pin(pinned.id)
        policy = Policy(forget_all)
        assert memory.consolidate(policy).forgotten == [plain.id]
        assert policy.offered == [plain.id]
        assert texts(memory) == ["pinned", "fleeting"]

    def test_since_leaves_out_what_happened_before(self, memory: AgentMemory) -> None:
        memory.store_episodes([note("old", 0), note("at noon and a bit", 5), note("new", 9)])
        policy = Policy(forget_all)
        assert memory.consolidate(policy, since=NOON + timedelta(minutes=5)).offered == 2
        assert texts(memory) == ["old"]

    def test_nobody_is_asked_about_nothing(self, memory: AgentMemory) -> None:
        def fail(episodes: Sequence[Episode]) -> Plan:
            raise AssertionError

        result = memory.consolidate(Policy(fail))
        assert (result.offered, result.consolidation_id, result.undo_until) == (0, None, None)
        memory.delete_episode(memory.store_episode(note("gone")))
        assert memory.consolidate(Policy(fail)).offered == 0

    def test_a_large_agent_is_offered_in_parts_and_planned_before_anything_changes(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(consolidation, "OFFERED_EPISODES_MAX", 4)
        memory.store_episodes([note(number, number) for number in range(10)])
        parts: list[tuple[int, int]] = []

        def plan(episodes: Sequence[Episode]) -> Plan:
            parts.append((len(episodes), memory.get_statistics().total_episodes))
            return all_in_one(episodes)

        result = memory.consolidate(Policy(plan))
        assert parts == [(4, 10), (4, 10), (2, 10)]
        assert (result.offered, len(result.created), len(result.superseded)) == (10, 3, 10)
        assert texts(memory) == ["0 1 2 3", "4 5 6 7", "8 9"]
        monkeypatch.setattr(consolidation, "OFFERED_BYTES_MAX", 1)
        assert memory.consolidate(Policy(lambda episodes: Plan())).offered == 3

    def test_what_is_stored_while_the_policy_thinks_is_left_for_the_next_time(self, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(3)])

        def plan(episodes: Sequence[Episode]) -> Plan:
            memory.store_episode(note("meanwhile", 1))
            return all_in_one(episodes)

        result = memory.consolidate(Policy(plan))
        assert len(result.superseded) == 3
        assert sorted(texts(memory)) == ["0 1 2", "meanwhile"]

    def test_a_record_that_cannot_be_read_is_left_alone(self, store: Store, memory: AgentMemory) -> None:
        broken = memory.store_episode(note("broken", 0))
        memory.store_episode(note("whole", 1))
        (key, value), _ = rows(store, Space.EPISODE)
        store._backend.write(WriteBatch([Put(key, value[:-1] + b"\0")]))
        assert memory.consolidate(Policy(forget_all)).offered == 1
        store._backend.write(WriteBatch([Put(key, value)]))
        assert [episode.id for episode in memory.episodes()] == [broken]


class TestWhatIsDone:
    def test_sources_give_way_to_what_is_made_of_them_and_both_say_so(self, memory: AgentMemory) -> None:
        sources = [note(number, number) for number in range(3)]
        memory.store_episodes(sources)
        result = memory.consolidate(Policy(all_in_one))
        (made,) = result.created
        assert result.superseded == {source.id: made.id for source in sources}
        assert result.dropped == {}
        assert texts(memory) == ["0 1 2"]
        stored = memory.get_episode(made.id)
        assert stored is not None
        assert stored.metadata["sources"] == [source.id for source in sources]
        for source in sources:
            assert memory.get_episode(source.id) is None
            (version,) = memory.history(source.id)
            assert version.content == source.content
            assert version.superseded_by == made.id
        statistics = memory.get_statistics()
        assert (statistics.total_episodes, statistics.episodes_by_type) == (1, {"summary": 1})

    def test_one_that_was_offered_may_take_the_place_of_others(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(number, number) for number in range(4)])
        result = memory.consolidate(Policy(keep_last))
        assert (result.created, result.superseded) == ([], dict.fromkeys(ids[:-1], ids[-1]))
        assert texts(memory) == ["3"]

    def test_what_stays_is_as_relevant_as_what_gives_way_to_it(self, store: Store, clock: Any) -> None:
        memory = store.agent_memory(AGENT)
        old = note("the last by event time", 9)
        memory.store_episode(old)
        clock.forward(days=60)
        memory.store_episodes([note("told again", 1, relevance=0.25), note("and again", 2, relevance=0.75)])
        assert next(memory.episodes(reverse=True)).relevance == pytest.approx(0.25, rel=1e-4)
        result = memory.consolidate(Policy(keep_last))
        (stays,) = memory.episodes()
        assert (stays.id, round(stays.relevance, 3)) == (old.id, 0.75)
        clock.forward(days=30)
        assert next(memory.episodes()).relevance == pytest.approx(0.375, rel=1e-4)
        memory.undo(undo_id(result))
        assert [round(each.relevance, 3) for each in memory.episodes()] == [0.125, 0.375, 0.375]

    def test_what_is_about_as_relevant_gets_no_state(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episode(note("a", 9))
        memory.store_episode(note("b", 1))
        memory.consolidate(Policy(keep_last))
        assert rows(store, Space.STATE) == []

    def test_what_is_forgotten_gives_way_to_nothing(self, memory: AgentMemory) -> None:
        (id_,) = memory.store_episodes([note("trivial")])
        assert memory.consolidate(Policy(forget_all)).forgotten == [id_]
        assert texts(memory) == []
        assert [version.superseded_by for version in memory.history(id_)] == [None]

    def test_a_memory_may_be_made_without_taking_the_place_of_any(self, memory: AgentMemory) -> None:
        memory.store_episodes([note("a", 1), note("b", 2)])
        result = memory.consolidate(Policy(lambda episodes: Plan(create=all_in_one(episodes).create)))
        assert sorted(texts(memory)) == ["a", "a b", "b"]
        receipt = memory.undo(undo_id(result))
        assert (receipt.removed, receipt.restored) == ([result.created[0].id], [])
        assert texts(memory) == ["a", "b"]

    def test_a_dry_run_tells_the_same_and_changes_nothing(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(5)])
        before = dict(store._backend.scan())
        told = memory.consolidate(Policy(by_pairs), dry_run=True)
        assert dict(store._backend.scan()) == before
        assert (told.dry_run, told.consolidation_id, told.undo_until) == (True, None, None)
        done = memory.consolidate(Policy(by_pairs))
        assert (told.created, told.superseded, told.offered) == (done.created, done.superseded, done.offered)

    def test_the_same_memory_made_again_is_not_made_twice(self, store: Store, memory: AgentMemory) -> None:
        sources = [note(number, number) for number in range(2)]
        memory.store_episodes(sources)
        (made,) = all_in_one(list(memory.episodes())).create
        memory.store_episode(made)  # as somebody did who was interrupted, or quicker
        policy = Policy(lambda episodes: all_in_one([each for each in episodes if each.episode_type == "note"]))
        result = memory.consolidate(policy)
        assert result.created == []
        assert len(result.superseded) == 2
        assert texts(memory) == ["0 1"]

    def test_a_memory_that_was_mended_and_kept_by_an_undo_takes_the_place_again(self, memory: AgentMemory) -> None:
        def plan(episodes: Sequence[Episode]) -> Plan:
            return all_in_one([each for each in episodes if each.episode_type == "note"])

        memory.store_episodes([note(number, number) for number in range(2)])
        result = memory.consolidate(Policy(plan))
        memory.update_episode(result.created[0].id, content={"summary": "mended"})
        memory.undo(undo_id(result))
        assert sorted(texts(memory)) == ["0", "1", "mended"]
        assert memory.consolidate(Policy(plan)).created == []
        assert texts(memory) == ["mended"]

    def test_policies_that_come_with_the_store_are_called_by_name(self, memory: AgentMemory) -> None:
        first, other, again = (
            Episode.observation(AGENT, text, event_time=NOON)
            for text in ("Order 7 is sent.", "Order 8 is sent.", "well, order 7 is sent")
        )
        memory.store_episodes([first, other, again])
        assert memory.consolidate().superseded == {first.id: again.id}
        assert memory.consolidate("sessions").superseded == {}

    def test_many_groups_are_committed_in_batches_of_whole_groups(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(700)])
        told: list[int] = []
        result = memory.consolidate(Policy(by_pairs), progress=told.append)
        assert len(result.created) == 350
        assert told == [170, 340, 510, 680, 700]
        assert len(rows(store, Space.PLAN)) == 5
        assert len(memory.consolidations()) == 1
        assert memory.get_statistics().total_episodes == 350

    def test_what_is_found_follows(self, search_as_by_default: None) -> None:
        with open_store(backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            memory.store_episodes([note("The kettle whistles.", 1), note("Oak floors creak.", 2)])
            assert len(memory.search_episodes("kettle")) == 1
            result = memory.consolidate(Policy(all_in_one))
            assert [each.id for each in memory.search_episodes("kettle")] == [result.created[0].id]
            assert [each.id for each in memory.recall()] == [result.created[0].id]
            memory.undo(undo_id(result))
            assert [text_of(each) for each in memory.search_episodes("kettle")] == ["The kettle whistles."]
            assert store.verify().problems == []

    def test_it_is_there_when_the_store_is_opened_again(self, open_here: Callable[..., Store], engine: str) -> None:
        if engine == "ephemeral":
            pytest.skip("it keeps nothing")
        store = open_here()
        store.agent_memory(AGENT).store_episodes([note(number, number) for number in range(4)])
        result = store.agent_memory(AGENT).consolidate(Policy(by_pairs))
        store.close()
        memory = open_here().agent_memory(AGENT)
        assert texts(memory) == ["0 1", "2 3"]
        assert [each.consolidation_id for each in memory.consolidations()] == [result.consolidation_id]
        memory.undo(undo_id(result))
        assert texts(memory) == ["0", "1", "2", "3"]


class TestMeanwhile:
    """What changes between the offer and the commit."""

    def consolidate(
        self, memory: AgentMemory, plan: Callable[[Sequence[Episode]], Plan], change: Callable[[], Any]
    ) -> Any:
        def planned(episodes: Sequence[Episode]) -> Plan:
            made = plan(episodes)
            change()
            return made

        return memory.consolidate(Policy(planned))

    @pytest.mark.parametrize("how", ["changed", "gone", "pinned", "invalidated"])
    def test_a_group_stays_whole_where_one_of_it_has_changed(self, memory: AgentMemory, how: str) -> None:
        ids = memory.store_episodes([note(number, number) for number in range(4)])
        change: dict[str, Callable[[], Any]] = {
            "changed": lambda: memory.update_episode(ids[0], content={"text": "other"}),
            "gone": lambda: memory.delete_episode(ids[0]),
            "invalidated": lambda: memory.invalidate(ids[0]),
            "pinned": lambda: memory.pin(ids[0]),
        }
        result = self.consolidate(memory, by_pairs, change[how])
        reason = "gone" if how == "invalidated" else how
        assert result.dropped == {ids[0]: reason, ids[1]: "group"}
        assert list(result.superseded) == ids[2:]
        left = {"changed": ["other", "1"], "pinned": ["0", "1"]}.get(how, ["1"])
        assert texts(memory) == [*left, "2 3"]

    def test_where_one_stays_for_others_only_what_has_changed_is_left(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(number, number) for number in range(4)])
        result = self.consolidate(memory, keep_last, lambda: memory.update_episode(ids[1], content={"text": "other"}))
        assert result.dropped == {ids[1]: "changed"}
        assert texts(memory) == ["other", "3"]

    def test_nothing_gives_way_to_what_has_changed_itself(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(number, number) for number in range(3)])
        result = self.consolidate(memory, keep_last, lambda: memory.update_episode(ids[-1], content={"text": "other"}))
        assert result.dropped == {ids[0]: "group", ids[1]: "group", ids[2]: "changed"}
        assert result.consolidation_id is None
        assert texts(memory) == ["0", "1", "other"]
        assert memory.consolidations() == []

    def test_a_memory_is_not_made_of_what_was_deleted_though_it_would_take_the_place_of_nothing(
        self, memory: AgentMemory
    ) -> None:
        ids = memory.store_episodes([note("a", 1), note("b", 2)])
        result = self.consolidate(
            memory, lambda episodes: Plan(create=all_in_one(episodes).create), lambda: memory.delete_episode(ids[0])
        )
        assert (result.created, result.dropped) == ([], {ids[0]: "gone"})
        assert texts(memory) == ["b"]

    def test_an_id_that_somebody_took_meanwhile_is_not_taken_over(self, memory: AgentMemory) -> None:
        memory.store_episodes([note("a", 1), note("b", 2)])
        (made,) = all_in_one(list(memory.episodes())).create
        other = Episode(AGENT, "note", {"text": "mine"}, id=made.id)
        result = self.consolidate(memory, all_in_one, lambda: memory.store_episode(other))
        assert result.dropped[made.id] == "changed"
        assert sorted(texts(memory)) == ["a", "b", "mine"]

    def test_to_be_read_or_boosted_meanwhile_is_no_change(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note("a", 1, relevance=0.5), note("b", 2)])
        assert len(self.consolidate(memory, all_in_one, lambda: memory.boost(ids[0])).superseded) == 2

    def test_of_two_who_consolidate_at_once_one_does(self, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(3)])
        second: list[ConsolidationResult] = []
        first = self.consolidate(memory, all_in_one, lambda: second.append(memory.consolidate(Policy(all_in_one))))
        assert len(second[0].superseded) == 3
        assert set(first.dropped.values()) == {"gone"}
        assert texts(memory) == ["0 1 2"]

    def test_stores_from_other_threads_are_neither_lost_nor_doubled(self, store: Store, memory: AgentMemory) -> None:
        stored: list[set[str]] = [set(), set()]
        deleted = [0, 0]
        errors: list[BaseException] = []
        stop = threading.Event()

        def write(thread: int) -> None:
            try:
                while not stop.is_set():
                    for number in range(5):
                        stored[thread].add(memory.store_episode(note(f"{thread}-{number}", number)))
                    gone = next(iter(stored[thread]))
                    memory.delete_episode(gone)
                    stored[thread].discard(gone)
                    deleted[thread] += 1
            except BaseException as error:
                errors.append(error)

        def pairs_of_notes(episodes: Sequence[Episode]) -> Plan:
            return by_pairs([episode for episode in episodes if episode.episode_type == "note"])

        def plan(episodes: Sequence[Episode]) -> Plan:
            before = deleted.copy()  # each stores some and deletes one between the offer and the commit
            wait_until(lambda: bool(errors) or all(now > then for now, then in zip(deleted, before, strict=True)))
            return pairs_of_notes(episodes)

        memory.store_episode(note("first"))
        threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            results = [memory.consolidate(Policy(plan)) for _ in range(3)]
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        results.append(memory.consolidate(Policy(pairs_of_notes)))
        assert errors == []
        superseded = {id_: made for result in results for id_, made in result.superseded.items()}
        live = {episode.id for episode in memory.episodes()}
        created = {episode.id for result in results for episode in result.created}
        assert created <= live
        for id_ in stored[0] | stored[1]:
            assert (id_ in live) != (id_ in superseded)
        assert sum(len(result.superseded) for result in results) == len(superseded) > 0

    def test_two_processes_that_consolidate_one_shared_engine_do_it_once(self) -> None:
        backend = EphemeralBackend(BackendOptions(path=Path("unused")))
        stores = [Store(backend, Settings(), load_plugins()) for _ in range(2)]
        stores[0].agent_memory(AGENT).store_episodes([note(number, number) for number in range(600)])
        both = threading.Barrier(2)

        def consolidate(opened: Store) -> list[ConsolidationResult]:
            def plan(episodes: Sequence[Episode]) -> Plan:
                both.wait(60)
                return by_pairs([episode for episode in episodes if episode.episode_type == "note"])

            return [opened.agent_memory(AGENT).consolidate(Policy(plan)) for _ in range(2)]

        with ThreadPoolExecutor(2) as pool:
            results = [result for told in pool.map(consolidate, stores) for result in told]
        assert sum(len(result.superseded) for result in results) == 600
        assert sum(len(result.created) for result in results) == 300
        memory = stores[1].agent_memory(AGENT)
        assert memory.get_statistics().episodes_by_type == {"summary": 300}
        for each in memory.consolidations():
            memory.undo(each.consolidation_id)
        assert texts(stores[0].agent_memory(AGENT)) == [str(number) for number in range(600)]
        assert stores[0].verify().problems == []
        backend.close()


class TestBrokenContracts:
    @pytest.mark.parametrize(
        ("plan", "fault"),
        [
            (lambda episodes: None, "not a Plan"),
            (lambda episodes: Plan(forget=[note("x").id]), "never offered"),
            (lambda episodes: Plan(forget=[episodes[0].id] * 2), "twice"),
            (lambda episodes: Plan(supersede={episodes[0].id: note("x").id}), "never offered"),
            (lambda episodes: Plan(supersede={episodes[0].id: episodes[1].id}, forget=[episodes[1].id]), "forgotten"),
            (lambda episodes: Plan(create=[Episode("other", "note", {})]), "of whom nothing was offered"),
            (lambda episodes: Plan(create=[Episode(AGENT, "note", {"a": float("nan")})]), "cannot be stored"),
            (lambda episodes: Plan(create=[Episode(AGENT, "note", {"a": "x" * (1 << 20)})]), "cannot be stored"),
            (lambda episodes: 1 / 0, "division by zero"),
        ],
    )
    def test_a_plan_that_breaks_the_contract_changes_nothing(
        self, store: Store, memory: AgentMemory, plan: Callable[[Sequence[Episode]], Plan], fault: str
    ) -> None:
        memory.store_episodes([note(number, number) for number in range(3)])
        before = dict(store._backend.scan())
        with pytest.raises(PluginError, match=r"test\.policy.*" + fault):
            memory.consolidate(Policy(plan))
        assert dict(store._backend.scan()) == before

    def test_a_plan_that_breaks_it_in_a_later_part_changes_nothing_either(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(consolidation, "OFFERED_EPISODES_MAX", 2)
        memory.store_episodes([note(number, number) for number in range(4)])
        before = dict(store._backend.scan())
        with pytest.raises(PluginError):
            memory.consolidate(
                Policy(lambda episodes: all_in_one(episodes) if text_of(episodes[0]) == "0" else Plan(forget=["x"]))
            )
        assert dict(store._backend.scan()) == before

    def test_a_group_is_no_larger_than_a_batch(self, store: Store, memory: AgentMemory) -> None:
        memory.import_episodes(note(number, number) for number in range(1001))
        made = note("all")

        def plan(episodes: Sequence[Episode]) -> Plan:
            return Plan(create=[made], supersede={episode.id: made.id for episode in episodes})

        before = dict(store._backend.scan())
        with pytest.raises(PluginError, match="1002 episodes come and go together, the most is 1000"):
            memory.consolidate(Policy(plan))
        assert dict(store._backend.scan()) == before
        assert len(memory.consolidate(Policy(keep_last)).superseded) == 1000

    def test_a_group_makes_no_more_than_a_batch_may_hold(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episode(note("a"))

        def plan(episodes: Sequence[Episode]) -> Plan:
            create = [
                derived_episode("p", episodes, "long", {"text": f"{number}" + "x" * 1_000_000}) for number in range(17)
            ]
            return Plan(create=create, supersede={episodes[0].id: create[0].id})

        before = dict(store._backend.scan())
        with pytest.raises(PluginError, match="memories of 17"):
            memory.consolidate(Policy(plan))
        assert dict(store._backend.scan()) == before

    def test_more_types_than_an_agent_may_have_are_refused_before_anything_changes(
        self, store: Store, memory: AgentMemory
    ) -> None:
        memory.store_episodes([note(number, number) for number in range(300)])

        def plan(episodes: Sequence[Episode]) -> Plan:
            create = [derived_episode("p", [each], f"type {text_of(each)}", {}) for each in episodes]
            return Plan(create=create)

        before = dict(store._backend.scan())
        with pytest.raises(InvalidError, match="301 episode types, the most is 256"):
            memory.consolidate(Policy(plan))
        assert dict(store._backend.scan()) == before

    def test_what_is_no_policy_is_refused(self, memory: AgentMemory) -> None:
        memory.store_episode(note("a"))
        with pytest.raises(ProviderNotFoundError, match="no policy 'summaries'; installed are duplicates"):
            memory.consolidate("summaries")
        for given in (7, None, object(), Episode):
            with pytest.raises(InvalidError, match="policy is"):
                memory.consolidate(given)  # type: ignore[arg-type]
        for wrong in ({"dry_run": 1}, {"since": "today"}, {"progress": 7}):
            with pytest.raises(InvalidError, match=next(iter(wrong))):
                memory.consolidate(**wrong)


class TestUndo:
    def test_everything_is_as_it_was_but_for_the_traces_of_what_happened(self, store: Store, clock: Any) -> None:
        memory = store.agent_memory(AGENT)
        keyed, boosted, updated = note("keyed", 1), note("boosted", 2, relevance=0.25), note("updated", 3)
        memory.store_episode(keyed, idempotency_key="k")
        memory.store_episodes([boosted, updated, note("semantic", 4, memory_type="semantic")])
        memory.boost(boosted.id)
        memory.update_episode(updated.id, content={"text": "updated twice"})
        clock.forward(days=3)
        before = {episode.id: episode for episode in memory.episodes()}
        relevances = {id_: episode.relevance for id_, episode in before.items()}
        statistics = memory.get_statistics()
        result = memory.consolidate(Policy(all_in_one))
        assert texts(memory) == ["keyed boosted updated twice semantic"]
        receipt = memory.undo(undo_id(result))
        assert sorted(receipt.restored) == sorted(before)
        assert (receipt.removed, receipt.kept) == ([result.created[0].id], {})
        after = {episode.id: episode for episode in memory.episodes()}
        assert after == before
        assert {id_: episode.relevance for id_, episode in after.items()} == pytest.approx(relevances, rel=1e-9)
        told = memory.get_statistics()
        assert (told.total_episodes, told.episodes_by_type) == (statistics.total_episodes, statistics.episodes_by_type)
        assert told.avg_relevance == pytest.approx(statistics.avg_relevance, rel=1e-9)
        assert memory.store_episode(Episode(AGENT, "note", {"text": "keyed"}), idempotency_key="k") == keyed.id
        assert rows(store, Space.PLAN) == []

    def test_what_was_forgotten_comes_back_too(self, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(3)])
        memory.undo(undo_id(memory.consolidate(Policy(forget_all))))
        assert texts(memory) == ["0", "1", "2"]

    def test_it_can_be_done_again_after_an_undo_and_undone_again(self, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(3)])
        for _ in range(3):
            result = memory.consolidate(Policy(all_in_one))
            assert texts(memory) == ["0 1 2"]
            assert len(result.created) == 1
            memory.undo(undo_id(result))
            assert texts(memory) == ["0", "1", "2"]

    @pytest.mark.parametrize("how", ["changed", "pinned", "retired", "deleted"])
    def test_a_memory_that_was_made_and_has_changed_since_is_left_as_it_is(self, memory: AgentMemory, how: str) -> None:
        memory.store_episodes([note(number, number) for number in range(2)])
        result = memory.consolidate(Policy(all_in_one))
        made = result.created[0].id
        change: dict[str, Callable[[], Any]] = {
            "changed": lambda: memory.update_episode(made, content={"summary": "mended"}),
            "pinned": lambda: memory.pin(made),
            "retired": lambda: memory.invalidate(made),
            "deleted": lambda: memory.delete_episode(made),
        }
        change[how]()
        receipt = memory.undo(undo_id(result))
        assert receipt.kept == ({} if how == "deleted" else {made: how})
        assert len(receipt.restored) == 2
        left = {"changed": ["mended"], "pinned": ["0 1"]}.get(how, [])
        assert sorted(texts(memory)) == sorted(["0", "1", *left])

    def test_a_memory_that_was_read_since_is_taken_away_all_the_same(self, store: Store, clock: Any) -> None:
        memory = store.agent_memory(AGENT)
        memory.store_episodes([note(number, number) for number in range(2)])
        result = memory.consolidate(Policy(all_in_one))
        memory.boost(result.created[0].id)
        assert memory.undo(undo_id(result)).removed == [result.created[0].id]

    def test_of_two_on_top_of_each_other_either_may_be_undone_first(self, memory: AgentMemory) -> None:
        for first in (0, 1):
            memory.clear()
            memory.store_episodes([note(number, number) for number in range(4)])
            results = [memory.consolidate(Policy(by_pairs)), memory.consolidate(Policy(all_in_one))]
            assert len(memory.consolidations()) == 2
            receipts = {number: memory.undo(undo_id(results[number])) for number in (first, 1 - first)}
            assert len(receipts[0].restored) == 4
            # Undone in the order of their making, the memories of the first come back with the second.
            back = ["0 1", "2 3"] if first == 0 else []
            assert sorted(texts(memory)) == sorted(["0", "1", "2", "3", *back])
            assert memory.consolidations() == []

    def test_what_cannot_be_undone_is_not_found(self, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(2)])
        result = memory.consolidate(Policy(all_in_one))
        memory.undo(undo_id(result))
        ancient = Episode(AGENT, "note", {}, event_time=datetime(1, 1, 1, tzinfo=UTC)).id
        for unknown in (undo_id(result), note("x").id, ancient):
            with pytest.raises(NotFoundError, match=r"consolidations\(\) lists those that can"):
                memory.undo(unknown)
        with pytest.raises(InvalidError, match="not the id of a consolidation"):
            memory.undo("yesterday")

    def test_nobody_undoes_what_another_agent_did(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(2)])
        result = memory.consolidate(Policy(all_in_one))
        with pytest.raises(NotFoundError):
            store.agent_memory("bot:2").undo(undo_id(result))
        assert texts(memory) == ["0 1"]

    def test_an_undo_that_was_interrupted_is_gone_on_with(
        self, store: Store, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(consolidation, "REMOVED_AT_ONCE_MAX", 3)
        memory.store_episodes([note(number, number) for number in range(8)])
        result = memory.consolidate(Policy(by_pairs))
        assert len(rows(store, Space.PLAN)) == 4
        write, count = store._backend.write, 0

        def fail_once(batch: Any) -> None:
            nonlocal count
            count += 1
            if count == 2:
                raise InvalidError("interrupted")
            write(batch)

        monkeypatch.setattr(store._backend, "write", fail_once)
        with pytest.raises(InvalidError, match="interrupted"):
            memory.undo(undo_id(result))
        store._durability.failure = None  # the engine is sound: nothing was written
        assert len(memory.consolidations()) == 1
        memory.undo(undo_id(result))
        assert texts(memory) == [str(number) for number in range(8)]


class TestUndoData:
    def test_they_are_listed_the_newest_first(self, store: Store, clock: Any) -> None:
        memory = store.agent_memory(AGENT)
        assert memory.consolidations() == []
        memory.store_episodes([note(number, number) for number in range(5)])
        first = memory.consolidate(Policy(by_pairs, "test.first"))
        clock.forward(days=2)
        memory.store_episodes([note("a", 60), note("b", 61)])
        second = memory.consolidate(Policy(forget_all, "test.second"))
        newest, oldest = memory.consolidations()
        assert [newest.consolidation_id, oldest.consolidation_id] == [second.consolidation_id, first.consolidation_id]
        assert (oldest.policy, oldest.created, oldest.superseded, oldest.forgotten) == ("test.first", 2, 4, 0)
        assert (newest.policy, newest.created, newest.superseded, newest.forgotten) == ("test.second", 0, 0, 5)
        assert newest.consolidated_at - oldest.consolidated_at >= timedelta(days=2)
        assert newest.undo_until == newest.consolidated_at + timedelta(days=30) == second.undo_until

    def test_they_hold_no_text(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episodes([note(f"canary {number}", number) for number in range(3)])
        memory.consolidate(Policy(all_in_one))
        assert all(b"canary" not in value for _, value in rows(store, Space.PLAN))

    @pytest.mark.parametrize("how", ["delete", "purge"])
    def test_they_go_with_their_sources(self, store: Store, memory: AgentMemory, how: str) -> None:
        ids = memory.store_episodes([note(number, number) for number in range(3)])
        result = memory.consolidate(Policy(all_in_one))
        if how == "delete":
            assert memory.delete_episode(ids[0])
            ((key, value),) = rows(store, Space.PLAN)
            assert len(decode_undo(key, value).gone()) == 2
            assert memory.delete_episode(ids[1])
            assert memory.delete_episode(ids[2])
        else:
            memory.purge(datetime.now(UTC) + timedelta(days=1))
        assert rows(store, Space.PLAN) == []
        with pytest.raises(NotFoundError):
            memory.undo(undo_id(result))
        assert texts(memory) == ["0 1 2"]

    def test_what_was_deleted_since_stays_gone(self, memory: AgentMemory) -> None:
        ids = memory.store_episodes([note(number, number) for number in range(3)])
        result = memory.consolidate(Policy(all_in_one))
        memory.delete_episode(ids[1])
        assert sorted(memory.undo(undo_id(result)).restored) == [ids[0], ids[2]]
        assert texts(memory) == ["0", "2"]

    def test_they_name_no_more_what_the_same_memory_made_again_has_brought_back(self, memory: AgentMemory) -> None:
        memory.store_episodes([note("a", 1), note("b", 2), note("c", 3)])
        first = memory.consolidate(Policy(lambda episodes: all_in_one(episodes[:2])))
        second = memory.consolidate(Policy(forget_all))
        memory.undo(undo_id(first))
        assert texts(memory) == ["a", "b"]
        memory.consolidate(Policy(all_in_one))  # "a b" was forgotten, and is made of the same once more
        assert texts(memory) == ["a b"]
        assert [(each.superseded, each.forgotten) for each in memory.consolidations()] == [(2, 0), (0, 1)]
        memory.undo(undo_id(second))
        assert texts(memory) == ["a b", "c"]

    def test_they_go_with_the_agent(self, store: Store, memory: AgentMemory) -> None:
        memory.store_episodes([note(number, number) for number in range(3)])
        memory.consolidate(Policy(all_in_one))
        memory.clear()
        assert everything(store) == {}
        assert memory.consolidations() == []

    def test_they_end_after_undo_days_and_with_them_what_was_forgotten(self, store: Store, clock: Any) -> None:
        memory = store.agent_memory(AGENT)
        ids = memory.store_episodes([note(number, number) for number in range(4)])
        result = memory.consolidate(
            Policy(lambda each: Plan(supersede={each[0].id: each[1].id}, forget=[each[2].id])),
        )
        clock.forward(days=29.9)
        assert len(memory.consolidations()) == 1
        assert len(memory.history(ids[2])) == 1
        clock.forward(days=0.2)
        assert store._sweeper is not None
        before = store._sweeper.counters.undos_ended
        store._sweeper.end_undo()
        assert store._sweeper.counters.undos_ended == before + 1
        assert rows(store, Space.PLAN) == []
        assert memory.history(ids[2]) == []
        assert [version.superseded_by for version in memory.history(ids[0])] == [ids[1]]
        with pytest.raises(NotFoundError):
            memory.undo(undo_id(result))
        assert texts(memory) == ["1", "3"]

    @pytest.mark.parametrize("verb", ["consolidate", "undo", "consolidations"])
    def test_each_verb_ends_what_is_over(self, store: Store, clock: Any, verb: str) -> None:
        memory = store.agent_memory(AGENT)
        memory.store_episodes([note(number, number) for number in range(2)])
        result = memory.consolidate(Policy(forget_all))
        clock.forward(days=31)
        if verb == "undo":
            with pytest.raises(NotFoundError):
                memory.undo(undo_id(result))
        elif verb == "consolidate":
            memory.consolidate(Policy(forget_all))
        else:
            assert memory.consolidations() == []
        assert everything(store) == {}

    def test_a_store_that_takes_no_writes_lists_what_is_not_over(
        self, store: Store, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = store.agent_memory(AGENT)
        for _ in range(2):
            memory.store_episodes([note(number, number) for number in range(2)])
            memory.consolidate(Policy(forget_all))
            clock.forward(days=20)
        monkeypatch.setattr(store._durability, "failure", ReadOnlyError("no writes"))
        assert len(memory.consolidations()) == 1

    def test_without_undo_days_there_are_none(self) -> None:
        settings = Settings(memory=MemorySettings(undo_days=0), search=SearchSettings(indexing="off"))
        with open_store(settings, backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            memory.store_episodes([note(number, number) for number in range(3)])
            result = memory.consolidate(Policy(forget_all))
            assert result.forgotten
            assert everything(store) == {}
            assert store.verify().problems == []

    def test_without_history_what_was_superseded_goes_with_them(self) -> None:
        with open_store(Settings(memory=MemorySettings(keep_history=False, undo_days=0)), backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            memory.store_episodes([note(f"canary {number}", number) for number in range(3)])
            memory.consolidate(Policy(keep_last))
            assert rows(store, Space.HISTORY) == rows(store, Space.PLAN) == []
            assert texts(memory) == ["canary 2"]
            assert store.verify().problems == []

    def test_without_history_it_can_be_undone_too(self) -> None:
        with open_store(Settings(memory=MemorySettings(keep_history=False)), backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            memory.store_episodes([note(number, number) for number in range(3)])
            for _ in range(2):
                result = memory.consolidate(Policy(all_in_one))
                assert texts(memory) == ["0 1 2"]
                assert store.verify().problems == []
                memory.undo(undo_id(result))
                assert texts(memory) == ["0", "1", "2"]
                assert store.verify().problems == []


class TestSchedule:
    def scheduled(self, **given: Any) -> Settings:
        return Settings(memory=MemorySettings(consolidation_interval_hours=0.0001, **given))

    def test_by_default_nobody_does_it(self) -> None:
        with open_store(backend="ephemeral") as store:
            assert store._schedule is not None
            assert not store._schedule._periodic._thread.is_alive()
            assert store.stats()["consolidation"] == {
                "rounds": 0,
                "created": 0,
                "superseded": 0,
                "forgotten": 0,
                "dropped": 0,
                "errors": 0,
                "last_round_ms": 0.0,
            }

    def test_a_thread_does_it_for_every_agent_and_counts(self) -> None:
        with open_store(self.scheduled(), backend="ephemeral") as store:
            for agent in ("a", "b"):
                store.agent_memory(agent).store_episodes(
                    [Episode.observation(agent, text) for text in ("Order 7 is sent.", "order 7 is sent")]
                )
            wait_until(lambda: store.stats()["consolidation"]["superseded"] == 2)  # type: ignore[index,call-overload]
            assert [len(store.agent_memory(agent).consolidations()) for agent in ("a", "b")] == [1, 1]
            assert store.verify().problems == []

    def test_it_goes_on_where_a_policy_fails_for_one_agent(self, caplog: pytest.LogCaptureFixture) -> None:
        class Plugin:
            @hookimpl
            def qilbee_register_policies(self) -> list[Provider[ConsolidationPolicy]]:
                return [Provider("acme.picky", lambda: Policy(picky, "acme.picky"))]

        def picky(episodes: Sequence[Episode]) -> Plan:
            return Plan(forget=["?"]) if episodes[0].agent_id == "a" else forget_all(episodes)

        given = self.scheduled(consolidation_policy="acme.picky")
        with (
            caplog.at_level(logging.ERROR, "qilbee_core"),
            open_store(given, backend="ephemeral", plugins=load_plugins(extra=[Plugin()])) as store,
        ):
            for agent in ("a", "b"):
                store.agent_memory(agent).store_episode(Episode.observation(agent, "x"))
            wait_until(lambda: store.stats()["consolidation"]["forgotten"] == 1)  # type: ignore[index,call-overload]
            wait_until(lambda: store.stats()["consolidation"]["errors"] > 0)  # type: ignore[index,call-overload,operator]
        assert "consolidation of agent 'a': policy 'acme.picky' broke its contract" in caplog.text

    def test_a_policy_that_is_not_installed_is_told_when_the_store_is_opened(self, tmp_path: Any) -> None:
        with pytest.raises(ProviderNotFoundError, match="no policy 'summaries'"):
            open_store(self.scheduled(consolidation_policy="summaries"), data_path=tmp_path / "data")
        assert list(tmp_path.iterdir()) == []

    def test_a_close_does_not_wait_for_ever_for_a_policy_that_thinks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedule, "_CLOSE_S_MAX", 0.05)
        thinking, go_on = threading.Event(), threading.Event()

        def think(episodes: Sequence[Episode]) -> Plan:
            thinking.set()
            assert go_on.wait(60)
            return forget_all(episodes)

        class Plugin:
            @hookimpl
            def qilbee_register_policies(self) -> list[Provider[ConsolidationPolicy]]:
                return [Provider("acme.slow", lambda: Policy(think, "acme.slow"))]

        plugins = load_plugins(extra=[Plugin()])
        store = open_store(self.scheduled(consolidation_policy="acme.slow"), backend="ephemeral", plugins=plugins)
        store.agent_memory(AGENT).store_episode(note("a"))
        assert thinking.wait(60)
        store.close()
        go_on.set()
        assert store._schedule is not None
        store._schedule._periodic._thread.join(60)
        assert not store._schedule._periodic._thread.is_alive()
        assert store._schedule.counters.forgotten == 0


class TestSettingsAndObservers:
    def test_a_policy_gets_the_settings_of_its_table(self) -> None:
        given = MemorySettings(policies={"sessions": {"ratio": 0.5}, "duplicates": {"ignore_metadata": ["n"]}})
        with open_store(Settings(memory=given), backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            said = ["Order 7 is sent.", "order 7 is sent"]
            memory.store_episodes(
                [Episode.observation(AGENT, text, metadata={"n": number}) for number, text in enumerate(said)]
            )
            assert len(memory.consolidate().superseded) == 1

    def test_a_setting_that_the_policy_has_not_is_refused(self) -> None:
        given = MemorySettings(policies={"sessions": {"ration": 0.5}})
        with open_store(Settings(memory=given), backend="ephemeral") as store:
            memory = store.agent_memory(AGENT)
            memory.store_episode(note("a"))
            with pytest.raises(SettingsError, match="policy 'sessions' has no setting 'ration'"):
                memory.consolidate("sessions")

    def test_a_policy_of_a_plugin_is_called_by_its_name(self) -> None:
        class Plugin:
            @hookimpl
            def qilbee_register_policies(self) -> list[Provider[ConsolidationPolicy]]:
                return [Provider("acme.forget", lambda: Policy(forget_all, "acme.forget"))]

        with open_store(backend="ephemeral", plugins=load_plugins(extra=[Plugin()])) as store:
            memory = store.agent_memory(AGENT)
            memory.store_episode(note("a"))
            assert len(memory.consolidate("acme.forget").forgotten) == 1

    def test_observers_are_told_after_the_commit_and_cannot_stop_it(self, caplog: pytest.LogCaptureFixture) -> None:
        class Observer:
            def __init__(self) -> None:
                self.told: list[Any] = []

            @hookimpl
            def qilbee_memory_consolidated(self, agent_id: str, result: ConsolidationResult) -> None:
                self.told.append((agent_id, result, texts(store.agent_memory(AGENT))))

            @hookimpl
            def qilbee_episodes_stored(self, episodes: Sequence[Episode]) -> None:
                self.told.append([text_of(episode) for episode in episodes])

        class Broken:
            @hookimpl
            def qilbee_memory_consolidated(self) -> None:
                raise RuntimeError("no")

        observer = Observer()
        with open_store(backend="ephemeral", plugins=load_plugins(extra=[observer, Broken()])) as store:
            memory = store.agent_memory(AGENT)
            memory.store_episodes([note("a", 1), note("b", 2)])
            observer.told.clear()
            with caplog.at_level(logging.ERROR, "qilbee_core"):
                result = memory.consolidate(Policy(all_in_one))
                memory.consolidate(Policy(all_in_one), dry_run=True)
                memory.consolidate(Policy(lambda episodes: Plan()))
            assert observer.told == [["a b"], (AGENT, result, ["a b"])]
            assert [
                record.getMessage() for record in caplog.records if "qilbee_memory_consolidated" in record.getMessage()
            ]

    def test_tasks_may_do_it_too(self) -> None:
        async def run() -> list[object]:
            with open_store(backend="ephemeral") as store:
                face = AsyncStore(store)
                memory = face.agent_memory(AGENT)
                await memory.store_episodes([note("a", 1), note("b", 2)])
                result = await memory.consolidate(Policy(all_in_one))
                listed = await memory.consolidations()
                receipt = await memory.undo(listed[0].consolidation_id)
                await face.close()
                return [result.consolidation_id == listed[0].consolidation_id, len(receipt.restored)]

        assert asyncio.run(run()) == [True, 2]

    def test_a_store_that_was_opened_read_only_refuses_it(self, open_here: Callable[..., Store], engine: str) -> None:
        if engine != "rocksdb":
            pytest.skip("it cannot be opened read-only")
        store = open_here()
        store.agent_memory(AGENT).store_episodes([note("a", 1), note("b", 2)])
        result = store.agent_memory(AGENT).consolidate(Policy(all_in_one))
        store.agent_memory(AGENT).store_episodes([note("c", 3), note("d", 4)])
        store.close()
        memory = open_here(read_only=True).agent_memory(AGENT)
        assert len(memory.consolidate(Policy(all_in_one), dry_run=True).superseded) == 3
        assert len(memory.consolidations()) == 1
        for verb in (lambda: memory.consolidate(Policy(all_in_one)), lambda: memory.undo(undo_id(result))):
            with pytest.raises(ReadOnlyError):
                verb()
