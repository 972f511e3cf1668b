"""Searching an agent's memory: what is asked is checked here, answered by its index, and read from its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from math import isfinite
from typing import Protocol

from qilbee_core.episode import Episode, MemoryType
from qilbee_core.errors import InvalidError, NotFoundError, shown
from qilbee_core.ids import format_id, parse_id, us_of_datetime
from qilbee_core.limits import LIMIT_MAX, check_flag, check_limit, check_moment
from qilbee_core.memory.document import MEMORY_TYPE_NUMBERS
from qilbee_core.memory.embedding import Direction
from qilbee_core.memory.found import SearchResult, SearchStatus
from qilbee_core.memory.reads import FRESH, check_filters
from qilbee_core.memory.retiring import Retiring
from qilbee_core.search.analysis import ANALYSER_VERSION
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.meaning import Meaning
from qilbee_core.search.nearest import Nearness
from qilbee_core.search.question import question_of
from qilbee_core.search.score import Filter
from qilbee_core.search.search import Hit, hybrid, keyword, semantic, similar, words_of
from qilbee_core.search.table import TABLE_DIMENSIONS, TABLE_MODEL

__all__ = ["Searches"]


class Question(Protocol):
    """What an index is asked."""

    def __call__(self, index: AgentIndex, most: int) -> list[Hit]:
        """At most so many hits, best first."""
        ...


class Searches(Retiring):
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
        as_of: datetime | None = None,
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

        def question(index: AgentIndex, most: int) -> list[Hit]:
            return keyword(index, query, most, where=where, at_us=now_us)

        return [episode for _, episode in self._found(question, limit, as_of)]

    def search_by_meaning(
        self, query: str, limit: int, min_score: float | None, *, explain: bool, as_of: datetime | None = None
    ) -> list[SearchResult]:
        """The episodes that are nearest in meaning."""
        check_query(query)
        check_limit(limit)
        check_score(min_score)

        asked = self._indexing.embedding.asked(query)

        def question(index: AgentIndex, most: int) -> list[Hit]:
            return semantic(index, query, most, nearness=self._nearness(index, asked, query), min_score=min_score)

        return self._results(question, limit, as_of, explain=explain)

    def search_by_both(
        self, query: str, limit: int, semantic_weight: float | None, *, explain: bool, as_of: datetime | None = None
    ) -> list[SearchResult]:
        """The episodes that fit best by words and meaning."""
        check_query(query)
        check_limit(limit)
        now_us = self._context.now_us()
        asked = None if semantic_weight == 0 else self._indexing.embedding.asked(query)

        def question(index: AgentIndex, most: int) -> list[Hit]:
            nearness = self._nearness(index, asked, query)
            return hybrid(index, query, most, semantic_weight=semantic_weight, nearness=nearness, at_us=now_us)

        return self._results(question, limit, as_of, explain=explain)

    def find_similar(self, id: str, limit: int, *, explain: bool, as_of: datetime | None = None) -> list[SearchResult]:
        """The episodes that are nearest in meaning to one of them."""
        id_bytes = parse_id(id)
        check_limit(limit)

        def question(index: AgentIndex, most: int) -> list[Hit]:
            if id_bytes not in index:
                raise NotFoundError(f"agent {self.agent_id!r} has no episode {format_id(id_bytes)}")
            embedding = self._indexing.embedding
            own = embedding.of_episode(self._agent, index, id_bytes)
            words = partial(words_of, index, id_bytes)
            return similar(index, id_bytes, most, nearness=embedding.nearness(self._agent, index, own, words))

        return self._results(question, limit, as_of, explain=explain)

    def search_status(self) -> SearchStatus:
        """What is indexed, and how."""
        pending = self._indexing.pending(self._agent)
        embedding = self._indexing.embedding
        encoder = embedding.encoder
        return SearchStatus(
            enabled=self._indexing.mode != "off",
            indexing=self._indexing.mode,
            language=self._indexing.language,
            analyser_version=ANALYSER_VERSION,
            model=TABLE_MODEL if encoder is None else encoder.name,
            dimensions=TABLE_DIMENSIONS if encoder is None else encoder.dimensions,
            indexed=pending.indexed,
            pending=pending.pending,
            ram_bytes=pending.ram_bytes,
            vectors_pending=embedding.pending(self._agent),
            embedder_problem=embedding.problem,
        )

    def _nearness(self, index: AgentIndex, asked: Direction | None, query: str) -> Nearness | None:
        """By the encoder, where there is one that could be asked."""

        def words() -> Meaning:
            return Meaning(index, question_of(query, index, 0).idfs)

        return self._indexing.embedding.nearness(self._agent, index, asked, words)

    def _results(self, question: Question, limit: int, as_of: datetime | None, *, explain: bool) -> list[SearchResult]:
        check_flag(explain, "explain")
        return [
            SearchResult(
                episode=episode,
                score=hit.score,
                keyword_score=hit.keyword_score,
                semantic_score=hit.semantic_score,
                explanation=dict(hit.parts) if explain else None,
            )
            for hit, episode in self._found(question, limit, as_of)
        ]

    def _found(self, question: Question, limit: int, as_of: datetime | None) -> list[tuple[Hit, Episode]]:
        """What answers a question as it is now; or what of it was known at a time, as it was."""
        if as_of is None:
            return self._read(self._ask(lambda index: question(index, limit)))
        check_moment(as_of, "as_of")
        most = limit
        while True:
            hits = self._ask(partial(question, most=most))
            past = self._get_past([hit.id_bytes for hit in hits], as_of)
            found = [(hit, episode) for hit, episode in zip(hits, past, strict=True) if episode is not None]
            if len(found) >= limit or len(hits) < most or most == LIMIT_MAX:
                return found[:limit]
            most = min(4 * most, LIMIT_MAX)

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
