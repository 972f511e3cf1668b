"""Moving a store to PostgreSQL and back, and the places that take its URL: the commands, and the client."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import Server, fresh_url, needs_postgres
from qilbee_postgres.backend import PostgresBackend
from shared.killed_copy import killed_copy
from typer.testing import CliRunner

from qilbee_core import (
    ConflictError,
    CopyReport,
    Episode,
    InvalidError,
    NotFoundError,
    OutcomeUnknownError,
    QilbeeError,
    StorageError,
    Store,
    UnfinishedCopyError,
    WriteBatch,
    copy_store,
    load_plugins,
    open_store,
)
from qilbeedb import AsyncQilbeeDB, QilbeeDB
from qilbeedb.cli import app

pytestmark = needs_postgres

START = datetime(2026, 3, 1, tzinfo=UTC)
PATIENCE_S = 120.0
HEADER = b"\x01header"


def fill(store: Store, episodes: int = 60) -> None:
    """Two agents, with history, states, marks, what was retired, and accounts."""
    for agent_id in ("bot", "bot:東京"):
        memory = store.agent_memory(agent_id)
        ids = memory.store_episodes(
            Episode.conversation(
                agent_id,
                f"How is heron number {number}?",
                f"Heron {number} stands in the reeds, as ever, and so does heron {number + 1}.",
                event_time=START + timedelta(minutes=number),
            )
            for number in range(episodes)
        )
        memory.store_episode(Episode.observation(agent_id, "known by its key"), idempotency_key="key")
        memory.update_episode(ids[1], content={"text": "the second version"})
        memory.pin(ids[2])
        memory.delete_episode(ids[3])
        memory.invalidate(ids[4])
        memory.search_episodes("heron")
        memory.store_episode(Episode.observation(agent_id, "and one more"))
    store.account_rows().write({"user/7": b"ann"})


def told(store: Store) -> dict[str, Any]:
    """What can be read of each agent, and of the accounts."""
    agents = {}
    for agent_id in store.agents():
        memory = store.agent_memory(agent_id)
        episodes = list(memory.episodes())
        agents[agent_id] = (
            episodes_told := [(each.id, each.content, each.transaction_time, each.pinned) for each in episodes],
            [[version.content for version in memory.history(each.id)] for each in episodes],
            [each.id for each in memory.recall(1000)],
            [each.id for each in memory.search_episodes("heron 7 reeds", limit=20)],
            memory.get_statistics().total_episodes == len(episodes_told),
        )
    return {"agents": agents, "accounts": list(store.account_rows().scan(""))}


def rows_of(path: Path) -> dict[bytes, bytes]:
    with open_store(path, read_only=True) as store:
        return dict(store._backend.scan())


def rows_in(url: str) -> dict[bytes, bytes]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("select k, v from qilbee", binary=True).fetchall())


def read(place: Path | str) -> dict[str, Any]:
    with open_store(place) as store:
        assert store.verify().problems == []
        return told(store)


@pytest.fixture(autouse=True)
def search_as_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QILBEE_SEARCH_INDEXING", "QILBEE_STORAGE_DSN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QILBEE_MEMORY_REINFORCEMENT_SHARE", "0")


@pytest.fixture
def url() -> str:
    return fresh_url()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    with open_store(tmp_path / "source") as store:
        fill(store)
    return tmp_path / "source"


@pytest.fixture
def own_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


# --- there and back


@pytest.mark.parametrize("engine", ["rocksdb", "leveldb", "lmdb"])
def test_a_store_moves_to_postgres_and_back(engine: str, url: str, tmp_path: Path) -> None:
    if engine not in load_plugins().backends.providers:
        pytest.skip(f"{engine} is not installed")
    with open_store(tmp_path / "source", backend=engine, compression_type="zstd") as store:
        fill(store)
        expected = told(store)
    there = copy_store(tmp_path / "source", url)
    assert (there.agents, there.problems) == (2, [])
    assert read(url) == expected
    back = copy_store(url, tmp_path / "back", backend=engine, compression_type="zstd")
    assert (back.rows, back.episodes, back.problems) == (there.rows, there.episodes, [])
    assert read(tmp_path / "back") == expected


def test_records_are_compressed_there_and_not_twice_back_here(source: Path, url: str, tmp_path: Path) -> None:
    before = rows_of(source)
    copy_store(source, url)
    there = rows_in(url)
    records = [key for key in before if key[0] == 0x20]
    assert sum(len(there[key]) for key in records) < sum(len(before[key]) for key in records)
    copy_store(url, tmp_path / "back")
    after = rows_of(tmp_path / "back")
    added = after.keys() - before.keys()
    assert {key[:7] for key in added} <= {b"\x01codec/"}
    assert before.pop(HEADER) != after.pop(HEADER)
    assert {key: after[key] for key in before} == before


def test_what_a_killed_process_has_left_can_be_written_to_by_several(url: str, tmp_path: Path) -> None:
    """The stored head of such a store lags behind its log: here it would give numbers that are taken."""
    with open_store(tmp_path / "open") as store:
        for number in range(20):
            store.agent_memory("bot").store_episode(Episode.observation("bot", f"heron {number}"))
        store.flush()
        shutil.copytree(tmp_path / "open", tmp_path / "killed")
    copy_store(tmp_path / "killed", url)
    with open_store(url) as one, open_store(url) as other:
        for number in range(20, 40):
            (one, other)[number % 2].agent_memory("bot").store_episode(Episode.observation("bot", f"heron {number}"))
        for store in (one, other):
            assert store.agent_memory("bot").get_statistics().total_episodes == 40
            assert store.verify().problems == []


def test_of_a_store_that_others_write_to_an_instant_is_copied(url: str, tmp_path: Path) -> None:
    enough, stored = threading.Event(), 0

    def write() -> None:
        nonlocal stored
        with open_store(url) as store:
            for number in count():
                store.agent_memory("bot").store_episode(Episode.observation("bot", f"heron {number}"))
                stored = number + 1
                if enough.is_set():
                    return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while stored < 20:
            assert writer.is_alive()
            enough.wait(0.01)
        at_least = stored
        report = copy_store(url, tmp_path / "copy")
        assert report.problems == []
    finally:
        enough.set()
        writer.join(PATIENCE_S)
    assert at_least <= report.episodes <= stored
    with open_store(tmp_path / "copy") as store:
        found = [each.content["observation"] for each in store.agent_memory("bot").episodes()]
        assert found == [f"heron {number}" for number in range(report.episodes)]


# --- interrupted


@pytest.mark.parametrize("direction", ["to", "from"])
def test_killed_again_and_again_it_is_refused_until_it_is_complete(
    direction: str, source: Path, url: str, tmp_path: Path
) -> None:
    expected = read(source)
    origin, target = str(source), url
    writer = "qilbee_postgres.backend:PostgresBackend"
    if direction == "from":
        copy_store(source, url)
        origin, target, writer = url, str(tmp_path / "back"), "qilbee_core.backends.rocksdb:RocksDBBackend"
    kills = 0
    for number in range(2, 1000):
        moment = ("before", "after")[number % 2]
        done = killed_copy(origin, target, writer, batch_rows=60, write=number, moment=moment)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        with pytest.raises(UnfinishedCopyError, match="run qilbee copy again"):
            open_store(target)
    assert kills > 2
    assert read(target) == expected


def test_a_server_that_dies_in_the_middle_is_gone_on_with(
    source: Path, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qilbee_core.copying._BATCH_ROWS", 40)
    expected, url = read(source), own_server.database("moved")
    write, number = PostgresBackend.write, 0

    def dying(backend: PostgresBackend, batch: WriteBatch) -> None:
        nonlocal number
        number += 1
        if number == 8:
            own_server.kill()
        write(backend, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PostgresBackend, "write", dying)
        with pytest.raises((StorageError, OutcomeUnknownError)):
            copy_store(source, url)
    own_server.restart()
    with pytest.raises(UnfinishedCopyError):
        open_store(url)
    report = copy_store(source, url)
    assert 0 < report.copied < report.rows
    assert read(url) == expected


def test_of_two_who_copy_to_one_place_one_is_stopped(
    source: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qilbee_core.copying._BATCH_ROWS", 10)
    shutil.copytree(source, tmp_path / "the same")
    done: list[CopyReport | Exception] = []

    def copy(place: Path) -> None:
        try:
            done.append(copy_store(place, url))
        except QilbeeError as error:
            done.append(error)

    threads = [threading.Thread(target=copy, args=(place,)) for place in (source, tmp_path / "the same")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(done) == 2
    stopped = [each for each in done if isinstance(each, Exception)]
    assert [each for each in stopped if not isinstance(each, ConflictError)] == []
    assert len(stopped) < 2 or copy_store(source, url).problems == []
    assert read(url) == read(source)


def test_who_makes_a_store_and_who_copies_one_there_do_not_both_succeed(source: Path) -> None:
    for _ in range(5):
        url = fresh_url()
        done: dict[str, object] = {}
        ready = threading.Barrier(2)

        def attempt(
            name: str, call: Callable[[], object], ready: threading.Barrier = ready, done: dict[str, object] = done
        ) -> None:
            ready.wait(PATIENCE_S)
            try:
                done[name] = call()
            except QilbeeError as error:
                done[name] = error

        def make(url: str = url) -> str:
            with open_store(url) as store:
                return str(store.stats()["store_id"])

        threads = [
            threading.Thread(target=attempt, args=("made", make)),
            threading.Thread(target=attempt, args=("copied", lambda url=url: copy_store(source, url))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        with open_store(url) as store:
            agents, store_id = store.agents(), store.stats()["store_id"]
            assert store.verify().problems == []
        if isinstance(done["copied"], CopyReport):
            assert agents == ["bot", "bot:東京"]
            assert isinstance(done["made"], UnfinishedCopyError) or done["made"] == store_id
        else:
            assert isinstance(done["copied"], InvalidError | ConflictError)
            assert (agents, done["made"]) == ([], store_id)


def test_another_store_and_the_store_itself_are_no_places_to_copy_to(source: Path, url: str) -> None:
    with open_store(url) as store:
        store.agent_memory("other").store_episode(Episode.observation("other", "mine"))
    before = rows_in(url)
    with pytest.raises(InvalidError, match="holds another store"):
        copy_store(source, url)
    with pytest.raises(InvalidError, match="one and the same store"):
        copy_store(url, url.replace("127.0.0.1", "localhost"))
    assert rows_in(url) == before


# --- commands


def run(*arguments: object, given: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given, catch_exceptions=False)
    return result.exit_code, result.output


def with_password(url: str) -> str:
    return url.replace("qilbee@", "qilbee:hunter2@")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("show",), r"postgresql://qilbee@127\.0\.0\.1:\d+/test_\w+: postgres, durability interval"),
        (("show", "--agent", "bot"), "heron"),
        (("stats",), "server_version"),
        (("verify",), "2 agents, 12[0-9] episodes: all is as it should be"),
        (("repair",), "all is as it should be"),
        (("reembed",), "0 vectors made"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_commands_take_its_url_and_show_no_password(
    command: tuple[str, ...], expected: str, source: Path, url: str
) -> None:
    copy_store(source, url)
    verb, *options = command
    status, output = run(verb, with_password(url), *options)
    assert status == 0, output
    assert re.search(expected, output)
    assert "hunter2" not in output


def test_a_consolidation_is_made_and_undone_by_its_url(url: str) -> None:
    with open_store(url) as store:
        twins = (Episode.observation("bot", "said twice", event_time=START + timedelta(days=n)) for n in range(3))
        store.agent_memory("bot").store_episodes(twins)
    assert "would be 1 now" in run("consolidate", with_password(url), "bot", "--dry-run")[1]
    status, output = run("consolidate", with_password(url), "bot")
    assert (status, "are 1 now" in output) == (0, True)
    (consolidation,) = re.findall(r"qilbee undo \.\.\. (\S+)", output)
    assert consolidation in run("undo", with_password(url), "bot")[1]
    assert "agent bot has 3 episodes now" in run("undo", with_password(url), "bot", consolidation)[1]
    assert "hunter2" not in output


def test_a_store_is_copied_by_its_url(source: Path, url: str, tmp_path: Path) -> None:
    for origin, target in ((source, with_password(url)), (with_password(url), tmp_path / "back")):
        status, output = run("copy", origin, target)
        assert status == 0, output
        assert re.search(r"holds 2 agents, 12\d episodes, [\d,]+ rows", output)
        assert "hunter2" not in output
    assert read(tmp_path / "back") == read(source)


@pytest.mark.parametrize("command", ["show", "stats", "verify", "repair", "reembed", "consolidate", "copy"])
def test_to_look_for_a_store_makes_none(command: str, url: str, tmp_path: Path) -> None:
    others: dict[str, list[object]] = {"consolidate": ["bot"], "copy": [tmp_path / "copy"]}
    status, output = run(command, with_password(url), *others.get(command, []))
    assert status == 1
    assert re.match(r"error: there is no store in PostgreSQL 127\.0\.0\.1/test_\w+: check the dsn", output)
    with psycopg.connect(url) as connection:
        assert connection.execute("select to_regclass('qilbee')").fetchone() == (None,)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFoundError):
        open_store(url, create=False)


@pytest.mark.parametrize(("command", "complaint"), [("compact", "no files here to rewrite"), ("recover", "no files")])
def test_what_is_about_files_says_that_there_are_none(command: str, complaint: str, url: str) -> None:
    open_store(url).close()
    status, output = run(command, with_password(url))
    assert status == 1
    assert complaint in output
    assert "hunter2" not in output


def test_quickstart_wants_a_directory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a database is elsewhere" in run("quickstart", "--data", with_password(url))[1]
    monkeypatch.setenv("QILBEE_STORAGE_DSN", with_password(url))
    assert "a database is elsewhere" in run("quickstart")[1]


def test_users_are_made_by_its_url(url: str) -> None:
    open_store(url).close()
    place = ("--data", with_password(url))
    status, output = run("user", "add", "ann", *place, given="correct horse battery staple\n")
    assert status == 0, output
    assert re.search(r"^ *ann ", run("user", "list", *place)[1], re.M)
    assert (
        "0 problems" in run("audit", "verify", *place)[1]
        or "all as they were recorded" in run("audit", "verify", *place)[1]
    )


def test_a_directory_is_meant_where_one_is_named_whatever_is_configured(
    source: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QILBEE_STORAGE_DSN", url)
    status, output = run("verify", source)
    assert status == 0
    assert output.startswith("2 agents")


def test_a_server_serves_it_by_its_url(source: Path, url: str) -> None:
    copy_store(source, url)
    command = ["-c", "from qilbeedb.cli import main; main()", "serve"]
    options = ["--data", with_password(url), "--port", "0", "--insecure-no-login"]
    with subprocess.Popen(
        [sys.executable, *command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            told_at = re.search(r"listens on (\S+),", process.stdout.readline())
            assert told_at is not None
            with QilbeeDB(told_at[1]) as db:
                assert db.agents() == ["bot", "bot:東京"]
                assert db.agent_memory("bot").get_statistics().total_episodes == 60
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=PATIENCE_S)
    assert "hunter2" not in errors


# --- the client


def test_the_client_opens_it_by_its_url(url: str) -> None:
    with QilbeeDB(with_password(url)) as db:
        assert "hunter2" not in repr(db)
        db.agent_memory("bot").store_episode(Episode.observation("bot", "a heron"))
        assert db.health().status == "healthy"

    async def main() -> None:
        async with AsyncQilbeeDB({"uri": with_password(url), "durability": "async"}) as db:
            assert "hunter2" not in repr(db)
            (episode,) = await db.agent_memory("bot").get_recent_episodes()
            assert episode.content == {"observation": "a heron"}
            await db.agent_memory("bot").store_episode(Episode.observation("bot", "an otter"))
            assert await db.agents() == ["bot"]

    asyncio.run(main())
    with QilbeeDB(url) as db:
        assert db.agent_memory("bot").get_statistics().total_episodes == 2


def test_the_client_names_what_is_missing_and_no_password(url: str) -> None:
    with pytest.raises(StorageError, match="see that the server runs") as caught:
        QilbeeDB("postgresql://qilbee:hunter2@127.0.0.1:1/memory")
    assert "hunter2" not in str(caught.value)
