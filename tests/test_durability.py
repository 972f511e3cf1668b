"""When an acknowledged write survives a power cut: levels, shared syncs, and syncs that fail."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from shared.open_files import copy_open_store

from qilbee_core import (
    AgentMemory,
    ConflictError,
    CorruptRecordError,
    Episode,
    NotFoundError,
    OutcomeUnknownError,
    SettingsError,
    StorageError,
    StorageFullError,
    StorageSettings,
    Store,
    StoreClosedError,
    WriteBatch,
    WriteStallError,
)
from qilbee_core import durability as durability_module
from qilbee_core.durability import Durability

T = TypeVar("T")
OpenHere = Callable[..., Store]

PATIENCE_S = 60.0  # for what must happen: nothing is ever proved by waiting that long
IMPATIENCE_S = 0.2  # for what must not happen: a slow machine can only miss a bug, never see one that is not there


@pytest.fixture(scope="session")
def engine() -> str:
    """Syncs are shared above the engines: one is enough, where files do not matter."""
    return "rocksdb"


on_disk = pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])


def note(number: object = 0, agent_id: str = "bot", **given: Any) -> Episode:
    return Episode(agent_id, "note", {"number": str(number)}, **given)


class Syncs:
    """Stands before the sync of a store's engine: counts, holds up, makes fail.

    Once one has failed the engine cannot be opened again either: how it comes back is told in test_disk_failures.py.
    """

    def __init__(self, store: Store) -> None:
        self._backend = store._backend
        self._real = self._backend.sync
        self.begun = 0
        self.ended = 0
        self.error: BaseException | None = None
        self._came = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()
        self._interrupted: threading.Event | None = None
        self._backend.sync = self._sync  # type: ignore[method-assign]
        self._backend.reopen = self._reopen  # type: ignore[attr-defined]

    def _sync(self) -> None:
        self.begun += 1
        self._came.release()
        opened = self._open
        opened.wait(PATIENCE_S)
        if opened is self._interrupted:
            raise KeyboardInterrupt
        if self.error is not None:
            raise self.error
        self._real()
        self.ended += 1

    def _reopen(self) -> None:
        raise StorageError("the disk is broken")

    def hold(self) -> None:
        """Let every sync from now on wait for ``let_go``."""
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def let_one_go(self) -> None:
        """Let only the one go that waits now."""
        held, self._open = self._open, threading.Event()
        held.set()

    def interrupt_one(self) -> None:
        """Let the one that waits now end as with Ctrl-C, and the others go."""
        held, self._open = self._open, threading.Event()
        self._open.set()
        self._interrupted = held
        held.set()

    def await_one(self) -> None:
        """Wait until one more has begun."""
        assert self._came.acquire(timeout=PATIENCE_S), "no sync came"


SyncsOf = Callable[[Store], Syncs]


@pytest.fixture
def syncs_of(open_here: OpenHere) -> Iterator[SyncsOf]:
    """Makes :class:`Syncs`, which hold up nothing any more when the stores are closed after the test."""
    made: list[Syncs] = []

    def make(store: Store) -> Syncs:
        made.append(Syncs(store))
        return made[-1]

    yield make
    for syncs in made:
        syncs.let_go()


class Writes:
    """Tells when writes hold their ticket, or are left to whoever leads the next sync."""

    def __init__(self, store: Store) -> None:
        self._durability = store._durability
        self._before = self._durability._written

    def await_many(self, count: int) -> None:
        self._before += count
        await_until(lambda: self._durability._written + len(self._durability._next.writes) >= self._before)


def in_thread(call: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
    """The result to come of a call in a thread of its own, which nobody waits for if it hangs."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def await_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def outcome_of(call: Callable[[], object]) -> str:
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return "done"


class TestLevels:
    @pytest.mark.parametrize(
        ("settings", "level"),
        [
            ({}, "interval"),
            ({"sync_writes": True}, "sync"),
            ({"enable_wal": False}, "none"),
            ({"sync_writes": False, "enable_wal": True}, "interval"),
            ({"wal_sync_interval_ms": 10}, "interval"),
            ({"durability": "async"}, "async"),
            ({"durability": "sync"}, "sync"),
            ({"durability": "sync", "sync_writes": True}, "sync"),
            ({"durability": "none", "enable_wal": False}, "none"),
            ({"durability": "none"}, "none"),
        ],
    )
    def test_the_settings_name_it(self, open_here: OpenHere, settings: dict[str, Any], level: str) -> None:
        assert StorageSettings(**settings).level == level
        store = open_here(**settings)
        assert store.durability().level == level
        store.agent_memory("bot").store_episode(note())
        assert store.agent_memory("bot").get_statistics().total_episodes == 1

    @pytest.mark.parametrize(
        "settings",
        [
            {"sync_writes": True, "enable_wal": False},
            {"durability": "async", "sync_writes": True},
            {"durability": "interval", "enable_wal": False},
            {"durability": "sync", "enable_wal": False},
            {"durability": "none", "sync_writes": True},
            {"durability": "often"},
            {"wal_sync_interval_ms": 9},
            {"wal_sync_interval_ms": 0},
            {"wal_sync_interval_ms": -1},
            {"sync_writes": 1},
            {"sync_writes": "yes"},
        ],
    )
    def test_settings_that_contradict_each_other_are_refused_and_make_no_store(
        self, open_here: OpenHere, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        with pytest.raises(SettingsError):
            open_here(**settings)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("settings", [{"durability": "async"}, {"enable_wal": False}, {}])
    def test_only_at_sync_does_a_writer_sync(
        self, open_here: OpenHere, syncs_of: SyncsOf, settings: dict[str, Any]
    ) -> None:
        store = open_here(**settings, **({} if settings else {"wal_sync_interval_ms": 3_600_000}))
        syncs = syncs_of(store)
        memory = store.agent_memory("bot")
        for number in range(20):
            id_ = memory.store_episode(note(number))
        memory.update_episode(id_, content={})
        memory.delete_episode(id_)
        assert syncs.begun == 0

    def test_at_sync_every_write_is_synced_when_the_call_returns(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        syncs = syncs_of(store)
        memory = store.agent_memory("bot")
        id_ = memory.store_episode(note())
        calls: list[Callable[[], object]] = [
            lambda: memory.store_episode(note(1)),
            lambda: memory.store_episodes([note(2), note(3)]),
            lambda: memory.import_episodes(note(number) for number in range(10)),
            lambda: memory.update_episode(id_, content={}),
            lambda: memory.delete_episode(id_),
            memory.clear,
        ]
        for done, call in enumerate(calls, 2):
            call()
            assert syncs.ended == syncs.begun == done

    @pytest.mark.parametrize("settings", [{"sync_writes": True}, {}, {"durability": "async"}, {"enable_wal": False}])
    @on_disk
    def test_a_clean_close_is_durable_at_every_level(self, open_here: OpenHere, settings: dict[str, Any]) -> None:
        store = open_here(**settings)
        ids = store.agent_memory("bot").store_episodes(note(number) for number in range(100))
        store.close()
        store = open_here()
        assert [episode.id for episode in store.agent_memory("bot").episodes()] == ids
        assert store.verify().problems == []

    @pytest.mark.parametrize("settings", [{"sync_writes": True}, {}, {"durability": "async"}, {"enable_wal": False}])
    @on_disk
    def test_after_a_flush_everything_is_in_the_files_at_every_level(
        self, open_here: OpenHere, syncs_of: SyncsOf, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        store = open_here(**settings)
        syncs = syncs_of(store)
        ids = store.agent_memory("bot").store_episodes(note(number) for number in range(100))
        store.flush()
        assert syncs.ended == 1
        assert store.durability().unsynced_age_ms == 0
        copy_open_store(tmp_path / "data", tmp_path / "copy")
        found = open_here("copy")
        assert [episode.id for episode in found.agent_memory("bot").episodes()] == ids
        assert found.verify().problems == []

    @pytest.mark.parametrize("settings", [{}, {"durability": "async"}, {"enable_wal": False}])
    def test_a_close_syncs_what_was_not_synced_yet(
        self, open_here: OpenHere, syncs_of: SyncsOf, settings: dict[str, Any]
    ) -> None:
        store = open_here(**{"wal_sync_interval_ms": 3_600_000, **settings})
        syncs = syncs_of(store)
        store.agent_memory("bot").store_episode(note())
        store.close()
        assert syncs.ended >= 1


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


# What the store says because of an earlier write, which must be durable by then.
ANSWERS: dict[str, tuple[Callable[[AgentMemory, Episode], object], type[Exception] | None]] = {
    "already stored": (lambda memory, known: memory.store_episode(known), None),
    "already stored, in a batch": (lambda memory, known: memory.store_episodes([known, known]), None),
    "already stored, in an import": (lambda memory, known: memory.import_episodes([known]), None),
    "already stored, by its key": (lambda memory, _: memory.store_episode(note(), idempotency_key="k"), None),
    "nothing to change": (lambda memory, known: memory.update_episode(known.id, content=known.content), None),
    "already gone": (lambda memory, known: memory.delete_episode(note().id), None),
    "stored with other content": (lambda memory, known: memory.store_episode(note(9, id=known.id)), ConflictError),
    "other content by its key": (lambda memory, _: memory.store_episode(note(9), idempotency_key="k"), ConflictError),
    "not there to be updated": (lambda memory, _: memory.update_episode(note().id, content={}), NotFoundError),
}


def test_after_an_unknown_outcome_the_caller_is_told_at_once_and_nothing_else_is_tried(
    open_here: OpenHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_here()
    backend: Any = store._backend
    tried: list[WriteBatch] = []
    seen, reopen = threading.Event(), backend.reopen

    def write(batch: WriteBatch) -> None:
        tried.append(batch)
        raise OutcomeUnknownError("no answer came")

    def reopen_later() -> None:
        assert seen.wait(PATIENCE_S)
        reopen()

    monkeypatch.setattr(backend, "write", write)
    backend.reopen = reopen_later  # or the store may be well again before anybody looks
    with pytest.raises(OutcomeUnknownError, match="no answer came"):
        store.agent_memory("bot").store_episode(note())
    assert len(tried) == 1
    assert store.health().problems
    monkeypatch.undo()
    seen.set()
    await_until(lambda: store.health().ok)
    store.agent_memory("bot").store_episode(note())


class TestAnswersThatRestOnEarlierWrites:
    @pytest.mark.parametrize("answer", ANSWERS)
    def test_they_wait_until_that_write_is_durable(self, open_here: OpenHere, syncs_of: SyncsOf, answer: str) -> None:
        call, error = ANSWERS[answer]
        store = open_here(sync_writes=True)
        memory, known = store.agent_memory("bot"), note()
        syncs = syncs_of(store)
        syncs.hold()
        writer = in_thread(memory.store_episode, known, idempotency_key="k")
        syncs.await_one()
        told = in_thread(lambda: (outcome_of(lambda: call(memory, known)), syncs.ended))
        with suppress(StillRunning):
            told.result(IMPATIENCE_S)
        syncs.let_go()
        writer.result(PATIENCE_S)
        expected = "done" if error is None else error.__name__
        assert told.result(PATIENCE_S) == (expected, 1)

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_where_others_write_too_they_wait_for_a_sync_of_their_own(
        self, open_here: OpenHere, syncs_of: SyncsOf, answer: str
    ) -> None:
        # What is there may be another's, who was told that its end is unknown.
        call, error = ANSWERS[answer]
        store = open_here(backend="ephemeral", durability="sync")
        memory, known = store.agent_memory("bot"), note()
        memory.store_episode(known, idempotency_key="k")
        syncs = syncs_of(store)
        assert outcome_of(lambda: call(memory, known)) == ("done" if error is None else error.__name__)
        assert syncs.ended == 1

    def test_already_gone_waits_for_the_delete(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        id_ = memory.store_episode(note())
        syncs = syncs_of(store)
        syncs.hold()
        deleting = in_thread(memory.delete_episode, id_)
        syncs.await_one()
        told = in_thread(lambda: (memory.delete_episode(id_), syncs.ended))
        with suppress(StillRunning):
            told.result(IMPATIENCE_S)
        syncs.let_go()
        assert deleting.result(PATIENCE_S) is True
        assert told.result(PATIENCE_S) == (False, 1)

    def test_nothing_to_clear_waits_for_the_clear(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        memory.store_episode(note())
        syncs = syncs_of(store)
        syncs.hold()
        clearing = in_thread(memory.clear)
        syncs.await_one()
        told = in_thread(lambda: (memory.clear().episodes, syncs.ended))
        with suppress(StillRunning):
            told.result(IMPATIENCE_S)
        syncs.let_go()
        assert clearing.result(PATIENCE_S).episodes == 1
        assert told.result(PATIENCE_S) == (0, 1)

    def test_also_for_a_write_that_has_not_got_its_ticket_yet(
        self, open_here: OpenHere, syncs_of: SyncsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_here(sync_writes=True)
        memory, known = store.agent_memory("bot"), note()
        syncs = syncs_of(store)
        wrote, written, ticketed = store._durability.wrote, threading.Event(), threading.Event()

        def slowly() -> int:
            written.set()
            assert ticketed.wait(PATIENCE_S)
            return wrote()

        monkeypatch.setattr(store._durability, "wrote", slowly)
        writer = in_thread(memory.store_episode, known)
        assert written.wait(PATIENCE_S)
        told = in_thread(lambda: (memory.store_episode(known), syncs.ended))
        with suppress(StillRunning):
            told.result(IMPATIENCE_S)
        ticketed.set()
        assert told.result(PATIENCE_S) == (known.id, 1)
        writer.result(PATIENCE_S)


FAILURES: dict[str, Callable[[], Exception]] = {
    "of the disk": lambda: StorageError("cannot sync: Input/output error"),
    "with an unknown outcome": lambda: OutcomeUnknownError("cannot sync: Input/output error"),
    "for want of space": lambda: StorageFullError("cannot sync: No space left on device"),
    "for corruption": lambda: CorruptRecordError("cannot sync: block checksum mismatch"),
    "of the system": lambda: OSError(5, "Input/output error"),
    "of a plugin's own kind": lambda: RuntimeError("a bug in an engine"),
}


class TestFailedSyncs:
    @pytest.mark.parametrize("failure", FAILURES)
    def test_all_who_wait_are_told_that_the_outcome_is_unknown_and_nobody_hangs(
        self, open_here: OpenHere, syncs_of: SyncsOf, failure: str
    ) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        kept = memory.store_episode(note("kept"))
        syncs, writes = syncs_of(store), Writes(store)
        syncs.hold()
        syncs.error = FAILURES[failure]()
        writers = [in_thread(memory.store_episodes, [note(number)]) for number in range(5)]
        writes.await_many(5)
        syncs.let_go()
        done, hanging = wait(writers, PATIENCE_S)
        assert not hanging
        assert [outcome_of(future.result) for future in done] == ["OutcomeUnknownError"] * 5
        assert syncs.begun == 1 or isinstance(syncs.error, StorageFullError)
        assert memory.get_episode(kept)

    def test_the_store_is_read_only_from_then_on(
        self, open_here: OpenHere, syncs_of: SyncsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        id_ = memory.store_episode(note("kept"))
        syncs = syncs_of(store)
        syncs.error = StorageError("cannot sync: Input/output error")
        failed = note("failed")
        with pytest.raises(OutcomeUnknownError, match="Input/output error"):
            memory.store_episode(failed)
        assert "read-only" in caplog.text
        refused: list[Callable[[], object]] = [
            lambda: memory.store_episode(failed),
            lambda: memory.store_episode(note()),
            lambda: memory.store_episodes([note()]),
            lambda: memory.import_episodes([note()]),
            lambda: memory.update_episode(id_, content={}),
            lambda: memory.delete_episode(id_),
            lambda: store.agent_memory("other").store_episode(note(agent_id="other")),
            memory.clear,
            store.flush,
            store.repair,
        ]
        written = count_writes(store)
        syncs.error = None  # it would work again, and mean nothing
        assert [outcome_of(call) for call in refused] == ["OutcomeUnknownError"] * len(refused)
        assert memory.get_episode(id_)
        assert memory.get_episodes([id_]) != [None]
        assert memory.get_recent_episodes()
        assert list(memory.episodes())
        assert memory.history(id_) == []
        assert memory.get_statistics().total_episodes >= 1
        assert store.agents() == ["bot"]
        assert store.verify().problems == []
        assert store.stats()["backend"]
        store.close()
        assert written == []
        assert syncs.begun == 1

    def test_what_was_not_synced_goes_on_counting_as_that(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        syncs = syncs_of(store)
        syncs.error = StorageError("no")
        with pytest.raises(OutcomeUnknownError):
            store.agent_memory("bot").store_episode(note())
        assert store.durability().unsynced_age_ms > 0

    @on_disk
    def test_opened_again_it_has_what_was_acknowledged_and_takes_the_rest_once(
        self, open_here: OpenHere, syncs_of: SyncsOf
    ) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        kept, failed = note("kept"), note("failed")
        memory.store_episode(kept)
        syncs_of(store).error = StorageError("no")
        with pytest.raises(OutcomeUnknownError, match=r"retry|open it again"):
            memory.store_episode(failed)
        store.close()
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        assert memory.store_episodes([kept, failed]) == [kept.id, failed.id]
        assert list(memory.episodes()) == [kept, failed]
        assert store.verify().problems == []

    def test_a_writer_that_comes_too_late_to_wait_does_not_sync_again(
        self, open_here: OpenHere, syncs_of: SyncsOf
    ) -> None:
        store = open_here(sync_writes=True)
        syncs = syncs_of(store)
        store._backend.write(WriteBatch([]))
        ticket = store._durability.wrote()
        syncs.error = StorageError("no")
        with pytest.raises(OutcomeUnknownError):
            store._durability.wait(ticket)
        syncs.error = None
        with pytest.raises(OutcomeUnknownError):
            store._durability.wait(ticket)
        assert syncs.begun == 1

    def test_ctrl_c_during_a_sync_leaves_nobody_hanging(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        syncs = syncs_of(store)
        syncs.error = KeyboardInterrupt()
        assert outcome_of(lambda: memory.store_episode(note(1))) == "KeyboardInterrupt"
        syncs.error = None
        after = [
            in_thread(outcome_of, lambda: memory.store_episode(note(2))),
            in_thread(outcome_of, store.flush),
        ]
        assert not wait(after, PATIENCE_S).not_done, "they wait for a leader that is gone"
        closing = in_thread(outcome_of, store.close)
        assert not wait([closing], PATIENCE_S).not_done


def count_writes(store: Store) -> list[WriteBatch]:
    written: list[WriteBatch] = []
    write = store._backend.write

    def count(batch: WriteBatch) -> None:
        written.append(batch)
        write(batch)

    store._backend.write = count  # type: ignore[method-assign]
    return written


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

    def test_ctrl_c_in_one_that_waits_for_those_expected_strands_nobody(
        self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_here(sync_writes=True)
        memory = store.agent_memory("bot")
        others: list[Future[str]] = []

        def interrupted(_: Durability, coming: Any) -> None:
            if not others:
                others.append(in_thread(memory.store_episode, note("other")))
                await_until(lambda: coming.size == 2)
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


class TestIntervals:
    def test_a_write_is_synced_in_the_background(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(wal_sync_interval_ms=10)
        syncs = syncs_of(store)
        for number in range(3):
            store.agent_memory("bot").store_episode(note(number))
            syncs.await_one()

    def test_a_write_during_a_sync_is_synced_by_another(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(wal_sync_interval_ms=10)
        syncs = syncs_of(store)
        syncs.hold()
        store.agent_memory("bot").store_episode(note(1))
        syncs.await_one()
        store.agent_memory("bot").store_episode(note(2))
        syncs.let_go()
        syncs.await_one()

    def test_a_write_counts_as_unsynced_until_its_sync_has_ended(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(wal_sync_interval_ms=10)
        syncs = syncs_of(store)
        syncs.hold()
        store.agent_memory("bot").store_episode(note(1))
        assert store.durability().unsynced_age_ms > 0
        syncs.await_one()
        assert store.durability().unsynced_age_ms > 0
        syncs.let_go()
        store.flush()
        assert store.durability().unsynced_age_ms == 0

    def test_writers_do_not_wait_for_it(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        store = open_here(wal_sync_interval_ms=10)
        syncs = syncs_of(store)
        syncs.hold()
        memory = store.agent_memory("bot")
        memory.store_episode(note(1))
        syncs.await_one()
        for number in range(10):
            memory.store_episode(note(number))
        assert memory.get_statistics().total_episodes == 11
        assert syncs.ended == 0
        syncs.let_go()

    @pytest.mark.parametrize("failure", FAILURES)
    def test_when_it_fails_the_store_is_read_only(self, open_here: OpenHere, syncs_of: SyncsOf, failure: str) -> None:
        store = open_here(wal_sync_interval_ms=10)
        memory = store.agent_memory("bot")
        syncs = syncs_of(store)
        syncs.error = FAILURES[failure]()
        id_ = memory.store_episode(note())
        syncs.await_one()
        await_until(lambda: not store.health().ok)
        refused = "StorageFullError" if isinstance(syncs.error, StorageFullError) else "OutcomeUnknownError"
        assert outcome_of(lambda: memory.store_episode(note())) == refused
        assert outcome_of(store.flush) == refused
        assert memory.get_episode(id_)
        store.close()
        assert syncs.begun == 1 or isinstance(syncs.error, StorageFullError)

    def test_a_closed_store_has_no_thread_left(self, open_here: OpenHere) -> None:
        before = set(threading.enumerate())
        store = open_here(wal_sync_interval_ms=3_600_000)
        assert "qilbee-sync" in {thread.name for thread in set(threading.enumerate()) - before}
        store.close()
        assert set(threading.enumerate()) <= before

    def test_nor_has_one_whose_close_failed(self, open_here: OpenHere, syncs_of: SyncsOf) -> None:
        before = set(threading.enumerate())
        store = open_here(wal_sync_interval_ms=3_600_000)
        store.agent_memory("bot").store_episode(note())

        def fail(batch: WriteBatch) -> None:
            raise StorageFullError("no space left")

        store._backend.write = fail  # type: ignore[method-assign]
        syncs_of(store).error = StorageError("no")
        with suppress(StorageError):
            store.close()
        assert set(threading.enumerate()) <= before
        with pytest.raises(StoreClosedError):
            store.agents()
