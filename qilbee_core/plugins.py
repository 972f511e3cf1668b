"""Discovery: from installed packages to one immutable :class:`Plugins` object, passed on explicitly.

Our own engines, codecs and serializers come in through the same hooks as a third party's.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TypeVar

import pluggy
from msgspec import Struct

from qilbee_core.episode import Episode
from qilbee_core.errors import PluginError, ProviderNotFoundError, QilbeeError, SettingsError
from qilbee_core.hookspecs import PROJECT_NAME, HookSpecs
from qilbee_core.interfaces import Codec, ConsolidationPolicy, Embedder, Provider, Serializer, StorageBackend

__all__ = ["BUILTIN", "Plugins", "Registry", "load_plugins"]

T = TypeVar("T")

log = logging.getLogger("qilbee_core.plugins")

BUILTIN = "qilbee-core"
"""The distribution our own providers come from; its plugin cannot be disabled."""


class Registry(Struct, frozen=True):
    """The providers of one kind by name, and the distribution each came from."""

    kind: str
    providers: Mapping[str, Provider[object]]
    distributions: Mapping[str, str]


class Plugins(Struct, frozen=True):
    """Everything that was found. Made by :func:`load_plugins` and never changed."""

    backends: Registry
    codecs: Registry
    serializers: Registry
    embedders: Registry
    policies: Registry
    on_stored: Callable[[str, Sequence[Episode]], None] | None = None
    """Tells the observers; None where nobody listens."""
