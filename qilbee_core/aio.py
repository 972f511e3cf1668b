"""The store for asyncio programs: the same names as :class:`~qilbee_core.Store`, awaited."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Literal, ParamSpec, Self, TypeVar

from qilbee_core.config import Settings
from qilbee_core.durability import DurabilityStatus
from qilbee_core.episode import JSON
from qilbee_core.health import Health
from qilbee_core.memory.aio import AsyncAgentMemory, run_in
from qilbee_core.memory.repair import RepairReport
from qilbee_core.memory.verify import VerifyReport
from qilbee_core.plugins import Plugins
from qilbee_core.recovery import RecoveryReport
from qilbee_core.store import Store, open_store

__all__ = ["AsyncStore", "aopen_store"]

P = ParamSpec("P")
T = TypeVar("T")

_POOL_THREADS = 4


class _Pool(ThreadPoolExecutor):
    """A pool that says so when it was made before a fork, instead of waiting for threads that are not here."""

    def __init__(self) -> None:
        super().__init__(_POOL_THREADS, "qilbee")
        self._pid = os.getpid()

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if os.getpid() != self._pid:
            raise RuntimeError("the threads of this pool are in the parent of this process")
        return super().submit(call, *args, **kwargs)


class AsyncStore:
    """One opened database, for asyncio. Made by :func:`aopen_store`; an async context manager."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool = _Pool()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _in_pool(self, verb: Callable[[], T]) -> T:
        return await run_in(self._pool, verb)

    @property
    def settings(self) -> Settings:
        """What the store was opened with."""
        return self._store.settings

    @property
    def recovery(self) -> RecoveryReport | None:
        """What was kept and lost, where the store was opened with ``recover="tail"``."""
        return self._store.recovery

    def agent_memory(self, agent_id: str) -> AsyncAgentMemory:
        """The memory of one agent."""
        return self._store.async_agent_memory(agent_id, self._pool)

    async def agents(self) -> list[str]:
        """The ids of all agents that have stored anything, sorted."""
        return await self._in_pool(self._store.agents)

    async def flush(self) -> None:
        """Make every earlier write survive a power cut, at any durability level."""
        await self._in_pool(self._store.flush)

    async def compact(self) -> None:
        """Give the space of what was deleted back now."""
        await self._in_pool(self._store.compact)

    async def checkpoint(self, target: str | os.PathLike[str]) -> int:
        """Copy the store, as it is at this moment, to a directory that does not exist yet."""
        return await self._in_pool(partial(self._store.checkpoint, target))

    async def stats(self) -> Mapping[str, JSON]:
        """Figures of the store and its engine."""
        return await self._in_pool(self._store.stats)

    def durability(self) -> DurabilityStatus:
        """The level in force, and how old the oldest unsynced write is."""
        return self._store.durability()

    async def health(self) -> Health:
        """Whether writes work, and if not, why."""
        # Not in our own pool, which may be busy, or closed.
        return await asyncio.to_thread(self._store.health)

    async def verify(self) -> VerifyReport:
        """Walk everything and compare it with everything else."""
        return await self._in_pool(self._store.verify)

    async def repair(self) -> RepairReport:
        """Rebuild whatever is derived from the episodes."""
        return await self._in_pool(self._store.repair)

    async def reembed(
        self,
        embedder: str,
        *,
        progress: Callable[[int, int], object] | None = None,
        **options: bool | int | float | str | Sequence[str],
    ) -> int:
        """Let another embedder tell the meaning of what is stored; ``progress`` is called in another thread."""
        return await self._in_pool(partial(self._store.reembed, embedder, progress=progress, **options))

    async def close(self) -> None:
        """Make everything durable and let go of the directory. Idempotent."""
        # Not in our own pool, which closes too.
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._store.close()
        self._pool.shutdown()


async def aopen_store(
    target: str | os.PathLike[str] | Settings | None = None,
    *,
    plugins: Plugins | None = None,
    recover: Literal["tail"] | None = None,
    read_only: bool = False,
    create: bool = True,
    **overrides: object,
) -> AsyncStore:
    """Open a store for asyncio; see :func:`~qilbee_core.open_store`, which it takes its arguments from.

    >>> async def main():
    ...     async with await aopen_store(backend="ephemeral") as store:
    ...         return await store.agents()
    >>> asyncio.run(main())
    []
    """
    opened: list[Store] = []
    abandoned = threading.Event()

    def open_in_thread() -> Store:
        opened.append(
            open_store(target, plugins=plugins, recover=recover, read_only=read_only, create=create, **overrides)
        )
        if abandoned.is_set():
            opened[0].close()
        return opened[0]

    try:
        return AsyncStore(await asyncio.to_thread(open_in_thread))
    except asyncio.CancelledError:
        # Whichever of the two comes last closes what nobody else will.
        abandoned.set()
        for store in opened:
            store.close()
        raise
