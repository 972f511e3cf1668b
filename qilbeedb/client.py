"""The database, for programs that block."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from qilbeedb.administration import Administration
from qilbeedb.exchange import Call
from qilbeedb.protocol import AgentMemory
from qilbeedb.target import Config, ServerTarget, missing, target_of
from qilbeedb.wire import HealthAnswer

if TYPE_CHECKING:
    from qilbeedb.embedded import Embedded
    from qilbeedb.remote import Remote

__all__ = ["QilbeeDB"]

T = TypeVar("T")


class QilbeeDB(Administration):
    """A database of agents' memories: behind a server (``http://...``), or opened in this process.

    The latter is in a directory (a path), or in a database that an installed engine knows (``postgresql://...``).
    ``QilbeeDB({"uri": ..., "api_key": ..., "timeout": ..., "verify_ssl": ..., "retries": ...})`` says how to talk to a
    server; elsewhere the other keys are those of ``[storage]``, and ``memory`` is a MemoryConfig. A context manager,
    and safe to use from any thread. To a server nothing is sent before the first call.

    >>> with QilbeeDB({"uri": "unused", "backend": "ephemeral"}) as db:
    ...     db.agent_memory("my-agent").get_statistics().total_episodes
    0
    """

    def __init__(self, target: str | os.PathLike[str] | Config) -> None:
        self._target = target_of(target)
        self._place: Embedded | Remote
        # Imported here: a server needs httpx, an embedded one an engine, and each does without the other.
        try:
            if isinstance(self._target, ServerTarget):
                from qilbeedb.remote import Remote  # noqa: PLC0415

                self._place = Remote(self._target)
            else:
                from qilbeedb.embedded import Embedded  # noqa: PLC0415

                self._place = Embedded(self._target)
        except ImportError as error:
            raise missing(error, self._target) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"QilbeeDB({self._target.uri!r})"

    def agent_memory(self, agent_id: str) -> AgentMemory:
        """The memory of one agent; InvalidError where the id is not 1 to 255 bytes of plain text."""
        return self._place.agent_memory(agent_id)

    def agents(self) -> list[str]:
        """The agents that have stored anything, as far as the caller may see them, sorted."""
        return self._place.agents()

    def login(self, username: str, password: str) -> None:
        """Begin a session, which renews itself; an embedded database needs none, and takes any.

        AuthenticationError where the two are wrong, RateLimitedError after too many attempts.
        """
        self._place.login(username, password)

    def logout(self) -> None:
        """End the session, for the server too."""
        self._place.logout()

    def health(self) -> HealthAnswer:
        """Whether writes work: ``status`` is "healthy", or "unhealthy" and ``problems`` say why."""
        return self._place.health()

    def close(self) -> None:
        """Close the connections, or the embedded store. Idempotent."""
        self._place.close()

    def _run(self, call: Call[T]) -> T:
        return self._place.run(call)
