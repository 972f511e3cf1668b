"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .serving import Serving, serving

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server without login, for all tests of a module; each takes an agent of its own."""
    directory = tmp_path_factory.mktemp("served") / "data"
    with serving({"storage": {"data_path": str(directory)}, "search": {"indexing": "background"}}) as running:
        yield running
