"""``qilbee reembed``: another embedder by one command, and once more where that was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared.embedders import serving
from shared.endpoint import Endpoint, reply
from typer.testing import CliRunner

from qilbee_core import Episode, Settings, open_store
from qilbee_core.cli import app


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def configured(path: Path, endpoint: Endpoint, embedder: str = "openai") -> Path:
    config = path / "qilbee.toml"
    config.write_text(
        f'[storage]\ndata_path = "{path}/data"\n[search]\nembedder = "{embedder}"\n'
        f'[search.embedders.openai]\nmodel = "words"\ndimensions = 16\nbase_url = "{endpoint.url}"\n'
        'attempts_max = 1\napi_key = "very secret"\n'
    )
    return config


@pytest.mark.usefixtures("search_as_by_default")
def test_a_store_is_reembedded_as_configured_and_after_an_interruption_goes_on(tmp_path: Path) -> None:
    with serving() as endpoint:
        config = configured(tmp_path, endpoint)
        with open_store(tmp_path / "data") as store:
            for agent_id in ("ann", "bot"):
                notes = [Episode.observation(agent_id, f"oak {number}") for number in range(50)]
                store.agent_memory(agent_id).store_episodes(notes)
        good = endpoint.behave
        endpoint.behave = lambda handler, request: (
            good(handler, request) if len(endpoint.requests) <= 2 else reply(handler, b"down", 401)
        )
        status, output = run("reembed", "--config", config)
        assert status == 1
        assert "status 401" in output
        endpoint.behave = good
        status, output = run("reembed", "--config", config)
        assert status == 0
        assert "vectors made; search goes by openai now" in output
        assert len({text for request in endpoint.requests for text in request["input"]} - {"hello"}) == 50
        status, output = run("reembed", "--config", config)
        assert (status, output.splitlines()[0]) == (0, "0 vectors made; search goes by openai now")
        asked = len(endpoint.requests)
        for command in ("show", "stats", "verify"):  # nobody is asked to look at a store
            assert run(command, "--config", config)[0] == 0
        assert len(endpoint.requests) == asked
        with open_store(Settings.from_toml(config, environ={})) as store:
            (found,) = store.agent_memory("ann").semantic_search("oak 7", 1)
            assert found.episode.content == {"observation": "oak 7"}
        status, output = run("reembed", tmp_path / "data", "--embedder", "static")
        assert status == 0
        assert "0 vectors made; search goes by static now" in output


def test_config_check_names_an_embedder_that_is_not_installed_and_shows_no_key(tmp_path: Path) -> None:
    with serving() as endpoint:
        status, output = run("config", "check", configured(tmp_path, endpoint))
        assert status == 0
        assert "very secret" not in output
        status, output = run("config", "check", configured(tmp_path, endpoint, "word2vec"))
        assert status == 1
        assert "no embedder 'word2vec'" in output
        assert endpoint.requests == []


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert run("reembed", tmp_path / "data", "--embedder", "static")[0] == 1
    assert not (tmp_path / "data").exists()
