"""The asyncio face: the same verbs and promises, shared syncs, and an event loop that is never held up."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

import qilbee_core.aio
from qilbee_core import (
    AgentMemory,
    AsyncAgentMemory,
    AsyncStore,
    Blocking,
    ConflictError,
    Episode,
    InvalidError,
    NotFoundError,
    OutcomeUnknownError,
    StorageError,
    Store,
    StoreClosedError,
    StoreLockedError,
    aopen_store,
    open_store,
)
from qilbee_core.memory.aio import _DIRECT_EPISODES_MAX

T = TypeVar("T")

PATIENCE_S = 60.0
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def engine() -> str:
    return "rocksdb"


def note(number: object = 0, minute: int = 0, **given: Any) -> Episode:
    return Episode("bot", "note", {"number": str(number)}, event_time=NOON + timedelta(minutes=minute), **given)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, though not for ever."""

    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await main

    return asyncio.run(bounded())


def await_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


Opened = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path, engine: str) -> Opened:
    """Open a store of this test for asyncio."""

    @asynccontextmanager
    async def open_it(**settings: Any) -> AsyncIterator[AsyncStore]:
        async with await aopen_store(tmp_path / "data", **{"backend": engine, **settings}) as store:
            yield store

    return open_it


class Syncs:
    """Stands before the sync of a store's engine: counts, holds up, makes fail."""

    def __init__(self, store: AsyncStore) -> None:
        self._backend = store._store._backend
        self._real = self._backend.sync
        self.begun = 0
        self.ended = 0
        self.error: StorageError | None = None
        self.came = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self._backend.sync = self._sync  # type: ignore[method-assign]
        self._backend.reopen = self._reopen  # type: ignore[attr-defined]

    def _sync(self) -> None:
        self.begun += 1
        self.came.set()
        self._open.wait(PATIENCE_S / 2)
        if self.error is not None:
            raise self.error
        self._real()
        self.ended += 1

    def _reopen(self) -> None:
        raise StorageError("the disk is broken")

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    async def await_one(self) -> None:
        assert await asyncio.to_thread(self.came.wait, PATIENCE_S / 2)


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in vars(kind).items() if not name.startswith("_")}


def parameters(verb: Any) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(verb).parameters.values()]


class TestNames:
    @pytest.mark.parametrize(("plain", "awaited"), [(AgentMemory, AsyncAgentMemory), (Store, AsyncStore)])
    def test_both_faces_have_the_same_verbs(self, plain: type, awaited: type) -> None:
        # A store keeps its settings as an attribute, makes the other face's memories, and is what a server is built on.
        names = set(public(plain)) - {"async_agent_memory", "account_rows", "directory"}
        assert set(public(awaited)) - {"settings"} == names
        assert len(names) >= 9

    @pytest.mark.parametrize(("plain", "awaited"), [(AgentMemory, AsyncAgentMemory), (Store, AsyncStore)])
    def test_each_takes_the_same_arguments(self, plain: type, awaited: type) -> None:
        for name, verb in public(awaited).items():
            if inspect.isfunction(verb):
                assert parameters(verb) == parameters(getattr(plain, name)), name

    def test_so_does_opening(self) -> None:
        assert parameters(aopen_store) == parameters(open_store)

    @pytest.mark.parametrize(("plain", "awaited"), [(AgentMemory, AsyncAgentMemory), (Store, AsyncStore)])
    def test_each_gives_the_same_awaited(self, plain: type, awaited: type) -> None:
        for name, verb in public(awaited).items():
            if not inspect.isfunction(verb) or name in {"agent_memory", "durability"}:
                continue
            assert inspect.iscoroutinefunction(verb) or name == "episodes", name
            if name != "episodes":
                expected = inspect.signature(getattr(plain, name)).return_annotation
                assert inspect.signature(verb).return_annotation == expected

    def test_the_settings_are_those_of_the_store(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(recent_cache_bytes=12345) as store:
                assert store.settings.storage.recent_cache_bytes == 12345
                assert store.settings is store._store.settings

        run(main())


class TestVerbs:
    def test_every_verb_does_what_the_other_face_does(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                memory, plain = store.agent_memory("bot"), store._store.agent_memory("bot")
                assert memory.agent_id == "bot"
                first = note(1, 1)
                assert await memory.store_episode(first, idempotency_key="k") == first.id
                assert await memory.store_episode(note(1, 1), idempotency_key="k") == first.id
                few, many = [note(n, n) for n in range(2, 5)], [note(n, n) for n in range(5, 55)]
                assert await memory.store_episodes(few) == [episode.id for episode in few]
                assert await memory.store_episodes(iter(many)) == [episode.id for episode in many]
                told: list[int] = []
                assert await memory.import_episodes((note(n, n) for n in range(55, 100)), progress=told.append) == 45
                assert told == [45]
                updated = await memory.update_episode(first.id, content={"number": "changed"}, metadata={"m": 1})
                assert updated == plain.get_episode(first.id) == await memory.get_episode(first.id)
                assert await memory.history(first.id) == plain.history(first.id) != []
                assert await memory.delete_episode(few[0].id)
                assert not await memory.delete_episode(few[0].id)
                assert await memory.delete_episode(few[1].id, erase=True)
                for limit in (1, _DIRECT_EPISODES_MAX, _DIRECT_EPISODES_MAX + 1, 1000):
                    assert await memory.get_recent_episodes(limit) == plain.get_recent_episodes(limit)
                page = await memory.get_recent_episodes(7, before=many[9].id, episode_type="note")
                assert page == plain.get_recent_episodes(7, before=many[9].id, memory_type="episodic")
                ids = [many[3].id, few[0].id, first.id]
                assert await memory.get_episodes(ids) == plain.get_episodes(ids)
                assert [e async for e in memory.episodes()] == list(plain.episodes())
                bounds = (NOON + timedelta(minutes=20), NOON + timedelta(minutes=30))
                assert [e async for e in memory.episodes(*bounds, reverse=True)] == list(
                    plain.episodes(*bounds, reverse=True)
                )
                # The average is of another moment.
                one, other = await memory.get_statistics(), plain.get_statistics()
                assert (one.total_episodes, one.bytes, one.episodes_by_type) == (
                    other.total_episodes,
                    other.bytes,
                    other.episodes_by_type,
                )
                assert await store.agents() == ["bot"]
                assert (await store.stats())["backend"] == store._store.stats()["backend"]
                assert store.durability().level == "interval"
                await store.flush()
                await store.compact()
                assert (await store.verify()).problems == []
                assert (await store.repair()).after.problems == []
                assert (await memory.clear()).episodes == 97
                assert await memory.get_recent_episodes() == []
                assert await store.agents() == []

        run(main())

    def test_errors_are_the_same(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                memory = store.agent_memory("bot")
                id_ = await memory.store_episode(note())
                with pytest.raises(ConflictError):
                    await memory.store_episode(note(1, id=id_))
                with pytest.raises(NotFoundError):
                    await memory.update_episode(note().id, content={})
                with pytest.raises(InvalidError):
                    await memory.store_episodes(note(n) for n in range(1001))
                with pytest.raises(InvalidError):
                    store.agent_memory("a/b")
                with pytest.raises(ValueError, match="stop") as caught:
                    await memory.import_episodes(stopping())
                assert len(caught.value.stored_ids) == 1000  # type: ignore[attr-defined]

        def stopping() -> Iterator[Episode]:
            for number in range(1010):
                yield note(number)
            raise ValueError("stop")

        run(main())

    def test_episodes_are_those_of_the_moment_of_the_call(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                memory = store.agent_memory("bot")
                given = [note(n, n) for n in range(600)]
                await memory.store_episodes(given)
                view, half_read = memory.episodes(), memory.episodes()
                begun = [await anext(half_read)]
                await memory.store_episode(note("late", -1))
                await memory.delete_episode(given[300].id)
                assert [e.id for e in begun] + [e.id async for e in half_read] == [e.id for e in given]
                assert [e.id async for e in view] == [e.id for e in given]

        run(main())

    def test_a_view_may_be_left_half_read(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                memory = store.agent_memory("bot")
                await memory.store_episodes(note(n, n) for n in range(600))
                async for episode in memory.episodes():
                    if episode.content["number"] == "3":
                        break
                await memory.clear(erase=True)
                assert [e async for e in memory.episodes()] == []

        run(main())

    def test_many_tasks_write_and_read_at_once(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                memory = store.agent_memory("bot")

                async def work(task: int) -> None:
                    id_ = await memory.store_episode(note(task, task))
                    await memory.update_episode(id_, metadata={"task": task})
                    assert await memory.get_episode(id_)
                    await memory.get_recent_episodes(50)
                    if task % 3 == 0:
                        assert await memory.delete_episode(id_)

                await asyncio.gather(*(work(task) for task in range(150)))
                assert (await memory.get_statistics()).total_episodes == 100
                assert (await store.verify()).problems == []

        run(main())


class TestSyncs:
    def test_two_hundred_tasks_share_a_few_syncs(self, opened: Opened) -> None:
        async def main() -> int:
            async with opened(sync_writes=True) as store:
                syncs, backend, loop = Syncs(store), store._store._backend, asyncio.get_running_loop()
                counted = backend.sync

                def sync_slowly() -> None:
                    turned = threading.Event()
                    loop.call_soon_threadsafe(turned.set)
                    assert turned.wait(PATIENCE_S)
                    counted()

                backend.sync = sync_slowly  # no disk is quicker than one turn of a loop
                memory = store.agent_memory("bot")
                await asyncio.gather(*(memory.store_episode(note(n, n)) for n in range(200)))
                assert syncs.ended == syncs.begun
                return syncs.begun

        assert 1 <= run(main()) <= 5

    def test_all_who_wait_share_one(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                syncs = Syncs(store)
                syncs.hold()
                memory = store.agent_memory("bot")
                first = asyncio.create_task(memory.store_episode(note("first")))
                await syncs.await_one()
                others = [asyncio.create_task(memory.store_episode(note(n, n))) for n in range(200)]
                while store._store._durability.last_ticket < 201:
                    await asyncio.sleep(0)
                assert not any(task.done() for task in [first, *others])
                syncs.let_go()
                await asyncio.gather(first, *others)
                assert syncs.begun == syncs.ended == 2

        run(main())

    def test_the_event_loop_goes_on_while_a_sync_is_slow(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                memory, other = store.agent_memory("bot"), store.agent_memory("other")
                id_ = await memory.store_episode(note())
                syncs = Syncs(store)
                syncs.hold()
                writer = asyncio.create_task(memory.store_episode(note(1)))
                await syncs.await_one()
                ticks = 0
                for _ in range(1000):
                    await asyncio.sleep(0)
                    ticks += 1
                assert await memory.get_episode(id_)
                assert len(await memory.get_recent_episodes()) == 2
                assert [e.id async for e in memory.episodes()]
                assert (await other.get_statistics()).total_episodes == 0
                assert ticks == 1000
                assert not writer.done()
                syncs.let_go()
                await writer

        run(main())

    def test_threads_and_tasks_share_them(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                syncs = Syncs(store)
                syncs.hold()
                memory, plain = store.agent_memory("bot"), store._store.agent_memory("bot")
                first = asyncio.create_task(memory.store_episode(note("first")))
                await syncs.await_one()
                tasks = [asyncio.create_task(memory.store_episode(note(n, n))) for n in range(10)]
                threads = [asyncio.create_task(asyncio.to_thread(plain.store_episode, note(n, n))) for n in range(3)]
                durability = store._store._durability
                while durability.last_ticket < 11 or len(durability._next.writes) < 3:
                    await asyncio.sleep(0)
                syncs.let_go()
                await asyncio.gather(first, *tasks, *threads)
                assert syncs.begun == 2

        run(main())

    def test_a_failed_sync_fails_all_who_wait(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                memory = store.agent_memory("bot")
                id_ = await memory.store_episode(note("kept"))
                syncs = Syncs(store)
                syncs.hold()
                syncs.error = StorageError("cannot sync")
                tasks = [asyncio.create_task(memory.store_episode(note(n, n))) for n in range(10)]
                await syncs.await_one()
                syncs.let_go()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {OutcomeUnknownError}
                with pytest.raises(OutcomeUnknownError):
                    await memory.store_episode(note())
                assert await memory.get_episode(id_)
                assert syncs.begun == 1

        run(main())

    def test_a_task_that_comes_too_late_to_wait_does_not_sync_again(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                syncs = Syncs(store)
                durability = store._store._durability
                ticket = durability.wrote()
                syncs.error = StorageError("cannot sync")
                with pytest.raises(OutcomeUnknownError):
                    await durability.wait_async(ticket)
                syncs.error = None
                with pytest.raises(OutcomeUnknownError):
                    await durability.wait_async(ticket)
                assert syncs.begun == 1

        run(main())

    def test_an_engine_that_may_block_never_runs_in_the_event_loop(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                backend = store._store._backend
                backend.__class__ = type("Blocked", (type(backend), Blocking), {})
                memory = store.agent_memory("bot")
                here = threading.get_ident()
                write, get, scan, get_many = backend.write, backend.get, backend.scan, backend.get_many
                seen: set[int] = set()

                def noting(call: Callable[..., T]) -> Callable[..., T]:
                    def called(*args: Any, **kwargs: Any) -> T:
                        seen.add(threading.get_ident())
                        return call(*args, **kwargs)

                    return called

                backend.write, backend.get = noting(write), noting(get)
                backend.scan, backend.get_many = noting(scan), noting(get_many)
                id_ = await memory.store_episode(note())
                await memory.store_episodes([note(1)])
                await memory.get_episode(note().id)
                await memory.update_episode(id_, content={})
                await memory.get_recent_episodes(1)
                await memory.get_statistics()
                await memory.get_episodes([id_])
                await memory.history(id_)
                assert [e.id async for e in memory.episodes()]
                await memory.delete_episode(id_)
                await memory.clear()
                await store.agents()
                assert seen
                assert here not in seen

        run(main())


class TestCancellations:
    def test_a_cancelled_wait_does_no_harm(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                syncs = Syncs(store)
                syncs.hold()
                memory = store.agent_memory("bot")
                cancelled = [asyncio.create_task(memory.store_episode(note(n, n))) for n in range(5)]
                await syncs.await_one()
                kept = [asyncio.create_task(memory.store_episode(note(n, n))) for n in range(5, 10)]
                while store._store._durability.last_ticket < 10:
                    await asyncio.sleep(0)
                for task in cancelled:
                    task.cancel()
                outcomes = await asyncio.gather(*cancelled, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
                syncs.let_go()
                await asyncio.gather(*kept)
                await memory.store_episode(note("after"))
                # They were written before they were cancelled: to be cancelled is not to be undone.
                assert (await memory.get_statistics()).total_episodes == 11

        run(main())

    def test_a_time_out_does_no_harm(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                syncs = Syncs(store)
                syncs.hold()
                memory, episode = store.agent_memory("bot"), note()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(memory.store_episode(episode), 0.01)
                syncs.let_go()
                assert await memory.store_episode(episode) == episode.id
                assert (await memory.get_statistics()).total_episodes == 1

        run(main())

    def test_an_import_that_is_cancelled_ends_with_its_batch_and_tells_what_is_stored(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                memory, taken = store.agent_memory("bot"), 0
                task: asyncio.Task[int]

                def endless() -> Iterator[Episode]:
                    nonlocal taken
                    while True:
                        taken += 1
                        yield note(taken, taken)

                def told(count: int) -> None:
                    if count == 2000:
                        task.get_loop().call_soon_threadsafe(task.cancel)

                task = asyncio.create_task(memory.import_episodes(endless(), progress=told))
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
                stored_ids = caught.value.stored_ids  # type: ignore[attr-defined]
                assert len(stored_ids) == taken >= 2000
                assert stored_ids == [episode.id async for episode in memory.episodes()]

        run(main())

    def test_a_function_of_the_callers_that_raises_stop_iteration_ends_the_verb(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened() as store:
                memory = store.agent_memory("bot")
                with pytest.raises(RuntimeError, match="StopIteration") as caught:
                    await memory.import_episodes([note()], progress=lambda _: next(iter([])))
                assert len(caught.value.stored_ids) == 1  # type: ignore[attr-defined]

        run(main())

    def test_an_opening_that_is_cancelled_leaves_the_directory_free(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opening, go_on, over = threading.Event(), threading.Event(), threading.Event()

        def slowly(*args: Any, **kwargs: Any) -> Store:
            opening.set()
            go_on.wait(PATIENCE_S)
            try:
                return open_store(*args, **kwargs)
            finally:
                over.set()

        monkeypatch.setattr(qilbee_core.aio, "open_store", slowly)

        async def main() -> None:
            task = asyncio.create_task(aopen_store(tmp_path / "data"))
            await asyncio.to_thread(opening.wait, PATIENCE_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            go_on.set()
            await asyncio.to_thread(over.wait, PATIENCE_S)

        run(main())  # which ends once its threads have
        open_store(tmp_path / "data").close()


class Loop:
    """An event loop in a thread of its own, that can be closed under its tasks."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, main: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(main, self.loop)

    def close(self) -> None:
        async def forget_tasks() -> None:
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]

        self.submit(forget_tasks()).result(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


class TestClosedLoops:
    def test_a_loop_that_is_closed_before_the_sync_ends_does_no_harm_to_others(self, tmp_path: Path) -> None:
        store = open_store(tmp_path / "data", sync_writes=True)
        face = AsyncStore(store)
        syncs, memory, plain = Syncs(face), face.agent_memory("bot"), store.agent_memory("bot")
        syncs.hold()
        leader: Future[str] = Future()
        threading.Thread(target=lambda: leader.set_result(plain.store_episode(note("leader"))), daemon=True).start()
        assert syncs.came.wait(PATIENCE_S)
        gone, living = Loop(), Loop()
        _ = gone.submit(memory.store_episode(note("gone")))
        await_until(lambda: store._durability.last_ticket == 2 and len(store._durability._next.tasks) == 1)
        waiting = living.submit(memory.store_episode(note("living")))
        await_until(lambda: store._durability.last_ticket == 3 and len(store._durability._next.tasks) == 2)
        gone.close()
        syncs.let_go()
        assert leader.result(PATIENCE_S)
        assert waiting.result(PATIENCE_S)
        assert plain.store_episode(note("after"))
        living.close()
        face._close()
        with open_store(tmp_path / "data") as store:
            assert store.agent_memory("bot").get_statistics().total_episodes == 4

    def test_it_does_no_harm_to_the_thread_that_leads(self, tmp_path: Path) -> None:
        store = open_store(tmp_path / "data", sync_writes=True)
        face = AsyncStore(store)
        syncs, memory, plain = Syncs(face), face.agent_memory("bot"), store.agent_memory("bot")
        syncs.hold()
        episode, leader = note("leader"), Future[str]()

        def lead() -> None:
            try:
                leader.set_result(plain.store_episode(episode))
            except BaseException as error:
                leader.set_exception(error)

        threading.Thread(target=lead, daemon=True).start()
        assert syncs.came.wait(PATIENCE_S)
        gone = Loop()
        _ = gone.submit(memory.store_episode(episode))  # already stored, by the write that is just being synced
        await_until(lambda: bool(store._durability._next.tasks))
        gone.close()
        syncs.let_go()
        assert leader.result(PATIENCE_S) == episode.id
        face._close()

    def test_one_store_may_be_used_from_several_loops_one_after_another(self, tmp_path: Path) -> None:
        store = AsyncStore(open_store(tmp_path / "data", sync_writes=True))
        for number in range(3):
            run(store.agent_memory("bot").store_episode(note(number)))
        assert run(store.agent_memory("bot").get_statistics()).total_episodes == 3
        run(store.close())


# A parent that has used every thread of the pool, and children that ask for one.
FORK = """
import asyncio, os, signal, sys
from qilbee_core import *

async def begin():
    store = await aopen_store(sys.argv[1], backend=sys.argv[2], sync_writes=True)
    memory = store.agent_memory("bot")
    known = await memory.store_episode(Episode("bot", "note", {}))
    await asyncio.gather(*(store.agents() for _ in range(20)))
    return store, memory, known

async def told(verb):
    await verb()

store, memory, known = asyncio.run(begin())
verbs = [
    store.agents, store.flush, store.compact, store.stats, store.verify, store.repair, memory.get_statistics,
    memory.clear, lambda: memory.get_episode(known), lambda: memory.get_episodes([known]),
    lambda: memory.get_recent_episodes(100), lambda: memory.store_episode(Episode("bot", "note", {})),
    lambda: memory.delete_episode(known), store.close,
]
for verb in verbs:
    if (pid := os.fork()) == 0:
        signal.alarm(60)
        try:
            asyncio.run(told(verb))
        except StoreClosedError:
            os._exit(7)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), end=" ")
print(asyncio.run(store.agents()))
asyncio.run(store.close())
"""


class TestProcesses:
    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
    def test_a_forked_child_is_told_at_once_and_the_parent_goes_on(self, tmp_path: Path, engine: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", FORK, tmp_path / "data", engine],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 3,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "7 " * 13 + "0 ['bot']\n"

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
    def test_a_second_opener_is_told_who_holds_it(self, tmp_path: Path, engine: str) -> None:
        async def open_twice() -> None:
            async with await aopen_store(tmp_path / "data", backend=engine) as store:
                with pytest.raises(StoreLockedError, match=rf"is held by process {os.getpid()} \(this one\)"):
                    await aopen_store(tmp_path / "data")
                assert await store.agents() == []

        asyncio.run(open_twice())


class TestClosing:
    def test_every_verb_of_a_closed_store_says_so(self, opened: Opened) -> None:
        async def main() -> dict[str, str]:
            async with opened() as store:
                memory = store.agent_memory("bot")
                id_ = await memory.store_episode(note())
                await memory.get_recent_episodes()
                view = memory.episodes()
                await anext(view)
            calls: dict[str, Callable[[], Any]] = {
                "agent_memory": lambda: store.agent_memory("bot"),
                "agents": store.agents,
                "flush": store.flush,
                "compact": store.compact,
                "stats": store.stats,
                "verify": store.verify,
                "repair": store.repair,
                "store_episode": lambda: memory.store_episode(note()),
                "store_episodes": lambda: memory.store_episodes([note()]),
                "store_episodes, many": lambda: memory.store_episodes(note(n) for n in range(20)),
                "import_episodes": lambda: memory.import_episodes([note()]),
                "get_episode": lambda: memory.get_episode(id_),
                "get_episodes": lambda: memory.get_episodes([id_]),
                "get_recent_episodes": lambda: memory.get_recent_episodes(1),
                "get_recent_episodes, many": lambda: memory.get_recent_episodes(100),
                "episodes": lambda: anext(memory.episodes()),
                "update_episode": lambda: memory.update_episode(id_, content={}),
                "history": lambda: memory.history(id_),
                "delete_episode": lambda: memory.delete_episode(id_),
                "clear": memory.clear,
                "get_statistics": memory.get_statistics,
            }
            outcomes = {}
            for name, call in calls.items():
                try:
                    answer = call()
                    if inspect.isawaitable(answer):
                        await answer
                    outcomes[name] = "accepted"
                except Exception as error:
                    outcomes[name] = type(error).__name__
            await store.close()
            return {name: outcome for name, outcome in outcomes.items() if outcome != "StoreClosedError"}

        assert run(main()) == {}

    def test_it_waits_for_those_who_wait_and_leaves_no_thread(self, opened: Opened) -> None:
        before = set(threading.enumerate())

        async def main() -> None:
            async with opened(sync_writes=True) as store:
                syncs = Syncs(store)
                syncs.hold()
                memory = store.agent_memory("bot")
                tasks = [asyncio.create_task(memory.store_episode(note(n, n))) for n in range(10)]
                await memory.get_episodes([])
                await syncs.await_one()
                closing = asyncio.create_task(store.close())
                syncs.let_go()
                await closing
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} <= {str, OutcomeUnknownError, StoreClosedError}
                assert str in {type(outcome) for outcome in outcomes}

        run(main())
        # Whoever led the last sync has told all that it is over, and may not have come to his own end yet.
        await_until(lambda: set(threading.enumerate()) <= before)

    def test_a_write_between_the_last_sync_and_the_close_of_the_engine_is_told_so(self, opened: Opened) -> None:
        async def main() -> None:
            async with opened(sync_writes=True) as store:
                memory = store.agent_memory("bot")
                await memory.store_episode(note(1))
                store._store._durability.close()
                try:
                    await memory.store_episode(note(2))
                except StorageError:
                    return
                # Or it is durable: the engine was not closed yet.
                assert (await memory.get_statistics()).total_episodes == 2

        run(main())

    def test_the_event_loop_goes_on_while_a_store_opens_and_closes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = threading.get_ident()
        seen: list[int] = []

        def noting(*args: Any, **kwargs: Any) -> Store:
            seen.append(threading.get_ident())
            store = open_store(*args, **kwargs)
            close = store.close

            def closing() -> None:
                seen.append(threading.get_ident())
                close()

            store.close = closing  # type: ignore[method-assign]
            return store

        monkeypatch.setattr(qilbee_core.aio, "open_store", noting)

        async def main() -> None:
            async with await aopen_store(tmp_path / "data") as store:
                assert await store.agents() == []

        run(main())
        assert len(seen) == 2
        assert here not in seen
