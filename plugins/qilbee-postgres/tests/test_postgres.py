"""What is special to PostgreSQL. What every engine must do stands in test_postgres_contract.py."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest
from postgres_server import Server, fresh_url, needs_postgres, shared_url
from qilbee_postgres.backend import PostgresBackend
from qilbee_postgres.connection import Connection

from qilbee_core import (
    BackendOptions,
    ConflictError,
    Delete,
    DeleteRange,
    Episode,
    Expect,
    FormatVersionError,
    InvalidError,
    OutcomeUnknownError,
    ProviderNotFoundError,
    Put,
    SettingsError,
    StorageError,
    Store,
    WriteBatch,
    load_plugins,
    open_store,
)

pytestmark = needs_postgres

PATIENCE_S = 120.0


def options(url: str, durability: str = "interval", **engine: str | int) -> BackendOptions:
    return BackendOptions(path=Path("unused"), dsn=url, durability=durability, engine=engine)  # type: ignore[arg-type]


@pytest.fixture
def url() -> str:
    return fresh_url()


@pytest.fixture
def backend(url: str) -> Iterator[PostgresBackend]:
    with closing(PostgresBackend(options(url))) as backend:
        yield backend


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look who waits for a lock: nobody indexes meanwhile, who would wait for it too."""
    monkeypatch.setenv("QILBEE_SEARCH_INDEXING", "off")


@pytest.fixture
def own_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def put(backend: PostgresBackend, *pairs: tuple[bytes, bytes]) -> None:
    backend.write(WriteBatch([Put(key, value) for key, value in pairs]))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


class TestOpening:
    def test_a_url_is_all_that_is_needed(self, url: str) -> None:
        with open_store(url) as store:
            store.agent_memory("bot").store_episode(Episode.observation("bot", "a heron"))
            assert store.stats()["backend"] == "postgres"
            assert store.directory is None
        with open_store(url) as store:
            (episode,) = store.agent_memory("bot").get_recent_episodes()
            assert episode.content == {"observation": "a heron"}
            assert store.verify().problems == []

    def test_the_dsn_may_stand_in_the_configuration(self, url: str) -> None:
        with open_store(backend="postgres", dsn=url) as store:
            assert store.agents() == []

    def test_an_engine_with_files_refuses_a_dsn(self, url: str) -> None:
        with pytest.raises(SettingsError, match="leave out dsn"):
            open_store(url, backend="rocksdb")

    def test_a_url_that_nobody_opens_names_what_to_install(self) -> None:
        with pytest.raises(ProviderNotFoundError, match="oracle:// URLs"):
            open_store("oracle://db/memory")
        with pytest.raises(ProviderNotFoundError, match="pip install qilbee-postgres"):
            open_store("postgresql://db/memory", plugins=load_plugins(disabled=["postgres"]))

    def test_a_password_is_in_no_message_and_no_log(self, url: str, caplog: pytest.LogCaptureFixture) -> None:
        secret = url.replace("qilbee@", "qilbee:hunter2@")
        caplog.set_level("DEBUG")
        with open_store(secret) as store:
            assert "hunter2" not in repr(store.stats())
        with pytest.raises(SettingsError) as caught:
            open_store(secret, backend="rocksdb")
        assert "hunter2" not in caplog.text + str(caught.value)

    def test_a_server_that_is_away_says_so_at_once(self) -> None:
        with pytest.raises(StorageError, match="see that the server runs"):
            open_store("postgresql://qilbee@127.0.0.1:1/memory")

    def test_a_database_or_a_user_that_is_missing_is_named_with_what_makes_it(self) -> None:
        with pytest.raises(SettingsError, match="createdb"):
            open_store(f"{shared_url()}/nowhere")
        with pytest.raises(SettingsError, match="createuser"):
            open_store(f"{shared_url()}/postgres".replace("qilbee@", "nobody@"))

    def test_settings_are_checked(self, url: str) -> None:
        for wrong in ({"table": "Robert'); drop"}, {"views_max": 0}, {"pool": 3}):
            with pytest.raises(SettingsError, match=next(iter(wrong))):
                PostgresBackend(options(url, **wrong))
        with pytest.raises(SettingsError, match="give dsn"):
            PostgresBackend(options(""))

    def test_a_table_that_is_not_ours_is_refused_and_left_alone(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            connection.execute("create table qilbee (name text)")
        with pytest.raises(FormatVersionError, match="not a store of ours"):
            PostgresBackend(options(url))
        with psycopg.connect(url) as connection:
            assert connection.execute("select count(*) from qilbee").fetchone() == (0,)
        with closing(PostgresBackend(options(url, table="other"))) as beside:
            put(beside, (b"a", b"1"))

    def test_a_newer_layout_is_refused(self, url: str) -> None:
        PostgresBackend(options(url)).close()
        with psycopg.connect(url) as connection:
            connection.execute("update qilbee_marker set layout = 2")
        with pytest.raises(FormatVersionError, match="upgrade"):
            PostgresBackend(options(url))

    def test_many_may_make_the_same_store_at_once(self, url: str) -> None:
        opened: list[PostgresBackend] = []
        threads = [threading.Thread(target=lambda: opened.append(PostgresBackend(options(url)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(opened) == 8
        put(opened[0], (b"a", b"1"))
        assert [each.get(b"a") for each in opened] == [b"1"] * 8
        for each in opened:
            each.close()

    def test_sync_is_refused_where_the_server_does_not_sync(self, url: str) -> None:
        # The shared server runs with fsync = off.
        with pytest.raises(SettingsError, match="fsync = off"):
            open_store(url, durability="sync")
        with closing(PostgresBackend(options(url))) as backend:
            assert backend.stats()["server_fsync"] == "off"


class TestKeys:
    def test_the_longest_key_is_2000_bytes_and_a_longer_one_fails_its_whole_batch(
        self, backend: PostgresBackend
    ) -> None:
        noise = bytes(range(256)) * 8
        put(backend, (noise[:2000], b"fits"))
        assert backend.get(noise[:2000]) == b"fits"
        with pytest.raises(InvalidError, match="2000"):
            put(backend, (b"other", b""), (noise[:2001], b""))
        assert backend.get(b"other") is None
        backend.write(WriteBatch([Delete(noise), DeleteRange(noise, noise + b"x")], [Expect(noise, None)]))


class TestOtherWriters:
    """Another transaction holds a row, or has made one, and has not ended."""

    def test_expect_waits_for_whoever_changes_the_row_and_goes_by_what_he_leaves(
        self, backend: PostgresBackend, url: str
    ) -> None:
        put(backend, (b"a", b"1"))
        for commits in (True, False):
            error = self._beside(backend, url, "update qilbee set v = '2' where k = 'a'", commits, b"1")
            assert isinstance(error, ConflictError) is commits
            put(backend, (b"a", b"1"))

    def test_expecting_nothing_waits_for_whoever_makes_the_row(self, backend: PostgresBackend, url: str) -> None:
        for commits in (True, False):
            error = self._beside(backend, url, "insert into qilbee values ('a', '2')", commits, None)
            assert isinstance(error, ConflictError) is commits
            backend.write(WriteBatch([Delete(b"a"), Delete(b"b")]))

    @staticmethod
    def _beside(
        backend: PostgresBackend, url: str, statement: str, commits: bool, expected: bytes | None
    ) -> BaseException | None:
        """Write, expecting that, while another transaction does ``statement``; what the write raised."""
        caught: list[BaseException | None] = []

        def write() -> None:
            try:
                backend.write(WriteBatch([Put(b"a", b"mine"), Put(b"b", b"")], [Expect(b"a", expected)]))
            except BaseException as error:
                caught.append(error)
            else:
                caught.append(None)

        with psycopg.connect(url) as other:
            other.execute(statement)
            thread = threading.Thread(target=write)
            thread.start()
            until(lambda: _lock_waits(url) > 0)
            if commits:
                other.commit()
            else:
                other.rollback()
            thread.join(PATIENCE_S)
        return caught[0]

    def test_batches_that_meet_in_opposite_order_all_get_through(self, backend: PostgresBackend) -> None:
        put(backend, *((b"%d" % number, b"") for number in range(6)))

        def write(low: int) -> None:
            for number in range(30):
                ends = [Put(b"%d" % (low + step), b"%d" % number) for step in (2, 0)]
                backend.write(WriteBatch([*ends, Delete(b"%d" % ((low + 1) % 6)), DeleteRange(b"9", b"a")]))

        threads = [threading.Thread(target=write, args=(low,)) for low in (0, 1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive()
        assert all(backend.get(b"%d" % number) in (None, b"29") for number in range(6))


def _lock_waits(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _cancelled(url: str, write: Callable[[], object]) -> BaseException:
    """What ``write`` raises where its wait for a standby is cancelled."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            write()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    with psycopg.connect(url, autocommit=True) as other:
        thread.start()  # now that whoever cancels is there: the write has a deadline
        cancel = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"

        def has_ended() -> bool:  # who waits may be one of before, whose client has given up
            other.execute(cancel)
            return not thread.is_alive()

        until(has_ended)
    (error,) = caught
    assert isinstance(error, OutcomeUnknownError)
    return error


def _engine(store: Store) -> PostgresBackend:
    engine = store._backend
    assert isinstance(engine, PostgresBackend)
    return engine


class TestViews:
    def test_one_view_too_many_is_refused_and_there_is_room_again_once_one_is_closed(self, url: str) -> None:
        with closing(PostgresBackend(options(url, views_max=2))) as backend:
            put(backend, *((b"%04d" % number, b"") for number in range(200)))
            first, scan = backend.snapshot(), backend.scan()
            with pytest.raises(StorageError, match="2 snapshots and long scans are open at once"):
                backend.snapshot()
            assert backend.get(b"0000") == b""
            first.close()
            with closing(backend.snapshot()) as third:
                assert third.get(b"0000") == b""
            assert len(list(scan)) == 200

    def test_a_dropped_scan_gives_its_place_back(self, url: str) -> None:
        with closing(PostgresBackend(options(url, views_max=1))) as backend:
            put(backend, *((b"%04d" % number, b"") for number in range(200)))
            for _ in range(5):
                next(backend.scan())
            backend.scan()
            assert len(list(backend.scan(reverse=True))) == 200


class TestFailures:
    def test_it_goes_on_after_the_server_was_restarted(self, own_server: Server) -> None:
        with open_store(own_server.database("memory")) as store:
            memory = store.agent_memory("bot")
            memory.store_episode(Episode.observation("bot", "before"))
            store.flush()
            own_server.kill()
            with pytest.raises(StorageError):
                memory.get_recent_episodes()
            own_server.restart()
            assert [each.content["observation"] for each in memory.get_recent_episodes()] == ["before"]
            until(lambda: store.health().ok)
            memory.store_episode(Episode.observation("bot", "after"))
            assert store.verify().problems == []

    def test_a_write_that_a_frozen_server_leaves_open_ends_by_its_deadline_as_unknown(self, own_server: Server) -> None:
        url = own_server.database("memory")
        with closing(PostgresBackend(options(url, statement_timeout_ms=3000))) as backend:
            put(backend, (b"a", b"1"))
            own_server.freeze()
            try:
                began = time.monotonic()
                with pytest.raises(OutcomeUnknownError):
                    put(backend, (b"a", b"2"))
                with pytest.raises(StorageError):
                    backend.get(b"a")
                assert backend.stats()["connections"] is not None
                assert time.monotonic() - began < PATIENCE_S
            finally:
                own_server.thaw()
            assert backend.get(b"a") in (b"1", b"2")
            put(backend, (b"a", b"3"))
            assert backend.get(b"a") == b"3"

    def test_a_commit_that_no_standby_confirmed_is_unknown_though_postgresql_calls_it_a_success(self) -> None:
        server = Server("synchronous_standby_names=nobody")
        try:
            with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
                connection.execute("set synchronous_commit = off")
                connection.execute("create database memory")
            url = f"{server.url}/memory"
            PostgresBackend(options(url + "?options=-csynchronous_commit%3Doff")).close()
            with closing(PostgresBackend(options(url, "sync", statement_timeout_ms=3000))) as backend:
                assert backend.stats()["server_synchronous_standby_names"] == "nobody"
                for batch in (
                    WriteBatch([Put(b"a", b"1")]),
                    WriteBatch([Put(b"a", b"2")], [Expect(b"a", b"1")]),
                    WriteBatch([Delete(b"a")], [Expect(b"b", None)]),
                ):
                    assert "might not have been replicated" in str(_cancelled(url, partial(backend.write, batch)))
                with pytest.raises(OutcomeUnknownError, match="did not say"):  # and by its deadline otherwise
                    put(backend, (b"a", b"3"))
            with closing(PostgresBackend(options(url, "async"))) as backend:
                put(backend, (b"other", b"4"))
                assert "might not have been replicated" in str(_cancelled(url, backend.sync))
                backend._sync_at_close = False  # so that close() does not wait for the standby too
        finally:
            server.stop()

    def test_what_a_cancelled_commit_left_is_acknowledged_to_nobody_before_a_standby_has_it(self) -> None:
        server = Server()
        try:
            url = server.database("memory")
            # Two stores, as of two processes: the second one has not met the failure.
            with (
                open_store(url, durability="sync", engine={"statement_timeout_ms": 2000}) as store,
                open_store(url, durability="sync", engine={"statement_timeout_ms": 2000}) as other,
            ):
                memory, episode = store.agent_memory("bot"), Episode.observation("bot", "a heron")
                server.wait_for_standby("nobody")
                _cancelled(url, partial(memory.store_episode, episode))
                assert [each.id for each in memory.episodes()] == [episode.id]  # it is there, and may be lost yet
                assert not store.health().ok
                for each in (store, other):
                    with pytest.raises(OutcomeUnknownError):
                        each.agent_memory("bot").store_episode(episode)
                    assert not each.health().ok
                server.wait_for_standby("")
                until(lambda: store.health().ok and other.health().ok)
                for each in (store, other):
                    each.agent_memory("bot").store_episode(episode)
                assert memory.get_statistics().total_episodes == 1
                assert store.verify().problems == []
        finally:
            server.stop()

    def test_at_sync_a_write_is_one_commit_and_an_answer_that_rests_on_others_is_another(
        self, own_server: Server
    ) -> None:
        url = own_server.database("memory")
        with open_store(url, durability="sync") as store, psycopg.connect(url, autocommit=True) as other:

            def synced() -> int:
                (count,) = other.execute("select synced from qilbee_marker").fetchone() or (-1,)
                return int(count)

            memory, episode, opened = store.agent_memory("bot"), Episode.observation("bot", "a heron"), synced()
            memory.store_episode(episode)
            assert synced() == opened
            memory.store_episode(episode)
            assert synced() == opened + 1

    def test_who_has_waited_too_long_takes_the_other_connections_to_the_same_server_along(
        self, own_server: Server
    ) -> None:
        with closing(PostgresBackend(options(own_server.database("memory"), statement_timeout_ms=3000))) as backend:
            together = threading.Barrier(4)

            def ask(_: Connection) -> None:
                together.wait(PATIENCE_S)

            threads = [threading.Thread(target=backend._ask, args=(ask,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert backend.stats()["connections"] == 4
            own_server.freeze()
            try:
                with pytest.raises(StorageError):
                    backend.get(b"a")
                until(lambda: backend.stats()["connections"] == 0)  # by the thread that ended the call
            finally:
                own_server.thaw()

    def test_it_tells_that_the_server_does_not_answer_before_anybody_gives_up(self, own_server: Server) -> None:
        with open_store(own_server.database("memory")) as store:
            memory = store.agent_memory("bot")
            memory.store_episode(Episode.observation("bot", "before"))
            assert store.health().ok
            own_server.freeze()
            try:
                thread = threading.Thread(target=memory.get_recent_episodes)
                thread.start()
                until(lambda: not store.health().ok)
                (problem,) = store.health().problems
                assert "has not answered for" in problem
                assert thread.is_alive()
            finally:
                own_server.thaw()
            thread.join(PATIENCE_S)
            until(lambda: store.health().ok)  # others may have waited for an answer too

    def test_a_host_that_does_not_answer_is_asked_last_from_then_on(self, own_server: Server) -> None:
        url = own_server.database("memory")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.setblocking(False)
            both = url.replace("127.0.0.1:", f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:")
            with closing(PostgresBackend(options(both, connect_timeout_ms=3000))) as backend:
                silent.accept()[0].close()
                for _ in range(3):
                    backend.snapshot().get(b"a")  # a connection of its own
                with pytest.raises(BlockingIOError):
                    silent.accept()

    @pytest.mark.usefixtures("alone")
    def test_a_connection_lost_during_a_commit_is_unknown_and_the_same_episode_is_stored_once(self, url: str) -> None:
        with open_store(url) as store, psycopg.connect(url, autocommit=True) as other:
            memory = store.agent_memory("bot")
            memory.store_episode(Episode.observation("bot", "first"))
            # Whoever puts a row waits, and is thrown out while he does.
            other.execute("begin")
            other.execute("lock table qilbee in share mode")
            episode, caught = Episode.observation("bot", "second"), []

            def store_it() -> None:
                try:
                    memory.store_episode(episode)
                except OutcomeUnknownError as error:
                    caught.append(error)

            thread = threading.Thread(target=store_it)
            thread.start()
            until(lambda: _lock_waits(url) > 0)
            with psycopg.connect(url) as third:
                third.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where wait_event_type = 'Lock' and datname = current_database()"
                )
            thread.join(PATIENCE_S)
            other.execute("rollback")
            assert len(caught) == 1
            until(lambda: store.health().ok)
            memory.store_episode(episode)
            memory.store_episode(episode)
            assert memory.get_statistics().total_episodes == 2
            assert store.verify().problems == []

    def test_each_sync_is_a_commit_of_its_own_whoever_wrote(self, backend: PostgresBackend, url: str) -> None:
        # What is there may be another process's, or left by a write whose end nobody knows; and whoever syncs second
        # must not take the word of the first, who is not done.
        def synced() -> int:
            with psycopg.connect(url) as other:
                row = other.execute("select synced from qilbee_marker").fetchone()
            assert row is not None
            return int(row[0])

        with psycopg.connect(url, autocommit=True) as other:
            other.execute("set synchronous_commit = off")
            other.execute("insert into qilbee values ('a', 'written by another')")
        before = synced()
        backend.sync()
        assert synced() == before + 1
        threads = [threading.Thread(target=backend.sync) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert synced() == before + 5

    @pytest.mark.usefixtures("alone")
    def test_flush_waits_for_the_standby_where_a_retry_found_what_a_write_of_unknown_end_left(
        self, own_server: Server
    ) -> None:
        url = own_server.database("memory")
        with open_store(url, durability="interval", wal_sync_interval_ms=3_600_000) as store:
            memory, episode = store.agent_memory("bot"), Episode.observation("bot", "a heron")
            for text in ("first", "second"):  # the first of an agent is another statement
                memory.store_episode(Episode.observation("bot", text))
            store.flush()
            caught: list[BaseException] = []

            def store_it() -> None:
                try:
                    memory.store_episode(episode)
                except BaseException as error:
                    caught.append(error)

            with psycopg.connect(url, autocommit=True) as other:
                other.execute("begin")
                other.execute("lock table qilbee in share mode")
                thread = threading.Thread(target=store_it)
                thread.start()
                until(lambda: _lock_waits(url) > 0)
                # Its client gives it up; the server does not know, and commits it when all that reopen() does is done.
                for connection in list(_engine(store)._connections._waiting):
                    connection.shut()
                thread.join(PATIENCE_S)
                assert [type(error) for error in caught] == [OutcomeUnknownError]
                until(lambda: store.health().ok)
                assert episode.id not in [each.id for each in memory.episodes()]
                other.execute("rollback")
                until(lambda: episode.id in [each.id for each in memory.episodes()])
            own_server.wait_for_standby("nobody")
            memory.store_episode(episode)
            assert "might not have been replicated" in str(_cancelled(url, store.flush))
            own_server.wait_for_standby("")
            until(lambda: store.health().ok)
            store.flush()
            assert memory.get_statistics().total_episodes == 3

    @pytest.mark.parametrize("operation", [Put(b"a", b"2"), Delete(b"a")])
    def test_who_waits_for_an_answer_can_be_interrupted_and_keeps_nobody_from_running(
        self, backend: PostgresBackend, url: str, operation: Put | Delete
    ) -> None:
        put(backend, (b"a", b"1"))
        caller = threading.get_ident()
        with psycopg.connect(url) as other:
            other.execute("lock table qilbee")

            def interrupt() -> None:
                until(lambda: _lock_waits(url) > 0)
                signal.pthread_kill(caller, signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                backend.write(WriteBatch([operation]))
            thread.join(PATIENCE_S)
            other.rollback()
        put(backend, (b"b", b"1"))  # by a connection that is not waiting for the other answer
        assert backend.get(b"b") == b"1"
        assert backend.stats()["connections_used"] == 0

    def test_a_batch_larger_than_any_buffer_of_the_network_goes_over_and_comes_back(
        self, backend: PostgresBackend
    ) -> None:
        pairs = [(b"%d" % number, bytes([number]) * (10 << 20)) for number in range(5)]
        put(backend, *pairs)
        assert backend.get_many([key for key, _ in pairs]) == [value for _, value in pairs]
        assert backend.get_many([]) == []

    def test_statements_of_any_number_of_ranges_leave_few_prepared(self, backend: PostgresBackend) -> None:
        for number in range(1, 130):
            ends = [(b"%03d" % each, b"%03d~" % each) for each in range(number)]
            put(backend, (b"%03d+" % (number - 1), b""))
            backend.write(WriteBatch([DeleteRange(*each) for each in ends]))
            assert backend.get(b"%03d+" % (number - 1)) is None
        prepared = "select count(*)::text::bytea from pg_prepared_statements"
        assert int(backend._ask(lambda connection: connection.ask(prepared).get_value(0, 0)) or 0) <= 101

    def test_two_round_trips_give_the_newest_episodes(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_store(url) as store:
            memory = store.agent_memory("bot")
            memory.store_episodes(Episode.observation("bot", str(number)) for number in range(300))
            asked: list[str] = []

            def counting(name: str) -> None:
                inner = getattr(Connection, name)

                def counted(self: Connection, *given: object, **named: object) -> object:
                    if threading.current_thread() is threading.main_thread():  # search has a thread of its own
                        asked.append(name)
                    return inner(self, *given, **named)

                monkeypatch.setattr(Connection, name, counted)

            counting("execute")
            counting("ask")
            assert len(memory.get_recent_episodes(10)) == 10
            assert 1 <= len(asked) <= 2
