"""What was acknowledged is there after kill -9, and what takes a right away is on disk before it is acknowledged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import AuthenticationError, open_store
from qilbeedb.accounts import Accounts, Caller, audit
from qilbeedb.exceptions import RateLimitedError

from .conftest import ADMIN_PASSWORD, HERE, PASSWORD

CHILD = """
import json, sys, time
from argon2 import PasswordHasher
from qilbee_core import AuthenticationError, open_store
from qilbeedb.accounts import Accounts, Caller, passwords

passwords._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
start = int(sys.argv[2])
accounts = Accounts.open(open_store(sys.argv[1]), environ={"QILBEE_ADMIN_PASSWORD": sys.argv[3]})
system = Caller(address="127.0.0.1")

def said(**facts):
    print(json.dumps(facts), flush=True)
    if sys.argv[4] in facts:
        time.sleep(60)

number = start
while True:
    name = f"user{number}"
    user = accounts.users.create(system, name, f"password {number}", roles=["Agent"])
    said(user=user.id, name=name)
    key = accounts.keys.create(system, user.id, "key")
    said(key=key.key, of=user.id)
    login = accounts.sessions.login(system, name, f"password {number}")
    said(session=login.access_token, of=user.id)
    revoked = accounts.keys.create(system, user.id, "revoked")
    accounts.keys.revoke(system, revoked.id)
    said(revoked=revoked.key)
    ended = accounts.sessions.login(system, name, f"password {number}")
    caller = Caller(principal=accounts.authenticate("Bearer " + ended.access_token, None))
    accounts.sessions.revoke(caller, ended.refresh_token)
    said(ended=ended.access_token, refresh=ended.refresh_token)
    accounts.users.update(system, user.id, roles=["Read"])
    said(demoted=user.id)
    policy = accounts.policies.create(
        system, name=name, endpoint_type="GeneralApi", max_requests=number + 1, window_secs=9
    )
    said(policy=policy.id, requests=number + 1)
    accounts.policies.delete(system, policy.id)
    said(no_policy=policy.id)
    for _ in range(5):
        try:
            accounts.sessions.login(Caller(address="192.0.2.7"), name, "wrong password")
        except AuthenticationError:
            pass
    said(locked=name)
    accounts.lock(system, name, "test")
    said(locked_by_hand=name)
    accounts.unlock(system, name)
    said(unlocked=name)
    accounts.users.update(system, user.id, password="another password")
    said(password=name)
    number += 1
"""


def facts_of_a_killed_child(data: Path, start: int, lines: int, last: str = "") -> list[dict[str, Any]]:
    """What a child has said before it was killed, after so many lines, or once it has said ``last``."""
    command = [sys.executable, "-c", CHILD, str(data), str(start), ADMIN_PASSWORD, last]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    os.kill(child.pid, signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait(30)
    child.stdout.close()
    facts: list[dict[str, Any]] = [json.loads(line) for line in said if line.endswith("\n")]
    assert len(facts) >= lines
    return facts


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except (AuthenticationError, RateLimitedError):
        return True
    return False


def check(accounts: Accounts, facts: list[dict[str, Any]]) -> None:
    """What must hold of what a killed process had acknowledged, by what came last for each name."""
    users = {user.id: user for user in accounts.users.all()}
    policies = {policy.id for policy in accounts.policies.all()}
    ids = {fact["name"]: fact["user"] for fact in facts if "user" in fact}
    later = {next(iter(fact.items())) for fact in facts}
    for fact in facts:
        match fact:
            case {"user": user_id, "name": name}:
                assert users[user_id].username == name
            case {"key": key, "of": user_id}:
                assert accounts.authenticate(None, key).user_id == user_id
            case {"session": token, "of": user_id}:
                name = users[user_id].username
                if ("password", name) in later:
                    assert is_refused(partial(accounts.authenticate, f"Bearer {token}", None))
                elif ("unlocked", name) not in later:  # else it may have been changed, and not said
                    assert accounts.authenticate(f"Bearer {token}", None).user_id == user_id
            case {"revoked": key}:
                assert is_refused(partial(accounts.authenticate, None, key))
            case {"ended": token, "refresh": refresh}:
                assert is_refused(partial(accounts.authenticate, f"Bearer {token}", None))
                assert is_refused(partial(accounts.sessions.refresh, HERE, refresh))
            case {"demoted": user_id}:
                assert users[user_id].roles == ("Read",)
            case {"no_policy": policy_id}:
                assert policy_id not in policies
            case {"unlocked": name}:
                assert not accounts.lockout(name).locked
            case {"password": name}:
                assert accounts.sessions.login(HERE, name, "another password").user_id == ids[name]
    report = audit.verify(accounts.tables)
    assert report.ok, report.problems
    recorded = audit.query(accounts.tables, limit=10_000)
    targets = {(event.event_type, event.metadata.get("target")) for event in recorded}
    for name in ids:
        assert ("user_created", name) in targets


def test_all_of_it_survives_kill_9_again_and_again(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201  # shown when the test fails
    draw, start = random.Random(seed), 0
    facts: list[dict[str, Any]] = []
    for _ in range(4):
        facts += facts_of_a_killed_child(tmp_path / "data", start, draw.randint(5, 60))
        start += 1000
        with open_store(tmp_path / "data") as store:
            assert store.verify().ok
            accounts = Accounts.open(store, environ={})
            check(accounts, facts)
            accounts.close()


STEPS = ["user", "key", "session", "revoked", "ended", "demoted", "policy", "no_policy", "locked", "locked_by_hand"]


@pytest.mark.parametrize("last", [*STEPS, "unlocked", "password"])
def test_each_step_survives_a_kill_right_after_it(tmp_path: Path, last: str) -> None:
    steps = [*STEPS, "unlocked", "password"]
    facts = facts_of_a_killed_child(tmp_path / "data", 0, steps.index(last) + 1, last)
    assert [next(iter(fact)) for fact in facts] == steps[: len(facts)]
    assert last in facts[-1]
    with open_store(tmp_path / "data") as store:
        accounts = Accounts.open(store, environ={})
        check(accounts, facts)
        status = accounts.lockout("user0")
        assert status.locked == (last in {"locked", "locked_by_hand"})
        assert status.lockout_reason == {"locked": "too many failed logins", "locked_by_hand": "test"}.get(last)
        assert [policy.max_requests for policy in accounts.policies.all()][3:] == ([1] if last == "policy" else [])
        accounts.close()


# --- power cuts


def test_what_takes_a_right_away_or_is_shown_once_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    with open_store(tmp_path / "data", wal_sync_interval_ms=3_600_000) as store:
        accounts = Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": ADMIN_PASSWORD})
        assert store.durability().unsynced_age_ms == 0
        system = Caller(address="127.0.0.1")
        ann = accounts.users.create(system, "ann", PASSWORD)
        key = accounts.keys.create(system, ann.id, "key")
        policy = accounts.policies.create(system, name="p", endpoint_type="Login", max_requests=9, window_secs=9)
        login = accounts.sessions.login(system, "ann", PASSWORD)
        caller = Caller(principal=accounts.authenticate(f"Bearer {login.access_token}", None))
        other = accounts.sessions.login(system, "ann", PASSWORD)
        verbs: list[Callable[[], object]] = [
            lambda: accounts.users.create(system, "bob", PASSWORD),
            lambda: accounts.users.update(system, ann.id, roles=["Read"]),
            lambda: accounts.keys.create(system, ann.id, "other"),
            lambda: accounts.keys.revoke(system, key.id),
            lambda: accounts.policies.update(system, policy.id, max_requests=1),
            lambda: accounts.policies.delete(system, policy.id),
            lambda: accounts.lock(system, "ann"),
            lambda: accounts.unlock(system, "ann"),
            lambda: accounts.sessions.refresh(system, login.refresh_token),
            lambda: is_refused(lambda: accounts.sessions.refresh(system, f"{other.refresh_token}x")),
            lambda: accounts.sessions.logout(caller),
            lambda: accounts.sessions.change_password(caller, PASSWORD, "another one"),
            lambda: accounts.users.end_sessions(system, ann.id),
            lambda: accounts.users.delete(system, ann.id),
        ]
        for verb in verbs:
            accounts.record("test", system, "test")
            assert store.durability().unsynced_age_ms > 0  # what a power cut may take
            verb()
            assert store.durability().unsynced_age_ms == 0
        accounts.close()


def test_a_store_that_takes_no_writes_lets_everybody_in_who_was_in(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as store:
        accounts = Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": ADMIN_PASSWORD})
        token = accounts.sessions.login(HERE, "admin", ADMIN_PASSWORD).access_token
        store._durability.failure = OSError("the disk is gone")
        assert accounts.authenticate(f"Bearer {token}", None).username == "admin"
        accounts.refused(HERE, "unauthorized", "/x")
        accounts.close()
        store._durability.failure = None


@pytest.mark.parametrize("path", ["file", "environment", "random"])
def test_the_first_password_comes_from_where_it_was_put(tmp_path: Path, path: str) -> None:
    from qilbee_core import SettingsError
    from qilbeedb.accounts import AccountSettings

    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    settings = AccountSettings(admin_password_file=str(tmp_path / "password")) if path == "file" else AccountSettings()
    environ = {"QILBEE_ADMIN_PASSWORD": PASSWORD} if path == "environment" else {}
    with open_store(tmp_path / "data") as store:
        with pytest.raises(SettingsError, match="admin_password_file"):
            Accounts.open(store, AccountSettings(admin_password_file=str(tmp_path / "missing")), environ={})
        accounts = Accounts.open(store, settings, environ=environ)
        assert (accounts.first_password is None) == (path != "random")
        assert accounts.sessions.login(HERE, "admin", accounts.first_password or PASSWORD).username == "admin"
        accounts.close()
