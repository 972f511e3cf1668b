"""What the server adds to a request, and what slow disks and searches do to it.

::

    python benchmarks/server.py             # all parts, a few minutes
    python benchmarks/server.py --only cost

``cost``
    CPU time of the server process for each request, beside that of a bare Starlette application on the same uvicorn
    (uvloop, httptools) that decodes the same body, or encodes the same answer, and does nothing else. All servers run
    side by side and take turns at slices of the same requests, over the same number of connections; a ratio is the
    median of those of the rounds, for a machine that others use is another one a minute later. Ours is at
    durability "interval", with an API key in each request; once without indexing, and once with indexing counted until
    nothing is pending.
``sync``
    Requests a second of 128 clients that store at durability "sync", where each fsync takes 2 ms (by ``shim.c`` of the
    crash tests): ours, and the same server on an engine that puts with sync in each request.
``health``
    How long GET /health takes while stores at "sync" wait for an fsync of 200 ms, and while an agent of 100,000
    episodes is searched.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
from _episodes import RECORD_BYTES, given, made
from _measure import console, machine, verdict
from rich.table import Table

from qilbee_core import SearchSettings, StorageSettings, Store, open_store
from qilbee_core.backends._rocksdb_options import write_options
from qilbeedb.server.settings import ServerSettings, ServiceSettings
from qilbeedb.wire import EpisodeAnswer, StoreBody, StoredAnswer, encode

AGENT = "agent"
CONNECTIONS = 8
SHIM = Path(__file__).parents[1] / "tests" / "crash" / "shim.c"
SYNC = 2  # of the kinds of calls in shim.c
SLOW_MS, FROZEN_MS = 2, 200
CLIENTS = 128
HEALTH_MS_MAX = 50.0
EPISODES_SEARCHED = 100_000
INDEXED_S_MAX = 120


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="slices of each server (default 15)")
    parser.add_argument("--requests", type=int, default=1000, help="requests in a slice (default 1000)")
    parser.add_argument("--only", choices=["cost", "sync", "health"], help="one part of it")
    parser.add_argument("--serve", choices=["ours", "bare", "put"], help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        SERVERS[arguments.serve](arguments.settings)
        return
    console.print(machine())
    for part in [arguments.only] if arguments.only else ["cost", "sync", "health"]:
        if part == "cost":
            cost(arguments.rounds, arguments.requests)
        elif part == "sync":
            sync(arguments.rounds)
        else:
            health()


# --- the servers, each in a process of its own


def serve_ours(encoded: str, *, put_with_sync: bool = False) -> None:
    """Our server, as ``qilbee serve`` runs it; the port on standard output."""
    from qilbeedb.server import serve  # noqa: PLC0415  # also the client's process reads this file

    if put_with_sync:

        def open_syncing(settings: ServiceSettings) -> Store:
            store = open_store(settings)
            database = store._backend._database  # type: ignore[attr-defined]
            options = write_options(store._backend._options)  # type: ignore[attr-defined]
            options.sync = True
            database.set_write_options(options)
            return store

        serve.open_store = open_syncing  # type: ignore[assignment,attr-defined]
    settings = msgspec.json.decode(encoded, type=dict[str, dict[str, object]])
    serve.serve(ServiceSettings.load(settings, environ={}), ready=say)


def serve_bare(_: str) -> None:
    """What a request costs before anything is done: Starlette decodes the body and answers."""
    import uvicorn  # noqa: PLC0415
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import Response  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    decode = msgspec.json.Decoder(StoreBody).decode
    episode = made(AGENT, given(RECORD_BYTES[0], 1))[0]
    found = EpisodeAnswer.of(episode)

    async def store(request: Request) -> Response:
        body = decode(await request.body())
        answer = encode(StoredAnswer(episode_id=body.episode_id or ""))
        return Response(answer, 201, media_type="application/json")

    async def get(_: Request) -> Response:
        return Response(encode(found), media_type="application/json")

    app = Starlette(
        routes=[
            Route("/memory/{agent}/episodes", store, methods=["POST"]),
            Route("/memory/{agent}/episodes/{id}", get),
        ]
    )
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=600,
    )
    say(f"http://127.0.0.1:{listener.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[listener])


def say(url: str) -> None:
    """Tell the process that started this one where it listens."""
    print(url, flush=True)


SERVERS: dict[str, Callable[[str], None]] = {
    "ours": serve_ours,
    "put": lambda encoded: serve_ours(encoded, put_with_sync=True),
    "bare": serve_bare,
}


class Running(NamedTuple):
    """A server that runs."""

    port: int
    pid: int
    key: str

    def cpu_s(self) -> float:
        """What it has used so far, in all its threads: its own clock (Linux), exact to the nanosecond."""
        return time.clock_gettime((~self.pid << 3) | 2)


@contextmanager
def running(
    kind: str, directory: Path | None = None, shim: dict[str, str] | None = None, **storage: object
) -> Iterator[Running]:
    """Start a server, on a store that an API key was made for; ``storage`` are settings of that."""
    indexing = storage.pop("indexing", "off")
    with ExitStack() as stack:
        path = directory or Path(stack.enter_context(TemporaryDirectory(prefix="qilbee-bench-server-")))
        tables = {
            "storage": {"data_path": str(path / "data"), **storage},
            "search": {"indexing": indexing},
            "server": {"port": 0, "log_level": "error", "keep_alive_s": 600},
        }
        key = "" if kind == "bare" else make_key(tables)
        command = [sys.executable, __file__, "--serve", kind, "--settings", encode(tables).decode()]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(shim or {})})
        stack.callback(child.wait)
        stack.callback(child.terminate)
        assert child.stdout is not None
        stack.enter_context(child.stdout)
        url = child.stdout.readline()
        assert url, "the server did not start"
        yield Running(int(url.rpartition(":")[2]), child.pid, key)


def make_key(tables: dict[str, dict[str, object]]) -> str:
    """An API key for everything."""
    from qilbeedb.accounts import Accounts, Caller  # noqa: PLC0415

    settings = ServiceSettings.load(tables, environ={})
    with open_store(settings) as store:
        accounts = Accounts.open(
            store, settings.accounts, environ={"QILBEE_ADMIN_PASSWORD": "a password of a benchmark"}
        )
        (user,) = accounts.users.all()
        key = accounts.keys.create(Caller(), user.id, "benchmark")
        accounts.close()
    return key.key


# --- the client: as little as there can be


def request(method: str, path: str, key: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    return (
        f"{method} {path} HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nuser-agent: benchmark\r\nx-api-key: {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def answer(connection: socket.socket) -> int:
    """Read one answer, and give its status."""
    return int(read(connection)[9:12])


def asked(connection: socket.socket, request: bytes) -> bytes:
    """Send a request and give its answer."""
    connection.sendall(request)
    return read(connection)


def read(connection: socket.socket) -> bytes:
    """One answer, head and body."""
    data = part = connection.recv(65536)
    while b"\r\n\r\n" not in data:
        assert part, "the server has closed the connection"
        part = connection.recv(65536)
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        part = connection.recv(65536)
        assert part, "the server has closed the connection"
        body += part
    return head + b"\r\n\r\n" + body


@contextmanager
def connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


def send_all(connections: Sequence[socket.socket], requests: Sequence[bytes]) -> None:
    """Send one request on each connection, wait for the answers, and so on."""
    for at in range(0, len(requests), len(connections)):
        some = requests[at : at + len(connections)]
        for connection, each in zip(connections, some, strict=False):
            connection.sendall(each)
        for connection, _ in zip(connections, some, strict=False):
            assert answer(connection) in (200, 201)


# --- cost


def cost(rounds: int, number: int) -> None:
    """CPU of the server for each request."""
    kinds = ["bare", "ours", "ours, indexing"]
    with ExitStack() as stack:
        servers = {
            "bare": stack.enter_context(running("bare")),
            "ours": stack.enter_context(running("ours")),
            "ours, indexing": stack.enter_context(running("ours", indexing="background")),
        }
        links = {kind: stack.enter_context(connected(servers[kind].port, CONNECTIONS)) for kind in kinds}
        took_us: dict[str, list[float]] = {f"{verb} {kind}": [] for verb in ("POST", "GET") for kind in kinds}
        exchanges = given(RECORD_BYTES[0], number)
        for turn in range(-2, rounds):  # the first ones warm up
            for kind in kinds if turn % 2 else kinds[::-1]:
                server = servers[kind]
                episodes = made(AGENT, exchanges)
                path = f"/memory/{AGENT}/episodes"
                posts = [request("POST", path, server.key, encode(StoreBody.of(each))) for each in episodes]
                gets = [request("GET", f"{path}/{each.id}", server.key) for each in episodes]
                before_s = server.cpu_s()
                send_all(links[kind], posts)
                if "indexing" in kind:
                    wait_for_index(server)
                between_s = server.cpu_s()
                send_all(links[kind], gets)
                after_s = server.cpu_s()
                if turn >= 0:
                    took_us[f"POST {kind}"].append(1e6 * (between_s - before_s) / number)
                    took_us[f"GET {kind}"].append(1e6 * (after_s - between_s) / number)
    table = Table(title="CPU of the server for a request", title_justify="left")
    for heading in ("", "us", "ratio", "of rounds", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    targets = {"POST ours": 2.0, "POST ours, indexing": 3.5, "GET ours": 1.6}
    for name, values in took_us.items():
        floor = took_us[f"{name.split()[0]} bare"]
        each = [value / least for value, least in zip(values, floor, strict=True)]
        ratio, most = median(each), targets.get(name)
        target = "" if most is None else f"<= {most:g}"
        spread = f"{min(each):.2f} - {max(each):.2f}"
        table.add_row(name, f"{median(values):.1f}", f"{ratio:.2f}", spread, target, verdict(ratio, most))
    console.print(table)


def wait_for_index(server: Running) -> None:
    """Until nothing is pending; asked seldom, on a connection of its own, and where it is known without counting."""
    deadline_s = time.monotonic() + INDEXED_S_MAX
    with connected(server.port, 1) as (connection,):
        while b"\nqilbee_search_pending 0\n" not in asked(connection, request("GET", "/metrics", server.key)):
            assert time.monotonic() < deadline_s, f"the index is not complete within {INDEXED_S_MAX} s"
            time.sleep(0.5)
        status = asked(connection, request("GET", f"/memory/{AGENT}/semantic-search/status", server.key))
        assert b'"pendingEpisodes":0,' in status


# --- slow disks


@contextmanager
def slow_disk(delay_ms: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory, and the environment of processes whose syncs of files in it take so long."""
    with TemporaryDirectory(prefix="qilbee-bench-shim-") as directory:
        library, root = Path(directory) / "shim.so", Path(directory) / "root"
        root.mkdir()
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SHIM), "-ldl"], check=True)
        yield (
            root,
            {
                "LD_PRELOAD": str(library),
                "QILBEE_SHIM_ROOT": str(root),
                "QILBEE_SHIM_DELAY": f"{SYNC}:{1000 * delay_ms}",
            },
        )


def sync(rounds: int) -> None:
    """Stores a second of many clients, where every sync takes 2 ms."""
    per_s: dict[str, list[float]] = {"ours": [], "put": []}
    with slow_disk(SLOW_MS) as (root, shim), ExitStack() as stack:
        servers: dict[str, Running] = {}
        links: dict[str, list[socket.socket]] = {}
        for kind, storage in (("ours", {"sync_writes": True}), ("put", {"durability": "async"})):
            (root / kind).mkdir()
            servers[kind] = stack.enter_context(running(kind, root / kind, shim, **storage))
            links[kind] = stack.enter_context(connected(servers[kind].port, CLIENTS))
        for turn in range(-1, rounds):
            for kind, server in servers.items():
                number = CLIENTS * (20 if kind == "ours" else 2)
                path = f"/memory/{AGENT}/episodes"
                episodes = made(AGENT, given(RECORD_BYTES[0], number))
                posts = [request("POST", path, server.key, encode(StoreBody.of(each))) for each in episodes]
                began_s = time.perf_counter()
                send_all(links[kind], posts)
                if turn >= 0:
                    per_s[kind].append(number / (time.perf_counter() - began_s))
    ratio = median(per_s["ours"]) / median(per_s["put"])
    table = Table(title=f"stores a second of {CLIENTS} clients at sync, fsync {SLOW_MS} ms", title_justify="left")
    for heading in ("", "per s", "ratio", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("put(sync=True) in each request", f"{median(per_s['put']):.0f}", "", "", "")
    reached = "[green]reached[/]" if ratio >= 10 else "[red]missed[/]"
    table.add_row("ours", f"{median(per_s['ours']):.0f}", f"{ratio:.1f}", ">= 10", reached)
    console.print(table)


# --- health


def health() -> None:
    """How long /health takes, while there is much to do."""
    rows = []
    with slow_disk(FROZEN_MS) as (root, shim), running("ours", root, shim, sync_writes=True) as server:
        episodes = made(AGENT, given(RECORD_BYTES[0], 4000))
        path = f"/memory/{AGENT}/episodes"
        posts = [request("POST", path, server.key, encode(StoreBody.of(each))) for each in episodes]
        rows.append((f"fsync takes {FROZEN_MS} ms", asked_while(server, posts, 64)))
    with TemporaryDirectory(prefix="qilbee-bench-server-") as directory:
        fill(Path(directory) / "data")
        with running("ours", Path(directory), indexing="background") as server:
            path = f"/memory/{AGENT}/episodes/hybrid-search"
            wait_for_index(server)
            queries = [
                request("POST", path, server.key, encode({"query": each.user_input[:80], "limit": 10}))
                for each in given(RECORD_BYTES[0], 300)
            ]
            with connected(server.port, 1) as (connection,):
                send_all([connection], queries[:1])  # loads the index
            rows.append((f"hybrid queries at {EPISODES_SEARCHED:,} episodes", asked_while(server, queries, 4)))
    table = Table(title="GET /health", title_justify="left")
    for heading in ("while", "asked", "ms median", "ms p99", "target", ""):
        table.add_column(heading, justify="left" if heading in {"while", ""} else "right")
    for name, took_ms in rows:
        high = quantiles(took_ms, n=100)[98]
        table.add_row(
            name,
            f"{len(took_ms)}",
            f"{median(took_ms):.2f}",
            f"{high:.1f}",
            f"< {HEALTH_MS_MAX:g}",
            verdict(high, HEALTH_MS_MAX),
        )
    console.print(table)


def fill(path: Path) -> None:
    """A store with an agent of many episodes, indexed."""
    settings = ServiceSettings(
        storage=StorageSettings(data_path=str(path)), search=SearchSettings(indexing="inline"), server=ServerSettings()
    )
    with open_store(settings) as store:
        memory = store.agent_memory(AGENT)
        memory.import_episodes(made(AGENT, given(RECORD_BYTES[0], EPISODES_SEARCHED)))
        memory.search_episodes("order")


def asked_while(server: Running, requests: Sequence[bytes], clients: int) -> list[float]:
    """Milliseconds of each GET /health, one every 5 ms, while so many clients send ``requests``."""
    done = threading.Event()
    took_ms: list[float] = []

    def ask() -> None:
        asking = request("GET", "/health", "")
        with connected(server.port, 1) as (connection,):
            while not done.is_set():
                began_s = time.perf_counter()
                connection.sendall(asking)
                answer(connection)
                took_ms.append(1000 * (time.perf_counter() - began_s))
                time.sleep(0.005)

    def send(some: Sequence[bytes]) -> None:
        with connected(server.port, 1) as (connection,):
            send_all([connection], some)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        with ThreadPoolExecutor(clients) as pool:
            for sent in [pool.submit(send, requests[first::clients]) for first in range(clients)]:
                sent.result()
    finally:
        done.set()
        asker.join()
    return took_ms


if __name__ == "__main__":
    main()
