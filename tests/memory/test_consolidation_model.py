"""Random programs of stores, changes, consolidations, undos and crashes, against plain dictionaries."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from qilbee_core import (
    AgentMemory,
    ConsolidationResult,
    Episode,
    NotFoundError,
    Plan,
    Store,
    derived_episode,
    open_store,
)

RAM_DISK = Path("/dev/shm")
AGENT = "bot"
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
UNDO_DAYS = 30

numbers = st.integers(0, 30)


def text_of(episode: Episode) -> str:
    return str(episode.content["text"])


def joined(episodes: Sequence[Episode]) -> Plan:
    if not episodes:
        return Plan()
    made = derived_episode("test", episodes, "summary", {"text": "+".join(map(text_of, episodes))[:200]})
    return Plan(create=[made], supersede={episode.id: made.id for episode in episodes})


def joined_by_threes(episodes: Sequence[Episode]) -> Plan:
    plans = [joined(episodes[at : at + 3]) for at in range(0, len(episodes), 3)]
    return Plan(
        create=[made for plan in plans for made in plan.create],
        supersede={source: made for plan in plans for source, made in plan.supersede.items()},
    )


def first_stays(episodes: Sequence[Episode]) -> Plan:
    return Plan(supersede={episode.id: episodes[0].id for episode in episodes[1:]})


def odd_ones_go(episodes: Sequence[Episode]) -> Plan:
    return Plan(forget=[episode.id for episode in episodes[1::2]])


def only_more(episodes: Sequence[Episode]) -> Plan:
    return Plan(create=joined(episodes[:2]).create)


PLANS: list[Callable[[Sequence[Episode]], Plan]] = [joined, joined_by_threes, first_stays, odd_ones_go, only_more]


class EndedError(Exception):
    """The process is about to die."""


class Policy:
    name = "test"

    def __init__(self, plan: Callable[[Sequence[Episode]], Plan], meanwhile: Callable[[], object]) -> None:
        self._plan = plan
        self._meanwhile = meanwhile
        self.offered: dict[str, str] = {}
        self.planned = Plan()

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        self.offered = {episode.id: text_of(episode) for episode in episodes}
        self.planned = self._plan(episodes)
        self._meanwhile()
        return self.planned


class Done:
    """What the model remembers of a consolidation."""

    def __init__(self, at_us: int) -> None:
        self.at_us = at_us
        self.created: set[str] = set()
        self.gone: dict[str, str] = {}
        self.forgotten: set[str] = set()


class ConsolidationMachine(RuleBasedStateMachine):
    engine = ""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 1_800_000_000_000_000
        self.directory = Path(tempfile.mkdtemp())
        self.live: dict[str, str] = {}
        self.pinned: set[str] = set()
        self.retired: dict[str, str] = {}
        self.touched: set[str] = set()
        """Episodes that were updated since they were stored or made."""
        self.done: dict[str, Done] = {}
        self.drawn = 0
        self.store = self.open()

    def open(self) -> Store:
        store = open_store(self.directory / "data", backend=self.engine, durability="async")
        store._context.clock_ns = lambda: self.now_us * 1000
        return store

    @property
    def memory(self) -> AgentMemory:
        return self.store.agent_memory(AGENT)

    def pick(self, number: int, ids: Sequence[str] | None = None) -> str | None:
        known = sorted(self.live if ids is None else ids)
        return known[number % len(known)] if known else None

    # What programs do

    @rule(count=st.integers(1, 5), minute=st.integers(0, 5))
    def store_some(self, count: int, minute: int) -> None:
        for _ in range(count):
            self.drawn += 1
            moment = NOON + timedelta(minutes=minute)
            episode = Episode(AGENT, "note", {"text": str(self.drawn)}, event_time=moment)
            self.live[self.memory.store_episode(episode)] = str(self.drawn)

    @rule(number=numbers)
    def update(self, number: int) -> None:
        id_ = self.pick(number)
        if id_ is not None:
            self.drawn += 1
            self.memory.update_episode(id_, content={"text": str(self.drawn)})
            self.live[id_] = str(self.drawn)
            self.touched.add(id_)

    @rule(number=numbers, retired=st.booleans())
    def delete(self, number: int, retired: bool) -> None:
        id_ = self.pick(number, list(self.retired if retired else self.live))
        if id_ is None:
            return
        self.memory.delete_episode(id_)
        self.live.pop(id_, None)
        self.pinned.discard(id_)
        if self.retired.pop(id_, None) is not None:
            self.forget_in_undo(id_)

    def forget_in_undo(self, id_: str) -> None:
        for key, done in list(self.done.items()):
            if done.gone.pop(id_, None) is not None and not done.gone:
                del self.done[key]

    @rule(number=numbers, pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        id_ = self.pick(number)
        if id_ is not None:
            (self.memory.pin if pinned else self.memory.unpin)(id_)
            (self.pinned.add if pinned else self.pinned.discard)(id_)

    @rule(number=numbers)
    def invalidate(self, number: int) -> None:
        id_ = self.pick(number)
        if id_ is not None:
            assert self.memory.invalidate(id_)
            self.retire(id_)

    def retire(self, id_: str) -> None:
        self.retired[id_] = self.live.pop(id_)
        self.pinned.discard(id_)

    @rule(number=numbers)
    def clear(self, number: int) -> None:
        if number % 8 == 0:
            self.memory.clear()
            for known in (self.live, self.pinned, self.retired, self.touched, self.done):
                known.clear()

    @rule(days=st.sampled_from([1, 20, 31]))
    def time_goes_by(self, days: int) -> None:
        # And a second: times of transactions run ahead of a clock that stands still.
        self.now_us += days * 86_400_000_000 + 1_000_000

    # Consolidation

    def end_undo(self) -> None:
        for key, done in list(self.done.items()):
            if done.at_us + UNDO_DAYS * 86_400_000_000 <= self.now_us:
                for id_ in done.forgotten & done.gone.keys():
                    self.retired.pop(id_, None)
                del self.done[key]

    @rule(
        plan=st.sampled_from(PLANS),
        meanwhile=st.sampled_from(["", "", "update", "delete", "pin", "store", "invalidate"]),
        number=numbers,
        dry_run=st.sampled_from([False, False, True]),
        crash=st.sampled_from([False, False, True]),
    )
    def consolidate(
        self, plan: Callable[[Sequence[Episode]], Plan], meanwhile: str, number: int, dry_run: bool, crash: bool
    ) -> None:
        changed: set[str] = set()
        newly_pinned: set[str] = set()

        def change() -> None:
            before, was_pinned = dict(self.live), set(self.pinned)
            do: dict[str, Callable[[], None]] = {
                "update": lambda: self.update(number),
                "delete": lambda: self.delete(number, retired=False),
                "pin": lambda: self.pin(number, pinned=True),
                "store": lambda: self.store_some(1, 0),
                "invalidate": lambda: self.invalidate(number),
            }
            if meanwhile:
                do[meanwhile]()
            changed.update(id_ for id_ in before if self.live.get(id_) != before[id_])
            newly_pinned.update(self.pinned - was_pinned)

        if not dry_run:
            self.end_undo()
        policy = Policy(plan, change)
        offered = {id_: text for id_, text in self.live.items() if id_ not in self.pinned}
        if crash and not dry_run:
            policy = Policy(plan, lambda: None)
            self.crash_in(lambda: self.memory.consolidate(policy))
            return
        result = self.memory.consolidate(policy, dry_run=dry_run)
        assert policy.offered == offered
        assert result.offered == len(offered)
        if dry_run:
            assert (result.superseded, result.created) == (policy.planned.supersede, list(policy.planned.create))
            return
        self.carried_out(policy.planned, changed, newly_pinned, result)

    def carried_out(
        self, planned: Plan, changed: set[str], newly_pinned: set[str], result: ConsolidationResult
    ) -> None:
        created = {episode.id: episode for episode in planned.create}
        groups: dict[str, set[str]] = {}  # what goes together, by what takes its place, or else one by one
        for source, survivor in planned.supersede.items():
            groups.setdefault(survivor if survivor in created else source, set()).add(source)
        for id_ in created:
            groups.setdefault(id_, set()).update(created[id_].metadata["sources"])  # type: ignore[arg-type]
        done = Done(self.now_us)
        expected_created: set[str] = set()
        for name, members in groups.items():
            survivors = {planned.supersede[id_] for id_ in members if id_ in planned.supersede} - created.keys()
            if (members | survivors) & changed or members & planned.supersede.keys() & newly_pinned:
                continue
            if name in created and name not in self.live:
                expected_created.add(name)
                if name in self.retired:
                    self.forget_in_undo(name)
                else:
                    self.touched.discard(name)
                self.live[name] = self.retired.pop(name, text_of(created[name]))
            for id_ in members & planned.supersede.keys():
                done.gone[id_] = self.live[id_]
                self.retire(id_)
        for id_ in planned.forget:
            if id_ not in changed | newly_pinned:
                done.gone[id_] = self.live[id_]
                done.forgotten.add(id_)
                self.retire(id_)
        done.created = expected_created
        assert {episode.id for episode in result.created} == expected_created
        assert result.superseded.keys() | set(result.forgotten) == done.gone.keys()
        assert set(result.dropped) >= (planned.supersede.keys() | set(planned.forget)) - done.gone.keys()
        assert not result.dropped.keys() & done.gone.keys()
        if done.gone or done.created:
            assert result.consolidation_id is not None
            self.done[result.consolidation_id] = done
        else:
            assert result.consolidation_id is None

    @rule(number=numbers, crash=st.sampled_from([False, False, True]))
    def undo(self, number: int, crash: bool) -> None:
        self.end_undo()
        assert [each.consolidation_id for each in self.memory.consolidations()] == sorted(self.done, reverse=True)
        id_ = self.pick(number, list(self.done))
        if id_ is None:
            with pytest.raises(NotFoundError):
                self.memory.undo(Episode(AGENT, "note", {}).id)
            return
        if crash:
            self.crash_in(lambda: self.memory.undo(id_))
            return
        receipt = self.memory.undo(id_)
        done = self.done.pop(id_)
        kept = {}
        for made in done.created:
            if made in self.retired:
                kept[made] = "retired"
            elif made not in self.live:
                continue  # it was deleted meanwhile
            elif made in self.touched:
                kept[made] = "changed"
            elif made in self.pinned:
                kept[made] = "pinned"
            else:
                self.retire(made)
        restored = set()
        for gone, text in done.gone.items():
            restored.add(gone)
            self.live[gone] = text
            del self.retired[gone]
        assert set(receipt.restored) == restored
        assert receipt.kept == kept
        with pytest.raises(NotFoundError):
            self.memory.undo(id_)

    def crash_in(self, verb: Callable[[], object]) -> None:
        """Do it, with an end before anything of it is written; where there are files, open the store again."""
        write = self.store._backend.write
        self.store._backend.write = self.end  # type: ignore[method-assign]
        with suppress(EndedError):
            verb()
        self.store._backend.write = write  # type: ignore[method-assign]
        self.store._durability.failure = None
        if self.engine != "ephemeral":
            self.store.close()
            self.store = self.open()

    @staticmethod
    def end(batch: object) -> None:
        raise EndedError

    # What can be seen

    @rule()
    def look(self) -> None:
        assert {episode.id: text_of(episode) for episode in self.memory.episodes()} == self.live
        assert {episode.id for episode in self.memory.get_recent_episodes(1000)} == self.live.keys()
        assert {episode.id for episode in self.memory.episodes() if episode.pinned} == self.pinned
        assert self.memory.get_statistics().total_episodes == len(self.live)
        for id_ in self.retired:
            assert self.memory.get_episode(id_) is None
            assert text_of(self.memory.history(id_)[-1]) == self.retired[id_]

    @precondition(lambda self: self.engine != "ephemeral")
    @rule()
    def close_and_open_again(self) -> None:
        self.store.close()
        self.store = self.open()

    @rule()
    def verify_or_repair(self) -> None:
        assert self.store.verify().problems == []
        if self.drawn % 5 == 0:
            assert self.store.repair().after.problems == []

    def teardown(self) -> None:
        try:
            self.look()
            assert self.store.verify().problems == []
        finally:
            self.store.close()
            shutil.rmtree(self.directory)


@pytest.fixture(autouse=True)
def directories_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(dir=RAM_DISK if RAM_DISK.is_dir() else tmp_path, prefix="qilbee-model-") as own:
        monkeypatch.setattr(tempfile, "tempdir", own)
        yield


def test_consolidations_and_undos_do_what_their_model_does(
    engine: str, monkeypatch: pytest.MonkeyPatch, no_settings_of_the_user: None
) -> None:
    monkeypatch.setenv("QILBEE_MEMORY_REINFORCEMENT_SHARE", "0")
    machine: Any = type("Machine", (ConsolidationMachine,), {"engine": engine})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=30))


_CONSOLIDATE = """
import sys
from qilbee_core import open_store
from qilbee_core.memory import consolidation
from test_consolidation_model import Policy, joined_by_threes

consolidation.REMOVED_AT_ONCE_MAX = 12

def tell(done):
    print(done, flush=True)
    told.append(done)
    if len(told) == int(sys.argv[3]):  # so that it is killed before it is done, however late
        sys.stdin.read()


told = []
with open_store(sys.argv[1], backend=sys.argv[2]) as store:
    policy = Policy(lambda episodes: joined_by_threes([e for e in episodes if e.episode_type == "note"]), lambda: None)
    store.agent_memory("bot").consolidate(policy, progress=tell)
"""


@pytest.mark.parametrize("backend", ["rocksdb", "leveldb"])
def test_a_killed_consolidation_leaves_whole_groups_and_is_gone_on_with(tmp_path: Path, backend: str) -> None:
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[backend])
    path, count = tmp_path / "data", 600
    with open_store(path, backend=backend) as store:
        notes = [Episode(AGENT, "note", {"text": str(number)}, event_time=NOON) for number in range(count)]
        store.agent_memory(AGENT).store_episodes(notes)
    interrupted = 0
    for round_ in range(3):
        command = [sys.executable, "-c", _CONSOLIDATE, str(path), backend, str(10 + round_)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdout is not None
            for _ in range(5 + round_):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        with open_store(path, backend=backend) as store:
            memory = store.agent_memory(AGENT)
            assert store.verify().problems == []
            told = [text for episode in memory.episodes() for text in text_of(episode).split("+")]
            assert sorted(told, key=int) == [str(number) for number in range(count)]
            sizes = {text_of(episode).count("+") for episode in memory.episodes() if episode.episode_type == "summary"}
            assert sizes == {2}
            interrupted = sum(episode.episode_type == "note" for episode in memory.episodes())
            assert len(memory.consolidations()) == round_ + 1
    assert interrupted
    with open_store(path, backend=backend) as store:
        memory = store.agent_memory(AGENT)
        for each in memory.consolidations():
            memory.undo(each.consolidation_id)
        assert [text_of(episode) for episode in memory.episodes()] == [str(number) for number in range(count)]
        assert store.verify().problems == []
