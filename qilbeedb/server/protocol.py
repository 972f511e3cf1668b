"""HTTP as uvicorn speaks it, within limits: on how large the head of a request is, and on how slowly it comes in.

And a short request costs as little as it can. An answer goes out in one write: uvicorn writes head and body one after
the other, and a write to a socket wakes who waits at its other end. A request that came in whole is answered at once,
and gets a task only where it has to wait for something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from math import inf
from types import coroutine
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from qilbeedb.wire import ErrorAnswer, encode

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPResponseStartEvent

__all__ = ["HEAD_BYTES_MAX", "protocol"]

HEAD_BYTES_MAX = 64 << 10
"""The most of a head that is kept while it is not complete; what comes in at once may be somewhat more."""


def protocol(receive_timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol of a server that waits so long for a request to come in, head and body."""

    class Limited(HttpToolsProtocol):
        """uvicorn's own, that gives up on requests without end, and says in JSON what is wrong."""

        _in_head = False
        _in_request = False
        _reads = False
        _idle_since_s = inf
        _came: tuple[RequestResponseCycle, ASGI3Application] | None = None
        _head_bytes = 0
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(receive_timeout_s, self._too_late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            if self.timeout_keep_alive_task is not None:
                self.timeout_keep_alive_task.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._reads = True
            super().data_received(data)
            self._reads = False
            if self._came is not None:
                self._start()
            if not self._in_request:
                if self._deadline is not None:
                    self._in_time()
                return
            if self._deadline is None:
                self._deadline = self.loop.call_later(receive_timeout_s, self._too_late)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES_MAX:
                    self._refuse(431, "the head of the request is too large")

        def on_message_begin(self) -> None:
            self._in_request = self._in_head = True
            self._head_bytes = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_request = False
            super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
            cycle.__class__ = _OneWrite
            if self._reads and self._came is None:
                self._came = cycle, app  # its body may be there once all is read
            else:
                super()._start_asgi_task(cycle, app)

        def _start(self) -> None:
            assert self._came is not None
            (cycle, app), self._came = self._came, None
            if cycle.more_body:
                super()._start_asgi_task(cycle, app)
                return
            running = cycle.run_asgi(app)
            try:
                awaited = running.send(None)
            except StopIteration:
                return
            task = self.loop.create_task(_go_on(running, awaited))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

        def _in_time(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_late(self) -> None:
            self._deadline = None
            if self._in_request:
                self._refuse(408, f"the request did not come in within {receive_timeout_s:g} s")
            else:
                self.transport.close()

        def on_response_complete(self) -> None:
            # As uvicorn does it, but for one timer of a connection in place of one of each request.
            self.server_state.total_requests += 1
            if self.transport.is_closing():
                return
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
                return
            self._idle_since_s = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._expect_more(self.timeout_keep_alive)

        def _unset_keepalive_if_required(self) -> None:
            self._idle_since_s = inf

        def _expect_more(self, wait_s: float) -> None:
            self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)

        def timeout_keep_alive_handler(self) -> None:
            self.timeout_keep_alive_task = None
            left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
            if left_s <= 0:
                super().timeout_keep_alive_handler()
            elif left_s < inf:
                self._expect_more(left_s)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, msg)

        def _refuse(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            if self.cycle is None or self._in_head or not self.cycle.response_started:
                body = encode(ErrorAnswer(error=message, code="INVALID", remedy="send it as HTTP/1.1, to its end"))
                self.transport.write(
                    b"%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                    % (STATUS_LINE[status], len(body), body)
                )
            self.transport.close()

    return Limited


@coroutine
def _go_on(running: Coroutine[Any, None, None], awaited: object) -> Generator[object, None, None]:
    """What a coroutine does from its first ``await`` on, which has begun to wait for something."""
    try:
        while True:
            try:
                yield awaited
            except BaseException as error:
                awaited = running.throw(error)
            else:
                awaited = running.send(None)
    except StopIteration:
        return


class _OneWrite(RequestResponseCycle):
    """uvicorn's, that holds the head of an answer until its body is there; whatever is unusual goes uvicorn's way."""

    _head: HTTPResponseStartEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """The ``send`` of ASGI. Names and values of headers are sent as they are: nothing of a request is in them."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        head, self._head = self._head, None
        if head is not None:
            if (
                message["type"] == "http.response.body"
                and not message.get("more_body", False)
                and self.scope["method"] != "HEAD"
                and not self.flow.write_paused
                and not self.disconnected
                and not self.response_started
            ):
                self._send_whole(head, message.get("body", b""))
                return
            await super().send(head)
        await super().send(message)

    def _send_whole(self, head: HTTPResponseStartEvent, body: bytes) -> None:
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        parts = [STATUS_LINE[head["status"]]]
        for name, value in (*self.default_headers, *head["headers"]):
            if name == b"connection":  # which we send to close it alone
                self.keep_alive = False
            else:
                parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
