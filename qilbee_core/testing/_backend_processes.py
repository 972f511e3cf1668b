"""What the tests of a storage backend do in another process, where it is opened anew."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from qilbee_core.batch import Delete, DeleteRange, Put, WriteBatch
from qilbee_core.errors import QilbeeError
from qilbee_core.interfaces import SupportsSequence
from qilbee_core.testing._backend_uses import PATIENCE_S, ROWS, every_call, outcome, put
from qilbee_core.testing.backends import BackendContract


class Child:
    """A process that opens the backend of a test and does one task with it, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def lines(self) -> list[str]:
        """All it said, once it has ended."""
        return self.process.communicate(timeout=PATIENCE_S)[0].splitlines()


@contextmanager
def in_child(test: BackendContract, task: Callable[[BackendContract, Path], None], path: Path) -> Iterator[Child]:
    # A new interpreter and not a fork: engines have threads, which a forked child would miss.
    kind = type(test)
    arguments = [kind.__module__, inspect.getfile(kind), kind.__qualname__, task.__name__, str(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", f"import {__name__} as kit, sys; kit._run_task(*sys.argv[1:])", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Child(process)
        finally:
            process.kill()


def _run_task(module_name: str, file: str, class_name: str, task: str, path: str) -> None:
    """What the other process runs."""
    found: Any
    try:
        found = importlib.import_module(module_name)
    except ImportError:  # pytest may have imported it by its path alone.
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for name in class_name.split("."):
        found = getattr(found, name)
    globals()[task](found(), Path(path))


def _say(text: object) -> None:
    print(text, flush=True)  # noqa: T201


def write_and_die(test: BackendContract, path: Path) -> None:
    backend = test.open_backend(path)
    put(backend, (b"synced", b"1"), (b"deleted", b"1"))
    backend.sync()
    for number in range(1000):
        put(backend, (b"row%04d" % number, b"x" * 100))
    backend.write(WriteBatch([Delete(b"deleted"), DeleteRange(b"row0000", b"row0100"), Put(b"last", b"1")]))
    _say(backend.sequence() if isinstance(backend, SupportsSequence) else 0)
    os.kill(os.getpid(), signal.SIGKILL)


def try_to_open(test: BackendContract, path: Path) -> None:
    began = time.monotonic()
    try:
        backend = test.open_backend(path)
    except QilbeeError as error:
        seconds = time.monotonic() - began
        _say(f"{type(error).__name__}\n{seconds}\n{str(error)!r}")
    else:
        _say("opened")
        backend.close()


def hold(test: BackendContract, path: Path) -> None:
    backend = test.open_backend(path)
    put(backend, (b"held", b"1"))
    _say("opened")
    sys.stdin.read()
    backend.close()


def fork(test: BackendContract, path: Path) -> None:
    backend = test.open_backend(path)
    put(backend, *ROWS)
    snapshot, begun, not_begun = backend.snapshot(), backend.scan(), backend.scan(reverse=True)
    next(begun)
    pid = os.fork()
    if pid == 0:
        calls = every_call(backend, path)
        calls["get of a snapshot"] = lambda: snapshot.get(b"a")
        calls["scan of a snapshot"] = snapshot.scan
        calls["begun scan"] = lambda: next(begun)
        calls["scan not begun"] = lambda: next(not_begun)
        _say(json.dumps({name: outcome(call) for name, call in calls.items()}))
        snapshot.close()
        backend.close()
        return  # And so through the end of the interpreter, where destructors run.
    _, status = os.waitpid(pid, 0)
    _say(f"child ended with {os.waitstatus_to_exitcode(status)}")
    assert [next(not_begun), snapshot.get(b"a"), next(begun)] == [ROWS[-1], b"value of a", ROWS[1]]
    put(backend, (b"after", b"1"))
    backend.sync()
    with closing(backend):
        assert backend.get(b"after") == b"1"
    _say("parent went on")
