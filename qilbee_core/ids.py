"""Episode ids and times. An id is a UUID (version 8) that sorts by event time, then by creation.

::

    48 bits  event time, high      microseconds since 0001-01-01T00:00:00Z, 60 bits in all
     4 bits  version (8)
    12 bits  event time, low
     2 bits  variant (binary 10)
    42 bits  creation time         milliseconds since 1970-01-01T00:00:00Z
    20 bits  random

Version and variant are constant, so the 16 bytes of an id compare as (event time, creation, random).
Within a process the last 62 bits strictly rise.
"""

from __future__ import annotations

import os
import random
import threading
import time
from datetime import UTC, datetime, timedelta

from qilbee_core.errors import InvalidError, shown

__all__ = [
    "EVENT_US_MAX",
    "datetime_of_us",
    "draw_id",
    "event_us_of",
    "format_id",
    "lowest_id",
    "now_us",
    "parse_id",
    "us_of_datetime",
]

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Microseconds from year 1 to 1970: the bias that makes every legal event time a positive number.
_BIAS_US = (UNIX_EPOCH - datetime(1, 1, 1, tzinfo=UTC)) // _MICROSECOND
EVENT_US_MAX = (datetime.max.replace(tzinfo=UTC) - UNIX_EPOCH) // _MICROSECOND

_lock = threading.Lock()
_last_low = 0


def now_us() -> int:
    """The time now, in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def us_of_datetime(moment: datetime) -> int:
    """Microseconds since the Unix epoch; a moment without a zone is taken as UTC.

    >>> us_of_datetime(datetime(1970, 1, 1, 0, 0, 1))
    1000000
    """
    if moment.utcoffset() is None:  # also of a zone that does not know
        moment = moment.replace(tzinfo=UTC)
    return (moment - UNIX_EPOCH) // _MICROSECOND


def datetime_of_us(us: int) -> datetime:
    """The UTC moment ``us`` microseconds after the Unix epoch.

    >>> datetime_of_us(1_000_000)
    datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.timezone.utc)
    """
    return UNIX_EPOCH + timedelta(microseconds=us)


def draw_id(event_us: int) -> bytes:
    """The 16 bytes of a new id for an event at ``event_us`` microseconds since the Unix epoch.

    >>> first, second = draw_id(0), draw_id(0)
    >>> first < second, event_us_of(first)
    (True, 0)
    """
    global _last_low
    if not -_BIAS_US <= event_us <= EVENT_US_MAX:
        raise InvalidError(f"event time {event_us} us lies outside the years 1 to 9999")
    drawn = (time.time_ns() // 1_000_000) << 20 | random.getrandbits(20)
    with _lock:
        low = _last_low = drawn if drawn > _last_low else _last_low + 1
    high = event_us + _BIAS_US
    number = (high >> 12) << 80 | 8 << 76 | (high & 0xFFF) << 64 | 2 << 62 | low & ((1 << 62) - 1)
    return number.to_bytes(16, "big")


def lowest_id(event_us: int) -> bytes:
    """The lower bound of all ids of events at ``event_us`` or later: what a time range is scanned by."""
    high = min(max(event_us, -_BIAS_US), EVENT_US_MAX + 1) + _BIAS_US
    return ((high >> 12) << 80 | 8 << 76 | (high & 0xFFF) << 64).to_bytes(16, "big")


_ID_STOP = lowest_id(EVENT_US_MAX + 1)


def event_us_of(id_bytes: bytes) -> int:
    """The event time an id carries, in microseconds since the Unix epoch."""
    high = int.from_bytes(id_bytes[:8], "big")
    return ((high >> 16) << 12 | high & 0xFFF) - _BIAS_US


def format_id(id_bytes: bytes) -> str:
    """The text of an id: 36 lower-case characters."""
    text = id_bytes.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_id(text: str) -> bytes:
    """The 16 bytes of an id, or InvalidError where it is not one of ours.

    >>> parse_id("00e0-not-an-id")
    Traceback (most recent call last):
    ...
    qilbee_core.errors.InvalidError: '00e0-not-an-id' is not an episode id: use an id that ...
    """
    try:
        id_bytes = bytes.fromhex(text.replace("-", ""))
        if (
            len(text) == 36
            and len(id_bytes) == 16
            and text[8:24:5] == "----"
            and text.lower() == text
            and id_bytes[6] >> 4 == 8
            and id_bytes[8] >> 6 == 2
            and id_bytes < _ID_STOP
        ):
            return id_bytes
    except (ValueError, AttributeError, TypeError):
        pass
    raise InvalidError(
        f"{shown(text)} is not an episode id", remedy="use an id that store_episode() or Episode.id gave"
    )


def _start_anew() -> None:
    # A forked child would go on from the parent's last id and draw the same ones.
    global _last_low, _lock
    _lock = threading.Lock()
    _last_low = 0


os.register_at_fork(after_in_child=_start_anew)
