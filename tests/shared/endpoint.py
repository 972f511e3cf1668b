"""An HTTP endpoint of the standard library that answers as it is told, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]


class Endpoint:
    """Its requests so far, and how it answers each: ``behave(handler, request)``, by default with ``answer``."""

    def __init__(self, answer: Callable[[Request], bytes]) -> None:
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.behave: Callable[[BaseHTTPRequestHandler, Request], None] = lambda handler, request: reply(
            handler, answer(request)
        )
        self.url = ""


class HastyClock:
    """In place of ``time``: a minute passes between two looks at it, so that no test waits for one to pass."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        self._now_s += 61.0
        return self._now_s


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Send ``body``; underscores in the names of headers are hyphens."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving_endpoint(answer: Callable[[Request], bytes]) -> Iterator[Endpoint]:
    """An endpoint on a free port of this machine."""
    endpoint = Endpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.requests.append(request)
            endpoint.headers.append({**self.headers, "path": self.path})
            with suppress(BrokenPipeError, ConnectionResetError):  # the other side had enough
                endpoint.behave(self, request)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
