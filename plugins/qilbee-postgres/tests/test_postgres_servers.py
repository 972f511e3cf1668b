"""Several servers on one database: what one of them is told about accounts holds on all, at once."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from postgres_server import Server, fresh_url, needs_postgres

pytest.importorskip("uvicorn", reason="the extra server is not installed")

from postgres_serving import PASSWORD, PATIENCE_S, log_in, serving

from qilbee_core import Episode, SettingsError, open_store
from qilbeedb.accounts import Accounts, AccountSettings, Caller, audit

pytestmark = needs_postgres

NOTE = {"episodeType": "observation", "content": {"observation": "tea at five"}}


class Servers:
    """Two servers, an administrator who has logged in at the first, and the database of both."""

    def __init__(self, one: httpx.Client, other: httpx.Client, url: str, secret_file: Path) -> None:
        self.one = one
        self.other = other
        self.url = url
        self.secret_file = secret_file
        self.admin = log_in(one, "admin")

    @contextmanager
    def accounts(self) -> Iterator[Accounts]:
        """The accounts of both, without a server."""
        with open_store(self.url) as store:
            accounts = Accounts.open(store, AccountSettings(secret_file=str(self.secret_file)))
            yield accounts
            accounts.close()

    def new_user(self, *roles: str) -> tuple[str, str]:
        """Name and id of a new user."""
        name = f"u{uuid.uuid4().hex[:12]}"
        body = {"username": name, "password": PASSWORD, "roles": roles or ["Developer"]}
        answer = self.one.post("/api/v1/users", json=body, headers=self.admin)
        assert answer.status_code == 201, answer.text
        return name, answer.json()["id"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    directory, url = tmp_path_factory.mktemp("servers"), fresh_url()
    with serving(directory, url) as (one, other):
        yield Servers(one, other, url, directory / "secret")


def status(client: httpx.Client, headers: dict[str, str]) -> int:
    return client.get("/memory/bot/episodes", headers=headers).status_code


def test_servers_that_start_at_once_make_one_administrator_who_is_known_to_both(servers: Servers) -> None:
    users = servers.other.get("/api/v1/users", headers=servers.admin).json()["users"]
    assert [user["username"] for user in users].count("admin") == 1
    assert log_in(servers.other, "admin")


def test_users_and_keys_made_at_one_are_good_at_the_other(servers: Servers) -> None:
    name, _ = servers.new_user()
    token = log_in(servers.other, name)
    assert status(servers.one, token) == status(servers.other, token) == 200
    key = servers.other.post("/api/v1/api-keys", json={"name": "k"}, headers=token).json()["key"]
    assert status(servers.one, {"X-API-Key": key}) == status(servers.other, {"X-API-Key": key}) == 200


def test_whoever_is_revoked_at_one_is_refused_by_the_other_with_the_next_request(servers: Servers) -> None:
    name, user_id = servers.new_user()
    token, session = log_in(servers.one, name), log_in(servers.other, name)
    made = servers.one.post("/api/v1/api-keys", json={"name": "k"}, headers=token).json()
    key = {"X-API-Key": made["key"]}
    # Each was good at the other server just before, which remembers that.
    assert [status(servers.other, headers) for headers in (token, key, session)] == [200, 200, 200]
    servers.one.delete(f"/api/v1/api-keys/{made['id']}", headers=token).raise_for_status()
    assert [status(servers.other, headers) for headers in (token, key, session)] == [200, 401, 200]
    servers.one.post("/api/v1/auth/logout", headers=session).raise_for_status()
    assert [status(servers.other, headers) for headers in (token, session)] == [200, 401]
    servers.one.put(f"/api/v1/users/{user_id}", json={"is_active": False}, headers=servers.admin).raise_for_status()
    assert status(servers.other, token) == 401


def test_a_role_that_was_taken_away_at_one_is_gone_at_the_other(servers: Servers) -> None:
    name, user_id = servers.new_user("Admin")
    token = log_in(servers.other, name)
    assert servers.other.get("/api/v1/users", headers=token).status_code == 200
    body = {"roles": ["Read"]}
    servers.one.put(f"/api/v1/users/{user_id}/roles", json=body, headers=servers.admin).raise_for_status()
    assert servers.other.get("/api/v1/users", headers=token).status_code == 403


def test_failed_logins_at_all_servers_count_together_and_so_does_the_lock(servers: Servers) -> None:
    name, _ = servers.new_user()
    body = {"username": name, "password": "wrong password"}
    answers = [
        client.post("/api/v1/auth/login", json=body).status_code
        for client in (servers.one, servers.other, servers.one, servers.other, servers.one)
    ]
    assert answers == [401] * 5
    right = {"username": name, "password": PASSWORD}
    assert [each.post("/api/v1/auth/login", json=right).status_code for each in (servers.one, servers.other)] == [
        429,
        429,
    ]
    servers.other.delete(f"/api/v1/lockouts/{name}", headers=servers.admin).raise_for_status()
    assert log_in(servers.one, name)


def test_a_limit_that_is_set_at_one_holds_at_the_other(servers: Servers) -> None:
    body = {"name": "few", "endpoint_type": {"Custom": "/memory/limited"}, "max_requests": 2, "window_secs": 3600}
    servers.one.post("/api/v1/rate-limits", json=body, headers=servers.admin).raise_for_status()
    asked = [servers.other.get("/memory/limited/episodes", headers=servers.admin).status_code for _ in range(3)]
    assert asked == [200, 200, 429]


def test_of_two_administrators_who_are_demoted_at_two_servers_at_once_one_stays(servers: Servers) -> None:
    with servers.accounts() as accounts:
        admin = accounts.users.named("admin").id
        for _ in range(5):
            _, second = servers.new_user("Admin")
            with ThreadPoolExecutor(2) as pool:
                for future in [
                    pool.submit(
                        client.put, f"/api/v1/users/{user}/roles", json={"roles": ["Read"]}, headers=servers.admin
                    )
                    for client, user in ((servers.one, admin), (servers.other, second))
                ]:
                    assert future.result().status_code in (200, 403, 409)
            left = {user.id for user in accounts.users.all() if "Admin" in user.roles}
            assert len(left) == 1
            if left == {second}:
                accounts.users.update(Caller(), admin, roles=["Admin"])
                accounts.users.update(Caller(), second, roles=["Read"])


def test_the_audit_chain_is_whole_though_all_append_to_it_at_once(servers: Servers) -> None:
    names = [servers.new_user()[0] for _ in range(4)]

    def fail(client: httpx.Client, name: str) -> None:
        for _ in range(4):
            body = {"username": name, "password": "wrong password"}
            assert client.post("/api/v1/auth/login", json=body).status_code == 401

    with ThreadPoolExecutor(4) as pool:
        for future in [
            pool.submit(fail, client, name)
            for client, name in zip((servers.one, servers.other) * 2, names, strict=True)
        ]:
            future.result()
    with servers.accounts() as accounts:
        report = audit.verify(accounts.tables)
        events = audit.query(accounts.tables, limit=10_000, event_type="login_failed")
    assert report.problems == []
    counted = Counter(event.username for event in events)
    assert [counted[name] for name in names] == [4] * 4


def test_two_servers_and_an_embedded_writer_lose_nothing_of_one_agent(servers: Servers) -> None:
    count = 25

    def send(clients: Sequence[httpx.Client], name: str) -> None:
        for number in range(count):
            body = {**NOTE, "content": {"observation": f"{name} {number}"}, "idempotencyKey": f"{name} {number}"}
            for client in clients:  # to the second one under the same key: stored once
                client.post("/memory/shared/episodes", json=body, headers=servers.admin).raise_for_status()

    with open_store(servers.url) as store, ThreadPoolExecutor(2) as pool:
        memory = store.agent_memory("shared")
        both = (servers.one, servers.other)
        sending = [pool.submit(send, both, "one"), pool.submit(send, both[::-1], "other")]
        for number in range(count):
            memory.store_episode(Episode.observation("shared", f"mine {number}"))
        for future in sending:
            future.result()
        found = Counter(str(each.content["observation"]) for each in memory.episodes())
        assert found == Counter(f"{name} {number}" for name in ("one", "other", "mine") for number in range(count))
        assert memory.get_statistics().total_episodes == 3 * count
        assert store.verify().problems == []


def test_a_server_without_the_secret_of_the_others_is_refused() -> None:
    with open_store(fresh_url()) as store, pytest.raises(SettingsError, match="secret_file"):
        Accounts.open(store)


def test_health_is_answered_and_true_while_the_database_is_frozen(tmp_path: Path) -> None:
    server = Server()
    try:
        with serving(tmp_path, server.database("memory")) as clients:
            token = log_in(clients[0], "admin")
            for client in clients:
                client.post("/memory/bot/episodes", json=NOTE, headers=token).raise_for_status()
                assert client.get("/health").json()["problems"] == []
            with ThreadPoolExecutor(2 * len(clients)) as pool:
                server.freeze()
                try:
                    # One that has to be let in first, and stores.
                    asked = [
                        pool.submit(client.post, "/memory/bot/episodes", json=NOTE, headers=token) for client in clients
                    ]
                    for client in clients:
                        _until(lambda: client.get("/health").status_code == 503)  # noqa: B023
                        (problem,) = client.get("/health").json()["problems"]
                        assert "has not answered for" in problem
                    assert not any(future.done() for future in asked)
                finally:
                    server.thaw()
                assert [future.result().status_code for future in asked] == [201] * len(clients)
            for client in clients:  # whoever else has waited for an answer gets it in a moment too
                _until(lambda: client.get("/health").json()["problems"] == [])  # noqa: B023
    finally:
        server.stop()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
