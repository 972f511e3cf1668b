"""Copying a store to another place, with a bar; what was begun and interrupted goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import typer

from qilbee_core.cli.display import ProgressBar, counted, say, say_aside
from qilbee_core.cli.quickstart import INTERRUPTED
from qilbee_core.config import Settings
from qilbee_core.copying import CopyReport, copy_store
from qilbee_core.errors import StorageError
from qilbee_core.marker import MARKER_NAME

__all__ = ["run"]

_AGAIN = "run the same command again: it goes on where it was, and the copy is no store until it is complete"


class _Bars:
    """A bar for each thing that is done."""

    def __init__(self, shown: ExitStack) -> None:
        self.step = ""
        self._shown = shown
        self._bar: ProgressBar | None = None

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if step != self.step or self._bar is None:
            self._shown.close()
            self.step, self._bar = step, self._shown.enter_context(ProgressBar(step, total))
        self._bar.show(done, "" if total is None else f"{done:,} of {counted(total, 'row')}")


def run(source: str | Settings, target: Settings) -> CopyReport:
    """Copy, and say what is there then and what was left behind."""
    with ExitStack() as shown:
        bars = _Bars(shown)
        try:
            report = copy_store(source, target, progress=bars)
        except KeyboardInterrupt:
            shown.close()
            say_aside(f"interrupted: {_AGAIN}" if bars.step else "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except StorageError:
            shown.close()
            if bars.step:
                say_aside(_AGAIN)
            raise
    if not report.copied:
        say(f"{report.target} is this copy already, complete and equal")
    say(
        f"{report.target} holds {counted(report.agents, 'agent')}, {counted(report.episodes, 'episode')}, "
        f"{counted(report.rows, 'row')} of {report.bytes:,} bytes; {report.copied:,} copied now"
    )
    beside = _beside(Path(report.source))
    if beside:
        say(f"left in {report.source}, for they are no part of the store: {', '.join(beside)} (see docs/operations.md)")
    return report


def _beside(directory: Path) -> list[str]:
    """Files that others, such as a server, keep in the directory of a store."""
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if path.is_file() and path.name != MARKER_NAME)
