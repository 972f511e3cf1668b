"""The commands that consolidate an agent's memory, and undo it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from qilbee_core.cli.display import ProgressBar, counted, episodes_table, moment, say, table
from qilbee_core.episode import ConsolidationResult, Episode
from qilbee_core.memory.agent import AgentMemory

__all__ = ["consolidate", "list_consolidations", "undo"]

_ROWS_MAX = 20
_TEXT_CHARACTERS_MAX = 60
_REASONS = {
    "changed": "it has changed meanwhile",
    "gone": "it was deleted or retired meanwhile",
    "pinned": "it was pinned meanwhile",
    "group": "another of its group has changed",
}


def consolidate(memory: AgentMemory, policy: str, since: datetime | None, *, dry_run: bool) -> None:
    """Consolidate, and show what became of what."""
    before = memory.get_statistics().total_episodes
    with ProgressBar(f"consolidating {memory.agent_id}", before) as bar:
        result = memory.consolidate(
            policy, dry_run=dry_run, since=since, progress=lambda done: bar.show(done, counted(done, "episode"))
        )
    gone = len(result.superseded) + len(result.forgotten)
    after = before - gone + len(result.created) if dry_run else memory.get_statistics().total_episodes
    if result.created:
        say(episodes_table(f"Created: {len(result.created):,}", result.created[:_ROWS_MAX]))
        _tell_rest(len(result.created))
    if result.superseded:
        _show_superseded(memory, result)
    if result.forgotten:
        rows = [(_text(episode),) for episode in _read(memory, result.forgotten[:_ROWS_MAX], dry_run=dry_run)]
        say(table(f"Forgotten: {len(result.forgotten):,}", ("episode",), rows))
        _tell_rest(len(result.forgotten))
    if result.dropped:
        left = [(id_, _REASONS[reason]) for id_, reason in result.dropped.items()]
        say(table(f"Planned, and left as it is: {len(left):,}", ("episode", "why"), left[:_ROWS_MAX]))
        _tell_rest(len(left))
    if not result.created and not gone:
        say(f"policy {result.policy}: there is nothing to do among {counted(result.offered, 'episode')}")
        return
    would = "would be" if dry_run else "are"
    say(f"policy {result.policy}: {counted(before, 'episode')} {would} {after:,} now")
    if result.consolidation_id is not None and result.undo_until is not None:
        say(f"until {moment(result.undo_until)} UTC this brings it back: qilbee undo ... {result.consolidation_id}")


def _show_superseded(memory: AgentMemory, result: ConsolidationResult) -> None:
    """What took the place of how many, the largest groups first."""
    sources: dict[str, list[str]] = {}
    for source, survivor in result.superseded.items():
        sources.setdefault(survivor, []).append(source)
    groups = sorted(sources.items(), key=lambda group: (-len(group[1]), group[0]))[:_ROWS_MAX]
    created = {episode.id: episode for episode in result.created}
    gone = _read(memory, [those[0] for _, those in groups], dry_run=result.dry_run)
    stay = memory.get_episodes([survivor for survivor, _ in groups])
    rows = [
        (len(those), _text(source), _text(created.get(survivor) or found))
        for (survivor, those), source, found in zip(groups, gone, stay, strict=True)
    ]
    say(table(f"Superseded: {len(result.superseded):,}", ("episodes", "such as", "by"), rows))
    _tell_rest(len(sources))


def _read(memory: AgentMemory, ids: Sequence[str], *, dry_run: bool) -> Sequence[Episode | None]:
    """The episodes, or what they were when they went."""
    return memory.get_episodes(ids) if dry_run else [next(iter(memory.history(id_)[::-1]), None) for id_ in ids]


def _text(episode: Episode | None) -> str:
    said = "" if episode is None else " ".join(str(value) for value in episode.content.values())
    return said if len(said) <= _TEXT_CHARACTERS_MAX else f"{said[:_TEXT_CHARACTERS_MAX]}..."


def _tell_rest(count: int) -> None:
    if count > _ROWS_MAX:
        say(f"and {count - _ROWS_MAX:,} more")


def list_consolidations(memory: AgentMemory) -> None:
    """Show which can be undone."""
    found = memory.consolidations()
    say(f"agent {memory.agent_id} has {counted(len(found), 'consolidation')} that can be undone")
    for each in found:
        when, until = moment(each.consolidated_at), moment(each.undo_until)
        say(
            f"{each.consolidation_id}  {each.policy} of {when}, until {until} UTC: "
            f"{each.created:,} created, {each.superseded:,} superseded, {each.forgotten:,} forgotten"
        )


def undo(memory: AgentMemory, consolidation_id: str) -> None:
    """Undo one, and show what became of what."""
    receipt = memory.undo(consolidation_id)
    say(f"{counted(len(receipt.restored), 'episode')} restored, {len(receipt.removed):,} that were created are removed")
    if receipt.kept:
        rows = [(id_, f"{reason} since") for id_, reason in receipt.kept.items()]
        say(table("Created, and left as they are", ("episode", "why"), rows[:_ROWS_MAX]))
        _tell_rest(len(rows))
    say(f"agent {memory.agent_id} has {counted(memory.get_statistics().total_episodes, 'episode')} now")
