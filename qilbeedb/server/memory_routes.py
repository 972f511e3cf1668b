"""The memory of agents over HTTP: each verb of ``AgentMemory`` under its address."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TypedDict, cast

from msgspec import Raw, Struct

from qilbee_core import (
    AsyncAgentMemory,
    Episode,
    InvalidError,
    MemoryType,
    NotFoundError,
    Room,
    SearchResult,
    read_within,
    store_anew,
)
from qilbeedb.accounts import Permission
from qilbeedb.exceptions import NotEnabledError
from qilbeedb.server.route import Call, Reply, route
from qilbeedb.wire import (
    Answer,
    AsOfQuery,
    BoostBody,
    ClearAnswer,
    ConsolidateBody,
    ConsolidationAnswer,
    ConsolidationsAnswer,
    EpisodeAnswer,
    EpisodesAnswer,
    EpisodesQuery,
    EraseQuery,
    Filtered,
    ForgetAnswer,
    ForgetBody,
    HistoryAnswer,
    HistoryQuery,
    HybridBody,
    IdsBody,
    LeftResult,
    Nothing,
    PinBody,
    PurgeAnswer,
    PurgeBody,
    RecallBody,
    RecentQuery,
    Result,
    ResultsAnswer,
    SearchAnswer,
    SearchBody,
    SearchStatusAnswer,
    SemanticBody,
    SimilarQuery,
    StatisticsAnswer,
    StoreBody,
    StoredAnswer,
    StoredManyAnswer,
    StoreManyBody,
    UndoableAnswer,
    UndoAnswer,
    UpdateBody,
    encode,
    moment_of,
    seconds_of,
)

__all__ = ["MEMORY_ROUTES"]

_OK = 200


class DeletedAnswer(Answer):
    """That an episode is deleted."""

    deleted: bool = True


class InvalidatedAnswer(Answer):
    """That an episode is retired."""

    invalidated: bool = True


# --- storing and changing


async def store_episode(call: Call[StoreBody]) -> Reply | StoredAnswer:
    """One episode, under the id or the idempotency key it is given; the same again stores nothing."""
    body, memory = call.body, call.memory
    episode = body.episode(memory.agent_id)
    stored_id, is_new = await store_anew(memory, episode, body.idempotency_key)
    if body.pinned:
        await memory.pin(stored_id)
    answer = StoredAnswer(episode_id=stored_id)
    return answer if is_new else Reply(answer, status=_OK)


async def store_episodes(call: Call[StoreManyBody]) -> StoredManyAnswer:
    """Episodes in one atomic batch."""
    agent_id = call.memory.agent_id
    for number, body in enumerate(call.body.episodes):
        if body.idempotency_key is not None or body.pinned:
            raise InvalidError(
                f"episodes[{number}] has an idempotencyKey or is pinned", remedy="store it alone, or pin it afterwards"
            )
    episodes = [body.episode(agent_id) for body in call.body.episodes]
    return StoredManyAnswer(episode_ids=await call.memory.store_episodes(episodes))


async def update_episode(call: Call[UpdateBody]) -> EpisodeAnswer:
    """Replace what is given, keep the rest."""
    body = call.body
    episode = await call.memory.update_episode(
        call.parameters["id"], content=body.content, metadata=body.metadata, episode_type=body.episode_type
    )
    return EpisodeAnswer.of(episode)


async def pin(call: Call[PinBody]) -> EpisodeAnswer:
    """Keep an episode, or let it go on as if it had never been pinned."""
    move = call.memory.pin if call.body.pinned else call.memory.unpin
    return EpisodeAnswer.of(await move(call.parameters["id"]))


async def boost(call: Call[BoostBody]) -> EpisodeAnswer:
    """Make an episode more relevant."""
    return EpisodeAnswer.of(await call.memory.boost(call.parameters["id"], call.body.amount))


async def delete_episode(call: Call[EraseQuery]) -> DeletedAnswer:
    """Delete an episode with all its versions."""
    if not await call.memory.delete_episode(call.parameters["id"], erase=call.body.erase):
        raise _not_there(call)
    return DeletedAnswer()


async def invalidate(call: Call[Nothing]) -> InvalidatedAnswer:
    """Retire an episode that is no longer true."""
    if not await call.memory.invalidate(call.parameters["id"]):
        raise _not_there(call)
    return InvalidatedAnswer()


# --- reading


async def get_episode(call: Call[AsOfQuery]) -> EpisodeAnswer:
    """One episode."""
    episode = await call.memory.get_episode(call.parameters["id"], as_of=_as_of(call.body))
    if episode is None:
        raise _not_there(call)
    return EpisodeAnswer.of(episode)


async def get_episodes(call: Call[IdsBody]) -> EpisodesAnswer:
    """One answer for each id."""
    room, memory = _room(call)
    ids = call.body.ids
    found = await memory.get_episodes(ids, as_of=_as_of(call.body))
    taken = iter(_taken(room))
    episodes = [None if episode is None else next(taken) for episode in found]
    return EpisodesAnswer(episodes=episodes, left=ids[len(found) :])


async def get_recent(call: Call[RecentQuery]) -> EpisodesAnswer:
    """The newest, newest first."""
    query = call.body
    room, memory = _room(call)
    episodes = await memory.get_recent_episodes(
        query.limit, before=query.before, as_of=_as_of(query), **_filters(query)
    )
    has_more = room.is_full or len(episodes) == query.limit
    return EpisodesAnswer(episodes=_taken(room), next_cursor=episodes[-1].id if has_more else None)


async def list_episodes(call: Call[EpisodesQuery]) -> EpisodesAnswer:
    """All of a time, page by page."""
    query = call.body
    room, memory = _room(call, episodes_max=query.limit)
    found = memory.episodes(after=query.cursor, reverse=query.reverse, as_of=_as_of(query), **_filters(query))
    async with aclosing(found) as episodes:  # type: ignore[type-var]
        ids = [episode.id async for episode in episodes]
    return EpisodesAnswer(episodes=_taken(room), next_cursor=ids[-1] if room.is_full else None)


async def recall(call: Call[RecallBody]) -> EpisodesAnswer:
    """The most relevant, most relevant first."""
    body = call.body
    room, memory = _room(call)
    await memory.recall(body.limit, min_relevance=body.min_relevance, **_filters(body))
    return EpisodesAnswer(episodes=_taken(room), left=[unread.id for unread in room.left])


async def history(call: Call[HistoryQuery]) -> HistoryAnswer:
    """The versions that updates replaced."""
    room, memory = _room(call)
    after = call.body.after
    await memory.history(call.parameters["id"], after=None if after is None else moment_of(after, "after"))
    return HistoryAnswer(episodes=_taken(room), has_more=room.is_full)


def _room(call: Call[Struct], *, episodes_max: int | None = None, times: int = 1) -> tuple[Room, AsyncAgentMemory]:
    """Room for the episodes of an answer, that has each so many times, and the memory to read them from."""
    bytes_max = call.services.settings.server.answer_bytes_max // times
    room = Room(bytes_max, _encoded, episodes_max=episodes_max)
    return room, read_within(call.memory, room)


def _encoded(episode: Episode) -> bytes:
    return encode(EpisodeAnswer.of(episode))


def _taken(room: Room) -> list[EpisodeAnswer]:
    """The episodes of an answer, encoded once: when it was seen whether there is room for them."""
    return cast("list[EpisodeAnswer]", list(map(Raw, room.taken)))


class _Filters(TypedDict):
    episode_type: str | None
    memory_type: MemoryType | None
    start: datetime | None
    end: datetime | None


def _filters(asked: Filtered) -> _Filters:
    return {
        "episode_type": asked.episode_type,
        "memory_type": asked.memory_type,
        "start": None if asked.start is None else moment_of(asked.start, "start"),
        "end": None if asked.end is None else moment_of(asked.end, "end"),
    }


def _as_of(
    query: AsOfQuery | EpisodesQuery | HybridBody | IdsBody | RecentQuery | SearchBody | SemanticBody | SimilarQuery,
) -> datetime | None:
    return None if query.as_of is None else moment_of(query.as_of, "asOf")


def _not_there(call: Call[AsOfQuery] | Call[EraseQuery] | Call[Nothing]) -> NotFoundError:
    return NotFoundError(f"agent {call.memory.agent_id!r} has no episode {call.parameters['id']}")


# --- searching


async def search(call: Call[SearchBody]) -> SearchAnswer:
    """By words."""
    _check_search(call)
    body = call.body
    room, memory = _room(call, times=2 if body.explain else 1)
    where, as_of = _filters(body), _as_of(body)
    if not body.explain:
        await memory.search_episodes(body.query, body.limit, as_of=as_of, **where)
        return SearchAnswer(episodes=_taken(room), left=_left(room, explain=False))
    # Without any share of meaning it is the same search, and says why.
    found = await memory.hybrid_search(body.query, body.limit, 0, explain=True, as_of=as_of, **where)
    its = _results(found, room, explain=True)
    return SearchAnswer(episodes=[result.episode for result in its.results], results=its.results, left=its.left)


async def semantic_search(call: Call[SemanticBody]) -> ResultsAnswer:
    """By meaning."""
    _check_search(call)
    body = call.body
    room, memory = _room(call)
    found = await memory.semantic_search(
        body.query, body.limit, body.min_score, explain=body.explain, as_of=_as_of(body), **_filters(body)
    )
    return _results(found, room, explain=body.explain)


async def hybrid_search(call: Call[HybridBody]) -> ResultsAnswer:
    """By both."""
    _check_search(call)
    body = call.body
    room, memory = _room(call)
    found = await memory.hybrid_search(
        body.query, body.limit, body.semantic_weight, explain=body.explain, as_of=_as_of(body), **_filters(body)
    )
    return _results(found, room, explain=body.explain)


async def find_similar(call: Call[SimilarQuery]) -> ResultsAnswer:
    """What is like an episode."""
    _check_search(call)
    query = call.body
    room, memory = _room(call)
    found = await memory.find_similar_episodes(
        call.parameters["id"], query.limit, explain=query.explain, as_of=_as_of(query), **_filters(query)
    )
    return _results(found, room, explain=query.explain)


async def search_status(call: Call[Nothing]) -> SearchStatusAnswer:
    """What is indexed."""
    status = await call.memory.get_semantic_search_status()
    return SearchStatusAnswer(
        enabled=status.enabled,
        indexing=status.indexing,
        language=status.language,
        analyser_version=status.analyser_version,
        model=status.model,
        dimensions=status.dimensions,
        indexed_episodes=status.indexed,
        pending_episodes=status.pending,
        ram_bytes=status.ram_bytes,
        vectors_pending=status.vectors_pending,
        embedder_problem=status.embedder_problem,
    )


def _check_search(call: Call[SearchBody] | Call[SemanticBody] | Call[HybridBody] | Call[SimilarQuery]) -> None:
    if not call.services.search_is_on:
        raise NotEnabledError("search is not enabled on this server")


def _results(results: Sequence[SearchResult], room: Room, *, explain: bool) -> ResultsAnswer:
    return ResultsAnswer(
        results=[
            Result(
                episode=episode,
                score=result.score,
                keyword_score=result.keyword_score,
                semantic_score=result.semantic_score,
                explanation=None if result.explanation is None else dict(result.explanation),
            )
            for result, episode in zip(results, _taken(room), strict=True)
        ],
        left=_left(room, explain=explain),
    )


def _left(room: Room, *, explain: bool) -> tuple[LeftResult, ...]:
    return tuple(
        LeftResult(
            episode_id=unread.id,
            score=unread.score,
            keyword_score=unread.keyword_score,
            semantic_score=unread.semantic_score,
            explanation=dict(unread.explanation or {}) if explain else None,
        )
        for unread in room.left
    )


# --- the whole memory


async def statistics(call: Call[Nothing]) -> StatisticsAnswer:
    """Its figures."""
    its = await call.memory.get_statistics()
    return StatisticsAnswer(
        total_episodes=its.total_episodes,
        oldest_episode=None if its.oldest_episode is None else seconds_of(its.oldest_episode),
        newest_episode=None if its.newest_episode is None else seconds_of(its.newest_episode),
        avg_relevance=its.avg_relevance,
        episodes_by_type=dict(its.episodes_by_type),
        bytes=its.bytes,
    )


async def forget(call: Call[ForgetBody]) -> ForgetAnswer:
    """The least relevant."""
    body = call.body
    receipt = await call.memory.forget(
        body.min_relevance, max_episodes=body.max_episodes, max_bytes=body.max_bytes, dry_run=body.dry_run
    )
    return ForgetAnswer(
        forgotten=receipt.episodes,
        bytes=receipt.bytes,
        by_memory_type=dict(receipt.by_memory_type),
        rows=dict(receipt.rows),
        ids=receipt.ids,
        dry_run=receipt.dry_run,
    )


async def purge(call: Call[PurgeBody]) -> PurgeAnswer:
    """What had ended."""
    receipt = await call.memory.purge(moment_of(call.body.before, "before"), erase=call.body.erase)
    return PurgeAnswer(episodes=receipt.episodes, versions=receipt.versions, bytes=receipt.bytes)


async def clear(call: Call[EraseQuery]) -> ClearAnswer:
    """All of it."""
    receipt = await call.memory.clear(erase=call.body.erase)
    return ClearAnswer(episodes=receipt.episodes, bytes=receipt.bytes)


# --- consolidating


async def consolidate(call: Call[ConsolidateBody]) -> ConsolidationAnswer:
    """By a policy of the server's."""
    body = call.body
    since = None if body.since is None else moment_of(body.since, "since")
    its = await call.memory.consolidate(body.policy, dry_run=body.dry_run, since=since)
    return ConsolidationAnswer(
        consolidated=len(its.superseded) + len(its.forgotten),
        consolidation_id=its.consolidation_id,
        policy=its.policy,
        offered=its.offered,
        created=[EpisodeAnswer.of(episode) for episode in its.created],
        superseded=dict(its.superseded),
        forgotten=its.forgotten,
        dropped=dict(its.dropped),
        undo_until=None if its.undo_until is None else seconds_of(its.undo_until),
        dry_run=its.dry_run,
    )


async def consolidations(call: Call[Nothing]) -> ConsolidationsAnswer:
    """Those that can be undone."""
    return ConsolidationsAnswer(
        consolidations=[
            UndoableAnswer(
                consolidation_id=each.consolidation_id,
                policy=each.policy,
                consolidated_at=seconds_of(each.consolidated_at),
                undo_until=seconds_of(each.undo_until),
                created=each.created,
                superseded=each.superseded,
                forgotten=each.forgotten,
            )
            for each in await call.memory.consolidations()
        ]
    )


async def undo(call: Call[Nothing]) -> UndoAnswer:
    """Bring back what a consolidation took away."""
    its = await call.memory.undo(call.parameters["id"])
    return UndoAnswer(
        consolidation_id=its.consolidation_id, restored=its.restored, removed=its.removed, kept=dict(its.kept)
    )


_MEMORY = "/memory/{agent}"
_EPISODES = "/memory/{agent}/episodes"
_EPISODE = "/memory/{agent}/episodes/{id}"
_P = Permission

MEMORY_ROUTES = (
    route(
        "POST",
        _EPISODES,
        _P.WRITE,
        store_episode,
        "Store an episode",
        StoreBody,
        StoredAnswer,
        status=201,
        also=(_OK,),
    ),
    route(
        "POST",
        f"{_EPISODES}/batch",
        _P.WRITE,
        store_episodes,
        "Store episodes in one atomic batch",
        StoreManyBody,
        StoredManyAnswer,
        status=201,
        slow=True,
    ),
    route("GET", _EPISODES, _P.READ, list_episodes, "All episodes of a time", EpisodesQuery, EpisodesAnswer, slow=True),
    route("GET", f"{_EPISODES}/recent", _P.READ, get_recent, "The newest episodes", RecentQuery, EpisodesAnswer),
    route(
        "POST", f"{_EPISODES}/get", _P.READ, get_episodes, "Episodes by their ids", IdsBody, EpisodesAnswer, slow=True
    ),
    route("POST", f"{_EPISODES}/search", _P.READ, search, "Search by words", SearchBody, SearchAnswer, slow=True),
    route(
        "POST",
        f"{_EPISODES}/semantic-search",
        _P.READ,
        semantic_search,
        "Search by meaning",
        SemanticBody,
        ResultsAnswer,
        slow=True,
    ),
    route(
        "POST",
        f"{_EPISODES}/hybrid-search",
        _P.READ,
        hybrid_search,
        "Search by words and meaning",
        HybridBody,
        ResultsAnswer,
        slow=True,
    ),
    route("GET", _EPISODE, _P.READ, get_episode, "One episode", AsOfQuery, EpisodeAnswer),
    route("PATCH", _EPISODE, _P.WRITE, update_episode, "Change an episode", UpdateBody, EpisodeAnswer),
    route("DELETE", _EPISODE, _P.DELETE, delete_episode, "Delete an episode", EraseQuery, DeletedAnswer),
    route(
        "GET",
        f"{_EPISODE}/history",
        _P.READ,
        history,
        "Earlier versions of an episode",
        HistoryQuery,
        HistoryAnswer,
        slow=True,
    ),
    route(
        "POST",
        f"{_EPISODE}/invalidate",
        _P.DELETE,
        invalidate,
        "Retire what is no longer true",
        Nothing,
        InvalidatedAnswer,
    ),
    route("POST", f"{_EPISODE}/pin", _P.WRITE, pin, "Keep an episode, or no longer", PinBody, EpisodeAnswer),
    route("POST", f"{_EPISODE}/boost", _P.WRITE, boost, "Make an episode more relevant", BoostBody, EpisodeAnswer),
    route(
        "GET",
        f"{_EPISODE}/similar",
        _P.READ,
        find_similar,
        "Episodes like this one",
        SimilarQuery,
        ResultsAnswer,
        slow=True,
    ),
    route(
        "POST",
        f"{_MEMORY}/recall",
        _P.READ,
        recall,
        "The most relevant episodes",
        RecallBody,
        EpisodesAnswer,
        slow=True,
    ),
    route("GET", f"{_MEMORY}/statistics", _P.READ, statistics, "Figures of a memory", Nothing, StatisticsAnswer),
    route(
        "GET",
        f"{_MEMORY}/semantic-search/status",
        _P.READ,
        search_status,
        "What is indexed, and how",
        Nothing,
        SearchStatusAnswer,
        slow=True,
    ),
    route(
        "POST",
        f"{_MEMORY}/forget",
        _P.MAINTAIN,
        forget,
        "Forget the least relevant episodes",
        ForgetBody,
        ForgetAnswer,
        dry_run=_P.PLAN,
        slow=True,
        audit="memory_forgotten",
    ),
    route(
        "POST",
        f"{_MEMORY}/purge",
        _P.MAINTAIN,
        purge,
        "Remove for good what had ended",
        PurgeBody,
        PurgeAnswer,
        slow=True,
        audit="memory_purged",
    ),
    route(
        "POST",
        f"{_MEMORY}/consolidate",
        _P.MAINTAIN,
        consolidate,
        "Let a policy make less of a memory",
        ConsolidateBody,
        ConsolidationAnswer,
        dry_run=_P.PLAN,
        slow=True,
        audit="memory_consolidated",
    ),
    route(
        "GET",
        f"{_MEMORY}/consolidations",
        _P.READ,
        consolidations,
        "What can be undone",
        Nothing,
        ConsolidationsAnswer,
        slow=True,
    ),
    route(
        "POST",
        f"{_MEMORY}/consolidations/{{id}}/undo",
        _P.MAINTAIN,
        undo,
        "Undo a consolidation",
        Nothing,
        UndoAnswer,
        slow=True,
        audit="consolidation_undone",
    ),
    route(
        "DELETE",
        _MEMORY,
        _P.MAINTAIN,
        clear,
        "Delete the memory of an agent",
        EraseQuery,
        ClearAnswer,
        slow=True,
        audit="memory_cleared",
    ),
)
