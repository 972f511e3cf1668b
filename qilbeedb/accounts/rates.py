"""Rate limits: so many requests in a window of time, for each caller by himself.

Policies are a row of the store; requests are counted in RAM, by this process. A window begins with a request and ends
when its time has passed: around that moment up to twice as many may pass as in any other time of the same length.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from unicodedata import normalize

from qilbee_core import AccountRows
from qilbeedb.accounts.tables import POLICIES, Policy
from qilbeedb.exceptions import RateLimitedError

__all__ = ["ENDPOINT_TYPES", "RateLimits"]

ENDPOINT_TYPES = ("Login", "ApiKeyCreation", "GeneralApi", "UserManagement")
_CALLERS_MAX = 100_000


class _Window:
    """Requests of one caller under one policy, since the first of them."""

    __slots__ = ("count", "start_s")

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.count = 0

    def wait_s(self, now_s: float, policy: Policy) -> float:
        """Count a request where it fits, and give 0; else how long until one does."""
        if now_s - self.start_s >= policy.window_s:
            self.start_s, self.count = now_s, 0
        if self.count < policy.max_requests:
            self.count += 1
            return 0.0
        return self.start_s + policy.window_s - now_s


class RateLimits:
    """Counts requests against the policies in force."""

    def __init__(self, rows: AccountRows) -> None:
        self._rows = rows
        self._version: int | None = None
        self._value: bytes | None = None
        self._policies: dict[str, tuple[Policy, ...]] = {}
        self._windows: dict[tuple[str, str], _Window] = {}
        self._lock = threading.Lock()
        self.clock_s: Callable[[], float] = time.monotonic

    def policies(self, endpoint_type: str, path: str) -> tuple[Policy, ...]:
        """Those that a request falls under: of its type, and for its path, which name exactly that or one above."""
        version = self._rows.version
        if version is None or version != self._version:
            self._read()
            self._version = version
        found = self._policies.get(endpoint_type, ())
        if "Custom" in self._policies:
            path = normalize("NFC", path)  # as an agent's name is one in all its forms
            found += tuple(policy for policy in self._policies["Custom"] if _covers(policy, path))
        return found

    def _read(self) -> None:
        """Find the policies in force, if their row has changed."""
        value = self._rows.get(POLICIES.prefix)
        if value != self._value:
            by_type: dict[str, tuple[Policy, ...]] = {}
            for policy in () if value is None else POLICIES.decode(POLICIES.prefix, value):
                if policy.enabled:
                    by_type[policy.endpoint_type] = (*by_type.get(policy.endpoint_type, ()), policy)
            self._value, self._policies = value, by_type

    def count(self, policy: Policy, caller: str) -> None:
        """Count a request of ``caller``; RateLimitedError where that is one too many."""
        now_s = self.clock_s()
        with self._lock:
            window = self._windows.get((policy.id, caller))
            if window is None:
                if len(self._windows) >= _CALLERS_MAX:
                    del self._windows[next(iter(self._windows))]
                window = self._windows[(policy.id, caller)] = _Window(now_s)
            wait_s = window.wait_s(now_s, policy)
        if wait_s:
            raise RateLimitedError(
                f"more than {policy.max_requests} requests in {policy.window_s} s ({policy.name})",
                retry_after_s=max(1.0, wait_s),
            )


def _covers(policy: Policy, path: str) -> bool:
    if policy.path is None:
        return False
    covered = normalize("NFC", policy.path)
    return path == covered or path.startswith(covered.rstrip("/") + "/")
