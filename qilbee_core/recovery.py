"""Opening a store that has lost durable writes, by name: what was kept, and what was lost."""

from __future__ import annotations

import logging

from msgspec import Struct

from qilbee_core.memory.commit import Context
from qilbee_core.memory.repair import repair
from qilbee_core.memory.verify import Problem, verify

__all__ = ["RecoveryReport", "recover_tail"]

log = logging.getLogger(__name__)


class RecoveryReport(Struct, frozen=True, kw_only=True):
    """What ``open_store(path, recover="tail")`` has kept and lost.

    The sequences are the engine's numbers of operations: ``expected_sequence`` of the last one that was known to be
    durable, ``found_sequence`` of the last one that is there; None where nothing is known. ``agents`` and ``episodes``
    are there. ``mended`` counts heads, indexes and other derived things that did not agree with the episodes and do
    now, ``problems`` is what verify() says of the rest.

    >>> report = RecoveryReport(expected_sequence=12, found_sequence=9, agents=1, episodes=2, mended=0, problems=[])
    >>> report.lost_operations
    3
    """

    expected_sequence: int | None
    found_sequence: int | None
    agents: int
    episodes: int
    mended: int
    problems: list[Problem]

    @property
    def lost_operations(self) -> int:
        """How many operations are missing that were known to be durable; newer ones may be missing besides."""
        if self.expected_sequence is None or self.found_sequence is None:
            return 0
        return max(0, self.expected_sequence - self.found_sequence)


def recover_tail(context: Context, expected_sequence: int | None, found_sequence: int | None) -> RecoveryReport:
    """Bring all that is derived into agreement with the episodes that are left, and make that durable.

    The batches that an engine keeps are a beginning of those that were written, each of them whole, so there is
    nothing to mend. Where a file of tables was lost besides, there is.
    """
    report = before = verify(context)
    if any(problem.derived for problem in before.problems):
        report = repair(context).after
    context.durability.wrote()  # the opening, so that flush() has something to do
    context.durability.flush()
    recovered = RecoveryReport(
        expected_sequence=expected_sequence,
        found_sequence=found_sequence,
        agents=report.agents,
        episodes=report.episodes,
        mended=len(before.problems) - len(report.problems),
        problems=report.problems,
    )
    log.warning(
        "opened with what is left: %d operations that were durable are lost, %d episodes of %d agents are there",
        recovered.lost_operations,
        recovered.episodes,
        recovered.agents,
    )
    return recovered
