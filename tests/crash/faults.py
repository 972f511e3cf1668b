"""A call that fails, for every call; and a disk that is full, at every fill."""

from __future__ import annotations

import errno
import queue
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .failing import Finding, Plan
from .shim import Call, command, environment

__all__ = ["ERRORS", "KINDS", "fail_every_call", "fill_the_disk"]

KINDS = (Call.WRITE, Call.SYNC, Call.RENAME)
ERRORS = (errno.EIO, errno.ENOSPC)

_SILENCE_SECONDS_MAX = 60.0
_FREE_BYTES_STEP = 3001


def fail_every_call(
    library: Path,
    root: Path,
    settings: Mapping[str, Any],
    calls: Call,
    error: int,
    *,
    sticky: bool,
    every: int = 1,
    first: int = 1,
) -> Iterator[Finding]:
    """Let each call of a kind fail in turn (or each ``every``-th), once or with all of them after it."""
    root.mkdir(exist_ok=True)
    if error == errno.ENOSPC:
        calls |= Call.SPACE  # who asks for space in advance finds none either
    yield from _findings(
        library,
        Plan(
            root=str(root),
            settings=dict(settings),
            calls=int(calls),
            errno=error,
            sticky=sticky,
            first=first,
            every=every,
        ),
    )


def fill_the_disk(library: Path, root: Path, settings: Mapping[str, Any], *, every: int = 1) -> Iterator[Finding]:
    """Let the disk be full after so and so many bytes, until all fits; each time space comes back."""
    root.mkdir(exist_ok=True)
    step = _FREE_BYTES_STEP * every
    yield from _findings(library, Plan(root=str(root), settings=dict(settings), first=step, every=step))


def _findings(library: Path, plan: Plan) -> Iterator[Finding]:
    """Those of the program, and one for each time that it hangs or dies; it then goes on with the fault after that."""
    while True:
        number = plan.first
        with subprocess.Popen(
            command("failing", msgspec.json.encode(plan)),
            env=environment(library, Path(plan.root)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            lines: queue.Queue[bytes] = queue.Queue()
            reader = threading.Thread(target=_read, args=(process, lines))
            reader.start()
            why = ""
            try:
                while True:
                    line = lines.get(timeout=_SILENCE_SECONDS_MAX)
                    if not line:
                        break
                    finding = msgspec.json.decode(line, type=Finding)
                    yield finding
                    if not finding.hit:
                        return
                    number = finding.number + plan.every
            except queue.Empty:
                why = f"nothing more for {_SILENCE_SECONDS_MAX:.0f} s: it hangs"
            finally:
                process.kill()
                reader.join()
            assert process.stderr is not None
            why = why or f"it died with {process.wait()}: {process.stderr.read().decode()[-1000:]}"
        yield Finding(number=number, hit=True, problems=[why])
        plan = msgspec.structs.replace(plan, first=number + plan.every)


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(b"")
