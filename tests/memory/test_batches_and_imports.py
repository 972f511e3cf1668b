"""Many episodes at once: batches, all or none, and imports, which can be taken up again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared.notes import AGENT, NOON, at, ids_of, note, texts

from qilbee_core import (
    AgentMemory,
    ConflictError,
    Episode,
    InvalidError,
    Store,
    open_store,
)
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory import writes

OpenHere = Callable[..., Store]


@pytest.fixture
def memory(store: Store) -> AgentMemory:
    return store.agent_memory(AGENT)


class TestBatches:
    def test_ids_come_back_in_the_order_given(self, memory: AgentMemory) -> None:
        given = [at(minute) for minute in (5, 1, 9, 1)]
        assert memory.store_episodes(iter(given)) == ids_of(given)
        assert texts(memory.episodes()) == [1, 1, 5, 9]
        assert memory.store_episodes([]) == []

    def test_a_batch_has_one_transaction_time(self, memory: AgentMemory) -> None:
        memory.store_episodes(at(minute) for minute in range(10))
        assert len({episode.transaction_time for episode in memory.episodes()}) == 1

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("wrong", ["content", "agent", "conflict", "kind"])
    def test_a_batch_is_stored_whole_or_not_at_all(self, memory: AgentMemory, place: int, wrong: str) -> None:
        taken = memory.store_episode(at(0))
        before = memory.get_statistics()
        batch: list[Any] = [at(1), at(2)]
        batch.insert(
            place,
            {
                "content": note(float("nan")),
                "agent": Episode("other", "note", {}),
                "conflict": note("other", id=taken),
                "kind": {"text": "a dict"},
            }[wrong],
        )
        with pytest.raises(ConflictError if wrong == "conflict" else InvalidError):
            memory.store_episodes(batch)
        after = memory.get_statistics()
        assert (after.total_episodes, after.bytes) == (before.total_episodes, before.bytes) == (1, before.bytes)
        assert ids_of(memory.episodes()) == [taken] == ids_of(memory.get_recent_episodes())
        assert memory.store_episodes([at(1), at(2)])

    def test_more_than_a_thousand_are_refused_and_told_of_the_import(self, memory: AgentMemory) -> None:
        with pytest.raises(InvalidError, match="import_episodes"):
            memory.store_episodes(at(minute) for minute in range(1001))
        assert list(memory.episodes()) == []
        assert len(memory.store_episodes(at(minute) for minute in range(1000))) == 1000

    def test_a_stream_without_end_is_refused(self, memory: AgentMemory) -> None:
        read = 0

        def endless() -> Iterator[Episode]:
            nonlocal read
            while True:
                read += 1
                yield at(read)

        with pytest.raises(InvalidError):
            memory.store_episodes(endless())
        assert read == 1001


class TestImports:
    def test_it_streams_and_tells_how_far_it_is(self, memory: AgentMemory) -> None:
        read = 0
        progress: list[tuple[int, int]] = []

        def stream() -> Iterator[Episode]:
            nonlocal read
            for number in range(2500):
                read += 1
                yield at(number)

        assert memory.import_episodes(stream(), progress=lambda done: progress.append((done, read))) == 2500
        assert progress == [(1000, 1000), (2000, 2000), (2500, 2500)]
        assert memory.get_statistics().total_episodes == 2500

    def test_an_import_of_nothing_is_nothing(self, memory: AgentMemory) -> None:
        told: list[int] = []
        assert memory.import_episodes([], progress=told.append) == 0
        assert told == []

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
    def test_whatever_stops_it_tells_what_is_stored(self, memory: AgentMemory, error: type[BaseException]) -> None:
        episodes = [at(number) for number in range(1500)]

        def stopped() -> Iterator[Episode]:
            yield from episodes[:1200]
            raise error("stop")

        with pytest.raises(error, match="stop") as caught:
            memory.import_episodes(stopped())
        assert self.stored_by(caught.value) == ids_of(episodes[:1000]) == ids_of(memory.episodes())
        assert caught.value.__notes__ == ["1000 episodes were stored before this; their ids are in stored_ids"]
        assert memory.import_episodes(episodes) == 1500
        assert ids_of(memory.episodes()) == ids_of(episodes)

    def test_an_invalid_episode_stops_it_before_its_batch(self, memory: AgentMemory) -> None:
        episodes = [at(number) for number in range(1100)]
        episodes[1050].content = {"text": {1, 2}}  # type: ignore[dict-item]
        with pytest.raises(InvalidError, match=r"content\.text is set") as caught:
            memory.import_episodes(episodes)
        assert self.stored_by(caught.value) == ids_of(episodes[:1000]) == ids_of(memory.episodes())
        episodes[1050].content = {"text": [1, 2]}
        assert memory.import_episodes(episodes) == 1100
        assert ids_of(memory.episodes()) == ids_of(episodes)

    def test_what_the_progress_raises_counts_the_batch_before_it(self, memory: AgentMemory) -> None:
        def stop(done: int) -> None:
            raise RuntimeError(f"stopped at {done}")

        with pytest.raises(RuntimeError, match="stopped at 1000") as caught:
            memory.import_episodes((at(number) for number in range(1001)), progress=stop)
        assert self.stored_by(caught.value) == ids_of(memory.episodes())
        assert memory.get_statistics().total_episodes == 1000

    def test_a_progress_that_cannot_be_called_is_refused_before_anything_is_stored(self, memory: AgentMemory) -> None:
        with pytest.raises(InvalidError):
            memory.import_episodes([at(0)], progress=5)  # type: ignore[arg-type]
        assert list(memory.episodes()) == []

    def test_a_conflict_stops_it(self, memory: AgentMemory) -> None:
        taken = memory.store_episode(at(2000, "taken"))
        episodes = [*(at(number) for number in range(1000)), at(2000, "other", id=taken)]
        with pytest.raises(ConflictError) as caught:
            memory.import_episodes(episodes)
        assert self.stored_by(caught.value) == ids_of(episodes[:1000])

    def test_what_is_stored_already_is_not_stored_twice(self, memory: AgentMemory) -> None:
        episodes = [at(number) for number in range(1200)]
        memory.store_episodes(episodes[300:700])
        assert memory.import_episodes(episodes) == 1200
        assert memory.import_episodes(episodes) == 1200
        assert memory.get_statistics().total_episodes == 1200

    def test_large_episodes_are_stored_in_smaller_batches(
        self, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writes, "BATCH_BYTES_MAX", 10_000)
        draw = random.Random(1)
        episodes = [at(number, draw.randbytes(400).hex()) for number in range(100)]
        with pytest.raises(InvalidError, match="the most in a batch is 10000"):
            memory.store_episodes(episodes)
        assert list(memory.episodes()) == []
        told: list[int] = []
        assert memory.import_episodes(episodes, progress=told.append) == 100
        assert told == sorted(told)
        assert len(told) > 7
        assert ids_of(memory.episodes()) == ids_of(episodes)

    def test_a_single_episode_larger_than_a_batch_is_stored(
        self, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writes, "BATCH_BYTES_MAX", 100)
        assert memory.import_episodes([at(0, random.Random(1).randbytes(200).hex()), at(1)]) == 2

    def test_an_error_in_the_second_half_of_a_split_batch_tells_of_the_first(
        self, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writes, "BATCH_BYTES_MAX", 2000)
        taken = memory.store_episode(at(999, "taken"))
        draw = random.Random(1)
        episodes = [at(number, draw.randbytes(200).hex()) for number in range(8)]
        episodes.append(at(999, "other", id=taken))
        with pytest.raises(ConflictError) as caught:
            memory.import_episodes(episodes)
        assert self.stored_by(caught.value) == ids_of(memory.episodes())[:-1]

    @staticmethod
    def stored_by(error: BaseException) -> object:
        return error.stored_ids  # type: ignore[attr-defined]


class TestTheShortWay:
    """Most episodes are stored by append(), and nobody can tell."""

    @given(
        kinds=st.lists(
            st.sampled_from(["note", "usual", "with metadata", "weak", "fact", "late", "again"]), max_size=40
        )
    )
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_it_writes_the_same_bytes(self, kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        episodes: list[Episode] = []
        for number, kind in enumerate(kinds):
            if kind == "again" and episodes:
                episodes.append(episodes[number // 2])
                continue
            episodes.append(
                Episode(
                    AGENT,
                    "note" if kind == "note" else "observation",
                    {"text": str(number)},
                    metadata={"n": number} if kind == "with metadata" else None,
                    relevance=0.5 if kind == "weak" else 1.0,
                    memory_type="factual" if kind == "fact" else "episodic",
                    event_time=NOON if kind == "late" else None,
                )
            )
        short = rows_after_storing(episodes, monkeypatch)
        with monkeypatch.context() as patched:
            patched.setattr(writes, "append", lambda context, agent, episode: None)
            assert rows_after_storing(episodes, patched) == short


def rows_after_storing(episodes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[bytes, bytes], object]:
    """All rows of an agent but its head, and what the head says, after storing one by one at the same times."""
    now_ns = 1_800_000_000_000_000_000
    with monkeypatch.context() as patched, open_store(backend="ephemeral", durability="async") as store:
        patched.setattr(store._context, "clock_ns", lambda: now_ns)
        patched.setattr(store._context, "single_process", True)  # the short way is for one opener
        memory = store.agent_memory(AGENT)
        for episode in episodes:
            memory.store_episode(episode)
            now_ns += 200_000_000
        head = store._context.head(memory._operations._agent)
        rows = {
            key: value
            for space in (Space.EPISODE, Space.VITALITY, Space.CHANGE)
            for key, value in store._backend.scan(*AgentKeys(AGENT).range(space))
        }
        if head is None:
            return rows, None
        return rows, (head.sequence, head.transaction_us, head.newest_id, head.types, head.record_bytes)
