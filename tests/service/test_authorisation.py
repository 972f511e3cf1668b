"""Who may do what: every route of the one table, with no credentials, wrong ones, each role, and another's agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from qilbeedb.accounts import Caller, Permission
from qilbeedb.accounts.permissions import ROLES
from qilbeedb.server.app import ROUTES
from qilbeedb.server.route import Route

from .serving import PASSWORD, Serving, login, serving, wait_until

ID = "0e320ddf-b885-8cee-9a20-3d61bce200c4"
# Whatever ends the session of the caller comes last.
TABLE = sorted(ROUTES, key=lambda route: "/auth/" in route.path)


class People(NamedTuple):
    """A server with a user of each role, and one of role Agent who is limited to the agent "mine"."""

    served: Serving
    headers: dict[str, dict[str, str]]

    def call(self, route: Route, headers: dict[str, str], agent: str = "mine", body: bytes = b'{"dryRun": 0}') -> int:
        """The status of a call whose body or query fits nothing, so that it does nothing where it is let through."""
        path = route.path.format(agent=agent, id=ID, username="nobody", file="page.js")
        request: httpx.Request = self.served.client.build_request(
            route.method,
            path,
            content=None if route.method in {"GET", "DELETE"} else body,
            params={"no-such-key": "1"} if route.method in {"GET", "DELETE"} else None,
            headers={**headers, "content-type": "application/json"},
        )
        return self.served.client.send(request).status_code


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    with serving({"storage": {"backend": "ephemeral"}}, login=True) as served:
        assert served.accounts is not None
        for policy in served.accounts.policies.all():
            served.accounts.policies.delete(Caller(), policy.id)
        headers = {"admin": login(served, "admin")}
        for role in ROLES:
            user = {"username": f"the-{role}", "password": PASSWORD, "roles": [role]}
            assert served.client.post("/api/v1/users", json=user, headers=headers["admin"]).status_code == 201
            headers[role] = login(served, f"the-{role}")
        limited = {"username": "limited", "password": PASSWORD, "roles": ["Agent"], "agents": ["mine"]}
        assert served.client.post("/api/v1/users", json=limited, headers=headers["admin"]).status_code == 201
        headers["limited"] = login(served, "limited")
        yield People(served, headers)


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.mark.parametrize("route", TABLE, ids=name)
def test_without_good_credentials_a_route_that_is_not_public_is_401(people: People, route: Route) -> None:
    token = people.headers["admin"]["Authorization"]
    for headers in (
        {},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": token[:-3] + ("xyz" if token[-3] != "x" else "yyz")},
        {"Authorization": "Basic YWRtaW46YWRtaW4="},
        {"X-API-Key": "qilbee_live_" + "0" * 43},
    ):
        status = people.call(route, headers)
        assert (status == 401) == (route.permission is not Permission.PUBLIC), headers


@pytest.mark.parametrize("route", TABLE, ids=name)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_gets_as_far_as_its_permissions(people: People, role: str, route: Route) -> None:
    if "/auth/logout" in route.path:
        return  # which would end the session; every role has SELF
    may = route.permission is Permission.PUBLIC or route.permission in ROLES[role] or route.dry_run in ROLES[role]
    status = people.call(route, people.headers[role])
    assert (status != 403) == may, status
    assert status != 401 or route.permission is Permission.PUBLIC


@pytest.mark.parametrize("route", [route for route in TABLE if "{agent}" in route.path], ids=name)
def test_another_agent_is_closed_to_who_is_limited_to_his_own(people: People, route: Route) -> None:
    assert people.call(route, people.headers["limited"], "other") == 403
    assert people.call(route, people.headers["limited"], "Mine") == 403
    allowed = route.permission in ROLES["Agent"]
    assert (people.call(route, people.headers["limited"], "mine") != 403) == allowed


@pytest.mark.parametrize("route", [route for route in ROUTES if route.dry_run is not None], ids=name)
def test_who_may_plan_may_not_do_it(people: People, route: Route) -> None:
    scientist = people.headers["DataScientist"]
    body = b'{"dryRun": %s, "before": 1}' if "purge" in route.path else b'{"dryRun": %s}'
    assert people.call(route, scientist, body=body % b"true") == 200
    assert people.call(route, scientist, body=body % b"false") == 403
    if "purge" not in route.path:
        assert people.call(route, scientist, body=b"{}") == 403


def test_a_refusal_says_who_and_what_but_no_secret(people: People) -> None:
    answer = people.served.client.delete("/memory/mine", headers=people.headers["Read"])
    assert answer.json()["code"] == "PERMISSION_DENIED"
    assert "the-Read" in answer.json()["error"]
    assert people.headers["Read"]["Authorization"].split()[1] not in answer.text


# --- what else a caller may come with


def headers_of_key(people: People, user: str, **limits: object) -> dict[str, str]:
    made = people.served.client.post("/api/v1/api-keys", json={"name": "test", **limits}, headers=people.headers[user])
    assert made.status_code == 201, made.text
    return {"X-API-Key": made.json()["key"]}


@pytest.fixture(scope="module")
def stale(people: People) -> dict[str, dict[str, str]]:
    """Credentials of an administrator that were good once."""
    accounts = people.served.accounts
    assert accounts is not None
    caller = Caller(address="127.0.0.1")
    expired = accounts._tokens.issue(accounts.users.named("admin").id, "no-session", 0)
    ended = accounts.sessions.login(caller, "admin", PASSWORD)
    revoked = headers_of_key(people, "admin", permissions=["admin", "self", "read", "maintain"])
    disabled = accounts.users.create(caller, "disabled", PASSWORD, roles=["Admin"])
    shut_out = accounts.sessions.login(caller, "disabled", PASSWORD)
    session = accounts.authenticate(f"Bearer {ended.access_token}", None)
    good = {
        "ended": {"Authorization": f"Bearer {ended.access_token}"},
        "disabled": {"Authorization": f"Bearer {shut_out.access_token}"},
        "revoked": revoked,
    }
    for headers in good.values():
        assert people.served.client.get("/agents", headers=headers).status_code == 200
    accounts.sessions.logout(Caller(principal=session))
    accounts.users.update(caller, disabled.id, is_active=False)
    accounts.keys.revoke(caller, accounts.keys.all()[-1].id)
    return {**good, "expired": {"Authorization": f"Bearer {expired}"}}


@pytest.mark.parametrize("route", TABLE, ids=name)
@pytest.mark.parametrize("what", ["ended", "disabled", "revoked", "expired"])
def test_what_was_good_once_opens_nothing(
    people: People, stale: dict[str, dict[str, str]], what: str, route: Route
) -> None:
    status = people.call(route, stale[what])
    assert (status == 401) == (route.permission is not Permission.PUBLIC), status


def test_an_access_token_that_has_expired_opens_nothing(people: People) -> None:
    accounts = people.served.accounts
    assert accounts is not None
    session = accounts.authenticate(people.headers["Admin"]["Authorization"], None)
    assert session.session_id is not None
    now_s = accounts.tables.now_us() // 1_000_000
    for age_s, status in ((0, 200), (accounts._tokens.access_token_s + 1, 401)):
        token = accounts._tokens.issue(session.user_id, session.session_id, now_s - age_s)
        answer = people.served.client.get("/agents", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status


@pytest.mark.parametrize("route", TABLE, ids=name)
@pytest.mark.parametrize("permission", [each for each in Permission if each is not Permission.PUBLIC])
def test_a_key_of_an_administrator_does_what_it_is_for_and_no_more(
    people: People, keys: dict[str, dict[str, str]], permission: Permission, route: Route
) -> None:
    status = people.call(route, keys[permission])
    if route.path.endswith("/auth/logout"):
        return  # a key has no session
    allowed = permission in {route.permission, route.dry_run} or route.permission is Permission.PUBLIC
    assert (status != 403) == allowed, status


@pytest.fixture(scope="module")
def keys(people: People) -> dict[str, dict[str, str]]:
    """A key of an administrator for each permission."""
    named = [each for each in Permission if each is not Permission.PUBLIC]
    return {each: headers_of_key(people, "admin", permissions=[each]) for each in named}


def test_a_key_without_permissions_makes_no_keys_and_no_users(people: People) -> None:
    headers = headers_of_key(people, "admin")
    for route in TABLE:
        allowed = route.permission not in {Permission.SELF, Permission.ADMIN}
        assert (people.call(route, headers) != 403) == allowed, name(route)


@pytest.mark.parametrize("route", [route for route in TABLE if "{agent}" in route.path], ids=name)
def test_a_key_is_shut_out_of_agents_that_are_not_its_own(people: People, route: Route) -> None:
    headers = headers_of_key(people, "admin", agents=["mine", "caf\u00e9"])
    assert people.call(route, headers, "other") == 403
    assert people.call(route, headers, "mine") != 403
    assert people.call(route, headers, "cafe%CC%81") != 403  # the same name in another form


def test_the_routes_are_as_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accounts.md").read_text()
    _, _, rest = page.partition("| permission | routes |\n| --- | --- |\n")
    told = {}
    for line in rest.partition("\n\n")[0].splitlines():
        _, permission, routes, _ = line.split("|")
        told[permission.strip()] = {each.strip() for each in routes.split(",")}
    expected: dict[str, set[str]] = {str(permission): set() for permission in Permission}
    for route in ROUTES:
        expected[route.permission].add(f"`{name(route)}`")
        if route.dry_run is not None:
            expected[route.dry_run].add(f"`{name(route)}` with `dryRun`")
    assert told == expected


def test_refusals_are_in_the_audit_log(people: People) -> None:
    accounts = people.served.accounts
    assert accounts is not None
    refused = next(route for route in TABLE if route.permission is Permission.ADMIN)
    assert people.call(refused, people.headers["Read"]) == 403

    def found() -> list[dict[str, str]]:
        asked = {"result": "forbidden"}
        answer = people.served.client.get("/api/v1/audit-logs", params=asked, headers=people.headers["admin"])
        events: list[dict[str, str]] = answer.json()["events"]
        return events

    wait_until(found)  # it is recorded in a moment
    assert {event["result"] for event in found()} == {"forbidden"}
