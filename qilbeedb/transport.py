"""Connections to a server, for programs that block and for asyncio. exchange.py says what to send, and when again."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
import weakref
from importlib.metadata import version
from typing import TypeVar

import httpx

from qilbeedb.account_calls import refresh
from qilbeedb.exceptions import AuthenticationError, InvalidError, SettingsError, StoreClosedError
from qilbeedb.exchange import Call, Credentials, NoReplyError, Renew, Reply, Send, Step, Wait, exchange
from qilbeedb.target import ServerTarget

__all__ = ["AsyncConnection", "Connection"]

T = TypeVar("T")

_CONNECTIONS = httpx.Limits(max_connections=100, max_keepalive_connections=20)
_HEADERS = {"User-Agent": f"qilbeedb/{version('qilbee-core')}", "Accept": "application/json"}
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_JSON = {"Content-Type": "application/json"}


class Connection:
    """Sends calls and waits for their answers; safe to use from any thread."""

    def __init__(self, target: ServerTarget) -> None:
        self.credentials = Credentials(target.api_key)
        self._retries = target.retries
        self._renewing = threading.Lock()
        self._pid: int | None = None
        self._http = httpx.Client(
            base_url=target.uri,
            timeout=target.timeout,
            verify=_trusted(target.verify_ssl),
            headers=_HEADERS,
            limits=_CONNECTIONS,
        )
        # A program that ends without close(), as those of the specification do, leaves no connection open.
        weakref.finalize(self, self._http.close)

    def run(self, call: Call[T]) -> T:
        """The answer to a call, after as many attempts as it takes."""
        steps = exchange(call, self.credentials, self._retries)
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._take(step, call)
                except NoReplyError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _take(self, step: Step, call: Call[T]) -> Reply | None:
        match step:
            case Send():
                if self._http.is_closed:
                    raise StoreClosedError("the client is closed", remedy="make another QilbeeDB(...)")
                if self._pid is None:
                    self._pid = os.getpid()
                if os.getpid() != self._pid:  # answers on a shared connection would come to the wrong process
                    raise StoreClosedError(
                        "the client was used before a fork", remedy="make another QilbeeDB(...) in this process"
                    )
                try:
                    return _reply(self._http.send(_request(self._http, call, step)))
                except httpx.RequestError as error:
                    raise _no_reply(error) from error
            case Wait():
                time.sleep(step.seconds)
            case Renew():
                with self._renewing:
                    if self.credentials.tokens is step.shown:
                        try:
                            self.credentials.tokens = self.run(refresh(step.shown))
                        except AuthenticationError:
                            self.credentials.tokens = None
                            raise
        return None

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._http.close()


class AsyncConnection:
    """Sends calls and awaits their answers."""

    def __init__(self, target: ServerTarget) -> None:
        self.credentials = Credentials(target.api_key)
        self._retries = target.retries
        self._renewing = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http = httpx.AsyncClient(
            base_url=target.uri,
            timeout=target.timeout,
            verify=_trusted(target.verify_ssl),
            headers=_HEADERS,
            limits=_CONNECTIONS,
        )

    async def run(self, call: Call[T]) -> T:
        """The answer to a call, after as many attempts as it takes."""
        steps = exchange(call, self.credentials, self._retries)
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._take(step, call)
                except NoReplyError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def _take(self, step: Step, call: Call[T]) -> Reply | None:
        match step:
            case Send():
                if self._http.is_closed:
                    raise StoreClosedError("the client is closed", remedy="make another AsyncQilbeeDB(...)")
                loop = asyncio.get_running_loop()
                if self._loop is None:
                    self._loop = loop
                if self._loop is not loop:  # connections of the pool belong to the other one
                    raise InvalidError(
                        "the client belongs to another event loop", remedy="make another AsyncQilbeeDB(...) in this one"
                    )
                try:
                    return _reply(await self._http.send(_request(self._http, call, step)))
                except httpx.RequestError as error:
                    raise _no_reply(error) from error
            case Wait():
                await asyncio.sleep(step.seconds)
            case Renew():
                async with self._renewing:
                    if self.credentials.tokens is step.shown:
                        try:
                            self.credentials.tokens = await self.run(refresh(step.shown))
                        except AuthenticationError:
                            self.credentials.tokens = None
                            raise
        return None

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._http.aclose()


def _request(http: httpx.Client | httpx.AsyncClient, call: Call[T], step: Send) -> httpx.Request:
    headers = step.headers if call.body is None else {**step.headers, **_JSON}
    return http.build_request(call.method, call.path, params=call.query or None, content=call.body, headers=headers)


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.headers, response.content)


def _no_reply(error: httpx.RequestError) -> NoReplyError:
    said = f"{type(error).__name__}{f' ({error})' if str(error) else ''}"
    return NoReplyError(said, was_sent=not isinstance(error, _NEVER_SENT))


def _trusted(verify_ssl: bool | str) -> bool | ssl.SSLContext:
    if isinstance(verify_ssl, bool):
        return verify_ssl
    try:
        return ssl.create_default_context(cafile=verify_ssl)
    except OSError as error:
        raise SettingsError(f"verify_ssl: {verify_ssl}: {error}", remedy="give the path of a PEM file") from error
