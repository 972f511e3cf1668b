"""The same memory four ways: in this process and behind a server, called and awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from itertools import count
from typing import Any

import pytest

from qilbeedb import AsyncQilbeeDB, QilbeeDB
from qilbeedb.memory import AgentMemory, AsyncAgentMemory

from .serving import PASSWORD, Server

PLACES = ["embedded", "embedded-async", "remote", "remote-async", "remote-bit-by-bit", "remote-bit-by-bit-async"]
_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a module, with everything as by default."""
    pytest.importorskip("uvicorn")
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def server_of_small_answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same, but that an answer has room for a few episodes at most, and mostly for one."""
    pytest.importorskip("uvicorn")
    with Server(tmp_path_factory.mktemp("small"), tables={"server": {"answer_bytes_max": 1024}}) as server:
        yield server


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> str:
    """Where the memories of a test are: one of PLACES."""
    where: str = request.param
    return where


@pytest.fixture(scope="module")
def database(
    place: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QilbeeDB | Blocking]:
    """A database at that place, logged in to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("QILBEE_SEARCH_INDEXING")
        if place.startswith("remote"):
            name = "server_of_small_answers" if "bit-by-bit" in place else "server"
            target = request.getfixturevalue(name).url
        else:
            target = str(tmp_path_factory.mktemp("embedded") / "data")
        if place.endswith("async"):
            with asyncio.Runner() as runner:
                opened = runner.run(AsyncQilbeeDB(target).__aenter__())
                db = Blocking(opened, runner)
                db.login("admin", PASSWORD)
                yield db
                db.close()
        else:
            with QilbeeDB(target) as plain:
                plain.login("admin", PASSWORD)
                yield plain


@pytest.fixture
def memory(database: QilbeeDB) -> AgentMemory:
    """The memory of an agent that nobody else has."""
    return database.agent_memory(f"agent {next(_numbers)}")


class Blocking:
    """Something for asyncio, called as if it were not, so that the same tests can be run on it."""

    def __init__(self, awaited: AsyncQilbeeDB | AsyncAgentMemory, runner: asyncio.Runner) -> None:
        self._awaited = awaited
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._awaited, name)
        return self._call(member) if callable(member) else member

    def _call(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> Any:
            given = verb(*args, **kwargs)
            if isinstance(given, Coroutine):
                return self._runner.run(given)
            if isinstance(given, AsyncIterator):
                return self._each(given)
            return Blocking(given, self._runner)

        return call

    def _each(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> list[Any]:
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        while page := self._runner.run(following()):
            yield from page
