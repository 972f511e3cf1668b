"""The ASGI application: from a request to its answer, by the tables of routes.

In this order: find the route, know the caller, count him against his rate, see that he may do this with this agent,
read the body, call the handler, encode what it gives. What stands against any of it is answered as JSON, by the table
of :mod:`qilbeedb.errors`. What nobody foresaw is logged under the id of the request, and the answer has that id alone.

Nothing is between the server and this but what is written here: a layer that wraps each request costs more than the
request itself.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Mapping
from functools import partial
from ipaddress import ip_network
from itertools import count
from typing import TYPE_CHECKING

from msgspec import Struct
from starlette.middleware.cors import CORSMiddleware

from qilbee_core import AuthenticationError, InvalidError, NotFoundError, PermissionDeniedError, QilbeeError, Store
from qilbeedb.accounts import Caller, Permission
from qilbeedb.errors import kind_of
from qilbeedb.exceptions import MethodError, RateLimitedError, ServerError, TooLargeError, UnavailableError
from qilbeedb.server.account_routes import ACCOUNT_ROUTES
from qilbeedb.server.dispatch import Endpoint, Endpoints
from qilbeedb.server.memory_routes import MEMORY_ROUTES
from qilbeedb.server.metrics import Meter
from qilbeedb.server.page_routes import PAGE_ROUTES
from qilbeedb.server.request import (
    DisconnectedError,
    check_own_page,
    client_address,
    decode,
    parse_query,
    read_body,
    unquoted,
)
from qilbeedb.server.route import Call, Reply, Route
from qilbeedb.server.services import DEVELOPER, NOBODY, Services
from qilbeedb.server.settings import ServiceSettings
from qilbeedb.server.system_routes import SYSTEM_ROUTES
from qilbeedb.wire import ErrorAnswer, encode

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from qilbee_core import AsyncAgentMemory
    from qilbeedb.accounts import Accounts

__all__ = ["ROUTES", "Application", "create_app"]

log = logging.getLogger(__name__)

ROUTES: tuple[Route, ...] = (*PAGE_ROUTES, *SYSTEM_ROUTES, *ACCOUNT_ROUTES, *MEMORY_ROUTES)
"""Everything that the server answers."""

_JSON = b"application/json"
_RETRY_AFTER_S = 1
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TARGET_BYTES_MAX = 8192


class _Sent(Struct, frozen=True, gc=False):
    """What is sent: encoded, with everything that is said about it."""

    status: int
    body: bytes
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Application:
    """Answers requests. ``services`` is what it answers them with; closed with the application's lifespan."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._endpoints = Endpoints(ROUTES)
        self._unknown = Meter("", "")
        services.table = ROUTES
        services.meters = [endpoint.meter for endpoint in self._endpoints.all] + [self._unknown]
        self._settings = services.settings.server
        self._proxies = tuple(ip_network(proxy) for proxy in self._settings.trusted_proxies)
        self._id_start = secrets.token_hex(4)
        self._ids = count(1)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request, or go along with the life of the server."""
        if scope["type"] == "http":
            return self._http(scope, receive, send)
        assert scope["type"] == "lifespan", f"{scope['type']!r} is not spoken here"
        return self._lifespan(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["state"]["connections"] = self.services.connections  # our protocol has them in there
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await self.services.close()
        except Exception as error:
            log.exception("closing failed")
            await send({"type": "lifespan.shutdown.failed", "message": str(error)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.perf_counter()
        services = self.services
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._request_id(headers)
        meter = self._unknown
        services.in_flight += 1
        try:
            endpoint, parameters = self._find(scope)
            meter = endpoint.meter
            sent = await self._answer(endpoint, parameters, scope, headers, receive)
        except DisconnectedError:
            return
        except QilbeeError as error:
            sent = _refusal(error, request_id)
            if sent.status >= 500:
                log.warning("%s: %s", request_id, error)
        except Exception:
            log.exception("%s: unforeseen", request_id)
            sent = _refusal(ServerError(f"the server failed, see {request_id} in its log"), request_id)
        finally:
            services.in_flight -= 1
        await send(
            {
                "type": "http.response.start",
                "status": sent.status,
                "headers": [
                    (b"content-type", sent.content_type),
                    (b"content-length", b"%d" % len(sent.body)),
                    (b"x-request-id", request_id.encode()),
                    *sent.headers,
                ],
            }
        )
        await send({"type": "http.response.body", "body": sent.body})
        took_s = time.perf_counter() - began_s
        meter.count(sent.status, took_s)
        if self._settings.log_requests == "all" or (self._settings.log_requests == "failed" and sent.status >= 500):
            _log_request(scope, sent.status, took_s, request_id)

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._id_start}-{next(self._ids):x}"

    def _find(self, scope: Scope) -> tuple[Endpoint, dict[str, str]]:
        path = scope["raw_path"]
        assert isinstance(path, bytes)
        if len(path) > _TARGET_BYTES_MAX:
            raise InvalidError(f"the path is {len(path)} bytes long", remedy=f"the most is {_TARGET_BYTES_MAX}")
        endpoints, values = self._endpoints.find(path.decode("latin-1"))
        method = scope["method"]
        endpoint = endpoints.get("GET" if method == "HEAD" else method)
        if endpoint is None:
            if not endpoints:
                raise NotFoundError("there is nothing at this path", remedy="see /docs for what there is")
            raise _method_error(str(method), endpoints)
        if b"%" in path or not path.isascii():
            values = [unquoted(value, "the path") for value in values]
        return endpoint, dict(zip(endpoint.parameters, values, strict=True))

    async def _answer(
        self,
        endpoint: Endpoint,
        parameters: dict[str, str],
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
    ) -> _Sent:
        route, services = endpoint.route, self.services
        # What tells how the server is must be answered also while there is too much to do.
        if route.permission is not Permission.PUBLIC:
            if services.in_flight > self._settings.requests_max:
                raise UnavailableError("the server has too many requests at once", remedy="wait and send it again")
            if "crowded" in scope["state"]:
                raise UnavailableError("the server has too many connections at once", remedy="wait and send it again")
        agent_id = parameters.get("agent")
        if services.readers is None or (route.permission is Permission.PUBLIC and route.rate == "GeneralApi"):
            caller = self._caller(route, scope, headers)
            memory = None if agent_id is None else services.memory_of(agent_id)
        else:  # both stand in a database, which may be long in answering
            admit = partial(self._admit, route, scope, headers, agent_id)
            caller, memory = await asyncio.get_running_loop().run_in_executor(services.readers, admit)
        self._check(caller, route, memory, route.dry_run)
        if endpoint.decoder is None:
            query = scope["query_string"]
            body = endpoint.without_query if not query else None
            if body is None:
                body = parse_query(query, route.takes)
        else:
            raw = await read_body(receive, headers, self._settings.body_bytes_max)
            body = decode(raw, endpoint.decoder)
        is_real = route.dry_run is None or not body.dry_run  # type: ignore[attr-defined]
        if is_real and route.dry_run is not None:
            self._check(caller, route, memory)
        call = Call(services, caller, body, parameters, memory)
        answer = await (self._slowly(route, call) if route.slow else route.handler(call))
        if route.audit is not None and is_real:
            await services.record(route.audit, caller, route.summary, "" if memory is None else memory.agent_id)
        if type(answer) is not Reply:
            return _Sent(route.status, encode(answer))
        body_bytes = answer.answer if answer.content_type is not None else encode(answer.answer)
        assert isinstance(body_bytes, bytes)
        status = route.status if answer.status is None else answer.status
        return _Sent(status, body_bytes, answer.content_type or _JSON, answer.headers)

    def _admit(
        self, route: Route, scope: Scope, headers: Mapping[bytes, bytes], agent_id: str | None
    ) -> tuple[Caller, AsyncAgentMemory | None]:
        caller = self._caller(route, scope, headers)
        return caller, None if agent_id is None else self.services.memory_of(agent_id)

    def _caller(self, route: Route, scope: Scope, headers: Mapping[bytes, bytes]) -> Caller:
        """Who calls, counted against his rate; AuthenticationError, and nothing else is looked at, if he is unknown."""
        peer, accounts = scope["client"], self.services.accounts
        address: str = peer[0] if peer else ""
        if self._proxies:
            address = client_address(address, headers, self._proxies)
        user_agent = headers.get(b"user-agent", b"").decode("latin-1")
        if route.permission is Permission.PUBLIC:
            if accounts is not None and route.rate != "GeneralApi":  # which is for those who are known
                accounts.check_rate(route.rate, None, address, scope["path"])
            return Caller(address=address, user_agent=user_agent, principal=NOBODY)
        if accounts is None:
            check_own_page(headers, self._settings.cors_origins)
            return Caller(address=address, user_agent=user_agent, principal=DEVELOPER)
        authorization, api_key = headers.get(b"authorization"), headers.get(b"x-api-key")
        try:
            principal = accounts.authenticate(
                None if authorization is None else authorization.decode("latin-1"),
                None if api_key is None else api_key.decode("latin-1"),
            )
        except AuthenticationError:
            accounts.refused(Caller(address=address, user_agent=user_agent, principal=None), "unauthorized", route.path)
            raise
        accounts.check_rate(route.rate, principal, address, scope["path"])
        return Caller(address=address, user_agent=user_agent, principal=principal)

    def _check(
        self, caller: Caller, route: Route, memory: AsyncAgentMemory | None, enough: Permission | None = None
    ) -> None:
        """The one place where a caller is refused what he may not do, and the agents that are not his.

        ``enough`` is another permission that will do: who may do something for real may also try it.
        """
        principal, permission = caller.principal, route.permission
        if permission is Permission.PUBLIC:
            return
        agent_id = None if memory is None else memory.agent_id
        if principal is None or not (
            principal.may(permission, agent_id) or (enough is not None and principal.may(enough, agent_id))
        ):
            if self.services.accounts is not None:
                self.services.accounts.refused(caller, "forbidden", route.path)
            name = "nobody" if principal is None else principal.username
            where = "" if agent_id is None else f" with agent {agent_id!r}"
            raise PermissionDeniedError(f"{name!r} may not do this{where}: {route.summary.lower()}")

    async def _slowly(self, route: Route, call: Call[Struct]) -> object:
        """Call the handler of a route that takes a place in the pool, of which only so many may wait."""
        services = self.services
        if services.slow_in_flight >= self._settings.slow_requests_max:
            raise UnavailableError("too many requests wait for the pool", remedy="wait and send it again")
        services.slow_in_flight += 1
        try:
            return await route.handler(call)
        finally:
            services.slow_in_flight -= 1


def create_app(store: Store, accounts: Accounts | None, settings: ServiceSettings) -> ASGIApp:
    """The ASGI application on an open store, which is closed with the application's lifespan.

    Without ``accounts`` everybody may do everything: for development, on this machine alone.
    """
    app: ASGIApp = Application(Services(store, accounts, settings))
    if origins := settings.server.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return app


class _WrongMethodError(MethodError):
    """With the methods there are, for the header that names them."""

    allowed: bytes = b""


def _method_error(method: str, endpoints: Mapping[str, Endpoint]) -> MethodError:
    error = _WrongMethodError(f"{method[:20]} is not for this path")
    allowed = [*endpoints, "HEAD"] if "GET" in endpoints else endpoints
    error.allowed = ", ".join(allowed).encode()
    return error


def _refusal(error: QilbeeError, request_id: str) -> _Sent:
    _, status, code = kind_of(error)
    if status == 500 and not isinstance(error, ServerError):
        log.error("%s: %s", request_id, error)
        error = ServerError(f"the store failed, see {request_id} in the log of the server")
    answer = ErrorAnswer(
        error=error.message,
        code=code,
        remedy=error.remedy,
        request_id=request_id,
        error_code=code if status == 501 else "",
    )
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, RateLimitedError):
        headers.append((b"retry-after", b"%d" % max(1, -int(-error.retry_after_s // 1))))
    elif status == 503:
        headers.append((b"retry-after", b"%d" % _RETRY_AFTER_S))
    elif isinstance(error, _WrongMethodError):
        headers.append((b"allow", error.allowed))
    elif status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, TooLargeError):
        headers.append((b"connection", b"close"))  # whatever else is on its way is not read
    return _Sent(status, encode(answer), headers=tuple(headers))


def _log_request(scope: Scope, status: int, took_s: float, request_id: str) -> None:
    log.info(
        "request",
        extra={
            "method": scope["method"],
            "path": scope["raw_path"].decode("latin-1"),  # still quoted: nothing in it looks like another figure
            "status": status,
            "took_ms": round(took_s * 1000, 3),
            "request_id": request_id,
        },
    )
