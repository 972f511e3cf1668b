"""A PostgreSQL server of the tests' own: in a private directory, on a port of its own, gone with the process.

Whoever has one already names it in ``QILBEE_TEST_POSTGRES``, a URL without a database; the user must be allowed to
make databases there.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

import psycopg
import pytest
from shared.ports import ReservedPort

_PATIENCE_S = 120.0
_VARIABLE = "QILBEE_TEST_POSTGRES"


def programs() -> Path | None:
    """Where initdb and postgres are, newest release first; None where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("initdb")
    return None if elsewhere is None else Path(elsewhere).resolve().parent


class Server:
    """One running server."""

    def __init__(self, *settings: str) -> None:
        found = programs()
        assert found is not None
        self._programs = found
        self._settings = settings
        self.directory = Path(tempfile.mkdtemp(prefix="qilbee-postgres-"))
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        # initdb and postgres refuse to run as root.
        self._user: dict[str, str | int | list[int]] = {}
        if os.getuid() == 0:
            shutil.chown(self.directory, "nobody")
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        self._run("initdb", "-D", "data", "-U", "qilbee", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self._process = self._started()

    @property
    def url(self) -> str:
        """Of the server, without a database."""
        return f"postgresql://qilbee@127.0.0.1:{self.port}"

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        return new_database(self.url, name)

    def kill(self) -> None:
        """End it as a crash would, and all of its processes."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(_PATIENCE_S)

    def restart(self) -> None:
        """Start it again after :meth:`kill`."""
        self._process = self._started()

    def wait_for_standby(self, names: str) -> None:
        """Let commits wait for these from now on."""
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute("set synchronous_commit = local")
            connection.execute(f"alter system set synchronous_standby_names = '{names}'")
            connection.execute("select pg_reload_conf()")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with psycopg.connect(f"{self.url}/postgres") as connection:
                if connection.execute("show synchronous_standby_names").fetchone() == (names,):
                    return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def freeze(self) -> None:
        """Stop every process of it: connections stay, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its files."""
        if self._process.poll() is None:
            self.thaw()
            self.kill()
        self._reserved.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        parent = self._process.pid
        os.kill(parent, number)
        if number == signal.SIGSTOP:  # it has no more children from then on
            deadline = time.monotonic() + _PATIENCE_S
            while Path(f"/proc/{parent}/stat").read_text().rpartition(") ")[2][0] != "T":
                assert time.monotonic() < deadline
                time.sleep(0.001)
        for pid in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
            with suppress(ProcessLookupError):  # the process of a connection ends when its client is gone
                os.kill(pid, number)

    def _started(self) -> subprocess.Popen[bytes]:
        options = [f"-p{self.port}", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        for setting in ("max_connections=300", *self._settings):
            options += ["-c", setting]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", *options],
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdout=log,
                stderr=log,
                **self._user,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                psycopg.connect(f"{self.url}/postgres").close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    said = (self.directory / "log").read_text()[-2000:]
                    raise AssertionError(f"PostgreSQL does not start: {said}") from error
                time.sleep(0.05)
            else:
                return process  # type: ignore[no-any-return]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            check=True,
            capture_output=True,
            **self._user,  # type: ignore[call-overload]
        )


def new_database(url: str, name: str) -> str:
    """The URL of a new, empty database of a server."""
    with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
        connection.execute(f'drop database if exists "{name}" with (force)')
        connection.execute(f'create database "{name}"')
    return f"{url}/{name}"


needs_postgres = pytest.mark.skipif(
    programs() is None and _VARIABLE not in os.environ,
    reason="PostgreSQL is not installed: apt-get install postgresql",
)


@cache
def shared_url() -> str:
    """The server that the tests of this process and its children share, started when it is first asked for."""
    if _VARIABLE not in os.environ:
        # Writes that survive a power cut are not what these tests are about.
        server = Server("fsync=off")
        atexit.register(server.stop)
        os.environ[_VARIABLE] = server.url
    return os.environ[_VARIABLE]


def fresh_url() -> str:
    """The URL of a new, empty database on the shared server."""
    return new_database(shared_url(), f"test_{uuid.uuid4().hex}")
