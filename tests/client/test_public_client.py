"""The public client of this product, PyPI ``qilbeedb`` 0.2.1, unchanged and in its own environment, on our server.

``PUBLIC_CLIENT_CYCLES=50`` makes the long run of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .serving import PASSWORD, Server

CYCLES = int(os.environ.get("PUBLIC_CLIENT_CYCLES", "5"))
SCRIPT = Path(__file__).with_name("public_session.py")
PACKAGES = ["qilbeedb==0.2.1", "requests", "pyjwt", "cryptography"]  # it imports the last three, and asks for one


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the public client, and nothing of ours."""
    place = tmp_path_factory.mktemp("public")
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=300)
    python = place / "bin" / "python"
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
        *PACKAGES,
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"qilbeedb 0.2.1 cannot be installed from PyPI here: {last}")
    return python


def run(interpreter: Path, verb: str, server: Server, *arguments: str, given: str = "") -> str:
    command: list[str | Path] = [interpreter, "-I", SCRIPT, verb, server.url, PASSWORD, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{server.log()}"
    return done.stdout


def test_every_verb_of_the_public_client_works(interpreter: Path, server: Server) -> None:
    run(interpreter, "session", server)
    assert PASSWORD not in server.log()


def test_what_it_stored_is_there_after_each_kill(interpreter: Path, tmp_path: Path) -> None:
    filled = ""
    with Server(tmp_path) as server:
        for cycle in range(CYCLES):
            filled += run(interpreter, "fill", server, str(cycle))
            server.kill()
            server.start()
            run(interpreter, "check", server, given=filled)
    assert len(filled.splitlines()) == CYCLES
    command = [sys.executable, "-c", "from qilbeedb.cli import main; main()", "audit", "verify"]
    verify = [*command, "--data", str(tmp_path / "data")]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
