"""What ``QilbeeDB(...)`` takes, and what it says to what it does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from qilbeedb import AsyncQilbeeDB, QilbeeDB
from qilbeedb.exceptions import InvalidError, SettingsError, StoreClosedError, UnavailableError
from qilbeedb.memory import Episode, MemoryConfig

from .serving import PASSWORD, Server


def test_a_path_is_opened_in_this_process(tmp_path: Path) -> None:
    for target in (tmp_path / "data", str(tmp_path / "data"), {"uri": tmp_path / "data"}):
        with QilbeeDB(target) as db:
            memory = db.agent_memory("bot")
            memory.store_episode(Episode.observation("bot", "again"))
    with QilbeeDB(tmp_path / "data") as db:
        assert db.agent_memory("bot").get_statistics().total_episodes == 3
        assert db.agents() == ["bot"]


def test_a_memory_config_is_the_whole_table_and_variables_count_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QILBEE_MEMORY_UNDO_DAYS", "3")
    monkeypatch.setenv("QILBEE_STORAGE_CACHE_BYTES", "1048576")
    for memory, undo_days in ((MemoryConfig(max_episodes=7), 30), (None, 3)):
        with QilbeeDB({"uri": tmp_path / "data", "memory": memory}) as db:
            settings = db._place._store.settings  # type: ignore[union-attr]
            assert (settings.memory.undo_days, settings.storage.cache_bytes) == (undo_days, 1048576)


def test_the_other_keys_of_a_path_are_those_of_the_storage(tmp_path: Path) -> None:
    config = {"uri": tmp_path / "data", "compression_type": "zstd", "memory": MemoryConfig(max_episodes=7)}
    with QilbeeDB(config) as db:
        settings = db._place._store.settings  # type: ignore[union-attr]
        assert (settings.storage.codec, settings.memory.max_episodes) == ("zstd", 7)
    with pytest.raises(SettingsError, match="compresion_type"):
        QilbeeDB({"uri": tmp_path / "data", "compresion_type": "zstd"})
    with pytest.raises(SettingsError, match="MemoryConfig"):
        QilbeeDB({"uri": tmp_path / "data", "memory": {"max_episodes": 7}})


def test_nothing_is_sent_before_the_first_call() -> None:
    with QilbeeDB("http://127.0.0.1:9") as db:
        assert db.agent_memory("bot").agent_id == "bot"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("localhost:7474", "http://localhost:7474"),
        ("127.0.0.1:7474/base", "http://127.0.0.1:7474"),
        ({}, "uri"),
        ({"uri": 7}, "uri"),
        ({"uri": "http://localhost", "timeout": "30"}, "timeout"),
        ({"uri": "http://localhost", "timeout": 0}, "timeout"),
        ({"uri": "http://localhost", "retries": -1}, "retries"),
        ({"uri": "http://localhost", "api_key": ""}, "api_key"),
        ({"uri": "http://localhost", "apikey": "x"}, "api_key"),
        ({"uri": "http://localhost", "memory": MemoryConfig()}, "server"),
        ({"uri": "http://localhost", "verify_ssl": "no-such-file.pem"}, "no-such-file.pem"),
        ({"uri": "http://localhost:port"}, "http://localhost:port"),
        ("http://localhost:99999", "http://localhost:99999"),
        ("http://:7474", "names no host"),
        ("http://admin:secret@localhost:7474", "use login"),
    ],
    ids=str,
)
def test_what_it_does_not_take_is_refused_with_what_to_write(given: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        QilbeeDB(given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["ftp://localhost/x", "htpp://bot:secret@localhost:7474"])
def test_a_url_that_no_engine_knows_is_refused_without_what_is_secret_in_it(uri: str) -> None:
    with pytest.raises(InvalidError, match=f"no engine that is installed opens {uri[:4].strip(':')}:// URLs") as caught:
        QilbeeDB(uri)
    assert "secret" not in str(caught.value)

    async def main() -> None:
        db = AsyncQilbeeDB(uri)
        assert "secret" not in repr(db)
        with pytest.raises(InvalidError, match="no engine"):
            await db.__aenter__()

    asyncio.run(main())


def test_a_path_is_a_path_whatever_database_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILBEE_STORAGE_DSN", "postgresql://nobody@127.0.0.1:1/nowhere")
    with QilbeeDB(tmp_path / "data") as db:
        assert db.agents() == []
    assert (tmp_path / "data" / "rocksdb").is_dir()


def test_no_secret_is_shown() -> None:
    with QilbeeDB({"uri": "http://127.0.0.1:9", "api_key": "qilbee_live_secret", "retries": 0}) as db:
        with pytest.raises(UnavailableError) as caught:
            db.agents()
        told = f"{db!r} {caught.value} {caught.value.__cause__!r} {db._place!r} {db.agent_memory('bot')!r}"
    assert "secret" not in told


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    for db in (QilbeeDB("http://127.0.0.1:9"), QilbeeDB(tmp_path / "data")):
        memory = db.agent_memory("bot")
        db.close()
        db.close()
        with pytest.raises(StoreClosedError):
            memory.get_recent_episodes()


def test_an_embedded_one_for_asyncio_is_opened_by_async_with(tmp_path: Path) -> None:
    async def main() -> None:
        db = AsyncQilbeeDB(tmp_path / "data")
        with pytest.raises(StoreClosedError, match="async with"):
            db.agent_memory("bot")
        await db.close()  # nothing to close
        async with db:
            await db.agent_memory("bot").store_episode(Episode.observation("bot", "there"))
            assert await db.agents() == ["bot"]
            assert (await db.health()).status == "healthy"
            with pytest.raises(InvalidError, match="no accounts"):
                await db.list_users()

    asyncio.run(main())


def test_a_closed_one_for_asyncio_says_so() -> None:
    async def main() -> None:
        async with AsyncQilbeeDB("http://127.0.0.1:9") as db:
            memory = db.agent_memory("bot")
        with pytest.raises(StoreClosedError):
            await memory.get_recent_episodes()

    asyncio.run(main())


def test_one_that_was_used_before_a_fork_says_so_in_the_child_and_goes_on_in_the_parent(tmp_path: Path) -> None:
    script = """
import os, sys
from qilbeedb import QilbeeDB
from qilbeedb.exceptions import StoreClosedError

unused, used = QilbeeDB(sys.argv[1]), QilbeeDB(sys.argv[1])
used.health()
if not (child := os.fork()):
    unused.health()
    try:
        used.health()
    except StoreClosedError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert used.health().status == "healthy"
"""
    with Server(tmp_path) as server:
        subprocess.run([sys.executable, "-c", script, server.url], check=True, timeout=60)


def test_one_for_asyncio_says_so_in_another_event_loop(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        db = AsyncQilbeeDB(server.url)
        with asyncio.Runner() as first:
            assert first.run(db.health()).status == "healthy"
            with asyncio.Runner() as second, pytest.raises(InvalidError, match="another event loop"):
                second.run(db.health())
            assert first.run(db.health()).status == "healthy"
            first.run(db.close())


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    if which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    place = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    files: list[str | Path] = ["-keyout", place / "key.pem", "-out", place / "certificate.pem"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=60)
    return place / "certificate.pem", place / "key.pem"


@pytest.fixture(scope="module")
def secure(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tables = {"server": {"tls_certificate": str(certificate[0]), "tls_key": str(certificate[1])}}
    with Server(tmp_path_factory.mktemp("secure"), tables=tables) as server:
        yield server


def test_a_certificate_is_checked_unless_told_otherwise(secure: Server, certificate: tuple[Path, Path]) -> None:
    assert secure.url.startswith("https://")
    for trusted in (str(certificate[0]), False):
        with QilbeeDB({"uri": secure.url, "verify_ssl": trusted}) as db:
            db.login("admin", PASSWORD)
            assert db.agents() == []
    with QilbeeDB({"uri": secure.url, "retries": 0}) as db, pytest.raises(UnavailableError, match="certificate verify"):
        db.login("admin", PASSWORD)
