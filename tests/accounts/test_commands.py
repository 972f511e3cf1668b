"""The commands for accounts, on a directory and through the server that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from qilbee_core import open_store
from qilbeedb.accounts import Accounts, Caller
from qilbeedb.accounts.tables import AUDIT, Tables

from .conftest import ADMIN_PASSWORD, HERE, PASSWORD

QILBEE = [sys.executable, "-c", "from qilbeedb.cli import main; main()"]


def qilbee(*arguments: str, given: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QILBEE, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "250", **environ},
    )


def done(*arguments: str, given: str = "", **environ: str) -> str:
    """What a command that went well has said on standard output."""
    ran = qilbee(*arguments, given=given, **environ)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A directory with the accounts of a server that has run."""
    path = tmp_path / "data"
    with open_store(path) as store:
        Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": ADMIN_PASSWORD}).close()
    return str(path)


def logged_in(data: str, username: str, password: str) -> bool:
    with open_store(data) as store:
        accounts = Accounts.open(store, environ={})
        try:
            return accounts.sessions.login(HERE, username, password).username == username
        except Exception:
            return False
        finally:
            accounts.close()


def test_users_are_made_shown_changed_and_shut_out(data: str) -> None:
    said = done(
        "user", "add", "ann", "--role", "Agent", "--role", "Read", "--agent", "sales", "--data", data, given=PASSWORD
    )
    assert said.startswith("ann is made: Agent, Read, id ")
    shown = done("user", "list", "--data", data)
    assert "Users: 2" in shown
    assert "Agent, Read   sales" in shown
    assert logged_in(data, "ann", PASSWORD)
    done("user", "passwd", "ANN", "--data", data, given="another password\n")
    assert not logged_in(data, "ann", PASSWORD)
    assert logged_in(data, "ann", "another password")
    done("user", "disable", "ann", "--data", data)
    assert not logged_in(data, "ann", "another password")
    done("user", "enable", "ann", "--data", data)
    assert logged_in(data, "ann", "another password")


def test_a_key_alone_goes_to_standard_output_and_works_until_it_is_revoked(data: str) -> None:
    ran = qilbee("apikey", "create", "laptop", "--agent", "sales", "--permission", "read", "--data", data)
    key = ran.stdout.strip()
    assert key.startswith("qilbee_live_")
    assert key not in ran.stderr
    with open_store(data) as store:
        accounts = Accounts.open(store, environ={})
        assert accounts.authenticate(None, key).agents == frozenset({"sales"})
        accounts.close()
    shown = done("apikey", "list", "--data", data)
    assert key[:20] in shown
    assert key[44:] not in shown
    assert "'laptop' is revoked" in done("apikey", "revoke", key[:20], "--data", data)
    assert "API keys: 0" in done("apikey", "list", "--data", data)


@pytest.mark.parametrize(
    ("arguments", "given", "remedy"),
    [
        (["user", "add", "ann"], "", "no password was given"),
        (["user", "add", "ann"], "short", "shorter than 8"),
        (["user", "add", "a b"], PASSWORD, "is no username"),
        (["user", "add", "admin"], PASSWORD, "take another name"),
        (["user", "add", "ann", "--role", "Read", "--role", "Root"], PASSWORD, "the roles are"),
        (["user", "add", "ann", "--role", "Root"], "", "the roles are"),  # and no password is asked for
        (["user", "passwd", "nobody"], PASSWORD, "qilbee user list"),
        (["user", "disable", "admin"], "", "somebody else an Admin first"),
        (["apikey", "create", "x", "--user", "nobody"], "", "qilbee user list"),
        (["apikey", "revoke", "x"], "", "qilbee apikey list"),
        (["audit", "verify", "--known", "7"], "", "NUMBER:HASH"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_with_what_to_do(data: str, arguments: list[str], given: str, remedy: str) -> None:
    ran = qilbee(*arguments, "--data", data, given=given)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert remedy in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not given or given not in ran.stderr.replace("shorter", "")


def test_a_directory_that_is_no_store_is_not_made_one(tmp_path: Path) -> None:
    ran = qilbee("user", "add", "ann", "--data", str(tmp_path / "missing"), given=PASSWORD)
    assert ran.returncode == 1
    assert not (tmp_path / "missing").exists()


def test_the_audit_log_is_checked_and_its_end_told(data: str) -> None:
    said = done("audit", "verify", "--data", data)
    assert said.startswith("1 events, all as they were recorded; the end is 1:")
    end = said.strip().rpartition(" ")[2]
    done("user", "add", "ann", "--data", data, given=PASSWORD)
    assert done("audit", "verify", "--known", end, "--data", data).startswith("2 events")
    ran = qilbee("audit", "verify", "--known", f"1:{'0' * 64}", "--data", data)
    assert (ran.returncode, "has another hash" in ran.stdout) == (1, True)
    with open_store(data) as store:
        tables = Tables(store)
        tables.rows.write({AUDIT.name(f"{1:016x}"): None})
    ran = qilbee("audit", "verify", "--data", data)
    assert ran.returncode == 1
    assert "after event 0 comes 2" in ran.stdout


@pytest.fixture
def url(data: str) -> Iterator[str]:
    """A server that holds the directory."""
    server = subprocess.Popen(
        [*QILBEE, "serve", "--data", data, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    assert "http://" in line
    yield "http://" + line.partition("http://")[2].partition(",")[0].strip()
    server.send_signal(signal.SIGTERM)
    server.wait(120)
    server.stdout.close()


def test_while_a_server_holds_the_directory_commands_go_through_it_and_looks_need_not(data: str, url: str) -> None:
    ran = qilbee("user", "add", "ann", "--data", data, given=PASSWORD)
    assert ran.returncode == 1
    assert "--url http://127.0.0.1:7474" in ran.stderr
    assert "Users: 1" in done("user", "list", "--data", data)
    assert "events, all as they were recorded" in done("audit", "verify", "--data", data)
    through = ["--url", url]
    # On standard input: who logs in, then who is made.
    done("user", "add", "ann", "--role", "Agent", *through, given=f"{ADMIN_PASSWORD}\n{PASSWORD}\n")
    assert "Users: 2" in done("user", "list", *through, QILBEE_PASSWORD=ADMIN_PASSWORD)
    key = done("apikey", "create", "laptop", "--user", "ann", *through, QILBEE_PASSWORD=PASSWORD).strip()
    assert key.startswith("qilbee_live_")
    assert key[:20] in done("apikey", "list", *through, QILBEE_PASSWORD=ADMIN_PASSWORD)
    ran = qilbee("user", "list", *through, QILBEE_API_KEY=key)
    assert (ran.returncode, "may not" in ran.stderr) == (1, True)
    done("apikey", "revoke", key[:20], *through, QILBEE_PASSWORD=ADMIN_PASSWORD)
    done("user", "disable", "ann", *through, QILBEE_PASSWORD=ADMIN_PASSWORD)
    ran = qilbee("apikey", "create", "laptop", "--user", "ann", *through, QILBEE_PASSWORD=PASSWORD)
    assert ran.returncode == 1
    assert PASSWORD not in ran.stderr


def test_a_caller_of_the_command_is_in_the_audit_log(data: str) -> None:
    done("user", "add", "ann", "--data", data, given=PASSWORD)
    with open_store(data) as store:
        from qilbeedb.accounts import audit

        [event] = audit.query(Tables(store), limit=1)
    assert (event.event_type, event.user_agent, event.user_id) == ("user_created", "qilbee", None)
    assert Caller().address == event.ip_address
