"""The hooks a plugin may implement: five that hand over providers at open, two that observe.

Providing hooks are called once, when plugins are loaded; nothing on the path of a record calls a
hook. Observers run after the commit and cannot veto: what they raise is logged.

>>> from qilbee_core import Provider, hookimpl
>>> class Plugin:
...     @hookimpl
...     def qilbee_register_codecs(self):
...         return [Provider("acme.reverse", make_reverse_codec, "bytes, backwards")]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pluggy

from qilbee_core.episode import ConsolidationResult, Episode
from qilbee_core.interfaces import Codec, ConsolidationPolicy, Embedder, Provider, Serializer, StorageBackend

__all__ = ["PROJECT_NAME", "HookSpecs", "hookimpl"]

PROJECT_NAME = "qilbee_core"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


class HookSpecs:
    """Every hook there is; a ``qilbee_*`` function of any other name is an error when it is loaded."""

    @hookspec
    def qilbee_register_backends(self) -> Iterable[Provider[StorageBackend]]:  # type: ignore[empty-body]
        """Storage engines. ``create(options: BackendOptions)`` opens one."""

    @hookspec
    def qilbee_register_codecs(self) -> Iterable[Provider[Codec]]:  # type: ignore[empty-body]
        """Codecs for values. ``create()``."""

    @hookspec
    def qilbee_register_serializers(self) -> Iterable[Provider[Serializer]]:  # type: ignore[empty-body]
        """Serializers for documents. ``create()``."""

    @hookspec
    def qilbee_register_embedders(self) -> Iterable[Provider[Embedder]]:  # type: ignore[empty-body]
        """Embedders. ``create(**settings)``."""

    @hookspec
    def qilbee_register_policies(self) -> Iterable[Provider[ConsolidationPolicy]]:  # type: ignore[empty-body]
        """Consolidation policies. ``create(**settings)``."""

    @hookspec
    def qilbee_episodes_stored(self, agent_id: str, episodes: Sequence[Episode]) -> None:
        """``episodes`` were stored: called once for each committed batch, after the commit."""

    @hookspec
    def qilbee_memory_consolidated(self, agent_id: str, result: ConsolidationResult) -> None:
        """A consolidation of ``agent_id`` was committed: called once, after all of it, where it changed anything."""
