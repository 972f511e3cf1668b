"""Failed logins: who fails too often has to wait, longer each time.

Failures are counted by name and client address together, so that nobody locks others out from elsewhere. Names that
nobody has are counted in the same way: an answer must not tell which names there are. From the machine itself an
administrator is never locked out.
"""

from __future__ import annotations

from msgspec.structs import replace

from qilbee_core import NotFoundError
from qilbeedb.account_wire import LockedUser, LockoutStatus
from qilbeedb.accounts.addresses import client_of
from qilbeedb.accounts.audit import moment
from qilbeedb.accounts.settings import AccountSettings
from qilbeedb.accounts.tables import FAILURES, LOCKS, Change, Failures, Lock, Tables
from qilbeedb.exceptions import RateLimitedError

__all__ = ["Lockouts", "is_forgotten"]

_FORGOTTEN_AFTER_US = 24 * 3600 * 1_000_000
"""Failures count as long as none is that far from the next."""
_LOCKED_RETRY_S = 3600.0


class Lockouts:
    """Counts failures, and says who has to wait."""

    def __init__(self, tables: Tables, settings: AccountSettings) -> None:
        self._tables = tables
        self._settings = settings

    def check(self, digest: str, address: str) -> None:
        """RateLimitedError where logins under that name are locked, from everywhere or from there."""
        self.check_lock(digest)
        failures = self._tables.get(FAILURES, _place(digest, address))
        if failures is not None and failures.until_us > (now_us := self._tables.now_us()):
            wait_s = (failures.until_us - now_us) / 1e6
            raise RateLimitedError(
                "too many failed logins", retry_after_s=wait_s, remedy=f"wait {wait_s:.0f} s and try again"
            )

    def check_lock(self, digest: str) -> None:
        """RateLimitedError where an administrator has locked the user of that name."""
        if self._tables.get(LOCKS, digest) is not None:
            raise RateLimitedError(
                "this account is locked", retry_after_s=_LOCKED_RETRY_S, remedy="ask an administrator to unlock it"
            )

    def failed(self, change: Change, digest: str, address: str, username: str | None) -> bool:
        """Count a failure; whether it was the one too many."""
        known = change.get(FAILURES, _place(digest, address))
        now_us = change.now_us
        if known is None or is_forgotten(known, now_us):
            known = Failures(username, 0, 0, 0, now_us)
        found = replace(known, failed=known.failed + 1, last_us=now_us)
        is_locked = found.failed >= self._settings.lockout_attempts
        if is_locked:
            wait_s = min(self._settings.lockout_s << min(found.times, 30), self._settings.lockout_s_max)
            found = replace(found, failed=0, until_us=now_us + wait_s * 1_000_000, times=found.times + 1)
        change.put(FAILURES, _place(digest, address), found)
        return is_locked

    def succeeded(self, change: Change, digest: str, address: str) -> None:
        """Forget what failed from there."""
        place = _place(digest, address)
        if change.get(FAILURES, place) is not None:
            change.delete(FAILURES, place)

    def lock(self, change: Change, digest: str, username: str, reason: str) -> None:
        """Let nobody log in under that name until it is unlocked."""
        change.put(LOCKS, digest, Lock(username, change.now_us, reason))

    def unlock(self, change: Change, digest: str, username: str) -> None:
        """Forget locks and failures; NotFoundError where there are none."""
        places = [place for place, _ in self._tables.scan(FAILURES, digest)]
        is_locked = change.get(LOCKS, digest) is not None
        if not places and not is_locked:
            raise NotFoundError(f"nothing is known of failed logins of {username!r}", remedy="see GET /api/v1/lockouts")
        for place in places:
            change.get(FAILURES, place)
            change.delete(FAILURES, place)
        if is_locked:
            change.delete(LOCKS, digest)

    def status(self, digest: str) -> LockoutStatus:
        """How a name stands now."""
        return self._status(self._tables.get(LOCKS, digest), [each for _, each in self._tables.scan(FAILURES, digest)])

    def locked(self) -> list[LockedUser]:
        """Everybody who is locked now, by name. A name that nobody has is not told."""
        found: dict[str, tuple[str, Lock | None, list[Failures]]] = {}
        for digest, lock in self._tables.scan(LOCKS):
            found[digest] = (lock.username or "", lock, [])
        for place, failures in self._tables.scan(FAILURES):
            digest = place.partition("/")[0]
            found.setdefault(digest, (failures.username or "", None, []))[2].append(failures)
        rows = [(name, self._status(lock, failures)) for name, lock, failures in found.values()]
        return [
            LockedUser(username=name, **{field: getattr(status, field) for field in LockoutStatus.__struct_fields__})
            for name, status in sorted(rows, key=lambda row: row[0])
            if status.locked and name
        ]

    def _status(self, lock: Lock | None, rows: list[Failures]) -> LockoutStatus:
        now_us = self._tables.now_us()
        rows = [row for row in rows if not is_forgotten(row, now_us)]
        until_us = max((row.until_us for row in rows), default=0)
        waits = until_us > now_us
        failed = max((row.failed for row in rows), default=0)
        reason = "too many failed logins" if waits else None
        return LockoutStatus(
            locked=waits or lock is not None,
            failed_attempts=failed,
            remaining_attempts=0 if waits or lock is not None else max(0, self._settings.lockout_attempts - failed),
            lockout_expires=moment(until_us) if waits and lock is None else None,
            lockout_remaining_seconds=(until_us - now_us + 999_999) // 1_000_000 if waits and lock is None else None,
            lockout_count=sum(row.times for row in rows) + (lock is not None),
            lockout_reason=reason if lock is None else lock.reason,
        )


def is_forgotten(failures: Failures, now_us: int) -> bool:
    """Whether they are so long ago that they count no more."""
    return now_us - failures.last_us > _FORGOTTEN_AFTER_US and failures.until_us <= now_us


def _place(digest: str, address: str) -> str:
    return f"{digest}/{client_of(address)}"
