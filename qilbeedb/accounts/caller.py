"""Who asks, and from where."""

from __future__ import annotations

from msgspec import Struct

from qilbeedb.accounts.permissions import Principal

__all__ = ["Caller"]


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks, and from where: what the audit log says of him."""

    address: str = ""
    user_agent: str = ""
    principal: Principal | None = None
