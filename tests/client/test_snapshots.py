"""``take_snapshot``: a copy of the store of a server that goes on, asked for through the client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qilbee_core import open_store
from qilbeedb import AsyncQilbeeDB, QilbeeDB
from qilbeedb.exceptions import InvalidError, NotFoundError, PermissionDeniedError
from qilbeedb.memory import Episode

from .serving import PASSWORD, Server

LONG = "a password that is long enough"


def test_a_snapshot_has_what_was_stored_before_it_and_opens_by_itself(tmp_path: Path) -> None:
    snapshots = tmp_path / "snapshots"
    with Server(tmp_path, tables={"server": {"snapshot_directory": str(snapshots)}}) as server:
        with QilbeeDB(server.url) as db:
            db.login("admin", PASSWORD)
            memory = db.agent_memory("bot")
            before = memory.store_episode(Episode.observation("bot", "before"))
            taken = db.take_snapshot()
            after = memory.store_episode(Episode.observation("bot", "after"))
            user = db.create_user("operator", LONG, roles=["Developer"])
            with QilbeeDB(server.url) as operator:
                operator.login("operator", LONG)
                with pytest.raises(PermissionDeniedError):
                    operator.take_snapshot()
            db.delete_user(user.id)

        async def again() -> str:
            async with AsyncQilbeeDB(server.url) as db:
                await db.login("admin", PASSWORD)
                return (await db.take_snapshot()).path

        other = asyncio.run(again())
    assert {path.name for path in snapshots.iterdir()} == {Path(taken.path).name, Path(other).name}
    assert taken.bytes == sum(file.stat().st_size for file in Path(taken.path).rglob("*") if file.is_file())
    with open_store(taken.path) as copy:
        found = copy.agent_memory("bot").get_episodes([before, after])
    assert [episode is not None for episode in found] == [True, False]


def test_a_server_that_takes_none_says_which_setting_is_missing(server: Server) -> None:
    with QilbeeDB(server.url) as db:
        db.login("admin", PASSWORD)
        with pytest.raises(NotFoundError, match="snapshot_directory"):
            db.take_snapshot()


def test_an_embedded_database_takes_none(tmp_path: Path) -> None:
    with QilbeeDB(tmp_path / "data") as db, pytest.raises(InvalidError, match="takes no snapshots"):
        db.take_snapshot()
