"""When an acknowledged write survives a power cut: levels, answers, and syncs that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as StillRunning
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from shared.notes import on_disk
from shared.open_files import copy_open_store
from shared.syncs import (
    FAILURES,
    IMPATIENCE_S,
    PATIENCE_S,
    OpenHere,
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
    AgentMemory,
    ConflictError,
    Episode,
    NotFoundError,
    OutcomeUnknownError,
    SettingsError,
    StorageError,
    StorageFullError,
    StorageSettings,
    StoreClosedError,
    WriteBatch,
)


@pytest.fixture(scope="session")
def engine() -> str:
    """Syncs are shared above the engines: one is enough, where files do not matter."""
    return "rocksdb"


@pytest.fixture
def syncs_of(open_here: OpenHere) -> Iterator[SyncsOf]:
    with syncs_let_go_at_the_end() as make:
        yield make


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

    @pytest.mark.parametrize("settings", [{}, {"durability": "async"}, {"enable_wal": False}])
    def test_what_is_acknowledged_while_a_close_syncs_is_synced_too(
        self, open_here: OpenHere, syncs_of: SyncsOf, settings: dict[str, Any]
    ) -> None:
        store = open_here(**{"wal_sync_interval_ms": 3_600_000, **settings})
        memory = store.agent_memory("bot")
        memory.store_episode(note("before"))
        syncs = syncs_of(store)
        syncs.hold()
        closing = in_thread(store.close)
        syncs.await_one()
        memory.store_episode(note("meanwhile"))
        syncs.let_one_go()
        syncs.await_one()  # of what was stored during the first one; from now on nothing is
        with pytest.raises(StoreClosedError):
            memory.store_episode(note("late"))
        syncs.let_go()
        closing.result(PATIENCE_S)
        assert store.durability().unsynced_age_ms == 0
        with open_here() as again:
            found = [episode.content["number"] for episode in again.agent_memory("bot").episodes()]
            assert found == ["before", "meanwhile"]


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
