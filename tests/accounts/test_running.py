"""From an event loop: verbs of accounts run in threads of their own, of which few may wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from qilbee_core import AuthenticationError
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts import Accounts
from qilbeedb.accounts.tables import SESSIONS
from qilbeedb.exceptions import UnavailableError

from .conftest import ELSEWHERE, HERE, PASSWORD, Clock


def test_a_verb_gives_what_it_gives_and_raises_what_it_raises(accounts: Accounts, ann: UserInfo) -> None:
    async def main() -> None:
        assert (await accounts.run(accounts.sessions.login, HERE, "ann", PASSWORD)).user_id == ann.id
        with pytest.raises(AuthenticationError):
            await accounts.run(accounts.sessions.login, HERE, "ann", "wrong password")

    asyncio.run(main())


def test_a_crowd_is_sent_away_and_the_loop_goes_on_meanwhile(accounts: Accounts, ann: UserInfo) -> None:
    free, running = threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        running.release()
        assert free.wait(30)

    async def main() -> None:
        waiting = [asyncio.create_task(accounts.run(slow)) for _ in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            await accounts.run(slow)
        accounts.refused(ELSEWHERE, "unauthorized", "/x")  # neither waits nor fails
        free.set()
        await asyncio.gather(*waiting)
        for _ in range(300):  # each has given its place back
            await accounts.run(accounts.users.get, ann.id)

    asyncio.run(main())
    assert [running.acquire(blocking=False) for _ in range(101)] == [True] * 100 + [False]


def test_what_has_expired_is_swept_once_an_hour_by_whoever_comes(
    accounts: Accounts, ann: UserInfo, clock: Clock
) -> None:
    async def main() -> None:
        await accounts.run(accounts.sessions.login, HERE, "ann", PASSWORD)
        clock.forward(days=8)
        await accounts.run(accounts.users.get, ann.id)

    asyncio.run(main())
    accounts.close()
    assert list(accounts.tables.scan(SESSIONS)) == []
