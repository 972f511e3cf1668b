"""How long ``/health`` takes while the database is frozen: ``python benchmarks/postgres_health.py``.

Starts the cluster of ``tests/cluster`` (PostgreSQL, Patroni and etcd have to be installed, see there) and two
``qilbee serve`` with accounts, to each of which four clients store all the time. ``/health`` is asked every 20 ms, over
one connection for each server: for five seconds as it is, and for five seconds in which every process on the primary's
node stands still (SIGSTOP).
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from statistics import quantiles

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from cluster.cluster import Cluster, why_not

SERVERS, CLIENTS, SPAN_S, INTERVAL_S, ROUNDS = 2, 4, 5.0, 0.02, 3
TARGET_MS = 50
PASSWORD = "correct horse battery staple"


class Server:
    """One ``qilbee serve``."""

    def __init__(self, directory: Path, dsn: str, name: str) -> None:
        environ = {
            **os.environ,
            "QILBEE_STORAGE_DSN": dsn,
            "QILBEE_STORAGE_DURABILITY": "sync",
            "QILBEE_ACCOUNTS_SECRET_FILE": str(directory / "secret"),
            "QILBEE_ADMIN_PASSWORD": PASSWORD,
        }
        self.name = name
        self.log = (directory / name).open("w")
        command = [str(Path(sysconfig.get_path("scripts"), "qilbee")), "serve", "--port", "0"]
        self.process = subprocess.Popen(
            command, cwd=directory, env=environ, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert "listens on" in said, (directory / name).read_text()
        self.port = int(said.split()[3].rstrip(",").rpartition(":")[2])

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None, token: str = "") -> bytes:
    """One request and its answer."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    return connection.getresponse().read()


def store(server: Server, token: str, agent: str, ending: threading.Event) -> None:
    """Store one episode after the other."""
    connection = server.connect()
    body = {"episodeType": "observation", "content": {"observation": "tea at five"}}
    while not ending.is_set():
        ask(connection, "POST", f"/memory/{agent}/episodes", body, token)


def watch(server: Server, until_s: float, took_ms: list[float], sick: list[str]) -> None:
    """Ask for health until then."""
    connection = server.connect()
    while (began_s := time.perf_counter()) < until_s:
        found = json.loads(ask(connection, "GET", "/health"))
        took_ms.append(1000 * (time.perf_counter() - began_s))
        sick += found["problems"]
        time.sleep(max(0.0, INTERVAL_S - (time.perf_counter() - began_s)))


def measure(servers: list[Server], phase: str, seen: dict[tuple[str, str], list[float]]) -> None:
    """Watch all servers for a while."""
    until_s, sick = time.perf_counter() + SPAN_S, {server.name: list[str]() for server in servers}
    threads = [
        threading.Thread(target=watch, args=(each, until_s, seen.setdefault((phase, each.name), []), sick[each.name]))
        for each in servers
    ]
    together(threads)
    for name, problems in sick.items():
        if problems:
            print(f"{name}, {phase}: {problems[-1]}")


def together(threads: list[threading.Thread]) -> None:
    """Start them all, and wait for them."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Measure, and print what was seen."""
    if reason := why_not():
        sys.exit(reason)
    seen: dict[tuple[str, str], list[float]] = {}
    ending = threading.Event()
    with tempfile.TemporaryDirectory() as directory, Cluster() as cluster:
        servers = [Server(Path(directory), cluster.dsn, f"server {number + 1}") for number in range(SERVERS)]
        try:
            who = {"username": "admin", "password": PASSWORD}
            token = json.loads(ask(servers[0].connect(), "POST", "/api/v1/auth/login", who))["access_token"]
            threads = [
                threading.Thread(target=store, args=(server, token, f"agent-{number}", ending), daemon=True)
                for server in servers
                for number in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            for _ in range(ROUNDS):
                cluster.wait_complete()
                measure(servers, "as it is", seen)
                primary = cluster.primary()
                assert primary is not None
                primary.freeze()
                try:
                    measure(servers, "primary frozen", seen)
                finally:
                    primary.thaw()
            ending.set()
            for thread in threads:
                thread.join()
        finally:
            for server in servers:
                server.stop()
    for (phase, name), took_ms in sorted(seen.items()):
        p50, p99 = (quantiles(took_ms, n=100)[rank] for rank in (49, 98))
        told = f"  target {TARGET_MS} ms: {'reached' if p99 < TARGET_MS else 'missed'}" if "frozen" in phase else ""
        figures = f"p50 {p50:5.1f} ms  p99 {p99:5.1f} ms  max {max(took_ms):5.1f} ms  of {len(took_ms)}"
        print(f"{name}, {phase:15} {figures}{told}")


if __name__ == "__main__":
    main()
