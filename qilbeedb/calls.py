"""The verbs of an agent's memory as calls of a server: what is sent, and what its answer means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypedDict, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import asdict, fields

from qilbee_core import (
    ClearReceipt,
    Consolidation,
    ConsolidationResult,
    Episode,
    ForgetReceipt,
    InvalidError,
    JSONObject,
    MemoryStatistics,
    MemoryType,
    PurgeReceipt,
    SearchResult,
    SearchStatus,
    UndoReceipt,
    check_storable,
    encode_agent_id,
)
from qilbeedb import wire
from qilbeedb.exchange import Call, Effect, Reply

__all__ = ["Filters", "Imported", "MemoryCalls", "Page", "answered", "body_of", "filters"]

T = TypeVar("T")
L = TypeVar("L", str, wire.LeftResult)
A = TypeVar("A", bound=wire.Answer)

_BATCH_EPISODES_MAX = 1000
_BATCH_BYTES_MAX = 1 << 20  # half of what a server takes as one body
_PAGE_EPISODES = 256
_ID = re.compile(r"[0-9a-f-]{36}")
_ABSENT = frozenset({int(HTTPStatus.NOT_FOUND)})
_NOTHING = wire.Nothing()


class Filters(TypedDict):
    """Which episodes an answer may have, as the forms of :mod:`qilbeedb.wire` have it."""

    episode_type: str | None
    memory_type: MemoryType | None
    start: wire.Moment | None
    end: wire.Moment | None


def filters(
    episode_type: str | None, memory_type: MemoryType | None, start: datetime | None, end: datetime | None
) -> Filters:
    """The filters that a caller gives."""
    return {
        "episode_type": episode_type,
        "memory_type": memory_type,
        "start": _seconds(start, "start"),
        "end": _seconds(end, "end"),
    }


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """Some of what was asked for, and the call that gives what follows; None: nothing does."""

    items: list[T]
    rest: Call[Page[T]] | None = None


class Imported:
    """The ids that an import has stored so far, for the exception that stops it; a context manager."""

    def __init__(self, progress: Callable[[int], object] | None) -> None:
        if progress is not None and not callable(progress):
            raise InvalidError(f"progress is {type(progress).__name__}", remedy="give a function of one number")
        self._progress = progress
        self.ids: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            error.stored_ids = self.ids  # type: ignore[attr-defined]  # any exception may stop it
            error.add_note(f"{len(self.ids)} episodes were stored before this; their ids are in stored_ids")

    def add(self, ids: Iterable[str]) -> None:
        """Remember what was stored, and tell how much that is."""
        self.ids += ids
        if self._progress is not None:
            self._progress(len(self.ids))


class MemoryCalls:
    """The calls of one agent's memory; InvalidError for what a server would refuse without looking."""

    def __init__(self, agent_id: str) -> None:
        self.agent_id = encode_agent_id(agent_id).decode()
        self._path = f"/memory/{quote(self.agent_id, safe='')}"

    def store(self, episode: Episode, idempotency_key: str | None) -> Call[str]:
        """Store one episode."""
        if idempotency_key is not None and not isinstance(idempotency_key, str):
            raise InvalidError(f"idempotency_key is {type(idempotency_key).__name__}", remedy="give text")
        return self._post(
            "/episodes",
            self._stored(episode, idempotency_key),
            answered(wire.StoredAnswer, lambda answer: answer.episode_id),
            Effect.ONCE,
        )

    def store_many(self, episodes: Iterable[Episode]) -> Call[list[str]]:
        """Store some in one batch."""
        batch = next(_batches(episodes, _BATCH_EPISODES_MAX + 1), [])
        return self._post(
            "/episodes/batch",
            wire.StoreManyBody(episodes=[self._stored(episode) for episode in batch]),
            answered(wire.StoredManyAnswer, lambda answer: list(answer.episode_ids)),
            Effect.ONCE,
        )

    def parts(self, episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
        """Cut a stream into batches that fit into one body each."""
        for batch in _batches(episodes, _BATCH_EPISODES_MAX):
            part: list[Episode] = []
            part_bytes = 0
            for episode in batch:
                size = len(body_of(self._stored(episode)))
                if part and part_bytes + size > _BATCH_BYTES_MAX:
                    yield part
                    part, part_bytes = [], 0
                part.append(episode)
                part_bytes += size
            yield part

    def get(self, id: str, as_of: datetime | None) -> Call[Episode | None]:
        """One episode by its id."""
        query = wire.AsOfQuery(as_of=_seconds(as_of, "as_of"))
        return self._get(f"/episodes/{_checked(id)}", _unless_absent(_episode_in, None), query, _ABSENT)

    def get_many(self, ids: Sequence[str], as_of: datetime | None) -> Call[Page[Episode | None]]:
        """Several by their ids."""
        if isinstance(ids, str) or not isinstance(ids, Sequence):
            raise InvalidError(f"ids is {type(ids).__name__}", remedy="give a list of ids")
        return self._each(list(map(_checked, ids)), _seconds(as_of, "as_of"), lambda _, episode: [episode])

    def _each(
        self, asked: Sequence[L], as_of: wire.Moment | None, made: Callable[[L, Episode | None], list[T]]
    ) -> Call[Page[T]]:
        """What is made of each thing that was asked for by its id, and of its episode, where it is there."""

        def page(answer: wire.EpisodesAnswer) -> Page[T]:
            told = [None if each is None else episode_of(each) for each in answer.episodes]
            items = [item for each, episode in zip(asked, told, strict=False) for item in made(each, episode)]
            return Page(items=items, rest=self._each(asked[len(told) :], as_of, made) if answer.left else None)

        ids = [each.episode_id if isinstance(each, wire.LeftResult) else each for each in asked]
        return self._post("/episodes/get", wire.IdsBody(ids=ids, as_of=as_of), answered(wire.EpisodesAnswer, page))

    def recent(self, limit: int, before: str | None, where: Filters, as_of: datetime | None) -> Call[Page[Episode]]:
        """The newest ones."""
        query = wire.RecentQuery(limit=limit, before=before, as_of=_seconds(as_of, "as_of"), **where)

        def page(answer: wire.EpisodesAnswer) -> Page[Episode]:
            episodes = _present(answer.episodes)
            is_all = answer.next_cursor is None or len(episodes) >= limit
            rest = None if is_all else self.recent(limit - len(episodes), answer.next_cursor, where, as_of)
            return Page(items=episodes, rest=rest)

        return self._get("/episodes/recent", answered(wire.EpisodesAnswer, page), query)

    def recall(self, limit: int, min_relevance: float | None, where: Filters) -> Call[Page[Episode]]:
        """The most relevant ones."""

        def page(answer: wire.EpisodesAnswer) -> Page[Episode]:
            rest = self._each(answer.left, None, lambda _, episode: [episode] if episode else [])
            return Page(items=_present(answer.episodes), rest=rest if answer.left else None)

        body = wire.RecallBody(limit=limit, min_relevance=min_relevance, **where)
        return self._post("/recall", body, answered(wire.EpisodesAnswer, page))

    def between(
        self, where: Filters, after: str | None, as_of: datetime | None, *, reverse: bool
    ) -> Call[Page[Episode]]:
        """Those of a time range."""
        at = _seconds(as_of, "as_of")
        query = wire.EpisodesQuery(limit=_PAGE_EPISODES, reverse=reverse, cursor=after, as_of=at, **where)

        def page(answer: wire.EpisodesAnswer) -> Page[Episode]:
            cursor = answer.next_cursor
            rest = None if cursor is None else self.between(where, cursor, as_of, reverse=reverse)
            return Page(items=_present(answer.episodes), rest=rest)

        return self._get("/episodes", answered(wire.EpisodesAnswer, page), query)

    def search(self, query: str, limit: int, where: Filters, as_of: datetime | None) -> Call[Page[Episode]]:
        """A search by words."""
        at = _seconds(as_of, "as_of")

        def page(answer: wire.SearchAnswer) -> Page[Episode]:
            rest = self._each(answer.left, at, lambda _, episode: [episode] if episode else [])
            return Page(items=_present(answer.episodes), rest=rest if answer.left else None)

        body = wire.SearchBody(query=query, limit=limit, as_of=at, **where)
        return self._post("/episodes/search", body, answered(wire.SearchAnswer, page))

    def semantic(
        self, query: str, limit: int, min_score: float | None, where: Filters, as_of: datetime | None, *, explain: bool
    ) -> Call[Page[SearchResult]]:
        """A search by meaning."""
        at = _seconds(as_of, "as_of")
        body = wire.SemanticBody(query=query, limit=limit, min_score=min_score, explain=explain, as_of=at, **where)
        return self._post("/episodes/semantic-search", body, self._results_in(at))

    def hybrid(
        self, query: str, limit: int, weight: float | None, where: Filters, as_of: datetime | None, *, explain: bool
    ) -> Call[Page[SearchResult]]:
        """A search by both; ``weight`` is the share of meaning."""
        at = _seconds(as_of, "as_of")
        body = wire.HybridBody(query=query, limit=limit, semantic_weight=weight, explain=explain, as_of=at, **where)
        return self._post("/episodes/hybrid-search", body, self._results_in(at))

    def similar(
        self, id: str, limit: int, where: Filters, as_of: datetime | None, *, explain: bool
    ) -> Call[Page[SearchResult]]:
        """Those that are near to one of them."""
        at = _seconds(as_of, "as_of")
        query = wire.SimilarQuery(limit=limit, explain=explain, as_of=at, **where)
        return self._get(f"/episodes/{_checked(id)}/similar", self._results_in(at), query)

    def _results_in(self, as_of: wire.Moment | None) -> Callable[[Reply], Page[SearchResult]]:
        def result(told: wire.Scored, episode: Episode | None) -> list[SearchResult]:
            if episode is None:  # it went between the two calls
                return []
            return [
                SearchResult(
                    episode=episode,
                    score=told.score,
                    keyword_score=told.keyword_score,
                    semantic_score=told.semantic_score,
                    explanation=told.explanation,
                )
            ]

        def page(answer: wire.ResultsAnswer) -> Page[SearchResult]:
            items = [item for told in answer.results for item in result(told, episode_of(told.episode))]
            return Page(items=items, rest=self._each(answer.left, as_of, result) if answer.left else None)

        return answered(wire.ResultsAnswer, page)

    def search_status(self) -> Call[SearchStatus]:
        """What search knows."""

        def status_of(answer: wire.SearchStatusAnswer) -> SearchStatus:
            told = asdict(answer)
            return SearchStatus(indexed=told.pop("indexed_episodes"), pending=told.pop("pending_episodes"), **told)

        return self._get("/semantic-search/status", answered(wire.SearchStatusAnswer, status_of))

    def update(
        self, id: str, content: JSONObject | None, metadata: JSONObject | None, episode_type: str | None
    ) -> Call[Episode]:
        """Change what is given."""
        kind = "changed" if episode_type is None else episode_type
        check_storable(Episode(self.agent_id, kind, {} if content is None else content, metadata=metadata))
        body = wire.UpdateBody(content=content, metadata=metadata, episode_type=episode_type)
        return self._send("PATCH", f"/episodes/{_checked(id)}", body, _episode_in, Effect.ONCE)

    def history(self, id: str, after: datetime | None) -> Call[Page[Episode]]:
        """Its earlier versions."""

        def page(answer: wire.HistoryAnswer) -> Page[Episode]:
            versions = _present(answer.episodes)
            return Page(items=versions, rest=self.history(id, versions[-1].ended_at) if answer.has_more else None)

        query = wire.HistoryQuery(after=_seconds(after, "after"))
        return self._get(f"/episodes/{_checked(id)}/history", answered(wire.HistoryAnswer, page), query)

    def invalidate(self, id: str) -> Call[bool]:
        """Retire one. Where an answer was lost and it is not there now, this call has retired it."""
        return Call(
            method="POST",
            path=f"{self._path}/episodes/{_checked(id)}/invalidate",
            read=_was_there,
            effect=Effect.ONCE,
            expected=_ABSENT,
        )

    def purge(self, before: datetime, *, erase: bool) -> Call[PurgeReceipt]:
        """Remove what has ended."""
        at = _seconds(before, "before")
        if at is None:
            raise InvalidError("before is None, not a datetime", remedy="give the time until when to purge")
        read = answered(wire.PurgeAnswer, lambda answer: PurgeReceipt(**asdict(answer)))
        return self._post("/purge", wire.PurgeBody(before=at, erase=erase), read, Effect.EACH)

    def boost(self, id: str, share: float) -> Call[Episode]:
        """Make it more relevant."""
        return self._post(f"/episodes/{_checked(id)}/boost", wire.BoostBody(amount=share), _episode_in, Effect.EACH)

    def pin(self, id: str, *, pinned: bool) -> Call[Episode]:
        """Keep it, or keep it no more."""
        return self._post(f"/episodes/{_checked(id)}/pin", wire.PinBody(pinned=pinned), _episode_in, Effect.ONCE)

    def forget(
        self, min_relevance: float, max_episodes: int | None, max_bytes: int | None, *, dry_run: bool
    ) -> Call[ForgetReceipt]:
        """Delete what is not relevant."""

        def receipt(answer: wire.ForgetAnswer) -> ForgetReceipt:
            told = asdict(answer)
            return ForgetReceipt(episodes=told.pop("forgotten"), **told)

        body = wire.ForgetBody(
            min_relevance=min_relevance, max_episodes=max_episodes, max_bytes=max_bytes, dry_run=dry_run
        )
        effect = Effect.NONE if dry_run else Effect.EACH
        return self._post("/forget", body, answered(wire.ForgetAnswer, receipt), effect)

    def consolidate(self, policy: str, *, dry_run: bool, since: datetime | None) -> Call[ConsolidationResult]:
        """Let a policy make less of it."""

        def result(answer: wire.ConsolidationAnswer) -> ConsolidationResult:
            told = asdict(answer)
            del told["consolidated"]
            told["created"] = _present(answer.created)
            told["undo_until"] = None if answer.undo_until is None else wire.moment_of(answer.undo_until)
            return ConsolidationResult(**told)

        body = wire.ConsolidateBody(policy=policy, dry_run=dry_run, since=_seconds(since, "since"))
        effect = Effect.NONE if dry_run else Effect.EACH
        return self._post("/consolidate", body, answered(wire.ConsolidationAnswer, result), effect)

    def consolidations(self) -> Call[list[Consolidation]]:
        """What can be undone."""

        def undoable(told: wire.UndoableAnswer) -> Consolidation:
            when, until = wire.moment_of(told.consolidated_at), wire.moment_of(told.undo_until)
            return Consolidation(**{**asdict(told), "consolidated_at": when, "undo_until": until})

        read = answered(wire.ConsolidationsAnswer, lambda answer: list(map(undoable, answer.consolidations)))
        return self._get("/consolidations", read)

    def undo(self, consolidation_id: str) -> Call[UndoReceipt]:
        """Take one back."""
        path = f"{self._path}/consolidations/{_checked(consolidation_id, _CONSOLIDATION)}/undo"
        read = answered(wire.UndoAnswer, lambda answer: UndoReceipt(**asdict(answer)))
        return Call(method="POST", path=path, read=read, effect=Effect.EACH)

    def delete(self, id: str, *, erase: bool) -> Call[bool]:
        """Delete one. Where an answer was lost and it is not there now, this call has deleted it."""
        return Call(
            method="DELETE",
            path=f"{self._path}/episodes/{_checked(id)}",
            query=_query_of(wire.EraseQuery(erase=erase)),
            read=_was_there,
            effect=Effect.ONCE,
            expected=_ABSENT,
        )

    def clear(self, *, erase: bool) -> Call[ClearReceipt]:
        """Delete all."""
        return Call(
            method="DELETE",
            path=self._path,
            query=_query_of(wire.EraseQuery(erase=erase)),
            read=answered(wire.ClearAnswer, lambda answer: ClearReceipt(**asdict(answer))),
            effect=Effect.EACH,
        )

    def statistics(self) -> Call[MemoryStatistics]:
        """Counts and sizes."""

        def statistics_of(answer: wire.StatisticsAnswer) -> MemoryStatistics:
            told = asdict(answer)
            for name in ("oldest_episode", "newest_episode"):
                told[name] = None if told[name] is None else wire.moment_of(told[name])
            return MemoryStatistics(**told)

        return self._get("/statistics", answered(wire.StatisticsAnswer, statistics_of))

    def _stored(self, episode: Episode, idempotency_key: str | None = None) -> wire.StoreBody:
        check_storable(episode)
        if episode.agent_id != self.agent_id and encode_agent_id(episode.agent_id).decode() != self.agent_id:
            raise InvalidError(
                f"the episode belongs to agent {episode.agent_id!r}, this memory to {self.agent_id!r}",
                remedy=f"store it in agent_memory({episode.agent_id!r})",
            )
        body = wire.StoreBody.of(episode, idempotency_key)
        body.agent_id = self.agent_id
        return body

    def _get(
        self,
        path: str,
        read: Callable[[Reply], T],
        query: wire.Request = _NOTHING,
        expected: frozenset[int] = frozenset(),
    ) -> Call[T]:
        return Call(method="GET", path=self._path + path, query=_query_of(query), read=read, expected=expected)

    def _post(self, path: str, body: wire.Request, read: Callable[[Reply], T], effect: Effect = Effect.NONE) -> Call[T]:
        return self._send("POST", path, body, read, effect)

    def _send(self, method: str, path: str, body: wire.Request, read: Callable[[Reply], T], effect: Effect) -> Call[T]:
        return Call(method=method, path=self._path + path, body=body_of(body), read=read, effect=effect)


def body_of(body: wire.Request) -> bytes:
    """A body as bytes; InvalidError for what its form does not allow, or JSON cannot say."""
    told = {field.encode_name: getattr(body, field.name) for field in fields(body)}
    told = {name: value for name, value in told.items() if value is not UNSET}
    for name, value in told.items():
        if isinstance(value, float) and not math.isfinite(value):  # would go over as null
            raise InvalidError(f"{name} is {value}", remedy="give a finite number")
    try:
        msgspec.convert(told, type(body))
        return wire.encode(body)
    except UnicodeEncodeError:
        raise InvalidError("a text holds a lone surrogate", remedy="replace it: it is not a character") from None
    except (TypeError, msgspec.ValidationError) as error:
        raise InvalidError(str(error)) from None


def _query_of(query: wire.Request) -> dict[str, str | int | float]:
    """The same as what stands behind a path."""
    told: dict[str, str | int | float] = msgspec.json.decode(body_of(query))
    return {name: ("true" if value else "false") if type(value) is bool else value for name, value in told.items()}


def answered(form: type[A], meaning: Callable[[A], T]) -> Callable[[Reply], T]:
    """A reader of answers of one form."""
    return lambda reply: meaning(msgspec.json.decode(reply.body, type=form))


def episode_of(told: wire.EpisodeAnswer) -> Episode:
    """The episode that an answer tells of."""
    expires_at = None if told.expires_at is None else wire.moment_of(told.expires_at)
    if told.transaction_time is None:  # what a dry run would make
        return Episode(
            told.agent_id,
            told.episode_type,
            told.content,
            metadata=told.metadata,
            memory_type=told.memory_type,
            relevance=told.relevance,
            expires_at=expires_at,
            id=told.episode_id,
        )
    return Episode.recorded(
        told.agent_id,
        told.episode_type,
        told.content,
        id=told.episode_id,
        metadata=told.metadata,
        memory_type=told.memory_type,
        relevance=told.relevance,
        transaction_time=wire.moment_of(told.transaction_time),
        expires_at=expires_at,
        pinned=told.pinned,
        ended_at=None if told.ended_at is None else wire.moment_of(told.ended_at),
        superseded_by=told.superseded_by,
    )


def _batches(episodes: Iterable[Episode], size: int) -> Iterator[list[Episode]]:
    if not isinstance(episodes, Iterable):
        raise InvalidError(f"episodes is {type(episodes).__name__}", remedy="give a list, or any iterable, of Episode")
    remaining = iter(episodes)
    while batch := list(islice(remaining, size)):
        yield batch


def _present(told: Sequence[wire.EpisodeAnswer | None]) -> list[Episode]:
    return [episode_of(each) for each in told if each is not None]


def _unless_absent(read: Callable[[Reply], T], absent: None) -> Callable[[Reply], T | None]:
    return lambda reply: absent if reply.status == HTTPStatus.NOT_FOUND else read(reply)


def _was_there(reply: Reply) -> bool:
    return reply.status != HTTPStatus.NOT_FOUND or reply.is_repeat


_episode_in = answered(wire.EpisodeAnswer, episode_of)


_EPISODE = ("an episode id", "use an id that store_episode() or Episode.id gave")
_CONSOLIDATION = ("the id of a consolidation", "use the consolidation_id that consolidate() or consolidations() gave")


def _checked(id: object, kind: tuple[str, str] = _EPISODE) -> str:
    """An id that changes no path; what it says is for the server to judge."""
    if not isinstance(id, str) or not _ID.fullmatch(id):
        shown = repr(id[:80]) if isinstance(id, str) else type(id).__name__
        what, remedy = kind
        raise InvalidError(f"{shown} is not {what}", remedy=remedy)
    return id


def _seconds(moment: datetime | None, name: str) -> wire.Moment | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise InvalidError(
            f"{name} is {type(moment).__name__}, not a datetime", remedy="give datetime.fromtimestamp(seconds, UTC)"
        )
    return wire.seconds_of(moment)
