"""What can be set about accounts: the table ``[accounts]``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from qilbee_core import check_settings

__all__ = ["AccountSettings"]


class AccountSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[accounts]``."""

    access_token_s: Annotated[int, Meta(ge=10, le=86_400)] = 900
    """How long an access token is good."""
    refresh_token_s: Annotated[int, Meta(ge=60, le=31_536_000)] = 604_800
    """How long a session lasts from its login, however often it is refreshed."""
    lockout_attempts: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Failed logins of one user from one address until he has to wait."""
    lockout_s: Annotated[int, Meta(ge=1, le=86_400)] = 60
    """How long he waits for the first time; each further time it is twice as long."""
    lockout_s_max: Annotated[int, Meta(ge=1, le=604_800)] = 3600
    """The most it grows to."""
    secret_file: str | None = None
    """32 bytes that sign tokens. None: ``accounts.secret`` in the directory of the store, made at the first start."""
    admin_password_file: str | None = None
    """Read at the very first start, for the user admin, where QILBEE_ADMIN_PASSWORD is not set."""

    def __post_init__(self) -> None:
        check_settings("accounts", self)
