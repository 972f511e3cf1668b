"""What the journal says of a batch, and what it never says."""

from __future__ import annotations

import json
import logging

import pytest
import qilbee_journal

from qilbee_core import Episode, load_plugins, open_store


def test_each_batch_is_one_line_with_ids_and_types_and_no_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qilbee_journal")
    episodes = [Episode.observation("bot", "canary"), Episode.action("bot", "canary", "canary")]
    with open_store(backend="ephemeral", plugins=load_plugins()) as store:
        ids = store.agent_memory("bot").store_episodes(episodes)
    [line] = [record.getMessage() for record in caplog.records if record.name == "qilbee_journal"]
    assert json.loads(line) == {
        "agent": "bot",
        "stored": [{"id": ids[0], "type": "observation"}, {"id": ids[1], "type": "action"}],
    }
    assert "canary" not in line


def test_nothing_is_made_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "qilbee_journal")
    qilbee_journal.qilbee_episodes_stored("bot", [Episode.observation("bot", "x")])
    assert not caplog.records
