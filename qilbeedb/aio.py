"""The database, for asyncio."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from qilbeedb.administration import AsyncAdministration
from qilbeedb.exchange import Call
from qilbeedb.protocol import AsyncAgentMemory
from qilbeedb.target import Config, ServerTarget, missing, target_of
from qilbeedb.wire import HealthAnswer

if TYPE_CHECKING:
    from qilbeedb.embedded import AsyncEmbedded
    from qilbeedb.remote import AsyncRemote

__all__ = ["AsyncQilbeeDB"]

T = TypeVar("T")


class AsyncQilbeeDB(AsyncAdministration):
    """A database of agents' memories, for asyncio: the same as :class:`~qilbeedb.QilbeeDB`, awaited.

    An embedded one is opened by ``async with``.

    >>> import asyncio
    >>> async def main():
    ...     async with AsyncQilbeeDB({"uri": "unused", "backend": "ephemeral"}) as db:
    ...         return (await db.agent_memory("my-agent").get_statistics()).total_episodes
    >>> asyncio.run(main())
    0
    """

    def __init__(self, target: str | os.PathLike[str] | Config) -> None:
        self._target = target_of(target)
        self._place: AsyncEmbedded | AsyncRemote
        # Imported here: a server needs httpx, an embedded one an engine, and each does without the other.
        try:
            if isinstance(self._target, ServerTarget):
                from qilbeedb.remote import AsyncRemote  # noqa: PLC0415

                self._place = AsyncRemote(self._target)
            else:
                from qilbeedb.embedded import AsyncEmbedded  # noqa: PLC0415

                self._place = AsyncEmbedded(self._target)
        except ImportError as error:
            raise missing(error, self._target) from error

    async def __aenter__(self) -> Self:
        await self._place.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncQilbeeDB({self._target.uri!r})"

    def agent_memory(self, agent_id: str) -> AsyncAgentMemory:
        """The memory of one agent; InvalidError where the id is not 1 to 255 bytes of plain text."""
        return self._place.agent_memory(agent_id)

    async def agents(self) -> list[str]:
        """The agents that have stored anything, as far as the caller may see them, sorted."""
        return await self._place.agents()

    async def login(self, username: str, password: str) -> None:
        """Begin a session, which renews itself; an embedded database needs none, and takes any.

        AuthenticationError where the two are wrong, RateLimitedError after too many attempts.
        """
        await self._place.login(username, password)

    async def logout(self) -> None:
        """End the session, for the server too."""
        await self._place.logout()

    async def health(self) -> HealthAnswer:
        """Whether writes work: ``status`` is "healthy", or "unhealthy" and ``problems`` say why."""
        return await self._place.health()

    async def close(self) -> None:
        """Close the connections, or the embedded store. Idempotent."""
        await self._place.close()

    async def _run(self, call: Call[T]) -> T:
        return await self._place.run(call)
