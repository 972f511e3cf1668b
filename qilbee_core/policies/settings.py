"""The settings of a policy: keywords, checked against a struct."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from qilbee_core.errors import SettingsError

__all__ = ["read_settings"]

T = TypeVar("T", bound=Struct)


def read_settings(kind: type[T], policy: str, given: dict[str, object]) -> T:
    """``given`` as the settings of ``policy``; SettingsError for a name or a value that it has not.

    >>> class Keep(Struct):
    ...     days: int = 30
    >>> read_settings(Keep, "keep", {"days": 3}).days
    3
    >>> read_settings(Keep, "keep", {"day": 3})
    Traceback (most recent call last):
    ...
    qilbee_core.errors.SettingsError: policy 'keep' has no setting 'day': its settings are days
    """
    names = [field.name for field in msgspec.structs.fields(kind)]
    for name in given:
        if name not in names:
            raise SettingsError(
                f"policy {policy!r} has no setting {name!r}", remedy=f"its settings are {', '.join(names)}"
            )
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"settings of policy {policy!r}: {error}", remedy="docs/consolidation.md has them"
        ) from error
