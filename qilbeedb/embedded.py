"""A store in a directory or a database, opened in this process: the part of the client that needs an engine."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn, TypeVar

from msgspec.structs import replace

from qilbee_core import (
    AgentMemory,
    AsyncAgentMemory,
    AsyncStore,
    Health,
    Settings,
    aopen_store,
    open_store,
)
from qilbeedb.exceptions import InvalidError, StoreClosedError
from qilbeedb.target import EmbeddedTarget
from qilbeedb.wire import HealthAnswer

if TYPE_CHECKING:
    from qilbeedb.exchange import Call

__all__ = ["AsyncEmbedded", "Embedded"]

T = TypeVar("T")


class Embedded:
    """What a server is asked for, answered here. There are no accounts: whoever opens it may do everything."""

    def __init__(self, target: EmbeddedTarget) -> None:
        self._store = open_store(_settings(target))
        self._opened_s = time.monotonic()

    def agent_memory(self, agent_id: str) -> AgentMemory:
        """The memory of one agent."""
        return self._store.agent_memory(agent_id)

    def login(self, username: str, password: str) -> None:
        """Nothing, so that a program moves between the two by changing the address alone."""

    def logout(self) -> None:
        """Nothing."""

    def health(self) -> HealthAnswer:
        """Whether writes work."""
        return _told(self._store.health(), self._opened_s)

    def agents(self) -> list[str]:
        """Those that have stored anything."""
        return self._store.agents()

    def run(self, call: Call[T]) -> NoReturn:
        """What only a server can do."""
        raise _not_here(call)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


class AsyncEmbedded:
    """The same for asyncio; opened by :meth:`open`."""

    def __init__(self, target: EmbeddedTarget) -> None:
        self._target = target
        self._opened: AsyncStore | None = None
        self._opened_s = 0.0

    async def open(self) -> None:
        """Open the store, without holding up the event loop."""
        self._opened = await aopen_store(_settings(self._target))
        self._opened_s = time.monotonic()

    @property
    def _store(self) -> AsyncStore:
        if self._opened is None:
            raise StoreClosedError("the database is not open", remedy="use `async with AsyncQilbeeDB(...) as db`")
        return self._opened

    def agent_memory(self, agent_id: str) -> AsyncAgentMemory:
        """The memory of one agent."""
        return self._store.agent_memory(agent_id)

    async def login(self, username: str, password: str) -> None:
        """Nothing, so that a program moves between the two by changing the address alone."""

    async def logout(self) -> None:
        """Nothing."""

    async def health(self) -> HealthAnswer:
        """Whether writes work."""
        return _told(await self._store.health(), self._opened_s)

    async def agents(self) -> list[str]:
        """Those that have stored anything."""
        return await self._store.agents()

    async def run(self, call: Call[T]) -> NoReturn:
        """What only a server can do."""
        raise _not_here(call)

    async def close(self) -> None:
        """Close the store."""
        if self._opened is not None:
            await self._opened.close()


def _settings(target: EmbeddedTarget) -> Settings:
    settings = Settings.load()
    if target.memory is not None:
        settings = replace(settings, memory=target.memory)
    return settings.at(target.place).with_storage(target.storage)


def _told(health: Health, opened_s: float) -> HealthAnswer:
    return HealthAnswer(
        status="healthy" if health.ok else "unhealthy",
        version=version("qilbee-core"),
        uptime_seconds=time.monotonic() - opened_s,
        problems=health.problems,
    )


def _not_here(call: Call[T]) -> InvalidError:
    return InvalidError(
        f"{call.method} {call.path} is for servers: an embedded database has no accounts and takes no snapshots",
        remedy="start one: `qilbee serve`",
    )
