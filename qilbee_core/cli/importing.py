"""Storing a file of conversations, so that it can be interrupted and run again."""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from qilbee_core.cli.conversations import Line
from qilbee_core.errors import InvalidError
from qilbee_core.memory.agent import AgentMemory
from qilbee_core.store import Store

__all__ = ["Import"]

_BATCH_LINES = 500


class Import:
    """Stores conversations in batches, and knows at any time what is stored.

    ``lines`` counts the conversations that are in the store now, ``new`` those that were not before;
    ``end_byte`` is where the last of them ends in the file.
    """

    def __init__(self, store: Store) -> None:
        self.lines = 0
        self.new = 0
        self.end_byte = 0
        self._store = store
        self._memories: dict[str, AgentMemory] = {}

    @property
    def agents(self) -> int:
        """How many agents the conversations are of."""
        return len(self._memories)

    def run(self, lines: Iterable[Line], progress: Callable[[], object]) -> None:
        """Store all of ``lines``, with ``progress`` called after each batch.

        A line that is no conversation raises InvalidError, and Ctrl-C raises KeyboardInterrupt when the
        batch is stored. After either, what was read before is stored, and nothing behind it.
        """
        pending: list[Line] = []
        with _interrupts_noticed() as interrupted:
            try:
                for line in lines:
                    pending.append(line)
                    if len(pending) == _BATCH_LINES:
                        self._write(pending)
                        pending = []
                        progress()
                        if interrupted():
                            break
            except InvalidError:
                self._write(pending)
                raise
            self._write(pending)
            progress()
            if interrupted():
                raise KeyboardInterrupt

    def _write(self, lines: list[Line]) -> None:
        """Store ``lines``, those of each agent in one atomic batch."""
        lines_of: dict[str, list[Line]] = defaultdict(list)
        for line in lines:
            lines_of[line.episode.agent_id].append(line)
        for agent_id, its_lines in lines_of.items():
            memory = self._memories.get(agent_id)
            if memory is None:
                memory = self._memories[agent_id] = self._store.agent_memory(agent_id)
            before = memory.get_statistics().total_episodes
            memory.import_episodes(line.episode for line in its_lines if line.idempotency_key is None)
            for line in its_lines:
                if line.idempotency_key is not None:
                    memory.store_episode(line.episode, idempotency_key=line.idempotency_key)
            self.new += memory.get_statistics().total_episodes - before
            self.lines += len(its_lines)
        if lines:
            self.end_byte = lines[-1].end_byte


@contextmanager
def _interrupts_noticed() -> Iterator[Callable[[], bool]]:
    """Have Ctrl-C noticed, not raised, so that no batch is cut short; pressed a second time it is raised."""
    pressed = False

    def notice(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False  # it does not come here, or is none of our business
        return
    before = signal.signal(signal.SIGINT, notice)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
