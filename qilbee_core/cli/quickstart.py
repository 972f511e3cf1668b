"""``qilbee quickstart``: conversations into a store, the store closed, and read again by another process."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import typer

from qilbee_core.cli.conversations import read_lines
from qilbee_core.cli.disk import DiskUse, disk_use, uncompressed_disk_use
from qilbee_core.cli.display import ProgressBar, counted, say, say_aside, table
from qilbee_core.cli.importing import Import
from qilbee_core.config import Settings
from qilbee_core.errors import StorageError
from qilbee_core.store import Store, open_store

__all__ = ["INTERRUPTED", "run"]

INTERRUPTED = 130
_RECENT = 6


def run(path: Path, settings: Settings, config: Path | None) -> None:
    """Do it all, with the conversations in ``path``; ``settings`` were read from the file ``config``."""
    directory = settings.storage.data_path
    try:
        _run(path, settings, directory, config)
    except KeyboardInterrupt:
        say_aside(f"interrupted: run the same command again to go on; what is in {directory} is not stored twice")
        raise typer.Exit(INTERRUPTED) from None


def _run(path: Path, settings: Settings, directory: str, config: Path | None) -> None:
    with open_store(settings) as store:
        done = _import(store, path, directory)
        before = _uncompressed(store)
        store.compact()
    after = disk_use(Path(directory))
    _show_in_new_process(directory, config)
    if before is not None:
        _tell_disk_use(done, before, after, settings.storage.codec)
    say(f"Next: qilbee verify {shlex.quote(directory)}, or qilbee --help")


def _import(store: Store, path: Path, directory: str) -> Import:
    """Store the conversations, and say how many they were, whatever ends it."""
    done = Import(store)
    say(f"Storing {path} in {directory}")
    started_s = time.monotonic()
    try:
        with path.open("rb") as file, ProgressBar("storing", path.stat().st_size or None) as bar:
            done.run(read_lines(file), lambda: bar.show(done.end_byte, f"{counted(done.lines, 'conversation')} stored"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", remedy="check the file") from error
    finally:
        say(
            f"{counted(done.lines, 'conversation')} of {counted(done.agents, 'agent')} stored: {done.new:,} new, "
            f"{done.lines - done.new:,} from before ({time.monotonic() - started_s:.2f} s)"
        )
    return done


def _uncompressed(store: Store) -> DiskUse | None:
    memories = [store.agent_memory(agent_id) for agent_id in store.agents()]
    total = sum(memory.get_statistics().total_episodes for memory in memories)
    try:
        with ProgressBar("measuring without compression", total) as bar:
            return uncompressed_disk_use(
                store, lambda count: bar.show(count, f"{count:,} of {counted(total, 'episode')}")
            )
    except (StorageError, OSError) as error:
        say_aside(f"disk use is not compared: {error}")
        return None


def _show_in_new_process(directory: str, config: Path | None) -> None:
    arguments = ["show", directory, "--limit", str(_RECENT)]
    if config is not None:
        arguments += ["--config", str(config)]
    say(f"The store is closed. A new process opens it: qilbee {shlex.join(arguments)}")
    sys.stdout.flush()
    # -P: a file named json.py, in the directory where somebody tries this, is not ours to import.
    command = [sys.executable, "-P", "-m", "qilbee_core.cli", *arguments]
    shown = subprocess.run(command, check=False)  # noqa: S603  # ourselves
    if shown.returncode:
        raise typer.Exit(shown.returncode)


def _tell_disk_use(done: Import, before: DiskUse, after: DiskUse, codec: str) -> None:
    say(
        table(
            "Disk use in bytes, after compaction",
            ("what", "data", "engine's logs", "in all"),
            [
                ("input of this run, JSON lines", done.end_byte, 0, done.end_byte),
                ("before compression: none *", *before, sum(before)),
                (f"after compression: {codec}", *after, sum(after)),
            ],
        )
    )
    say("* the same episodes in a second, temporary store")
    say(f"compression {codec} saves {1 - after.data / before.data:.0%} of the data")
