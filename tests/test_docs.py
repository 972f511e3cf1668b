"""What the pages say is true: their examples run, top to bottom, and their links lead somewhere.

Every ```` ```python ```` block of a page runs, all of a page in one namespace and in a directory of its own. A block
marked ```` ```python no-run ```` is shown and not run; ```` ```python server ```` is run by tests/client.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "plugins/*.md", "plugins/*/*.md") for page in ROOT.glob(pattern)
)
RUN = [page for page in PAGES if page == ROOT / "README.md" or ROOT / "docs" in page.parents]

_FENCE = re.compile(r"^( *)(```+)([^\n`]*)\n(.*?)^\1\2 *$", re.M | re.S)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_blocks(page: Path) -> list[str]:
    """The blocks to run, each with empty lines before it, so that a traceback names the line of the page."""
    text = page.read_text()
    return [
        "\n" * (text[: found.start()].count("\n") + 1) + textwrap.dedent(found[4])
        for found in _FENCE.finditer(text)
        if found[3].strip() == "python"
    ]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end with."""
    headings = re.findall(r"^#+ +(.*?) *$", _FENCE.sub("", page.read_text()), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.usefixtures("search_as_by_default")
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_every_example_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("page")  # some of what is defined there looks for its module
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    for block in python_blocks(page):
        exec(compile(block, name_of(page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    dead = []
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page if not path else page.parent / unquote(path)
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_python_says_whether_it_is_run(page: Path) -> None:
    marks = {found[3].strip() for found in _FENCE.finditer(page.read_text())}
    told = {mark for mark in marks if "python" in mark or mark in {"py", "pycon"}}
    assert told <= {"python", "python no-run", "python server"}


def test_there_are_examples_to_run() -> None:
    assert python_blocks(ROOT / "docs" / "configuration.md")


def test_a_block_is_found_with_its_line_and_without_what_is_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nx = 1\n```\n\n```python no-run\nboom\n```\n- in a list\n\n  ```python\n  y = 2\n  ```\n"
    )
    assert python_blocks(page) == ["\n\n\nx = 1\n", "\n" * 12 + "y = 2\n"]
