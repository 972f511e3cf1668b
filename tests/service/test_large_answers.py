"""No answer takes more bytes than the settings say: it ends early, says so, and what it leaves can be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import Episode
from qilbeedb.server.memory_routes import MEMORY_ROUTES
from qilbeedb.wire import EpisodesAnswer, HistoryAnswer, ResultsAnswer, SearchAnswer

from .serving import Serving, serving

BYTES_MAX = 20_000
HEAD_BYTES = 8_000
"""What an answer may have beside its episodes: the ids and scores of up to so many that it leaves."""
AGENT = "/memory/large"
QUESTION = {"query": "heron", "limit": 1000}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    directory: Path = tmp_path_factory.mktemp("served") / "data"
    tables: dict[str, dict[str, object]] = {
        "storage": {"data_path": str(directory)},
        "search": {"indexing": "background"},
        "server": {"answer_bytes_max": BYTES_MAX},
    }
    with serving(tables) as running:
        memory = running.store.agent_memory("large")
        memory.store_episodes([Episode.observation("large", f"heron {'x' * 4000} {number}") for number in range(30)])
        yield running


@pytest.fixture
def ids(served: Serving) -> list[str]:
    """Of all there are, the oldest first."""
    return [episode.id for episode in served.store.agent_memory("large").episodes()]


ROUTES: dict[tuple[str, str], Any] = {
    ("GET", "/memory/{agent}/episodes"): {"limit": 1000},
    ("GET", "/memory/{agent}/episodes/recent"): {"limit": 1000},
    ("POST", "/memory/{agent}/episodes/get"): None,
    ("POST", "/memory/{agent}/episodes/search"): QUESTION,
    ("POST", "/memory/{agent}/episodes/semantic-search"): QUESTION,
    ("POST", "/memory/{agent}/episodes/hybrid-search"): QUESTION,
    ("GET", "/memory/{agent}/episodes/{id}/history"): {},
    ("GET", "/memory/{agent}/episodes/{id}/similar"): {"limit": 1000},
    ("POST", "/memory/{agent}/recall"): {"limit": 1000},
}


def test_each_route_that_gives_several_episodes_is_tried_here() -> None:
    several = {EpisodesAnswer, HistoryAnswer, ResultsAnswer, SearchAnswer}
    assert {(route.method, route.path) for route in MEMORY_ROUTES if route.gives in several} == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_answer_ends_where_it_would_be_too_large_and_says_so(
    served: Serving, ids: list[str], method: str, path: str
) -> None:
    given = ROUTES[method, path]
    if path.endswith("/history"):
        for number in range(30):
            served.client.patch(
                f"{AGENT}/episodes/{ids[0]}", json={"content": {"observation": f"heron {'y' * 4000} {number}"}}
            )
    given = {"ids": ids} if given is None else given
    query, body = (given, None) if method == "GET" else (None, given)
    answer = served.client.request(method, path.format(agent="large", id=ids[0]), params=query, json=body)
    told = answer.json()
    assert answer.status_code == 200, told
    assert len(answer.content) <= BYTES_MAX + HEAD_BYTES
    items = told.get("episodes") or told["results"]
    assert 1 <= len(items) <= BYTES_MAX // 4000
    assert told.get("left") or told.get("nextCursor") or told.get("hasMore")


def test_a_search_that_says_why_is_no_larger_though_it_has_each_episode_twice(served: Serving) -> None:
    answer = served.client.post(f"{AGENT}/episodes/search", json={**QUESTION, "explain": True})
    told = answer.json()
    assert len(answer.content) <= BYTES_MAX + 2 * HEAD_BYTES  # with the parts of each score
    assert told["episodes"] == [result["episode"] for result in told["results"]]
    assert len(told["episodes"]) + len(told["left"]) == 30
    assert all(each["explanation"] for each in told["left"])


def test_what_a_search_leaves_is_in_order_and_can_be_asked_for(served: Serving, ids: list[str]) -> None:
    told = served.client.post(f"{AGENT}/episodes/hybrid-search", json=QUESTION).json()
    scores = [each["score"] for each in (*told["results"], *told["left"])]
    assert scores == sorted(scores, reverse=True)
    left = [each["episodeId"] for each in told["left"]]
    assert {result["episode"]["episodeId"] for result in told["results"]} | set(left) == set(ids)
    asked = served.client.post(f"{AGENT}/episodes/get", json={"ids": left}).json()
    got = [episode["episodeId"] for episode in asked["episodes"]]
    assert got + list(asked["left"]) == left


def test_a_single_episode_that_is_larger_is_given_all_the_same(served: Serving) -> None:
    memory = served.store.agent_memory("huge")
    memory.store_episodes([Episode.observation("huge", f"egret {'x' * 100_000}") for _ in range(2)])
    for path in ("/memory/huge/episodes", "/memory/huge/episodes/recent"):
        told = served.client.get(path).json()
        assert len(told["episodes"]) == 1
        assert told["nextCursor"] == told["episodes"][0]["episodeId"]


def test_by_default_the_ten_newest_of_the_largest_episodes_are_one_answer(tmp_path: Path) -> None:
    with serving({"storage": {"data_path": str(tmp_path / "data")}}) as running:
        memory = running.store.agent_memory("large")
        for _ in range(11):
            memory.store_episode(Episode.observation("large", "x" * ((1 << 20) - 100)))
        told = running.client.get("/memory/large/episodes/recent").json()
        assert len(told["episodes"]) == 10
