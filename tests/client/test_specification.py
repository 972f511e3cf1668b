"""The owner's specification, snippet by snippet, run as written: through our client, on a server at localhost:7474."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared import specification
from shared.specification import run

from qilbeedb.exceptions import QilbeeError, UnavailableError
from qilbeedb.memory import AgentMemory, Episode

from .serving import Server

PORT = 7474
PATIENCE_S = 600.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    # There is one such port, and tests run side by side. This name is had once too, by whoever's turn it is.
    with socket.socket(socket.AF_UNIX) as turn:
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_bound(turn, f"\0qilbeedb-test-{PORT}"):
            assert time.monotonic() < deadline_s, "the tests of another process do not end"
            time.sleep(0.05)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                pytest.skip("somebody else listens on port 7474 of this machine")
        with Server(tmp_path, port=PORT, password="password") as server:
            yield server


def is_bound(turn: socket.socket, name: str) -> bool:
    try:
        turn.bind(name)
    except OSError:
        return False
    return True


def test_every_snippet_runs_as_written_and_in_this_order(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    run(specification.DURABILITY, names)
    first, first_id = names["episode"], names["episode_id"]
    run(specification.ISOLATION, names)
    run(specification.BASIC, names)
    episode_id = names["episode_id"]
    assert capsys.readouterr().out == f"Stored episode: {episode_id}\n"

    server.kill()
    server.start()
    run(specification.VERIFYING, names)
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"Total episodes: 1\n"
        r"Average relevance: 0\.99\d+\n"
        r"\[conversation\] {'user_input': 'I need help with my order'.*\n",
        said,
    )
    run(specification.SEARCHING, names)
    assert capsys.readouterr().out.startswith("Found: {'user_input': 'I need help with my order'")
    run(specification.MONITORING, names)
    assert capsys.readouterr().out == ""
    run(specification.DELETING, {**names, "episode_id": episode_id})
    assert capsys.readouterr().out == (
        "Episode permanently removed from storage\nAll episodes cleared for this agent\n"
    )
    run(specification.AGENT_IDS, names)
    run(specification.TYPES, {**names, "agent_id": "my-agent", "user_input": "Hello", "response": "Hi"})

    run(
        "memory = db.agent_memory('my-agent')\nfound = memory.get_episode(episode_id)",
        {**names, "episode_id": first_id},
    )
    run("found = db.agent_memory('my-agent').get_recent_episodes()", names)
    assert names["found"] == [first]


def test_the_retry_of_the_specification_works(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {}
    run(specification.DURABILITY, names)
    run(specification.RETRY, names)
    memory = names["memory"]
    assert isinstance(memory, AgentMemory)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    names["later"] = Episode.observation("my-agent", "stored when the server is back")
    server.kill()
    with pytest.raises(QilbeeError) as caught:
        run("store_with_retry(memory, later)", names)
    assert isinstance(caught.value, UnavailableError)
    server.start()
    run("id = store_with_retry(memory, later)", names)
    assert memory.get_statistics().total_episodes == 2
