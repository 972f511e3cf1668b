"""A thread that does its work again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

__all__ = ["Periodic"]


class Periodic:
    """A daemon thread for some jobs, each with its interval in seconds; each is first done after its interval.

    A job must not raise. What takes longer than its interval is done again at once, and delays the others.
    """

    def __init__(self, name: str, jobs: Sequence[tuple[float, Callable[[], object]]]) -> None:
        self._jobs = jobs
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, if there is anything to do."""
        if self._jobs:
            self._thread.start()

    @property
    def is_closing(self) -> bool:
        """Whether a job that is under way should come to an end."""
        return self._closing.is_set()

    def close(self, timeout_s: float | None = None) -> None:
        """Begin no job any more, and wait for the one that is under way, at most so long. Idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        due_s = [time.monotonic() + interval_s for interval_s, _ in self._jobs]
        while not self._closing.wait(max(0.0, min(due_s) - time.monotonic())):
            for number, (interval_s, job) in enumerate(self._jobs):
                if time.monotonic() >= due_s[number] and not self._closing.is_set():
                    job()
                    due_s[number] = time.monotonic() + interval_s
