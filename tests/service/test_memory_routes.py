"""The memory routes, as WIRE promises them: statuses, keys, times and pages; each seen from behind in the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qilbee_core import Episode
from qilbeedb.wire import EpisodeAnswer, moment_of, seconds_of

from .serving import PASSWORD, Serving, login, serving

_numbers = count()
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


@given(st.datetimes(), st.booleans())
def test_an_episode_has_its_moments_as_the_numbers_that_they_are(moment: datetime, is_whole: bool) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC) if is_whole else moment.replace(tzinfo=UTC)
    told = EpisodeAnswer.of(Episode("a", "x", {}, event_time=moment)).event_time
    assert (told, type(told)) == (seconds_of(moment), type(seconds_of(moment)))


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
        assert served.store._sweeper is not None
        served.store._sweeper.close()  # nobody else takes what was noted
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


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seconds=st.lists(st.integers(0, 3), max_size=30),
    limit=st.integers(1, 7),
    asked=st.fixed_dictionaries(
        {"reverse": st.booleans()},
        optional={
            "start": st.integers(0, 3),
            "end": st.integers(1, 4),
            "episodeType": st.sampled_from(["0", "1"]),
            "memoryType": st.just("factual"),
        },
    ),
    changes=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=6),
)
def test_pages_give_each_episode_once_and_miss_none_whatever_is_written_between_them(
    served: Serving, seconds: list[int], limit: int, asked: dict[str, Any], changes: list[tuple[bool, int]]
) -> None:
    agent = f"pages {next(_numbers)}"
    memory = served.store.agent_memory(agent)

    def add(number: int) -> Episode:
        kind, memory_type = str(number % 2), "factual" if number % 3 else "episodic"
        at = datetime.fromtimestamp(number % 4, UTC)
        episode = Episode(agent, kind, {"n": number}, event_time=at, memory_type=memory_type)  # type: ignore[arg-type]
        memory.store_episode(episode)
        return episode

    def fits(episode: Episode) -> bool:
        is_in_time: bool = asked.get("start", 0) <= episode.event_time.timestamp() < asked.get("end", 4)
        types = asked.get("episodeType", episode.episode_type), asked.get("memoryType", episode.memory_type)
        return is_in_time and types == (episode.episode_type, episode.memory_type)

    first = [add(second + 4 * number) for number, second in enumerate(seconds)]
    steady = {episode.id for episode in first if fits(episode)}
    known = {episode.id: episode for episode in first}
    found: list[str] = []
    query = {**asked, "limit": limit}
    while True:
        answer = served.client.get(f"/memory/{quote(agent)}/episodes", params=query)
        page = ids(answer)
        assert len(page) <= limit
        found += page
        query["cursor"] = answer.json()["nextCursor"]
        if query["cursor"] is None:
            break
        assert len(page) == limit
        if changes:
            removes, number = changes.pop()
            if removes and first:  # perhaps the one that the cursor is
                gone = first[number % len(first)].id
                memory.delete_episode(gone)
                steady.discard(gone)
            else:
                added = add(number)
                known[added.id] = added
    assert found == sorted(set(found), reverse=asked["reverse"])
    assert steady <= set(found)
    assert all(fits(known[each]) for each in found)


def test_a_cursor_is_an_id(served: Serving) -> None:
    answer = served.client.get("/memory/pages/episodes", params={"cursor": "yesterday"})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID")


def test_filters_narrow_every_list_and_search(served: Serving) -> None:
    agent = "filtered"
    given = [(kind, memory_type, at) for kind in ("a", "b") for memory_type in ("factual", "episodic") for at in (1, 2)]
    stored = {
        store(served, agent, episodeType=kind, memoryType=memory_type, eventTime=at): (kind, memory_type, at)
        for kind, memory_type, at in given
    }
    path = f"/memory/{agent}"
    anchor = store(served, agent, episodeType="anchor", eventTime=3)
    words = {"query": "tea at five"}
    filters = {"episodeType": "b", "memoryType": "factual", "start": 2, "end": 3}

    def found(answer: httpx.Response) -> list[str]:
        assert answer.status_code == 200, answer.text
        told = answer.json()
        return [each["episode"]["episodeId"] for each in told["results"]] if "results" in told else ids(answer)

    routes: dict[str, Callable[[dict[str, Any]], httpx.Response]] = {
        "recent": lambda asked: served.client.get(
            f"{path}/episodes/recent", params={("type" if key == "episodeType" else key): asked[key] for key in asked}
        ),
        "all": lambda asked: served.client.get(f"{path}/episodes", params=asked),
        "recall": lambda asked: served.client.post(f"{path}/recall", json=asked),
        "search": lambda asked: served.client.post(f"{path}/episodes/search", json={**words, **asked}),
        "explained": lambda asked: served.client.post(
            f"{path}/episodes/search", json={**words, "explain": True, **asked}
        ),
        "semantic": lambda asked: served.client.post(f"{path}/episodes/semantic-search", json={**words, **asked}),
        "hybrid": lambda asked: served.client.post(f"{path}/episodes/hybrid-search", json={**words, **asked}),
        "similar": lambda asked: served.client.get(f"{path}/episodes/{anchor}/similar", params=asked),
    }
    for name, route in routes.items():
        assert [stored[each] for each in found(route(filters))] == [("b", "factual", 2)], name
        assert {stored[each] for each in found(route({"end": 2}))} == {each for each in given if each[2] == 1}, name
        assert found(route({"episodeType": "c"})) == [], name
        assert route({"memoryType": "c"}).status_code == 400, name
        assert route({"start": 1e15}).status_code == 400, name


def test_a_search_by_words_says_why_where_it_is_asked_to(served: Serving) -> None:
    for number in range(5):
        store(served, "explained", content={"observation": f"Order {number} left the store, order {number}."})
    body = {"query": "which order left the store", "limit": 3, "end": 4_102_444_800}
    plain = served.client.post("/memory/explained/episodes/search", json=body).json()
    assert plain.keys() == {"episodes"}
    told = served.client.post("/memory/explained/episodes/search", json={**body, "explain": True}).json()
    assert [each["episodeId"] for each in told["episodes"]] == [each["episodeId"] for each in plain["episodes"]]
    assert [each["episode"] for each in told["results"]] == told["episodes"]
    for each in told["results"]:
        assert sum(each["explanation"].values()) == pytest.approx(each["score"])
        assert (each["keywordScore"], each["semanticScore"]) == (each["score"], 0)
        assert "own" in each["explanation"]


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


def test_a_wrong_method_is_told_the_right_ones_and_head_is_as_good_as_get(served: Serving) -> None:
    refused = served.client.put("/memory/a/statistics")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert served.client.put("/memory/a/recall").headers["allow"] == "POST"
    assert served.client.head("/memory/a/statistics").status_code == 200


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
