"""Who may do what: the permissions that routes ask for, the roles that give them, and the caller who has them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from qilbee_core import InvalidError

__all__ = ["KEY_PERMISSIONS", "ROLES", "Permission", "Principal", "check_roles", "permissions_of"]


class Permission(StrEnum):
    """What a route asks of its caller."""

    PUBLIC = "public"
    """Nothing, not even to be known."""
    SELF = "self"
    """To act on what is the caller's own: log out, his keys."""
    READ = "read"
    """Get, recent, search, statistics."""
    WRITE = "write"
    """Store and update."""
    DELETE = "delete"
    """One episode."""
    PLAN = "plan"
    """Dry runs and exports."""
    MAINTAIN = "maintain"
    """What changes many memories at once: forget, clear, purge, consolidate, undo."""
    ADMIN = "admin"
    """Users, everybody's keys, lockouts, rate limits, the audit log, the store as a whole."""


_P = Permission
ROLES: Mapping[str, frozenset[Permission]] = {
    "Read": frozenset({_P.READ, _P.SELF}),
    "Agent": frozenset({_P.READ, _P.WRITE, _P.DELETE, _P.SELF}),
    "DataScientist": frozenset({_P.READ, _P.PLAN, _P.SELF}),
    "Developer": frozenset({_P.READ, _P.WRITE, _P.DELETE, _P.PLAN, _P.MAINTAIN, _P.SELF}),
    "Admin": frozenset(Permission) - {_P.PUBLIC},
}
"""What each role gives. A user with several has what any of them gives."""

KEY_PERMISSIONS = ROLES["Developer"] - {_P.SELF}
"""The most that an API key gives whose permissions were not named: whoever finds one makes no further keys with it."""


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """The roles, sorted and each once; InvalidError for one that there is not.

    >>> check_roles(["Read", "Agent", "Read"])
    ('Agent', 'Read')
    """
    found = tuple(sorted(set(roles)))
    for role in found:
        if role not in ROLES:
            raise InvalidError(f"there is no role {role!r}", remedy=f"the roles are {', '.join(ROLES)}")
    return found


@lru_cache(256)
def permissions_of(roles: tuple[str, ...]) -> frozenset[Permission]:
    """What the roles give together; one of a later release gives nothing."""
    return frozenset[Permission]().union(*(ROLES.get(role, ()) for role in roles))


class Principal(Struct, frozen=True, kw_only=True):
    """Who calls, as the store said it when he did.

    ``agents`` are those he is limited to, in their NFC form; None: all. ``permissions`` is the most that he has of what
    his roles give; None: all of it. ``session_id`` or ``api_key_id`` says what he came with.

    >>> reader = Principal(user_id="1", username="ann", roles=("Read",), agents=frozenset({"bot"}))
    >>> reader.may(Permission.READ, "bot"), reader.may(Permission.READ, "other"), reader.may(Permission.WRITE, "bot")
    (True, False, False)
    """

    user_id: str
    username: str
    roles: tuple[str, ...]
    agents: frozenset[str] | None = None
    permissions: frozenset[Permission] | None = None
    api_key_id: str | None = None
    session_id: str | None = None

    def may(self, permission: Permission, agent_id: str | None = None) -> bool:
        """Whether he may do that, on that agent where the route has one. What nothing gives is refused."""
        if permission is Permission.PUBLIC:
            return True
        if self.permissions is not None and permission not in self.permissions:
            return False
        if agent_id is not None and self.agents is not None:
            agent_id = unicodedata.normalize("NFC", agent_id)
            if agent_id not in self.agents:
                return False
        return permission in permissions_of(self.roles)

    @property
    def rate_key(self) -> str:
        """By whose rate his requests count."""
        return f"key:{self.api_key_id}" if self.api_key_id else f"user:{self.user_id}"
