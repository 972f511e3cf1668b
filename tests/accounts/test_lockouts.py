"""Lockouts: who fails too often waits, longer each time, and nobody is locked out by others."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import pytest

from qilbee_core import AuthenticationError, NotFoundError, Store
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts import Accounts, AccountSettings, Caller
from qilbeedb.accounts.tables import FAILURES, LOCKS
from qilbeedb.exceptions import RateLimitedError

from .conftest import ADMIN_PASSWORD, ELSEWHERE, HERE, PASSWORD, Clock


@pytest.fixture
def settings() -> AccountSettings:
    return AccountSettings(lockout_attempts=3, lockout_s=60, lockout_s_max=200)


@pytest.fixture(autouse=True)
def hashes_that_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which password is good is not tested here."""
    from qilbeedb.accounts import sessions

    monkeypatch.setattr(sessions, "verify_password", lambda _, password: password in (PASSWORD, ADMIN_PASSWORD))


def fail(accounts: Accounts, username: str = "ann", caller: Caller = ELSEWHERE, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(AuthenticationError):
            accounts.sessions.login(caller, username, "wrong password")


def wait_s(accounts: Accounts, username: str = "ann", caller: Caller = ELSEWHERE) -> float:
    """How long a login has to wait; 0 where it need not."""
    try:
        accounts.sessions.login(caller, username, PASSWORD)
    except RateLimitedError as error:
        return error.retry_after_s
    except AuthenticationError:
        return 0
    return 0


@pytest.mark.parametrize("username", ["ann", "nobody"])
def test_after_so_many_failures_even_the_right_password_waits_and_each_time_longer(
    accounts: Accounts, ann: UserInfo, clock: Clock, username: str
) -> None:
    for expected in (60, 120, 200, 200):
        fail(accounts, username, times=3)
        assert wait_s(accounts, username) == pytest.approx(expected)
        clock.forward(seconds=expected - 1)
        assert wait_s(accounts, username) == pytest.approx(1)
        clock.forward(seconds=1)
    assert wait_s(accounts, username) == 0


def test_a_refused_login_hashes_nothing(accounts: Accounts, ann: UserInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from qilbeedb.accounts import sessions

    fail(accounts, times=3)
    hashed: list[str] = []
    monkeypatch.setattr(sessions, "verify_password", lambda _, password: hashed.append(password))
    assert wait_s(accounts) > 0
    assert hashed == []


def test_others_are_not_locked_out(accounts: Accounts, ann: UserInfo) -> None:
    fail(accounts, times=3)
    assert wait_s(accounts) > 0
    for caller in (HERE, Caller(address="192.0.2.8"), Caller(address="2001:db8::7"), Caller(address="")):
        assert wait_s(accounts, caller=caller) == 0
    assert wait_s(accounts, "nobody") == 0


def test_all_of_one_network_of_64_bits_are_one_client(accounts: Accounts, ann: UserInfo) -> None:
    for number in range(3):
        fail(accounts, caller=Caller(address=f"2001:db8:1:2::{number:x}"))
    assert wait_s(accounts, caller=Caller(address="2001:db8:1:2:ffff::1")) > 0
    assert wait_s(accounts, caller=Caller(address="2001:db8:1:3::1")) == 0


def test_the_same_address_in_another_form_is_the_same_client(accounts: Accounts, ann: UserInfo) -> None:
    fail(accounts, caller=Caller(address="::ffff:192.0.2.7"), times=3)
    assert wait_s(accounts) > 0


def test_a_success_forgets_the_failures_before_it(accounts: Accounts, ann: UserInfo) -> None:
    fail(accounts, times=2)
    assert accounts.lockout("ann").remaining_attempts == 1
    assert wait_s(accounts) == 0
    assert accounts.lockout("ann").failed_attempts == 0
    fail(accounts, times=2)
    assert wait_s(accounts) == 0


def test_failures_are_forgotten_after_a_day(accounts: Accounts, ann: UserInfo, clock: Clock) -> None:
    fail(accounts, times=3)
    fail(accounts, "bob", times=2)
    clock.forward(hours=25)
    assert accounts.lockout("ann").lockout_count == 0
    fail(accounts, times=2)
    assert wait_s(accounts) == 0
    accounts.sessions.sweep()
    assert len(list(accounts.tables.scan(FAILURES))) == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.8.8.8"])
def test_an_administrator_is_never_locked_out_on_the_machine_itself(
    accounts: Accounts, admin: Caller, ann: UserInfo, address: str
) -> None:
    here = Caller(address=address)
    fail(accounts, "admin", here, times=10)
    fail(accounts, "admin", ELSEWHERE, times=3)
    accounts.lock(admin, "admin", "mistake")
    login = accounts.sessions.login(here, "admin", ADMIN_PASSWORD)
    assert accounts.sessions.refresh(here, login.refresh_token).username == "admin"
    with pytest.raises(RateLimitedError):
        accounts.sessions.login(ELSEWHERE, "admin", ADMIN_PASSWORD)
    fail(accounts, "ann", here, times=3)
    assert wait_s(accounts, "ann", here) > 0


def test_failures_that_come_at_once_are_all_counted(accounts: Accounts, store: Store, ann: UserInfo) -> None:
    other = Accounts.open(store, AccountSettings(lockout_attempts=1000), environ={})
    other._tokens._secret = accounts._tokens._secret

    def many() -> None:
        fail(other, times=25)

    threads = [Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert other.lockout("ann").failed_attempts == 100
    other.close()


def test_an_administrators_lock_stays_until_it_is_lifted(
    accounts: Accounts, admin: Caller, ann: UserInfo, clock: Clock
) -> None:
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    accounts.lock(admin, "ANN", "left the company")
    clock.forward(days=6)
    calls: list[Callable[[], object]] = [
        lambda: accounts.sessions.login(HERE, "ann", PASSWORD),
        lambda: accounts.sessions.refresh(HERE, login.refresh_token),
    ]
    for call in calls:
        with pytest.raises(RateLimitedError, match="ask an administrator"):
            call()
    status = accounts.lockout("ann")
    assert (status.locked, status.lockout_expires, status.lockout_reason) == (True, None, "left the company")
    assert [user.username for user in accounts.locked_users()] == ["ann"]
    accounts.unlock(admin, "Ann")
    assert accounts.sessions.refresh(HERE, login.refresh_token).username == "ann"
    assert accounts.locked_users() == []


def test_a_status_says_what_a_client_needs(accounts: Accounts, ann: UserInfo, clock: Clock) -> None:
    status = accounts.lockout("ann")
    assert (status.locked, status.failed_attempts, status.remaining_attempts, status.lockout_count) == (False, 0, 3, 0)
    fail(accounts, times=2)
    status = accounts.lockout("ann")
    assert (status.failed_attempts, status.remaining_attempts, status.lockout_remaining_seconds) == (2, 1, None)
    fail(accounts)
    status = accounts.lockout("ann")
    assert (status.locked, status.remaining_attempts, status.lockout_remaining_seconds) == (True, 0, 60)
    assert status.lockout_expires is not None
    assert status.lockout_expires.timestamp() == pytest.approx(clock.ns / 1e9 + 60, abs=0.01)
    assert (status.lockout_count, status.lockout_reason) == (1, "too many failed logins")
    [locked] = accounts.locked_users()
    assert (locked.username, locked.locked, locked.lockout_remaining_seconds) == ("ann", True, 60)


def test_unlocking_forgets_the_failures_from_everywhere(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    fail(accounts, times=3)
    fail(accounts, caller=Caller(address="192.0.2.8"), times=3)
    accounts.unlock(admin, "ann")
    assert wait_s(accounts) == wait_s(accounts, caller=Caller(address="192.0.2.8")) == 0
    with pytest.raises(NotFoundError):
        accounts.unlock(admin, "ann")


def test_what_was_typed_as_a_name_that_nobody_has_is_stored_nowhere(
    accounts: Accounts, admin: Caller, ann: UserInfo
) -> None:
    fail(accounts, "my secret password", times=3)
    rows = [name.encode() + value for name, value in accounts.tables.rows.scan("")]
    assert not [row for row in rows if b"my secret password" in row.lower()]
    assert accounts.lockout("My Secret Password").locked
    assert accounts.locked_users() == []


def test_locks_survive_a_restart(accounts: Accounts, store: Store, admin: Caller, ann: UserInfo) -> None:
    fail(accounts, times=3)
    accounts.lock(admin, "ann")
    other = Accounts.open(store, AccountSettings(lockout_attempts=3), environ={})
    other._tokens._secret = accounts._tokens._secret
    assert wait_s(other) > 0
    other.unlock(admin, "ann")
    assert wait_s(other) == 0
    assert list(accounts.tables.scan(LOCKS)) == []
    other.close()
