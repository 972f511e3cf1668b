"""Writes that share a sync: those who wait for it, those who come meanwhile, and whoever leads it for all of them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from shared.syncs import (
    FAILURES,
    IMPATIENCE_S,
    PATIENCE_S,
    OpenHere,
    Syncs,
    SyncsOf,
    Writes,
    await_until,
    count_writes,
    in_thread,
    note,
    outcome_of,
    syncs_let_go_at_the_end,
)

from qilbee_core import (
    AsyncStore,
    Episode,
    OutcomeUnknownError,
    StorageError,
    StorageFullError,
    Store,
    WriteBatch,
    WriteStallError,
)
from qilbee_core import durability as durability_module
from qilbee_core.durability import Durability


@pytest.fixture(scope="session")
def engine() -> str:
    """Syncs are shared above the engines: one is enough, where files do not matter."""
    return "rocksdb"


@pytest.fixture
def syncs_of(open_here: OpenHere) -> Iterator[SyncsOf]:
    with syncs_let_go_at_the_end() as make:
        yield make


class TestGroupCommit:
    @pytest.mark.parametrize("writers", [1, 2, 12])
    @pytest.mark.parametrize("agents", [1, 4])
    def test_all_who_wait_share_one_sync(
        self, open_here: OpenHere, syncs_of: SyncsOf, writers: int, agents: int
    ) -> None:
        store = open_here(sync_writes=True)
        syncs, writes = syncs_of(store), Writes(store)
        syncs.hold()
        futures = [in_thread(store.agent_memory("first").store_episode, note("first", "first"))]
        syncs.await_one()
        writes.await_many(1)
        names = [f"agent {number % agents}" for number in range(writers)]
        futures += [
            in_thread(store.agent_memory(name).store_episode, note(number, name)) for number, name in enumerate(names)
        ]
        writes.await_many(writers)
        assert syncs.begun == 1
        assert not any(future.done() for future in futures)
        syncs.let_go()
        for future in futures:
            future.result(PATIENCE_S)
        assert syncs.begun == syncs.ended == 2

    def test_a_write_during_a_sync_is_not_taken_for_synced_by_it(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        syncs, writes = syncs_of(store), Writes(store)
        memory = store.agent_memory("bot")
        syncs.hold()
        first = in_thread(memory.store_episode, note(1))
        syncs.await_one()
        second = in_thread(lambda: (memory.store_episode(note(2)), syncs.ended))
        writes.await_many(2)
        syncs.let_go()
        first.result(PATIENCE_S)
        assert second.result(PATIENCE_S)[1] == 2

    def test_readers_do_not_wait_for_a_sync(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        id_ = memory.store_episode(note())
        syncs = syncs_of(store)
        syncs.hold()
        writer = in_thread(memory.store_episode, note(1))
        syncs.await_one()
        assert memory.get_episode(id_)
        assert memory.get_recent_episodes()
        assert list(memory.episodes())
        assert memory.get_statistics().total_episodes == 2
        assert store.verify().problems == []
        syncs.let_go()
        writer.result(PATIENCE_S)

    def test_a_flush_is_shared_too(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        syncs, writes = syncs_of(store), Writes(store)
        syncs.hold()
        writer = in_thread(store.agent_memory("bot").store_episode, note())
        syncs.await_one()
        writes.await_many(1)
        flushes = [in_thread(store.flush) for _ in range(5)]
        syncs.let_go()
        writer.result(PATIENCE_S)
        for flush in flushes:
            flush.result(PATIENCE_S)
        assert syncs.begun == 1
        store.flush()
        assert syncs.begun == 1

    def test_a_close_waits_for_those_who_wait(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        syncs, writes = syncs_of(store), Writes(store)
        syncs.hold()
        writers = [in_thread(store.agent_memory("bot").store_episode, note(number)) for number in range(3)]
        writes.await_many(3)
        closing = in_thread(store.close)
        syncs.let_go()
        closing.result(PATIENCE_S)
        assert [outcome_of(future.result) for future in writers] == ["done"] * 3


class Led:
    """A store at "sync" of which a sync is held: what comes meanwhile is left to whoever leads the next one."""

    def __init__(self, store: Store, syncs: Syncs) -> None:
        self.store, self.syncs = store, syncs
        self.memory = store.agent_memory("bot")
        self.kept = note("kept")
        self.memory.store_episode(self.kept)
        self._writes = Writes(store)
        syncs.await_one()
        syncs.hold()
        self.first = in_thread(self.memory.store_episode, note("first"))
        syncs.await_one()
        self.await_one()

    def left(self, *episodes: Episode) -> list[Future[str]]:
        """The results to come of episodes that come now, one after another, each in a thread of its own."""
        futures = []
        for episode in episodes:
            memory = self.store.agent_memory(episode.agent_id)
            futures.append(in_thread(memory.store_episode, episode))
            self.await_one()
        return futures

    def await_one(self) -> None:
        """Wait until one more write has come, or is left."""
        self._writes.await_many(1)

    def numbers(self) -> list[str]:
        return sorted(str(episode.content["number"]) for episode in self.memory.episodes())


class TestWritesThatAreLeftToTheNextLeader:
    @pytest.fixture
    def led(self, open_here: OpenHere, syncs_of: SyncsOf) -> Led:
        store = open_here(sync_writes=True)
        return Led(store, syncs_of(store))

    def test_they_are_one_batch_and_wait_for_its_sync(self, led: Led) -> None:
        written = count_writes(led.store)
        futures = led.left(*(note(number) for number in range(12)))
        assert written == []
        led.syncs.let_one_go()
        led.syncs.await_one()
        assert led.first.result(PATIENCE_S)
        assert len(written) == 1
        assert not any(future.done() for future in futures)
        led.syncs.let_go()
        ids = [future.result(PATIENCE_S) for future in futures]
        stored = [episode and episode.content for episode in led.memory.get_episodes(ids)]
        assert stored == [{"number": str(number)} for number in range(12)]
        assert led.syncs.begun == led.syncs.ended == 3
        assert led.store.verify().problems == []

    def test_a_few_are_stored_one_by_one_and_so_are_those_of_several_agents(self, led: Led) -> None:
        futures = led.left(note(1), note(2, "other"), note(3, "new", relevance=0.5), note(4, memory_type="semantic"))
        led.syncs.let_go()
        for future in futures:
            future.result(PATIENCE_S)
        assert led.numbers() == ["1", "4", "first", "kept"]
        assert led.store.agents() == ["bot", "new", "other"]
        assert led.syncs.ended == 3
        assert led.store.verify().problems == []

    @pytest.mark.parametrize("others", [1, 10])
    def test_each_has_his_own_error_and_the_others_have_none(self, led: Led, others: int) -> None:
        conflicting, unusual = note("other", id=led.kept.id), note("unusual", relevance=0.5, memory_type="semantic")
        surrogate = Episode("bot", "note", {"number": "\ud800"})
        futures = led.left(conflicting, unusual, surrogate, *(note(number) for number in range(others)))
        led.syncs.let_go()
        outcomes = [outcome_of(partial(future.result, PATIENCE_S)) for future in futures]
        assert outcomes == ["ConflictError", "done", "InvalidError"] + ["done"] * others
        assert led.numbers() == sorted(["first", "kept", "unusual", *map(str, range(others))])
        assert led.store.verify().problems == []

    @pytest.mark.parametrize("others", [0, 10])
    def test_the_same_episode_from_several_threads_is_stored_once(self, led: Led, others: int) -> None:
        episode = note("twice")
        copy = note("twice", id=episode.id)
        futures = led.left(episode, *(note(number) for number in range(others)), episode, copy, led.kept)
        led.syncs.let_go()
        ids = [future.result(PATIENCE_S) for future in futures]
        assert [ids[0], *ids[-3:]] == [episode.id] * 3 + [led.kept.id]
        assert led.numbers() == sorted(["first", "kept", "twice", *map(str, range(others))])
        assert led.store.verify().problems == []

    def test_an_answer_that_rests_on_one_of_them_waits_for_its_sync(self, led: Led) -> None:
        episode = note("stored")
        (stored,) = led.left(episode)
        (conflict,) = led.left(note("other", id=episode.id))
        led.syncs.let_one_go()
        led.syncs.await_one()
        with suppress(StillRunning):
            conflict.result(IMPATIENCE_S)
        assert not conflict.done()
        led.syncs.let_go()
        assert outcome_of(partial(conflict.result, PATIENCE_S)) == "ConflictError"
        assert stored.result(PATIENCE_S) == episode.id

    def test_observers_are_told_of_each_once_in_the_thread_of_its_caller(self, led: Led) -> None:
        told: list[tuple[str, str]] = []
        episode = note(0)
        futures = []
        for each in (episode, *map(note, range(1, 6)), episode):
            memory = led.store.agent_memory("bot")
            memory._operations._observe = lambda _, episodes: told.extend(
                (threading.current_thread().name, str(stored.content["number"])) for stored in episodes
            )
            futures.append(in_thread(memory.store_episode, each))
            led.await_one()
        led.syncs.let_go()
        for future in futures:
            future.result(PATIENCE_S)
        assert sorted(number for _, number in told) == ["0", "1", "2", "3", "4", "5"]
        assert len({thread for thread, _ in told}) == 6

    @pytest.mark.parametrize(
        ("failure", "outcome"),
        [
            (OutcomeUnknownError("no answer came"), "OutcomeUnknownError"),
            (StorageError("Input/output error"), "OutcomeUnknownError"),
            (StorageFullError("no space left"), "StorageFullError"),
            (WriteStallError("compaction"), "done"),
        ],
    )
    @pytest.mark.parametrize("others", [2, 10])
    def test_where_their_batch_fails_all_are_told_and_nobody_hangs(
        self, led: Led, monkeypatch: pytest.MonkeyPatch, failure: StorageError, outcome: str, others: int
    ) -> None:
        futures = led.left(*(note(number) for number in range(others)))
        write, failing = led.store._backend.write, threading.Event()

        def fail(batch: WriteBatch) -> None:
            if failing.is_set() and isinstance(failure, WriteStallError):
                return write(batch)
            failing.set()
            raise failure

        monkeypatch.setattr(led.store._backend, "write", fail)
        led.syncs.let_go()
        assert [outcome_of(partial(future.result, PATIENCE_S)) for future in futures] == [outcome] * others
        assert led.first.result(PATIENCE_S)
        monkeypatch.undo()
        assert led.numbers() == sorted(["first", "kept", *(map(str, range(others)) if outcome == "done" else ())])

    def test_while_compaction_keeps_one_waiting_others_are_acknowledged(
        self, led: Led, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        futures = led.left(*(note(number) for number in range(5)))
        deleting = in_thread(led.memory.delete_episode, led.kept.id)
        led.await_one()
        write, stalls = led.store._backend.write, threading.Event()
        stalls.set()

        def stall(batch: WriteBatch) -> None:
            if stalls.is_set():
                raise WriteStallError("compaction cannot keep up")
            write(batch)

        monkeypatch.setattr(led.store._backend, "write", stall)
        led.syncs.let_go()
        assert deleting.result(PATIENCE_S) is True
        assert not any(future.done() for future in futures)
        stalls.clear()
        for future in futures:
            future.result(PATIENCE_S)
        assert led.numbers() == ["0", "1", "2", "3", "4", "first"]

    @pytest.mark.parametrize("failure", FAILURES)
    def test_when_the_sync_before_theirs_fails_they_are_not_written(self, led: Led, failure: str) -> None:
        futures = led.left(*(note(number) for number in range(5)))
        written = count_writes(led.store)
        led.syncs.error = FAILURES[failure]()
        led.syncs.let_go()
        refused = "StorageFullError" if isinstance(led.syncs.error, StorageFullError) else "OutcomeUnknownError"
        assert [outcome_of(partial(future.result, PATIENCE_S)) for future in futures] == [refused] * 5
        assert outcome_of(partial(led.first.result, PATIENCE_S)) == "OutcomeUnknownError"
        assert [batch for batch in written if batch.operations] == []

    def test_when_their_own_sync_fails_they_do_not_know(self, led: Led) -> None:
        futures = led.left(*(note(number) for number in range(5)))
        led.syncs.let_one_go()
        led.syncs.await_one()
        led.syncs.error = StorageError("cannot sync: Input/output error")
        led.syncs.let_go()
        assert led.first.result(PATIENCE_S)
        assert [outcome_of(partial(future.result, PATIENCE_S)) for future in futures] == ["OutcomeUnknownError"] * 5
        assert len(led.numbers()) == 7

    def test_ctrl_c_in_one_that_leads_strands_nobody(self, led: Led) -> None:
        futures = led.left(*(note(number) for number in range(5)))
        led.syncs.interrupt_one()
        assert outcome_of(partial(led.first.result, PATIENCE_S)) == "KeyboardInterrupt"
        for future in futures:
            future.result(PATIENCE_S)
        assert len(led.numbers()) == 7

    def test_those_whom_a_sync_has_woken_share_the_next_one(
        self, open_here: OpenHere, syncs_of: SyncsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(durability_module, "_GATHER_S_MAX", PATIENCE_S)
        took = property(lambda _: 2 * PATIENCE_S, lambda *_: None)
        monkeypatch.setattr(Durability, "_sync_s", took, raising=False)
        store = open_here(sync_writes=True)
        syncs, writes = syncs_of(store), Writes(store)
        memory = store.agent_memory("bot")

        def store_some(number: int, count: int) -> None:
            for each in range(count):
                memory.store_episode(note((number, each)))

        syncs.hold()
        threads = [in_thread(store_some, 0, 3)]
        syncs.await_one()
        threads += [in_thread(store_some, number, 2) for number in range(1, 5)]
        writes.await_many(5)
        syncs.let_go()
        for thread in threads:
            thread.result(PATIENCE_S)
        assert syncs.ended == 3
        monkeypatch.undo()  # for whoever closes the store comes alone
        store._durability._sync_s = 0.0
        assert memory.get_statistics().total_episodes == 11

    def test_tasks_whom_a_sync_has_woken_are_not_waited_for(
        self, open_here: OpenHere, syncs_of: SyncsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(durability_module, "_GATHER_S_MAX", 2 * PATIENCE_S)
        took = property(lambda _: 4 * PATIENCE_S, lambda *_: None)
        monkeypatch.setattr(Durability, "_sync_s", took, raising=False)
        store = open_here(sync_writes=True)
        syncs, writes = syncs_of(store), Writes(store)
        memory = AsyncStore(store).agent_memory("bot")

        async def store_each_once() -> None:
            syncs.hold()
            first = asyncio.create_task(memory.store_episode(note("first")))
            await asyncio.to_thread(syncs.await_one)
            later = [asyncio.create_task(memory.store_episode(note(number))) for number in range(3)]
            await asyncio.to_thread(writes.await_many, 4)
            syncs.let_go()
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(first, *later)

        asyncio.run(store_each_once())
        assert syncs.ended == 2

    def test_ctrl_c_in_one_that_waits_for_those_expected_strands_nobody(
        self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        others: list[Future[str]] = []

        def interrupted(_: Durability, coming: Any) -> None:
            if not others:
                others.append(in_thread(memory.store_episode, note("other")))
                await_until(lambda: coming.threads == 2)
                raise KeyboardInterrupt

        monkeypatch.setattr(Durability, "_await_those_expected", interrupted)
        assert outcome_of(partial(memory.store_episode, note("interrupted"))) == "KeyboardInterrupt"
        assert others[0].result(PATIENCE_S)
        memory.store_episode(note("later"))
        assert {str(each.content["number"]) for each in memory.episodes()} >= {"other", "later"}

    def test_ctrl_c_in_one_that_waits_strands_nobody(self, led: Led) -> None:
        before, after = led.left(note("before")), []

        def interrupt() -> None:
            led.await_one()
            after.extend(led.left(note("after")))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupting = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            led.memory.store_episode(note("interrupted"))
        interrupting.result(PATIENCE_S)
        led.syncs.let_go()
        for future in before + after:
            future.result(PATIENCE_S)
        led.store.close()

    def test_a_close_stores_what_was_left_before_it(self, led: Led, open_here: OpenHere) -> None:
        futures = led.left(*(note(number) for number in range(5)))
        closing = in_thread(led.store.close)
        led.syncs.let_go()
        closing.result(PATIENCE_S)
        assert [outcome_of(partial(future.result, PATIENCE_S)) for future in futures] == ["done"] * 5
        store = open_here()
        assert store.agent_memory("bot").get_statistics().total_episodes == 7
        assert store.verify().problems == []
