"""What a policy may plan, and what happens to one that plans anything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from qilbee_core.episode import Episode, Plan
from qilbee_core.errors import InvalidError, PluginError, QilbeeError, shown
from qilbee_core.interfaces import ConsolidationPolicy
from qilbee_core.limits import check_episode, check_sizes

__all__ = ["check_plan", "plan_of"]


def plan_of(policy: ConsolidationPolicy, episodes: Sequence[Episode], *, now: datetime) -> Plan:
    """What ``policy`` plans for ``episodes``, checked.

    Raises PluginError where it fails or breaks its contract. Errors of ours that are something else, such as
    SettingsError, come through.
    """
    try:
        plan = policy.plan(episodes, now=now)
    except QilbeeError:
        raise
    except Exception as error:
        raise PluginError(f"policy {policy.name!r} failed: {error!r}") from error
    check_plan(plan, episodes, policy=policy.name)
    return plan


def check_plan(plan: Plan, offered: Iterable[Episode], *, policy: str) -> None:
    """Refuse a plan that goes beyond ``offered`` or contradicts itself, with a PluginError that names ``policy``.

    - What it creates can be stored, and belongs to an agent whose episodes were offered. Under an id that was offered
      it is that memory made again, which stays.
    - What it supersedes or forgets was offered, and is one of the two.
    - What takes the place of another is created by the plan, or was offered and stays.

    >>> note = Episode.observation("bot", "x")
    >>> check_plan(Plan(forget=[note.id]), [note], policy="acme.tidy")
    >>> check_plan(Plan(forget=[note.id, note.id]), [note], policy="acme.tidy")
    Traceback (most recent call last):
    ...
    qilbee_core.errors.PluginError: policy 'acme.tidy' broke its contract: forget names an episode twice: ...
    """
    if type(plan) is not Plan:
        _broken(policy, f"plan() gave {type(plan).__name__}, not a Plan")
    if not _is_sequence(plan.create) or not isinstance(plan.supersede, Mapping) or not _is_sequence(plan.forget):
        _broken(policy, "a Plan holds a list, a dict and a list")
    agents: set[str] = set()
    ids: set[str] = set()
    for episode in offered:
        agents.add(episode.agent_id)
        ids.add(episode.id)
    created = _created(plan.create, agents, policy)
    forgotten = set(_known(plan.forget, ids, "forget names", policy))
    if len(forgotten) != len(plan.forget):
        _broken(policy, "forget names an episode twice")
    superseded = set(_known(plan.supersede, ids, "supersede names", policy))
    for survivor in _known(plan.supersede.values(), ids | created, "supersede points to", policy):
        if survivor in superseded:
            _broken(policy, f"{survivor} takes the place of another and is superseded itself")
        if survivor in forgotten:
            _broken(policy, f"{survivor} takes the place of another and is forgotten")
    if created & (superseded | forgotten):
        _broken(policy, f"{min(created & (superseded | forgotten))} is created, and superseded or forgotten")
    if superseded & forgotten:
        _broken(policy, f"{min(superseded & forgotten)} is both superseded and forgotten")


def _created(create: Sequence[Episode], agents: set[str], policy: str) -> set[str]:
    created: set[str] = set()
    for episode in create:
        try:
            check_episode(episode)
            check_sizes(episode.content, episode.metadata)
        except InvalidError as error:
            _broken(policy, f"what it creates cannot be stored: {error.message}")
        except UnicodeEncodeError:
            _broken(policy, "what it creates cannot be stored: a lone surrogate in its content or metadata")
        if episode.agent_id not in agents:
            _broken(policy, f"it creates for the agent {shown(episode.agent_id)}, of whom nothing was offered")
        if episode.id in created:
            _broken(policy, f"it creates {episode.id} twice")
        created.add(episode.id)
    return created


def _known(named: Iterable[str], known: set[str], what: str, policy: str) -> Sequence[str]:
    names = list(named)
    for name in names:
        if type(name) is not str or name not in known:
            _broken(policy, f"{what} {shown(name)}, which was never offered")
    return names


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _broken(policy: str, fault: str) -> NoReturn:
    raise PluginError(f"policy {policy!r} broke its contract: {fault}")
