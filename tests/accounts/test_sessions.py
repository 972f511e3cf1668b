"""Sessions: they begin with a password, go on with refresh tokens, and end at once when they are ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from qilbee_core import AuthenticationError, InvalidError, PermissionDeniedError, Store
from qilbeedb.account_wire import UserInfo
from qilbeedb.accounts import Accounts, Caller, Permission, audit
from qilbeedb.accounts.tables import SESSIONS, USERS
from qilbeedb.exceptions import RateLimitedError

from .conftest import ADMIN_PASSWORD, ELSEWHERE, HERE, PASSWORD, Clock, principal_of


@pytest.fixture(params=[True, False], ids=["an engine of one process", "a shared engine"])
def store(store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(store._context, "single_process", request.param)
    return store


def is_known(accounts: Accounts, token: str) -> bool:
    try:
        accounts.authenticate(f"Bearer {token}", None)
    except AuthenticationError:
        return False
    return True


def test_a_login_gives_tokens_and_says_how_long_they_are_good(accounts: Accounts, ann: UserInfo, clock: Clock) -> None:
    login = accounts.sessions.login(ELSEWHERE, "ann", PASSWORD)
    assert (login.token_type, login.expires_in, login.refresh_expires_in) == ("Bearer", 900, 604_800)
    assert (login.username, login.user_id) == ("ann", ann.id)
    principal = accounts.authenticate(f"Bearer {login.access_token}", None)
    assert (principal.user_id, principal.username, principal.roles) == (ann.id, "ann", ("Agent",))
    clock.forward(seconds=899)
    assert is_known(accounts, login.access_token)
    clock.forward(seconds=1)
    with pytest.raises(AuthenticationError, match="expired"):
        accounts.authenticate(f"Bearer {login.access_token}", None)


def test_a_name_is_known_in_whatever_case(accounts: Accounts, ann: UserInfo) -> None:
    assert accounts.sessions.login(HERE, "ANN", PASSWORD).username == "ann"


def test_a_wrong_password_an_unknown_name_and_an_inactive_user_are_told_the_same(
    accounts: Accounts, ann: UserInfo, admin: Caller
) -> None:
    told = set()
    for username, password in (("ann", "wrong password"), ("nobody", PASSWORD), ("", PASSWORD), ("x" * 5000, PASSWORD)):
        with pytest.raises(AuthenticationError) as error:
            accounts.sessions.login(ELSEWHERE, username, password)
        told.add(str(error.value))
    accounts.users.update(admin, ann.id, is_active=False)
    with pytest.raises(AuthenticationError) as error:
        accounts.sessions.login(ELSEWHERE, "ann", PASSWORD)
    assert told | {str(error.value)} == {"the username or the password is wrong: check both and try again"}


@pytest.mark.parametrize(
    "username", ["\ud800", "a/b", "..", "\x00", "é" * 300, "user/1"], ids=lambda text: ascii(text)[:9]
)
def test_any_text_may_be_tried_as_a_name(accounts: Accounts, username: str) -> None:
    with pytest.raises(AuthenticationError):
        accounts.sessions.login(ELSEWHERE, username, PASSWORD)
    assert accounts.lockout(username).failed_attempts == 1


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer x", "Bearer " + "x" * 100_000, "Token x", "\ud800", "Bearer \ud800", "x"],
    ids=lambda text: ascii(text)[:20],
)
def test_what_is_no_credential_is_refused(accounts: Accounts, authorization: str | None) -> None:
    with pytest.raises(AuthenticationError):
        accounts.authenticate(authorization, None)


def test_http_basic_is_refused_with_the_remedy(accounts: Accounts) -> None:
    with pytest.raises(AuthenticationError, match="api/v1/auth/login once"):
        accounts.authenticate("Basic YW5uOnN0YXBsZQ==", None)


def test_a_refresh_gives_the_next_tokens_and_a_refreshed_session_ends_when_it_would_have(
    accounts: Accounts, ann: UserInfo, clock: Clock
) -> None:
    first = accounts.sessions.login(HERE, "ann", PASSWORD)
    clock.forward(days=1)
    second = accounts.sessions.refresh(HERE, first.refresh_token)
    assert is_known(accounts, second.access_token)
    assert second.refresh_token != first.refresh_token
    assert second.refresh_expires_in == 6 * 86_400
    clock.forward(days=6)
    with pytest.raises(AuthenticationError, match="log in again"):
        accounts.sessions.refresh(HERE, second.refresh_token)


def test_a_refresh_whose_answer_was_lost_may_be_sent_again(accounts: Accounts, ann: UserInfo) -> None:
    first = accounts.sessions.login(HERE, "ann", PASSWORD)
    lost = accounts.sessions.refresh(HERE, first.refresh_token)
    second = accounts.sessions.refresh(HERE, first.refresh_token)
    third = accounts.sessions.refresh(HERE, second.refresh_token)
    assert is_known(accounts, third.access_token)
    assert len({lost.refresh_token, second.refresh_token, third.refresh_token}) == 3


def test_a_client_that_keeps_its_first_refresh_token_goes_on_with_it(accounts: Accounts, ann: UserInfo) -> None:
    first = accounts.sessions.login(HERE, "ann", PASSWORD)
    for _ in range(5):
        assert is_known(accounts, accounts.sessions.refresh(HERE, first.refresh_token).access_token)


@pytest.mark.parametrize("shown", ["the first", "one that was replaced", "one made up"])
def test_a_refresh_token_that_was_used_up_ends_the_session_of_thief_and_robbed(
    accounts: Accounts, ann: UserInfo, shown: str
) -> None:
    other = accounts.sessions.login(HERE, "ann", PASSWORD)
    first = accounts.sessions.login(HERE, "ann", PASSWORD)
    replaced = accounts.sessions.refresh(HERE, first.refresh_token)
    second = accounts.sessions.refresh(HERE, first.refresh_token)
    third = accounts.sessions.refresh(HERE, second.refresh_token)
    stolen = {
        "the first": first.refresh_token,
        "one that was replaced": replaced.refresh_token,
        "one made up": first.refresh_token.partition(".")[0] + ".made-up",
    }[shown]
    assert is_known(accounts, third.access_token)
    with pytest.raises(AuthenticationError):
        accounts.sessions.refresh(ELSEWHERE, stolen)
    for tokens in (first, second, third):
        assert not is_known(accounts, tokens.access_token)
        with pytest.raises(AuthenticationError):
            accounts.sessions.refresh(HERE, tokens.refresh_token)
    assert is_known(accounts, other.access_token)
    [event] = audit.query(accounts.tables, limit=9, event_type="refresh_token_reused")
    assert (event.username, event.ip_address, event.result) == ("ann", "192.0.2.7", "unauthorized")


@pytest.mark.parametrize("token", ["", ".", "x.y", "x" * 4096, "\ud800", "a/b.c"], ids=lambda text: ascii(text)[:20])
def test_what_is_no_refresh_token_is_refused(accounts: Accounts, token: str) -> None:
    with pytest.raises(AuthenticationError):
        accounts.sessions.refresh(HERE, token)


def test_a_refresh_token_is_no_access_token_and_the_other_way_round(accounts: Accounts, ann: UserInfo) -> None:
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    assert not is_known(accounts, login.refresh_token)
    with pytest.raises(AuthenticationError):
        accounts.sessions.refresh(HERE, login.access_token)
    assert is_known(accounts, login.access_token)


def test_refresh_tokens_are_stored_as_digests(accounts: Accounts, ann: UserInfo) -> None:
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    login = accounts.sessions.refresh(HERE, login.refresh_token)
    stored = b"".join(value for _, value in accounts.tables.rows.scan(""))
    assert login.refresh_token.encode() not in stored
    assert login.refresh_token.partition(".")[2].encode() not in stored
    assert login.access_token.encode() not in stored


def ways_to_end(accounts: Accounts, admin: Caller, ann: UserInfo) -> dict[str, Callable[[Caller, str], object]]:
    return {
        "logout": lambda caller, token: accounts.sessions.logout(caller),
        "revoke": accounts.sessions.revoke,
        "revoke by an administrator": lambda caller, token: accounts.sessions.revoke(admin, token),
        "revoke all": lambda caller, token: accounts.users.end_sessions(admin, ann.id),
        "another password": lambda caller, token: accounts.users.update(admin, ann.id, password="another one"),
        "one's own other password": lambda caller, token: accounts.sessions.change_password(
            caller, PASSWORD, "another one"
        ),
        "disabled": lambda caller, token: accounts.users.update(admin, ann.id, is_active=False),
        "removed": lambda caller, token: accounts.users.delete(admin, ann.id),
    }


WAYS = [
    "logout",
    "revoke",
    "revoke by an administrator",
    "revoke all",
    "another password",
    "one's own other password",
    "disabled",
    "removed",
]


@pytest.mark.parametrize("way", WAYS)
def test_a_session_that_was_ended_has_ended_with_the_next_request(
    accounts: Accounts, store: Store, admin: Caller, ann: UserInfo, way: str
) -> None:
    assert sorted(ways_to_end(accounts, admin, ann)) == sorted(WAYS)
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    caller = Caller(principal=accounts.authenticate(f"Bearer {login.access_token}", None))
    # Another process on the same engine has the token in its RAM.
    other = Accounts.open(store, environ={})
    other._tokens._secret = accounts._tokens._secret
    assert is_known(other, login.access_token)
    ways_to_end(accounts, admin, ann)[way](caller, login.access_token)
    for process in (accounts, other):
        assert not is_known(process, login.access_token)
        with pytest.raises(AuthenticationError):
            process.sessions.refresh(HERE, login.refresh_token)
    other.close()


def test_logging_out_ends_this_session_alone(accounts: Accounts, ann: UserInfo) -> None:
    one, other = (accounts.sessions.login(HERE, "ann", PASSWORD) for _ in range(2))
    accounts.sessions.logout(Caller(principal=accounts.authenticate(f"Bearer {one.access_token}", None)))
    assert not is_known(accounts, one.access_token)
    assert is_known(accounts, other.access_token)


def test_nobody_ends_the_session_of_another_but_an_administrator(
    accounts: Accounts, admin: Caller, ann: UserInfo
) -> None:
    accounts.users.create(admin, "bob", PASSWORD, roles=["Developer"])
    bob = Caller(principal=principal_of(accounts, "bob"))
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    for token in (login.access_token, login.refresh_token):
        with pytest.raises(PermissionDeniedError):
            accounts.sessions.revoke(bob, token)
    assert is_known(accounts, login.access_token)
    accounts.sessions.revoke(admin, login.refresh_token)
    accounts.sessions.revoke(admin, login.refresh_token)
    assert not is_known(accounts, login.access_token)


def test_roles_and_agents_are_those_of_the_store_at_each_request(
    accounts: Accounts, admin: Caller, ann: UserInfo
) -> None:
    token = accounts.sessions.login(HERE, "ann", PASSWORD).access_token
    assert accounts.authenticate(f"Bearer {token}", None).may(Permission.WRITE, "sales")
    accounts.users.update(admin, ann.id, agents=["finance"])
    principal = accounts.authenticate(f"Bearer {token}", None)
    assert (principal.may(Permission.WRITE, "sales"), principal.may(Permission.WRITE, "finance")) == (False, True)
    accounts.users.update(admin, ann.id, roles=["Read"])
    assert not accounts.authenticate(f"Bearer {token}", None).may(Permission.WRITE, "finance")


def test_an_api_key_has_no_session_to_log_out_of(accounts: Accounts, admin: Caller, ann: UserInfo) -> None:
    key = accounts.keys.create(admin, ann.id, "key", permissions=["self"]).key
    with pytest.raises(InvalidError, match="revoke the key"):
        accounts.sessions.logout(Caller(principal=accounts.authenticate(None, key)))


def test_ones_own_password_needs_the_old_one_and_counts_failures(accounts: Accounts, ann: UserInfo) -> None:
    caller = Caller(address="192.0.2.7", principal=principal_of(accounts, "ann"))
    for _ in range(5):
        with pytest.raises(AuthenticationError):
            accounts.sessions.change_password(caller, "not this one", "another one")
    with pytest.raises(RateLimitedError):
        accounts.sessions.change_password(caller, PASSWORD, "another one")
    caller = replace(caller, address="192.0.2.8")
    accounts.sessions.change_password(caller, PASSWORD, "another one")
    assert accounts.sessions.login(HERE, "ann", "another one").username == "ann"


def test_a_user_changed_while_his_password_is_hashed_does_not_get_in(
    accounts: Accounts, admin: Caller, ann: UserInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qilbeedb.accounts import sessions
    from qilbeedb.accounts.passwords import verify_password as verify

    def slowly(password_hash: str | None, password: str) -> bool:
        found = verify(password_hash, password)
        monkeypatch.setattr(sessions, "verify_password", verify)
        accounts.users.update(admin, ann.id, password="another one")
        return found

    monkeypatch.setattr(sessions, "verify_password", slowly)
    with pytest.raises(AuthenticationError):
        accounts.sessions.login(HERE, "ann", PASSWORD)


def test_sessions_that_have_expired_are_swept(accounts: Accounts, ann: UserInfo, clock: Clock) -> None:
    accounts.sessions.login(HERE, "ann", PASSWORD)
    clock.forward(days=6)
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    clock.forward(days=2)
    accounts.sessions.sweep()
    assert [session.user_id for _, session in accounts.tables.scan(SESSIONS)] == [ann.id]
    assert is_known(accounts, accounts.sessions.refresh(HERE, login.refresh_token).access_token)


def test_the_credentials_in_ram_are_bounded(accounts: Accounts, ann: UserInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from qilbeedb.accounts import authentication

    monkeypatch.setattr(authentication, "_KNOWN_MAX", 3)
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    tokens = [
        accounts._tokens.issue(ann.id, accounts._tokens.read(login.access_token).sid, 10**10 + n) for n in range(9)
    ]
    for token in tokens:
        assert is_known(accounts, token)
        assert len(accounts._authenticator._known) <= 3
    assert not is_known(accounts, "garbage")
    assert len(accounts._authenticator._known) <= 3


def test_the_first_administrator_is_made_once(store: Store) -> None:
    first = Accounts.open(store, environ={})
    assert first.first_password is not None
    assert len(first.first_password) >= 20
    assert first.sessions.login(HERE, "admin", first.first_password).username == "admin"
    first.close()
    second = Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": ADMIN_PASSWORD})
    assert second.first_password is None
    with pytest.raises(AuthenticationError):
        second.sessions.login(HERE, "admin", ADMIN_PASSWORD)
    second.close()


def test_an_administrator_is_made_where_there_are_only_other_users(store: Store) -> None:
    system = Caller()
    first = Accounts.open(store, environ={})
    first.users.create(system, "ann", PASSWORD)
    first.tables.rows.write({USERS.name(first.users.named("admin").id): None, "username/admin": None})
    first.close()
    second = Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": ADMIN_PASSWORD})
    assert second.sessions.login(HERE, "admin", ADMIN_PASSWORD).username == "admin"
    second.close()


def test_that_a_session_has_ended_already_is_told_once_that_is_durable(
    store: Store, accounts: Accounts, ann: UserInfo, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = accounts.sessions.login(HERE, "ann", PASSWORD)
    accounts.sessions.revoke(admin, login.refresh_token)
    synced: list[str] = []
    monkeypatch.setattr(store._backend, "sync", lambda: synced.append("again"))
    accounts.sessions.revoke(admin, login.refresh_token)
    assert synced == ["again"]
