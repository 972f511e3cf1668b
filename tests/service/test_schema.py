"""The OpenAPI document against the server: requests made from the one, answers of the other held against it.

Every run makes the same few requests of each operation. FUZZ_EXAMPLES=200 makes so many, other ones in each run, from a
seed that a failure shows and that FUZZ_SEED brings back.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import one_of

from qilbeedb.accounts import Permission
from qilbeedb.server.app import ROUTES
from qilbeedb.server.openapi import document
from qilbeedb.server.route import Route

from .serving import PASSWORD, PATIENCE_S, get, raw, script
from .test_hostile import CASES

schemathesis: Any = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SEED = int(os.environ.get("FUZZ_SEED") or secrets.randbits(32))
USUAL_EXAMPLES, WARMING_EXAMPLES = 10, 2
GROWTH_BYTES_MAX = 64 << 20
_checks: Any = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = [
    _checks.status_code_conformance,
    _checks.content_type_conformance,
    _checks.response_schema_conformance,
    _checks.negative_data_rejection,
]
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
SCHEMA = schemathesis.openapi.from_dict(document(ROUTES, "1"))


class Fuzzed(NamedTuple):
    """A server in a process of its own, and who may do everything there."""

    url: str
    port: int
    pid: int
    headers: dict[str, str]

    def resident_bytes(self) -> int:
        """What it has in RAM."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def fuzz(self, route: Route, examples: int) -> None:
        """Send so many requests of one operation, right ones and wrong ones."""
        operation = SCHEMA[route.path][route.method]
        modes = [POSITIVE, NEGATIVE] if route.takes.__struct_fields__ else [POSITIVE]

        @given(case=one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes)))
        @settings(
            max_examples=examples,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        def send(case: Any) -> None:
            answer = case.call(base_url=self.url, headers=self.headers, timeout=PATIENCE_S)
            assert answer.status_code < 500, answer.text
            case.validate_response(answer, checks=CHECKS)

        (seed(SEED)(send) if EXAMPLES else send)()


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[Fuzzed]:
    """A server with login and without rate limits."""
    with script(tmp_path, QILBEE_ADMIN_PASSWORD=PASSWORD) as (process, url):
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            password = {"username": "admin", "password": PASSWORD}
            token = client.post("/api/v1/auth/login", json=password).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            for policy in client.get("/api/v1/rate-limits").json()["policies"]:
                assert client.delete(f"/api/v1/rate-limits/{policy['id']}").status_code == 200
            allowed = [permission for permission in Permission if permission is not Permission.PUBLIC]
            made = client.post("/api/v1/api-keys", json={"name": "fuzz", "permissions": allowed})
            assert made.status_code == 201, made.text
            # The first search loads the table of words: 50 MB, once.
            body = {"episodeType": "observation", "content": {"observation": "tea at five"}}
            assert client.post("/memory/bot/episodes", json=body).status_code == 201
            found = client.post("/memory/bot/episodes/hybrid-search", json={"query": "when is tea?"})
            assert len(found.json()["results"]) == 1
        yield Fuzzed(url, int(url.rpartition(":")[2]), process.pid, {"X-API-Key": made.json()["key"]})
        assert process.poll() is None
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_every_operation_answers_as_the_document_says_and_takes_little_memory(fuzzed: Fuzzed) -> None:
    print(f"FUZZ_SEED={SEED}")  # noqa: T201  # of use with FUZZ_EXAMPLES alone
    for examples in (WARMING_EXAMPLES, EXAMPLES or USUAL_EXAMPLES):
        for case in CASES:
            raw(fuzzed.port, case.data)
        before_bytes = fuzzed.resident_bytes()
        for route in ROUTES:
            fuzzed.fuzz(route, examples)
    for case in CASES:
        raw(fuzzed.port, case.data)
    assert fuzzed.resident_bytes() - before_bytes < GROWTH_BYTES_MAX
    assert get(f"{fuzzed.url}/health").json()["status"] == "healthy"
