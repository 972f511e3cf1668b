"""The commands, one function each."""

from __future__ import annotations

import functools
import heapq
import logging
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from importlib.metadata import version
from importlib.resources import as_file, files
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import msgspec
import typer
from msgspec.structs import asdict, replace

from qilbee_core.cli import consolidation as consolidation_run
from qilbee_core.cli import copying as copying_run
from qilbee_core.cli import quickstart as quickstart_run
from qilbee_core.cli import recover as recover_run
from qilbee_core.cli.disk import disk_use
from qilbee_core.cli.display import (
    ProgressBar,
    Warnings,
    counted,
    episodes_table,
    figures,
    moment,
    say,
    say_aside,
    table,
)
from qilbee_core.config import Settings, StorageSettings
from qilbee_core.errors import DataError, InvalidError, NotFoundError, QilbeeError, StoreLockedError
from qilbee_core.limits import LIMIT_MAX
from qilbee_core.memory.verify import Problem, VerifyReport
from qilbee_core.plugins import Plugins, Registry, load_plugins
from qilbee_core.store import Store, open_store

__all__ = ["app", "main", "open_existing", "open_to_look", "read_settings_as", "telling_errors"]

P = ParamSpec("P")
T = TypeVar("T")

_QUICKSTART_DATA = "quickstart-data"
_ROWS_MAX = 50

_settings_type: type[Settings] = Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config", help="Look at a configuration file.")

Place = Annotated[
    str | None,
    typer.Argument(
        metavar="STORE", help="Directory of the store, or URL of its database.  [default: that of the configuration]"
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", exists=True, dir_okay=False, metavar="FILE", help="TOML file with the settings."),
]


def main() -> None:
    """Run the command that the arguments name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a store holds may not be in the terminal's encoding
    logging.getLogger("qilbee_core").addHandler(Warnings(logging.WARNING))
    app(prog_name="qilbee")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qilbee-core {version('qilbee-core')}")
        raise typer.Exit


@app.callback()
def _qilbee(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Durable memory for AI agents: try it, and look into a store."""


def read_settings_as(settings_type: type[Settings]) -> None:
    """Have every command read its settings as these, which know more tables."""
    global _settings_type
    _settings_type = settings_type


def telling_errors(command: Callable[P, T]) -> Callable[P, T]:
    """``command``, with each error of ours told in one line."""

    @functools.wraps(command)
    def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except QilbeeError as error:
            say_aside(f"error: {error}", "red")
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            say_aside("interrupted")
            raise typer.Exit(quickstart_run.INTERRUPTED) from None

    return telling


# --- the first run


@app.command()
@telling_errors
def quickstart(
    file: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            readable=True,
            metavar="FILE",
            help="Conversations, one JSON object a line.  [default: the sample that comes with qilbee]",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help=f"Directory of the store.  [default: {_QUICKSTART_DATA}]")
    ] = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="Storage engine.  [default: rocksdb]")] = None,
    compression: Annotated[
        str | None, typer.Option(metavar="NAME", help="none, lz4, snappy or zstd.  [default: lz4]")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Store conversations, and read them back.

    The store is closed, and opened again by a new process that shows what is in it. Each line of FILE is
    an object with the texts agent_id, user_input and agent_response and, if you like, event_time
    (2026-03-02T09:14:05Z) and metadata (an object). A second run with the same FILE and DIR stores
    nothing twice.
    """
    settings = _settings(config, data, backend=backend, compression_type=compression)
    if data is None and settings.storage.data_path == StorageSettings().data_path:
        settings = settings.with_storage({"data_path": _QUICKSTART_DATA})
    if settings.storage.dsn is not None:
        raise InvalidError(
            "quickstart shows what is on this disk, and a database is elsewhere", remedy="name a directory with --data"
        )
    engine = settings.storage.backend
    if engine is not None and not _plugins(settings).backends.find(engine).directory:
        raise InvalidError(
            f"the {engine} backend keeps nothing when it is closed, so there would be nothing to reopen",
            remedy="leave --backend out, or give rocksdb",
        )
    sample = files("qilbee_core") / "samples" / "conversations.jsonl"
    with nullcontext(file) if file else as_file(sample) as path:
        quickstart_run.run(path, settings, config)


# --- a look into a store


@app.command()
@telling_errors
def show(
    place: Place = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only this agent.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=LIMIT_MAX, help="How many recent episodes.")] = 10,
    config: ConfigFile = None,
) -> None:
    """Show agents, statistics and recent episodes."""
    with open_to_look(place, config) as store:
        agent_ids = _chosen(store, agent)
        memories = [store.agent_memory(agent_id) for agent_id in agent_ids]
        statistics = [memory.get_statistics() for memory in memories]
        recent = heapq.nlargest(
            limit,
            (episode for memory in memories for episode in memory.get_recent_episodes(limit)),
            key=lambda episode: episode.id,
        )
        what = f"{store.settings.storage.where}: {store.stats()['backend']}, durability {store.durability().level}"
    say(f"{what}, opened by process {os.getpid()}")
    rows = [
        (
            agent_id,
            its.total_episodes,
            round(its.avg_relevance, 2),
            moment(its.oldest_episode)[:10],
            moment(its.newest_episode)[:10],
            its.bytes,
        )
        for agent_id, its in zip(agent_ids, statistics, strict=True)
    ]
    rows.sort(key=lambda row: row[4], reverse=True)
    columns = ("agent", "episodes", "relevance", "oldest", "newest", "bytes")
    say(table(f"Agents: {len(rows):,}", columns, rows[:_ROWS_MAX]))
    if len(rows) > _ROWS_MAX:
        say(f"and {len(rows) - _ROWS_MAX:,} more; name one with --agent")
    say(episodes_table("Recent episodes, the newest first", recent))


def _chosen(store: Store, agent: str | None) -> Sequence[str]:
    known = store.agents()
    if agent is None:
        return known
    agent_id = store.agent_memory(agent).agent_id
    if agent_id not in known:
        shown = ", ".join(known[:_ROWS_MAX]) or "none"
        raise NotFoundError(f"agent {agent!r} has stored nothing here", remedy=f"the agents are {shown}")
    return [agent_id]


@app.command()
@telling_errors
def stats(place: Place = None, config: ConfigFile = None) -> None:
    """Show figures of a store and its engine."""
    with open_to_look(place, config) as store:
        found = list(figures(store.stats()))
    say(table("Store and engine", ("figure", "value"), found))


@app.command()
@telling_errors
def verify(place: Place = None, config: ConfigFile = None) -> None:
    """Check every invariant of a store.

    Each record is read and compared with every index and counter. Nothing is changed.
    """
    with open_to_look(place, config) as store:
        report = store.verify()
    _tell(report)
    if not report.ok:
        repairable = sum(problem.derived for problem in report.problems)
        raise DataError(
            f"{counted(len(report.problems), 'problem')}, of which qilbee repair mends {repairable:,}",
            remedy="copy the directory first; docs/operations.md says what to do about the rest",
        )


@app.command()
@telling_errors
def repair(place: Place = None, config: ConfigFile = None) -> None:
    """Rebuild counters and indexes.

    Whatever is derived is made anew from the episodes: counters, relevance order, idempotency keys. Copy the
    directory first.
    """
    with open_existing(place, config) as store:
        report = store.repair()
    say(f"rebuilt; problems before: {len(report.before.problems):,}, now:")
    _tell(report.after)
    if not report.after.ok:
        raise DataError(
            f"{counted(len(report.after.problems), 'problem')} left",
            remedy="restore those episodes from a copy, as docs/operations.md says",
        )


@app.command()
@telling_errors
def compact(place: Place = None, config: ConfigFile = None) -> None:
    """Give the space of what was deleted back now.

    An engine does it by itself in time. This rewrites all files, which takes time and, until it is done, space.
    """
    with open_existing(place, config) as store:
        path = store.directory
        if path is None:
            raise InvalidError(
                f"{store.settings.storage.where} has no files here to rewrite",
                remedy="leave it to the database, which gives space back by itself",
            )
        before = disk_use(path)
        store.compact()
    say(f"{path}: {before.data:,} bytes before, {disk_use(path).data:,} now")


@app.command()
@telling_errors
def recover(
    place: Place = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigFile = None,
) -> None:
    """Open a store that lost writes, with what is left.

    For a store that is refused because durable writes are missing, or because its log is damaged. Says what is wrong,
    asks, and shows what was kept and what was lost. Copy the directory first.
    """
    settings = _existing(place, config)
    if settings.storage.dsn is not None:
        raise InvalidError(
            f"{settings.storage.where} has no files here to recover", remedy="see what the database itself logs"
        )
    recover_run.run(settings, confirmed=yes)


@app.command()
@telling_errors
def reembed(
    place: Place = None,
    embedder: Annotated[
        str | None, typer.Option(metavar="NAME", help="static, openai, or a plugin's.  [default: as configured]")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Let another embedder tell the meaning of what is stored.

    Its vectors are made beside those in use, which one key then switches. Interrupted, run it again: it goes on where
    it was. Its settings are those of [search.embedders.NAME] in the configuration.
    """
    settings = _existing(place, config)
    chosen = embedder or settings.search.embedder
    with _open(_without_embedder(settings)) as store:
        total = sum(store.agent_memory(agent_id).get_statistics().total_episodes for agent_id in store.agents())
        with ProgressBar(f"embedding with {chosen}", total) as bar:
            made = store.reembed(
                chosen, progress=lambda done, total: bar.show(done, f"{done:,} of {counted(total, 'episode')}")
            )
    say(f"{counted(made, 'vector')} made; search goes by {chosen} now")
    if chosen != settings.search.embedder:
        say(f'open the store with [search] embedder = "{chosen}" from now on')


@app.command()
@telling_errors
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Directory of the store, or URL of its database.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Directory or database that holds nothing yet.")],
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Storage engine of the copy.  [default: rocksdb, or the URL's]")
    ] = None,
    compression: Annotated[
        str | None, typer.Option(metavar="NAME", help="none, lz4, snappy or zstd.  [default: lz4]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="TOML file with the settings of the copy."),
    ] = None,
    source_config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="TOML file with the settings of SRC."),
    ] = None,
) -> None:
    """Copy a store to another place, and to another engine.

    Everything goes over: memories, history, search, accounts. SRC stays as it is; of a database that others write to
    an instant is copied. Interrupted, run it again: it goes on where it was. Until the copy is complete, compared and
    verified, nothing opens it.
    """
    given = source if source_config is None else _settings(source_config, source)
    report = copying_run.run(given, _settings(config, target, backend=backend, compression_type=compression))
    if report.problems:
        _show_problems(report.problems)
        raise DataError(
            f"the copy is complete, with {counted(len(report.problems), 'problem')} that the source has too",
            remedy="qilbee repair mends what is derived",
        )


def _without_embedder(settings: Settings) -> Settings:
    """For whoever does not search: no model is loaded, and nobody is asked."""
    return replace(settings, search=replace(settings.search, embedder="static"))


def _tell(report: VerifyReport) -> None:
    _show_problems(report.problems)
    verdict = "all is as it should be" if report.ok else counted(len(report.problems), "problem")
    say(f"{counted(report.agents, 'agent')}, {counted(report.episodes, 'episode')}: {verdict}")


def _show_problems(problems: Sequence[Problem]) -> None:
    if problems:
        say(table("Problems", ("invariant", "agent", "what", "repair"), map(_problem, problems[:_ROWS_MAX])))
    if len(problems) > _ROWS_MAX:
        say(f"and {len(problems) - _ROWS_MAX:,} more")


def _problem(problem: Problem) -> tuple[str, str, str, str]:
    return problem.invariant, problem.agent_id or "", problem.message, "mends it" if problem.derived else "cannot"


# --- consolidation

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent.")]
NamedPlace = Annotated[str, typer.Argument(metavar="STORE", help="Directory of the store, or URL of its database.")]


@app.command()
@telling_errors
def consolidate(
    place: NamedPlace,
    agent: Agent,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="duplicates, sessions, llm, or a plugin's.  [default: as configured]"),
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Only what happened from then on, in UTC.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    config: ConfigFile = None,
) -> None:
    """Make less of what an agent remembers.

    A policy decides what takes the place of what. qilbee undo brings it back.
    """
    with (open_to_look if dry_run else open_existing)(place, config) as store:
        (agent_id,) = _chosen(store, agent)
        chosen = policy or store.settings.memory.consolidation_policy
        consolidation_run.consolidate(store.agent_memory(agent_id), chosen, since, dry_run=dry_run)


@app.command()
@telling_errors
def undo(
    place: NamedPlace,
    agent: Agent,
    consolidation: Annotated[
        str | None, typer.Argument(metavar="ID", help="Which one.  [default: show those that can be undone]")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Undo a consolidation.

    What gave way comes back as it was, and what was created goes. Without ID it shows which can be undone.
    """
    with (open_to_look if consolidation is None else open_existing)(place, config) as store:
        (agent_id,) = _chosen(store, agent)
        if consolidation is None:
            consolidation_run.list_consolidations(store.agent_memory(agent_id))
        else:
            consolidation_run.undo(store.agent_memory(agent_id), consolidation)


# --- plugins and configuration


@app.command()
@telling_errors
def plugins(config: ConfigFile = None) -> None:
    """Show what is installed.

    Engines, codecs, serializers, embedders and consolidation policies, and the package each comes from.
    """
    found = _plugins(_settings(config, None))
    rows = [
        *_offered(found.backends),
        *_offered(found.codecs),
        *_offered(found.serializers),
        *_offered(found.embedders),
        *_offered(found.policies),
    ]
    say(table("Providers", ("kind", "name", "distribution", "what it is"), rows))


def _offered(registry: Registry[T]) -> Iterator[tuple[str, str, str, str]]:
    for name, provider in registry.providers.items():
        yield registry.kind, name, registry.distributions[name], provider.summary


@config_app.command()
@telling_errors
def check(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE", help="TOML file to check.")],
) -> None:
    """Check a configuration file.

    Shows each setting that is in force with it, and where that comes from.
    """
    settings = _settings_type.from_toml(file)
    found, storage = _plugins(settings), settings.storage
    if storage.backend is not None:
        found.backends.find(storage.backend)
    found.codecs.find(storage.codec)
    found.serializers.find(storage.serializer)
    found.embedders.find(settings.search.embedder)
    given = tomllib.loads(file.read_text())
    shown = settings if storage.dsn is None else settings.with_storage({"dsn": storage.where})
    rows = [
        (f"{name}.{key}", msgspec.json.encode(_without_secrets(value)).decode(), _source(name, key, given))
        for name, values in asdict(shown).items()
        for key, value in asdict(values).items()
    ]
    say(table("Settings in force", ("setting", "value", "from"), rows))
    say(f"{file} is valid: durability {storage.level}, compression {storage.codec}")


def _without_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        secret = ("api_key", "password", "secret", "token")
        return {key: "..." if key.endswith(secret) else _without_secrets(inner) for key, inner in value.items()}
    return value


def _source(name: str, key: str, given: Mapping[str, Mapping[str, object]]) -> str:
    variable = f"QILBEE_{name}_{key}".upper()
    if variable in os.environ:
        return variable
    return "the file" if key in given.get(name, {}) else "default"


# --- what the commands share


def _settings(config: Path | None, place: str | None, **given: str | None) -> Settings:
    """The settings of the file and the environment, with what the command line says."""
    overrides: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    settings = _settings_type.load() if config is None else _settings_type.from_toml(config)
    return settings.at(place).with_storage(overrides)


def _plugins(settings: Settings) -> Plugins:
    return load_plugins(disabled=settings.plugins.disabled)


def _existing(place: str | None, config: Path | None) -> Settings:
    """The settings of a store that is there already, as far as a directory shows."""
    settings = _settings(config, place)
    path = Path(settings.storage.data_path)
    if settings.storage.dsn is None and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
        raise NotFoundError(f"there is no store in {path}", remedy="check the path; qilbee quickstart makes one")
    return settings


def _open(settings: Settings) -> Store:
    # To look at a store must not make it. What else a directory holds is told by whoever opens it.
    return open_store(settings, create=settings.storage.dsn is None)


def open_existing(place: str | None, config: Path | None) -> Store:
    """The store in a directory or a database, or of a file of settings; NotFoundError where there is none."""
    return _open(_existing(place, config))


def open_to_look(place: str | None, config: Path | None) -> Store:
    """The same, or while another process has it, what it is at this moment."""
    settings = _without_embedder(_existing(place, config))
    try:
        return _open(settings)
    except StoreLockedError as error:
        try:
            store = open_store(settings, read_only=True)
        except InvalidError:  # that engine cannot
            raise error from None
        say_aside(f"{error.message}: this is what it is at this moment")
        return store
