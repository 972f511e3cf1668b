"""The client in an environment that has httpx and msgspec and nothing else: no engine, no numpy, no pluggy."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import qilbee_core
import qilbeedb

from .serving import PASSWORD, Server

LEFT_OUT = {"accounts", "server", "cli", "embedded"}


def requirements(name: str) -> set[str]:
    """A distribution and all that it cannot do without."""
    needed = {name}
    for requirement in map(Requirement, distribution(name).requires or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed |= requirements(requirement.name)
    return needed


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to import from, with links to the only packages that there are."""
    place = tmp_path_factory.mktemp("environment")
    for name in requirements("httpx") | requirements("msgspec"):
        for file in distribution(name).files or []:
            top = file.parts[0]
            if top != ".." and not (place / top).exists() and top != "__pycache__":
                (place / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    for package in (qilbee_core, qilbeedb):
        (place / package.__name__).symlink_to(Path(str(package.__file__)).parent)
    ours = distribution("qilbee-core")
    assert isinstance(ours, PathDistribution)
    about = Path(str(ours._path))  # where the version is written
    (place / about.name).symlink_to(about)
    return place


def run(environment: Path, program: str, *arguments: str) -> str:
    start = f"import sys; sys.path.append({str(environment)!r})\n"  # -S leaves the site-packages out
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", start + program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_environment_has_no_engine(environment: Path) -> None:
    program = """
from importlib.util import find_spec
print([name for name in ("numpy", "rocksdict", "pluggy", "lz4", "zstandard", "Stemmer", "typer") if find_spec(name)])
"""
    assert run(environment, program) == "[]\n"


def test_every_module_of_the_client_is_imported(environment: Path) -> None:
    modules = sorted(path.stem for path in Path(str(qilbeedb.__file__)).parent.glob("*.py"))
    client = [name for name in modules if name not in {*LEFT_OUT, "__init__", "__main__"}]
    program = "".join(f"import qilbeedb.{name}\n" for name in client)
    program += "from qilbeedb import AsyncQilbeeDB, QilbeeDB, __version__\n"
    program += "from qilbeedb.memory import AgentMemory, Episode, MemoryConfig, MemoryStatistics\n"
    program += "from qilbeedb.exceptions import AuthenticationError, MemoryError\nprint(__version__)"
    assert run(environment, program).strip()


def test_an_embedded_database_says_what_it_lacks(environment: Path) -> None:
    program = """
from qilbeedb import QilbeeDB
from qilbeedb.exceptions import MemoryError
try:
    QilbeeDB("./data")
except MemoryError as error:
    print(type(error).__name__, error)
"""
    said = run(environment, program)
    assert said.startswith("ProviderNotFoundError './data' cannot be opened: No module named ")
    assert "install qilbee-core" in said


def test_the_client_works_there(environment: Path, server: Server) -> None:
    program = """
import asyncio, sys
from qilbeedb import AsyncQilbeeDB, QilbeeDB
from qilbeedb.memory import Episode
with QilbeeDB(sys.argv[1]) as db:
    db.login("admin", sys.argv[2])
    memory = db.agent_memory("light")
    memory.store_episode(Episode.conversation("light", "What is QilbeeDB?", "A memory."))
async def main():
    async with AsyncQilbeeDB(sys.argv[1]) as db:
        await db.login("admin", sys.argv[2])
        (found,) = await db.agent_memory("light").get_recent_episodes()
        print(found.content["agent_response"])
asyncio.run(main())
"""
    assert run(environment, program, server.url, PASSWORD) == "A memory.\n"
