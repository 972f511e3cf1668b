"""What all tests share: engines to run on, stores in directories of the test's own, no settings from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import settings

from qilbee_core import DeleteRange, Store, WriteBatch, open_store
from qilbee_core.keys import Space

settings.register_profile("new", deadline=None)  # other examples in each run, where pytest is told so

# Where search is not tested nobody indexes: rows that a thread writes meanwhile would be in every comparison.
os.environ["QILBEE_SEARCH_INDEXING"] = "off"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what runs in the background like that
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some tests press Ctrl-C

_PATIENCE_S = 60.0  # a deadline costs nothing where all is well, however busy the machine
_MODULES = {"rocksdb": "rocksdict", "leveldb": "plyvel", "ephemeral": "qilbee_core"}
if "QILBEE_TEST_ENGINE" in os.environ:  # a plugin runs these tests on an engine of its own
    _MODULES = {os.environ["QILBEE_TEST_ENGINE"]: "qilbee_core"}


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("QILBEE_") and name != "QILBEE_SEARCH_INDEXING"]:
        monkeypatch.delenv(name)


@pytest.fixture
def search_as_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do what users do."""
    monkeypatch.delenv("QILBEE_SEARCH_INDEXING")


@pytest.fixture(params=list(_MODULES), scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine there is; a test that needs files says parametrize("engine", ["rocksdb", "leveldb"]) itself."""
    name: str = request.param
    return name


@pytest.fixture
def open_here(tmp_path: Path, engine: str) -> Iterator[Callable[..., Store]]:
    """Open a store of this test, again and again; what is left open is closed at the end."""
    pytest.importorskip(_MODULES[engine])
    opened: list[Store] = []

    def open_one(name: str = "data", **overrides: Any) -> Store:
        opened.append(open_store(tmp_path / name, **{"backend": engine, **overrides}))
        return opened[-1]

    yield open_one
    for store in opened:
        closing = Thread(target=store.close, daemon=True)
        closing.start()
        closing.join(_PATIENCE_S)
        assert not closing.is_alive(), "the store does not close"


@pytest.fixture(scope="module")
def one_store(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Store]:
    """One store for all tests of a module, since opening one takes longer than most of them."""
    pytest.importorskip(_MODULES[engine])
    with open_store(tmp_path_factory.mktemp("one") / "data", backend=engine) as store:
        yield store


class Clock:
    """A time that stands still until it is moved, for ``store._context.clock_ns``."""

    def __init__(self) -> None:
        self.ns = time.time_ns()

    def __call__(self) -> int:
        return self.ns

    def forward(self, **span: float) -> None:
        """Go on by a span of time, given as to timedelta; a negative one sets the clock back."""
        self.ns += timedelta(**span) // timedelta(microseconds=1) * 1000

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.ns // 1000)


@pytest.fixture
def clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of ``store``."""
    clock = Clock()
    monkeypatch.setattr(store._context, "clock_ns", clock)
    return clock


@pytest.fixture
def store(one_store: Store) -> Store:
    """An open store without any agents. A test that closes or breaks its store uses ``open_here``."""
    # Behind the interface's back: whatever the test before has left goes, and the catalog stays.
    one_store._backend.write(WriteBatch([DeleteRange(bytes((Space.AGENT,)), b"\xff")]))
    for agent in one_store._context.agents_in_use():
        one_store._context.forget(agent)
    return one_store
