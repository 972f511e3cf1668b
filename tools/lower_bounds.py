"""The oldest releases that pyproject.toml allows: print them, or install them into this environment.

python tools/lower_bounds.py [--install]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path


def lower_bounds() -> list[str]:
    """``name==oldest`` for each dependency and each one of the extras."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    found = [re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement) for requirement in wanted]
    return [f"{match[1]}=={match[2]}" for match in found if match]


def main() -> None:
    """Do what the arguments say."""
    bounds = lower_bounds()
    print("\n".join(bounds), flush=True)
    if sys.argv[1:] == ["--install"]:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *bounds], check=True)


if __name__ == "__main__":
    main()
