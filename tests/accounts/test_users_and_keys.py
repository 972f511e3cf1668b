"""Users, roles and API keys: what is given is given, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import AuthenticationError, ConflictError, InvalidError, NotFoundError, QilbeeError, Store
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts import Accounts, Caller, Permission, Principal
from qilbeedb.accounts.keys import KEYS_PER_USER_MAX
from qilbeedb.accounts.permissions import ROLES
from qilbeedb.accounts.tables import KEYS, USERS

from .conftest import ADMIN_PASSWORD, HERE, PASSWORD, Clock, principal_of


@pytest.fixture(params=[True, False], ids=["an engine of one process", "a shared engine"])
def store(store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(store._context, "single_process", request.param)
    return store


# --- what may be done


def test_the_roles_give_what_the_documentation_says() -> None:
    assert {
        role: "".join(sorted(each.value[0].upper() + each.value[1] for each in given)) for role, given in ROLES.items()
    } == {
        "Read": "ReSe",
        "Agent": "DeReSeWr",
        "DataScientist": "PlReSe",
        "Developer": "DeMaPlReSeWr",
        "Admin": "AdDeMaPlReSeWr",
    }


@given(
    st.lists(st.sampled_from([*ROLES, "Later"])),
    st.none() | st.frozensets(st.sampled_from(["a", "b"])),
    st.none() | st.frozensets(st.sampled_from(list(Permission))),
    st.sampled_from(list(Permission)),
    st.sampled_from([None, "a", "b", "c"]),
)
def test_nothing_is_allowed_that_role_key_and_agents_do_not_all_allow(
    roles: list[str],
    agents: frozenset[str] | None,
    permissions: frozenset[Permission] | None,
    permission: Permission,
    agent: str | None,
) -> None:
    principal = Principal(user_id="1", username="x", roles=tuple(roles), agents=agents, permissions=permissions)
    by_role = any(permission in ROLES[role] for role in roles if role in ROLES)
    by_key = permissions is None or permission in permissions
    by_agent = agents is None or agent is None or agent in agents
    expected = permission is Permission.PUBLIC or (by_role and by_key and by_agent)
    assert principal.may(permission, agent) is expected


def test_an_agent_is_the_same_in_each_form_of_its_name() -> None:
    principal = Principal(user_id="1", username="x", roles=("Read",), agents=frozenset({"caf\u00e9"}))
    assert principal.may(Permission.READ, "cafe\u0301")


# --- users


def test_a_user_is_shown_as_he_was_made(accounts: Accounts, admin: Caller) -> None:
    info = accounts.users.create(
        admin, "ann", PASSWORD, email="ann@example.org", roles=["Read", "Agent", "Read"], agents=["b", "a", "b"]
    )
    assert (info.username, info.email, info.roles, info.agents) == (
        "ann",
        "ann@example.org",
        ("Agent", "Read"),
        ("a", "b"),
    )
    assert (info.is_active, info.last_login, info.created_at) == (True, None, info.updated_at)
    assert accounts.users.get(info.id) == accounts.users.named("Ann") == info
    assert accounts.users.all() == [accounts.users.named("admin"), info]


@pytest.mark.parametrize("username", ["ann", "Ann", "ANN", "\uff41\uff4e\uff4e"])
def test_a_name_is_given_once_however_it_is_written(
    accounts: Accounts, admin: Caller, ann: UserInfo, username: str
) -> None:
    with pytest.raises(ConflictError):
        accounts.users.create(admin, username, PASSWORD)
    assert len(accounts.users.all()) == 2


@pytest.mark.parametrize(
    "given",
    [
        {"username": ""},
        {"username": "x" * 65},
        {"username": "a b"},
        {"username": "a/b"},
        {"username": "a\x00"},
        {"username": "a\nb"},
        {"username": "ann\n"},
        {"username": "\ud800"},
        {"password": "short"},
        {"email": "no address"},
        {"email": "a@b@c"},
        {"email": "x" * 300 + "@example.org"},
        {"roles": ["Root"]},
        {"roles": ["admin"]},
        {"agents": ["a/b"]},
        {"agents": [""]},
        {"agents": [str(n) for n in range(1001)]},
        {"roles": ["Admin"], "agents": ["a"]},
    ],
    ids=lambda given: ascii(given)[:40],
)
def test_what_no_user_can_be_is_refused_and_nothing_is_stored(
    accounts: Accounts, admin: Caller, given: dict[str, Any]
) -> None:
    before = list(accounts.tables.rows.scan(""))
    with pytest.raises(InvalidError):
        accounts.users.create(admin, **{"username": "ann", "password": PASSWORD, **given})
    assert list(accounts.tables.rows.scan("")) == before


def test_what_is_left_out_of_a_change_stays(accounts: Accounts, admin: Caller, ann: UserInfo, clock: Clock) -> None:
    clock.forward(seconds=5)
    changed = accounts.users.update(admin, ann.id, email=None)
    assert (changed.email, changed.roles, changed.is_active) == (None, ann.roles, True)
    assert (changed.created_at, changed.updated_at > ann.updated_at) == (ann.created_at, True)
    changed = accounts.users.update(admin, ann.id, roles=["Read"], agents=["a"])
    assert (changed.roles, changed.agents) == (("Read",), ("a",))
    assert accounts.users.update(admin, ann.id, agents=None).agents is None
    assert accounts.sessions.login(HERE, "ann", PASSWORD).username == "ann"
    assert accounts.users.get(ann.id).last_login is not None


def test_a_user_who_is_not_there_is_not_found(accounts: Accounts, admin: Caller) -> None:
    calls: list[Callable[[], object]] = [
        lambda: accounts.users.get("x"),
        lambda: accounts.users.named("x"),
        lambda: accounts.users.update(admin, "x", email=None),
        lambda: accounts.users.delete(admin, "x"),
        lambda: accounts.users.end_sessions(admin, "x"),
        lambda: accounts.keys.create(admin, "x", "key"),
        lambda: accounts.keys.revoke(admin, "x"),
        lambda: accounts.lock(admin, "x"),
        lambda: accounts.unlock(admin, "x"),
        lambda: accounts.policies.get("x"),
        lambda: accounts.policies.delete(admin, "x"),
        lambda: accounts.policies.update(admin, "x", enabled=False),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()


def test_somebody_is_always_left_who_can_administer(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    admin_id = accounts.users.named("admin").id
    calls: list[Callable[[], object]] = [
        lambda: accounts.users.delete(admin, admin_id),
        lambda: accounts.users.update(admin, admin_id, roles=["Developer"]),
        lambda: accounts.users.update(admin, admin_id, is_active=False),
    ]
    for call in calls:
        with pytest.raises(ConflictError, match="nobody else"):
            call()
    accounts.users.update(admin, ann.id, roles=["Admin"])
    accounts.users.delete(admin, admin_id)
    with pytest.raises(ConflictError):
        accounts.users.delete(admin, ann.id)
    assert [user.username for user in accounts.users.all()] == ["ann"]


def test_of_two_administrators_who_remove_each_other_one_is_left(
    accounts: Accounts, admin: Caller, ann: UserInfo
) -> None:
    accounts.users.update(admin, ann.id, roles=["Admin"])
    ids = [user.id for user in accounts.users.all()]
    refused: list[QilbeeError] = []

    def remove(user_id: str) -> None:
        try:
            accounts.users.delete(admin, user_id)
        except QilbeeError as error:
            refused.append(error)

    threads = [Thread(target=remove, args=(user_id,)) for user_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(accounts.users.all()) == 1
    assert [type(error) for error in refused] == [ConflictError]


def test_two_processes_that_change_one_user_lose_no_change(
    accounts: Accounts, store: Store, admin: Caller, ann: UserInfo
) -> None:
    other = Accounts.open(store, environ={})

    def end(process: Accounts) -> None:
        for _ in range(20):
            process.users.end_sessions(admin, ann.id)

    before = accounts.tables.get(USERS, ann.id)
    assert before is not None
    threads = [Thread(target=end, args=(process,)) for process in (accounts, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    after = accounts.tables.get(USERS, ann.id)
    assert after is not None
    assert after.version == before.version + 40
    other.close()


def test_a_name_is_free_again_when_its_user_is_gone_and_the_old_credentials_stay_shut(
    accounts: Accounts, admin: Caller, ann: UserInfo
) -> None:
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    key = accounts.keys.create(admin, ann.id, "key").key
    accounts.users.delete(admin, ann.id)
    again = accounts.users.create(admin, "ann", PASSWORD)
    assert again.id != ann.id
    for authorization, api_key in ((f"Bearer {login.access_token}", None), (None, key)):
        with pytest.raises(AuthenticationError):
            accounts.authenticate(authorization, api_key)
    assert list(accounts.tables.scan(KEYS)) == []


def test_passwords_are_stored_as_hashes(accounts: Accounts, ann: UserInfo) -> None:
    stored = b"".join(value for _, value in accounts.tables.rows.scan(""))
    assert b"$argon2id$v=19$" in stored
    assert PASSWORD.encode() not in stored
    assert ADMIN_PASSWORD.encode() not in stored


# --- API keys


def test_a_key_is_shown_once_and_stored_as_a_digest(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    made = accounts.keys.create(admin, ann.id, "laptop")
    assert made.key.startswith("qilbee_live_")
    assert made.key.startswith(made.prefix)
    assert len(made.prefix) == 20
    [listed] = accounts.keys.all(ann.id)
    assert (listed.id, listed.name, listed.prefix, listed.expires_at) == (made.id, "laptop", made.prefix, None)
    stored = b"".join(value for _, value in accounts.tables.rows.scan(""))
    assert made.key.encode() not in stored
    assert made.key[45:].encode() not in stored
    for authorization, api_key in ((None, made.key), (f"Bearer {made.key}", None), (None, f" {made.key} ")):
        principal = accounts.authenticate(authorization, api_key)
        assert (principal.user_id, principal.api_key_id) == (ann.id, made.id)


def test_a_key_that_is_not_quite_the_key_opens_nothing(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    key = accounts.keys.create(admin, ann.id, "laptop").key
    others = [
        key[:-1],
        key + "x",
        key[:-1] + ("x" if key[-1] != "x" else "y"),
        key.upper(),
        "qilbee_live_",
        "",
        "\ud800",
    ]
    others += [key[:45], "qilbee_live_" + "0" * 32 + "_x", "x" * 100_000]
    for other in others:
        with pytest.raises(AuthenticationError) as told:
            accounts.authenticate(None, other)
        assert key[20:] not in str(told.value)


def test_a_key_does_with_memories_what_its_user_may_and_nothing_with_accounts(
    accounts: Accounts, admin: Caller
) -> None:
    admin_id = accounts.users.named("admin").id
    principal = accounts.authenticate(None, accounts.keys.create(admin, admin_id, "key").key)
    allowed = {permission for permission in Permission if principal.may(permission, "bot")}
    assert allowed == set(Permission) - {Permission.SELF, Permission.ADMIN}
    named = accounts.keys.create(admin, admin_id, "key", permissions=["admin", "self", "admin"])
    assert named.permissions == ("admin", "self")
    principal = accounts.authenticate(None, named.key)
    assert {each for each in Permission if principal.may(each)} == {
        Permission.ADMIN,
        Permission.SELF,
        Permission.PUBLIC,
    }


def test_a_key_is_limited_to_its_agents_and_those_of_its_user(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    made = accounts.keys.create(admin, ann.id, "key", agents=["a", "b"], permissions=["read"])
    principal = accounts.authenticate(None, made.key)
    assert [principal.may(Permission.READ, agent) for agent in ("a", "b", "c")] == [True, True, False]
    assert not principal.may(Permission.WRITE, "a")
    accounts.users.update(admin, ann.id, agents=["b", "c"])
    principal = accounts.authenticate(None, made.key)
    assert [principal.may(Permission.READ, agent) for agent in ("a", "b", "c")] == [False, True, False]


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"expires_in_days": 0},
        {"expires_in_days": -1},
        {"expires_in_days": 10**9},
        {"agents": ["a/b"]},
        {"agents": ["c"]},
        {"permissions": ["root"]},
        {"permissions": ["public"]},
        {"permissions": ["admin"]},
        {"permissions": ["maintain"]},
    ],
    ids=str,
)
def test_a_key_that_cannot_be_or_would_give_more_than_its_user_has_is_refused(
    accounts: Accounts, admin: Caller, ann: UserInfo, given: dict[str, Any]
) -> None:
    accounts.users.update(admin, ann.id, agents=["a", "b"])
    with pytest.raises(InvalidError):
        accounts.keys.create(admin, ann.id, **{"name": "key", **given})
    assert accounts.keys.all() == []


def test_a_key_that_administers_cannot_be_limited_to_agents_for_it_could_lift_that_itself(
    accounts: Accounts, admin: Caller
) -> None:
    admin_id = accounts.users.named("admin").id
    with pytest.raises(InvalidError, match="limited to some agents"):
        accounts.keys.create(admin, admin_id, "key", agents=["a"], permissions=["admin"])
    assert accounts.keys.create(admin, admin_id, "key", agents=["a"], permissions=["maintain"]).agents == ("a",)


def test_a_key_makes_no_key_that_opens_more_than_itself(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    limits: dict[str, Any] = {"agents": ["a", "b"], "permissions": ["read", "self"], "expires_in_days": 7}
    made = accounts.keys.create(admin, ann.id, "limited", **limits)
    maker = Caller(address="127.0.0.1", principal=accounts.authenticate(None, made.key))
    more: dict[str, Any]
    for more in ({"agents": ["a", "c"]}, {"permissions": ["read", "write"]}, {"expires_in_days": 8}):
        with pytest.raises(InvalidError, match="the key that makes it"):
            accounts.keys.create(maker, ann.id, "more", **more)
    as_much = accounts.keys.create(maker, ann.id, "as much")
    assert (as_much.agents, as_much.permissions) == (("a", "b"), ("read",))
    assert as_much.expires_at == made.expires_at
    less = accounts.keys.create(maker, ann.id, "less", agents=["a"], permissions=["read", "self"])
    assert accounts.authenticate(None, less.key).agents == frozenset({"a"})
    accounts.keys.revoke(admin, made.id)
    with pytest.raises(AuthenticationError, match="revoked"):
        accounts.keys.create(maker, ann.id, "too late")


def test_a_key_that_was_revoked_or_has_expired_opens_nothing(
    accounts: Accounts, store: Store, admin: Caller, ann: UserInfo, clock: Clock
) -> None:
    made = accounts.keys.create(admin, ann.id, "key")
    other = Accounts.open(store, environ={})
    assert other.authenticate(None, made.key).user_id == ann.id
    with pytest.raises(NotFoundError):
        accounts.keys.revoke(admin, made.id, "another user")
    accounts.keys.revoke(admin, made.id, ann.id)
    for process in (accounts, other):
        with pytest.raises(AuthenticationError, match="revoked"):
            process.authenticate(None, made.key)
    made = accounts.keys.create(admin, ann.id, "key", expires_in_days=2)
    assert made.expires_at == made.created_at + timedelta(days=2)
    clock.forward(hours=47)
    assert accounts.authenticate(None, made.key).user_id == ann.id
    clock.forward(hours=1)
    with pytest.raises(AuthenticationError, match="expired"):
        accounts.authenticate(None, made.key)
    other.close()


def test_a_key_goes_on_when_the_password_of_its_user_changes_and_stops_with_him(
    accounts: Accounts, admin: Caller, ann: UserInfo
) -> None:
    key = accounts.keys.create(admin, ann.id, "key").key
    accounts.users.update(admin, ann.id, password="another one")
    assert accounts.authenticate(None, key).user_id == ann.id
    accounts.users.update(admin, ann.id, is_active=False)
    with pytest.raises(AuthenticationError):
        accounts.authenticate(None, key)
    accounts.users.update(admin, ann.id, is_active=True)
    assert accounts.authenticate(None, key).user_id == ann.id


def test_a_user_has_so_many_keys_at_most(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    for number in range(KEYS_PER_USER_MAX):
        accounts.keys.create(admin, ann.id, f"key {number}")
    with pytest.raises(ConflictError):
        accounts.keys.create(admin, ann.id, "one more")
    accounts.keys.create(admin, accounts.users.named("admin").id, "another's")
    assert len(accounts.keys.all(ann.id)) == KEYS_PER_USER_MAX


def test_whoever_logs_in_may_see_his_own_keys_alone(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    accounts.keys.create(admin, ann.id, "ann's")
    accounts.keys.create(admin, principal_of(accounts, "admin", ADMIN_PASSWORD).user_id, "admin's")
    assert [key.name for key in accounts.keys.all(ann.id)] == ["ann's"]
    assert [key.name for key in accounts.keys.all()] == ["ann's", "admin's"]
