"""What was acknowledged, kept outside of the store, and what the store has to show for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from qilbee_core import Store

from .cluster import PATIENCE_S, until
from .writer import Load

__all__ = ["Call", "Judgement", "Ledger", "Writers", "judge"]

AGENTS = ("one", "two", "three", "four")
"""Each is written to by a writer in each of the two processes."""


class Call(NamedTuple):
    """A call that has ended: which writer, when, after how long, and with what error, if with any."""

    writer: str
    time_s: float
    took_s: float
    error: str


class Ledger:
    """What the writers have begun, and what of it was acknowledged. Appended to by threads of their own."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.done: set[str] = set()
        self.calls: list[Call] = []

    def read(self, line: str) -> None:
        """Go on with this line."""
        word, *rest = line.split()
        if word == "begun":
            self.begun.add(rest[0])
        elif word in {"done", "failed"}:
            text, time_s, took_s, *error = rest
            if word == "done":
                self.done.add(text)
            self.calls.append(Call(text.rpartition("/")[0], float(time_s), float(took_s), *(error or [""])))

    def acknowledged(self, since_s: float) -> list[float]:
        """When calls were acknowledged from then on, in order."""
        return sorted(call.time_s for call in list(self.calls) if not call.error and call.time_s > since_s)

    def acknowledged_in_spite(self, since_s: float, until_s: float) -> list[str]:
        """Writers that were acknowledged something in that time though they had met a failure in it before."""
        failed: set[str] = set()
        found: list[str] = []
        for call in [call for call in list(self.calls) if since_s < call.time_s < until_s]:
            if call.error:
                failed.add(call.writer)
            elif call.writer in failed:
                found.append(call.writer)
        return found

    def failed(self, since_s: float) -> Counter[str]:
        """Names of errors since then, and how often they were raised."""
        return Counter(call.error for call in list(self.calls) if call.error and call.time_s > since_s)

    def pause_s(self, since_s: float) -> float:
        """The longest time from that moment on in which nobody was acknowledged anything."""
        times = [since_s, *self.acknowledged(since_s)]
        return max(later - earlier for earlier, later in pairwise(times))

    def resumed(self, failed_s: float, able_s: float) -> float:
        """When the first store was acknowledged after the longest pause since ``failed_s``."""
        times = [failed_s, *self.acknowledged(failed_s)]
        return max(pairwise(times), key=lambda pair: pair[1] - pair[0])[1]

    def longest_call_s(self) -> float:
        """What the call took that took longest, whatever its end."""
        return max(call.took_s for call in self.calls)


class Writers:
    """Eight writers in two processes, and their ledger; a context manager, at whose end they all have ended."""

    def __init__(self, dsn: str, engine: Mapping[str, str | int], seed: int) -> None:
        self.ledger = Ledger()
        self._loads = [
            Load(name=name, dsn=dsn, seed=seed, agents=list(AGENTS), engine=dict(engine)) for name in ("heron", "otter")
        ]
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        root = str(Path(__file__).parents[1])
        for load in self._loads:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, msgspec.json.encode(load).decode(), root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._processes.append(process)
            reader = threading.Thread(target=self._read, args=(process,))
            self._readers.append(reader)
            reader.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.ledger.read(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.close()
            for process in self._processes:
                status = process.wait(PATIENCE_S if error is None else 0.1)
                assert status == 0 or error is not None, f"a writer ended with {status}"
        except subprocess.TimeoutExpired as late:
            if error is None:
                raise AssertionError("a writer does not end: what it sends is never acknowledged") from late
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
            for reader in self._readers:
                reader.join()
            for process in self._processes:
                assert process.stdout is not None
                process.stdout.close()

    def wait_for(self, count: int, since_s: float = 0.0) -> None:
        """Return once so many more calls were acknowledged, of each writer at least one."""

        def is_there() -> bool:
            assert not any(process.poll() for process in self._processes), "a writer has failed"
            calls = [call for call in list(self.ledger.calls) if not call.error and call.time_s > since_s]
            return len(calls) >= count and len({call.writer for call in calls}) == 2 * len(AGENTS)

        until(is_there, f"{count} acknowledged stores")

    def wait_for_failures(self, since_s: float) -> None:
        """Return once each writer has met one more failure since then."""

        def is_there() -> bool:
            failed = {call.writer for call in list(self.ledger.calls) if call.error and call.time_s > since_s}
            return len(failed) == 2 * len(AGENTS)

        until(is_there, "a failure of each writer")


_PROGRAM = "import sys; sys.path.append(sys.argv.pop()); from cluster.writer import main; main()"


class Judgement(NamedTuple):
    """What was found in the store. Each of ``problems`` is a broken promise."""

    problems: list[str]
    acknowledged: int
    lost: int
    duplicates: int


def judge(store: Store, ledger: Ledger) -> Judgement:
    """Compare ``store`` with what was acknowledged, once all writers have ended."""
    found: Counter[str] = Counter()
    problems: list[str] = []
    for agent in store.agents():
        memory = store.agent_memory(agent)
        texts = [str(episode.content["text"]) for episode in memory.episodes()]
        found.update(texts)
        counted = memory.get_statistics().total_episodes
        if counted != len(texts):
            problems.append(f"{agent}: {counted} are counted, {len(texts)} are there")
    lost = ledger.done - set(found)
    twice = [text for text, times in found.items() if times > 1]
    problems += [f"{text} was acknowledged and is lost" for text in _some(sorted(lost))]
    problems += [f"{text} is there {found[text]} times" for text in _some(twice)]
    problems += [f"{text} was never sent" for text in _some(sorted(set(found) - ledger.begun))]
    problems += [f"verify: {problem}" for problem in store.verify().problems]
    return Judgement(problems, len(ledger.done), len(lost), len(twice))


def _some(texts: Sequence[str]) -> Sequence[str]:
    return texts[:5]
