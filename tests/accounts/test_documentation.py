"""The pages say what accounts do, and the bytes of their rows never change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import fields

from qilbeedb.accounts import AccountSettings
from qilbeedb.accounts.permissions import ROLES
from qilbeedb.accounts.tables import (
    AUDIT,
    AUDIT_HEAD,
    FAILURES,
    KEYS,
    LOCKS,
    POLICIES,
    SEEN,
    SESSIONS,
    USERNAMES,
    USERS,
    ApiKey,
    AuditHead,
    AuditRow,
    Event,
    Failures,
    Lock,
    Policy,
    Session,
    User,
)

DOCS = Path(__file__).parents[2] / "docs"


def table(page: str, *columns: str) -> list[list[str]]:
    """The cells of the table with these columns."""
    text = (DOCS / page).read_text()
    cells = r" +\| ".join(map(re.escape, columns))
    heading = re.search(rf"^\| {cells} +\|\n\|[-| ]+\|\n", text, re.M)
    assert heading, columns
    lines = text[heading.end() :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_settings_and_their_defaults_are_those_of_the_page() -> None:
    told = [(name.strip("`"), default) for name, default, _ in table("accounts.md", "key", "default", "what it is")]
    assert told == [
        (field.name, "" if field.default is None else str(field.default)) for field in fields(AccountSettings)
    ]


def test_the_roles_are_those_of_the_page() -> None:
    told = {role: permissions for role, permissions in table("accounts.md", "role", "permissions") if role != "Admin"}
    assert {role: set(permissions.split(", ")) for role, permissions in told.items()} == {
        role: {str(each) for each in permissions} for role, permissions in ROLES.items() if role != "Admin"
    }


ROWS: dict[str, type[Struct]] = {
    "user/": User,
    "session/": Session,
    "key/": ApiKey,
    "locked/": Lock,
    "failed/": Failures,
    "policies": Policy,
    "audit": AuditHead,
    "audit/": AuditRow,
}


def test_the_rows_and_the_number_of_their_fields_are_those_of_the_page() -> None:
    told = {}
    for name, payload in table("format.md", "name", "payload"):
        positions = [int(each) for each in re.findall(r"\b(\d+) ", payload) if int(each) < 16]
        if positions:
            assert positions == list(range(len(positions)))
            told[name.split("`")[1]] = len(positions)
    assert told == {name: len(fields(kind)) for name, kind in ROWS.items()}


USER = User("ann", None, ("Read",), ("a",), True, 1, 2, 3, "$argon2id$")
POLICY = Policy("1", "n", "Login", None, 5, 60, True, 1, 2, None)
GOLDEN: list[tuple[Any, object, str]] = [
    (USERS, USER, "99a3616e6ec091a45265616491a161c3010203aa246172676f6e32696424"),
    (USERNAMES, "7", "a137"),
    (SEEN, 300, "cd012c"),
    (SESSIONS, Session("7", 1, 2, 3, b"a"), "96a137010203c40161c400"),
    (KEYS, ApiKey("7", b"d", "p", "n", 1, None, None, ("read",)), "98a137c40164a170a16e01c0c091a472656164"),
    (LOCKS, Lock("ann", 1, "r"), "93a3616e6e01a172"),
    (FAILURES, Failures(None, 1, 2, 3, 4), "95c001020304"),
    (POLICIES, (POLICY,), "919aa131a16ea54c6f67696ec0053cc30102c0"),
    (AUDIT_HEAD, AuditHead(1, b"h", 2), "9301c4016802"),
    (AUDIT, AuditRow(b"h", msgspec.Raw(b"\x80")), "92c4016880"),
]


@pytest.mark.parametrize(("rows", "row", "golden"), GOLDEN, ids=lambda each: getattr(each, "prefix", ""))
def test_the_bytes_of_a_row_stay_what_they_are(rows: Any, row: object, golden: str) -> None:
    assert rows.encode(row).hex() == golden
    assert rows.decode("name", bytes.fromhex(golden)) == row


@pytest.mark.parametrize(("rows", "row", "golden"), GOLDEN, ids=lambda each: getattr(each, "prefix", ""))
def test_fields_of_a_later_release_are_passed_over(rows: Any, row: object, golden: str) -> None:
    if isinstance(row, Struct):
        longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(bytes.fromhex(golden)), "later"])
        found = rows.decode("name", longer)
        assert found == row


def test_an_event_is_read_whatever_else_it_says() -> None:
    event = Event(
        event_type="login",
        timestamp_us=1,
        user_id=None,
        username=None,
        action="login",
        resource="",
        result="success",
        ip_address="",
        user_agent="",
        metadata={},
    )
    later = {**msgspec.structs.asdict(event), "later": 1}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(later), type=Event) == event
