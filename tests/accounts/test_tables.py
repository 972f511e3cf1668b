"""A change rests on what it read: where another process was quicker it is planned again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from qilbee_core import CorruptRecordError, StorageError, Store
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts import Accounts, Caller, audit
from qilbeedb.accounts.audit import event_of
from qilbeedb.accounts.tables import SEEN, USERS, Change, Tables

from .conftest import HERE


def met_by(other: Callable[[], object], plan: Callable[[Change], object]) -> Callable[[Change], object]:
    """``plan``, after whose first run another process writes before it can."""
    met = False

    def planned(change: Change) -> object:
        nonlocal met
        value = plan(change)
        if not met:
            met = True
            other()
        return value

    return planned


def count(change: Change) -> int:
    number = (change.get(SEEN, "x") or 0) + 1
    change.put(SEEN, "x", number)
    return number


def test_a_change_that_meets_another_is_planned_again_on_what_that_one_wrote(store: Store) -> None:
    tables, other = Tables(store), Tables(store)
    for expected in (2, 4, 6):
        assert tables.change(met_by(lambda: other.change(count), count)) == expected
    assert tables.get(SEEN, "x") == 6


def test_a_row_that_was_not_there_must_still_not_be(store: Store) -> None:
    tables = Tables(store)
    seen: list[int | None] = []

    def make(change: Change) -> None:
        seen.append(change.get(SEEN, "x"))
        if seen[-1] is None:
            change.put(SEEN, "x", 1)

    tables.change(met_by(lambda: tables.rows.write({"seen/x": SEEN.encode(7)}), make))
    assert (seen, tables.get(SEEN, "x")) == ([None, 7], 7)


def test_no_event_takes_the_place_of_another(store: Store) -> None:
    tables, other = Tables(store), Tables(store)

    def record(change: Change) -> None:
        change.record(event_of("test", HERE, change.now_us, action="test"))

    write = tables.rows.write
    met = 0

    def interrupted(*args: object, **kwargs: object) -> None:
        nonlocal met
        if met < 3:
            met += 1
            other.change(record)
        write(*args, **kwargs)  # type: ignore[arg-type]

    tables.rows.write = interrupted  # type: ignore[method-assign]
    tables.change(record)
    report = audit.verify(other)
    assert (report.ok, report.events) == (True, 4)


def test_what_is_deleted_or_replaced_meanwhile_is_not_overwritten(
    accounts: Accounts, admin: Caller, ann: UserInfo
) -> None:
    before = accounts.tables.get(USERS, ann.id)
    assert before is not None

    def rename(change: Change) -> bool:
        user = change.get(USERS, ann.id)
        if user is None:
            return False
        change.put(USERS, ann.id, replace(user, email="new@example.org"))
        return True

    assert not accounts.tables.change(met_by(lambda: accounts.users.delete(admin, ann.id), rename))
    assert accounts.tables.get(USERS, ann.id) is None


def test_nobody_tries_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, other = Tables(store), Tables(store)
    monkeypatch.setattr("time.sleep", lambda _: None)

    def always_met(change: Change) -> None:
        count(change)
        other.change(count)

    with pytest.raises(StorageError, match="64 attempts"):
        tables.change(always_met)


def test_a_row_of_another_form_is_corrupt_and_says_which(store: Store) -> None:
    tables = Tables(store)
    tables.rows.write({"user/7": b"\x93\x01\x02\x03", "user/8": b"\xc1"})
    for user_id in ("7", "8"):
        with pytest.raises(CorruptRecordError, match=f"user/{user_id}"):
            tables.get(USERS, user_id)
