"""A server of ours in a process of its own, to be killed and started again on the same port and directory."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.ports import ReservedPort

PASSWORD = "correct horse battery staple"
_PATIENCE_S = 120.0
_PROGRAM = """
import json, sys
from qilbeedb.server.serve import serve
from qilbeedb.server.settings import ServiceSettings
serve(ServiceSettings.load(json.loads(sys.argv[1])), ready=lambda url: print(url, flush=True))
"""


class Server:
    """One server, on a directory of its own. A context manager; starts when it is entered."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        password: str = PASSWORD,
        tables: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.directory = directory
        self._reserved = ReservedPort(port)
        self.port = self._reserved.number
        self._password = password
        self._tables = {name: dict(table) for name, table in (tables or {}).items()}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._reserved.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._process is not None:
                self.stop()
        finally:
            self._reserved.close()

    @property
    def url(self) -> str:
        scheme = "https" if "tls_key" in self._tables.get("server", {}) else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and come back when it answers."""
        tables = {
            **self._tables,
            "storage": {"data_path": str(self.directory / "data"), **self._tables.get("storage", {})},
            "server": {"port": self.port, **self._tables.get("server", {})},
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith("QILBEE_")}
        with (self.directory / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(tables)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**plain, "QILBEE_ADMIN_PASSWORD": self._password},
            )
        output = self._process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], _PATIENCE_S)
        said = output.readline() if ready else ""
        if not said.startswith("http"):
            self._end(signal.SIGKILL)
            raise AssertionError(f"the server does not start:\n{self.log()}")

    def stop(self) -> None:
        """End it as its operator would."""
        code = self._end(signal.SIGTERM)
        assert code == 0, f"it ended with {code}:\n{self.log()}"

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return code
