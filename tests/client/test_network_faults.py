"""What networks and crashes do between client and server: what was to be stored is stored, once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from shared.ports import ReservedPort

from qilbeedb import AsyncQilbeeDB, QilbeeDB
from qilbeedb.exceptions import OutcomeUnknownError, QilbeeError, UnavailableError
from qilbeedb.memory import JSON, Episode

from .proxy import FAULTS, Fault, Proxy
from .serving import PASSWORD, Server

STORES = 200
_AT_ONCE = 8


def config(url: str, *, retries: int = 12) -> dict[str, object]:
    return {"uri": url, "retries": retries}


def impatient(url: str) -> dict[str, object]:
    """For answers that are late. It gives up early, but not so early that a busy machine is too late by itself."""
    return {**config(url), "timeout": 1.0}


def contents(url: str, agent: str) -> Counter[JSON]:
    """How often each content is stored, asked without a proxy between."""
    with QilbeeDB(url) as db:
        db.login("admin", PASSWORD)
        memory = db.agent_memory(agent)
        found = Counter(episode.content["number"] for episode in memory.episodes())
        assert memory.get_statistics().total_episodes == found.total()
        return found


def store_all(target: dict[str, object], agent: str) -> list[str]:
    """Store 200 episodes with some at once."""
    with QilbeeDB(target) as db, ThreadPoolExecutor(_AT_ONCE) as pool:
        db.login("admin", PASSWORD)
        memory = db.agent_memory(agent)
        episodes = [Episode(agent, "count", {"number": number}) for number in range(STORES)]
        ids = list(pool.map(memory.store_episode, episodes))
        assert ids == [episode.id for episode in episodes]
        return ids


async def store_all_async(target: dict[str, object], agent: str) -> list[str]:
    async with AsyncQilbeeDB(target) as db:
        await db.login("admin", PASSWORD)
        memory = db.agent_memory(agent)
        turn = asyncio.Semaphore(_AT_ONCE)

        async def store(number: int) -> str:
            async with turn:
                return await memory.store_episode(Episode(agent, "count", {"number": number}))

        return await asyncio.gather(*map(store, range(STORES)))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_store_is_stored_once_whatever_the_network_does(server: Server, fault: Fault) -> None:
    with Proxy(server.port, fault, late_s=2.5) as proxy:
        store_all(impatient(proxy.url) if fault == "late" else config(proxy.url), f"sync {fault}")
    assert proxy.struck > STORES // 10
    assert contents(server.url, f"sync {fault}") == Counter[JSON](range(STORES))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_faults_would_store_twice_what_has_no_id_of_its_own(server: Server, fault: Fault) -> None:
    agent, stored = f"naive {fault}", 0
    with QilbeeDB(server.url) as db:
        db.login("admin", PASSWORD)
        headers = db._place.credentials.headers  # type: ignore[union-attr]
    with Proxy(server.port, fault, late_s=0.2) as proxy, httpx.Client(base_url=proxy.url, timeout=0.1) as http:
        while stored < 50:
            body = {"agentId": agent, "episodeType": "count", "content": {"number": stored}}
            with suppress(httpx.TransportError):
                stored += http.post(f"/memory/{agent}/episodes", json=body, headers=headers).is_success
    assert contents(server.url, agent).total() > 50


@pytest.mark.parametrize("fault", FAULTS)
def test_each_store_is_stored_once_with_asyncio_too(server: Server, fault: Fault) -> None:
    with Proxy(server.port, fault, late_s=2.5) as proxy:
        target = impatient(proxy.url) if fault == "late" else config(proxy.url)
        ids = asyncio.run(store_all_async(target, f"async {fault}"))
    assert proxy.struck > STORES // 10
    assert len(set(ids)) == STORES
    assert contents(server.url, f"async {fault}") == Counter[JSON](range(STORES))


@pytest.mark.parametrize("fault", [None, "dropped", "reset"])
def test_each_store_is_stored_once_while_the_server_is_killed(tmp_path: Path, fault: Fault | None) -> None:
    with Server(tmp_path) as server, Proxy(server.port, fault) as proxy:
        is_done = threading.Event()

        def kill_now_and_then() -> int:
            kills = 0
            for requests in (20, 70, 120):
                while proxy.requests < requests:
                    if is_done.wait(0.001):
                        return kills
                server.kill()
                server.start()
                kills += 1
            return kills

        with ThreadPoolExecutor(1) as pool:
            killing = pool.submit(kill_now_and_then)
            try:
                store_all(config(proxy.url, retries=50), "agent")
            finally:
                is_done.set()
            assert killing.result() > 0
        assert contents(server.url, "agent") == Counter[JSON](range(STORES))
        server.kill()
        server.start()
        assert contents(server.url, "agent") == Counter[JSON](range(STORES))


@pytest.fixture
def shaky(server: Server) -> Iterator[Proxy]:
    """A proxy that throws half of all answers away."""
    with Proxy(server.port, "dropped", share=0.5) as proxy:
        yield proxy


def test_batches_updates_and_deletions_happen_once_too(shaky: Proxy, server: Server) -> None:
    with QilbeeDB(config(shaky.url)) as db:
        db.login("admin", PASSWORD)
        memory = db.agent_memory("batches")
        episodes = [Episode("batches", "count", {"number": number}) for number in range(40)]
        for start in range(0, 40, 4):
            memory.store_episodes(episodes[start : start + 4])
        assert contents(server.url, "batches") == Counter[JSON](range(40))
        for episode in episodes[:10]:
            memory.update_episode(episode.id, content={"number": -1})
            assert len(memory.history(episode.id)) == 1
            assert memory.pin(episode.id).pinned
        assert all(memory.delete_episode(episode.id) for episode in episodes[:20])
        assert shaky.struck > 20
    assert contents(server.url, "batches") == Counter[JSON](range(20, 40))


def test_what_would_happen_twice_is_told_instead_of_repeated(server: Server) -> None:
    with QilbeeDB(server.url) as db:
        db.login("admin", PASSWORD)
        memory = db.agent_memory("boosts")
        id_ = memory.store_episode(Episode.observation("boosts", "faint", relevance=0.2))
    with Proxy(server.port, None) as proxy, QilbeeDB(config(proxy.url)) as db:
        db.login("admin", PASSWORD)
        proxy.strike("dropped")
        with pytest.raises(OutcomeUnknownError, match="look whether it was done"):
            db.agent_memory("boosts").boost(id_, 0.5)
        proxy.relent()
        found = db.agent_memory("boosts").get_episode(id_)
        assert found is not None
        assert found.relevance == pytest.approx(0.6, abs=1e-2)  # once


def test_a_server_that_is_not_there_is_an_error_that_names_it() -> None:
    with closing(ReservedPort()) as port, QilbeeDB(config(f"http://127.0.0.1:{port.number}", retries=1)) as db:
        memory = db.agent_memory("bot")
        with pytest.raises(UnavailableError, match="ConnectError"):
            memory.store_episode(Episode.observation("bot", "nobody hears"))
        with pytest.raises(QilbeeError):
            memory.get_statistics()
        with pytest.raises(UnavailableError):
            db.login("admin", PASSWORD)
