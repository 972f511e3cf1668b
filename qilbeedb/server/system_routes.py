"""What the server tells of itself, and what its operators do with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from qilbee_core import JSON, NotFoundError
from qilbeedb.accounts import Permission
from qilbeedb.server import docs_page, metrics, openapi
from qilbeedb.server.route import Call, Reply, Route, route
from qilbeedb.wire import Answer, HealthAnswer, JSONObject, Nothing, SnapshotAnswer, encode

__all__ = ["SYSTEM_ROUTES"]

_VERSION = version("qilbee-core")


class AgentsAnswer(Answer):
    """The agents that have stored anything, as far as the caller may see them; sorted."""

    agents: Sequence[str]


class StatsAnswer(Answer, rename=None):
    """Figures of the store and its engine, and of the server."""

    store: JSONObject
    server: JSONObject


async def health(call: Call[Nothing]) -> Reply | HealthAnswer:
    """Whether writes are taken: 503, with the problems, where they are not."""
    services = call.services
    found = await services.store.health()
    answer = HealthAnswer(
        status="healthy" if found.ok else "unhealthy",
        version=_VERSION,
        uptime_seconds=round(time.monotonic() - services.began_s, 3),
        problems=found.problems,
    )
    return answer if found.ok else Reply(answer, status=503)


async def show_metrics(call: Call[Nothing]) -> Reply:
    """Figures in the text format of Prometheus."""
    services = call.services
    lines = [
        *metrics.requests(services.meters),
        *metrics.exposition(
            "qilbee_requests_in_flight",
            "gauge",
            "Requests that are being answered; slow: those that take a place in the pool.",
            [({"slow": "false"}, services.in_flight), ({"slow": "true"}, services.slow_in_flight)],
        ),
        *metrics.exposition("qilbee_connections", "gauge", "Open connections.", [({}, len(services.connections))]),
        *metrics.exposition(
            "qilbee_uptime_seconds", "gauge", "Age of the server.", [({}, time.monotonic() - services.began_s)]
        ),
        *metrics.exposition(
            "qilbee_healthy", "gauge", "Whether writes are taken.", [({}, (await services.store.health()).ok)]
        ),
    ]
    for path, samples in _figures("qilbee", await services.store.stats()):
        lines += metrics.exposition(path, "gauge", "A figure of the store, see docs/operations.md.", samples)
    return Reply("\n".join([*lines, ""]).encode(), content_type=metrics.CONTENT_TYPE)


def _figures(path: str, value: JSON) -> Iterator[tuple[str, Sequence[metrics.Sample]]]:
    """All numbers in ``value``, each under its path; those of a list by their place in it."""
    if isinstance(value, Mapping):
        for name, its in value.items():
            yield from _figures(f"{path}_{name}", its)
    elif isinstance(value, int | float):
        yield path, [({}, value)]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield path, [({"level": str(level)}, of) for level, of in enumerate(value) if isinstance(of, int | float)]


async def agents(call: Call[Nothing]) -> AgentsAnswer:
    """Whose memories there are."""
    known, own = await call.services.store.agents(), call.principal.agents
    return AgentsAnswer(agents=known if own is None else [agent for agent in known if agent in own])


async def stats(call: Call[Nothing]) -> StatsAnswer:
    """Figures of everything."""
    services = call.services
    return StatsAnswer(
        store=await services.store.stats(),
        server={
            "version": _VERSION,
            "uptime_s": time.monotonic() - services.began_s,
            "connections": len(services.connections),
            "requests_in_flight": services.in_flight,
            "slow_requests_in_flight": services.slow_in_flight,
        },
    )


async def take_snapshot(call: Call[Nothing]) -> SnapshotAnswer:
    """Copy the store, under a name that tells when, into the one directory that the settings name."""
    directory = call.services.settings.server.snapshot_directory
    if directory is None:
        raise NotFoundError("this server takes no snapshots", remedy="start it with server.snapshot_directory")
    path = Path(directory).absolute() / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    return SnapshotAnswer(path=str(path), bytes=await call.services.store.checkpoint(path))


async def show_openapi(call: Call[Nothing]) -> Reply:
    """All that the server answers, for programs."""
    return Reply(_openapi(call.services.table), content_type=b"application/json")


async def show_docs(call: Call[Nothing]) -> Reply:
    """All that the server answers, for people."""
    headers = (
        (b"content-security-policy", docs_page.CONTENT_SECURITY_POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
    )
    return Reply(_docs(call.services.table), content_type=b"text/html; charset=utf-8", headers=headers)


@cache
def _openapi(table: tuple[Route, ...]) -> bytes:
    return encode(openapi.document(table, _VERSION))


@cache
def _docs(table: tuple[Route, ...]) -> bytes:
    return docs_page.page(table, _VERSION)


_P = Permission

SYSTEM_ROUTES = (
    route("GET", "/health", _P.PUBLIC, health, "Whether writes are taken", Nothing, HealthAnswer, also=(503,)),
    route("GET", "/metrics", _P.READ, show_metrics, "Figures for Prometheus", Nothing, None),
    route("GET", "/openapi.json", _P.PUBLIC, show_openapi, "The interface for programs", Nothing, None),
    route("GET", "/docs", _P.PUBLIC, show_docs, "The interface for people", Nothing, None),
    route("GET", "/agents", _P.READ, agents, "Whose memories there are", Nothing, AgentsAnswer, slow=True),
    route("GET", "/admin/stats", _P.ADMIN, stats, "Figures of everything", Nothing, StatsAnswer, slow=True),
    route(
        "POST",
        "/admin/snapshot",
        _P.ADMIN,
        take_snapshot,
        "Copy the store while it is open",
        Nothing,
        SnapshotAnswer,
        status=201,
        slow=True,
        audit="snapshot_taken",
    ),
)
