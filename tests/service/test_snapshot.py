"""POST /admin/snapshot: a copy of the store, made while it is served, where the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from qilbee_core import open_store
from qilbeedb.wire import encode

from .serving import login, serving

BODY = {"episodeType": "observation", "content": {"observation": "tea at five"}}


def test_a_snapshot_is_served_like_the_store_but_its_sessions_are_over(tmp_path: Path) -> None:
    snapshots = tmp_path / "snapshots"
    tables = {
        "storage": {"data_path": str(tmp_path / "data")},
        "server": {"snapshot_directory": str(snapshots)},
    }
    with serving(tables, login=True) as served:
        admin = login(served, "admin")
        key = served.client.post("/api/v1/api-keys", json={"name": "robot"}, headers=admin).json()["key"]
        stored = served.client.post("/memory/bot/episodes", json=BODY, headers=admin)
        answer = served.client.post("/admin/snapshot", headers=admin)
        assert answer.status_code == 201, answer.text
        later = served.client.post("/memory/bot/episodes", json=BODY, headers=admin).json()["episodeId"]
        again = served.client.post("/admin/snapshot", headers=admin)
        events = served.client.get("/api/v1/audit-logs?event_type=snapshot_taken", headers=admin).json()["events"]
    path = Path(answer.json()["path"])
    assert path.parent == snapshots
    assert answer.json()["bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert again.json()["path"] != answer.json()["path"]
    assert [event["username"] for event in events] == ["admin", "admin"]
    assert not list(path.rglob("*secret*"))
    with serving({"storage": {"data_path": str(path)}}, login=True) as restored:
        episode = f"/memory/bot/episodes/{stored.json()['episodeId']}"
        assert restored.client.get(episode, headers=admin).status_code == 401  # signed with another secret
        assert restored.client.get(episode, headers={"X-API-Key": key}).status_code == 200
        admin = login(restored, "admin")
        assert restored.client.get(episode, headers=admin).json()["content"] == BODY["content"]
        assert restored.client.get(f"/memory/bot/episodes/{later}", headers=admin).status_code == 404
        assert restored.store.verify().ok


def test_a_server_without_a_directory_for_them_takes_none(tmp_path: Path) -> None:
    with serving({"storage": {"data_path": str(tmp_path / "data")}}) as served:
        answer = served.client.post("/admin/snapshot")
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
        assert "snapshot_directory" in answer.json()["remedy"]
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_nobody_names_a_path_over_the_network(tmp_path: Path) -> None:
    tables = {
        "storage": {"data_path": str(tmp_path / "data")},
        "server": {"snapshot_directory": str(tmp_path / "snapshots")},
    }
    with serving(tables) as served:
        for body in ({"path": str(tmp_path / "elsewhere")}, {"name": "../elsewhere"}):
            assert served.client.post("/admin/snapshot", content=encode(body)).status_code == 400
        assert not (tmp_path / "elsewhere").exists()
        assert not (tmp_path / "snapshots").exists()


@pytest.mark.parametrize("engine", ["leveldb", "ephemeral"])
def test_an_engine_that_cannot_is_named(tmp_path: Path, engine: str) -> None:
    if engine == "leveldb":
        pytest.importorskip("plyvel")
    tables = {
        "storage": {"data_path": str(tmp_path / "data"), "backend": engine},
        "server": {"snapshot_directory": str(tmp_path / "snapshots")},
    }
    with serving(tables) as served:
        answer = served.client.post("/admin/snapshot")
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID")
    assert engine in answer.json()["error"]


def test_requests_go_on_while_a_snapshot_is_taken_and_none_of_them_is_lost(tmp_path: Path) -> None:
    tables = {
        "storage": {"data_path": str(tmp_path / "data")},
        "server": {"snapshot_directory": str(tmp_path / "snapshots")},
    }
    with serving(tables) as served:
        paths = []
        for _ in range(3):
            for _ in range(20):
                assert served.client.post("/memory/bot/episodes", json=BODY).status_code == 201
            paths.append(served.client.post("/admin/snapshot").json()["path"])
    for number, path in enumerate(paths, 1):
        with open_store(path) as copy:
            assert copy.agent_memory("bot").get_statistics().total_episodes == 20 * number
