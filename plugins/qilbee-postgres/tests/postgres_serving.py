"""Several ``qilbee serve`` in processes of their own, on one database."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

PASSWORD = "correct horse battery staple"
PATIENCE_S = 120.0
_SCRIPT = Path(sysconfig.get_path("scripts"), "qilbee")


@contextmanager
def serving(directory: Path, url: str, count: int = 2, **variables: str) -> Iterator[list[httpx.Client]]:
    """Clients of so many servers, which are all started at once; they share a secret in ``directory``."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QILBEE_")},
        "QILBEE_STORAGE_DSN": url,
        "QILBEE_ACCOUNTS_SECRET_FILE": str(directory / "secret"),
        "QILBEE_ADMIN_PASSWORD": PASSWORD,
        **variables,
    }
    with ExitStack() as ending:
        processes: list[subprocess.Popen[str]] = []
        for number in range(count):
            log = ending.enter_context((directory / f"log-{number}").open("w"))
            process = subprocess.Popen(
                [_SCRIPT, "serve", "--port", "0"],
                cwd=directory,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            ending.callback(_end, process)
            processes.append(process)
        clients = []
        for number, process in enumerate(processes):
            assert process.stdout is not None
            said = process.stdout.readline()
            assert "listens on " in said, (directory / f"log-{number}").read_text()
            client = httpx.Client(base_url=said.split()[3].rstrip(","), timeout=PATIENCE_S)
            clients.append(ending.enter_context(client))
        yield clients


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def log_in(client: httpx.Client, username: str, password: str = PASSWORD) -> dict[str, str]:
    """The header that shows who calls."""
    answer = client.post("/api/v1/auth/login", json={"username": username, "password": password})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}
