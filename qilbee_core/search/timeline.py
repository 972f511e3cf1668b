"""The order of an agent's turns: sessions, and who spoke before and after whom within them.

Turns of episodes with the same ``session_id`` are one session. Those of episodes without one make sessions by time:
a gap of more than SESSION_GAP_US begins another. But an episode that names neither session nor speaker is alone: that
two documents were stored one after the other does not make them a conversation, and taking them for one finds less
than plain BM25. Order is that of the ids: by event time, then by creation.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qilbee_core.ids import event_us_of
from qilbee_core.search.columns import Columns

__all__ = ["NOWHERE", "SESSION_GAP_US", "Timeline"]

SESSION_GAP_US = 6 * 3600 * 1_000_000
_FIRST_US = event_us_of(bytes(16))
_IDS_AT_ONCE = 1024
_NEVER_US = np.iinfo(np.int64).min
NOWHERE = 0
"""The turn that is none: before the first of a session, after its last, and what a deleted one becomes."""


def event_us_of_halves(high: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The event times of ids by their first eight bytes: as :func:`qilbee_core.ids.event_us_of`, for many."""
    shifted = (high >> np.uint64(16) << np.uint64(12) | high & np.uint64(0xFFF)).view(np.int64)
    unbiased: NDArray[np.int64] = shifted + _FIRST_US
    return unbiased


class Timeline(Columns):
    """For each turn its episode, session, speaker, and the turns next to it within the session.

    ``before_other`` and ``after_other`` are ``before`` and ``after`` where another one speaks there, or it is not
    known who.
    """

    dtypes: ClassVar[dict[str, DTypeLike]] = {
        "id": "V16",
        "event_us": np.int64,
        "speaker": np.int32,
        "session": np.int32,
        "before": np.int32,
        "after": np.int32,
        "before_other": np.int32,
        "after_other": np.int32,
    }
    id: NDArray[np.void]
    event_us: NDArray[np.int64]
    speaker: NDArray[np.int32]
    session: NDArray[np.int32]
    before: NDArray[np.int32]
    after: NDArray[np.int32]
    before_other: NDArray[np.int32]
    after_other: NDArray[np.int32]

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0
        self.sessions = 1
        """Numbers of sessions that were given out; 0 is that of NOWHERE."""
        self._names: dict[int, str] = {}
        """Number of a session -> its ``session_id``."""
        self._chains: dict[str | None, array[int]] = {}
        """``session_id`` -> its turns in order; None -> those of all episodes without one."""
        self._loaded = range(1, 1)
        """Turns in the order of their ids, so that those of an episode are found without a table."""
        self._added: dict[bytes, int] = {}
        """Id of each other episode -> the first of its turns."""
        self.extend(1)
        self.event_us[NOWHERE] = _NEVER_US

    def id_of(self, turn: int) -> bytes:
        """The episode of a turn, even after it was removed; of NOWHERE zeros."""
        id_bytes: bytes = self.id[turn].tobytes()
        return id_bytes

    def ids_of(self, turns: NDArray[np.signedinteger]) -> list[bytes]:
        """The episode of each of some turns."""
        joined = self.id[turns].tobytes()
        return [joined[at : at + 16] for at in range(0, len(joined), 16)]

    def halves_of(self, turns: NDArray[np.intp]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The ids of some turns as two numbers, the low one first, as ``np.lexsort`` wants them."""
        halves = np.frombuffer(self.id[turns].tobytes(), ">u8").reshape(-1, 2).astype(np.uint64)
        return halves[:, 1], halves[:, 0]

    def turns_of(self, id_bytes: bytes) -> range:
        """The turns of an episode, one after another; none where it is not known."""
        first = self._added.get(id_bytes, NOWHERE)
        if first == NOWHERE and self._loaded and id_bytes <= self.id_of(self._loaded[-1]):
            first = self._loaded[bisect_left(self._loaded, id_bytes, key=self.id_of)]
            if self.session[first] == NOWHERE or self.id_of(first) != id_bytes:
                first = NOWHERE
        if first == NOWHERE:
            return range(0)
        stop = first + 1
        while stop < self.size and self.id_of(stop) == id_bytes:
            stop += 1
        return range(first, stop)

    def ids(self) -> Iterator[bytes]:
        """All episodes, those first that came last."""
        after = b""
        for stop in range(self.size, 0, -_IDS_AT_ONCE):
            start = max(0, stop - _IDS_AT_ONCE)
            for id_bytes in reversed(self.ids_of(start + np.flatnonzero(self.session[start:stop]))):
                if id_bytes != after:  # the turns of one stand together
                    yield id_bytes
                after = id_bytes

    def append(self, id_bytes: bytes, session: str | None, speakers: list[int]) -> int:
        """Put the turns of a new episode in their place; returns the first of their consecutive numbers."""
        first = self.extend(len(speakers))
        turns = range(first, self.size)
        self.episodes += 1
        self._changed()
        self._added[id_bytes] = first
        self.id[first : self.size] = np.void(id_bytes)
        self.event_us[first : self.size] = event_us_of(id_bytes)
        self.speaker[first : self.size] = speakers
        if session is None and not any(speakers):
            self.session[first : self.size] = self._new_session()
            return first
        chain = self._chains.get(session)
        if chain is None:
            chain = self._chains[session] = array("I")
        at = len(chain)
        if chain and self.id_of(chain[-1]) > id_bytes:
            at = bisect_left(chain, id_bytes, key=self.id_of)
        left = chain[at - 1] if at else NOWHERE
        right = chain[at] if at < len(chain) else NOWHERE
        chain[at:at] = array("I", turns)
        for turn in turns:
            self._link(left, turn, session)
            left = turn
        if right != NOWHERE:
            self._link(left, right, session)
        number = self._number_of(first, self.size - 1)
        self.session[first : self.size] = number
        if session is not None:
            self._names[number] = session
        return first

    def remove(self, turns: range) -> None:
        """Take the turns of an episode out of their session."""
        id_bytes, session = self.id_of(turns[0]), self.name_of_session(turns[0])
        self.episodes -= 1
        self._changed()
        self._added.pop(id_bytes, None)
        left = right = NOWHERE
        if session is not None or any(self.speaker[turns[0] : turns[-1] + 1]):
            chain = self._chains[session]
            at = bisect_left(chain, id_bytes, key=self.id_of)
            del chain[at : at + len(turns)]
            left = chain[at - 1] if at else NOWHERE
            right = chain[at] if at < len(chain) else NOWHERE
            if not chain:
                del self._chains[session]
                self._names.pop(int(self.session[turns[0]]), None)
        for turn in turns:
            for column in (self.before, self.after, self.before_other, self.after_other, self.session, self.speaker):
                column[turn] = NOWHERE
            self.event_us[turn] = _NEVER_US
        self._link(left, right, session)
        if left and right and self.after[left] != right and self.session[left] == self.session[right]:
            self._renumber(left, right, self._new_session())

    def best_of_sessions(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """By the number of a session the greatest of the values of its turns, 0 at least."""
        # By runs of turns first: those of a session mostly came one after the other.
        first, _, numbers = self._runs
        best = np.zeros(self.sessions, np.float32)
        # What is not negative is in the order of its bits, which takes a third of the time.
        of_runs = np.maximum.reduceat(values.view(np.uint32), first).view(np.float32)
        np.maximum.at(best, numbers, of_runs)
        best[NOWHERE] = 0.0
        return best

    def of_sessions(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """For each turn the value of its session."""
        _, lengths, numbers = self._runs
        spread: NDArray[np.float32] = np.repeat(values[numbers], lengths)
        return spread

    def add_before(self, total: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Add to each turn what another's turn before it has. ``values`` are changed."""
        joined, left, right = self._others
        total[right] += values[left]
        values[:-1] *= joined
        total[1:] += values[:-1]

    def add_after(self, total: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """The same with another's turn after it."""
        joined, left, right = self._others
        total[left] += values[right]
        values[1:] *= joined
        total[:-1] += values[1:]

    def _changed(self) -> None:
        self.__dict__.pop("_runs", None)
        self.__dict__.pop("_others", None)

    @cached_property
    def _runs(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
        """Of the runs of turns of one session where they begin, how long they are, and the session."""
        session = self.session[: self.size]
        first = np.concatenate(([0], np.flatnonzero(session[1:] != session[:-1]) + 1))
        # What was removed is worth nothing, and goes with the run that it stands in.
        first = first[(session[first] != NOWHERE) | (first == 0)]
        first = first[np.diff(session[first], prepend=-1) != 0]
        return first, np.diff(first, append=self.size), session[first].astype(np.int64)

    @cached_property
    def _others(self) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.intp]]:
        after = self.after_other[: self.size]
        joined = after == np.arange(1, self.size + 1, dtype=np.int32)
        left = np.flatnonzero((after != NOWHERE) & ~joined)
        return joined[:-1].astype(np.float32), left, after[left].astype(np.intp)

    def name_of_session(self, turn: int) -> str | None:
        """The ``session_id`` of a turn; None where it has none."""
        return self._names.get(int(self.session[turn]))

    def _link(self, left: int, right: int, session: str | None) -> None:
        """Say that ``right`` follows ``left``, either of which may be NOWHERE, if it does so in one session."""
        joined = NOWHERE not in {left, right}
        if joined and session is None:
            joined = bool(self.event_us[right] - self.event_us[left] <= SESSION_GAP_US)
        other = joined and (self.speaker[left] != self.speaker[right] or self.speaker[left] == 0)
        if left != NOWHERE:
            self.after[left] = right if joined else NOWHERE
            self.after_other[left] = right if other else NOWHERE
        if right != NOWHERE:
            self.before[right] = left if joined else NOWHERE
            self.before_other[right] = left if other else NOWHERE

    def _number_of(self, first: int, last: int) -> int:
        """The session that new turns belong to: of the turns around them, which they may join."""
        left, right = int(self.before[first]), int(self.after[last])
        if not left and not right:
            return self._new_session()
        number = int(self.session[left or right])
        if left and right and self.session[left] != self.session[right]:
            return self._renumber(left, right, None)
        return number

    def _new_session(self) -> int:
        self.sessions += 1
        return self.sessions - 1

    def _renumber(self, left: int, right: int, number: int | None) -> int:
        """Give the shorter of two runs of turns, that to ``left`` and that from ``right``, another session.

        That of the other where ``number`` is None. Takes as many steps as the shorter has turns.
        """
        a, b = left, right
        while self.before[a] and self.after[b]:
            a, b = int(self.before[a]), int(self.after[b])
        at, step = (right, self.after) if self.before[a] else (left, self.before)
        if number is None:
            number = int(self.session[left if at == right else right])
        while at:
            self.session[at] = number
            at = int(step[at])
        return number

    def are_next(self, ids: list[bytes], sessions: list[str | None]) -> bool:
        """Whether episodes come in order, and behind all that they stand with."""
        if ids != sorted(ids):
            return False
        firsts = dict(zip(reversed(sessions), reversed(ids), strict=True))
        ends = [(self._chains.get(session), id_bytes) for session, id_bytes in firsts.items()]
        return all(not chain or self.id_of(chain[-1]) < id_bytes for chain, id_bytes in ends)

    def append_all(
        self, ids: bytes, sessions: list[str | None], turns_in: NDArray[np.integer], speakers: NDArray[np.integer]
    ) -> None:
        """Put new episodes that are :meth:`are_next` in their places at once; ``ids`` are joined.

        ``turns_in`` each of them are so many, of these ``speakers``.
        """
        first = self.extend(len(speakers))
        turns, here = np.arange(first, self.size), slice(first, self.size)
        if self.episodes:
            each = [ids[at : at + 16] for at in range(0, len(ids), 16)]
            self._added.update(zip(each, (first + np.cumsum(turns_in) - turns_in).tolist(), strict=True))
        else:
            self._loaded = range(first, self.size)
        self.episodes += len(sessions)
        self._changed()
        self.speaker[here] = speakers
        of_episode = np.repeat(np.arange(len(sessions)), turns_in)
        self.id[here] = np.frombuffer(ids, "V16")[of_episode]
        high = np.frombuffer(ids, ">u8")[::2].astype(np.uint64)
        self.event_us[here] = event_us_of_halves(high)[of_episode]
        # 0 is the chain of those who are alone, 1 that of those without a session_id.
        numbers = {name: number for number, name in enumerate(dict.fromkeys([None, *sessions]), 1)}
        chain_of = np.array([numbers[each] for each in sessions], np.int32)[of_episode]
        spoken = np.bincount(of_episode, self.speaker[here] != 0)[of_episode] > 0
        chain_of[(chain_of == 1) & ~spoken] = 0
        order = np.argsort(chain_of, kind="stable")
        turns, chain_of = turns[order], chain_of[order]
        left = np.concatenate([[NOWHERE], turns[:-1]])
        starts = np.searchsorted(chain_of, np.arange(len(numbers) + 2)).tolist()
        for name, number in numbers.items():
            start, stop = starts[number : number + 2]
            if start < stop:
                chain = self._chains.setdefault(name, array("I"))
                left[start] = chain[-1] if chain else NOWHERE
                chain.frombytes(turns[start:stop].astype(np.uint32).tobytes())
        joined = (left != NOWHERE) & (chain_of != 0)
        joined &= (chain_of != 1) | (self.event_us[turns] - self.event_us[left] <= SESSION_GAP_US)
        other = joined & ((self.speaker[left] != self.speaker[turns]) | (self.speaker[left] == 0))
        self.after[left[joined]] = turns[joined]
        self.before[turns[joined]] = left[joined]
        self.after_other[left[other]] = turns[other]
        self.before_other[turns[other]] = left[other]
        # A turn is of the session of the one before it, which may have been there already.
        session = self.sessions - 1 + np.cumsum(~joined)
        self.sessions += int(np.count_nonzero(~joined))
        goes_on = joined & (left < first)
        head = np.flatnonzero(~joined | goes_on)
        of_head = np.where(goes_on[head], self.session[left[head]], session[head])
        self.session[turns] = np.repeat(of_head, np.diff(head, append=len(turns)))
        for name, number in numbers.items():
            if name is not None:
                self._names[int(self.session[turns[starts[number]]])] = name
