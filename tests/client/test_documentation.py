"""The examples of the pages that need a server run on one: every ```` ```python server ```` block, page by page."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from .serving import Server

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```python server\n(.*?)^```$", re.M | re.S)
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if FENCE.search(page.read_text())
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), password="password") as server:
        yield server


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_that_needs_a_server_runs(
    page: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    for found in FENCE.finditer(text):
        lines = "\n" * (text[: found.start()].count("\n") + 1)  # so that a traceback names the line of the page
        block = textwrap.dedent(found[1]).replace("http://localhost:7474", server.url)
        exec(compile(lines + block, str(page.relative_to(ROOT)), "exec"), module.__dict__)


def test_there_are_such_examples() -> None:
    assert ROOT / "docs" / "client.md" in PAGES
