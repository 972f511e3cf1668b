"""The routes of accounts over HTTP: the keys of every answer, and hostile bodies."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from qilbeedb.accounts import Caller

from .serving import PASSWORD, PATIENCE_S, Serving, serving

USER = {"id", "username", "email", "roles", "agents", "is_active", "created_at", "updated_at", "last_login"}
KEY = {"id", "prefix", "name", "user_id", "created_at", "expires_at", "agents", "permissions"}
POLICY = {"id", "name", "endpoint_type", "max_requests", "window_secs", "enabled", "created_at", "updated_at"}
EVENT = {"event_id", "event_type", "timestamp", "user_id", "username", "action", "resource", "result", "ip_address"}
STATUS = {"locked", "failed_attempts", "remaining_attempts", "lockout_expires", "lockout_remaining_seconds"}
STATUS |= {"lockout_count", "lockout_reason"}


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with serving({"storage": {"backend": "ephemeral"}}, login=True) as served:
        assert served.accounts is not None
        for policy in served.accounts.policies.all():
            served.accounts.policies.delete(Caller(), policy.id)
        yield served


@pytest.fixture
def api(running: Serving) -> httpx.Client:
    """A client that is logged in as the administrator."""
    client = running.client
    client.headers.pop("Authorization", None)
    answer = client.post("/api/v1/auth/login", json={"username": "admin", "password": PASSWORD})
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    return client


@pytest.fixture
def stranger(running: Serving) -> Iterator[httpx.Client]:
    """A client without credentials."""
    with httpx.Client(base_url=running.client.base_url, timeout=PATIENCE_S) as client:
        yield client


def told(answer: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_sessions_have_the_keys_of_the_interface(api: httpx.Client) -> None:
    tokens = told(api.post("/api/v1/auth/login", json={"username": "admin", "password": PASSWORD}))
    assert {*tokens} == {
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
        "refresh_expires_in",
        "username",
        "user_id",
    }
    again = told(api.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]}))
    assert {"access_token", "token_type", "expires_in"} <= set(again)
    for path, body in (
        ("revoke", {"token": again["access_token"]}),
        ("revoke", {"token": again["refresh_token"]}),
        ("logout", None),
    ):
        answer = told(api.post(f"/api/v1/auth/{path}", json=body))
        assert (answer["success"], set(answer)) == (True, {"success", "message"})
    assert api.get("/api/v1/users").status_code == 401


def test_users_and_keys_have_the_keys_of_the_interface(api: httpx.Client, stranger: httpx.Client) -> None:
    body = {"username": "ann", "password": PASSWORD, "email": "ann@example.org", "roles": ["Agent"]}
    user = told(api.post("/api/v1/users", json=body), 201)
    assert set(user) == USER
    assert datetime.fromisoformat(user["created_at"]).tzinfo is not None
    path = f"/api/v1/users/{user['id']}"
    assert told(api.get(path)) == user
    assert user in told(api.get("/api/v1/users"))["users"]
    assert told(api.put(path, json={"password": "another password"}))["id"] == user["id"]
    assert told(api.put(f"{path}/roles", json={"roles": ["Read"]}))["roles"] == ["Read"]
    assert told(api.put(path, json={"is_active": False}))["is_active"] is False
    assert told(api.post("/api/v1/auth/revoke-all", json={"user_id": user["id"], "reason": "test"}))["success"]
    assert told(api.delete(path))["success"]
    for answer in (api.get(path), api.delete(path), api.put(path, json={})):
        assert told(answer, 404)["code"] == "NOT_FOUND"
    made = told(api.post("/api/v1/api-keys", json={"name": "laptop"}), 201)
    assert set(made) == {*KEY, "key"}
    assert [set(key) for key in told(api.get("/api/v1/api-keys"))["keys"]] == [KEY]
    assert stranger.get("/agents", headers={"X-API-Key": made["key"]}).status_code == 200
    assert told(api.delete(f"/api/v1/api-keys/{made['id']}"))["success"]
    assert stranger.get("/agents", headers={"X-API-Key": made["key"]}).status_code == 401
    assert api.delete(f"/api/v1/api-keys/{made['id']}").status_code == 404


def test_lockouts_and_the_log_have_the_keys_of_the_interface(api: httpx.Client, stranger: httpx.Client) -> None:
    told(api.post("/api/v1/users", json={"username": "bob", "password": PASSWORD}), 201)
    for _ in range(5):
        told(stranger.post("/api/v1/auth/login", json={"username": "bob", "password": "wrong"}), 401)
    refused = stranger.post("/api/v1/auth/login", json={"username": "bob", "password": PASSWORD})
    assert told(refused, 429)["code"] == "RATE_LIMITED"
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    locked = told(api.get("/api/v1/lockouts"))
    assert (locked["count"], [user["username"] for user in locked["locked_users"]]) == (1, ["bob"])
    status = told(api.get("/api/v1/lockouts/bob"))
    assert (set(status), set(status["status"])) == ({"username", "status"}, STATUS)
    assert told(api.delete("/api/v1/lockouts/bob"))["success"]
    told(api.delete("/api/v1/lockouts/bob"), 404)
    assert told(api.post("/api/v1/lockouts/bob/lock", json={"reason": "test"}))["success"]
    assert told(api.post("/api/v1/lockouts/bob/lock", json={}))["success"]
    log = told(api.get("/api/v1/audit-logs", params={"event_type": "login_failed", "limit": 3}))
    assert set(log) == {"events", "count", "limit"}
    assert (log["count"], log["limit"]) == (3, 3)
    assert {frozenset(event) for event in log["events"]} == {frozenset({*EVENT, "user_agent", "metadata"})}
    assert {event["ip_address"] for event in log["events"]} == {"127.0.0.1"}
    assert told(api.get("/api/v1/audit-logs", params={"start_time": "2999-01-01T00:00:00"}))["events"] == []


def test_limits_have_the_keys_of_the_interface(api: httpx.Client) -> None:
    policy = {"name": "x", "endpoint_type": {"Custom": "/x"}, "max_requests": 1, "window_secs": 60, "enabled": True}
    made = told(api.post("/api/v1/rate-limits", json=policy), 201)
    assert set(made) == {*POLICY, "created_by"}
    assert {key: made[key] for key in policy} == policy
    path = f"/api/v1/rate-limits/{made['id']}"
    assert told(api.get(path)) == made
    assert told(api.get("/api/v1/rate-limits"))["policies"] == [made]
    assert told(api.put(path, json={"enabled": False}))["enabled"] is False
    assert told(api.delete(path))["success"]


def test_a_path_that_is_limited_is_429_with_the_time_to_wait(api: httpx.Client) -> None:
    policy = {"name": "x", "endpoint_type": {"Custom": "/memory/bot"}, "max_requests": 2, "window_secs": 60}
    made = told(api.post("/api/v1/rate-limits", json=policy), 201)
    answers = [api.get("/memory/bot/statistics") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["Retry-After"]) <= 60
    assert api.get("/memory/other/statistics").status_code == 200
    told(api.delete(f"/api/v1/rate-limits/{made['id']}"))


BODIES = [
    b"null",
    b"[]",
    b"{",
    b'"text"',
    b'{"username": NaN, "password": "x"}',
    b'{"username": "\\ud800", "password": "\\ud800"}',
    b'{"username": "\xff", "password": "x"}',
    b'{"username": 7, "password": ["x"]}',
    b'{"username": null, "password": null}',
    b'{"username": "x", "password": "' + b"x" * 1_000_000 + b'"}',
    b'{"username": "' + b"x" * 5000 + b'", "password": "x"}',
    b'{"token": {"a": "b.c"}}',
    b'{"token": "' + b"." * 5000 + b'"}',
    b'{"refresh_token": "\\u0000.\\u0000"}',
    b'{"refresh_token": "' + "é".encode() * 500 + b'"}',
    b'{"name": "x", "expires_in_days": 1e308}',
    b'{"name": "x", "expires_in_days": 10000000000000000000000000}',
    b'{"name": "x", "agents": ["\\ud800"]}',
    b'{"name": "x", "permissions": [{"a": 1}]}',
    b'{"name": "x", "endpoint_type": {"Custom": 1}, "max_requests": 1, "window_secs": 1}',
    b'{"name": "x", "endpoint_type": [], "max_requests": 1, "window_secs": 1}',
    b'{"name": "\\u001b[2J", "endpoint_type": "Login", "max_requests": 1, "window_secs": 1}',
    b'{"roles": [' + b"[" * 1000 + b"]" * 1000 + b"]}",
    b'{"roles": ["Root"]}',
    b'{"reason": {}}',
    b'{"unknown": 1}',
]
ROUTES = [
    ("POST", "/api/v1/auth/login"),
    ("POST", "/api/v1/auth/refresh"),
    ("POST", "/api/v1/auth/revoke"),
    ("POST", "/api/v1/auth/revoke-all"),
    ("POST", "/api/v1/auth/password"),
    ("POST", "/api/v1/users"),
    ("PUT", "/api/v1/users/x"),
    ("PUT", "/api/v1/users/%00/roles"),
    ("POST", "/api/v1/api-keys"),
    ("POST", "/api/v1/lockouts/nobody/lock"),
    ("POST", "/api/v1/rate-limits"),
    ("PUT", "/api/v1/rate-limits/x"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=str)
def test_a_hostile_body_is_refused_as_json_and_never_500(api: httpx.Client, method: str, path: str) -> None:
    for body in BODIES:
        answer = api.request(method, path, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, (body[:80], answer.text)
        assert answer.status_code not in {403, 405}
        assert {"error", "code"} <= set(json.loads(answer.content))


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/users/%00",
        "/api/v1/users/..%2Fadmin",
        "/api/v1/users/" + "x" * 5000,
        "/api/v1/rate-limits/%ff",
        "/api/v1/audit-logs?limit=0",
        "/api/v1/audit-logs?limit=1001",
        "/api/v1/audit-logs?limit=x",
        "/api/v1/audit-logs?start_time=yesterday",
        "/api/v1/audit-logs?result=other",
        "/api/v1/audit-logs?other=1",
        "/api/v1/lockouts/%ff",
    ],
    ids=lambda path: path[:50],
)
def test_a_hostile_path_or_query_is_refused_as_json(api: httpx.Client, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code in {400, 404}, answer.text
    assert {"error", "code"} <= set(answer.json())


def test_any_name_may_be_asked_for(api: httpx.Client) -> None:
    for username in ("%00", "x" * 5000, "caf%C3%A9", "a%2Fb"):
        assert told(api.get(f"/api/v1/lockouts/{username}"))["status"]["locked"] is False


def test_no_secret_is_in_a_log_line_or_an_answer_but_the_one_that_gives_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    table = {"log_requests": "all", "log_level": "debug"}
    secrets = [PASSWORD, "canary-of-ann", "canary-in-vain", "canary-as-a-name"]
    with serving({"storage": {"backend": "ephemeral"}, "server": table}, login=True) as served:
        client = served.client
        tokens = told(client.post("/api/v1/auth/login", json={"username": "admin", "password": PASSWORD}))
        secrets += [tokens["access_token"].rpartition(".")[2], tokens["refresh_token"].partition(".")[2]]
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        made = told(client.post("/api/v1/api-keys", json={"name": "key"}), 201)
        secrets.append(made["key"][45:])
        user = {"username": "ann", "password": "canary-of-ann", "roles": ["Read"]}
        answers = [
            client.post("/api/v1/users", json=user),
            client.post("/api/v1/users", json=user),
            client.post("/api/v1/users", json={**user, "email": "canary-in-vain"}),
            client.post("/api/v1/auth/login", json={"username": "ann", "password": "canary-in-vain"}),
            client.post("/api/v1/auth/login", json={"username": "canary-as-a-name", "password": "canary-in-vain"}),
            client.post("/api/v1/auth/login", content=b'{"username": "ann", "password": ["canary-in-vain"]}'),
            client.get("/agents", headers={"X-API-Key": made["key"] + "x"}),
            client.get("/agents", headers={"Authorization": "Basic canary-in-vain"}),
            client.get("/agents", params={"token": "canary-in-vain"}),
            client.get("/api/v1/audit-logs", params={"limit": 1000}),
            client.get("/api/v1/api-keys"),
            client.get("/api/v1/users"),
            client.get("/metrics"),
            client.get("/admin/stats"),
            # Which ends the session.
            client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"] + "x"}),
        ]
        assert [answer.status_code for answer in answers[-5:]] == [200] * 4 + [401]
    # The client of the test logs too, and what it asks for.
    ours = [record for record in caplog.records if record.name.startswith(("qilbee", "uvicorn"))]
    logged = [record.getMessage() + repr(record.__dict__) for record in ours]
    assert any("/api/v1/auth/login" in line for line in logged)
    for text in (*logged, *(answer.text for answer in answers)):
        for secret in secrets:
            assert secret not in text
