"""The audit log says what happened, in order, and shows whoever tampers with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Thread

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import AuthenticationError, Put, QilbeeError, Store, WriteBatch, open_store
from qilbee_core.keys import account_key
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts import Accounts, Caller, audit
from qilbeedb.accounts.audit import AuditReport, event_of
from qilbeedb.accounts.tables import AUDIT, AUDIT_HEAD, AuditHead, AuditRow, Change, Event, Tables, chained

from .conftest import ADMIN_PASSWORD, ELSEWHERE, HERE, PASSWORD, Clock


def types(accounts: Accounts) -> list[str]:
    return [event.event_type for event in reversed(audit.query(accounts.tables, limit=1000))]


def test_what_is_done_to_accounts_is_recorded_with_who_did_it(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    login = accounts.sessions.login(ELSEWHERE, "ann", PASSWORD)
    caller = Caller(
        address="192.0.2.7", user_agent="x", principal=accounts.authenticate(f"Bearer {login.access_token}", None)
    )
    with pytest.raises(AuthenticationError):
        accounts.sessions.login(ELSEWHERE, "ann", "wrong password")
    key = accounts.keys.create(caller, ann.id, "laptop")
    accounts.keys.revoke(caller, key.id)
    accounts.users.update(admin, ann.id, roles=["Read"], password="another one")
    accounts.lock(admin, "ann", "holidays")
    accounts.unlock(admin, "ann")
    policy = accounts.policies.create(admin, name="p", endpoint_type="Login", max_requests=9, window_secs=9)
    accounts.policies.update(admin, policy.id, enabled=False)
    accounts.policies.delete(admin, policy.id)
    accounts.users.end_sessions(admin, ann.id, "just so")
    accounts.users.delete(admin, ann.id)
    accounts.sessions.logout(admin)
    assert types(accounts) == [
        "user_created",
        "login",
        "user_created",
        "login",
        "login_failed",
        "api_key_created",
        "api_key_revoked",
        "user_updated",
        "account_locked",
        "account_unlocked",
        "rate_limit_created",
        "rate_limit_updated",
        "rate_limit_deleted",
        "tokens_revoked",
        "user_deleted",
        "logout",
    ]
    [created] = audit.query(accounts.tables, limit=9, event_type="api_key_created")
    assert (created.username, created.user_id, created.ip_address, created.user_agent) == (
        "ann",
        ann.id,
        "192.0.2.7",
        "x",
    )
    assert (created.result, created.resource) == ("success", f"api-key/{key.id}")
    [failed] = audit.query(accounts.tables, limit=9, result="failure")
    assert (failed.event_type, failed.username, failed.user_id) == ("login_failed", "ann", ann.id)
    [updated] = audit.query(accounts.tables, limit=9, event_type="user_updated")
    assert (updated.username, updated.metadata) == ("admin", {"target": "ann", "changed": ["password", "roles"]})
    assert audit.verify(accounts.tables).ok


def test_what_was_refused_is_not_recorded_as_done(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    before = types(accounts)
    calls: list[Callable[[], object]] = [
        lambda: accounts.users.create(admin, "ann", PASSWORD),
        lambda: accounts.users.update(admin, "x", roles=["Read"]),
        lambda: accounts.keys.create(admin, ann.id, ""),
        lambda: accounts.unlock(admin, "ann"),
    ]
    for call in calls:
        with pytest.raises(QilbeeError):
            call()
    assert types(accounts) == before


def test_events_are_found_by_all_that_is_asked(accounts: Accounts, clock: Clock) -> None:
    began = datetime.fromtimestamp(clock.ns / 1e9, UTC)
    for number in range(20):
        clock.forward(minutes=1)
        caller = Caller(address=f"192.0.2.{number % 2}")
        accounts.record(f"type {number % 3}", caller, "test", result="failure" if number % 5 else "success")
    query = audit.query
    found = query(accounts.tables, limit=100)
    assert [event.event_id for event in found] == sorted((event.event_id for event in found), reverse=True)
    assert [event.timestamp for event in found] == sorted((event.timestamp for event in found), reverse=True)
    assert len(query(accounts.tables, limit=7)) == 7
    assert len(query(accounts.tables, limit=100, event_type="type 1")) == 7
    assert len(query(accounts.tables, limit=100, event_type="type 1", ip_address="192.0.2.1")) == 4
    assert len(query(accounts.tables, limit=100, event_type="type 0", result="success")) == 2
    assert query(accounts.tables, limit=100, username="nobody") == []
    between = query(
        accounts.tables, limit=100, start_time=began + timedelta(minutes=5), end_time=began + timedelta(minutes=10)
    )
    assert len(between) == 5


def test_the_log_is_in_order_when_the_clock_is_set_back(accounts: Accounts, clock: Clock) -> None:
    accounts.record("one", HERE, "test")
    clock.forward(hours=-1)
    accounts.record("two", HERE, "test")
    two, one = audit.query(accounts.tables, limit=2)
    assert (one.event_type, two.event_type) == ("one", "two")
    assert two.timestamp >= one.timestamp


def test_text_of_strangers_is_cut_and_commands_no_terminal(accounts: Accounts) -> None:
    accounts.record("test", Caller(address="x" * 1000, user_agent="\x1b[2J\ud800\n" + "y" * 1000), "test", "/\x07")
    [event] = audit.query(accounts.tables, limit=1)
    assert len(event.ip_address) == len(event.user_agent) == 256
    assert event.user_agent.startswith("?[2J??yyy")
    assert event.resource == "/?"


def test_events_of_several_writers_are_all_there_in_one_chain(accounts: Accounts, store: Store) -> None:
    other = Accounts.open(store, environ={})
    count = len(types(accounts))

    def write(process: Accounts) -> None:
        for _ in range(50):
            process.record("test", HERE, "test")

    threads = [Thread(target=write, args=(process,)) for process in (accounts, other, accounts, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    report = audit.verify(accounts.tables)
    assert report.ok
    assert report.events == count + 200
    other.close()


# --- tampering


def chain_of(count: int) -> tuple[Store, Tables]:
    store = open_store(backend="ephemeral", durability="async")
    tables = Tables(store)
    for number in range(count):
        tables.change(partial(record, event_type=f"event {number}"))
    return store, tables


def record(change: Change, event_type: str) -> None:
    change.record(event_of(event_type, HERE, change.now_us, action="test", metadata={"n": 1}))


def number(row: int) -> str:
    return f"{row:016x}"


def changed(row: AuditRow, **changes: object) -> bytes:
    event = msgspec.structs.replace(msgspec.msgpack.decode(row.event, type=Event), **changes)
    return msgspec.msgpack.encode(event)


def alter(tables: Tables, at: int) -> None:
    row = tables.get(AUDIT, number(at))
    assert row is not None
    row = AuditRow(row.hash, msgspec.Raw(changed(row, username="mallory")))
    tables.rows.write({AUDIT.name(number(at)): AUDIT.encode(row)})


def alter_with_its_hash(tables: Tables, at: int) -> None:
    row, before = tables.get(AUDIT, number(at)), tables.get(AUDIT, number(at - 1))
    assert row is not None
    event = changed(row, username="mallory")
    its_hash = chained(bytes(32) if before is None else before.hash, event)
    tables.rows.write({AUDIT.name(number(at)): AUDIT.encode(AuditRow(its_hash, msgspec.Raw(event)))})


def remove(tables: Tables, at: int) -> None:
    tables.rows.write({AUDIT.name(number(at)): None})


def swap(tables: Tables, at: int) -> None:
    names = [AUDIT.name(number(at)), AUDIT.name(number(at % 10 + 1))]
    one, other = (tables.rows.get(name) for name in names)
    tables.rows.write({names[0]: other, names[1]: one})


def repeat(tables: Tables, at: int) -> None:
    tables.rows.write({AUDIT.name(number(11)): tables.rows.get(AUDIT.name(number(at)))})


def spoil(tables: Tables, at: int) -> None:
    tables.rows.write({AUDIT.name(number(at)): b"\xc1"})


def cut(tables: Tables, at: int) -> None:
    tables.rows.write({AUDIT.name(number(later)): None for later in range(at, 11)})


def move_head(tables: Tables, at: int) -> None:
    tables.rows.write({AUDIT_HEAD.prefix: AUDIT_HEAD.encode(AuditHead(at - 1, bytes(32), 0))})


TAMPERINGS: list[Callable[[Tables, int], None]] = [
    alter,
    alter_with_its_hash,
    remove,
    swap,
    repeat,
    spoil,
    cut,
    move_head,
]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: str(tamper.__name__))
@pytest.mark.parametrize("at", range(1, 11))
def test_whatever_is_done_to_any_event_is_noticed(tamper: Callable[[Tables, int], None], at: int) -> None:
    store, tables = chain_of(10)
    with store:
        assert audit.verify(tables) == AuditReport(events=10, hash=head(tables).hash.hex(), problems=[])
        tamper(tables, at)
        assert not audit.verify(tables).ok


def head(tables: Tables) -> AuditHead:
    found = tables.get(AUDIT_HEAD)
    assert found is not None
    return found


def test_a_row_damaged_on_disk_is_named_and_the_rest_is_read(store: Store) -> None:
    store, tables = chain_of(10)
    with store:
        store._backend.write(WriteBatch([Put(account_key(AUDIT.name(number(4))), b"damaged")]))
        report = audit.verify(tables)
        assert report.events == 10
        assert "event 4 cannot be read" in report.problems[0]


@given(st.integers(0, 2**32))
def test_a_log_made_anew_from_some_point_is_noticed_with_an_end_that_was_noted_down(seed: int) -> None:
    draw = random.Random(seed)
    store, tables = chain_of(10)
    with store:
        noted_at = draw.randint(1, 10)
        row = tables.get(AUDIT, number(noted_at))
        assert row is not None
        noted = (noted_at, row.hash.hex())
        tables.change(lambda change: record(change, "later"))
        assert audit.verify(tables, noted).ok
        # Whoever can write everything makes the whole chain again, from an event that was noted or before.
        rows = [each for _, each in tables.scan(AUDIT)]
        forged_at, previous = draw.randint(1, noted_at), bytes(32)
        for at, each in enumerate(rows, 1):
            event = changed(each, username="mallory") if at == forged_at else bytes(each.event)
            previous = chained(previous, event)
            tables.rows.write({AUDIT.name(number(at)): AUDIT.encode(AuditRow(previous, msgspec.Raw(event)))})
        tables.rows.write({AUDIT_HEAD.prefix: AUDIT_HEAD.encode(AuditHead(11, previous, 0))})
        assert audit.verify(tables).ok
        assert not audit.verify(tables, noted).ok


def test_an_empty_log_is_whole_and_one_that_was_emptied_is_not(store: Store) -> None:
    store, tables = chain_of(0)
    with store:
        assert audit.verify(tables) == AuditReport(events=0, hash=bytes(32).hex(), problems=[])
        assert audit.verify(tables, (0, bytes(32).hex())).ok
        assert not audit.verify(tables, (3, "00")).ok


# --- refusals


def settled(accounts: Accounts) -> list[str]:
    accounts._pool.shutdown()
    return types(accounts)


def test_refused_requests_are_recorded_and_a_crowd_of_them_is_not(accounts: Accounts, clock: Clock) -> None:
    before = len(types(accounts))
    for _ in range(100):
        accounts.refused(ELSEWHERE, "unauthorized", "GET /x")
    accounts.refused(HERE, "forbidden", "GET /y")
    clock.forward(minutes=1)
    accounts.refused(ELSEWHERE, "unauthorized", "GET /x")
    found = settled(accounts)[before:]
    assert found.count("forbidden") == 1
    assert found.count("unauthorized") == 61
    assert len(found) == 62
    told = [event.metadata for event in audit.query(accounts.tables, limit=100, event_type="unauthorized")]
    assert sorted(told, key=len) == [{}] * 60 + [{"not_recorded_before": 40}]


def test_a_refusal_after_the_end_is_no_error(accounts: Accounts) -> None:
    accounts.close()
    accounts.refused(ELSEWHERE, "unauthorized", "GET /x")


def test_the_password_of_nobody_is_in_no_event(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    for username, password in (("ann", "canary-of-ann"), ("canary-as-name", "canary-of-nobody")):
        with pytest.raises(AuthenticationError):
            accounts.sessions.login(ELSEWHERE, username, password)
    accounts.users.update(admin, ann.id, password="canary-of-change")
    text = b"".join(bytes(row.event) for _, row in accounts.tables.scan(AUDIT))
    assert b"canary" not in text
    for secret in (PASSWORD, ADMIN_PASSWORD):
        assert secret.encode() not in text
