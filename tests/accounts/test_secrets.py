"""Secrets are in no log, no error, no event and no file but the one that is for them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qilbee_core import QilbeeError, open_store
from qilbeedb.accounts import Accounts, Caller, audit

from .conftest import ELSEWHERE, HERE

CANARIES = ["canary-admin-password", "canary-password-one", "canary-password-two", "canary-as-a-username"]


def test_no_secret_is_written_down_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    admin_password, first, second, name = CANARIES
    secrets, told = [*CANARIES], []
    data = tmp_path / "data"
    with open_store(data) as store:
        accounts = Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": admin_password})
        ann = accounts.users.create(HERE, "ann", first, roles=["Developer"])
        login = accounts.sessions.login(HERE, "ann", first)
        refreshed = accounts.sessions.refresh(HERE, login.refresh_token)
        key = accounts.keys.create(HERE, ann.id, "key")
        secrets += [login.access_token, login.refresh_token, refreshed.refresh_token, key.key]
        # The parts of them that nobody can guess.
        secrets += [login.access_token.rpartition(".")[2], login.refresh_token.partition(".")[2]]
        secrets += [key.key[45:]]
        caller = Caller(principal=accounts.authenticate(f"Bearer {login.access_token}", None))
        attempts = (
            lambda: accounts.sessions.login(ELSEWHERE, "ann", second),
            lambda: accounts.sessions.login(ELSEWHERE, name, first),
            lambda: accounts.users.create(HERE, "ann", second),
            lambda: accounts.users.create(HERE, name + " ", second),
            lambda: accounts.users.create(HERE, "bob", second, email=first),
            lambda: accounts.users.update(HERE, ann.id, password=f"{second}" * 100),
            lambda: accounts.sessions.change_password(caller, second, first),
            lambda: accounts.sessions.refresh(HERE, f"{refreshed.refresh_token}x"),
            lambda: accounts.authenticate(f"Bearer {login.access_token}x", None),
            lambda: accounts.authenticate(f"Basic {first}", None),
            lambda: accounts.authenticate(login.access_token, None),
            lambda: accounts.authenticate(None, f"{key.key}x"),
            lambda: accounts.sessions.revoke(caller, f"{login.access_token}x"),
            lambda: accounts.keys.create(HERE, ann.id, "key", permissions=["root"]),
        )
        for attempt in attempts:
            with pytest.raises(QilbeeError) as error:
                attempt()
            told += [str(error.value), repr(error.value)]
        accounts.users.update(HERE, ann.id, password=second)
        accounts.sessions.login(HERE, "ann", second)
        told += [repr(event) for event in audit.query(accounts.tables, limit=1000)]
        told += [repr(accounts.users.all()), repr(accounts.keys.all()), repr(caller), repr(accounts.locked_users())]
        token_secret = (data / "accounts.secret").read_bytes()
        accounts.close()
    told += [record.getMessage() for record in caplog.records]
    for secret in secrets:
        for text in told:
            assert secret not in text
    files = [path for path in data.rglob("*") if path.is_file() and path.name != "accounts.secret"]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        for forbidden in [*(each.encode() for each in secrets), token_secret]:
            assert forbidden not in content, path
