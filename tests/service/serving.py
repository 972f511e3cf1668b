"""The server for tests: in a thread, on a real socket, with the parts that ``qilbee serve`` puts together; or that."""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import uvicorn

from qilbee_core import Store, open_store
from qilbeedb.accounts import Accounts
from qilbeedb.server.app import create_app
from qilbeedb.server.serve import listen, uvicorn_config
from qilbeedb.server.settings import ServiceSettings

SCRIPT = Path(sysconfig.get_path("scripts"), "qilbee")
PASSWORD = "correct horse battery staple"
PATIENCE_S = 60.0
"""How long a test waits for what takes a moment: the machine may be busy. httpx by itself gives up after 5 s."""

get, post = partial(httpx.get, timeout=PATIENCE_S), partial(httpx.post, timeout=PATIENCE_S)


class Serving(NamedTuple):
    """A server that runs, and a client of it; with ``password`` for admin where it has accounts."""

    client: httpx.Client
    store: Store
    port: int
    accounts: Accounts | None
    server: uvicorn.Server
    thread: threading.Thread

    def raw(self, data: bytes, *, half_close: bool = False, timeout_s: float = PATIENCE_S) -> bytes:
        """What the server answers to these very bytes, until it closes or one answer is there."""
        return raw(self.port, data, half_close=half_close, timeout_s=timeout_s)


def raw(port: int, data: bytes, *, half_close: bool = False, timeout_s: float = PATIENCE_S) -> bytes:
    """What the server at a port answers to these very bytes, until it closes or one answer is there."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it may have heard enough
        answer = b""
        while not complete(answer):
            try:
                part = connection.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            answer += part
        return answer


def complete(answer: bytes) -> bool:
    """Whether a whole answer is in it."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(end) and length.isdigit() and len(body) >= int(length)


@contextmanager
def serving(tables: Mapping[str, Mapping[str, object]], *, login: bool = False) -> Iterator[Serving]:
    """Serve a store of these settings; without login unless it is asked for."""
    server_table = {"port": 0, "insecure_no_login": not login, **tables.get("server", {})}
    settings = ServiceSettings.load({**tables, "server": server_table}, environ={})
    store = open_store(settings)
    accounts = None
    if login:
        accounts = Accounts.open(store, settings.accounts, environ={"QILBEE_ADMIN_PASSWORD": PASSWORD})
    listener = listen(settings.server)
    port: int = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn_config(create_app(store, accounts, settings), settings.server))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    scheme = "http" if settings.server.tls_certificate is None else "https"
    try:
        with httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", timeout=PATIENCE_S, verify=False) as client:
            yield Serving(client, store, port, accounts, server, thread)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
        assert not thread.is_alive(), "the server does not end"


def wait_until(condition: object) -> None:
    """Return once ``condition()`` holds; it has some seconds."""
    assert callable(condition)
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to that"
        time.sleep(0.005)


def login(served: Serving, username: str) -> dict[str, str]:
    """The header that shows who calls."""
    answer = served.client.post("/api/v1/auth/login", json={"username": username, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@contextmanager
def script(directory: Path, *arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``qilbee serve`` in a process of its own, on a free port, and where it listens."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("QILBEE_")}
    command = [str(SCRIPT), "serve", "--data", str(directory / "data"), "--port", "0", *arguments]
    log = (directory / "log").open("a")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**environ, **variables})
    output = process.stdout
    assert output is not None
    try:
        said = output.readline()
        assert "listens on " in said, (directory / "log").read_text()
        yield process, said.split()[3].rstrip(",")
    finally:
        process.kill()
        process.wait()
        output.close()
        log.close()
