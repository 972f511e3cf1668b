"""Opening a store that is refused because writes are missing: what is wrong, what is kept, what is lost."""

from __future__ import annotations

import typer

from qilbee_core.cli.display import counted, say, table
from qilbee_core.config import Settings
from qilbee_core.errors import CorruptRecordError, DataError, LostWritesError
from qilbee_core.recovery import RecoveryReport
from qilbee_core.store import open_store

__all__ = ["run"]


def run(settings: Settings, *, confirmed: bool) -> None:
    """Say what keeps the store of ``settings`` from opening, ask unless ``confirmed``, open it with what is left."""
    path = settings.storage.data_path
    try:
        open_store(settings).close()
    except (LostWritesError, CorruptRecordError) as error:
        say(f"{path} does not open: {error.message}")
    else:
        say(f"{path} opens: nothing that was durable is missing")
        return
    say(
        "It can be opened with what is left. What is behind the damage is then gone for good: copy the directory first."
    )
    if not confirmed:
        typer.confirm("Open it with what is left?", abort=True)
    with open_store(settings, recover="tail") as store:
        report = store.recovery
    if report is not None:
        _tell(report)


def _tell(report: RecoveryReport) -> None:
    is_known = report.expected_sequence is not None and report.found_sequence is not None
    rows = [
        ("operations", str(report.found_sequence), str(report.lost_operations) if is_known else "unknown"),
        ("episodes", str(report.episodes), ""),
        ("agents", str(report.agents), ""),
    ]
    say(table("Recovered", ("what", "kept", "lost of what was durable"), rows))
    if report.mended:
        say(f"{counted(report.mended, 'problem')} of indexes and counters mended")
    if report.problems:
        raise DataError(
            f"{counted(len(report.problems), 'problem')} left",
            remedy="qilbee verify names them; see docs/operations.md",
        )
