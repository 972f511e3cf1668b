"""What was said in an episode and by whom, and which episodes make one session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from qilbee_core.episode import Episode
from qilbee_core.policies.derived import SOURCES_MAX

__all__ = ["SESSION_GAP", "finished", "parts_of", "said_in", "sessions_of"]

SESSION_GAP = timedelta(hours=6)
"""Silence that ends a session; it also divides episodes that name none."""

_SPEAKER_CHARACTERS_MAX = 64


def said_in(episode: Episode) -> list[tuple[str, str]]:
    """Speaker and text of each turn of an episode; nothing where its content is anything but texts.

    The speaker is ``metadata["speaker"]`` (or the same in the content), else "user" and "agent" for the halves of a
    conversation, else "".

    >>> said_in(Episode.conversation("bot", "Is it raining?", "Yes."))
    [('user', 'Is it raining?'), ('agent', 'Yes.')]
    >>> said_in(Episode("bot", "note", {"text": "Fine.", "speaker": "Ana"}))
    [('Ana', 'Fine.')]
    >>> said_in(Episode("bot", "reading", {"temperature": 21.5}))
    []
    """
    content = episode.content
    named = episode.metadata.get("speaker", content.get("speaker"))
    speaker = named[:_SPEAKER_CHARACTERS_MAX] if isinstance(named, str) else ""
    said = []
    for key, text in content.items():
        if not isinstance(text, str):
            return []
        if key == "speaker":
            continue
        by = {"user_input": speaker or "user", "agent_response": "agent"}.get(key, speaker)
        if text.strip():
            said.append((by, text))
    return said


def sessions_of(episodes: Iterable[Episode]) -> list[list[Episode]]:
    """The episodes of each session, oldest first; sessions by ``metadata["session_id"]``, or by gaps of 6 hours."""
    named: dict[tuple[str, str], list[Episode]] = {}
    loose: dict[str, list[Episode]] = {}
    for episode in sorted(episodes, key=lambda each: each.id):
        session = episode.metadata.get("session_id")
        if isinstance(session, str | int) and session != "":
            named.setdefault((episode.agent_id, str(session)), []).append(episode)
        else:
            loose.setdefault(episode.agent_id, []).append(episode)
    found = list(named.values())
    for run in loose.values():
        found += _split_at_gaps(run)
    return sorted(found, key=lambda session: session[0].id)


def _split_at_gaps(episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
    run: list[Episode] = []
    for episode in episodes:
        if run and episode.event_time - run[-1].event_time > SESSION_GAP:
            yield run
            run = []
        run.append(episode)
    if run:
        yield run


def finished(session: Sequence[Episode], now: datetime) -> bool:
    """Whether nothing was added to a session for 6 hours."""
    return now - session[-1].event_time > SESSION_GAP


def parts_of(session: Sequence[Episode]) -> Iterator[Sequence[Episode]]:
    """A session in parts of at most ``SOURCES_MAX`` episodes, all about as long."""
    count = -(-len(session) // SOURCES_MAX)
    for part in range(count):
        yield session[part * len(session) // count : (part + 1) * len(session) // count]
