"""Waiting for an engine that takes no writes while its compaction catches up: not under a lock, not in an event loop.

An engine that has to stall its writers raises WriteStallError at once, with nothing written. Whoever holds no lock that
others need then tries again through :func:`patiently`, or in an event loop through :func:`patiently_async`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from qilbee_core.errors import WriteStallError

__all__ = ["at_once", "patiently", "patiently_async"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_STALL_S_MAX = 60.0
_STALL_S_TOLD = 1.0
_WAIT_S_MAX = 0.05


class _Here(threading.local):
    """Whether this thread may wait. That of an event loop may not, and nobody waits inside of another wait."""

    may_wait = True


_here = _Here()


def patiently(call: Callable[[], T]) -> T:
    """What ``call`` gives once the engine takes its write; WriteStallError, with the wait, after a minute."""
    try:
        return call()
    except WriteStallError as error:
        if not _here.may_wait:
            raise
        stall = error
    for wait_s in _waits(stall):
        time.sleep(wait_s)
        try:
            return at_once(call)
        except WriteStallError:
            continue
    raise AssertionError  # _waits() ends with an error


async def patiently_async(call: Callable[[], T]) -> T:
    """The same for an asyncio task; the event loop goes on meanwhile."""
    try:
        return at_once(call)
    except WriteStallError as error:
        stall = error
    for wait_s in _waits(stall):
        await asyncio.sleep(wait_s)
        try:
            return at_once(call)
        except WriteStallError:
            continue
    raise AssertionError


def at_once(call: Callable[[], T]) -> T:
    """What ``call`` gives without waiting anywhere: WriteStallError where the engine does not take its write now."""
    _here.may_wait = False
    try:
        return call()
    finally:
        _here.may_wait = True


def _waits(stall: WriteStallError) -> Iterator[float]:
    """How long to wait before each attempt. Raises ``stall`` with the time waited when there is no point in more."""
    began_s = time.monotonic()
    wait_s, told = 0.001, False
    try:
        while (waited_s := time.monotonic() - began_s) < _STALL_S_MAX:
            if waited_s > _STALL_S_TOLD and not told:
                told = True
                log.warning("writes wait: %s", stall)
            yield wait_s
            wait_s = min(2 * wait_s, _WAIT_S_MAX)
    finally:
        if told:
            log.warning("a write waited %.1f s", time.monotonic() - began_s)
    raise WriteStallError(f"{stall.message} for {waited_s:.1f} s", remedy=stall.remedy) from stall
