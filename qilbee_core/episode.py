"""The values an agent's memory is made of: episodes, and what is said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, get_args

from msgspec import Struct

from qilbee_core.errors import InvalidError, shown
from qilbee_core.ids import datetime_of_us, draw_id, event_us_of, format_id, now_us, parse_id, us_of_datetime

__all__ = [
    "JSON",
    "MEMORY_TYPES",
    "Consolidation",
    "ConsolidationResult",
    "Episode",
    "JSONObject",
    "MemoryType",
    "Plan",
    "UndoReceipt",
]

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]
"""A JSON value. In memory its arrays are lists and its objects are dicts with text keys."""

JSONObject = Mapping[str, JSON]

MemoryType = Literal["episodic", "semantic", "procedural", "factual"]
MEMORY_TYPES: tuple[MemoryType, ...] = get_args(MemoryType)


class Episode:
    """Something that happened, or is known, and is worth remembering.

    An episode has its id from its creation, so storing it twice stores it once. The id carries the
    event time: both are fixed. Everything else is a plain attribute, checked when it is stored.

    ``event_time``   when it happened; now where it is not given. Without a zone it is taken as UTC.
    ``relevance``    0..1: the strength to store it with; on an episode that was read, its value then.
    ``transaction_time``  when the store recorded it; None until it was read from one.
    ``expires_at``   from then on no verb of a store finds it; None: never. ``ttl`` says the same from now.
    ``pinned``       whether it was pinned when it was read.
    ``ended_at``     of a version that is not current any more: when it was replaced or retired; else None.
    ``superseded_by``  the id of the episode that took the place of one that was retired; else None.

    >>> episode = Episode.conversation("bot", "Where is my order?", "On its way.")
    >>> episode.content["user_input"]
    'Where is my order?'
    >>> Episode("bot", "note", {"text": "likes tea"}, memory_type="factual").memory_type
    'factual'
    """

    # One is set on versions that have ended, and on no others: an episode is made on the path of every store.
    __slots__ = (
        "_ended_us",
        "_expires_us",
        "_id",
        "_id_fixed",
        "_id_text",
        "_pinned",
        "_superseded_by",
        "_transaction_us",
        "agent_id",
        "content",
        "episode_type",
        "memory_type",
        "metadata",
        "relevance",
    )
    _superseded_by: str

    def __init__(
        self,
        agent_id: str,
        episode_type: str,
        content: JSONObject,
        *,
        metadata: JSONObject | None = None,
        event_time: datetime | None = None,
        memory_type: MemoryType = "episodic",
        relevance: float = 1.0,
        expires_at: datetime | None = None,
        ttl: timedelta | None = None,
        id: str | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.episode_type = episode_type
        self.content = content
        self.metadata: JSONObject = {} if metadata is None else metadata
        self.memory_type = memory_type
        self.relevance = relevance
        self._transaction_us: int | None = None
        self._expires_us = 0
        self._pinned = False
        self._ended_us = 0
        if expires_at is not None or ttl is not None:
            self.expires_at = expires_at if ttl is None else _moment_after(ttl, expires_at)
        self._id_fixed = id is not None
        if event_time is None:
            self._id = draw_id(now_us()) if id is None else parse_id(id)
            self._id_text: str | None = format_id(self._id) if id is None else id  # which has one form alone
            return
        if not isinstance(event_time, datetime):
            raise InvalidError(
                f"event_time is {type(event_time).__name__}, not a datetime",
                remedy="give datetime.fromtimestamp(seconds, UTC)",
            )
        event_us = us_of_datetime(event_time)
        self._id = draw_id(event_us) if id is None else parse_id(id)
        self._id_text = format_id(self._id)
        if event_us_of(self._id) != event_us:
            raise InvalidError(
                f"id {id} carries the event time {datetime_of_us(event_us_of(self._id)).isoformat()}, "
                f"not {event_time.isoformat()}",
                remedy="leave one of the two out",
            )

    @classmethod
    def conversation(
        cls,
        agent_id: str,
        user_input: str,
        agent_response: str,
        *,
        metadata: JSONObject | None = None,
        event_time: datetime | None = None,
        memory_type: MemoryType = "episodic",
        relevance: float = 1.0,
        expires_at: datetime | None = None,
        ttl: timedelta | None = None,
        id: str | None = None,
    ) -> Episode:
        """One exchange between a user and the agent."""
        return cls(
            agent_id,
            "conversation",
            {"user_input": user_input, "agent_response": agent_response},
            metadata=metadata,
            event_time=event_time,
            memory_type=memory_type,
            relevance=relevance,
            expires_at=expires_at,
            ttl=ttl,
            id=id,
        )

    @classmethod
    def observation(
        cls,
        agent_id: str,
        observation: str,
        *,
        metadata: JSONObject | None = None,
        event_time: datetime | None = None,
        memory_type: MemoryType = "episodic",
        relevance: float = 1.0,
        expires_at: datetime | None = None,
        ttl: timedelta | None = None,
        id: str | None = None,
    ) -> Episode:
        """Something the agent noticed."""
        return cls(
            agent_id,
            "observation",
            {"observation": observation},
            metadata=metadata,
            event_time=event_time,
            memory_type=memory_type,
            relevance=relevance,
            expires_at=expires_at,
            ttl=ttl,
            id=id,
        )

    @classmethod
    def action(
        cls,
        agent_id: str,
        action: str,
        result: str,
        *,
        metadata: JSONObject | None = None,
        event_time: datetime | None = None,
        memory_type: MemoryType = "episodic",
        relevance: float = 1.0,
        expires_at: datetime | None = None,
        ttl: timedelta | None = None,
        id: str | None = None,
    ) -> Episode:
        """Something the agent did, and what came of it."""
        return cls(
            agent_id,
            "action",
            {"action": action, "result": result},
            metadata=metadata,
            event_time=event_time,
            memory_type=memory_type,
            relevance=relevance,
            expires_at=expires_at,
            ttl=ttl,
            id=id,
        )

    @classmethod
    def recorded(
        cls,
        agent_id: str,
        episode_type: str,
        content: JSONObject,
        *,
        id: str,
        metadata: JSONObject,
        memory_type: MemoryType,
        relevance: float,
        transaction_time: datetime,
        expires_at: datetime | None = None,
        pinned: bool = False,
        ended_at: datetime | None = None,
        superseded_by: str | None = None,
    ) -> Episode:
        """An episode as a store gave it, made again where that store is not: behind a server, or in another language.

        >>> since = datetime(2026, 3, 2)
        >>> told = Episode.observation("bot", "It rained.", event_time=since)
        >>> Episode.recorded("bot", "observation", told.content, id=told.id, metadata={}, memory_type="episodic",
        ...                  relevance=0.5, transaction_time=since).transaction_time
        datetime.datetime(2026, 3, 2, 0, 0, tzinfo=datetime.timezone.utc)
        """
        episode = cls(
            agent_id,
            episode_type,
            content,
            metadata=metadata,
            memory_type=memory_type,
            relevance=relevance,
            expires_at=expires_at,
            id=id,
        )
        episode._transaction_us = us_of_datetime(transaction_time)
        episode._pinned = pinned
        if ended_at is not None:
            episode._ended_us, episode._superseded_by = us_of_datetime(ended_at), superseded_by or ""
        return episode

    @property
    def id(self) -> str:
        """36 characters; ids sort by event time, then by creation."""
        if self._id_text is None:
            self._id_text = format_id(self._id)
        return self._id_text

    def _draw_again(self) -> None:
        """Take another id for the same event time: a store found this one taken."""
        self._id = draw_id(event_us_of(self._id))
        self._id_text = None

    @property
    def event_time(self) -> datetime:
        """When it happened, in UTC, to the microsecond."""
        return datetime_of_us(event_us_of(self._id))

    @property
    def transaction_time(self) -> datetime | None:
        """When the store recorded it, in UTC; None on an episode that was not read from a store."""
        return None if self._transaction_us is None else datetime_of_us(self._transaction_us)

    @property
    def expires_at(self) -> datetime | None:
        """From when on no verb of a store finds it, in UTC; None where it stays."""
        return datetime_of_us(self._expires_us) if self._expires_us else None

    @expires_at.setter
    def expires_at(self, moment: datetime | None) -> None:
        if moment is not None and not isinstance(moment, datetime):
            raise InvalidError(
                f"expires_at is {type(moment).__name__}, not a datetime",
                remedy="give datetime.fromtimestamp(seconds, UTC), or ttl=timedelta(...)",
            )
        # What expired before 1970 is as gone as what did then.
        self._expires_us = 0 if moment is None else max(1, us_of_datetime(moment))

    @property
    def moments_us(self) -> tuple[int, int | None, int | None, int | None]:
        """Event time, transaction time, ``expires_at`` and ``ended_at`` in microseconds since 1970; None as there.

        They cost a fraction of the four datetimes: for those who carry many episodes over a wire.

        >>> Episode("bot", "note", {}, event_time=datetime(1970, 1, 1, 0, 0, 1)).moments_us
        (1000000, None, None, None)
        """
        return event_us_of(self._id), self._transaction_us, self._expires_us or None, self._ended_us or None

    @property
    def pinned(self) -> bool:
        """Whether it was pinned when it was read from a store; see AgentMemory.pin()."""
        return self._pinned

    @property
    def ended_at(self) -> datetime | None:
        """When this version was replaced by another, or retired, in UTC; None where it is current."""
        return datetime_of_us(self._ended_us) if self._ended_us else None

    @property
    def superseded_by(self) -> str | None:
        """The id of the episode that took the place of this one when it was retired; None where none did."""
        return (self._superseded_by or None) if self._ended_us else None

    def __eq__(self, other: object) -> bool:
        """Equal where id, agent and everything the caller gave are equal; times of reading do not count."""
        if not isinstance(other, Episode):
            return NotImplemented
        return (
            self._id == other._id
            and self.agent_id == other.agent_id
            and self.episode_type == other.episode_type
            and self.memory_type == other.memory_type
            and self._expires_us == other._expires_us
            and self.content == other.content
            and self.metadata == other.metadata
        )

    __hash__ = None  # type: ignore[assignment]  # content is mutable

    def __repr__(self) -> str:
        return (
            f"Episode(id={self.id!r}, agent_id={self.agent_id!r}, episode_type={self.episode_type!r}, "
            f"content={self.content!r}, metadata={self.metadata!r}, event_time={self.event_time.isoformat()!r}, "
            f"memory_type={self.memory_type!r}, relevance={self.relevance!r}"
            + (f", expires_at={self.expires_at.isoformat()!r})" if self.expires_at else ")")
        )


def _moment_after(ttl: timedelta, expires_at: datetime | None) -> datetime:
    """When what is made now and lives for ``ttl`` expires."""
    if expires_at is not None:
        raise InvalidError("both expires_at and ttl are given", remedy="leave one of the two out")
    if not isinstance(ttl, timedelta) or ttl <= timedelta(0):
        raise InvalidError(f"ttl is {shown(ttl)}", remedy="give a positive time span, for example timedelta(days=7)")
    try:
        return datetime_of_us(now_us()) + ttl
    except OverflowError:
        raise InvalidError(f"ttl is {shown(ttl)}", remedy="leave it out for what stays for ever") from None


class Plan(Struct, frozen=True, kw_only=True):
    """What a consolidation policy decided; the store carries it out, a new memory and all that it is made of at once.

    ``create`` holds new memories; ``supersede`` maps the id of an offered episode to the id, among
    ``create`` or the offered ones, that takes its place; ``forget`` holds ids of offered episodes.
    """

    create: Sequence[Episode] = ()
    supersede: Mapping[str, str] = {}
    forget: Sequence[str] = ()


class ConsolidationResult(Struct, frozen=True, kw_only=True):
    """What :meth:`AgentMemory.consolidate` did, or with ``dry_run`` would do.

    ``consolidation_id`` undoes it until ``undo_until``; both are None where nothing was changed. ``offered`` counts the
    episodes that the policy was shown. ``created`` holds the new memories, ``superseded`` maps the id of each episode
    that gave way to the id of what took its place, ``forgotten`` holds the ids of those that went without.

    ``dropped`` holds what was planned and not done, since something had changed meanwhile: the ids of the episodes that
    stay, each with the reason. It is ``"changed"``, ``"gone"`` (deleted or retired) or ``"pinned"`` for an episode that
    was so meanwhile, and ``"group"`` for one that should have gone together with such a one.
    """

    consolidation_id: str | None
    policy: str
    offered: int
    created: Sequence[Episode]
    superseded: Mapping[str, str]
    forgotten: Sequence[str]
    dropped: Mapping[str, str]
    undo_until: datetime | None
    dry_run: bool


class Consolidation(Struct, frozen=True, kw_only=True):
    """A consolidation that can be undone until ``undo_until``, and how many memories it created and took away."""

    consolidation_id: str
    policy: str
    consolidated_at: datetime
    undo_until: datetime
    created: int
    superseded: int
    forgotten: int


class UndoReceipt(Struct, frozen=True, kw_only=True):
    """What :meth:`AgentMemory.undo` did.

    ``restored`` holds the ids of the episodes that are back as they were, ``removed`` those of the memories that the
    consolidation had created. ``kept`` maps the ids of created memories that are left as they are to the reason:
    ``"changed"``, ``"pinned"`` or ``"retired"`` since.
    """

    consolidation_id: str
    restored: Sequence[str]
    removed: Sequence[str]
    kept: Mapping[str, str]
