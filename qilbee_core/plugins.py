"""Discovery: from installed packages to one immutable :class:`Plugins` object, passed on explicitly.

Our own engines, codecs and serializers come in through the same hooks as a third party's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

import pluggy

from qilbee_core import builtin
from qilbee_core.episode import ConsolidationResult, Episode
from qilbee_core.errors import PluginError, ProviderNotFoundError, QilbeeError, SettingsError, shown
from qilbee_core.hookspecs import PROJECT_NAME, HookSpecs
from qilbee_core.interfaces import Codec, ConsolidationPolicy, Embedder, Provider, Serializer, StorageBackend

__all__ = ["Plugins", "Registry", "load_plugins"]

T = TypeVar("T")

log = logging.getLogger(__name__)

_OWN_DISTRIBUTION = "qilbee-core"


@dataclass(frozen=True, slots=True)
class Registry(Generic[T]):
    """The providers of one kind, by name, each with the distribution it came from."""

    kind: str
    providers: Mapping[str, Provider[T]]
    distributions: Mapping[str, str]

    def find(self, name: str, *, distribution: str = "") -> Provider[T]:
        """The provider called ``name``, or ProviderNotFoundError saying what there is and what to install.

        ``distribution`` is the package that provided it once, where that is known.
        """
        provider = self.providers.get(name) if isinstance(name, str) else None
        if provider is None:
            package = distribution or f"the package that provides {shown(name)}"
            raise ProviderNotFoundError(
                f"no {self.kind} {shown(name)}; installed are {', '.join(sorted(self.providers))}",
                remedy=f"pip install {package}" if distribution else f"check the name, or install {package}",
            )
        return provider

    def create(self, name: str, *arguments: object, distribution: str = "", **settings: object) -> T:
        """What the provider called ``name`` makes; what it lacks is named with the command to install it."""
        provider = self.find(name, distribution=distribution)
        try:
            return provider.create(*arguments, **settings)
        except ImportError as error:
            raise ProviderNotFoundError(
                f"{self.kind} {name!r} needs {error.name or error}, which cannot be imported",
                remedy=provider.install or f"install what {self.distributions[name]} needs",
            ) from error
        except (QilbeeError, OSError):
            raise
        except Exception as error:
            raise PluginError(
                f"{self.kind} {name!r} of {self.distributions[name]} failed to start: {error!r}"
            ) from error


@dataclass(frozen=True, slots=True)
class Plugins:
    """Everything that was found. Made by :func:`load_plugins` and never changed."""

    backends: Registry[StorageBackend]
    codecs: Registry[Codec]
    serializers: Registry[Serializer]
    embedders: Registry[Embedder]
    policies: Registry[ConsolidationPolicy]
    episodes_stored: Callable[[str, Sequence[Episode]], None] | None
    """Tells the observers; None where nobody listens."""
    memory_consolidated: Callable[[str, ConsolidationResult], None] | None
    """The same."""


def load_plugins(*, disabled: Sequence[str] = (), extra: Sequence[object] = ()) -> Plugins:
    """Find every installed plugin, leave out those ``disabled`` by name, and add the objects in ``extra``.

    Names are those of the entry points in group ``qilbee_core``. Raises PluginError for a plugin that
    cannot be imported, has a misspelt hook, or provides a name that another one provides.

    >>> sorted(load_plugins().serializers.providers)[:2]
    ['json', 'msgpack']
    """
    return _assemble(_installed(tuple(sorted(disabled))), tuple(extra))


@cache
def _installed(disabled: tuple[str, ...]) -> tuple[tuple[str, str, object], ...]:
    """Name, distribution and plugin of every entry point that is not disabled."""
    found = sorted(entry_points(group=PROJECT_NAME), key=lambda point: point.name)
    unknown = set(disabled) - {point.name for point in found}
    if unknown:
        raise SettingsError(
            f"plugins.disabled names {sorted(unknown)}, installed are {[point.name for point in found]}",
            remedy="take the name out, or spell it as listed",
        )
    return tuple((point.name, _distribution_of(point), _load(point)) for point in found if point.name not in disabled)


def _distribution_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _load(point: EntryPoint) -> object:
    try:
        plugin: object = point.load()
    except Exception as error:
        raise PluginError(
            f"plugin {point.name!r} of {_distribution_of(point)} cannot be imported: {error!r}",
            remedy=f"reinstall it, or disable it: [plugins] disabled = [{point.name!r}]",
        ) from error
    if point.dist is not None:
        log.info("plugin %s: %s %s", point.name, point.dist.name, point.dist.version)
    return plugin


def _assemble(installed: Sequence[tuple[str, str, object]], extra: Sequence[object]) -> Plugins:
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(HookSpecs)
    distribution_of = {"builtin": _OWN_DISTRIBUTION}
    manager.register(builtin, "builtin")
    for name, distribution, plugin in installed:
        distribution_of[name] = distribution
        _register(manager, plugin, name, distribution)
    for plugin in extra:
        name = f"{type(plugin).__module__}.{type(plugin).__qualname__}@{id(plugin):x}"
        distribution_of[name] = type(plugin).__module__
        _register(manager, plugin, name, type(plugin).__module__)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(str(error), remedy="the hooks there are stand in docs/plugins.md") from error
    return Plugins(
        backends=_collect(manager, "backend", "qilbee_register_backends", distribution_of),
        codecs=_collect(manager, "codec", "qilbee_register_codecs", distribution_of),
        serializers=_collect(manager, "serializer", "qilbee_register_serializers", distribution_of),
        embedders=_collect(manager, "embedder", "qilbee_register_embedders", distribution_of),
        policies=_collect(manager, "policy", "qilbee_register_policies", distribution_of),
        episodes_stored=_observer(manager, "qilbee_episodes_stored", "episodes"),
        memory_consolidated=_observer(manager, "qilbee_memory_consolidated", "result"),
    )


def _register(manager: pluggy.PluginManager, plugin: object, name: str, distribution: str) -> None:
    for hook in dir(plugin):
        # pluggy passes over a function without the marker, and its author would wonder for hours.
        function = getattr(plugin, hook)
        if hook.startswith("qilbee_") and callable(function) and not hasattr(function, f"{PROJECT_NAME}_impl"):
            raise PluginError(
                f"{hook} of plugin {name!r} of {distribution} is not marked as a hook",
                remedy="put @hookimpl of qilbee_core above it",
            )
    try:
        manager.register(plugin, name)
    except (ValueError, pluggy.PluginValidationError) as error:
        raise PluginError(f"plugin {name!r} of {distribution} cannot be registered: {error}") from error


def _collect(
    manager: pluggy.PluginManager, kind: str, hook_name: str, distribution_of: Mapping[str, str]
) -> Registry[T]:
    providers: dict[str, Provider[T]] = {}
    distributions: dict[str, str] = {}
    for implementation in getattr(manager.hook, hook_name).get_hookimpls():
        distribution = distribution_of[implementation.plugin_name]
        try:
            offered = list(implementation.function())
        except Exception as error:
            raise PluginError(f"{hook_name} of {distribution} failed: {error!r}") from error
        for provider in offered:
            if not isinstance(provider, Provider):
                raise PluginError(f"{hook_name} of {distribution} gave {provider!r}, not a Provider")
            if provider.name in providers:
                raise PluginError(
                    f"{kind} {provider.name!r} is provided by both {distributions[provider.name]} and {distribution}",
                    remedy="disable one of the two",
                )
            providers[provider.name] = provider
            distributions[provider.name] = distribution
    return Registry(kind, providers, distributions)


def _observer(manager: pluggy.PluginManager, hook_name: str, what: str) -> Callable[[str, T], None] | None:
    implementations = getattr(manager.hook, hook_name).get_hookimpls()
    if not implementations:
        return None

    def tell(agent_id: str, told: T) -> None:
        for implementation in implementations:
            given = {"agent_id": agent_id, what: told}
            try:
                implementation.function(*(given[name] for name in implementation.argnames))
            except Exception:
                # It is committed; an observer cannot take that back.
                log.exception("%s of plugin %s failed", hook_name, implementation.plugin_name)

    return tell
