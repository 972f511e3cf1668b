"""Searching an agent's memory: what is asked is checked here, answered by its index, and read from its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from math import inf
from typing import Protocol

from qilbee_core.episode import Episode
from qilbee_core.errors import InvalidError, NotFoundError, shown
from qilbee_core.ids import format_id, parse_id
from qilbee_core.limits import LIMIT_MAX, check_flag, check_limit
from qilbee_core.memory.embedding import Direction
from qilbee_core.memory.filters import EpisodeFilter
from qilbee_core.memory.found import SearchResult, SearchStatus
from qilbee_core.memory.reads import FRESH, checked_us
from qilbee_core.memory.retiring import Retiring
from qilbee_core.memory.room import Unread
from qilbee_core.search.analysis import ANALYSER_VERSION
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.meaning import Meaning
from qilbee_core.search.nearest import Nearness
from qilbee_core.search.question import question_of
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

    def search(self, query: str, limit: int, where: EpisodeFilter, as_of: datetime | None) -> list[Episode]:
        """The episodes that fit best by their words."""
        check_query(query)
        check_limit(limit)
        now_us, among = self._context.now_us(), where.in_index(as_of)

        def question(index: AgentIndex, most: int) -> list[Hit]:
            return keyword(index, query, most, where=among, at_us=now_us)

        return [episode for _, episode in self._found(question, limit, where, as_of)]

    def search_by_meaning(
        self,
        query: str,
        limit: int,
        min_score: float | None,
        where: EpisodeFilter,
        as_of: datetime | None,
        *,
        explain: bool,
    ) -> list[SearchResult]:
        """The episodes that are nearest in meaning."""
        check_query(query)
        check_limit(limit)
        check_score(min_score)
        asked, among = self._indexing.embedding.asked(query), where.in_index(as_of)

        def question(index: AgentIndex, most: int) -> list[Hit]:
            nearness = self._nearness(index, asked, query, most)
            return semantic(index, query, most, nearness=nearness, where=among, min_score=min_score)

        return self._results(question, limit, where, as_of, explain=explain)

    def search_by_both(
        self,
        query: str,
        limit: int,
        semantic_weight: float | None,
        where: EpisodeFilter,
        as_of: datetime | None,
        *,
        explain: bool,
    ) -> list[SearchResult]:
        """The episodes that fit best by words and meaning."""
        check_query(query)
        check_limit(limit)
        now_us, among = self._context.now_us(), where.in_index(as_of)
        asked = None if semantic_weight == 0 else self._indexing.embedding.asked(query)

        def question(index: AgentIndex, most: int) -> list[Hit]:
            nearness, weight = self._nearness(index, asked, query, most), semantic_weight
            return hybrid(index, query, most, semantic_weight=weight, nearness=nearness, where=among, at_us=now_us)

        return self._results(question, limit, where, as_of, explain=explain)

    def find_similar(
        self, id: str, limit: int, where: EpisodeFilter, as_of: datetime | None, *, explain: bool
    ) -> list[SearchResult]:
        """The episodes that are nearest in meaning to one of them."""
        id_bytes = parse_id(id)
        check_limit(limit)
        among = where.in_index(as_of)

        def question(index: AgentIndex, most: int) -> list[Hit]:
            if id_bytes not in index:
                raise NotFoundError(f"agent {self.agent_id!r} has no episode {format_id(id_bytes)}")
            embedding = self._indexing.embedding
            own = embedding.of_episode(self._agent, index, id_bytes)
            words = partial(words_of, index, id_bytes)
            nearness = embedding.nearness(self._agent, index, own, words, most)
            return similar(index, id_bytes, most, nearness=nearness, where=among)

        return self._results(question, limit, where, as_of, explain=explain)

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

    def _nearness(self, index: AgentIndex, asked: Direction | None, query: str, most: int) -> Nearness | None:
        """By the encoder, where there is one that could be asked."""

        def words() -> Meaning:
            return Meaning(index, question_of(query, index, 0).idfs)

        return self._indexing.embedding.nearness(self._agent, index, asked, words, most)

    def _results(
        self, question: Question, limit: int, where: EpisodeFilter, as_of: datetime | None, *, explain: bool
    ) -> list[SearchResult]:
        check_flag(explain, "explain")
        return [
            SearchResult(
                episode=episode,
                score=hit.score,
                keyword_score=hit.keyword_score,
                semantic_score=hit.semantic_score,
                explanation=dict(hit.parts) if explain else None,
            )
            for hit, episode in self._found(question, limit, where, as_of)
        ]

    def _found(
        self, question: Question, limit: int, where: EpisodeFilter, as_of: datetime | None
    ) -> list[tuple[Hit, Episode]]:
        """What answers a question as it is now; or what of it was known at a time, as it was."""
        if as_of is None:
            return self._read(self._ask(lambda index: question(index, limit)), where, None)
        at_us, most = checked_us(as_of), limit
        while True:
            hits = self._ask(partial(question, most=most))
            past = zip(hits, self._each_past([hit.id_bytes for hit in hits], at_us), strict=True)
            known = [hit for hit, episode in past if episode is not None and where.passes(episode)]
            if len(known) >= limit or len(hits) < most or most == LIMIT_MAX:
                return self._read(known[:limit], where, at_us)
            most = min(4 * most, LIMIT_MAX)

    def _ask(self, question: Callable[[AgentIndex], list[Hit]]) -> list[Hit]:
        if self._indexing.mode == "off":
            raise InvalidError(
                "search is switched off in this store", remedy='open it with search.indexing = "background" or "inline"'
            )
        return self._indexing.ask(self._agent, question)

    def _read(self, hits: Sequence[Hit], where: EpisodeFilter, at_us: int | None) -> list[tuple[Hit, Episode]]:
        """The episodes of hits, without those that went, or became of another type, meanwhile."""
        found = []
        with closing(self._each([hit.id_bytes for hit in hits], at_us)) as episodes:
            for number, (hit, episode) in enumerate(zip(hits, episodes, strict=True)):
                if episode is None or not where.passes(episode):
                    continue
                if not self._takes(episode):
                    assert self._room is not None
                    self._room.left = list(map(_unread, hits[number:]))
                    break
                if at_us is None and episode.relevance < FRESH:
                    self._accessed(episode)
                found.append((hit, episode))
        return found


def _unread(hit: Hit) -> Unread:
    return Unread(
        id=format_id(hit.id_bytes),
        score=hit.score,
        keyword_score=hit.keyword_score,
        semantic_score=hit.semantic_score,
        explanation=dict(hit.parts),
    )


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
    if min_score is None:
        return
    if (type(min_score) is not float and type(min_score) is not int) or not -inf < min_score < inf:
        raise InvalidError(f"min_score is {shown(min_score)}", remedy="give a number, or leave it out")
