"""HTTP as uvicorn speaks it, within limits: on how large the head of a request is, and on how slowly it comes in.

And an answer goes out in one write. uvicorn writes head and body one after the other, and a write to a socket, which
wakes who waits at its other end, is most of what a short request costs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from qilbeedb.wire import ErrorAnswer, encode

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send
    from uvicorn._types import ASGI3Application

__all__ = ["HEAD_BYTES_MAX", "protocol"]

HEAD_BYTES_MAX = 64 << 10
"""The most of a head that is kept while it is not complete; what comes in at once may be somewhat more."""


def protocol(receive_timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol of a server that waits so long for a request to come in, head and body."""

    class Limited(HttpToolsProtocol):
        """uvicorn's own, that gives up on requests without end, and says in JSON what is wrong."""

        _in_head = False
        _in_request = False
        _head_bytes = 0
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(receive_timeout_s, self._too_late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
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
            async def joined(scope: Scope, receive: Receive, send: Send) -> None:
                await app(scope, receive, _Joined(cycle, send).send)  # type: ignore[arg-type]

            super()._start_asgi_task(cycle, joined)  # type: ignore[arg-type]

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


class _Joined:
    """What an application sends, held until head and body go out together; whatever is unusual goes uvicorn's way."""

    __slots__ = ("_cycle", "_head", "_send")

    def __init__(self, cycle: RequestResponseCycle, send: Send) -> None:
        self._cycle = cycle
        self._send = send
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        """The ``send`` of ASGI. Names and values of headers are sent as they are: nothing of a request is in them."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        cycle, head = self._cycle, self._head
        self._head = None
        if (
            head is not None
            and not message.get("more_body", False)
            and cycle.scope["method"] != "HEAD"
            and not cycle.flow.write_paused
            and not cycle.disconnected
            and not cycle.response_started
        ):
            cycle.response_started = cycle.response_complete = True
            cycle.waiting_for_100_continue = False
            parts = [STATUS_LINE[head["status"]]]
            for name, value in (*cycle.default_headers, *head["headers"]):
                if name == b"connection":  # which we send to close it alone
                    cycle.keep_alive = False
                else:
                    parts += (name, b": ", value, b"\r\n")
            if not cycle.keep_alive:
                parts.append(b"connection: close\r\n")
            parts += (b"\r\n", message["body"])
            cycle.transport.write(b"".join(parts))
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()
            return
        if head is not None:
            await self._send(head)
        await self._send(message)
