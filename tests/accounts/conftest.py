"""Accounts on a store in RAM, with a clock that stands still until it is moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

pytest.importorskip("argon2")
pytest.importorskip("jwt")

from argon2 import PasswordHasher

from qilbee_core import Store, open_store
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts import Accounts, AccountSettings, Caller, Principal, passwords

ADMIN_PASSWORD = "correct horse battery"
PASSWORD = "staple and a half"
ELSEWHERE = Caller(address="192.0.2.7", user_agent="test")
HERE = Caller(address="127.0.0.1", user_agent="test")


class Clock:
    """The time of accounts."""

    def __init__(self) -> None:
        self.ns = time.time_ns()

    def __call__(self) -> int:
        return self.ns

    def forward(self, **span: float) -> None:
        self.ns += timedelta(**span) // timedelta(microseconds=1) * 1000


@pytest.fixture(autouse=True)
def quick_hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real hashes that cost a thousandth, but for the tests of what they cost."""
    if request.path.name != "test_passwords.py":
        monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(backend="ephemeral") as store:
        yield store


@pytest.fixture
def settings() -> AccountSettings:
    return AccountSettings()


@pytest.fixture
def accounts(store: Store, settings: AccountSettings) -> Iterator[Accounts]:
    accounts = Accounts.open(store, settings, environ={"QILBEE_ADMIN_PASSWORD": ADMIN_PASSWORD})
    yield accounts
    accounts.close()


@pytest.fixture
def clock(accounts: Accounts) -> Clock:
    clock = Clock()
    accounts.tables.clock_ns = clock
    return clock


@pytest.fixture
def admin(accounts: Accounts) -> Caller:
    """The administrator, logged in."""
    return Caller(address="127.0.0.1", user_agent="test", principal=principal_of(accounts, "admin", ADMIN_PASSWORD))


@pytest.fixture
def ann(accounts: Accounts, admin: Caller) -> UserInfo:
    """Somebody who may store and read."""
    return accounts.users.create(admin, "ann", PASSWORD, email="ann@example.org", roles=["Agent"])


def principal_of(accounts: Accounts, username: str, password: str = PASSWORD, caller: Caller = HERE) -> Principal:
    """Whoever logs in with that."""
    login = accounts.sessions.login(caller, username, password)
    return accounts.authenticate(f"Bearer {login.access_token}", None)
