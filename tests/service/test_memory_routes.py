"""The memory routes, as WIRE promises them: statuses, keys, times and pages; each seen from behind in the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from qilbee_core import Episode
from qilbeedb.wire import moment_of, seconds_of

from .serving import PASSWORD, Serving, login, serving

BODY = {"episodeType": "observation", "content": {"observation": "tea at five"}}
ORDINARY = [
    Episode.conversation("x", "Where is my order?", "On its way."),
    Episode.observation("x", "CPU at 85 %"),
    Episode.action("x", "restart", "it runs"),
]


def store(served: Serving, agent: str, **fields: Any) -> str:
    answer = served.client.post(f"/memory/{quote(agent, safe='')}/episodes", json={**BODY, **fields})
    assert answer.status_code == 201, answer.text
    episode_id: str = answer.json()["episodeId"]
    return episode_id


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [episode["episodeId"] for episode in answer.json()["episodes"]]


@pytest.mark.parametrize("kind", ["conversation", "observation", "action"])
def test_content_and_metadata_come_back_as_they_were_sent(served: Serving, kind: str) -> None:
    (given,) = (episode for episode in ORDINARY if episode.episode_type == kind)
    metadata = {"n": [1, 2.5, None, True, {"ü": "\u2028"}], "big": 2**63, "": ""}
    agent = f"kinds-{kind}"
    body = {"agentId": agent, "episodeType": kind, "content": given.content, "eventTime": 1772409600}
    episode_id = store(served, agent, **body, metadata=metadata)
    found = served.client.get(f"/memory/{agent}/episodes/{episode_id}").json()
    assert (found["content"], found["metadata"], found["eventTime"]) == (given.content, metadata, 1772409600)
    stored = served.store.agent_memory(agent).get_episode(episode_id)
    assert stored is not None
    assert (stored.content, stored.metadata, stored.episode_type) == (given.content, metadata, kind)
    assert stored.event_time == datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0),
        (-1.5, -1.5),
        (1772409600.25, 1772409600.25),
        (1772409600_250, 1772409600.25),
        (253402300799, 253402300799),
    ],
)
def test_an_event_time_is_in_seconds_or_in_milliseconds(served: Serving, given: float, seconds: float) -> None:
    episode_id = store(served, "times", eventTime=given)
    found = served.client.get(f"/memory/times/episodes/{episode_id}").json()["eventTime"]
    assert found == seconds
    assert type(found) is type(seconds_of(moment_of(seconds)))


def test_every_microsecond_of_our_time_survives_as_a_number() -> None:
    moment = datetime(2026, 3, 2, 9, 14, 5, tzinfo=UTC)
    for us in range(0, 1_000_000, 997):
        each = moment + timedelta(microseconds=us)
        assert moment_of(seconds_of(each)) == each


def test_the_same_episode_again_is_200_and_stored_once_and_another_under_its_id_is_409(served: Serving) -> None:
    episode = Episode.observation("again", "tea")
    body = {"episodeId": episode.id, "episodeType": "observation", "content": {"observation": "tea"}}
    answers = [served.client.post("/memory/again/episodes", json=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert {answer.json()["episodeId"] for answer in answers} == {episode.id}
    other = served.client.post("/memory/again/episodes", json={**body, "content": {"observation": "coffee"}})
    assert (other.status_code, other.json()["code"]) == (409, "CONFLICT")
    assert served.store.agent_memory("again").get_statistics().total_episodes == 1


def test_to_send_an_episode_again_is_no_access_to_it(tmp_path: Path) -> None:
    with serving({"storage": {"data_path": str(tmp_path / "data")}}) as served:
        context = served.store._context
        episode_id = store(served, "again")
        now_ns = context.clock_ns()
        context.clock_ns = lambda: now_ns + 60 * 86_400 * 10**9
        assert context.accesses is not None
        context.accesses.take()
        body = {**BODY, "episodeId": episode_id}
        assert served.client.post("/memory/again/episodes", json=body).status_code == 200
        assert context.accesses.take() == {}
        assert served.client.get(f"/memory/again/episodes/{episode_id}").json()["relevance"] < 0.9
        assert list(context.accesses.take()) == ["again"]


def test_the_same_idempotency_key_again_is_200_with_the_first_id(served: Serving) -> None:
    first = served.client.post("/memory/keys/episodes", json={**BODY, "idempotencyKey": "k"})
    again = served.client.post("/memory/keys/episodes", json={**BODY, "idempotencyKey": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = {**BODY, "content": {"observation": "coffee"}, "idempotencyKey": "k"}
    assert served.client.post("/memory/keys/episodes", json=other).status_code == 409


def test_an_id_and_an_event_time_must_agree(served: Serving) -> None:
    episode = Episode.observation("agree", "tea", event_time=datetime(2026, 3, 2, 9, 14, 5, 123_457, UTC))
    right = {**BODY, "episodeId": episode.id, "eventTime": seconds_of(episode.event_time)}
    assert served.client.post("/memory/agree/episodes", json={**right, "eventTime": 1}).status_code == 400
    assert served.client.post("/memory/agree/episodes", json=right).status_code == 201


def test_a_body_for_another_agent_is_refused_and_one_in_another_form_of_unicode_is_not(served: Serving) -> None:
    refused = served.client.post("/memory/mine/episodes", json={**BODY, "agentId": "yours"})
    assert (refused.status_code, refused.json()["code"]) == (400, "INVALID")
    episode_id = store(served, "cafe\u0301", agentId="cafe\u0301")
    assert served.client.get(f"/memory/caf\u00e9/episodes/{episode_id}").json()["agentId"] == "caf\u00e9"
    assert "mine" not in served.store.agents()
    assert "yours" not in served.store.agents()


@pytest.mark.parametrize("agent", ["my agent", "a%2Fb", "ü", "a?b#c", "recent", "episodes", "a:b", "'\"<>"])
def test_an_agent_is_what_its_quoted_id_says(served: Serving, agent: str) -> None:
    episode_id = store(served, agent)
    assert ids(served.client.get(f"/memory/{quote(agent, safe='')}/episodes/recent")) == [episode_id]
    assert served.store.agent_memory(agent).get_episode(episode_id) is not None


def test_what_is_not_there_is_404(served: Serving) -> None:
    path = f"/memory/none/episodes/{Episode.observation('x', 'y').id}"
    for answer in (
        served.client.get(path),
        served.client.delete(path),
        served.client.patch(path, json={"episodeType": "x"}),
        served.client.post(f"{path}/pin", json={}),
        served.client.post(f"{path}/boost", json={}),
        served.client.get(f"{path}/similar"),
        served.client.post(f"{path}/invalidate"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_recent_pages_give_each_episode_once_the_newest_first(served: Serving) -> None:
    stored = [store(served, "pages", eventTime=1_700_000_000 + number) for number in range(25)]
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query: dict[str, Any] = {"limit": 10, **({"before": cursor} if cursor else {})}
        answer = served.client.get("/memory/pages/episodes/recent", params=query)
        found += ids(answer)
        cursor = answer.json()["nextCursor"]
    assert found == stored[::-1]


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_of_a_time_give_each_episode_once_also_where_times_are_equal(served: Serving, reverse: bool) -> None:
    agent = f"between-{reverse}"
    stored = [store(served, agent, eventTime=1_700_000_000 + number // 10) for number in range(50)]
    found: list[str] = []
    query: dict[str, Any] = {"start": 1_700_000_001, "end": 1_700_000_004, "limit": 7, "reverse": reverse}
    while True:
        answer = served.client.get(f"/memory/{agent}/episodes", params=query)
        found += ids(answer)
        query["cursor"] = answer.json()["nextCursor"]
        if query["cursor"] is None:
            break
    assert found == (stored[10:40][::-1] if reverse else stored[10:40])


def test_updates_keep_history_and_pin_boost_and_invalidate_do_what_they_say(served: Serving) -> None:
    path = f"/memory/changes/episodes/{store(served, 'changes', relevance=0.5)}"
    changed = served.client.patch(path, json={"content": {"observation": "coffee"}, "metadata": None})
    assert (changed.status_code, changed.json()["content"]) == (200, {"observation": "coffee"})
    (before,) = served.client.get(f"{path}/history").json()["episodes"]
    assert before["content"] == BODY["content"]
    assert served.client.post(f"{path}/boost", json={"amount": 0.5}).json()["relevance"] == pytest.approx(
        0.75, abs=0.01
    )
    assert served.client.post(f"{path}/pin").json()["pinned"] is True
    assert "pinned" not in served.client.post(f"{path}/pin", json={"pinned": False}).json()
    assert served.client.post(f"{path}/invalidate").status_code == 200
    assert served.client.get(path).status_code == 404


def test_a_pinned_episode_is_stored_pinned_with_its_end(served: Serving) -> None:
    episode_id = store(served, "pinned", pinned=True, expiresAt=4_102_444_800, memoryType="semantic")
    found = served.client.get(f"/memory/pinned/episodes/{episode_id}").json()
    assert (found["pinned"], found["expiresAt"], found["memoryType"]) == (True, 4_102_444_800, "semantic")


def test_a_batch_is_all_or_none_and_its_ids_are_in_order(served: Serving) -> None:
    bodies = [{**BODY, "content": {"n": number}} for number in range(20)]
    answer = served.client.post("/memory/batch/episodes/batch", json={"episodes": bodies})
    assert answer.status_code == 201
    episode_ids = answer.json()["episodeIds"]
    found = served.client.post("/memory/batch/episodes/get", json={"ids": [*episode_ids, ORDINARY[0].id]}).json()
    assert [episode and episode["content"]["n"] for episode in found["episodes"]] == [*range(20), None]
    wrong = [*bodies, {**BODY, "relevance": 2}]
    assert served.client.post("/memory/batch/episodes/batch", json={"episodes": wrong}).status_code == 400
    wrong = [*bodies, {**BODY, "episodeId": episode_ids[0]}]
    assert served.client.post("/memory/batch/episodes/batch", json={"episodes": wrong}).status_code == 409
    assert served.store.agent_memory("batch").get_statistics().total_episodes == 20


def test_searches_find_what_was_just_stored_with_its_scores(served: Serving) -> None:
    tea = store(served, "search", content={"observation": "Tea is served at five."})
    order = store(served, "search", content={"observation": "The order number is 48213."})
    path = "/memory/search/episodes"
    assert ids(served.client.post(f"{path}/search", json={"query": "order number", "limit": 1})) == [order]
    (best, *_) = served.client.post(f"{path}/semantic-search", json={"query": "a hot drink"}).json()["results"]
    assert best["episode"]["episodeId"] == tea
    body = {"query": "number of my order", "semanticWeight": 0.5, "explain": True}
    (best, *_) = served.client.post(f"{path}/hybrid-search", json=body).json()["results"]
    assert best["episode"]["episodeId"] == order
    assert best["score"] == pytest.approx(best["keywordScore"] + best["semanticScore"])
    assert sum(best["explanation"].values()) == pytest.approx(best["score"])
    (other,) = served.client.get(f"{path}/{tea}/similar", params={"limit": 5}).json()["results"]
    assert other["episode"]["episodeId"] == order
    status = served.client.get("/memory/search/semantic-search/status").json()
    assert (status["enabled"], status["indexedEpisodes"] + status["pendingEpisodes"]) == (True, 2)


def test_statistics_forget_purge_consolidate_undo_and_clear(served: Serving) -> None:
    for number in range(4):
        store(served, "life", relevance=0.05, eventTime=1_700_000_000 + number)
    kept = [store(served, "life", content={"observation": "the same"}, eventTime=1_700_000_100 + n) for n in range(3)]
    memory = served.store.agent_memory("life")
    its = served.client.get("/memory/life/statistics").json()
    assert (its["totalEpisodes"], its["oldestEpisode"], its["newestEpisode"]) == (7, 1_700_000_000, 1_700_000_102)
    assert its["episodesByType"] == {"observation": 7}
    assert its["avgRelevance"] == pytest.approx((4 * 0.05 + 3) / 7, abs=0.01)
    dry = served.client.post("/memory/life/forget", json={"minRelevance": 0.1, "dryRun": True}).json()
    assert (dry["forgotten"], memory.get_statistics().total_episodes) == (4, 7)
    assert served.client.post("/memory/life/forget", json={"minRelevance": 0.1}).json()["forgotten"] == 4
    done = served.client.post("/memory/life/consolidate", json={}).json()
    assert done["consolidated"] == 2
    assert memory.get_statistics().total_episodes == 1
    (undoable,) = served.client.get("/memory/life/consolidations").json()["consolidations"]
    undo = served.client.post(f"/memory/life/consolidations/{undoable['consolidationId']}/undo")
    assert undo.status_code == 200, undo.text
    assert sorted(episode.id for episode in memory.get_recent_episodes()) == kept
    assert served.client.post(f"/memory/life/episodes/{kept[0]}/invalidate").status_code == 200
    assert served.client.post("/memory/life/purge", json={"before": 1_700_000_101}).json()["episodes"] == 0
    assert served.client.post("/memory/life/purge", json={"before": 4_102_444_800}).json()["episodes"] == 1
    assert served.client.delete("/memory/life").json()["episodes"] == 2
    assert "life" not in served.client.get("/agents").json()["agents"]


def test_where_search_is_off_a_search_is_501_with_the_code_that_clients_know() -> None:
    with serving({"storage": {"backend": "ephemeral"}, "search": {"indexing": "off"}}) as served:
        for kind in ("search", "semantic-search", "hybrid-search"):
            answer = served.client.post(f"/memory/off/episodes/{kind}", json={"query": "x"})
            assert answer.status_code == 501
            assert answer.json()["error_code"] == "SEMANTIC_SEARCH_NOT_ENABLED"
        assert served.client.get("/memory/off/semantic-search/status").json()["enabled"] is False


def test_agents_are_those_the_caller_may_see() -> None:
    with serving({"storage": {"backend": "ephemeral"}}, login=True) as served:
        assert served.accounts is not None
        for agent in ("a", "b"):
            served.store.agent_memory(agent).store_episode(Episode.observation(agent, "x"))
        admin = login(served, "admin")
        user = {"username": "bob", "password": PASSWORD, "roles": ["Read"], "agents": ["b"]}
        assert served.client.post("/api/v1/users", json=user, headers=admin).status_code == 201
        assert served.client.get("/agents", headers=admin).json() == {"agents": ["a", "b"]}
        assert served.client.get("/agents", headers=login(served, "bob")).json() == {"agents": ["b"]}
