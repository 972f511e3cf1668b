"""The ways in which a cluster fails, each with eight writers at work, and what the store makes of it.

Each is given a cluster that is complete, and leaves one. The store is a table of its own each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from msgspec import Struct

from qilbee_core import open_store

from .cluster import Cluster, found, until
from .ledger import Writers, judge

__all__ = ["FAILURES", "STATEMENT_TIMEOUT_MS", "Outcome", "fail"]

STATEMENT_TIMEOUT_MS = 2000
_STORES = 100


class Outcome(Struct, kw_only=True):
    """What became of one failure. Times are in seconds."""

    failure: str
    seed: int
    problems: list[str]
    acknowledged: int
    lost: int
    duplicates: int
    errors: dict[str, int]
    pause_s: float
    """The longest time without any acknowledgement, from the failure on."""
    able_s: float
    """From the failure until the cluster could take writes again."""
    resumed_s: float
    """From then on until a store was acknowledged; 0 where that came first."""
    longest_call_s: float


def fail(cluster: Cluster, failure: str, seed: int) -> Outcome:
    """Let the cluster fail in one of the ways of :data:`FAILURES` at a moment that follows from ``seed``, and judge."""
    engine: dict[str, str | int] = {
        "table": f"{failure}_{seed}",
        "statement_timeout_ms": STATEMENT_TIMEOUT_MS,
        "connect_timeout_ms": 1000,
    }
    cluster.wait_complete()
    with Writers(cluster.dsn, engine, seed) as writers:
        writers.wait_for(Random(seed).randint(_STORES, 3 * _STORES))
        failed_s = time.monotonic()
        able_s, problems = FAILURES[failure](cluster, writers)
    cluster.wait_complete()
    ledger = writers.ledger
    with open_store(cluster.dsn, durability="sync", engine=engine) as store:
        judgement = judge(store, ledger)
    return Outcome(
        failure=failure,
        seed=seed,
        problems=problems + judgement.problems,
        acknowledged=judgement.acknowledged,
        lost=judgement.lost,
        duplicates=judgement.duplicates,
        errors=dict(ledger.failed(failed_s)),
        pause_s=ledger.pause_s(failed_s),
        able_s=able_s - failed_s,
        resumed_s=max(0.0, ledger.resumed(failed_s, able_s) - able_s),
        longest_call_s=ledger.longest_call_s(),
    )


def _standby(cluster: Cluster, writers: Writers) -> tuple[float, list[str]]:
    """``kill -9`` of the PostgreSQL that the primary waits for."""
    node = found(cluster.synchronous_standby, "a synchronous standby")
    failed_s = time.monotonic()
    node.kill_postgres()
    writers.wait_for(_STORES, failed_s)
    cluster.wait_complete()
    writers.wait_for(_STORES, time.monotonic())
    return failed_s, []


def _primary(cluster: Cluster, writers: Writers) -> tuple[float, list[str]]:
    """``kill -9`` of everything on the node of the primary."""
    node = found(cluster.primary, "a primary")
    node.kill()
    others = [each for each in cluster.nodes if each is not node]
    able_s = until(lambda: cluster.takes_writes(others), "another primary")
    writers.wait_for(_STORES, able_s)
    cluster.start_node(node)
    cluster.wait_complete()
    writers.wait_for(_STORES, time.monotonic())
    return able_s, []


def _crash(cluster: Cluster, writers: Writers) -> tuple[float, list[str]]:
    """``kill -9`` of the primary's PostgreSQL, which its Patroni starts again."""
    node = found(cluster.primary, "a primary")
    node.kill_postgres()
    failed_s = time.monotonic()
    writers.wait_for(_STORES, failed_s)
    cluster.wait_complete()
    writers.wait_for(_STORES, time.monotonic())
    return failed_s, []


def _frozen(cluster: Cluster, writers: Writers) -> tuple[float, list[str]]:
    """SIGSTOP of everything on the node of the primary. It goes on when another one has taken its place."""
    node = found(cluster.primary, "a primary")
    node.freeze()
    others = [each for each in cluster.nodes if each is not node]
    able_s = until(lambda: cluster.takes_writes(others), "another primary")
    writers.wait_for(_STORES, able_s)
    # For a while it believes that it is the primary: nobody is there who would tell it. (Patroni 3.0.2, if it goes on,
    # may write into etcd that it leads, and the cluster never gets a synchronous standby again.)
    node.kill_patroni()
    node.thaw()
    writers.wait_for(_STORES, time.monotonic())
    node.kill()
    cluster.start_node(node)
    cluster.wait_complete()
    writers.wait_for(_STORES, time.monotonic())
    return able_s, []


def _standbys(cluster: Cluster, writers: Writers) -> tuple[float, list[str]]:
    """``kill -9`` of everything on both other nodes; some of the waits for them are cancelled."""
    primary = found(cluster.primary, "a primary")
    others = [each for each in cluster.nodes if each is not primary]
    for node in others:
        node.kill()
    failed_s = time.monotonic()
    writers.wait_for_failures(failed_s)
    waits = "from pg_stat_activity where wait_event = 'SyncRep' and backend_type = 'client backend'"
    until(lambda: bool(cluster.query(f"select pg_cancel_backend(pid) {waits}")), "a wait for a standby to cancel")
    writers.wait_for_failures(time.monotonic())
    able_s = time.monotonic()
    early = writers.ledger.acknowledged_in_spite(failed_s, able_s)
    for node in others:
        cluster.start_node(node)
    writers.wait_for(_STORES, able_s)
    return able_s, [f"{writer} was acknowledged a store that no standby had" for writer in early]


FAILURES: dict[str, Callable[[Cluster, Writers], tuple[float, list[str]]]] = {
    "standby": _standby,
    "primary": _primary,
    "crash": _crash,
    "frozen": _frozen,
    "standbys": _standbys,
}
"""Each lets something fail and returns once the writers go on; gives when writes could be taken again, and problems."""
