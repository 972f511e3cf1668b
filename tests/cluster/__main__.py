"""Let a cluster of three PostgreSQL nodes fail, with eight writers at work, and see what the store has lost.

    python -m tests.cluster                      # every failure five times: about ten minutes
    python -m tests.cluster primary --runs 20
    python -m tests.cluster --start              # only start one, to look at; Ctrl-C ends it

The failures: "standby" kill -9 of the PostgreSQL that the primary waits for; "primary" kill -9 of everything on the
primary's node; "crash" kill -9 of the primary's PostgreSQL, which is started again; "frozen" SIGSTOP of everything on
the primary's node, until another one has taken its place; "standbys" kill -9 of both standbys, which come back later.
A table at the end says what was found. The exit status is 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cluster import Cluster, why_not
from .failures import FAILURES, Outcome, fail

COLUMNS = (
    "failure",
    "seed",
    "acknowledged",
    "lost",
    "twice",
    "wrong",
    "errors",
    "pause s",
    "able after s",
    "resumed s later",
    "longest call s",
)

console = Console(width=150) if not sys.stdout.isatty() else Console()


def row(outcome: Outcome) -> list[str]:
    """A row of the table."""
    times = (outcome.pause_s, outcome.able_s, outcome.resumed_s, outcome.longest_call_s)
    counts = (outcome.acknowledged, outcome.lost, outcome.duplicates, len(outcome.problems))
    told = ", ".join(f"{count} {name.removesuffix('Error')}" for name, count in outcome.errors.items())
    return [outcome.failure, str(outcome.seed), *map(str, counts), told, *(f"{time_s:.1f}" for time_s in times)]


def show(cluster: Cluster) -> None:
    """Say where everything is, until somebody has seen enough."""
    primary = cluster.primary()
    for node in cluster.nodes:
        role = "primary" if node is primary else "standby"
        console.print(f"{node.name}  {role}  {cluster.dsn_of(node)}  {node.api}/patroni  {node.log}", highlight=False)
    console.print(f"\nall of them: {cluster.dsn}\n\nCtrl-C ends it.", highlight=False, soft_wrap=True)
    threading.Event().wait()


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("failures", nargs="*", choices=[*FAILURES, []], help="which (default: all)", metavar="FAILURE")
    parser.add_argument("--runs", type=int, default=5, help="of each (default 5)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30), help="of the first run")
    parser.add_argument("--start", action="store_true", help="only start a cluster, and say where it is")
    options = parser.parse_args(arguments)
    if reason := why_not():
        parser.error(reason)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    table = Table(title="failures of a cluster", title_justify="left")
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in {"failure", "errors"} else "right")
    wrong = 0
    try:
        with Cluster() as cluster:
            if options.start:
                show(cluster)
            for run in range(options.runs):
                for failure in options.failures or FAILURES:
                    outcome = fail(cluster, failure, options.seed + run)
                    console.print(f"{failure}, seed {outcome.seed}: {len(outcome.problems)} wrong", highlight=False)
                    for problem in outcome.problems:
                        console.print(f"[red]{escape(problem)}[/]", highlight=False)
                    wrong += len(outcome.problems)
                    table.add_row(*row(outcome))
    except KeyboardInterrupt:
        if not options.start:
            raise
        return 0
    console.print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
