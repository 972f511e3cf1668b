"""A server as its operators know it: how it starts, what it tells of itself, what it refuses, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest

from qilbee_core import Episode, SettingsError, StorageFullError, open_store
from qilbeedb.server.app import ROUTES
from qilbeedb.server.request import client_address
from qilbeedb.server.serve import _allow_files
from qilbeedb.server.settings import ServerSettings, ServiceSettings

from .serving import PASSWORD, PATIENCE_S, SCRIPT, Serving, get, login, post, script, serving, wait_until

BODY = {"episodeType": "observation", "content": {"observation": "tea at five"}}
EPHEMERAL = {"storage": {"backend": "ephemeral"}}


def token(url: str, password: str = PASSWORD) -> dict[str, str]:
    answer = post(f"{url}/api/v1/auth/login", json={"username": "admin", "password": password})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


# --- what it tells of itself


def test_health_is_503_with_the_problem_while_writes_fail_and_200_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(EPHEMERAL) as served:
        healthy = served.client.get("/health")
        assert (healthy.status_code, healthy.json()["status"], healthy.json()["problems"]) == (200, "healthy", [])
        assert {"version", "uptime_seconds"} <= set(healthy.json())
        monkeypatch.setattr(served.store._durability, "failure", StorageFullError("the disk is full"))
        ill = served.client.get("/health")
        assert (ill.status_code, ill.json()["status"]) == (503, "unhealthy")
        assert "disk is full" in ill.json()["problems"][0]
        refused = served.client.post("/memory/a/episodes", json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (507, "STORAGE_FULL")
        monkeypatch.undo()
        assert served.client.get("/health").status_code == 200


def test_metrics_count_requests_by_route_and_show_the_store() -> None:
    with serving(EPHEMERAL) as served:
        for _ in range(3):
            served.client.post("/memory/bot/episodes", json=BODY)
        served.client.get("/nothing")
        answer = served.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    path = 'method="POST",path="/memory/{agent}/episodes"'
    assert lines[f'qilbee_requests_total{{{path},status="201"}}'] == "3"
    assert lines['qilbee_requests_total{method="",path="",status="404"}'] == "1"
    assert lines[f'qilbee_request_duration_seconds_bucket{{{path},le="+Inf"}}'] == "3"
    assert lines[f"qilbee_request_duration_seconds_count{{{path}}}"] == "3"
    assert 0 <= int(lines["qilbee_search_pending"]) <= 3
    assert float(lines["qilbee_durability_unsynced_age_ms"]) >= 0
    assert lines["qilbee_healthy"] == "1"
    assert "bot" not in answer.text  # whose memories there are is not for everybody
    names = [line.split()[2] for line in answer.text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_every_request_has_an_id_and_one_that_was_given_is_kept() -> None:
    with serving(EPHEMERAL) as served:
        ids = {served.client.get("/health").headers["x-request-id"] for _ in range(5)}
        assert len(ids) == 5
        given = served.client.get("/nothing", headers={"X-Request-Id": "abc-1.2_3"})
        assert given.headers["x-request-id"] == given.json()["request_id"] == "abc-1.2_3"
        odd = served.client.get("/nothing", headers={"X-Request-Id": "a b"})
        assert odd.headers["x-request-id"] != "a b"


def test_what_nobody_foresaw_is_500_with_an_id_alone_and_the_log_has_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the canary sings")

    with serving(EPHEMERAL) as served:
        monkeypatch.setattr(served.store, "_operations_of", fail)
        answer = served.client.get("/memory/a/statistics")
    assert answer.status_code == 500
    assert answer.json()["code"] == "SERVER"
    assert "canary" not in answer.text
    (record,) = (each for each in caplog.records if each.exc_info and each.name.startswith("qilbeedb"))
    assert answer.json()["request_id"] in record.getMessage()


def test_admin_stats_has_the_figures_of_the_store() -> None:
    with serving(EPHEMERAL) as served:
        found = served.client.get("/admin/stats").json()
    assert found["store"]["backend"] == "ephemeral"
    assert found["server"]["requests_in_flight"] == 1


# --- its limits


def test_more_requests_than_it_takes_are_503_with_retry_after_and_health_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    going = threading.Event()
    asked = threading.Semaphore(0)
    with serving({**EPHEMERAL, "server": {"requests_max": 3, "slow_requests_max": 2}}) as served:
        served.client.post("/memory/a/episodes", json=BODY)
        agents = served.store.agents

        def slow_agents() -> list[str]:
            asked.release()
            assert going.wait(PATIENCE_S)
            return agents()

        monkeypatch.setattr(served.store, "agents", slow_agents)
        answers: list[int] = []

        def ask() -> None:
            answers.append(get(f"{served.client.base_url}/agents").status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
            assert asked.acquire(timeout=PATIENCE_S)
        refused = served.client.get("/agents")
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
            503,
            "UNAVAILABLE",
            "1",
        )
        assert served.client.get("/memory/a/statistics").status_code == 200  # a quick one finds its place
        assert served.client.get("/health").status_code == 200
        going.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert served.client.get("/agents").status_code == 200


def test_what_is_done_is_in_the_audit_log_also_while_too_many_wait_for_accounts() -> None:
    with serving(EPHEMERAL, login=True) as served:
        assert served.accounts is not None
        admin = login(served, "admin")
        places = served.accounts._places
        while places.acquire(blocking=False):
            pass
        assert served.client.get("/api/v1/users", headers=admin).status_code == 503
        assert served.client.delete("/memory/bot", headers=admin).status_code == 200
        for _ in range(100):
            places.release()
        events = served.client.get("/api/v1/audit-logs", headers=admin).json()["events"]
        assert (events[0]["event_type"], events[0]["resource"]) == ("memory_cleared", "bot")


def test_it_may_have_as_many_files_open_as_the_system_allows(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with script(tmp_path) as (process, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_files_for_its_connections_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    told = "too few for server.connections_max"
    _allow_files(2048)
    assert told not in caplog.text
    _allow_files(4096)
    assert f"{told} = 4096" in caplog.text


def test_a_body_may_be_as_large_as_the_setting_says() -> None:
    with serving({**EPHEMERAL, "server": {"body_bytes_max": 2000}}) as served:
        body = json.dumps({**BODY, "metadata": {"x": ""}})
        fits = body.replace('""', '"' + "x" * (2000 - len(body)) + '"')
        headers = {"content-type": "application/json"}
        assert served.client.post("/memory/a/episodes", content=fits, headers=headers).status_code == 201
        assert served.client.post("/memory/a/episodes", content=fits + " ", headers=headers).status_code == 413


# --- HTTP itself


def test_head_is_get_without_its_body() -> None:
    with serving(EPHEMERAL) as served:
        head, whole = served.client.head("/docs"), served.client.get("/docs")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.content))
        assert served.client.get("/health").status_code == 200  # the connection is in step


def test_requests_sent_one_behind_the_other_are_answered_in_their_order() -> None:
    paths = ["/memory/a/statistics", "/nothing", "/agents", "/memory/b/episodes/recent"]
    data = "".join(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n" for path in paths).encode()
    with serving(EPHEMERAL) as served, socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) as connection:
        connection.sendall(data)
        answer = b""
        while answer.count(b"HTTP/1.1") < len(paths) or not answer.endswith(b"}"):
            part = connection.recv(65536)
            assert part, answer
            answer += part
    statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 404, 200, 200]


@pytest.mark.parametrize("head", ["HTTP/1.1\r\nhost: localhost\r\nconnection: close", "HTTP/1.0"])
def test_a_connection_is_closed_where_the_client_wants_it(head: str) -> None:
    with serving(EPHEMERAL) as served, socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) as connection:
        connection.sendall(f"GET /health {head}\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):  # until it is closed
            answer += part
    assert answer.count(b"connection: close") == 1
    assert b'"status":"healthy"' in answer


def test_expect_100_continue_is_answered_before_the_body_is_sent() -> None:
    body = json.dumps(BODY).encode()
    head = "POST /memory/a/episodes HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with serving(EPHEMERAL) as served, socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 201")


def test_an_answer_that_is_larger_than_any_buffer_comes_whole() -> None:
    text = "x" * 500_000
    with serving(EPHEMERAL) as served:
        for _ in range(8):
            served.store.agent_memory("a").store_episode(Episode.observation("a", text))
        with socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) as connection:
            connection.sendall(
                b"GET /memory/a/episodes/recent HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            )
            answer = bytearray()
            while part := connection.recv(65536):
                answer += part
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["episodes"]) == 8


# --- browsers and proxies


def test_cors_is_off_unless_origins_are_listed() -> None:
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    with serving(EPHEMERAL) as served:
        assert served.client.options("/agents", headers=asking).status_code == 405
        assert "access-control-allow-origin" not in served.client.get("/agents", headers=asking).headers
    with serving({**EPHEMERAL, "server": {"cors_origins": ["https://app.example"]}}) as served:
        answer = served.client.options("/agents", headers=asking)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = served.client.get("/agents", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Host": "evil.example"},  # a name of somebody's that leads here
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "[::1"},
    ],
    ids=str,
)
def test_without_login_the_pages_of_others_can_do_nothing(served: Serving, headers: dict[str, str]) -> None:
    # No Content-Type: the browser asks nobody before it sends that.
    answer = served.client.post("/memory/planted/episodes", content=json.dumps(BODY), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "PERMISSION_DENIED")
    assert served.client.get("/agents", headers={"Host": "evil.example"}).status_code == 403
    assert "planted" not in served.client.get("/agents").json()["agents"]


def test_an_address_is_believed_from_a_configured_proxy_alone() -> None:
    forwarded = {"X-Forwarded-For": "192.0.2.7"}
    for proxies, address in (([], "127.0.0.1"), (["127.0.0.0/8"], "192.0.2.7")):
        with serving({**EPHEMERAL, "server": {"trusted_proxies": proxies}}, login=True) as served:
            wrong = {"username": "admin", "password": "not the password"}
            assert served.client.post("/api/v1/auth/login", json=wrong, headers=forwarded).status_code == 401
            right = {"username": "admin", "password": PASSWORD}
            login = served.client.post("/api/v1/auth/login", json=right, headers=forwarded).json()
            admin = {"Authorization": f"Bearer {login['access_token']}"}
            events = served.client.get("/api/v1/audit-logs", headers=admin).json()["events"]
            assert {event["ip_address"] for event in events if event["ip_address"]} == {address}


def test_an_address_is_found_behind_a_proxy_on_a_socket_for_both_families_and_not_looked_for_without_end() -> None:
    ours = (ip_network("10.0.0.0/8"),)
    assert client_address("::ffff:10.0.0.7", {b"x-forwarded-for": b"192.0.2.7"}, ours) == "192.0.2.7"
    many = b"192.0.2.7, " + b"10.0.0.8, " * 5000 + b"10.0.0.9"
    assert client_address("10.0.0.7", {b"x-forwarded-for": many}, ours) == "10.0.0.8"


def test_the_docs_page_loads_nothing_and_names_every_route() -> None:
    with serving(EPHEMERAL) as served:
        page = served.client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "<script" not in page.text
    for route in ROUTES:
        assert f"<code>{route.path}</code>" in page.text


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_commands_of_the_documentation_store_an_episode(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
    (commands,) = (block for block in re.findall(r"```sh\n(.*?)```", document, re.S) if "curl" in block)
    with serving({"storage": {"data_path": str(tmp_path / "data")}}, login=True) as served:
        commands = commands.replace("localhost:7474", f"127.0.0.1:{served.port}").replace('"..."', f'"{PASSWORD}"')
        done = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        found = served.store.agent_memory("my-agent").get_episode(json.loads(done.stdout)["episodeId"])
        assert found is not None
        assert found.content == {"observation": "Tea is served at five."}


# --- TLS


def test_it_speaks_tls_with_a_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl")
    tls = {"tls_certificate": str(certificate), "tls_key": str(key)}
    with serving({**EPHEMERAL, "server": tls}) as served:
        context = ssl.create_default_context(cafile=str(certificate))
        url = f"https://127.0.0.1:{served.port}/health"
        assert get(url, verify=context).json()["status"] == "healthy"
        with pytest.raises(httpx.TransportError):
            get(url.replace("https", "http"))


@pytest.mark.parametrize("text", [None, "", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"])
def test_files_that_tls_cannot_use_are_named_before_anything_is_made(tmp_path: Path, text: str | None) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    if text is not None:
        certificate.write_text(text)
        key.write_text(text)
    tls = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    done = subprocess.run(
        [SCRIPT, "serve", "--data", str(tmp_path / "data"), "--port", "0", *tls],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: TLS cannot use .*certificate\.pem.*: name two PEM files .*\n", done.stderr)
    assert not (tmp_path / "data").exists()


# --- settings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"host": "0.0.0.0"}, "unencrypted"),
        ({"host": "::"}, "unencrypted"),
        ({"host": "example.org"}, "unencrypted"),
        ({"host": "0.0.0.0", "allow_plain_http": True, "insecure_no_login": True}, "everybody"),
        ({"tls_certificate": "x"}, "go together"),
        ({"trusted_proxies": ["10.0.0.0/99"]}, "trusted_proxies"),
        ({"trusted_proxies": "10.0.0.1"}, "trusted_proxies"),
        ({"cors_origins": ["app.example"]}, "cors_origins has 'app.example'"),
        ({"cors_origins": ["https://app.example/"]}, "cors_origins"),
        ({"cors_origins": ["https://App.example"]}, "cors_origins"),
        ({"cors_origins": ["*"]}, "cors_origins"),
        ({"port": 99999}, "port"),
        ({"requests_max": 0}, "requests_max"),
        ({"log_format": "xml"}, "log_format"),
    ],
)
def test_settings_that_are_unsafe_or_make_no_sense_are_refused(given: Mapping[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        ServerSettings(**given)


def test_settings_that_are_safe_are_taken() -> None:
    assert ServerSettings(host="0.0.0.0", allow_plain_http=True).host == "0.0.0.0"
    assert ServerSettings(host="0.0.0.0", tls_certificate="c", tls_key="k").tls_key == "k"
    assert ServerSettings(host="localhost", insecure_no_login=True).insecure_no_login
    environ = {"QILBEE_SERVER_PORT": "8080", "QILBEE_SERVER_CORS_ORIGINS": '["https://a.example"]'}
    loaded = ServiceSettings.load({"server": {"port": 1}, "storage": {"data_path": "d"}}, environ=environ).server
    assert (loaded.port, loaded.cors_origins) == (8080, ["https://a.example"])


def test_a_flag_that_is_wrong_is_named_as_it_was_given(tmp_path: Path) -> None:
    command = [str(SCRIPT), "serve", "--data", str(tmp_path / "data"), "--log-level", "loud"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert refused.returncode == 2
    assert "'--log-level': 'loud' is not one of debug, info" in refused.stderr
    assert "QILBEE" not in refused.stderr
    assert not (tmp_path / "data").exists()


def test_a_flag_beats_a_variable_which_beats_the_file_and_config_check_tells(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[server]\nport = 1\nlog_level = "error"\nlog_requests = "none"\n[storage]\ncompression_type = "zstd"\n'
    )
    arguments = ["--config", str(file), "--insecure-no-login", "--log-level", "debug"]
    with script(tmp_path, *arguments, QILBEE_SERVER_LOG_REQUESTS="all") as (_, url):
        get(f"{url}/agents")
        wait_until(lambda: "path=/agents" in (tmp_path / "log").read_text())
        assert "compression zstd" in (tmp_path / "log").read_text()
    environ = {**os.environ, "QILBEE_SERVER_LOG_REQUESTS": "all"}
    check = [str(SCRIPT), "config", "check", str(file)]
    told = subprocess.run(check, env=environ, capture_output=True, text=True, check=True).stdout
    assert "server.log_requests" in told
    assert "QILBEE_SERVER_LOG_REQUESTS" in told
    file.write_text("[server]\nprot = 1\n")
    wrong = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (wrong.returncode, "did you mean 'port'?" in wrong.stderr) == (1, True)


def test_a_port_that_is_taken_is_said_in_one_line_and_the_store_is_left_alone(tmp_path: Path) -> None:
    with serving(EPHEMERAL) as served:
        command = [str(SCRIPT), "serve", "--data", str(tmp_path / "data"), "--port", str(served.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "cannot listen" in done.stderr
    assert not (tmp_path / "data").exists()


# --- files


def test_what_it_makes_is_for_its_user_alone(tmp_path: Path) -> None:
    with script(tmp_path) as (process, url):
        assert get(f"{url}/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    made = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    assert len(made) > 3
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_the_first_password_is_shown_once_and_is_in_no_file(tmp_path: Path) -> None:
    with script(tmp_path) as (_, url):
        told = (tmp_path / "log").read_text()
        (line,) = (line for line in told.splitlines() if line.startswith("The first administrator"))
        password = line.split()[-1]
        assert token(url, password)
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    with script(tmp_path) as (_, url):
        assert token(url, password)
    assert (tmp_path / "log").read_text().count(password) == 1


# --- ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_clean_with_what_is_under_way_finished(tmp_path: Path, number: signal.Signals) -> None:
    with script(tmp_path, "--insecure-no-login", QILBEE_SEARCH_INDEXING="off") as (process, url):
        answers: list[int] = []
        refused = threading.Event()

        def store() -> None:
            with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
                while not refused.is_set():
                    try:
                        answers.append(client.post("/memory/bot/episodes", json=BODY).status_code)
                    except httpx.ConnectError:
                        refused.set()
                    except httpx.TransportError:
                        # Closed between two requests, or before this one was read: it was not taken.
                        refused.set()

        threads = [threading.Thread(target=store) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) > 100)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        for thread in threads:
            thread.join(PATIENCE_S)
    assert set(answers) == {201}
    with open_store(tmp_path / "data") as kept:
        assert kept.agent_memory("bot").get_statistics().total_episodes == len(answers)
        assert kept.verify().ok
    assert "was not closed" not in (tmp_path / "log").read_text()


def test_a_long_request_is_finished_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, going = threading.Event(), threading.Event()
    with serving(EPHEMERAL) as served:
        agents = served.store.agents

        def slow_agents() -> list[str]:
            asked.set()
            assert going.wait(PATIENCE_S)
            return agents()

        monkeypatch.setattr(served.store, "agents", slow_agents)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(served.client.get("/agents")))
        thread.start()
        assert asked.wait(PATIENCE_S)
        served.server.should_exit = True
        wait_until(lambda: not _listens("127.0.0.1", served.port))
        going.set()
        thread.join(PATIENCE_S)
        assert answers[0].json() == {"agents": []}
        served.thread.join(PATIENCE_S)
        assert served.store.health().problems  # it is closed


def test_a_second_signal_waits_for_no_request_and_the_store_is_closed_all_the_same(tmp_path: Path) -> None:
    with script(tmp_path, "--insecure-no-login") as (process, url):
        assert post(f"{url}/memory/bot/episodes", json=BODY).status_code == 201
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
            connection.sendall(b"POST /memory/bot/episodes HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            assert get(f"{url}/health").status_code == 200
            process.send_signal(signal.SIGINT)
            wait_until(lambda: not _listens(host, int(port)))
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
    with script(tmp_path, "--insecure-no-login"):
        pass
    assert "was not closed" not in (tmp_path / "log").read_text()


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PATIENCE_S).close()
    except OSError:
        return False
    return True


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    stored: set[str] = set()
    for _ in range(3):
        with script(tmp_path, QILBEE_ADMIN_PASSWORD=PASSWORD) as (process, url):
            admin = token(url)
            with httpx.Client(base_url=url, headers=admin, timeout=PATIENCE_S) as client:
                deadline_s = time.monotonic() + 0.3
                while time.monotonic() < deadline_s:
                    episode = Episode.observation("bot", "tea")
                    body = {**BODY, "episodeId": episode.id}
                    assert client.post("/memory/bot/episodes", json=body).status_code == 201
                    stored.add(episode.id)
                process.kill()
                process.wait()
    with open_store(tmp_path / "data") as kept:
        assert stored <= {episode.id for episode in kept.agent_memory("bot").episodes()}
        assert kept.verify().ok


# --- logs


def test_a_line_of_the_log_is_a_line_whatever_is_in_it() -> None:
    from qilbeedb.server.logs import _Line

    record = logging.makeLogRecord(
        {"msg": "a\nb\x1b[31m", "levelname": "INFO", "name": "x", "status": 200, "path": "/\n"}
    )
    text = _Line("text").format(record)
    assert "\n" not in text
    assert "\x1b" not in text
    assert text.endswith("status=200") or "status=200" in text
    entry = json.loads(_Line("json").format(record))
    assert (entry["message"], entry["status"], entry["path"]) == ("a\nb\x1b[31m", 200, "/\n")


def test_nothing_in_a_path_looks_like_another_figure_of_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "qilbeedb")
    with serving({**EPHEMERAL, "server": {"log_requests": "all"}}) as served:
        served.client.get("/memory/a%20status=500/statistics")
    (path,) = {record.path for record in caplog.records if record.getMessage() == "request"}  # type: ignore[attr-defined]
    assert path == "/memory/a%20status=500/statistics"


def test_no_secret_and_no_text_of_an_episode_is_in_the_log(tmp_path: Path) -> None:
    arguments = ("--log-level", "debug", "--log-requests", "all", "--log-format", "json")
    with script(tmp_path, *arguments, QILBEE_ADMIN_PASSWORD=PASSWORD) as (_, url):
        admin = token(url)
        body = {**BODY, "content": {"observation": "the canary in the memory"}}
        assert post(f"{url}/memory/bot/episodes", json=body, headers=admin).status_code == 201
        post(f"{url}/memory/bot/episodes", json={**body, "relevance": 7}, headers=admin)
        post(f"{url}/api/v1/auth/login", json={"username": "admin", "password": "the canary of a password"})
        key = post(f"{url}/api/v1/api-keys", json={"name": "k"}, headers=admin).json()["key"]
        get(f"{url}/agents", headers={"X-API-Key": key})
        wait_until(lambda: '"path":"/agents"' in (tmp_path / "log").read_text())
        log = (tmp_path / "log").read_text()
    for line in log.splitlines():
        json.loads(line)
    for secret in ("canary", PASSWORD, admin["Authorization"].split()[1], key):
        assert secret not in log


def test_without_what_the_server_needs_serve_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['uvicorn'] = None; sys.modules['argon2'] = None; sys.modules['jwt'] = None\n"
        "from qilbeedb.cli import main; sys.argv = ['qilbee', 'serve']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'qilbee-core[server]'" in done.stderr
