"""Rate limits: so many requests in a window, for each caller by himself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import ConflictError, InvalidError, Store, open_store
from qilbeedb.account_wire import EndpointType, UserInfo
from qilbeedb.accounts import Accounts, Caller, Principal, rates
from qilbeedb.accounts.policies import POLICIES_MAX
from qilbeedb.accounts.rates import RateLimits
from qilbeedb.accounts.tables import Policy
from qilbeedb.exceptions import RateLimitedError

ANN = Principal(user_id="1", username="ann", roles=("Read",))
BOB = Principal(user_id="2", username="bob", roles=("Read",))


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds(accounts: Accounts) -> Seconds:
    accounts.rates.clock_s = seconds = Seconds()
    return seconds


def limit(accounts: Accounts, admin: Caller, endpoint_type: EndpointType = "GeneralApi", **given: Any) -> str:
    settings = {"name": "test", "max_requests": 5, "window_secs": 60, **given}
    return accounts.policies.create(admin, endpoint_type=endpoint_type, **settings).id


def passes(
    accounts: Accounts, principal: Principal | None = ANN, address: str = "", path: str = "/x", *, times: int = 100
) -> int:
    """How many of so many requests pass."""
    passed = 0
    for _ in range(times):
        try:
            accounts.check_rate("GeneralApi", principal, address, path)
            passed += 1
        except RateLimitedError:
            pass
    return passed


def test_so_many_pass_and_no_more_until_the_window_has_passed(
    accounts: Accounts, admin: Caller, seconds: Seconds
) -> None:
    limit(accounts, admin)
    assert passes(accounts) == 5
    seconds.now += 59.9
    assert passes(accounts) == 0
    seconds.now += 120
    assert passes(accounts) == 5


def test_whoever_waits_as_long_as_he_was_told_passes_and_not_earlier(
    accounts: Accounts, admin: Caller, seconds: Seconds
) -> None:
    limit(accounts, admin)
    for _ in range(20):
        passes(accounts)
        with pytest.raises(RateLimitedError) as told:
            accounts.check_rate("GeneralApi", ANN, "")
        assert told.value.retry_after_s <= 60
        seconds.now += told.value.retry_after_s - 0.1
        assert passes(accounts) == 0
        seconds.now += 0.1001
        assert passes(accounts) == 5


@given(
    st.integers(1, 20),
    st.integers(1, 60),
    st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_never_do_more_pass_within_a_window_than_twice_what_is_allowed_and_the_allowed_always_do(
    most: int, window_s: int, waits_s: list[float]
) -> None:
    with open_store(backend="ephemeral", durability="async") as store:
        limits = RateLimits(store.account_rows())
        policy = Policy("1", "test", "GeneralApi", None, most, window_s, True, 0, 0, None)
        limits.clock_s = seconds = Seconds()
        passed: list[float] = []
        for wait_s in waits_s:
            seconds.now += wait_s
            try:
                limits.count(policy, "ann")
                passed.append(seconds.now)
            except RateLimitedError:
                # Refused only if that many have passed within one window.
                assert len([at for at in passed if seconds.now - at < window_s]) >= most
        for start in passed:
            assert len([at for at in passed if 0 <= at - start < window_s]) <= 2 * most


def test_each_caller_is_counted_by_himself(accounts: Accounts, admin: Caller, ann: UserInfo, seconds: Seconds) -> None:
    limit(accounts, admin)
    key = accounts.authenticate(None, accounts.keys.create(admin, ann.id, "key").key)
    assert passes(accounts, ANN, "192.0.2.7") == 5
    assert passes(accounts, ANN, "192.0.2.8") == 0
    assert passes(accounts, BOB, "192.0.2.7") == 5
    assert passes(accounts, key, "192.0.2.7") == 5
    assert passes(accounts, None, "192.0.2.7") == 5
    assert passes(accounts, None, "::ffff:192.0.2.7") == 0
    assert passes(accounts, None, "2001:db8::1") == 5
    assert passes(accounts, None, "2001:db8::2") == 0


def test_a_policy_is_of_its_endpoints_alone(accounts: Accounts, admin: Caller, seconds: Seconds) -> None:
    limit(accounts, admin, "ApiKeyCreation", max_requests=2)
    limit(accounts, admin, {"Custom": "/memory/bot"}, max_requests=3)
    assert passes(accounts, path="/memory/bots") == 100
    assert passes(accounts, path="/memory/bot/episodes") == 3
    assert passes(accounts, path="/memory/bot") == 0
    for passed in (True, True, False):
        try:
            accounts.check_rate("ApiKeyCreation", BOB, "")
            assert passed
        except RateLimitedError:
            assert not passed


@pytest.mark.parametrize("written", ["caf\u00e9", "cafe\u0301"])
def test_a_path_is_the_same_in_each_form_of_an_agents_name(
    accounts: Accounts, admin: Caller, seconds: Seconds, written: str
) -> None:
    limit(accounts, admin, {"Custom": f"/memory/{written}"}, max_requests=3)
    assert passes(accounts, path="/memory/cafe\u0301/episodes") == 3
    assert passes(accounts, path="/memory/caf\u00e9/episodes") == 0


def test_a_change_counts_with_the_next_request_in_every_process(
    accounts: Accounts, store: Store, admin: Caller, seconds: Seconds
) -> None:
    other = Accounts.open(store, environ={})
    assert passes(other) == 100
    policy_id = limit(accounts, admin)
    assert passes(accounts) == passes(other) == 5
    assert accounts.policies.update(admin, policy_id, max_requests=7).max_requests == 7
    assert passes(accounts) == passes(other) == 2
    accounts.policies.update(admin, policy_id, enabled=False)
    assert passes(other) == 100
    accounts.policies.update(admin, policy_id, enabled=True)
    assert passes(other) == 0
    accounts.policies.delete(admin, policy_id)
    assert passes(accounts) == passes(other) == 100
    other.close()


def test_policies_are_shown_as_they_were_made(accounts: Accounts, admin: Caller) -> None:
    assert [(each.endpoint_type, each.max_requests, each.window_secs) for each in accounts.policies.all()] == [
        ("Login", 120, 60),
        ("ApiKeyCreation", 60, 60),
        ("UserManagement", 300, 60),
    ]
    made = accounts.policies.create(
        admin, name="slow", endpoint_type={"Custom": "/x"}, max_requests=1, window_secs=2, enabled=False
    )
    assert admin.principal is not None
    assert made.created_by == admin.principal.user_id
    assert accounts.policies.get(made.id) == made == accounts.policies.all()[-1]
    changed = accounts.policies.update(admin, made.id, name="slower", endpoint_type="GeneralApi", window_secs=3)
    assert (changed.name, changed.endpoint_type, changed.max_requests, changed.window_secs) == (
        "slower",
        "GeneralApi",
        1,
        3,
    )


def test_policies_that_were_all_deleted_do_not_come_back(accounts: Accounts, store: Store, admin: Caller) -> None:
    for policy in accounts.policies.all():
        accounts.policies.delete(admin, policy.id)
    other = Accounts.open(store, environ={})
    assert other.policies.all() == []
    other.close()


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"max_requests": 0},
        {"max_requests": -1},
        {"max_requests": 10**30},
        {"window_secs": 0},
        {"window_secs": 10**30},
        {"endpoint_type": "Other"},
        {"endpoint_type": "Custom"},
        {"endpoint_type": {"Custom": "no path"}},
        {"endpoint_type": {"Other": "/x"}},
        {"endpoint_type": {"Custom": "/x", "Other": "/x"}},
        {"endpoint_type": {}},
    ],
    ids=str,
)
def test_what_is_no_policy_is_refused_when_made_and_when_changed(
    accounts: Accounts, admin: Caller, given: dict[str, Any]
) -> None:
    before = accounts.policies.all()
    with pytest.raises(InvalidError):
        limit(accounts, admin, **given)
    with pytest.raises(InvalidError):
        accounts.policies.update(admin, before[0].id, **given)
    assert accounts.policies.all() == before


def test_policies_and_callers_are_bounded(
    accounts: Accounts, admin: Caller, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(accounts, admin, max_requests=1)
    monkeypatch.setattr(rates, "_CALLERS_MAX", 10)
    for number in range(50):
        assert passes(accounts, None, f"192.0.2.{number}", times=1) == 1
        assert len(accounts.rates._windows) <= 10
    for number in range(POLICIES_MAX - len(accounts.policies.all())):
        limit(accounts, admin, name=f"policy {number}")
    with pytest.raises(ConflictError):
        limit(accounts, admin)
