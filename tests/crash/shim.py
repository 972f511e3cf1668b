"""Building ``shim.c``, and running the programs of this package under it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from enum import IntFlag
from pathlib import Path

__all__ = ["COMPILER", "Call", "build", "command", "environment"]

_PACKAGE = Path(__file__).parent

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
"""None where there is no C compiler; nothing that needs the shim can run then."""


class Call(IntFlag):
    """Kinds of calls, as ``shim.c`` counts them."""

    WRITE = 1
    SYNC = 2
    RENAME = 4
    CREATE = 8
    UNLINK = 16
    SPACE = 32
    TRUNCATE = 64


def build(directory: Path) -> Path:
    """Compile the shim into ``directory``, and give the library to preload."""
    assert COMPILER is not None, "there is no C compiler"
    library = directory / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [COMPILER, "-shared", "-fPIC", "-O2", "-fvisibility=hidden", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


def command(module: str, argument: bytes) -> list[str]:
    """What runs a module of this package as a program; it needs the environment from below."""
    return [sys.executable, "-m", f"{_PACKAGE.name}.{module}", argument.decode()]


def environment(library: Path | None, root: Path, **settings: str) -> dict[str, str]:
    """The environment of a program, under the shim where there is one; ``settings`` are its own, in lower case."""
    # This package has the directory of the tests around it, which nobody imports from.
    paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    plain = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if library is None:
        return plain
    shim = {f"QILBEE_SHIM_{name.upper()}": value for name, value in settings.items()}
    return {**plain, "LD_PRELOAD": str(library), "QILBEE_SHIM_ROOT": str(root), **shim}
