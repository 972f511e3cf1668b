"""Random lives of episodes against a plain list of versions: whatever is asked as of whatever time, after any crash."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from qilbee_core import (
    ConflictError,
    Episode,
    MemorySettings,
    NotFoundError,
    Operation,
    SearchSettings,
    Settings,
    Store,
    open_store,
)
from qilbee_core.ids import parse_id
from qilbee_core.memory.commit import Touched
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind

RAM_DISK = Path("/dev/shm")
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
A_MOMENT = timedelta(microseconds=1)
AGENT = "bot"

minutes = st.integers(-5, 5)
numbers = st.integers(0, 60)
texts = st.sampled_from(["tea", "oak tea", "ink", "", "tea " * 200])
kinds = st.sampled_from(["note", "other"])


class Version(NamedTuple):
    """What the model knows of a version; ``until`` is NEVER while it is current."""

    text: str
    kind: str
    since: datetime
    until: datetime
    superseded_by: str | None = None


def seen(episode: Episode) -> Version:
    assert episode.transaction_time is not None
    return Version(
        str(episode.content["text"]),
        episode.episode_type,
        episode.transaction_time,
        episode.ended_at or NEVER,
        episode.superseded_by,
    )


class TimeMachine(RuleBasedStateMachine):
    """The memory of one agent; what is done to it is done to ``lives``, and each answer is compared."""

    engine = ""
    keeps = True

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2027, 1, 1, tzinfo=UTC)
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "data"
        self.opened = 0
        self.lives: dict[str, list[Version]] = {}
        self.first: dict[str, Episode] = {}
        self.expires: dict[str, datetime] = {}
        self.pinned: set[str] = set()
        self.marks: dict[str, str] = {}
        self.moments = [self.now - A_MOMENT]
        self.store = self.open()

    def open(self) -> Store:
        chosen = Settings(
            memory=MemorySettings(keep_history=self.keeps, reinforcement_share=0.0),
            search=SearchSettings(indexing="inline"),
        )
        store = open_store(chosen, data_path=self.path, backend=self.engine, durability="async")
        store._context.clock_ns = lambda: (self.now - datetime(1970, 1, 1, tzinfo=UTC)) // A_MOMENT * 1000
        self.memory = store.agent_memory(AGENT)
        return store

    # What the model knows

    def is_there(self, id_: str) -> bool:
        return id_ in self.lives and self.lives[id_][-1].until == NEVER

    def pick(self, number: int, *, retired: bool = False) -> str | None:
        ids = sorted(id_ for id_ in self.lives if self.is_there(id_) is not retired)
        return ids[number % len(ids)] if ids else None

    def moment(self, number: int) -> datetime:
        """A moment at which something happened, or just before or after one, or now, or one to come."""
        moments = [*self.moments, self.now, self.now + timedelta(hours=5)]
        return moments[number % len(moments)] + (number % 3 - 1) * A_MOMENT

    def happened(self, moment: datetime | None) -> datetime:
        """Transaction times strictly rise."""
        assert moment is not None
        assert moment > self.moments[-1]
        self.moments.append(moment)
        return moment

    def as_of(self, moment: datetime) -> dict[str, Version]:
        """By id, in their order, all that was current then; what has expired since or will have by then is not."""
        known = {}
        for id_ in sorted(self.lives):
            if id_ not in self.pinned and self.expires[id_] <= max(moment, self.now):
                continue
            for version in self.lives[id_]:
                if version.since <= moment < version.until:
                    known[id_] = version
        return known

    def lose(self, id_: str) -> None:
        del self.lives[id_], self.first[id_], self.expires[id_]
        self.pinned.discard(id_)
        self.marks = {key: marked for key, marked in self.marks.items() if marked != id_}

    def end(self, id_: str, moment: datetime, superseded_by: str | None = None) -> None:
        self.lives[id_][-1] = self.lives[id_][-1]._replace(until=moment, superseded_by=superseded_by)

    # What is done

    @rule(minute=minutes, text=texts, kind=kinds, hours=st.none() | st.sampled_from([1, 48]), key=st.none() | kinds)
    def store_one(self, minute: int, text: str, kind: str, hours: int | None, key: str | None) -> None:
        expires_at = None if hours is None else self.now + timedelta(hours=hours)
        at = NOON + timedelta(minutes=minute)
        episode = Episode(AGENT, kind, {"text": text}, event_time=at, expires_at=expires_at)
        marked = self.marks.get(key or "")
        if marked is not None and (self.first[marked].content, self.first[marked].episode_type) != (
            {"text": text},
            kind,
        ):
            with pytest.raises(ConflictError):
                self.memory.store_episode(episode, idempotency_key=key)
            return
        stored_id = self.memory.store_episode(episode, idempotency_key=key)
        if marked is not None:
            assert stored_id == marked  # also where that is retired, and stays so
            return
        self.remember(episode)
        if key is not None:
            self.marks[key] = stored_id

    @rule(minute=minutes, texts_=st.lists(texts, max_size=6))
    def store_many(self, minute: int, texts_: list[str]) -> None:
        times = [NOON + timedelta(minutes=minute, seconds=-number) for number in range(len(texts_))]
        episodes = [
            Episode(AGENT, "note", {"text": text}, event_time=at) for text, at in zip(texts_, times, strict=True)
        ]
        self.memory.store_episodes(episodes)
        recorded = {self.remember(episode, happened=False) for episode in episodes}
        assert len(recorded) == (1 if episodes else 0)
        if recorded:
            self.happened(recorded.pop())

    def remember(self, episode: Episode, *, happened: bool = True) -> datetime:
        stored = self.memory.get_episode(episode.id)
        assert stored is not None
        assert stored.transaction_time is not None
        if happened:
            self.happened(stored.transaction_time)
        self.lives[episode.id] = [
            Version(str(episode.content["text"]), episode.episode_type, stored.transaction_time, NEVER)
        ]
        self.first[episode.id] = episode
        self.expires[episode.id] = episode.expires_at or NEVER
        return stored.transaction_time

    @rule(number=numbers, retired=st.booleans(), other=st.booleans())
    def store_again(self, number: int, retired: bool, other: bool) -> None:
        id_ = self.pick(number, retired=retired)
        if id_ is None:
            return
        first = self.first[id_]
        content = {"text": "another"} if other else first.content
        again = Episode(AGENT, first.episode_type, content, id=id_)
        if other:
            with pytest.raises(ConflictError):
                self.memory.store_episode(again)
        else:
            assert self.memory.store_episode(again) == id_
        assert (self.memory.get_episode(id_) is None) is retired

    @rule(number=numbers, text=texts, kind=kinds)
    def update(self, number: int, text: str, kind: str) -> None:
        id_ = self.pick(number)
        if id_ is None:
            return
        now = self.memory.update_episode(id_, content={"text": text}, episode_type=kind)
        last = self.lives[id_][-1]
        if (last.text, last.kind) == (text, kind):
            assert now.transaction_time == last.since
            return
        moment = self.happened(now.transaction_time)
        self.end(id_, moment)
        self.lives[id_].append(Version(text, kind, moment, NEVER))
        if not self.keeps:
            del self.lives[id_][:-1]

    @rule(number=numbers, retired=st.booleans())
    def invalidate(self, number: int, retired: bool) -> None:
        id_ = self.pick(number, retired=retired)
        if id_ is None:
            return
        assert self.memory.invalidate(id_) is not retired
        if retired:
            return
        if self.keeps:
            self.end(id_, self.happened(self.memory.history(id_)[-1].ended_at))
        else:
            self.lose(id_)
        with pytest.raises(NotFoundError):
            self.memory.update_episode(id_, content={})

    @rule(number=numbers, other=numbers)
    def supersede(self, number: int, other: int) -> None:
        """As a consolidation does: several give way to one that stays, in one batch."""
        survivor = self.pick(other)
        gone = {self.pick(number), self.pick(number + 1)} - {survivor, None}
        operations = self.store._operations(AGENT)

        def plan(head: Head, batch: list[Operation]) -> tuple[None, Touched]:
            touched: Touched = {}
            for id_ in sorted(filter(None, gone)):
                found = operations._find(parse_id(id_))
                assert found is not None
                operations._retire(head, batch, found, parse_id(survivor or ""))
                touched[found.id_bytes] = None
            return None, touched

        operations._commit(ChangeKind.RETIRE, plan)
        ends = {self.memory.history(id_)[-1].ended_at for id_ in gone if id_}
        if ends:
            (moment,) = ends
            self.happened(moment)
            for id_ in gone:
                assert id_ is not None
                self.end(id_, self.moments[-1], survivor)

    @rule(number=numbers)
    def put_back(self, number: int) -> None:
        id_ = self.pick(number, retired=True)
        if id_ is None:
            return
        operations = self.store._operations(AGENT)

        def plan(head: Head, batch: list[Operation]) -> tuple[None, Touched]:
            found = operations._find_kept(parse_id(id_))
            assert found is not None
            value = operations._put_back(head, batch, found)
            assert value is not None
            return None, {parse_id(id_): value}

        operations._commit(ChangeKind.RETIRE, plan)
        now = self.memory.get_episode(id_)
        assert now is not None
        assert now.pinned is (id_ in self.pinned)
        last = self.lives[id_][-1]
        self.lives[id_].append(Version(last.text, last.kind, self.happened(now.transaction_time), NEVER))
        if not self.keeps:
            del self.lives[id_][:-1]

    @rule(number=numbers, retired=st.booleans())
    def delete(self, number: int, retired: bool) -> None:
        id_ = self.pick(number, retired=retired)
        if id_ is not None:
            assert self.memory.delete_episode(id_)
            assert not self.memory.delete_episode(id_)
            self.lose(id_)

    @rule(number=numbers, pinned=st.booleans())
    def pin_or_boost(self, number: int, pinned: bool) -> None:
        id_ = self.pick(number)
        if id_ is None:
            return
        if pinned:
            self.memory.pin(id_)
            self.pinned.add(id_)
        else:
            self.memory.unpin(id_)
            self.pinned.discard(id_)
            if self.expires[id_] <= self.now:
                self.lose(id_)
            else:
                self.memory.boost(id_)

    @rule(number=numbers)
    def purge(self, number: int) -> None:
        before = self.moment(number)
        gone = {id_: [each for each in life if each.until < before] for id_, life in self.lives.items()}
        receipt = self.memory.purge(before)
        assert receipt.versions == sum(map(len, gone.values()))
        whole = [id_ for id_, versions in gone.items() if len(versions) == len(self.lives[id_])]
        assert receipt.episodes == len(whole)
        for id_, versions in gone.items():
            del self.lives[id_][: len(versions)]
        for id_ in whole:
            self.lose(id_)

    @rule(number=numbers)
    def clear(self, number: int) -> None:
        if number % 8 == 0:
            self.memory.clear()
            self.now = max(self.now, self.moments[-1] + A_MOMENT)  # transaction times begin anew
            for id_ in list(self.lives):
                self.lose(id_)

    @rule(hours=st.sampled_from([0, 1, 24]))
    def time_goes_by(self, hours: int) -> None:
        self.now += timedelta(hours=hours, milliseconds=1)
        for id_ in list(self.lives):
            if id_ not in self.pinned and self.expires[id_] <= self.now:
                self.lose(id_)

    # What is asked

    @rule(number=numbers)
    def ask_as_of(self, number: int) -> None:
        moment = self.moment(number)
        known = self.as_of(moment)
        ids = [*self.lives, Episode(AGENT, "note", {}).id]
        told = self.memory.get_episodes(ids, as_of=moment)
        assert [episode and seen(episode) for episode in told] == [known.get(id_) for id_ in ids]
        for id_ in ids[::5]:
            one = self.memory.get_episode(id_, as_of=moment)
            assert (one and seen(one)) == known.get(id_)
        for reverse in (False, True):
            episodes = list(self.memory.episodes(reverse=reverse, as_of=moment))
            assert {episode.id: seen(episode) for episode in episodes} == known
            assert [episode.id for episode in episodes] == sorted(known, reverse=reverse)

    @rule(number=numbers, minute=minutes, span=st.integers(0, 4))
    def ask_for_a_range(self, number: int, minute: int, span: int) -> None:
        moment, start, end = self.moment(number), NOON + timedelta(minutes=minute), timedelta(minutes=span)
        told = self.memory.episodes(start, start + end, as_of=moment)
        known = self.as_of(moment)
        assert [episode.id for episode in told] == [
            id_ for id_ in known if start <= self.first[id_].event_time < start + end
        ]

    @rule(number=numbers, limit=st.integers(1, 4), kind=st.none() | kinds)
    def ask_for_pages(self, number: int, limit: int, kind: str | None) -> None:
        moment = self.moment(number)
        known = [id_ for id_, each in reversed(self.as_of(moment).items()) if kind in (None, each.kind)]
        pages: list[str] = []
        before = None
        while page := self.memory.get_recent_episodes(limit, before=before, episode_type=kind, as_of=moment):
            pages += [episode.id for episode in page]
            before = pages[-1]
        assert pages == known

    @rule(number=numbers, query=st.sampled_from(["tea", "oak"]), limit=st.integers(1, 3))
    def search(self, number: int, query: str, limit: int) -> None:
        moment = self.moment(number)
        known = self.as_of(moment)
        may = [id_ for id_ in known if self.is_there(id_) and query in self.lives[id_][-1].text]
        told = self.memory.search_episodes(query, limit, as_of=moment)
        assert {episode.id: seen(episode) for episode in told}.items() <= known.items()
        assert len(told) == min(limit, len(may))

    @rule(number=numbers)
    def history(self, number: int) -> None:
        for id_ in (self.pick(number), self.pick(number, retired=True)):
            if id_ is not None:
                assert [seen(each) for each in self.memory.history(id_)] == [
                    each for each in self.lives[id_] if each.until != NEVER
                ]

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.store.verify().problems == []
        there = [id_ for id_ in sorted(self.lives) if self.is_there(id_)]
        assert [episode.id for episode in self.memory.episodes()] == there
        assert self.memory.get_statistics().total_episodes == len(there)

    # What befalls the store

    @precondition(lambda self: self.engine != "ephemeral")
    @rule(killed=st.booleans())
    def open_again(self, killed: bool) -> None:
        """From the directory as it is at this instant, where the process is killed."""
        if killed:
            self.opened += 1
            copy = self.directory / f"data {self.opened}"
            shutil.copytree(self.path, copy)
            self.store.close()
            self.path = copy
        else:
            self.store.close()
        self.store = self.open()

    @rule(number=numbers)
    def repair(self, number: int) -> None:
        if number % 4 == 0:
            assert self.store.repair().after.problems == []

    def teardown(self) -> None:
        try:
            for number in range(3 * len(self.moments) + 6):
                self.ask_as_of(number)
        finally:
            self.store.close()
            shutil.rmtree(self.directory)


def machine(engine_: str, *, keeps_: bool = True) -> type[TimeMachine]:
    class Machine(TimeMachine):
        engine = engine_
        keeps = keeps_

    return Machine


@pytest.fixture(autouse=True)
def directories_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where there is a disk in RAM: thousands of syncs would be waited for, and no power is cut here."""
    with tempfile.TemporaryDirectory(dir=RAM_DISK if RAM_DISK.is_dir() else tmp_path, prefix="qilbee-time-") as own:
        monkeypatch.setattr(tempfile, "tempdir", own)
        yield
        assert list(Path(own).iterdir()) == []


def test_the_past_is_what_its_model_says(engine: str) -> None:
    run_state_machine_as_test(machine(engine), settings=settings(max_examples=15, stateful_step_count=30))


def test_without_history_only_what_was_superseded_is_kept(engine: str) -> None:
    run_state_machine_as_test(machine(engine, keeps_=False), settings=settings(max_examples=6, stateful_step_count=25))
