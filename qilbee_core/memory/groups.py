"""A plan in groups: what has to be done together or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from qilbee_core.episode import Episode, Plan
from qilbee_core.errors import PluginError
from qilbee_core.ids import parse_id
from qilbee_core.limits import BATCH_BYTES_MAX, BATCH_EPISODES_MAX

__all__ = ["Group", "batches_of", "groups_of"]

_CREATED_BYTES_MAX = BATCH_BYTES_MAX // 2
_encode = msgspec.msgpack.Encoder().encode


class Group(NamedTuple):
    """What new memories are made of goes with them; what gives way to an episode that stays goes by itself."""

    create: list[Episode]
    supersede: dict[bytes, bytes]
    """Id of each that gives way -> of what takes its place."""
    forget: list[bytes]
    needed: dict[bytes, int]
    """The offered episodes that all this rests on, with the transaction times that they were offered with."""

    @property
    def retired(self) -> Iterator[bytes]:
        """The ids of what goes."""
        yield from self.supersede
        yield from self.forget

    @property
    def size(self) -> int:
        """How many episodes come and go."""
        return len(self.create) + len(self.supersede) + len(self.forget)


def groups_of(plan: Plan, offered: Mapping[str, int], *, policy: str) -> list[Group]:
    """A checked plan in groups, those with the oldest episodes first. ``offered``: id -> transaction time.

    A new memory rests on what gives way to it and on the offered ones that its metadata name as ``sources``. Whatever
    else becomes of those in the plan is of the same group. PluginError where a group is too large for one batch.
    """
    parts = _Parts()
    gone = plan.supersede.keys() | set(plan.forget)
    created = {episode.id: episode for episode in plan.create}
    sources = {id_: _sources_of(episode, offered) for id_, episode in created.items()}
    for id_, of in sources.items():
        for source in of:
            if source in gone:
                parts.join(id_, source)
    for source, survivor in plan.supersede.items():
        if survivor in created:
            parts.join(survivor, source)
    groups: dict[str, Group] = {}
    for id_, episode in created.items():
        group = groups.setdefault(parts.root(id_), Group([], {}, [], {}))
        group.create.append(episode)
        group.needed.update((parse_id(source), offered[source]) for source in sources[id_])
    for source, survivor in plan.supersede.items():
        group = groups.setdefault(parts.root(source), Group([], {}, [], {}))
        group.supersede[parse_id(source)] = parse_id(survivor)
        group.needed.update((parse_id(id_), offered[id_]) for id_ in (source, survivor) if id_ not in created)
    for id_ in plan.forget:
        group = groups.setdefault(parts.root(id_), Group([], {}, [], {}))
        group.forget.append(parse_id(id_))
        group.needed[parse_id(id_)] = offered[id_]
    for group in groups.values():
        _check_size(group, policy)
    return sorted(groups.values(), key=lambda group: min(group.needed, default=b""))


def batches_of(groups: Sequence[Group], episodes_max: int) -> Iterator[list[Group]]:
    """Groups in batches of at most so many episodes; one that has more is a batch of its own."""
    batch: list[Group] = []
    size = 0
    for group in groups:
        if batch and size + group.size > episodes_max:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += group.size
    if batch:
        yield batch


class _Parts:
    """Which ids belong together (union and find)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, id_: str) -> str:
        """The one id that stands for all that belong together with this one."""
        while (above := self._above.get(id_, id_)) != id_:
            self._above[id_] = self._above.get(above, above)
            id_ = above
        return id_

    def join(self, one: str, other: str) -> None:
        """Let two belong together."""
        self._above[self.root(one)] = self.root(other)


def _sources_of(episode: Episode, offered: Mapping[str, int]) -> list[str]:
    named = episode.metadata.get("sources")
    if isinstance(named, str) or not isinstance(named, Sequence):
        return []
    return [source for source in named if isinstance(source, str) and source in offered]


def _check_size(group: Group, policy: str) -> None:
    if group.size > BATCH_EPISODES_MAX:
        raise PluginError(
            f"policy {policy!r} broke its contract: {group.size} episodes come and go together, "
            f"the most is {BATCH_EPISODES_MAX}",
            remedy="derive several memories, each of fewer sources",
        )
    created_bytes = sum(len(_encode([episode.content, episode.metadata])) for episode in group.create)
    if created_bytes > _CREATED_BYTES_MAX:
        raise PluginError(
            f"policy {policy!r} broke its contract: memories of {created_bytes} bytes come together, "
            f"the most is {_CREATED_BYTES_MAX}",
            remedy="make them shorter, or of fewer sources",
        )
