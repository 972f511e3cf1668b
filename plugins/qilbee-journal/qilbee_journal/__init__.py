"""An observer: once this package is installed, each stored batch is one line of the logger ``qilbee_journal``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from qilbee_core import Episode, hookimpl

__all__ = ["qilbee_episodes_stored"]

log = logging.getLogger(__name__)


@hookimpl
def qilbee_episodes_stored(agent_id: str, episodes: Sequence[Episode]) -> None:
    """Log who stored what: ids and types, never content."""
    # The batch is committed already, and whoever stored it waits for this: nothing is done unless somebody listens.
    if log.isEnabledFor(logging.INFO):
        stored = [{"id": episode.id, "type": episode.episode_type} for episode in episodes]
        log.info("%s", json.dumps({"agent": agent_id, "stored": stored}))
