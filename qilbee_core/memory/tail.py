"""The newest episodes of each agent, kept in RAM as they are stored: bounded in bytes, never wrong.

The tail of an agent holds *every* episode whose id is at or above its ``low``, so the newest ones can
be answered without asking the engine. It grows with what is stored, loses its older half when it is too
large, and is let go of when other agents need the room or nobody has read it for long.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import OrderedDict

__all__ = ["Tail", "Tails"]

_EPISODES_MAX = 128
_UNREAD_MAX = 256
"""Stores in a row that nobody asked for the newest episodes in between: the tail is then let go of."""
# What CPython needs beside the bytes of a value: two bytes objects, a list slot, a dict slot.
_OVERHEAD_BYTES = 250


class Tail:
    """The newest episodes of one agent; everything is done to it through :class:`Tails`."""

    __slots__ = ("bytes", "ids", "low", "unread", "values", "warm")

    def __init__(self) -> None:
        self.warm = False
        """Whether it knows anything. Becomes true only under the agent's lock."""
        self.low = b""
        self.unread = 0
        self.ids: list[bytes] = []
        self.values: dict[bytes, bytes] = {}
        self.bytes = 0


class Tails:
    """The tails of all agents of a store, and how much RAM they may take together.

    One lock for all: whoever stores may have to drop another agent's tail.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        self._by_use: OrderedDict[Tail, None] = OrderedDict()
        self._last_used: Tail | None = None

    def newest(self, tail: Tail, limit: int, before: bytes | None) -> list[tuple[bytes, bytes]] | None:
        """The newest ``limit`` (id, value) below ``before``, or None where the tail does not know them all."""
        with self._lock:
            ids = tail.ids
            end = len(ids) if before is None else bisect_left(ids, before)
            if not tail.warm or (end < limit and tail.low):
                self.misses += 1
                return None
            self.hits += 1
            tail.unread = 0
            self._use(tail)
            values = tail.values
            return [(id_bytes, values[id_bytes]) for id_bytes in reversed(ids[max(0, end - limit) : end])]

    def put(self, tail: Tail, id_bytes: bytes, value: bytes) -> None:
        """Take in what was stored, while somebody reads."""
        with self._lock:
            tail.unread += 1
            if tail.unread > _UNREAD_MAX:
                self._clear(tail)
            if not tail.warm or id_bytes < tail.low:
                return
            ids, values = tail.ids, tail.values
            change = len(value) + _OVERHEAD_BYTES
            if not ids or id_bytes > ids[-1]:
                ids.append(id_bytes)
            elif id_bytes in values:
                change -= len(values[id_bytes]) + _OVERHEAD_BYTES
            else:
                insort(ids, id_bytes)
            values[id_bytes] = value
            tail.bytes += change
            self.bytes += change
            if len(ids) > _EPISODES_MAX:
                self._drop_older_half(tail)
            if tail is not self._last_used or self.bytes > self.bytes_max:
                self._make_room(tail)

    def remove(self, tail: Tail, id_bytes: bytes) -> None:
        """Forget what was deleted."""
        with self._lock:
            value = tail.values.pop(id_bytes, None)
            if value is not None:
                del tail.ids[bisect_left(tail.ids, id_bytes)]
                self._grow(tail, -len(value) - _OVERHEAD_BYTES)

    def fill(self, tail: Tail, pairs: list[tuple[bytes, bytes]], *, whole: bool) -> None:
        """Begin anew with the newest episodes, newest first; ``whole`` says there are no others."""
        kept = pairs[:_EPISODES_MAX]
        with self._lock:
            self._clear(tail)
            tail.warm = True
            tail.low = b"" if whole and len(kept) == len(pairs) else kept[-1][0]
            tail.ids = [id_bytes for id_bytes, _ in reversed(kept)]
            tail.values = dict(kept)
            self._grow(tail, sum(len(value) + _OVERHEAD_BYTES for _, value in kept))
            self._make_room(tail)

    def close(self) -> None:
        """Know of nothing from now on: answers must come from the engine, which is closed."""
        with self._lock:
            self.bytes_max = -1
            while self._by_use:
                self._clear(next(iter(self._by_use)))

    def clear(self, tail: Tail) -> None:
        """Know of nothing."""
        with self._lock:
            self._clear(tail)

    def _grow(self, tail: Tail, change: int) -> None:
        tail.bytes += change
        self.bytes += change

    def _clear(self, tail: Tail) -> None:
        self.bytes -= tail.bytes
        self._by_use.pop(tail, None)
        if tail is self._last_used:
            self._last_used = None
        tail.__init__()  # type: ignore[misc]  # as new

    def _drop_older_half(self, tail: Tail) -> None:
        half = len(tail.ids) // 2
        for id_bytes in tail.ids[:half]:
            self._grow(tail, -len(tail.values.pop(id_bytes)) - _OVERHEAD_BYTES)
        del tail.ids[:half]
        tail.low = tail.ids[0]

    def _use(self, tail: Tail) -> None:
        if tail is not self._last_used:
            self._by_use[tail] = None
            self._by_use.move_to_end(tail)
            self._last_used = tail

    def _make_room(self, tail: Tail) -> None:
        self._use(tail)
        while self.bytes > self.bytes_max and self._by_use:
            # The last to go is this tail itself, where it alone is too large.
            self._clear(next(iter(self._by_use)))
