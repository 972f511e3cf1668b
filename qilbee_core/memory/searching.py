"""Searching an agent's memory: what is asked is checked here, answered by its index, and read from its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Literal

from msgspec import Struct

from qilbee_core.episode import Episode, MemoryType
from qilbee_core.errors import InvalidError, NotFoundError, shown
from qilbee_core.ids import format_id, parse_id, us_of_datetime
from qilbee_core.limits import check_flag, check_limit, check_moment
from qilbee_core.memory.document import MEMORY_TYPE_NUMBERS
from qilbee_core.memory.reads import FRESH, check_filters
from qilbee_core.memory.writes import Writes
from qilbee_core.search.analysis import ANALYSER_VERSION
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.score import Filter
from qilbee_core.search.search import Hit, hybrid, keyword, semantic, similar
from qilbee_core.search.table import TABLE_DIMENSIONS, TABLE_MODEL

__all__ = ["SearchResult", "SearchStatus", "Searches"]


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
    is about what the agent's index takes, 0 while it is not loaded.
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


class Searches(Writes):
    """The operations that find episodes by what they say, and all those that read and write."""

    def search(
        self,
        query: str,
        limit: int,
        *,
        episode_type: str | None,
        memory_type: MemoryType | None,
        start: datetime | None,
        end: datetime | None,
    ) -> list[Episode]:
        """The episodes that fit best by their words."""
        check_query(query)
        check_limit(limit)
        check_filters(episode_type, memory_type)
        for name, moment in (("start", start), ("end", end)):
            if moment is not None:
                check_moment(moment, name)
        where = Filter(
            episode_type,
            None if memory_type is None else MEMORY_TYPE_NUMBERS[memory_type],
            None if start is None else us_of_datetime(start),
            None if end is None else us_of_datetime(end),
        )
        now_us = self._context.now_us()
        hits = self._ask(lambda index: keyword(index, query, limit, where=where, at_us=now_us))
        return [episode for _, episode in self._read(hits)]

    def search_by_meaning(
        self, query: str, limit: int, min_score: float | None, *, explain: bool
    ) -> list[SearchResult]:
        """The episodes that are nearest in meaning."""
        check_query(query)
        check_limit(limit)
        check_score(min_score)
        return self._results(lambda index: semantic(index, query, limit, min_score=min_score), explain=explain)

    def search_by_both(
        self, query: str, limit: int, semantic_weight: float | None, *, explain: bool
    ) -> list[SearchResult]:
        """The episodes that fit best by words and meaning."""
        check_query(query)
        check_limit(limit)
        now_us = self._context.now_us()
        return self._results(
            lambda index: hybrid(index, query, limit, semantic_weight=semantic_weight, at_us=now_us), explain=explain
        )

    def find_similar(self, id: str, limit: int, *, explain: bool) -> list[SearchResult]:
        """The episodes that are nearest in meaning to one of them."""
        id_bytes = parse_id(id)
        check_limit(limit)

        def question(index: AgentIndex) -> list[Hit]:
            if id_bytes not in index:
                raise NotFoundError(f"agent {self.agent_id!r} has no episode {format_id(id_bytes)}")
            return similar(index, id_bytes, limit)

        return self._results(question, explain=explain)

    def search_status(self) -> SearchStatus:
        """What is indexed, and how."""
        pending = self._indexing.pending(self._agent)
        return SearchStatus(
            enabled=self._indexing.mode != "off",
            indexing=self._indexing.mode,
            language=self._indexing.language,
            analyser_version=ANALYSER_VERSION,
            model=TABLE_MODEL,
            dimensions=TABLE_DIMENSIONS,
            indexed=pending.indexed,
            pending=pending.pending,
            ram_bytes=pending.ram_bytes,
        )

    def _results(self, question: Callable[[AgentIndex], list[Hit]], *, explain: bool) -> list[SearchResult]:
        check_flag(explain, "explain")
        return [
            SearchResult(
                episode=episode,
                score=hit.score,
                keyword_score=hit.keyword_score,
                semantic_score=hit.semantic_score,
                explanation=dict(hit.parts) if explain else None,
            )
            for hit, episode in self._read(self._ask(question))
        ]

    def _ask(self, question: Callable[[AgentIndex], list[Hit]]) -> list[Hit]:
        if self._indexing.mode == "off":
            raise InvalidError(
                "search is switched off in this store", remedy='open it with search.indexing = "background" or "inline"'
            )
        return self._indexing.ask(self._agent, question)

    def _read(self, hits: Sequence[Hit]) -> list[tuple[Hit, Episode]]:
        """The episodes of hits, as they are now; without those that went meanwhile."""
        ids = [hit.id_bytes for hit in hits]
        values = self._backend.get_many([self._keys.episode(id_bytes) for id_bytes in ids])
        now_us = self._context.now_us()
        found = []
        for hit, value, state in zip(hits, values, self._states(ids), strict=False):
            episode = None if value is None else self._restore(hit.id_bytes, value, state, now_us)
            if episode is not None:
                if episode.relevance < FRESH:
                    self._accessed(episode)
                found.append((hit, episode))
        return found


def check_query(query: object) -> None:
    """Refuse what is no text, or holds what is no character."""
    if not isinstance(query, str):
        raise InvalidError(f"a query is {type(query).__name__}", remedy="give text")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise InvalidError("a query holds a lone surrogate", remedy="replace it: it is not a character") from None


def check_score(min_score: object) -> None:
    """Refuse what is neither None nor a number."""
    if min_score is not None and (type(min_score) not in (int, float) or not isfinite(min_score)):  # type: ignore[arg-type]
        raise InvalidError(f"min_score is {shown(min_score)}", remedy="give a number, or leave it out")
