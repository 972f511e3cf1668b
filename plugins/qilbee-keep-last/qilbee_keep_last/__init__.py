"""The consolidation policy ``keep-last``: of the observations about one thing, the last one stays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from qilbee_core import ConsolidationPolicy, Episode, Plan, Provider, SettingsError, hookimpl

__all__ = ["KeepLast", "qilbee_register_policies"]


@hookimpl
def qilbee_register_policies() -> Iterable[Provider[ConsolidationPolicy]]:
    """The policy ``keep-last``."""
    return [Provider("keep-last", KeepLast, "of the observations about one thing, the last one stays")]


class KeepLast:
    """Observations whose metadata have the same value under ``key`` are about the same thing.

    >>> first = Episode.observation("bot", "21 degrees", metadata={"subject": "cellar"})
    >>> later = Episode.observation("bot", "19 degrees", metadata={"subject": "cellar"})
    >>> KeepLast().plan([first, later], now=later.event_time).supersede == {first.id: later.id}
    True
    """

    name = "keep-last"

    def __init__(self, *, key: str = "subject") -> None:
        if not isinstance(key, str) or not key:
            raise SettingsError(f"policy 'keep-last': key is {key!r}", remedy="give the name of a key of metadata")
        self._key = key

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:  # noqa: ARG002 - of the protocol
        """Each observation superseded by the last one about the same thing."""
        last: dict[tuple[str, str], Episode] = {}
        observations = [
            (self._subject(each), each)
            for each in sorted(episodes, key=lambda each: each.id)  # ids sort by event time
            if each.episode_type == "observation" and each.metadata.get(self._key) is not None
        ]
        last.update(observations)
        return Plan(
            supersede={each.id: last[subject].id for subject, each in observations if each is not last[subject]}
        )

    def _subject(self, episode: Episode) -> tuple[str, str]:
        # Any JSON value may name a thing, and some cannot be keys of a dict; 1 and True must not be one thing.
        return episode.agent_id, json.dumps(episode.metadata[self._key], sort_keys=True)
