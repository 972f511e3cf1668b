"""What is told in two places is told alike: the README's commands, tox.ini, CONTRIBUTING.md, the versions."""

from __future__ import annotations

import configparser
import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TOX = configparser.ConfigParser(interpolation=None)
TOX.read(ROOT / "tox.ini")
ENVIRONMENTS = re.findall(r"\w+", TOX["tox"]["env_list"])


@pytest.mark.parametrize(
    ("marker", "last"), [("run", ".venv/bin/qilbee serve --data qilbee-data"), ("test", ".venv/bin/tox")]
)
def test_the_readme_has_each_command_in_one_line_that_makes_its_environment(marker: str, last: str) -> None:
    (command,) = re.findall(rf"^<!-- {marker} -->\n```sh\n(.*)\n```$", README, re.M)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert command.endswith(f" && {last}")


def test_ci_runs_the_commands_of_the_readme_and_knows_none_itself() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"\$\(shell_below (\w+)\)$", script.read_text(), re.M) == ["run", "session", "test"]
    assert "venv/bin" not in script.read_text()


def test_every_check_is_run_by_default_and_told_of() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text()
    sections = [name.removeprefix("testenv:") for name in TOX.sections() if name.startswith("testenv:")]
    assert set(sections) - {"lowest"} <= set(ENVIRONMENTS)
    assert [name for name in (*sections, *ENVIRONMENTS) if not re.search(rf"`(tox -e )?{name}`", told)] == []


def test_every_plugin_is_installed_for_its_tests() -> None:
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert folders
    assert set(re.findall(r"--editable plugins/([\w-]+)", TOX["testenv:plugins"]["commands_pre"])) == folders


def test_the_version_is_the_newest_of_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (newest, *_) = re.findall(r"^## ([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version("qilbee-core") == project["version"] == newest
