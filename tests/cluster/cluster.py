"""A real cluster on loopback: three PostgreSQL nodes, each kept by a Patroni, who elect their primary in an etcd.

It runs in strict synchronous mode: a commit at ``sync`` returns when one of the standbys has it, and waits while there
is none. Everything has ports and a directory of its own, and is gone when :meth:`Cluster.stop` was called.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["PATIENCE_S", "TTL_S", "Cluster", "Node", "found", "until", "why_not"]

T = TypeVar("T")

PATIENCE_S = 120.0
TTL_S = 10
"""How long the others wait for a primary that does not report before they elect another."""
_USER = "qilbee"
_DATABASE = "memory"
_TICK_S = 0.02
_LINES_TOLD = 20


def _postgres() -> Path | None:
    """Where the newest PostgreSQL has its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def why_not() -> str:
    """Why no cluster can be started here; empty where one can."""
    missing = [name for name in ("patroni", "etcd") if shutil.which(name) is None]
    if _postgres() is None:
        missing.append("postgresql")
    return f"not installed: {', '.join(missing)} (apt-get install postgresql patroni etcd-server)" if missing else ""


def until(condition: Callable[[], bool], what: str) -> float:
    """Wait for ``condition``; gives the moment it came true, on the monotonic clock. AssertionError in two minutes."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: it did not come to that in {PATIENCE_S:.0f} s")
        time.sleep(_TICK_S)
    return time.monotonic()


def found(find: Callable[[], T | None], what: str) -> T:
    """What ``find`` gives, once it gives something: a node that is slow to answer is asked again."""
    deadline = time.monotonic() + PATIENCE_S
    while (value := find()) is None:
        assert time.monotonic() < deadline, f"{what}: there is none in {PATIENCE_S:.0f} s"
        time.sleep(_TICK_S)
    return value


class Node:
    """One of the three: a PostgreSQL and the Patroni that keeps it."""

    def __init__(self, name: str, directory: Path, port: int, api_port: int) -> None:
        self.name = name
        self.port = port
        self.data = directory / name
        self.log = directory / f"{name}.log"
        self.config = directory / f"{name}.json"
        self.patroni: subprocess.Popen[bytes] | None = None
        self.api = f"http://127.0.0.1:{api_port}"

    def status(self) -> dict[str, Any]:
        """What Patroni says of it; empty where it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.api}/patroni", timeout=2) as answer:
                return json.load(answer)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:  # it answers, and is not well
            with error:
                return json.load(error)  # type: ignore[no-any-return]
        except (OSError, ValueError):
            return {}

    def kill_postgres(self) -> None:
        """``kill -9`` of all processes of PostgreSQL; Patroni starts it again."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """``kill -9`` of everything: the machine is gone."""
        self.kill_patroni()
        self.kill_postgres()

    def kill_patroni(self) -> None:
        """``kill -9`` of Patroni; PostgreSQL goes on."""
        if self.patroni is not None:
            self.patroni.kill()
            self.patroni.wait()
            self.patroni = None

    def freeze(self) -> None:
        """Stop everything: connections stay, and nobody answers."""
        assert self.patroni is not None
        self.patroni.send_signal(signal.SIGSTOP)
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)
        if self.patroni is not None:
            self.patroni.send_signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """The postmaster, if it lives, and its children."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().split("\n")[0])
            command = Path(f"/proc/{postmaster}/cmdline").read_bytes()
            if str(self.data).encode() not in command:  # the number belongs to somebody else by now
                return []
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        except (OSError, ValueError):
            return []
        return [postmaster, *map(int, children)]


class Cluster:
    """Three nodes and an etcd; a context manager. It takes some 15 seconds to start."""

    def __init__(self) -> None:
        programs = _postgres()
        assert programs is not None, why_not()
        self.directory = Path(tempfile.mkdtemp(prefix="qilbee-cluster-"))
        self._environment = {"PATH": f"{programs}:{os.environ['PATH']}", "LC_ALL": "C", "HOME": str(self.directory)}
        # PostgreSQL refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            shutil.chown(self.directory, "nobody", "nogroup")
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        self._reserved = [_reserved_port() for _ in range(8)]
        ports: list[int] = [each.getsockname()[1] for each in self._reserved]
        self._etcd_port, self._etcd_peer_port = ports[6:]
        self._etcd: subprocess.Popen[bytes] | None = None
        self.nodes = [Node(f"node{n}", self.directory, ports[n], ports[n + 3]) for n in range(3)]
        for node in self.nodes:
            node.config.write_text(json.dumps(self._config(node, programs)))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException as error:
            self._explain(error)
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._explain(error)
        self.stop()

    def _explain(self, error: BaseException) -> None:
        """Tell how the logs end, which are about to be removed."""
        for log in sorted(self.directory.glob("*.log")):
            error.add_note("\n".join([f"{log.name}:", *log.read_text().splitlines()[-_LINES_TOLD:]]))

    @property
    def dsn(self) -> str:
        """The database, wherever its primary is."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://{_USER}@{hosts}/{_DATABASE}?target_session_attrs=read-write"

    def dsn_of(self, node: Node) -> str:
        """The database on one node, whatever its role."""
        return f"postgresql://{_USER}@127.0.0.1:{node.port}/{_DATABASE}"

    def start(self) -> None:
        """Start everything, and return when the primary has two standbys, one of them synchronous."""
        url = f"http://127.0.0.1:{self._etcd_port}"
        peer_url = f"http://127.0.0.1:{self._etcd_peer_port}"
        self._etcd = self._started(
            self.directory / "etcd.log",
            *("etcd", "--name=etcd", f"--data-dir={self.directory / 'etcd'}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer_url}"),
            *(f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster=etcd={peer_url}", "--log-level=error"),
        )
        until(self._etcd_is_well, "etcd starts")
        for node in self.nodes:
            self.start_node(node)
        until(lambda: self.primary() is not None, "a primary is elected")
        self.query(f"create database {_DATABASE}", "postgres")
        self.wait_complete()

    def start_node(self, node: Node) -> None:
        """Start one that was killed; it follows the primary then."""
        if node.patroni is None:
            node.patroni = self._started(node.log, "patroni", str(node.config))

    def stop(self) -> None:
        """End everything and remove its files. Idempotent."""
        for node in self.nodes:
            node.kill()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()
            self._etcd = None
        for each in self._reserved:
            each.close()
        # PostgreSQL's children end by themselves when they see that their parent is gone, and write until then.
        for _ in range(50):
            shutil.rmtree(self.directory, ignore_errors=True)
            if not self.directory.exists():
                return
            time.sleep(0.1)

    def primary(self, among: Sequence[Node] = ()) -> Node | None:
        """Who takes writes now; None where nobody does, or where that is not agreed on."""
        primaries = [
            node
            for node in among or self.nodes
            if (status := node.status()).get("role") in ("master", "primary") and status.get("state") == "running"
        ]
        return primaries[0] if len(primaries) == 1 else None

    def takes_writes(self, among: Sequence[Node] = ()) -> bool:
        """Whether one of them is the primary and has a standby that it can wait for."""
        primary = self.primary(among)
        followers = [] if primary is None else primary.status().get("replication") or []
        return any(each["state"] == "streaming" and each["sync_state"] == "sync" for each in followers)

    def synchronous_standby(self) -> Node | None:
        """Whom the primary waits for."""
        for node in self.nodes:
            if node.status().get("sync_standby"):
                return node
        return None

    def wait_complete(self) -> None:
        """Return once there are a primary and two standbys that follow it, one of them synchronous."""

        def is_complete() -> bool:
            primary = self.primary()
            if primary is None or self.synchronous_standby() is None:
                return False
            followers = primary.status().get("replication") or []
            return len([each for each in followers if each["state"] == "streaming"]) == len(self.nodes) - 1

        until(is_complete, "a primary with two standbys")

    def query(self, statement: str, database: str = _DATABASE) -> list[tuple[Any, ...]]:
        """Ask the primary, as its superuser, whose commits wait for nobody."""
        import psycopg

        url = f"postgresql://{_USER}@127.0.0.1:{found(self.primary, 'a primary').port}/{database}"
        with psycopg.connect(url, autocommit=True, options="-c synchronous_commit=local") as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _etcd_is_well(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._etcd_port}/health", timeout=2) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, ValueError):
            return False

    def _started(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environment,
                stdout=out,
                stderr=out,
                start_new_session=True,  # so that Ctrl-C is ours alone
                **self._user,
            )

    def _config(self, node: Node, programs: Path) -> dict[str, Any]:
        """A configuration of Patroni. JSON is YAML, too."""
        api = node.api.removeprefix("http://")
        return {
            "scope": "memory",
            "name": node.name,
            "restapi": {"listen": api, "connect_address": api},
            "etcd3": {"host": f"127.0.0.1:{self._etcd_port}"},
            "watchdog": {"mode": "off"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "synchronous_mode": True,
                    "synchronous_mode_strict": True,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "remove_data_directory_on_rewind_failure": True,
                        "remove_data_directory_on_diverged_timelines": True,
                        "parameters": {"max_connections": 200, "shared_buffers": "32MB"},
                    },
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth": "trust"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{node.port}",
                "connect_address": f"127.0.0.1:{node.port}",
                "data_dir": str(node.data),
                "bin_dir": str(programs),
                "authentication": {
                    "superuser": {"username": _USER},
                    "replication": {"username": "replicator"},
                },
                "basebackup": [{"checkpoint": "fast"}, "no-sync"],  # by default it waits for minutes
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
                "parameters": {"unix_socket_directories": ""},
            },
        }


def _reserved_port() -> socket.socket:
    """A socket bound to a port of its own, which nobody else is given until it is closed, while the servers, who set
    SO_REUSEADDR, can listen there, again and again.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
