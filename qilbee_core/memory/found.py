"""What a search gives: plain values, which need no index and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from qilbee_core.episode import Episode

__all__ = ["SearchResult", "SearchStatus"]


class SearchResult(Struct, frozen=True, kw_only=True):
    """An episode that was found, and how well it fits.

    ``score`` is ``keyword_score + semantic_score``: what its words, neighbours, speaker and time are worth, and what
    its meaning is. About 1 means that it says once all that was asked. ``explanation`` has the parts by name, where it
    was asked for; they add up to the score. docs/search.md says what each is.
    """

    episode: Episode
    score: float
    keyword_score: float
    semantic_score: float
    explanation: Mapping[str, float] | None = None


class SearchStatus(Struct, frozen=True, kw_only=True):
    """What search knows of an agent's memory, and with what it was made.

    ``indexed`` and ``pending`` are episodes; a search indexes those that are pending before it answers. ``ram_bytes``
    is about what the agent's index takes, 0 while it is not loaded. With an embedder of one's own ``model`` and
    ``dimensions`` are its, and ``vectors_pending`` are episodes without a vector, which no search waits for;
    ``embedder_problem`` says why it fails, while it does.
    """

    enabled: bool
    indexing: Literal["background", "inline", "off"]
    language: str
    analyser_version: int
    model: str
    dimensions: int
    indexed: int
    pending: int
    ram_bytes: int
    vectors_pending: int = 0
    embedder_problem: str | None = None
