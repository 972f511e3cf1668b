"""A proxy that stands between client and server and does to answers what networks do.

A fault strikes a share of the requests, drawn from a seed:

``dropped``  the server does the work, its answer is thrown away, the connection ends
``half``     half of the answer comes, then the connection ends
``reset``    the connection is reset; every other time before the server gets the request
``late``     the answer comes when the client has given it up
"""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Literal, Self, get_args

Fault = Literal["dropped", "half", "reset", "late"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_PATIENCE_S = 30.0


class Proxy:
    """Listens on a port of its own; a context manager. ``struck`` counts the faults."""

    def __init__(
        self, port: int, fault: Fault | None, *, share: float = 0.2, late_s: float = 1.0, seed: int = 0
    ) -> None:
        self._port = port
        self._fault = fault
        self._share = share
        self._late_s = late_s
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._threads: list[threading.Thread] = []
        self.requests = 0
        self.struck = 0

    def strike(self, fault: Fault) -> None:
        """From now on every request has this fault, until :meth:`relent`."""
        with self._lock:
            self._fault, self._share = fault, 1.0

    def relent(self) -> None:
        """From now on there are no faults."""
        with self._lock:
            self._fault = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept()
        self._listener.close()
        deadline = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a connection of the proxy does not end"

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """One connection of a client, and one to the server for it, request after request."""
        client.settimeout(0.2)
        upstream: socket.socket | None = None
        try:
            while (request := self._message(client)) is not None:
                fault, is_before = self._draw()
                if fault == "reset" and is_before:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                if upstream is None:
                    upstream = socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_S)
                upstream.sendall(request)
                upstream.settimeout(0.2)
                reply = self._message(upstream)
                if reply is None or fault == "dropped":
                    return
                if fault == "half":
                    client.sendall(reply[: len(reply) // 2])
                    return
                if fault == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                if fault == "late":
                    self._is_closed.wait(self._late_s)
                client.sendall(reply)
        except OSError:
            pass  # whoever it was is gone, and so is the other
        finally:
            client.close()
            if upstream is not None:
                upstream.close()

    def _draw(self) -> tuple[Fault | None, bool]:
        with self._lock:
            self.requests += 1
            if self._fault is None or self._random.random() >= self._share:
                return None, False
            self.struck += 1
            return self._fault, self.struck % 2 == 0

    def _message(self, source: socket.socket) -> bytes | None:
        """One whole request or answer, or None where there comes no other."""
        data = b""
        deadline = time.monotonic() + _PATIENCE_S
        while not self._is_closed.is_set() and time.monotonic() < deadline:
            head, end, body = data.partition(b"\r\n\r\n")
            if end:
                length = _LENGTH.search(head + b"\r\n")
                if len(body) >= (int(length[1]) if length else 0):
                    return data
            try:
                part = source.recv(65536)
            except TimeoutError:
                continue
            if not part:
                return None
            data += part
        return None
