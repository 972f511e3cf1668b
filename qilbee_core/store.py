"""Opening a store: the one place where settings, plugins, engine, records and memory are wired together."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from msgspec.structs import asdict

from qilbee_core.account_rows import AccountRows
from qilbee_core.catalog import Catalog, CatalogModel
from qilbee_core.checkpoint import checkpoint
from qilbee_core.config import Settings
from qilbee_core.durability import Durability, DurabilityStatus
from qilbee_core.episode import JSON
from qilbee_core.errors import (
    InvalidError,
    QilbeeError,
    ReadOnlyError,
    StoreClosedError,
    WriteStallError,
    shown,
)
from qilbee_core.health import DiskSpace, Health
from qilbee_core.interfaces import (
    Blocking,
    Embedder,
    StorageBackend,
    SupportsCompaction,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.keys import Space, parse, range_of
from qilbee_core.memory.agent import AgentMemory
from qilbee_core.memory.aio import AsyncAgentMemory
from qilbee_core.memory.commit import Context
from qilbee_core.memory.compaction import Compaction
from qilbee_core.memory.encoder import Encoder, chosen_encoder, model_of
from qilbee_core.memory.indexing import Indexing
from qilbee_core.memory.operations import Operations
from qilbee_core.memory.reembedding import reembed
from qilbee_core.memory.reindexing import Reindexing
from qilbee_core.memory.repair import RepairReport, repair
from qilbee_core.memory.schedule import Schedule
from qilbee_core.memory.sweeper import Sweeper
from qilbee_core.memory.verify import VerifyReport, verify
from qilbee_core.opening import may_open, open_backend, settings_of, value_codec
from qilbee_core.plugins import Plugins, load_plugins
from qilbee_core.records import Records
from qilbee_core.recovery import RecoveryReport, recover_tail
from qilbee_core.supervisor import Supervisor
from qilbee_core.watermark import Watermark

__all__ = ["Store", "open_store"]

log = logging.getLogger(__name__)

_SYNC_MS_MAX = 10_000  # a sync that takes longer is a problem of the disk


class Store:
    """One opened database. Made by :func:`open_store`; a context manager; safe to use from any thread."""

    def __init__(
        self,
        backend: StorageBackend,
        settings: Settings,
        plugins: Plugins,
        watermark: Watermark | None = None,
        *,
        embedder: Embedder | None = None,
        read_only: bool = False,
        create: bool = True,
    ) -> None:
        """Wire a store on an opened ``backend``, which is closed with it; for :func:`open_store`."""
        self.settings = settings
        self._plugins = plugins
        found = backend.sequence() if isinstance(backend, SupportsSequence) else None
        self._backend = backend
        storage = settings.storage
        catalog = Catalog(backend, settings.memory.half_lives_us, create=create)
        codec_name, serializer_name = value_codec(backend, settings), storage.serializer
        if read_only:  # the first names of the store: others would be written into its catalog
            codec_name, serializer_name = "none", catalog.serializer(1).name
        records = Records(catalog, plugins, codec_name=codec_name, serializer_name=serializer_name)
        if not read_only:
            catalog.want(settings.memory.half_lives_us)
        is_recovery = watermark is not None and watermark.accept_loss
        if watermark is not None:
            watermark.begin(catalog.header.store_id)
        self._durability = Durability(backend, storage.level, storage.wal_sync_interval_ms, watermark)
        if read_only:
            self._durability.failure = ReadOnlyError(f"{storage.data_path} was opened with read_only=True")
        try:
            self._context = Context(
                backend, catalog, records, self._durability, recent_cache_bytes=storage.recent_cache_bytes
            )
            self._supervisor = Supervisor(backend, self._durability, partial(self._reload, watermark))
            self._recovery: RecoveryReport | None = None
            if watermark is not None and is_recovery:
                self._recovery = recover_tail(self._context, watermark.expected, found)
                watermark.save()
            search = settings.search
            self._indexing = Indexing(
                self._context,
                search.indexing,
                search.language,
                ram_bytes_max=search.ram_bytes,
                encoder=None
                if embedder is None
                else chosen_encoder(catalog, embedder, self._model_of(search.embedder, embedder), read_only=read_only),
                read_only=read_only,
            )
        except BaseException:
            self._durability.close()
            raise
        self._operations_of = partial(Operations, self._context, self._indexing, plugins, settings.memory)
        self._closed = False
        self._sweeper = self._schedule = None
        if not read_only:
            self._sweeper = Sweeper(self._context, self._operations_of, settings.memory)
            self._schedule = Schedule(self._context, self._operations_of, settings.memory)
        self._compaction = Compaction(self._context)
        self._reindexing = Reindexing(self._context)
        if not read_only:
            self._reindexing.start()
        self._directory = Path(storage.data_path)
        if watermark is not None or read_only:  # it has files, wherever the program goes
            self._directory = self._directory.absolute()
        self._disk = None if watermark is None else DiskSpace(self._directory)
        if self._disk is not None:
            self._disk.look()
            self._durability.on_interval = self._disk.look

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def directory(self) -> Path | None:
        """The directory of its files; None for an engine that keeps none, or where it may not be changed."""
        return None if self._disk is None else self._directory

    @property
    def recovery(self) -> RecoveryReport | None:
        """What was kept and lost, where the store was opened with ``recover="tail"``."""
        return self._recovery

    def agent_memory(self, agent_id: str) -> AgentMemory:
        """The memory of one agent; InvalidError where the id is not 1 to 255 bytes of plain text."""
        return AgentMemory(self._operations(agent_id), self._durability)

    def async_agent_memory(self, agent_id: str, pool: Executor) -> AsyncAgentMemory:
        """The memory of one agent for asyncio, with ``pool`` for its longer verbs; for AsyncStore."""
        direct = not isinstance(self._backend, Blocking)
        return AsyncAgentMemory(self._operations(agent_id), self._durability, pool, direct=direct)

    def _operations(self, agent_id: str) -> Operations:
        self._check_open()
        return self._operations_of(agent_id)

    def agents(self) -> list[str]:
        """The ids of all agents that have stored anything since they were last cleared, sorted."""
        self._check_open()
        found = (parse(key).agent_id for key, _ in self._backend.scan(*range_of(bytes((Space.AGENT,)))))
        return sorted(agent_id for agent_id in found if agent_id is not None)

    def account_rows(self) -> AccountRows:
        """The rows of a server's accounts, beside the memories."""
        self._check_open()
        return AccountRows(self._context)

    def flush(self) -> None:
        """Make every earlier write survive a power cut, at any durability level."""
        self._check_open()
        self._durability.flush()

    def compact(self) -> None:
        """Give the space of what was deleted back now, instead of when the engine gets to it."""
        self._check_open()
        self._durability.refuse()
        self._context.settle()
        if isinstance(self._backend, SupportsCompaction):
            started_s = time.monotonic()
            self._backend.compact()
            log.info("compacted %s in %.1f s", self.settings.storage.where, time.monotonic() - started_s)

    def checkpoint(self, target: str | os.PathLike[str]) -> int:
        """Copy the store, as it is at this moment, to a directory that does not exist yet; gives the bytes of the copy.

        The copy is a store that opens by itself; it appears whole or not at all, and survives a power cut once this
        returns. Writes go on meanwhile. On the same file system RocksDB's tables are links, which take no space until
        the store has replaced them. InvalidError for an engine that cannot (LevelDB, and those without files), and
        where ``target`` exists.
        """
        self._check_open()
        if not isinstance(target, str | os.PathLike) or "\0" in str(target):
            raise InvalidError(f"target is {shown(target)}", remedy="give the path of a directory")
        return checkpoint(self._backend, self._directory, Path(target))

    def stats(self) -> Mapping[str, JSON]:
        """Figures of the store and its engine, by name, units last."""
        self._check_open()
        tails = self._context.tails
        return {
            "backend": self._backend.name,
            "store_id": self._context.catalog.header.store_id,
            "durability": asdict(self._durability.status()),
            "recent_cache": {
                "bytes": tails.bytes,
                "bytes_max": tails.bytes_max,
                "hits": tails.hits,
                "misses": tails.misses,
            },
            "memory": {} if self._sweeper is None else self._sweeper.figures(),
            "consolidation": {} if self._schedule is None else self._schedule.figures(),
            "reindexing": asdict(self._reindexing.figures),
            "compaction": asdict(self._compaction.figures),
            "search": {
                "indexing": self._indexing.mode,
                **self._indexing.figures(),
                **self._indexing.embedding.figures(),
            },
            "engine": self._backend.stats() if isinstance(self._backend, SupportsStats) else {},
        }

    def durability(self) -> DurabilityStatus:
        """The level in force, and how old the oldest write is that may not survive a power cut yet."""
        return self._durability.status()

    def health(self) -> Health:
        """Whether writes work, and if not, why. Quick enough to be asked every second.

        >>> with open_store(backend="ephemeral") as store:
        ...     store.health().problems
        []
        """
        status = self._durability.status()
        return Health(
            problems=list(self._problems(status)),
            durability=status,
            disk_free_bytes=None if self._disk is None else self._disk.free_bytes(),
            revivals=self._supervisor.attempts,
            reindexed_share=self._reindexing.figures.share,
        )

    def _problems(self, status: DurabilityStatus) -> Iterator[str]:
        if self._closed:
            yield str(StoreClosedError("the store is closed"))
            return
        refusal = self._durability.refusal
        if refusal is not None:
            yield str(refusal)
            return  # the rest follows from that
        if isinstance(self._backend, SupportsStats):
            try:
                stopped = self._backend.stats().get("writes_stopped")
            except QilbeeError as error:
                yield str(error)
                return
            if isinstance(stopped, str):
                yield f"no write gets through: {stopped}"
            elif stopped:
                yield str(WriteStallError("no write gets through, for compaction has to catch up"))
        late_ms = status.unsynced_age_ms - _SYNC_MS_MAX
        if status.level == "interval":
            late_ms -= self.settings.storage.wal_sync_interval_ms
        problem = self._indexing.embedding.problem
        if problem is not None:
            yield f"search goes by words alone where vectors are missing: {problem}"
        if late_ms > 0 and status.level in ("sync", "interval"):
            yield (
                f"the oldest write that is not synced is {status.unsynced_age_ms / 1000:.0f} s old: look at the disk, "
                "whose syncs take too long"
            )

    def _reload(self, watermark: Watermark | None, reopen: Callable[[], None]) -> None:
        def reopen_and_check() -> None:
            reopen()
            if watermark is not None and isinstance(self._backend, SupportsSequence):
                may_open(watermark)(self._backend.sequence(), self._backend.get, damaged=False)

        self._context.reload(reopen_and_check)

    def verify(self) -> VerifyReport:
        """Walk everything and compare it with everything else; changes nothing.

        The report names each broken invariant. Writes may go on meanwhile.
        """
        self._check_open()
        return verify(self._context)

    def repair(self) -> RepairReport:
        """Rebuild whatever is derived (heads, relevance order, idempotency marks, search terms) from the episodes.

        Corrupt episodes are left as they are and named in the report.
        """
        self._check_open()
        report = repair(self._context)
        self._indexing.build()
        self._indexing.embedding.look_anew()
        return report

    def reembed(
        self,
        embedder: str,
        *,
        progress: Callable[[int, int], object] | None = None,
        **options: bool | int | float | str | Sequence[str],
    ) -> int:
        """Let another embedder tell the meaning of what is stored; gives how many vectors were made.

        They are made beside those in use, which search goes by until one key switches to the new ones; then the old
        ones are removed. Interrupted, it goes on where it was when it is called again. Called for the embedder in use
        it makes what vectors are missing. ``"static"`` goes back to the table of words, and keeps no vectors.

        ``options`` are settings of the embedder, where ``[search.embedders.<name>]`` has not got them; ``progress`` is
        called with how many episodes have their vector, and how many there are. Open the store with the new embedder
        from then on: with the old one it is refused. Raises PluginError where the embedder fails; the old vectors are
        in use then.

        >>> with open_store(backend="ephemeral") as store:
        ...     store.reembed("static")
        0
        """
        self._check_open()
        if self._indexing.mode == "off":
            raise InvalidError(
                "search is switched off in this store", remedy='open it with search.indexing = "background" or "inline"'
            )
        made = _embedder(self._plugins, self.settings, embedder, **options)
        if made is None:
            return reembed(self._context, self._indexing.embedding, None, progress)
        self._indexing.build()
        number = self._context.catalog.model_number(self._model_of(embedder, made))
        return reembed(self._context, self._indexing.embedding, Encoder(made, number), progress)

    def _model_of(self, name: str, embedder: Embedder) -> CatalogModel:
        return model_of(embedder, name, self._plugins.embedders.distributions[name])

    def close(self) -> None:
        """Make everything durable and let go of the directory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._schedule is not None:
            self._schedule.close()
        if self._sweeper is not None:
            self._sweeper.close()
        self._reindexing.close()
        self._compaction.close()
        self._supervisor.close()
        self._indexing.close()
        with ExitStack() as ending:  # each of them, the last one first, whatever the others raise
            ending.callback(self._compaction.join)
            ending.callback(self._context.tails.close)
            ending.callback(self._backend.close)
            ending.callback(self._durability.close, self._context.drain)
            self._context.settle()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")


def open_store(
    target: str | os.PathLike[str] | Settings | None = None,
    *,
    plugins: Plugins | None = None,
    recover: Literal["tail"] | None = None,
    read_only: bool = False,
    create: bool = True,
    **overrides: object,
) -> Store:
    """Open the store in a directory, or as settings say; make it where there is none.

    ``target`` is the data directory, the URL of a database (``postgresql://...``, with a plugin that knows it), or
    :class:`Settings`, or None for the settings of the environment (``QILBEE_STORAGE_*``) and the defaults.
    ``overrides`` are keys of ``[storage]``: ``backend``, ``sync_writes``, ``compression_type`` and so on. ``plugins``
    replaces the installed ones.

    ``recover="tail"`` is for a store that was refused with LostWritesError, or for a damaged log: it opens with what is
    left, which is a beginning of the writes in their order, and ``store.recovery`` says what was kept and lost. What is
    behind the damage is gone for good, so copy the directory first.

    ``read_only=True`` shows a store as it is at this moment, also while another process has it open, and changes
    nothing: no lock, no file, and every write raises ReadOnlyError. What is written later is not seen. RocksDB can.

    ``create=False`` raises NotFoundError where there is no store, and makes none.

    Raises SettingsError for settings that do not hold together, ProviderNotFoundError for an engine or
    codec that is not installed, FormatVersionError for a directory that is not a store of ours or is of
    a newer layout, StoreLockedError where another opener holds it, LostWritesError where writes are missing that
    were durable.

    >>> with open_store(backend="ephemeral", durability="async") as store:
    ...     store.agents()
    []
    """
    settings = settings_of(target, overrides)
    if plugins is None:
        plugins = load_plugins(disabled=settings.plugins.disabled)
    elif not isinstance(plugins, Plugins):
        raise InvalidError(f"plugins is {type(plugins).__name__}", remedy="give what load_plugins() made")
    if settings.memory.consolidation_interval_hours is not None:
        plugins.policies.find(settings.memory.consolidation_policy)
    embedder = None if settings.search.indexing == "off" else _embedder(plugins, settings, settings.search.embedder)
    started_s = time.monotonic()
    backend, watermark = open_backend(settings, plugins, recover=recover, read_only=read_only, create=create)
    try:
        store = Store(backend, settings, plugins, watermark, embedder=embedder, read_only=read_only, create=create)
    except BaseException:
        backend.close()
        raise
    log.info(
        "opened %s on %s in %.0f ms, durability %s, compression %s",
        settings.storage.where,
        backend.name,
        (time.monotonic() - started_s) * 1000,
        settings.storage.level,
        settings.storage.codec,
    )
    return store


def _embedder(
    plugins: Plugins, settings: Settings, name: str, **options: bool | int | float | str | Sequence[str]
) -> Embedder | None:
    """The embedder of that name; None for the table of words, which needs no vectors."""
    if name == "static":
        return None
    plugins.embedders.find(name)
    given: dict[str, Any] = {**settings.search.embedders.get(name, {}), **options}
    return plugins.embedders.create(name, **given)
