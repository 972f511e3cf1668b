"""Single gets in rising order, answered from a scan: for an engine where each call is a round trip."""

from __future__ import annotations

from collections.abc import Iterator

from qilbee_core.interfaces import Snapshot

__all__ = ["ReadAhead"]

_STREAK = 4
"""So many gets in rising order are followed by more, it is supposed."""
_SKIP_MAX = 256
"""So many rows are passed over to get to the next key; then it is asked for by itself."""
_PLACES_MAX = 64


class _Place:
    """Where the gets of one range of keys have come to."""

    __slots__ = ("last", "row", "rows", "streak")

    def __init__(self) -> None:
        self.last = b""
        self.streak = 0
        self.rows: Iterator[tuple[bytes, bytes]] | None = None
        self.row: tuple[bytes, bytes] | None = None


class ReadAhead:
    """A snapshot that gives the same as the one it is made of; not for several threads."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.get_many = snapshot.get_many
        self.scan = snapshot.scan
        self.close = snapshot.close
        self._places: dict[bytes, _Place] = {}

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key``, or None where there is none."""
        # Of one family, one agent, and in VITALITY one order.
        prefix = key[: 3 + key[1]] if len(key) > 1 else key
        place = self._places.get(prefix)
        if place is None:
            if len(self._places) == _PLACES_MAX:
                self._places.clear()
            place = self._places[prefix] = _Place()
        is_rising, place.last = key >= place.last, key
        if not is_rising:
            place.streak, place.rows = 0, None
        if place.rows is None:
            place.streak += 1
            if place.streak < _STREAK:
                return self._snapshot.get(key)
            place.rows = self._snapshot.scan(key)
            place.row = next(place.rows, None)
        for _ in range(_SKIP_MAX):
            if place.row is None or place.row[0] > key:
                return None
            if place.row[0] == key:
                return place.row[1]
            place.row = next(place.rows, None)
        place.streak, place.rows = 0, None
        return self._snapshot.get(key)
