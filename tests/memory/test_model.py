"""Random programs over all verbs, against plain dictionaries: what nobody thought of listing."""

from __future__ import annotations

import asyncio
import inspect
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from qilbee_core import AsyncStore, ConflictError, Episode, InvalidError, NotFoundError, Store, open_store
from qilbee_core.episode import MemoryType
from qilbee_core.keys import AgentKeys, Space

RAM_DISK = Path("/dev/shm")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
AGENTS = ["bot", "bot:2", "caf\u00e9"]
TYPES = ["note", "other", "third"]

agents = st.sampled_from(AGENTS)
minutes = st.integers(-5, 5)
numbers = st.integers(0, 30)
texts = st.sampled_from(["", "tea", "x" * 700, "\u2028", "1"])
kinds = st.sampled_from(TYPES)
memory_types = st.sampled_from(["episodic", "semantic", "procedural", "factual"])
keys = st.sampled_from([None, None, "k1", "k2"])


class Standing(NamedTuple):
    """What the model remembers of what moves."""

    memory_type: str
    strength: float
    since_us: int
    expires_us: float
    pinned: bool


class Known(NamedTuple):
    """What the model remembers of one version of an episode."""

    text: str
    number: int
    episode_type: str
    memory_type: str


def seen(episode: Episode) -> Known:
    number = episode.metadata.get("number", -1)
    assert isinstance(number, int)
    return Known(str(episode.content["text"]), number, episode.episode_type, episode.memory_type)


class MemoryMachine(RuleBasedStateMachine):
    """Several agents of one store; each step is done to the store and to the model."""

    engine = ""
    both_faces = False

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 1_800_000_000_000_000
        self.standing: dict[str, dict[str, Standing]] = {agent: {} for agent in AGENTS}
        self.directory = Path(tempfile.mkdtemp())
        self.known: dict[str, dict[str, list[Known]]] = {agent: {} for agent in AGENTS}
        """Of each agent, the versions of each episode by its id, oldest first."""
        self.first: dict[str, dict[str, Known]] = {agent: {} for agent in AGENTS}
        self.marks: dict[str, dict[str, str]] = {agent: {} for agent in AGENTS}
        self.wrote: set[str] = set()
        self.turn = 0
        self.loop = asyncio.new_event_loop()
        self.store = self.open()

    def open(self) -> Store:
        store = open_store(self.directory / "data", backend=self.engine, recent_cache_bytes=5_000, durability="async")
        store._context.clock_ns = lambda: self.now_us * 1000
        return store

    def do(self, agent: str, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Call a verb, through each face in turn where there are two."""
        self.turn += 1
        if not self.both_faces or self.turn % 2:
            return getattr(self.store.agent_memory(agent), verb)(*args, **kwargs)
        return self.loop.run_until_complete(self.awaited(agent, verb, *args, **kwargs))

    async def awaited(self, agent: str, verb: str, *args: Any, **kwargs: Any) -> Any:
        face = AsyncStore(self.store)
        try:
            answer = getattr(face.agent_memory(agent), verb)(*args, **kwargs)
            if inspect.isawaitable(answer):
                return await answer
            return [episode async for episode in answer]
        finally:
            face._pool.shutdown()

    def pick(self, agent: str, number: int) -> str | None:
        ids = sorted(self.known[agent])
        return ids[number % len(ids)] if ids else None

    def relevance(self, agent: str, id_: str) -> float:
        """By the formula of docs/memory.md, in floats."""
        standing = self.standing[agent][id_]
        half_life_days = {"episodic": 30, "semantic": 180}.get(standing.memory_type, inf)
        if standing.pinned:
            return 1.0
        age_days = max(0, self.now_us - standing.since_us) / 86_400e6
        return float(standing.strength * 2 ** (-age_days / half_life_days))

    def expire(self) -> None:
        """Forget what has expired by now."""
        for agent in AGENTS:
            for id_, standing in list(self.standing[agent].items()):
                if standing.expires_us <= self.now_us and not standing.pinned:
                    self.forget(agent, id_)

    def episode(
        self, agent: str, minute: int, known: Known, id_: str | None = None, hours: int | None = None
    ) -> Episode:
        memory_type: MemoryType = known.memory_type  # type: ignore[assignment]
        return Episode(
            agent,
            known.episode_type,
            {"text": known.text},
            metadata={"number": known.number},
            event_time=None if id_ else NOON + timedelta(minutes=minute),
            memory_type=memory_type,
            relevance=(known.number + 1) / 32,
            expires_at=None if hours is None else EPOCH + timedelta(microseconds=self.now_us, hours=hours),
            id=id_,
        )

    def remember(self, agent: str, id_: str, known: Known, hours: int | None = None) -> None:
        expires_us = inf if hours is None else self.now_us + hours * 3_600_000_000
        self.standing[agent][id_] = Standing(
            known.memory_type, (known.number + 1) / 32, self.now_us, expires_us, pinned=False
        )
        self.known[agent][id_] = [known]
        self.first[agent][id_] = known
        self.wrote.add(agent)

    # Writes

    @rule(
        agent=agents,
        minute=minutes,
        number=numbers,
        text=texts,
        kind=kinds,
        memory_type=memory_types,
        key=keys,
        hours=st.none() | st.sampled_from([1, 48]),
    )
    def store_one(
        self,
        agent: str,
        minute: int,
        number: int,
        text: str,
        kind: str,
        memory_type: str,
        key: str | None,
        hours: int | None,
    ) -> None:
        known = Known(text, number, kind, memory_type)
        episode = self.episode(agent, minute, known, hours=hours)
        marked = self.marks[agent].get(key or "")
        if marked is not None and self.first[agent][marked] != known:
            with pytest.raises(ConflictError):
                self.do(agent, "store_episode", episode, idempotency_key=key)
            return
        id_ = self.do(agent, "store_episode", episode, idempotency_key=key)
        if marked is not None:
            assert id_ == marked
            return
        assert id_ == episode.id
        self.remember(agent, id_, known, hours)
        if key is not None:
            self.marks[agent][key] = id_

    @rule(agent=agents, minute=minutes, count=st.integers(0, 30), text=texts, streamed=st.booleans())
    def store_many(self, agent: str, minute: int, count: int, text: str, streamed: bool) -> None:
        known = [Known(text, number, TYPES[number % 3], "episodic") for number in range(count)]
        episodes = [self.episode(agent, minute + at, one) for at, one in enumerate(known)]
        if streamed:
            assert self.do(agent, "import_episodes", iter(episodes)) == count
        else:
            assert self.do(agent, "store_episodes", episodes) == [episode.id for episode in episodes]
        for episode, one in zip(episodes, known, strict=True):
            self.remember(agent, episode.id, one)

    @rule(agent=agents, number=numbers, other=st.booleans())
    def store_again(self, agent: str, number: int, other: bool) -> None:
        id_ = self.pick(agent, number)
        if id_ is None:
            return
        first = self.first[agent][id_]
        if other:
            with pytest.raises(ConflictError):
                self.do(agent, "store_episode", self.episode(agent, 0, first._replace(text="another"), id_))
        else:
            assert self.do(agent, "store_episodes", [self.episode(agent, 0, first, id_)] * 2) == [id_, id_]

    @rule(agent=agents, number=numbers, minute=minutes)
    def store_a_batch_with_something_wrong(self, agent: str, number: int, minute: int) -> None:
        good = self.episode(agent, minute, Known("good", number, "note", "episodic"))
        bad = Episode(agent, "note", {"text": float("inf")})
        with pytest.raises(InvalidError):
            self.do(agent, "store_episodes", [good, bad] if number % 2 else [bad, good])

    @rule(agent=agents, number=numbers, text=texts, kind=kinds | st.none())
    def update(self, agent: str, number: int, text: str, kind: str | None) -> None:
        id_ = self.pick(agent, number)
        if id_ is None:
            with pytest.raises(NotFoundError):
                self.do(agent, "update_episode", Episode(agent, "note", {}).id, content={"text": text})
            return
        versions = self.known[agent][id_]
        now = versions[-1]._replace(text=text, episode_type=kind or versions[-1].episode_type)
        answer = self.do(agent, "update_episode", id_, content={"text": text}, episode_type=kind)
        assert (answer.id, seen(answer)) == (id_, now)
        if now != versions[-1]:
            versions.append(now)

    @rule(agent=agents, number=numbers)
    def delete(self, agent: str, number: int) -> None:
        id_ = self.pick(agent, number)
        if id_ is None:
            assert self.do(agent, "delete_episode", Episode(agent, "note", {}).id) is False
            return
        assert self.do(agent, "delete_episode", id_) is True
        assert self.do(agent, "delete_episode", id_) is False
        self.forget(agent, id_)

    def forget(self, agent: str, id_: str) -> None:
        del self.known[agent][id_], self.first[agent][id_], self.standing[agent][id_]
        self.marks[agent] = {key: marked for key, marked in self.marks[agent].items() if marked != id_}

    @rule(agent=agents, number=numbers)
    def clear(self, agent: str, number: int) -> None:
        if number % 4:
            return
        rows = list(self.store._backend.scan(*AgentKeys(agent).range(Space.EPISODE)))
        assert self.do(agent, "clear").episodes == len(rows)  # also what has expired and is not removed yet
        for id_ in list(self.known[agent]):
            self.forget(agent, id_)
        self.wrote.discard(agent)

    # Time

    @rule(hours=st.sampled_from([1, 24, 24 * 29]))
    def time_goes_by(self, hours: int) -> None:
        self.now_us += hours * 3_600_000_000
        self.expire()

    @rule(agent=agents, number=numbers, share=st.sampled_from([0.25, 0.5, 1.0]))
    def boost(self, agent: str, number: int, share: float) -> None:
        id_ = self.pick(agent, number)
        if id_ is None:
            with pytest.raises(NotFoundError):
                self.do(agent, "boost", Episode(agent, "note", {}).id, share)
            return
        standing = self.standing[agent][id_]
        self.standing[agent][id_] = free = standing._replace(pinned=False)
        before = self.relevance(agent, id_)
        after = before + share * (1 - before)
        self.standing[agent][id_] = free._replace(strength=after, since_us=self.now_us, pinned=standing.pinned)
        self.compare(agent, [self.do(agent, "boost", id_, share)], [id_])

    @rule(agent=agents, number=numbers, pinned=st.booleans())
    def pin(self, agent: str, number: int, pinned: bool) -> None:
        id_ = self.pick(agent, number)
        if id_ is None:
            return
        standing = self.standing[agent][id_] = self.standing[agent][id_]._replace(pinned=pinned)
        told = self.do(agent, "pin" if pinned else "unpin", id_)
        assert told.pinned is pinned
        if standing.expires_us <= self.now_us and not pinned:
            self.forget(agent, id_)
        else:
            self.compare(agent, [told], [id_])

    @rule(
        agent=agents,
        least=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
        most=st.none() | st.sampled_from([0, 3, 20]),
        dry_run=st.booleans(),
    )
    def forget_some(self, agent: str, least: float, most: int | None, dry_run: bool) -> None:
        standing = self.standing[agent]
        free = sorted((id_ for id_ in standing if not standing[id_].pinned), key=lambda id_: self.relevance(agent, id_))
        due = [id_ for id_ in free if self.relevance(agent, id_) < least - 1e-6]
        if most is not None and len(standing) - len(due) > most:
            due = free[: len(standing) - most]
        receipt = self.do(agent, "forget", least, max_episodes=most, dry_run=dry_run)
        values = sorted(self.relevance(agent, id_) for id_ in receipt.ids)
        # Of equal ones which go is not the model's to say.
        near = [id_ for id_ in free if abs(self.relevance(agent, id_) - least) <= 1e-6] if most is None else []
        assert len(due) <= receipt.episodes == len(receipt.ids) <= len(due) + len(near)
        assert values[: len(due)] == pytest.approx([self.relevance(agent, id_) for id_ in due], rel=1e-4)
        assert not any(standing[id_].pinned for id_ in receipt.ids)
        if not dry_run:
            for id_ in receipt.ids:
                self.forget(agent, id_)

    @rule(
        agent=agents,
        limit=st.integers(1, 9),
        least=st.none() | st.sampled_from([0.1, 0.5]),
        memory_type=memory_types | st.none(),
        kind=kinds | st.none(),
    )
    def recall(self, agent: str, limit: int, least: float | None, memory_type: str | None, kind: str | None) -> None:
        told = self.do(agent, "recall", limit, min_relevance=least, memory_type=memory_type, episode_type=kind)
        self.compare(agent, told, [episode.id for episode in told])
        assert len({episode.id for episode in told}) == len(told)
        expected = sorted(
            (
                self.relevance(agent, id_)
                for id_, versions in self.known[agent].items()
                if memory_type in (None, versions[-1].memory_type) and kind in (None, versions[-1].episode_type)
                if least is None or self.relevance(agent, id_) >= least
            ),
            reverse=True,
        )
        if least is None or all(abs(value - least) > 1e-6 for value in expected):
            assert [episode.relevance for episode in told] == pytest.approx(expected[:limit], rel=1e-4)
        assert sorted(told, key=lambda episode: -episode.pinned) == told

    # Reads

    @rule(agent=agents, limit=st.integers(1, 200), number=numbers, paged=st.booleans())
    def read_recent(self, agent: str, limit: int, number: int, paged: bool) -> None:
        before = self.pick(agent, number) if paged else None
        told = self.do(agent, "get_recent_episodes", limit, before=before)
        ids = [id_ for id_ in sorted(self.known[agent], reverse=True) if before is None or id_ < before]
        self.compare(agent, told, ids[:limit])

    @rule(agent=agents, limit=st.integers(1, 9), kind=kinds | st.none(), memory_type=memory_types | st.none())
    def read_recent_of_a_type(self, agent: str, limit: int, kind: str | None, memory_type: str | None) -> None:
        told = self.do(agent, "get_recent_episodes", limit, episode_type=kind, memory_type=memory_type)
        ids = [
            id_
            for id_ in sorted(self.known[agent], reverse=True)
            if kind in (None, self.known[agent][id_][-1].episode_type)
            and memory_type in (None, self.known[agent][id_][-1].memory_type)
        ]
        self.compare(agent, told, ids[:limit])

    @rule(agent=agents, start=minutes | st.none(), end=minutes | st.none(), reverse=st.booleans())
    def read_range(self, agent: str, start: int | None, end: int | None, reverse: bool) -> None:
        bounds = [None if minute is None else NOON + timedelta(minutes=minute) for minute in (start, end)]
        told = list(self.do(agent, "episodes", *bounds, reverse=reverse))
        low, high = bounds
        ids = [
            id_
            for id_ in sorted(self.known[agent], reverse=reverse)
            if (low is None or low <= Episode(agent, "", {}, id=id_).event_time)
            and (high is None or Episode(agent, "", {}, id=id_).event_time < high)
        ]
        self.compare(agent, told, ids)

    @rule(agent=agents, other=agents)
    def read_lists(self, agent: str, other: str) -> None:
        ids = [id_ for one in {agent, other} for id_ in self.known[one]]
        for id_, told in zip(ids, self.do(agent, "get_episodes", ids), strict=True):
            mine = self.known[agent].get(id_)
            assert (None if told is None else seen(told)) == (None if mine is None else mine[-1])

    @rule(agent=agents, number=numbers)
    def read_one_and_its_history(self, agent: str, number: int) -> None:
        id_ = self.pick(agent, number)
        if id_ is not None:
            assert seen(self.do(agent, "get_episode", id_)) == self.known[agent][id_][-1]
            assert [seen(version) for version in self.do(agent, "history", id_)] == self.known[agent][id_][:-1]

    @rule(agent=agents)
    def read_statistics(self, agent: str) -> None:
        told = self.do(agent, "get_statistics")
        now = [versions[-1] for versions in self.known[agent].values()]
        rows = list(self.store._backend.scan(*AgentKeys(agent).range(Space.EPISODE)))
        assert told.total_episodes == len(now) == len(rows)
        assert told.bytes == sum(len(key) + len(value) for key, value in rows)
        assert told.episodes_by_type == {
            kind: count for kind in TYPES if (count := sum(one.episode_type == kind for one in now))
        }
        times = [Episode(agent, "", {}, id=id_).event_time for id_ in self.known[agent]]
        assert (told.oldest_episode, told.newest_episode) == (min(times, default=None), max(times, default=None))
        expected = sum(self.relevance(agent, id_) for id_ in self.known[agent]) / max(1, len(now))
        assert told.avg_relevance == pytest.approx(expected, rel=1e-4)

    def compare(self, agent: str, told: list[Episode], ids: list[str]) -> None:
        assert [episode.id for episode in told] == ids
        assert [seen(episode) for episode in told] == [self.known[agent][id_][-1] for id_ in ids]
        assert [episode.relevance for episode in told] == pytest.approx(
            [self.relevance(agent, id_) for id_ in ids], rel=1e-4
        )
        assert [episode.pinned for episode in told] == [self.standing[agent][id_].pinned for id_ in ids]

    # The store

    @precondition(lambda self: self.engine != "ephemeral")
    @rule(number=numbers)
    def close_and_open_again(self, number: int) -> None:
        if number % 3 == 0:
            self.store.close()
            self.store = self.open()

    @rule(number=numbers)
    def flush_or_compact_or_repair(self, number: int) -> None:
        if number < 3:
            self.store.compact()
        elif number < 9:
            self.store.flush()
        elif number < 15:
            report = self.store.repair()
            assert report.after.problems == []
            assert report.episodes >= sum(map(len, self.known.values()))

    @invariant()
    def only_those_who_wrote_are_agents(self) -> None:
        assert set(self.store.agents()) == self.wrote

    def teardown(self) -> None:
        try:
            for agent in AGENTS:
                self.compare(agent, list(self.do(agent, "episodes")), sorted(self.known[agent]))
                self.compare(agent, self.do(agent, "get_recent_episodes", 1000), sorted(self.known[agent])[:-1001:-1])
                for id_, versions in self.known[agent].items():
                    assert [seen(version) for version in self.do(agent, "history", id_)] == versions[:-1]
                self.read_statistics(agent)
            report = self.store.verify()
            assert report.problems == []
            assert report.episodes == sum(map(len, self.known.values()))
        finally:
            self.store.close()
            self.loop.close()
            shutil.rmtree(self.directory)


def machine(engine_: str, *, faces: bool) -> type[MemoryMachine]:
    class Machine(MemoryMachine):
        engine = engine_
        both_faces = faces

    return Machine


@pytest.fixture(autouse=True)
def reading_changes_nothing(monkeypatch: pytest.MonkeyPatch, no_settings_of_the_user: None) -> None:
    monkeypatch.setenv("QILBEE_MEMORY_REINFORCEMENT_SHARE", "0")


@pytest.fixture(autouse=True)
def directories_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where there is a disk in RAM: thousands of syncs would be waited for, and no power is cut here."""
    with tempfile.TemporaryDirectory(dir=RAM_DISK if RAM_DISK.is_dir() else tmp_path, prefix="qilbee-model-") as own:
        monkeypatch.setattr(tempfile, "tempdir", own)
        yield
        assert list(Path(own).iterdir()) == []


def test_a_memory_does_what_its_model_does(engine: str) -> None:
    run_state_machine_as_test(machine(engine, faces=False), settings=settings(max_examples=15, stateful_step_count=30))


@pytest.mark.parametrize("engine", ["rocksdb", "ephemeral"])
def test_it_does_so_through_both_faces_in_turn(engine: str) -> None:
    run_state_machine_as_test(machine(engine, faces=True), settings=settings(max_examples=8, stateful_step_count=25))


def test_threads_may_share_one_memory(store: Store) -> None:
    memory = store.agent_memory("bot")
    begin = threading.Barrier(5)

    def work(thread: int) -> dict[str, list[str]]:
        """Change episodes of its own, among those of the others; gives their texts, oldest first."""
        draw, mine = random.Random(thread), dict[str, list[str]]()
        begin.wait()
        for step in range(120):
            text, choice = f"{thread} {step}", draw.randrange(10)
            if choice < 5 or not mine:
                minute = timedelta(minutes=draw.randrange(60))
                episode = Episode("bot", draw.choice(TYPES), {"text": text}, event_time=NOON + minute)
                mine[memory.store_episode(episode, idempotency_key=draw.choice([None, text]))] = [text]
            elif choice < 6:
                batch = [Episode("bot", "note", {"text": f"{text} {number}"}) for number in range(5)]
                mine |= {
                    id_: [str(one.content["text"])]
                    for id_, one in zip(memory.store_episodes(batch), batch, strict=True)
                }
            elif choice < 8:
                id_ = draw.choice(list(mine))
                memory.update_episode(id_, content={"text": text})
                mine[id_].append(text)
            elif choice < 9:
                id_ = draw.choice(list(mine))
                assert memory.delete_episode(id_)
                del mine[id_]
                assert memory.get_episode(id_) is None
            else:
                seen = {episode.id: episode.content["text"] for episode in memory.get_recent_episodes(1000)}
                assert {id_: texts[-1] for id_, texts in mine.items()}.items() <= seen.items()
        return mine

    with ThreadPoolExecutor(5) as pool:
        works = [pool.submit(work, thread) for thread in range(5)]
        while not all(each.done() for each in works):
            assert store.verify().problems == []
        known = {id_: texts for each in works for id_, texts in each.result().items()}
    for episodes in (memory.episodes(), memory.get_recent_episodes(1000)):
        assert {episode.id: episode.content["text"] for episode in episodes} == {i: t[-1] for i, t in known.items()}
    for id_, texts in known.items():
        assert [version.content["text"] for version in memory.history(id_)] == texts[:-1]
    assert memory.get_statistics().total_episodes == len(known) > 100
    assert store.verify().problems == []
