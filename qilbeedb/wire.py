"""What goes over the wire: the bodies of requests and answers, and episodes between their two forms.

Keys are in camelCase. What is asked (:class:`Request`) is read strictly: an unknown key is refused with its name. What
is answered (:class:`Answer`) may get further keys in later releases, which a reader passes over.

A moment is a number of seconds since the Unix epoch, an integer where it is whole. One of 2.6e11 or more that is given
is taken as milliseconds. The event time of an episode is exact in its id; as a number it is rounded to what 64 bits of
floating point can say, which are microseconds until the year 2255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import nextafter, ulp
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import normalize

import msgspec
from msgspec import Meta, Struct

from qilbee_core import Episode, InvalidError, MemoryType

if TYPE_CHECKING:
    from qilbee_core import JSONObject
else:  # msgspec reads annotations, and has no recursive types
    JSONObject = dict[str, Any]

__all__ = [
    "Answer",
    "AsOfQuery",
    "BoostBody",
    "ClearAnswer",
    "ConsolidateBody",
    "ConsolidationAnswer",
    "ConsolidationsAnswer",
    "EpisodeAnswer",
    "EpisodesAnswer",
    "EpisodesQuery",
    "EraseQuery",
    "ErrorAnswer",
    "Filtered",
    "ForgetAnswer",
    "ForgetBody",
    "HealthAnswer",
    "HistoryAnswer",
    "HistoryQuery",
    "HybridBody",
    "IdsBody",
    "JSONObject",
    "LeftResult",
    "Limit",
    "Moment",
    "Nothing",
    "PinBody",
    "PurgeAnswer",
    "PurgeBody",
    "RecallBody",
    "RecentQuery",
    "Request",
    "Result",
    "ResultsAnswer",
    "Scored",
    "SearchAnswer",
    "SearchBody",
    "SearchStatusAnswer",
    "SemanticBody",
    "SimilarQuery",
    "SnapshotAnswer",
    "StatisticsAnswer",
    "StoreBody",
    "StoreManyBody",
    "StoredAnswer",
    "StoredManyAnswer",
    "UndoAnswer",
    "UndoableAnswer",
    "UpdateBody",
    "encode",
    "moment_of",
    "seconds_of",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS_FROM = 2.6e11
_MICROSECOND = timedelta(microseconds=1)
_SECONDS_MIN, _SECONDS_STOP = -62_135_596_800, 253_402_300_800
_US_MIN = _SECONDS_MIN * 1_000_000
_SECONDS_LAST = nextafter(_SECONDS_STOP, 0)  # what comes after it would be rounded into the year 10000
_US_MAX = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND

Moment = int | float
"""Seconds since the Unix epoch; from 2.6e11 on milliseconds."""
Limit = Annotated[int, Meta(ge=1, le=1000)]
Share = Annotated[float, Meta(ge=0, le=1)]

encode: Callable[[object], bytes] = msgspec.json.Encoder().encode


class Request(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """What is asked for: the base of all bodies and queries."""


class Answer(Struct, kw_only=True, rename="camel"):
    """What is answered: the base of all answers."""


class Nothing(Request):
    """No key at all; no body is as good as an empty one."""


# --- moments


def seconds_of(moment: datetime) -> Moment:
    """A moment as a number of seconds, an integer where it is whole; without a zone it is taken as UTC.

    One that is outside of the years 1 to 9999 in UTC, because of its zone, becomes their first or last.

    >>> seconds_of(datetime(2026, 3, 2, tzinfo=UTC)), seconds_of(datetime(2026, 3, 2, 0, 0, 0, 250_000))
    (1772409600, 1772409600.25)
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    us = (moment - _EPOCH) // _MICROSECOND
    return _seconds(max(_US_MIN, min(us, _US_MAX)))


def _seconds(us: int) -> Moment:
    """The same of microseconds, rounded once."""
    return min(us / 1_000_000, _SECONDS_LAST) if us % 1_000_000 else us // 1_000_000


def moment_of(number: Moment, name: str = "a moment") -> datetime:
    """The moment that a number means, in UTC; InvalidError names ``name`` where it is not in the years 1 to 9999.

    >>> moment_of(1772409600) == moment_of(1772409600_000)
    True
    """
    if _MILLISECONDS_FROM <= number < 1000 * _SECONDS_STOP:  # an integer may be too large to divide, or to be shown
        number /= 1000
    if not _SECONDS_MIN <= number < _SECONDS_STOP:  # nor is "not a number"
        shown = f" {number}" if abs(number) < 1e18 else ""
        raise InvalidError(f"{name}{shown} lies outside the years 1 to 9999", remedy="give seconds since 1970")
    us = number * 1_000_000 if type(number) is int else min(round(number * 1_000_000), _US_MAX)
    return _EPOCH + timedelta(microseconds=us)


# --- episodes


class EpisodeAnswer(Answer, omit_defaults=True):
    """An episode; what is behind ``memory_type`` is only there where it says something.

    ``transaction_time`` is missing on one that a dry run would make, ``ended_at`` and ``superseded_by`` are of versions
    that are not current any more.
    """

    episode_id: str
    agent_id: str
    episode_type: str
    content: JSONObject
    event_time: Moment
    metadata: JSONObject
    relevance: float
    memory_type: MemoryType
    transaction_time: Moment | None = None
    pinned: bool = False
    expires_at: Moment | None = None
    ended_at: Moment | None = None
    superseded_by: str | None = None

    @classmethod
    def of(cls, episode: Episode) -> EpisodeAnswer:
        """The form on the wire of an episode."""
        event_us, stored_us, expires_us, ended_us = episode.moments_us
        return cls(
            episode_id=episode.id,
            agent_id=episode.agent_id,
            episode_type=episode.episode_type,
            content=episode.content,
            event_time=_seconds(event_us),
            metadata=episode.metadata,
            transaction_time=None if stored_us is None else _seconds(stored_us),
            relevance=episode.relevance,
            memory_type=episode.memory_type,
            pinned=episode.pinned,
            expires_at=None if expires_us is None else _seconds(expires_us),
            ended_at=None if ended_us is None else _seconds(ended_us),
            superseded_by=None if ended_us is None else episode.superseded_by,
        )


class StoreBody(Request):
    """An episode to store. An ``episode_id`` decides the event time, with which a given one must agree."""

    episode_type: str
    content: JSONObject
    agent_id: str | None = None
    event_time: Moment | None = None
    metadata: JSONObject | None = None
    episode_id: str | None = None
    memory_type: MemoryType = "episodic"
    relevance: Share = 1.0
    pinned: bool = False
    expires_at: Moment | None = None
    idempotency_key: str | None = None

    @classmethod
    def of(cls, episode: Episode, idempotency_key: str | None = None) -> StoreBody:
        """What a client sends for an episode: under its id, so that it is stored once however often it is sent."""
        expires = episode.expires_at
        return cls(
            episode_type=episode.episode_type,
            content=episode.content,
            agent_id=episode.agent_id,
            event_time=seconds_of(episode.event_time),
            metadata=episode.metadata,
            episode_id=episode.id,
            memory_type=episode.memory_type,
            relevance=episode.relevance,
            expires_at=None if expires is None else seconds_of(expires),
            idempotency_key=idempotency_key,
        )

    def episode(self, agent_id: str) -> Episode:
        """The episode to store for the agent of the path, which is in NFC; InvalidError if the body names another."""
        given_to = self.agent_id
        if given_to is not None and given_to != agent_id and normalize("NFC", given_to) != agent_id:
            raise InvalidError(
                f"agentId is {given_to[:255]!r}, the path is that of {agent_id!r}",
                remedy="leave it out, or send the episode to its own agent",
            )
        given, expires = self.event_time, self.expires_at
        episode = Episode(
            agent_id,
            self.episode_type,
            self.content,
            metadata=self.metadata,
            event_time=None if given is None or self.episode_id is not None else moment_of(given, "eventTime"),
            memory_type=self.memory_type,
            relevance=self.relevance,
            expires_at=None if expires is None else moment_of(expires, "expiresAt"),
            id=self.episode_id,
        )
        if self.episode_id is not None and given is not None and given != episode.moments_us[0] / 1_000_000:
            _check_agreement(episode.event_time, given)
        return episode


def _check_agreement(event_time: datetime, given: Moment) -> None:
    """Refuse a number that means another moment than an id, as exactly as the number can tell."""
    apart = abs(event_time - moment_of(given, "eventTime"))
    if apart > (timedelta(seconds=ulp(given)) if type(given) is float else timedelta(0)):
        raise InvalidError(
            f"the episodeId carries the event time {seconds_of(event_time)}, eventTime is {given}",
            remedy="leave one of the two out",
        )


class StoreManyBody(Request):
    """Episodes to store in one atomic batch, all or none."""

    episodes: Annotated[Sequence[StoreBody], Meta(max_length=1000)]


class StoredAnswer(Answer):
    """Under which id an episode is stored."""

    episode_id: str


class StoredManyAnswer(Answer):
    """Under which ids episodes are stored, in their order."""

    episode_ids: Sequence[str]


class UpdateBody(Request):
    """What to replace in an episode; what is left out, or null, stays."""

    content: JSONObject | None = None
    metadata: JSONObject | None = None
    episode_type: str | None = None


class PinBody(Request):
    """Whether to pin an episode, or to let it go on as if it had never been pinned."""

    pinned: bool = True


class BoostBody(Request):
    """How much of what it lacks to full relevance to give to an episode."""

    amount: Share = 0.5


# --- reading


class AsOfQuery(Request):
    """At which transaction time an episode is to be given as it was."""

    as_of: Moment | None = None


class Filtered(Request):
    """Which episodes an answer may have: of a type, of a memory type, with ``start <= event time < end``."""

    episode_type: str | None = None
    memory_type: MemoryType | None = None
    start: Moment | None = None
    end: Moment | None = None


class RecentQuery(Filtered):
    """Which of the newest episodes to give. ``before`` is the ``nextCursor`` of the page before."""

    limit: Limit = 10
    before: str | None = None
    episode_type: str | None = msgspec.field(default=None, name="type")
    as_of: Moment | None = None


class EpisodesQuery(Filtered):
    """Which episodes to give, the oldest first. ``cursor`` is the ``nextCursor`` of the page before: an id."""

    reverse: bool = False
    cursor: str | None = None
    limit: Limit = 100
    as_of: Moment | None = None


class IdsBody(Request):
    """The ids of episodes to read."""

    ids: Annotated[Sequence[str], Meta(max_length=1000)]
    as_of: Moment | None = None


class RecallBody(Filtered):
    """Which of the most relevant episodes to give."""

    limit: Limit = 10
    min_relevance: Share | None = None


class EpisodesAnswer(Answer):
    """Some episodes. ``next_cursor`` is what to ask for what follows them with; null: nothing does.

    Where they answer a list of ids there is one for each, null where there is no such episode. ``left`` are the ids of
    those that belong to the answer and would make it too large: to be asked for by them.
    """

    episodes: Sequence[EpisodeAnswer | None]
    next_cursor: str | None = None
    left: Sequence[str] = ()


class HistoryQuery(Request):
    """Which of the earlier versions to give: those that ended after a time."""

    after: Moment | None = None


class HistoryAnswer(Answer):
    """The versions of an episode that updates replaced, oldest first. ``has_more``: others ended after the last."""

    episodes: Sequence[EpisodeAnswer]
    has_more: bool = False


# --- searching


class SearchBody(Filtered, kw_only=True):
    """A search by words."""

    query: str
    limit: Limit = 10
    explain: bool = False
    as_of: Moment | None = None


class SemanticBody(Filtered, kw_only=True):
    """A search by meaning."""

    query: str
    limit: Limit = 10
    min_score: float | None = None
    explain: bool = False
    as_of: Moment | None = None


class HybridBody(Filtered, kw_only=True):
    """A search by words and meaning together."""

    query: str
    limit: Limit = 10
    semantic_weight: Share | None = None
    explain: bool = False
    as_of: Moment | None = None


class SimilarQuery(Filtered):
    """How many of those that are like an episode to give."""

    limit: Limit = 10
    explain: bool = False
    as_of: Moment | None = None


class Scored(Answer, omit_defaults=True):
    """How well an episode fits; ``explanation`` has the parts of its score, if asked for."""

    score: float
    keyword_score: float
    semantic_score: float
    explanation: dict[str, float] | None = None


class Result(Scored, kw_only=True, omit_defaults=True):
    """An episode that was found."""

    episode: EpisodeAnswer


class LeftResult(Scored, kw_only=True, omit_defaults=True):
    """One that would make the answer too large: to be asked for by its id."""

    episode_id: str


class ResultsAnswer(Answer):
    """What a search found, best first; ``left`` are those that come behind ``results``."""

    results: Sequence[Result]
    left: Sequence[LeftResult] = ()


class SearchAnswer(Answer, omit_defaults=True):
    """What a search by words found, best first; with ``results``, the same with their scores, if it is to explain.

    ``left`` are those that come behind ``episodes``.
    """

    episodes: Sequence[EpisodeAnswer]
    results: Sequence[Result] | None = None
    left: Sequence[LeftResult] = ()


class SearchStatusAnswer(Answer):
    """What search knows of an agent's memory, see qilbee_core.SearchStatus.

    ``indexed_episodes`` are those that a search by meaning finds at once; it indexes the ``pending_episodes`` first.
    """

    enabled: bool
    indexing: str
    language: str
    analyser_version: int
    model: str
    dimensions: int
    indexed_episodes: int
    pending_episodes: int
    ram_bytes: int
    vectors_pending: int = 0
    embedder_problem: str | None = None


# --- the whole memory of an agent


class EraseQuery(Request):
    """Whether the bytes of what is deleted are to be gone from the files when the answer comes."""

    erase: bool = False


class StatisticsAnswer(Answer):
    """Figures of an agent's memory, see qilbee_core.MemoryStatistics."""

    total_episodes: int
    oldest_episode: Moment | None
    newest_episode: Moment | None
    avg_relevance: float
    episodes_by_type: dict[str, int]
    bytes: int


class ForgetBody(Request):
    """What to forget: what is less relevant, and the least relevant while there is too much."""

    min_relevance: Share = 0.1
    max_episodes: Annotated[int, Meta(ge=0)] | None = None
    max_bytes: Annotated[int, Meta(ge=0)] | None = None
    dry_run: bool = False


class ForgetAnswer(Answer):
    """What was forgotten, or would be, see qilbee_core.ForgetReceipt."""

    forgotten: int
    bytes: int
    by_memory_type: dict[str, int]
    rows: dict[str, int]
    ids: Sequence[str]
    dry_run: bool


class PurgeBody(Request):
    """Until when to remove for good what had ended by then."""

    before: Moment
    erase: bool = False


class PurgeAnswer(Answer):
    """What was removed for good, see qilbee_core.PurgeReceipt."""

    episodes: int
    versions: int
    bytes: int


class ClearAnswer(Answer):
    """What was deleted with an agent's memory."""

    episodes: int
    bytes: int


# --- consolidating


class ConsolidateBody(Request):
    """Which policy to ask, about what happened since when, and whether to do only as if."""

    policy: str = "duplicates"
    dry_run: bool = False
    since: Moment | None = None


class ConsolidationAnswer(Answer):
    """What a consolidation did, see qilbee_core.ConsolidationResult; ``consolidated`` episodes gave way in it."""

    consolidated: int
    consolidation_id: str | None
    policy: str
    offered: int
    created: Sequence[EpisodeAnswer]
    superseded: dict[str, str]
    forgotten: Sequence[str]
    dropped: dict[str, str]
    undo_until: Moment | None
    dry_run: bool


class UndoableAnswer(Answer):
    """A consolidation that can be undone, see qilbee_core.Consolidation."""

    consolidation_id: str
    policy: str
    consolidated_at: Moment
    undo_until: Moment
    created: int
    superseded: int
    forgotten: int


class ConsolidationsAnswer(Answer):
    """The consolidations that can be undone, the newest first."""

    consolidations: Sequence[UndoableAnswer]


class UndoAnswer(Answer):
    """What an undo brought back and took away, see qilbee_core.UndoReceipt."""

    consolidation_id: str
    restored: Sequence[str]
    removed: Sequence[str]
    kept: dict[str, str]


# --- the server


class HealthAnswer(Answer, rename=None):
    """``status`` is "healthy", or "unhealthy" where ``problems`` says what keeps writes from being taken."""

    status: str
    version: str
    uptime_seconds: float
    problems: Sequence[str] = ()


class SnapshotAnswer(Answer):
    """Where a copy of the store is, on the server, and how large its files are."""

    path: str
    bytes: int


class ErrorAnswer(Answer, rename=None, omit_defaults=True):
    """What went wrong: the text, the code by which :mod:`qilbeedb.errors` finds the class, and what to do about it.

    ``error_code`` repeats the code of a search that is switched off, for clients that look for it there.
    """

    error: str
    code: str
    remedy: str = ""
    request_id: str = ""
    error_code: str = ""
