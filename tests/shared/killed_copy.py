"""A copy whose process is killed at one of its writes: ``killed_copy.py SOURCE TARGET ENGINE BATCH_ROWS WRITE MOMENT``.

ENGINE is the class that writes the target, as ``module:name``, and MOMENT whether the write is done: before or after.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import qilbee_core.copying
from qilbee_core import StorageBackend, WriteBatch

_PATIENCE_S = 120.0


def killed_copy(
    source: str | Path, target: str | Path, engine: str, *, batch_rows: int, write: int, moment: str
) -> subprocess.CompletedProcess[str]:
    """Copy in a process of its own, which does not survive that write, the first being 1, if there are so many."""
    return subprocess.run(
        [sys.executable, __file__, source, target, engine, str(batch_rows), str(write), moment],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )


def run(source: str, target: str, engine: type[StorageBackend], batch_rows: int, write: int, moment: str) -> None:
    """Copy, and be killed."""
    qilbee_core.copying._BATCH_ROWS = batch_rows
    numbers, write_batch = count(1), engine.write

    def killing(backend: StorageBackend, batch: WriteBatch) -> None:
        is_last = next(numbers) == write
        if is_last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write_batch(backend, batch)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    engine.write = killing  # type: ignore[assignment, method-assign]
    options: dict[str, Any] = {} if "://" in target else {"backend": engine.name}
    qilbee_core.copying.copy_store(source, target, **options)


if __name__ == "__main__":
    module, _, class_name = sys.argv[3].partition(":")
    of_target: type[StorageBackend] = getattr(importlib.import_module(module), class_name)
    run(sys.argv[1], sys.argv[2], of_target, int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
