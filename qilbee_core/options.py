"""The settings of what a plugin provides: keywords, checked against a struct."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from qilbee_core.errors import SettingsError

__all__ = ["read_options"]

T = TypeVar("T", bound=Struct)


def read_options(kind: type[T], of: str, given: dict[str, object], *, page: str) -> T:
    """``given`` as the settings ``of`` something; SettingsError for a name or a value that it has not.

    >>> class Keep(Struct):
    ...     days: int = 30
    >>> read_options(Keep, "policy 'keep'", {"days": 3}, page="docs/consolidation.md").days
    3
    >>> read_options(Keep, "policy 'keep'", {"day": 3}, page="docs/consolidation.md")
    Traceback (most recent call last):
    ...
    qilbee_core.errors.SettingsError: policy 'keep' has no setting 'day': its settings are days
    """
    names = [field.name for field in msgspec.structs.fields(kind)]
    for name in given:
        if name not in names:
            raise SettingsError(f"{of} has no setting {name!r}", remedy=f"its settings are {', '.join(names)}")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings of {of}: {error}", remedy=f"{page} has them") from error
