"""Opening a store: the one place where settings, plugins, engine, records and memory are wired together."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

from qilbee_core.catalog import LAYOUT_VERSION, Catalog
from qilbee_core.config import Settings
from qilbee_core.directory import fsync_directory
from qilbee_core.durability import Durability, DurabilityStatus
from qilbee_core.episode import JSON
from qilbee_core.errors import (
    FormatVersionError,
    ProviderNotFoundError,
    QilbeeError,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
)
from qilbee_core.interfaces import (
    BackendOptions,
    Blocking,
    StorageBackend,
    SupportsCompaction,
    SupportsNativeCompression,
    SupportsStats,
)
from qilbee_core.keys import Space, parse, range_of
from qilbee_core.memory.agent import AgentMemory
from qilbee_core.memory.aio import AsyncAgentMemory
from qilbee_core.memory.commit import Context
from qilbee_core.memory.operations import Operations
from qilbee_core.memory.repair import RepairReport, repair
from qilbee_core.memory.verify import VerifyReport, verify
from qilbee_core.plugins import Plugins, load_plugins
from qilbee_core.records import Records

__all__ = ["Store", "open_store"]

log = logging.getLogger(__name__)

_MARKER_NAME = "qilbee.json"
_DEFAULT_BACKEND = "rocksdb"


class _Marker(Struct, frozen=True):
    """What ``qilbee.json`` in a data directory says: whose it is, and which engine holds it."""

    format: str
    layout: int
    backend: str


class Store:
    """One opened database. Made by :func:`open_store`; a context manager; safe to use from any thread."""

    def __init__(self, backend: StorageBackend, settings: Settings, plugins: Plugins) -> None:
        """Wire a store on an opened ``backend``, which is closed with it; for :func:`open_store`."""
        self.settings = settings
        self._backend = backend
        storage = settings.storage
        catalog = Catalog(backend)
        records = Records(
            catalog, plugins, codec_name=_value_codec(backend, settings), serializer_name=storage.serializer
        )
        self._durability = Durability(backend, storage.level, storage.wal_sync_interval_ms)
        try:
            self._context = Context(
                backend, catalog, records, self._durability, recent_cache_bytes=storage.recent_cache_bytes
            )
        except BaseException:
            self._durability.close()
            raise
        self._episodes_stored = plugins.episodes_stored
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def agent_memory(self, agent_id: str) -> AgentMemory:
        """The memory of one agent; InvalidError where the id is not 1 to 255 bytes of plain text."""
        return AgentMemory(self._operations(agent_id), self._durability)

    def async_agent_memory(self, agent_id: str, pool: Executor) -> AsyncAgentMemory:
        """The memory of one agent for asyncio, with ``pool`` for its longer verbs; for AsyncStore."""
        direct = not isinstance(self._backend, Blocking)
        return AsyncAgentMemory(self._operations(agent_id), self._durability, pool, direct=direct)

    def _operations(self, agent_id: str) -> Operations:
        self._check_open()
        return Operations(self._context, agent_id, episodes_stored=self._episodes_stored)

    def agents(self) -> list[str]:
        """The ids of all agents that have stored anything since they were last cleared, sorted."""
        self._check_open()
        found = (parse(key).agent_id for key, _ in self._backend.scan(*range_of(bytes((Space.AGENT,)))))
        return sorted(agent_id for agent_id in found if agent_id is not None)

    def flush(self) -> None:
        """Make every earlier write survive a power cut, at any durability level."""
        self._check_open()
        self._durability.flush()

    def compact(self) -> None:
        """Give the space of what was deleted back now, instead of when the engine gets to it."""
        self._check_open()
        self._context.settle()
        if isinstance(self._backend, SupportsCompaction):
            self._backend.compact()

    def stats(self) -> Mapping[str, JSON]:
        """Figures of the store and its engine, by name, units last."""
        self._check_open()
        tails = self._context.tails
        return {
            "backend": self._backend.name,
            "store_id": self._context.catalog.header.store_id,
            "durability": msgspec.structs.asdict(self._durability.status()),
            "recent_cache": {
                "bytes": tails.bytes,
                "bytes_max": tails.bytes_max,
                "hits": tails.hits,
                "misses": tails.misses,
            },
            "engine": self._backend.stats() if isinstance(self._backend, SupportsStats) else {},
        }

    def durability(self) -> DurabilityStatus:
        """The level in force, and how old the oldest write is that may not survive a power cut yet."""
        return self._durability.status()

    def verify(self) -> VerifyReport:
        """Walk everything and compare it with everything else; changes nothing.

        The report names each broken invariant. Writes may go on meanwhile.
        """
        self._check_open()
        return verify(self._context)

    def repair(self) -> RepairReport:
        """Rebuild whatever is derived (heads, relevance order, idempotency marks) from the episodes.

        Corrupt episodes are left as they are and named in the report.
        """
        self._check_open()
        return repair(self._context)

    def close(self) -> None:
        """Make everything durable and let go of the directory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as ending:  # each of them, whatever the others raise
            ending.callback(self._context.tails.close)
            ending.callback(self._backend.close)
            ending.callback(self._durability.close)
            self._context.settle()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")


def open_store(
    target: str | os.PathLike[str] | Settings | None = None, *, plugins: Plugins | None = None, **overrides: object
) -> Store:
    """Open the store in a directory, or as settings say; make it where there is none.

    ``target`` is the data directory, or :class:`Settings`, or None for the settings of the environment
    (``QILBEE_STORAGE_*``) and the defaults. ``overrides`` are keys of ``[storage]``: ``backend``,
    ``sync_writes``, ``compression_type`` and so on. ``plugins`` replaces the installed ones.

    Raises SettingsError for settings that do not hold together, ProviderNotFoundError for an engine or
    codec that is not installed, FormatVersionError for a directory that is not a store of ours or is of
    a newer layout, StoreLockedError where another opener holds it.

    >>> with open_store(backend="ephemeral", durability="async") as store:
    ...     store.agents()
    []
    """
    if isinstance(target, Settings):
        settings = target
    else:
        settings = Settings.load()
        if target is not None:
            overrides["data_path"] = target
    settings = settings.with_storage(overrides)
    if plugins is None:
        plugins = load_plugins(disabled=settings.plugins.disabled)
    started_s = time.monotonic()
    backend = _open_backend(settings, plugins)
    try:
        store = Store(backend, settings, plugins)
    except BaseException:
        backend.close()
        raise
    log.info(
        "opened %s on %s in %.0f ms, durability %s, compression %s",
        settings.storage.data_path,
        backend.name,
        (time.monotonic() - started_s) * 1000,
        settings.storage.level,
        settings.storage.codec,
    )
    return store


def _open_backend(settings: Settings, plugins: Plugins) -> StorageBackend:
    storage = settings.storage
    directory = Path(storage.data_path)
    name, codec = storage.backend, storage.codec
    plugins.codecs.find(codec)
    plugins.serializers.find(storage.serializer)
    is_new = False
    try:
        if name is None or plugins.backends.find(name).directory:
            name, is_new = _claim(directory, name)
        options = BackendOptions(
            path=directory / name,
            wal=storage.level != "none",
            compression="none" if storage.compression_scope == "value" else codec,
            cache_bytes=storage.cache_bytes,
            engine=storage.engine,
        )
        return plugins.backends.create(name, options)
    except ProviderNotFoundError:
        # Its package is missing. A marker that names it would keep every other engine out.
        if is_new:
            (directory / _MARKER_NAME).unlink(missing_ok=True)
        raise
    except (OSError, UnicodeError) as error:
        raise _os_error(directory, error) from error


def _value_codec(backend: StorageBackend, settings: Settings) -> str:
    """The codec for values: none where the engine compresses its blocks with what is asked for."""
    storage = settings.storage
    native = backend.native_codecs if isinstance(backend, SupportsNativeCompression) else frozenset()
    if storage.compression_scope == "value" or storage.codec == "none":
        return storage.codec
    if storage.codec in native:
        return "none"
    if storage.compression_scope == "block":
        raise SettingsError(
            f"the {backend.name} backend has no block compression {storage.codec!r}, it has "
            f"{', '.join(sorted(native)) or 'none'}",
            remedy='use compression_scope = "auto" or "value"',
        )
    return storage.codec


def _claim(directory: Path, wanted: str | None) -> tuple[str, bool]:
    """Make sure that ``directory`` is a store of ours, or make it one; gives its engine, and whether it is new.

    The marker comes first: a directory that has it, and nothing else yet, is a store about to be made.
    """
    marker_path = directory / _MARKER_NAME
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in missing:
        fsync_directory(each.parent)
    is_new = not marker_path.exists()
    if is_new:
        _write_marker(directory, marker_path, wanted or _DEFAULT_BACKEND)
    try:
        marker = msgspec.json.decode(marker_path.read_bytes(), type=_Marker)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatVersionError(
            f"{marker_path} cannot be read: {error}", remedy="restore it from a copy, or open another directory"
        ) from error
    if marker.format != "qilbee-store" or marker.layout > LAYOUT_VERSION:
        raise FormatVersionError(
            f"{directory} is a {marker.format} of layout {marker.layout}, this release knows {LAYOUT_VERSION}",
            remedy="upgrade qilbee-core",
        )
    if wanted not in (None, marker.backend):
        raise SettingsError(
            f"{directory} was made with backend {marker.backend!r}, not {wanted!r}",
            remedy=f"leave backend out or give {marker.backend!r}; another engine needs another directory",
        )
    return marker.backend, is_new


def _write_marker(directory: Path, marker_path: Path, backend: str) -> None:
    temporary = directory / f".{_MARKER_NAME}.{os.getpid()}.{threading.get_ident()}"
    strangers = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith(f".{_MARKER_NAME}"))
    if marker_path.exists():
        return  # another process makes the same store at this moment
    if strangers:
        raise FormatVersionError(
            f"{directory} is not a store: it holds {', '.join(strangers[:3])}"
            + (f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""),
            remedy="name an empty or a new directory",
        )
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(_Marker("qilbee-store", LAYOUT_VERSION, backend)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    # A link, not a rename: of two who make a store at once the second reads what the first has said.
    with suppress(FileExistsError):
        marker_path.hardlink_to(temporary)
    temporary.unlink()
    fsync_directory(directory)


def _os_error(directory: Path, error: OSError | UnicodeError) -> QilbeeError:
    if isinstance(error, UnicodeError):
        return SettingsError(f"{directory} is not a path: {error}", remedy="name a directory")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"no space for {directory}: {error.strerror}")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return FormatVersionError(f"{directory} is not a directory", remedy="name a directory")
    if error.errno == errno.ENAMETOOLONG:
        return SettingsError(f"the path of {len(str(directory))} characters is too long", remedy="name a shorter one")
    return StorageError(
        f"cannot use {directory}: {error.strerror}",
        remedy=f"make it a directory that user {os.getuid()} may read and write",
    )
