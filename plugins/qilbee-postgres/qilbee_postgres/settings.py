"""The settings of ``[storage.engine]`` for this engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from qilbee_core import JSON, SettingsError

__all__ = ["EngineSettings", "engine_settings"]


class EngineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may stand in ``[storage.engine]``."""

    table: Annotated[str, Meta(pattern="^[a-z_][a-z0-9_]{0,39}$")] = "qilbee"
    """Name of the table; another name is another store in the same database."""
    connections_max: Annotated[int, Meta(ge=1, le=1000)] = 16
    """Statements under way at once; more wait."""
    views_max: Annotated[int, Meta(ge=1, le=1000)] = 32
    """Snapshots and long scans open at once, a connection each; more are refused."""
    connect_timeout_ms: Annotated[int, Meta(ge=1000, le=600_000)] = 5_000
    """How long a connection may take to come about, for each host; whole seconds are used."""
    statement_timeout_ms: Annotated[int, Meta(ge=100, le=3_600_000)] = 30_000
    """How long an answer may take before the connection is given up."""


def engine_settings(given: Mapping[str, JSON]) -> EngineSettings:
    """``given``, checked."""
    try:
        return msgspec.convert(dict(given), EngineSettings)
    except msgspec.ValidationError as error:
        names = ", ".join(EngineSettings.__struct_fields__)
        raise SettingsError(
            f"[storage.engine] of the postgres backend: {error}", remedy=f"its settings are {names}"
        ) from error
