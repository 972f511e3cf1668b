"""The owner's specification, snippet by snippet, run as written against the embedded store.

``db`` is an open Store instead of a connection; everything below ``agent_memory`` is the same. Snippets
that log in to a server belong to the packages that bring those.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from shared import specification

from qilbee_core import Episode, Settings, Store, open_store

pytestmark = pytest.mark.usefixtures("search_as_by_default")


def run(snippet: str, **names: object) -> dict[str, object]:
    return specification.run(snippet, {"Episode": Episode, **names})


def reopen(store: Store, path: Path) -> Store:
    store.close()
    return open_store(path)


def test_an_episode_survives_a_restart_without_an_explicit_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "data")
    stored = run(specification.STORING, memory=store.agent_memory("my-agent"))
    store = reopen(store, tmp_path / "data")
    memory = store.agent_memory("my-agent")
    run(specification.STATISTICS, memory=memory)
    episode = memory.get_episode(str(stored["episode_id"]))
    store.close()
    assert episode == stored["episode"]
    printed = capsys.readouterr().out
    assert "Total episodes: 1\n" in printed
    assert "[conversation] {'user_input': 'What is QilbeeDB?'" in printed


def test_the_default_engine_is_rocksdb_with_a_write_ahead_log_and_lz4(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as store:
        assert store.stats()["backend"] == "rocksdb"
        assert store.settings.storage.enable_wal
        assert store.settings.storage.codec == "lz4"
        assert store.durability().level == "interval"


def test_episodes_are_stored_in_a_namespace_of_their_agent(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as db:
        run(specification.ISOLATION, db=db)
        assert db.agents() == ["sales-agent", "support-agent"]
        for agent_id in db.agents():
            recent = db.agent_memory(agent_id).get_recent_episodes()
            assert [episode.agent_id for episode in recent] == [agent_id]


def test_persisted_episodes_are_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path / "data")
    memory = store.agent_memory("my-agent")
    run(specification.STORING, memory=memory)
    order = Episode.conversation("my-agent", "What is my order number?", "It is 12345.")
    memory.store_episode(order)
    store = reopen(store, tmp_path / "data")
    results = run(specification.SEARCHING, memory=store.agent_memory("my-agent"))["results"]
    store.close()
    assert isinstance(results, list)
    assert results[0] == order
    assert "Found: {'user_input': 'What is my order number?'" in capsys.readouterr().out


def test_deleting_and_clearing_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(tmp_path / "data") as store:
        memory = store.agent_memory("my-agent")
        episode_id = run(specification.STORING, memory=memory)["episode_id"]
        memory.store_episode(Episode.observation("my-agent", "another"))
        run(specification.DELETING, memory=memory, episode_id=episode_id)
        assert memory.get_statistics().total_episodes == 0
    assert capsys.readouterr().out == (
        "Episode permanently removed from storage\nAll episodes cleared for this agent\n"
    )


def test_every_agent_id_of_the_specification_is_allowed(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as db:
        run(specification.AGENT_IDS, db=db)


def test_statistics_can_be_monitored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(tmp_path / "data") as store:
        memory = store.agent_memory("my-agent")
        run(specification.STORING, memory=memory)
        run(specification.MONITORING, memory=memory)
    assert capsys.readouterr().out == ""


def test_the_three_kinds_of_episode_can_be_made() -> None:
    run(specification.TYPES, agent_id="my-agent", user_input="Hello", response="Hi")


def test_the_configuration_of_the_specification_opens_a_store(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(textwrap.dedent(specification.SETTINGS).format(data_path=tmp_path / "data"))
    with open_store(Settings.from_toml(path)) as store:
        assert store.durability().level == "sync"
        assert (tmp_path / "data" / "rocksdb").is_dir()


@pytest.mark.parametrize("codec", ["none", "lz4", "snappy", "zstd"])
def test_compression_is_transparent(tmp_path: Path, codec: str) -> None:
    with open_store(tmp_path / "data", compression_type=codec) as store:
        stored = run(specification.STORING, memory=store.agent_memory("my-agent"))
    with open_store(tmp_path / "data") as store:
        assert store.agent_memory("my-agent").get_episode(str(stored["episode_id"])) == stored["episode"]
