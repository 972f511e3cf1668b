"""Build what is released and use it as a stranger would: the wheel alone, in an environment of its own.

    python tools/check_package.py DIRECTORY

Works in DIRECTORY, which is emptied first. Needs ``build``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_WHEEL = {
    "qilbee_core/py.typed",
    "qilbee_core/codecs/zstd-1.dict",
    "qilbee_core/samples/conversations.jsonl",
    "qilbee_core/search/words-1.npy",
    "qilbee_core/search/words-1.npz",
    "qilbee_core/search/words-1.txt",
    "qilbee_core/testing/backends.py",
    "qilbeedb/server/page/index.html",
    "qilbeedb/server/page/page.js",
}
IN_SDIST = IN_WHEEL | {"pyproject.toml", "README.md", "LICENSE"}

USE = """
import importlib.metadata, importlib.resources, sys
import qilbee_core
from qilbee_core import Episode, open_store
assert qilbee_core.__file__.startswith(sys.prefix), qilbee_core.__file__
assert {"hypothesis", "plyvel", "pytest"}.isdisjoint(
    distribution.name for distribution in importlib.metadata.distributions()
)
assert importlib.resources.files("qilbee_core").joinpath("py.typed").is_file()
for codec in ("none", "lz4", "snappy", "zstd"):
    with open_store(f"used-{codec}", compression_type=codec, compression_scope="value") as store:
        memory = store.agent_memory("bot")
        id = memory.store_episode(Episode.observation("bot", "tea " * 100))
        assert memory.get_episode(id).content == {"observation": "tea " * 100}
"""


def main() -> None:
    """Build, look inside, install, use."""
    directory = Path(sys.argv[1]).resolve()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    run(sys.executable, "-m", "build", "--outdir", directory / "dist", ROOT)
    (wheel,) = (directory / "dist").glob("*.whl")
    (sdist,) = (directory / "dist").glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    expect(IN_WHEEL, names, wheel.name)
    assert not [name for name in names if name.startswith(("tests/", "plugins/", "benchmarks/"))], names
    with tarfile.open(sdist) as archive:
        expect(IN_SDIST, [name.partition("/")[2] for name in archive.getnames()], sdist.name)

    venv.create(directory / "venv", with_pip=True)
    scripts = directory / "venv" / "bin"
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)
    run(scripts / "python", "-m", "pip", "check")
    run(scripts / "python", "-P", "-W", "error", "-c", USE, cwd=directory)
    run(scripts / "qilbee", "quickstart", cwd=directory)
    run(scripts / "qilbee", "verify", "quickstart-data", cwd=directory)
    print(f"{wheel.name} ({wheel.stat().st_size:,} bytes) and {sdist.name} are complete")


def expect(wanted: set[str], names: list[str], where: str) -> None:
    """Stop where something is missing."""
    missing = wanted - set(names)
    if missing:
        sys.exit(f"{where} lacks {', '.join(sorted(missing))}")


def run(*command: object, cwd: Path = ROOT) -> None:
    """Run a command, and stop where it fails."""
    print("+", *[str(word)[:80] for word in command], flush=True)
    subprocess.run([str(word) for word in command], cwd=cwd, check=True)


if __name__ == "__main__":
    main()
