"""Each program in examples/ runs as its first lines say, twice on the same directory, and says what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

SAID = {
    "async_agent.py": ("200 conversations survive a power cut", "200 conversations survive a power cut"),
    "hello.py": ("2 episodes are stored", "4 episodes are stored"),
    "own_codec.py": ("the temperature is 18 degrees, ", "the temperature is 18 degrees, "),
    "switch_codec.py": ("2,000 episodes in four codecs, 0 problems", "4,000 episodes in four codecs, 0 problems"),
}


def run(name: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, directory],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_the_example_runs_and_runs_again(name: str, tmp_path: Path) -> None:
    first, second = SAID[name]
    assert first in run(name, tmp_path / "data")
    assert second in run(name, tmp_path / "data")


def test_the_codecs_of_the_example_are_smaller_in_this_order(tmp_path: Path) -> None:
    lines = run("switch_codec.py", tmp_path / "data").splitlines()[:4]
    sizes = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines}
    assert sizes["zstd"] < sizes["lz4"] <= sizes["none"]
