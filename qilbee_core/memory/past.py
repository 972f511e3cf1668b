"""The versions of episodes, those that have ended and the one that was current at a time.

HISTORY keeps the versions that have ended. One that an update replaced ended when the next was recorded; one that was
retired says itself when. Between a version that was retired and the one it was put back as, the episode was not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

from qilbee_core.interfaces import Reader
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.records import Records

__all__ = ["Ended", "Past", "Version", "last_rows", "recorded_us"]


_Row = tuple[bytes, bytes | None, bytes]
"""Id, key where it is one of HISTORY, value."""


class Version(NamedTuple):
    """One version of an episode.

    ``ended_us``  when it was replaced or retired; 0 while it is current
    ``last``      the newest version of the same episode: the current one, or the one that it was retired in
    """

    id_bytes: bytes
    document: EpisodeDocument
    ended_us: int
    last: EpisodeDocument


class Ended(NamedTuple):
    """A row of HISTORY, and when the version in it ended."""

    key: bytes
    value: bytes
    document: EpisodeDocument
    ended_us: int


class Past:
    """The versions of one agent's episodes, as a reader shows them.

    Where several rows of one answer must fit together, the reader is a snapshot.
    """

    def __init__(self, reader: Reader, keys: AgentKeys, records: Records) -> None:
        self._reader = reader
        self._keys = keys
        self._records = records

    def retired(self, id_bytes: bytes) -> EpisodeDocument | None:
        """How an episode was when it was retired. Ask only where there is none: one that was put back has been too."""
        newest = next(self._history(id_bytes), None)
        if newest is None:
            return None
        document = self._open(*newest)
        return document if document.ended_us else None

    def ended(self, id_bytes: bytes, current: EpisodeDocument | None) -> Iterator[Ended]:
        """The versions of an episode that have ended, newest first. ``current``: the one that has not."""
        following_us = 0 if current is None else current.transaction_us
        for key, value in self._history(id_bytes):
            document = self._open(key, value)
            yield Ended(key, value, document, document.ended_us or following_us)
            following_us = recorded_us(key)

    def versions(self, id_bytes: bytes, after_us: int) -> Iterator[Version]:
        """Those that ended after a time, oldest first, one at a time; none of an episode that is lost."""
        key = self._keys.episode(id_bytes)
        value = self._reader.get(key)
        last = self.retired(id_bytes) if value is None else self._open(key, value)
        if last is None:
            return  # never there; or lost, and named by verify()
        end_us = 0 if value is None else last.transaction_us
        first, stop = self._keys.history_range(id_bytes)
        # What was current at that time, if anything was, is the first that may have ended after it.
        until = self._keys.history(id_bytes, max(0, after_us)) + b"\0"
        first, _ = next(self._reader.scan(first, until, reverse=True), (first, b""))
        rows: Iterator[tuple[bytes, bytes] | None] = chain(self._reader.scan(first, stop), [None])
        for row, following in pairwise(rows):
            assert row is not None
            document = self._open(*row)
            ended_us = document.ended_us or (end_us if following is None else recorded_us(following[0]))
            if ended_us > after_us:
                yield Version(id_bytes, document, ended_us, last)

    def at(self, id_bytes: bytes, at_us: int) -> Version | None:
        """The version that was current at a time, None where there was none."""
        return self._at(id_bytes, self._reader.get(self._keys.episode(id_bytes)), self._history(id_bytes), at_us)

    def between(self, low: bytes, high: bytes | None, at_us: int, *, reverse: bool) -> Iterator[Version]:
        """The versions that were current at a time, of the episodes with ``low <= id < high``, in order of their ids.

        It reads all rows of EPISODE and HISTORY in that range.
        """
        current, history = (
            self._reader.scan(
                self._keys.prefix(space) + low,
                self._keys.range(space)[1] if high is None else self._keys.prefix(space) + high,
                reverse=reverse,
            )
            for space in (Space.EPISODE, Space.HISTORY)
        )
        records: Iterator[_Row] = ((key[-16:], None, value) for key, value in current)
        versions: Iterator[_Row] = ((key[-24:-8], key, value) for key, value in history)
        rows = merge(records, versions, key=itemgetter(0), reverse=reverse)
        for id_bytes, group in groupby(rows, key=itemgetter(0)):
            record: bytes | None = None
            ended: list[tuple[bytes, bytes]] = []
            for _, key, value in group:
                if key is None:
                    record = value
                else:
                    ended.append((key, value))
            version = self._at(id_bytes, record, iter(ended if reverse else ended[::-1]), at_us)
            if version is not None:
                yield version

    def _at(
        self, id_bytes: bytes, record: bytes | None, history: Iterator[tuple[bytes, bytes]], at_us: int
    ) -> Version | None:
        """The same of one episode, by its record, where there is one, and its history, newest first."""
        following_us, last = 0, None
        if record is not None:
            last = self._open(self._keys.episode(id_bytes), record)
            if last.transaction_us <= at_us:
                return Version(id_bytes, last, 0, last)
            following_us = last.transaction_us
        for key, value in history:
            document = None
            if last is None:
                last = document = self._open(key, value)
                if not last.ended_us:
                    return None  # lost, and named by verify()
            if recorded_us(key) <= at_us:
                document = document or self._open(key, value)
                ended_us = document.ended_us or following_us
                return Version(id_bytes, document, ended_us, last) if at_us < ended_us else None
            following_us = recorded_us(key)
        return None

    def _history(self, id_bytes: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The rows of an episode, newest first, read only if anybody asks."""
        yield from self._reader.scan(*self._keys.history_range(id_bytes), reverse=True)

    def _open(self, key: bytes, value: bytes) -> EpisodeDocument:
        return EpisodeDocument.from_fields(self._records.open(key, value))


def last_rows(reader: Reader, keys: AgentKeys) -> Iterator[tuple[bytes, bytes]]:
    """The newest row of HISTORY of each episode that is not there: it was retired, or is lost."""
    rows = reader.scan(*keys.range(Space.HISTORY), reverse=True)
    for id_bytes, versions in groupby(rows, key=lambda row: row[0][-24:-8]):
        if reader.get(keys.episode(id_bytes)) is None:
            yield next(versions)


def recorded_us(history_key: bytes) -> int:
    """When the version under a key of HISTORY was recorded."""
    return int.from_bytes(history_key[-8:], "big")
