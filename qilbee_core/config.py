"""Settings: plain values, from a TOML file, the environment and keyword arguments.

A keyword beats the environment, which beats the file, which beats the default. docs/configuration.md
describes every key.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo, fields, force_setattr

from qilbee_core.durability import DurabilityLevel
from qilbee_core.episode import MemoryType
from qilbee_core.errors import SettingsError, shown

__all__ = [
    "CompressionScope",
    "MemorySettings",
    "PluginSettings",
    "SearchSettings",
    "Settings",
    "StorageSettings",
    "check_settings",
    "storage_settings",
]

CompressionScope = Literal["auto", "block", "value"]
DecayDays = Annotated[float, Meta(ge=0.042, le=36_500)] | Literal["never"] | None
_DAY_US = 86_400_000_000
T = TypeVar("T", bound=Struct)


class StorageSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[storage]``."""

    data_path: Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$")] = "data"
    """Directory of the store; made with mode 0700 if it is missing."""
    backend: str | None = None
    """The engine. None: the one the store was made with, or that of the dsn; rocksdb for a new store."""
    dsn: str | None = None
    """URL of the database, for an engine that keeps its data in one; data_path means nothing then."""
    serializer: str = "msgpack"
    """How new records are written; old ones stay readable."""
    enable_wal: bool = True
    """False is durability ``none``."""
    sync_writes: bool = False
    """True is durability ``sync``."""
    wal_sync_interval_ms: Annotated[int, Meta(ge=10, le=3_600_000)] = 1000
    """For durability ``interval``."""
    durability: DurabilityLevel | None = None
    """The level by name, instead of the two switches above."""
    enable_compression: bool = True
    """False is compression_type ``none``."""
    compression_type: str = "lz4"
    """Codec of new data: none, lz4, snappy, zstd, or a plugin's."""
    compression_scope: CompressionScope = "auto"
    """Where it is used: in the engine's blocks, on each value, or blocks where the engine can."""
    cache_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 64 << 20
    """RAM for the engine's blocks."""
    recent_cache_bytes: Annotated[int, Meta(ge=0, le=1 << 40)] = 16 << 20
    """RAM for the newest episodes of each agent; 0 switches it off."""
    engine: Mapping[str, bool | int | float | str] = {}
    """The table ``[storage.engine]``: settings that only the chosen engine understands."""

    @property
    def level(self) -> DurabilityLevel:
        """The durability level the keys above ask for."""
        if self.durability is not None:
            return self.durability
        if not self.enable_wal:
            return "none"
        return "sync" if self.sync_writes else "interval"

    @property
    def where(self) -> str:
        """What is opened, as it may be shown: a password in the dsn is left out.

        >>> StorageSettings(dsn="postgresql://bot:secret@db.example/memory?sslpassword=secret").where
        'postgresql://bot@db.example/memory'
        """
        if self.dsn is None:
            return self.data_path
        try:
            url = urlsplit(self.dsn)
        except ValueError:
            url = None
        if url is None or not url.netloc:
            return "the database of the dsn"
        user, _, hosts = url.netloc.rpartition("@")
        return f"{url.scheme}://{user.partition(':')[0]}{'@' if user else ''}{hosts}{url.path}"

    @property
    def codec(self) -> str:
        """The codec the keys above ask for."""
        return self.compression_type if self.enable_compression else "none"

    def __post_init__(self) -> None:
        check_settings("storage", self)
        if self.sync_writes and not self.enable_wal:
            raise SettingsError(
                "storage.sync_writes needs the write-ahead log, storage.enable_wal is false",
                remedy="leave one of the two out",
            )
        if self.durability is not None and (
            (self.sync_writes and self.durability != "sync") or (not self.enable_wal and self.durability != "none")
        ):
            raise SettingsError(
                f"storage.durability {self.durability!r} contradicts sync_writes or enable_wal",
                remedy="leave durability out, or the other two",
            )


class MemorySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[memory]``."""

    relevance_decay_days: DecayDays = None
    """Half-life of episodic memories; None: as the store has it, 30 in a new one."""
    semantic_decay_days: DecayDays = None
    """Half-life of semantic memories; None: as the store has it, 180 in a new one."""
    procedural_decay_days: DecayDays = None
    """Half-life of procedural memories; None: as the store has it, never in a new one."""
    factual_decay_days: DecayDays = None
    """Half-life of factual memories; None: as the store has it, never in a new one."""
    reinforcement_share: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """How far an access moves a faded memory towards full strength; 0 switches it off."""
    enable_auto_forgetting: bool = False
    """Whether a thread forgets, and removes what has expired, by the keys below."""
    forgetting_interval_s: Annotated[float, Meta(ge=0.01, le=31_536_000)] = 3600
    """How often it does."""
    min_relevance_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """What is less relevant is forgotten."""
    max_episodes: Annotated[int, Meta(ge=0)] | None = None
    """So many are kept of each agent, the most relevant; None: any number."""
    max_bytes: Annotated[int, Meta(ge=0)] | None = None
    """So many bytes of records are kept of each agent; None: any number."""
    keep_history: bool = True
    """Whether versions that were replaced or invalidated are kept."""
    consolidation_interval_hours: Annotated[float, Meta(ge=0.0001, le=87_600)] | None = None
    """How often a thread consolidates the memory of every agent; None: never."""
    consolidation_policy: str = "duplicates"
    """What decides then: duplicates, sessions, llm, or a plugin's."""
    policies: Mapping[str, Mapping[str, bool | int | float | str | Sequence[str]]] = {}
    """The tables ``[memory.policies.<name>]``: settings that only this policy understands."""
    undo_days: Annotated[float, Meta(ge=0, le=36_500)] = 30
    """For so long a consolidation can be undone; 0: not at all."""

    def __post_init__(self) -> None:
        check_settings("memory", self)

    @property
    def half_lives_us(self) -> dict[MemoryType, int | None]:
        """The half-lives that the keys above ask for, in microseconds; None: never decays.

        >>> MemorySettings(relevance_decay_days=1, factual_decay_days="never").half_lives_us
        {'episodic': 86400000000, 'factual': None}
        """
        days: dict[MemoryType, DecayDays] = {
            "episodic": self.relevance_decay_days,
            "semantic": self.semantic_decay_days,
            "procedural": self.procedural_decay_days,
            "factual": self.factual_decay_days,
        }
        return {
            memory_type: None if given == "never" else round(given * _DAY_US)
            for memory_type, given in days.items()
            if given is not None
        }


class SearchSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[search]``."""

    indexing: Literal["background", "inline", "off"] = "background"
    """Who makes the search terms of what is stored: a thread, whoever stores, or nobody."""
    language: str = "english"
    """Of the texts, for the stems of their words: one of the stemmer's, or none."""
    ram_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 256 << 20
    """RAM for the indexes of the agents that were searched last; the one in use may take more."""
    embedder: str = "static"
    """What tells the meaning of texts: the table of words that is built in, openai, or a plugin's."""
    embedders: Mapping[str, Mapping[str, bool | int | float | str | Sequence[str]]] = {}
    """The tables ``[search.embedders.<name>]``: settings that only this embedder understands."""

    def __post_init__(self) -> None:
        check_settings("search", self)


class PluginSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[plugins]``."""

    disabled: Sequence[str] = ()
    """Entry-point names of plugins that are not loaded."""

    def __post_init__(self) -> None:
        check_settings("plugins", self)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be configured.

    >>> Settings(storage=StorageSettings(sync_writes=True)).storage.level
    'sync'
    >>> Settings.load({"storage": {"compresion_type": "zstd"}}, environ={})
    Traceback (most recent call last):
    ...
    qilbee_core.errors.SettingsError: storage has no key 'compresion_type': did you mean 'compression_type'?
    """

    storage: StorageSettings = msgspec.field(default_factory=StorageSettings)
    memory: MemorySettings = msgspec.field(default_factory=MemorySettings)
    search: SearchSettings = msgspec.field(default_factory=SearchSettings)
    plugins: PluginSettings = msgspec.field(default_factory=PluginSettings)

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), field.type):
                raise SettingsError(
                    f"{field.name} is {type(getattr(self, field.name)).__name__}, not {field.type.__name__}",
                    remedy="read tables with Settings.load()",
                )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> Self:
        """Read a TOML file; ``QILBEE_*`` variables of the environment override it."""
        if not isinstance(path, str | os.PathLike):
            raise SettingsError(f"the file of settings is {shown(path)}", remedy="give its path")
        try:
            text = Path(path).read_bytes().decode()
            tables = tomllib.loads(text)
        except OSError as error:
            raise SettingsError(
                f"cannot read {os.fspath(path)!r}: {error.strerror}", remedy="check the path"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{os.fspath(path)!r} is not TOML: {error}", remedy="mend that line") from error
        except ValueError as error:
            raise SettingsError(f"{os.fspath(path)!r} is not a path: {error}", remedy="check the path") from error
        return cls.load(tables, environ=environ)

    @classmethod
    def load(cls, tables: Mapping[str, object] | None = None, *, environ: Mapping[str, str] | None = None) -> Self:
        """Settings from nested tables, overridden by ``QILBEE_<TABLE>_<KEY>`` variables.

        ``environ`` is where those are looked up: the environment of this process by default.
        """
        tables = {} if tables is None else tables
        if not isinstance(tables, Mapping):
            raise SettingsError(f"the settings are {type(tables).__name__}", remedy="give a dict of tables")
        kinds: dict[str, type[Struct]] = {field.name: field.type for field in fields(cls)}
        for name in tables:
            if name not in kinds:
                raise SettingsError(f"there is no table {shown(name)}", remedy=_nearest(name, kinds))
        found = os.environ if environ is None else environ
        given: dict[str, Struct] = {}
        for name, kind in kinds.items():
            table = tables.get(name, {})
            if not isinstance(table, Mapping):
                raise SettingsError(f"{name} is not a table", remedy=f"write [{name}] and its keys below it")
            given[name] = _table(kind, name, table, found)
        return cls(**given)  # type: ignore[arg-type]

    def at(self, place: str | os.PathLike[str] | None) -> Self:
        """These settings for the store in a directory, or in the database of a URL; None: wherever they say.

        >>> Settings().at("postgresql://db/memory").at("./data").storage.where
        './data'
        """
        if place is None:
            return self
        is_url = isinstance(place, str) and "://" in place
        return self.with_storage({"dsn": place} if is_url else {"data_path": place, "dsn": None})

    def with_storage(self, overrides: Mapping[str, object]) -> Self:
        """These settings with some keys of ``[storage]`` changed."""
        if not overrides:
            return self
        return msgspec.structs.replace(self, storage=storage_settings(self.storage, overrides))


def storage_settings(base: StorageSettings, overrides: Mapping[str, object]) -> StorageSettings:
    """``base`` with some keys changed, checked like any other settings."""
    return _table(StorageSettings, "storage", {**msgspec.structs.asdict(base), **overrides}, {})


def _from_environment(table: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that override keys of ``table``, by key."""
    prefix = f"QILBEE_{table.upper()}_"
    return {name[len(prefix) :].lower(): name for name in environ if name.startswith(prefix)}


def _table(kind: type[T], name: str, given: Mapping[str, object], environ: Mapping[str, str]) -> T:
    known = {field.name: field for field in fields(kind)}
    variables = _from_environment(name, environ)
    for key in given:
        if key not in known:
            raise SettingsError(f"{name} has no key {shown(key)}", remedy=_nearest(key, known))
    for key, variable in variables.items():
        if key not in known:
            raise SettingsError(f"{name} has no key {key!r}, which {variable} would set", remedy=_nearest(key, known))
    # What is given is of its type already, or is refused; a variable is text.
    read = {key: _read(variable, environ[variable], known[key]) for key, variable in variables.items()}
    return kind(**{**given, **read})


def _read(variable: str, text: str, field: FieldInfo) -> object:
    value: object = text
    if any(get_origin(part) in (Sequence, Mapping) for part in (field.type, *get_args(field.type))):
        try:
            value = msgspec.json.decode(text)  # lists and tables are JSON in a variable
        except (msgspec.DecodeError, UnicodeError) as error:
            raise SettingsError(f"{variable} is not JSON: {error}", remedy='write it like ["a", "b"]') from error
    return _convert(variable, value, field, strict=False)


def check_settings(table: str, settings: Struct) -> None:
    """Refuse values of wrong types, however the settings of a table were made; a path becomes text."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
            force_setattr(settings, field.name, value)
        _convert(f"{table}.{field.name}", value, field, strict=True)


def _convert(name: str, value: object, field: FieldInfo, *, strict: bool) -> object:
    try:
        return msgspec.convert(value, type=field.type, strict=strict)
    except (ValueError, TypeError, AttributeError) as error:  # the last ones for what no TOML and no variable can hold
        choices = _choices(field.type)
        remedy = f"use one of {', '.join(choices)}" if choices else None
        # The table of an embedder or a policy may hold a secret key, a dsn a password.
        said = "" if field.name in {"dsn", "embedders", "policies"} else f" is {shown(value)}"
        raise SettingsError(f"{name}{said}: {error}", remedy=remedy) from error


def _choices(kind: object) -> list[str]:
    """The texts that a type allows, where it allows nothing else."""
    parts = (kind, *get_args(kind))
    if any(get_origin(part) is Annotated for part in parts):
        return []
    return [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
