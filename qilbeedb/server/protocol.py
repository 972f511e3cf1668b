"""HTTP as uvicorn speaks it, within limits: how many connections, how large a head, how slow a client there may be.

Nobody who is slow keeps others out: where there are too many connections, whoever lets the server wait longest goes.
Where nobody does, a new one is told so, but for what everybody may ask; :class:`~qilbeedb.server.app.Application` finds
``crowded`` in the state of its requests.

And a short request costs as little as it can. An answer goes out in one write: uvicorn writes head and body one after
the other, and a write to a socket wakes who waits at its other end. A request that came in whole is answered at once,
and gets a task only where it has to wait for something.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Generator
from fcntl import ioctl
from math import inf
from termios import TIOCOUTQ
from types import coroutine
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from qilbeedb.wire import ErrorAnswer, encode

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent, HTTPResponseStartEvent

__all__ = ["HEAD_BYTES_MAX", "protocol"]

HEAD_BYTES_MAX = 64 << 10
"""The most of a head that is kept while it is not complete; what comes in at once may be somewhat more."""

_PIPELINED_MAX = 64
"""Requests that wait for the answer to one before them on their connection."""
_PATIENCE_S = 1.0
"""Who has let us wait for so long makes room where others find none; and so long has who found none to ask at all."""
_UNTAKEN_BYTES_MAX = 256 << 20
"""Answers that clients have not taken yet: beyond that, who has been at it longest goes."""
_SPARE = 64
"""Connections above the limit that are listened to, if only to tell them so."""


def protocol(receive_timeout_s: float, connections_max: int) -> type[asyncio.Protocol]:
    """The protocol of a server with so many connections, that waits so long for a request to come in, head and body.

    So long it waits too while a client takes nothing of its answer.
    """

    class Limited(HttpToolsProtocol):
        """uvicorn's own, that gives up on requests without end, and says in JSON what is wrong."""

        _in_head = False
        _in_request = False
        _reads = _came_whole = False
        _crowded = False
        _waits_since_s = inf
        """When we began to wait for the client to send something; inf: we do not."""
        _open: set[Limited]
        _untaken: dict[Limited, None]
        """Those whose clients have not taken an answer at once, who began first in front."""
        _came: tuple[RequestResponseCycle, ASGI3Application] | None = None
        _request_bytes = 0
        _body_bytes = 0
        _deadline: asyncio.TimerHandle | None = None
        _taking: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # The application's lifespan may have put it there: how many there are is among its figures.
            self._open = self.app_state.setdefault("connections", set())
            self._open.add(self)
            self._untaken = self.app_state.setdefault("untaken", {})
            self._expect_request(receive_timeout_s)
            if len(self._open) > connections_max:
                self._squeeze_in()

        def connection_lost(self, exc: Exception | None) -> None:
            self._open.discard(self)
            self._untaken.pop(self, None)
            self._in_time()
            for timer in (self.timeout_keep_alive_task, self._taking):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def _squeeze_in(self) -> None:
            """Take the place of whoever lets us wait longest; where nobody does, be one who is refused."""
            longest = min(self._open, key=lambda each: each._waits_since_s)
            if self.loop.time() - longest._waits_since_s >= _PATIENCE_S:
                longest._make_room()
            elif len(self._open) <= connections_max + _SPARE:
                self._crowded = True
                self._in_time()
                self._expect_request(_PATIENCE_S)
            else:
                self.transport.abort()

        def _make_room(self) -> None:
            self._waits_since_s = inf
            if self._in_request:
                self._refuse(408, "others wait for the connection, and the request did not come in")
            elif self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            self._reads, self._came_whole = True, False
            super().data_received(data)
            self._reads = False
            if self._came is not None:
                self._start()
            if not self._in_request:
                if self._deadline is not None:
                    self._in_time()
                return
            if self._deadline is None:
                self._expect_request(receive_timeout_s)
            if not self._came_whole:  # else nobody knows how much of it is of the request behind
                self._request_bytes += len(data)
            # What is neither body nor as much as it: the head, then what chunks begin with, and what comes behind them.
            if self._request_bytes - 2 * self._body_bytes > HEAD_BYTES_MAX:
                self._refuse(431, "the head of the request is too large, or its chunks are too small")

        def on_message_begin(self) -> None:
            self._in_request = self._in_head = True
            self._request_bytes = self._body_bytes = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            if len(self.pipeline) >= _PIPELINED_MAX:
                raise ValueError  # which ends the parser
            super().on_headers_complete()  # may refuse the path, as part of the head
            self._in_head = False
            self.headers = []  # what comes behind a body of chunks is no header of the request

        def on_body(self, body: bytes) -> None:
            self._body_bytes += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_request = False
            self._came_whole = True
            self._waits_since_s = inf
            super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
            cycle.__class__ = _OneWrite
            if self._crowded:
                cycle.keep_alive = False
                cycle.scope["state"]["crowded"] = True
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

        def _expect_request(self, wait_s: float) -> None:
            self._waits_since_s = self.loop.time()
            self._deadline = self.loop.call_later(wait_s, self._too_late)

        def _in_time(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_late(self) -> None:
            self._deadline = None
            if self._in_request:
                self._refuse(408, "the request did not come in within its time")
            else:
                self._close()

        def _close(self) -> None:
            self.transport.close()
            self._expect_taking()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_taking()
            self._untaken.setdefault(self)
            while len(self._untaken) > 1 and self._untaken_bytes() > _UNTAKEN_BYTES_MAX:
                longest = next(iter(self._untaken))
                del self._untaken[longest]
                longest.transport.abort()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._untaken.pop(self, None)

        def _untaken_bytes(self) -> int:
            return sum(each.transport.get_write_buffer_size() for each in self._untaken)

        def _expect_taking(self) -> None:
            """Give up on a client once it has taken nothing of its answer for as long as a request may take."""
            if self._taking is None and self.transport.get_write_buffer_size():
                self._taking = self.loop.call_later(receive_timeout_s, self._see_taken, self._left_bytes())

        def _see_taken(self, before_bytes: int) -> None:
            self._taking = None
            if self._left_bytes() >= before_bytes:
                self.transport.abort()
            else:
                self._expect_taking()

        def _left_bytes(self) -> int:
            """How much of its answers the client has not taken: what waits here, and with the system."""
            with_system = ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, bytes(4))
            return self.transport.get_write_buffer_size() + int.from_bytes(with_system, sys.byteorder)

        def on_response_complete(self) -> None:
            # As uvicorn does it, but for one timer of a connection in place of one of each request.
            self.server_state.total_requests += 1
            if self.transport.is_closing():
                self._expect_taking()
                return
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
                return
            self._waits_since_s = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._expect_more(self.timeout_keep_alive)

        def _unset_keepalive_if_required(self) -> None:
            pass  # it finds out itself, once its time has come

        def _expect_more(self, wait_s: float) -> None:
            self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)

        def timeout_keep_alive_handler(self) -> None:
            self.timeout_keep_alive_task = None
            left_s = self._waits_since_s + self.timeout_keep_alive - self.loop.time()
            if self._deadline is not None or left_s == inf:
                return  # a request is under way, and its answer begins this anew
            if left_s <= 0:
                self._close()
            else:
                self._expect_more(left_s)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, msg)

        def _refuse(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            if self._is_next():
                body = encode(ErrorAnswer(error=message, code="INVALID", remedy="send it as HTTP/1.1, to its end"))
                self.transport.write(
                    b"%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                    % (STATUS_LINE[status], len(body), body)
                )
            self._close()

        def _is_next(self) -> bool:
            """Whether what is sent now would answer what came in last, and none of those before."""
            if self._in_request and not self._in_head:  # the body, of the last cycle there is
                return not self.pipeline and not self.cycle.response_started
            return self.cycle is None or self.cycle.response_complete

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

    _asked = False
    _head: HTTPResponseStartEvent | None = None

    async def receive(self) -> ASGIReceiveEvent:
        """The ``receive`` of ASGI: a body that was here before the first call waits for nothing."""
        is_first, self._asked = not self._asked, True
        if is_first and not (self.more_body or self.disconnected or self.flow.read_paused):
            self.message_event.clear()
            return {"type": "http.request", "body": bytes(self.body), "more_body": False}
        return await super().receive()

    async def send(self, message: ASGISendEvent) -> None:
        """The ``send`` of ASGI. Names and values of headers are sent as they are: nothing of a request is in them."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        head, self._head = self._head, None
        if self.transport.is_closing():  # what came in behind this was refused
            self.disconnected = True
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
