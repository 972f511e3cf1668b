"""Which episodes an answer may have: the filters that verbs take, checked and applied here alone."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, Self

from qilbee_core.episode import Episode, MemoryType
from qilbee_core.errors import InvalidError, shown
from qilbee_core.ids import lowest_id, parse_id, us_of_datetime
from qilbee_core.limits import check_memory_type, check_moment
from qilbee_core.memory.document import MEMORY_TYPE_NUMBERS
from qilbee_core.search.score import Filter

__all__ = ["ANY", "EpisodeFilter"]


class EpisodeFilter(NamedTuple):
    """Of which types, and when, ``start_us <= event time < end_us`` in microseconds; None means any.

    The time of an episode is in its id, so it narrows what is read, see :meth:`bounds`. Its types are in its record,
    see :meth:`passes`. An index knows all of it, see :meth:`in_index`.
    """

    episode_type: str | None = None
    memory_type: MemoryType | None = None
    start_us: int | None = None
    end_us: int | None = None

    @classmethod
    def of(
        cls,
        episode_type: str | None = None,
        memory_type: MemoryType | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> Self:
        """The filter that a caller gives; InvalidError names what is wrong with it."""
        if memory_type is not None:
            check_memory_type(memory_type)
        if episode_type is not None and type(episode_type) is not str:
            raise InvalidError(f"episode_type is {shown(episode_type)}", remedy="give the name of a type")
        if start is not None:
            check_moment(start, "start")
        if end is not None:
            check_moment(end, "end")
        return cls(
            episode_type,
            memory_type,
            None if start is None else us_of_datetime(start),
            None if end is None else us_of_datetime(end),
        )

    def bounds(self, after: str | None = None, *, reverse: bool = False) -> tuple[bytes, bytes | None]:
        """The ids to read, ``low <= id < high``: those of its time that come after one of them in the order of reading.

        >>> EpisodeFilter().bounds()
        (b'', None)
        """
        low = b"" if self.start_us is None else lowest_id(self.start_us)
        high = None if self.end_us is None else lowest_id(self.end_us)
        if after is not None and reverse:
            id_bytes = parse_id(after)
            high = id_bytes if high is None else min(high, id_bytes)
        elif after is not None:
            low = max(low, (int.from_bytes(parse_id(after), "big") + 1).to_bytes(16, "big"))
        return low, high

    @property
    def has_types(self) -> bool:
        """Whether :meth:`passes` refuses any."""
        return self.episode_type is not None or self.memory_type is not None

    def passes(self, episode: Episode) -> bool:
        """Whether an episode is of the types."""
        return self.episode_type in (None, episode.episode_type) and self.memory_type in (None, episode.memory_type)

    def in_index(self, as_of: datetime | None) -> Filter:
        """What to ask of the index of today: not for the episode type where that of another time counts."""
        return Filter(
            self.episode_type if as_of is None else None,
            None if self.memory_type is None else MEMORY_TYPE_NUMBERS[self.memory_type],
            self.start_us,
            self.end_us,
        )


ANY = EpisodeFilter()
