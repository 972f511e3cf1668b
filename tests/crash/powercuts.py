"""Power cuts at every call that changes a file: the load is recorded once and cut everywhere."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from qilbee_core import QilbeeError, open_store

from .disk import Cut, Disk, Mode, Record, Semantics, cuts, read_trace
from .oracle import Course, Judgement, Ledger, judge
from .shim import command, environment
from .worker import Load

__all__ = ["SEMANTICS", "Outcome", "Recording", "calls_in", "cut_everywhere", "longest_sync_ms", "record"]

_RECORDING_SECONDS_MAX = 300

SEMANTICS: dict[str, tuple[Semantics, ...]] = {"rocksdb": ("ext4", "strict"), "leveldb": ("ext4",)}
"""What each engine can live with. LevelDB relies on the names of tables, and the end of their list, before a sync."""


class Recording(NamedTuple):
    """A load that ran to its end, and the trace of it."""

    load: Load
    trace: Path
    root: Path
    """The directory as the load left it; the store is in ``data`` there."""


class Outcome(NamedTuple):
    """What became of one cut. ``refusal`` is what opening raised, if it did."""

    cut: int
    judgement: Judgement | None
    refusal: QilbeeError | None
    lost_age_ms: float
    """Age of the oldest acknowledged step that is lost, at the cut."""
    synced_loss: int
    """Lost steps that had been acknowledged before the last sync of a log began."""


def record(library: Path, scratch: Path, load: Load) -> Recording:
    """Run ``load`` to its end under the shim, in ``scratch``. Its path is set by us."""
    root, trace = scratch / "root", scratch / "trace"
    root.mkdir(parents=True)
    load = msgspec.structs.replace(load, path=str(root / "data"))
    done = subprocess.run(
        command("worker", msgspec.json.encode(load)),
        env=environment(library, root, trace=str(trace), ledger="1", delay="2:1000"),
        capture_output=True,
        timeout=_RECORDING_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the load failed: {done.stderr.decode()[-2000:]}")
    return Recording(load, trace, root)


def calls_in(recording: Recording) -> int:
    """How many calls there are to cut before."""
    return sum(each.operation not in "lo" for each in read_trace(recording.trace))


class _Clock:
    """When which step was acknowledged, and which syncs there were: those of the newest log, which comes last of all.

    The first sync of a log has ended only when its directory is synced too.
    """

    def __init__(self, trace: Path) -> None:
        self.done_ns: dict[tuple[str, int], int] = {}
        self.syncs: list[tuple[int, int]] = []  # begin and end of each
        names: dict[int, str] = {}
        begun: dict[int, tuple[str, int]] = {}
        newest = ""
        nameless: list[int] = []  # begins of those that wait for the directory of the log
        is_named = False
        for each in read_trace(trace):
            name = names.get(each.file, "")
            if each.operation in "oc":
                names[each.file] = each.name
                if each.operation == "c" and each.name.endswith(".log"):
                    newest, is_named = each.name, False
                    nameless.clear()
            elif each.operation == "l":
                self._read(each)
            elif each.operation == "s":
                begun[each.offset] = newest, each.time_ns
            elif each.operation == "S":
                log, begin_ns = begun.pop(each.offset)
                if log != newest:
                    continue
                if name == newest:
                    nameless.append(begin_ns)
                elif name == str(Path(newest).parent):
                    is_named = True
                if is_named:
                    self.syncs += [(begin, each.time_ns) for begin in nameless]
                    nameless.clear()

    def _read(self, record: Record) -> None:
        for line in record.data.decode().splitlines():
            word, _, rest = line.partition(" ")
            if word == "done":
                agent, _, step = rest.rpartition(" ")
                self.done_ns.setdefault((agent, int(step)), record.time_ns)

    def synced_until_ns(self, time_ns: int) -> int:
        return max((begin for begin, end in self.syncs if end < time_ns), default=0)


def longest_sync_ms(recording: Recording) -> float:
    """How long the slowest sync of a log took."""
    return max((end - begin for begin, end in _Clock(recording.trace).syncs), default=0) / 1e6


def cut_everywhere(
    recording: Recording,
    scratch: Path,
    mode: Mode,
    semantics: Semantics,
    *,
    seed: int = 0,
    every: int = 1,
    lies: Callable[[str], bool] = lambda _: False,
) -> Iterator[Outcome]:
    """Cut before every call (or each ``every``-th), open what is left, and judge it.

    Cuts in a row that leave the same bytes are opened once.
    """
    load = recording.load
    courses = {agent: Course(agent, load.seed) for agent in load.begin}
    clock = _Clock(recording.trace)
    alike: list[Cut] = []
    for count, cut in enumerate(cuts(Disk(semantics, lies), recording.trace, mode, seed), 1):
        if count % every:
            continue
        if alike and alike[-1].digest != cut.digest:
            yield from _open(alike, load, courses, clock, scratch / "cut")
            alike.clear()
        alike.append(cut)
    if alike:
        yield from _open(alike, load, courses, clock, scratch / "cut")


def _open(
    alike: list[Cut], load: Load, courses: dict[str, Course], clock: _Clock, directory: Path
) -> Iterator[Outcome]:
    """Open what all these cuts leave, with the ledger of the last of them: it asks for the most."""
    ledgers = [_ledger_of(cut) for cut in alike]
    alike[-1].restore(directory)
    judgement = refusal = None
    try:
        with open_store(directory / "data", **load.settings) as store:
            judgement = judge(store, courses, ledgers[-1])
    except QilbeeError as error:
        refusal = error
    finally:
        shutil.rmtree(directory)
    for cut, ledger in zip(alike, ledgers, strict=True):
        if judgement is None:
            yield Outcome(cut.number, None, refusal, 0.0, 0)
            continue
        lost = [
            clock.done_ns[agent, step]
            for agent, kept in judgement.kept.items()
            for step in range(kept, ledger.done.get(agent, 0))
        ]
        synced_ns = clock.synced_until_ns(cut.time_ns)
        yield Outcome(
            cut.number,
            judgement._replace(lost=len(lost)),
            None,
            max((cut.time_ns - done_ns for done_ns in lost), default=0) / 1e6,
            sum(done_ns < synced_ns for done_ns in lost),
        )


def _ledger_of(cut: Cut) -> Ledger:
    ledger = Ledger()
    ledger.read(cut.ledger.decode().splitlines())
    return ledger
