"""Routes: what a server answers, to whom, and with what. The tables of them are the one source.

The server dispatches by them, the OpenAPI document is made from them, and the test of who may do what walks them.

A handler is an async function of one :class:`Call`. It gives the answer to encode, or a :class:`Reply` where more than
that is to be said, or raises an error of :mod:`qilbeedb.errors`. It may hold up the event loop for microseconds only:
what takes longer is awaited from a pool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from msgspec import Struct

from qilbee_core import NotFoundError
from qilbeedb.accounts import Caller, Permission, Principal

if TYPE_CHECKING:
    from qilbee_core import AsyncAgentMemory
    from qilbeedb.accounts import Accounts
    from qilbeedb.server.services import Services

__all__ = ["Call", "Handler", "Method", "Reply", "Route", "route"]

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
B = TypeVar("B", bound=Struct)
B_co = TypeVar("B_co", bound=Struct, covariant=True)


class Call(Generic[B_co]):
    """One request that was let through: its caller may do what the route does, and its body is of the form asked for.

    ``body`` is what the route takes: the query of a GET or DELETE, else the JSON of the body. ``parameters`` are those
    of the path, decoded.
    """

    __slots__ = ("_memory", "body", "caller", "parameters", "services")

    def __init__(
        self,
        services: Services,
        caller: Caller,
        body: B_co,
        parameters: Mapping[str, str],
        memory: AsyncAgentMemory | None = None,
    ) -> None:
        self.services = services
        self.caller = caller
        self.body = body
        self.parameters = parameters
        self._memory = memory

    @property
    def principal(self) -> Principal:
        """Who calls; nobody, with no rights, where the route is public."""
        assert self.caller.principal is not None
        return self.caller.principal

    @property
    def accounts(self) -> Accounts:
        """The accounts of the server; NotFoundError where it runs without."""
        if self.services.accounts is None:
            raise NotFoundError("this server runs without accounts", remedy="start it without insecure_no_login")
        return self.services.accounts

    @property
    def memory(self) -> AsyncAgentMemory:
        """The memory of the agent of the path, which the caller may do this with."""
        assert self._memory is not None, "the path of the route names no agent"
        return self._memory


class Reply(Struct, frozen=True):
    """An answer with another status than the route's, with headers, or that is encoded already."""

    answer: object
    status: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes | None = None
    """Where it is given, ``answer`` is the bytes to send."""


Handler = Callable[[Call[B]], Awaitable[object]]


class Route(Struct, frozen=True, kw_only=True):
    """One thing that the server does. Made by :func:`route`.

    ``path`` has its parameters in braces; one called ``agent`` is an agent's id, and whoever calls must have
    ``permission`` for that agent. Where the body has a ``dry_run`` that is true, ``dry_run`` is what he needs instead.
    ``takes`` is the form of the query (GET, DELETE) or the body; ``gives`` that of the answer, None for one that is no
    JSON. It comes with ``status``, or one of those in ``also``. ``slow``: it takes a place in the pool, of which there
    are few. ``audit`` is the type of the event that the audit log gets of it, where it gets one. ``rate`` is the rate
    limit that counts it.
    """

    method: Method
    path: str
    permission: Permission
    handler: Callable[..., Awaitable[object]]
    summary: str
    takes: type[Struct]
    gives: type[Struct] | None
    status: int = 200
    also: tuple[int, ...] = ()
    dry_run: Permission | None = None
    slow: bool = False
    audit: str | None = None
    rate: str = "GeneralApi"

    @property
    def segments(self) -> tuple[str, ...]:
        """The path between its slashes."""
        return tuple(self.path.strip("/").split("/")) if self.path != "/" else ()


def route(
    method: Method,
    path: str,
    permission: Permission,
    handler: Handler[B],
    summary: str,
    takes: type[B],
    gives: type[Struct] | None,
    *,
    status: int = 200,
    also: tuple[int, ...] = (),
    dry_run: Permission | None = None,
    slow: bool = False,
    audit: str | None = None,
    rate: str = "GeneralApi",
) -> Route:
    """A row of a table of routes, with its handler checked against what it takes."""
    return Route(
        method=method,
        path=path,
        permission=permission,
        handler=handler,
        summary=summary,
        takes=takes,
        gives=gives,
        status=status,
        also=also,
        dry_run=dry_run,
        slow=slow,
        audit=audit,
        rate=rate,
    )
