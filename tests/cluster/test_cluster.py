"""What a cluster of three PostgreSQL nodes keeps while its nodes fail: the short version.

``python -m tests.cluster --help`` tries more of it. Each failure names its seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import SystemRandom

import pytest

from .cluster import Cluster, why_not
from .failures import STATEMENT_TIMEOUT_MS, fail

pytest.importorskip("qilbee_postgres", reason="the package qilbee-postgres is not installed")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SEED = SystemRandom().randrange(1 << 30)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.mark.parametrize("failure", ["standby", "crash"])
def test_what_was_acknowledged_survives_a_database_that_is_killed(cluster: Cluster, failure: str) -> None:
    outcome = fail(cluster, failure, SEED)
    assert outcome.problems == [], outcome


def test_what_was_acknowledged_survives_the_loss_of_the_primary_and_writes_go_on_at_the_next(cluster: Cluster) -> None:
    outcome = fail(cluster, "primary", SEED)
    assert outcome.problems == [], outcome
    assert outcome.errors, "nobody has noticed"


def test_no_write_is_acknowledged_that_no_standby_has_and_each_is_there_once_when_they_are_back(
    cluster: Cluster,
) -> None:
    outcome = fail(cluster, "standbys", SEED)
    assert outcome.problems == [], outcome
    assert outcome.errors["OutcomeUnknownError"], outcome


def test_a_frozen_primary_keeps_nobody_past_his_deadline_and_takes_nothing_with_it(cluster: Cluster) -> None:
    outcome = fail(cluster, "frozen", SEED)
    assert outcome.problems == [], outcome
    # It was frozen for far longer; here a few deadlines are all that a call may take.
    assert outcome.longest_call_s < outcome.able_s, (outcome, STATEMENT_TIMEOUT_MS)
