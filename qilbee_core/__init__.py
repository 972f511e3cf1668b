"""Durable memory for AI agents, embedded in your program, on any storage engine."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.config import (
    MemorySettings,
    PluginSettings,
    SearchSettings,
    Settings,
    StorageSettings,
    check_settings,
)
from qilbee_core.directory import DirectoryLock, fsync_directory
from qilbee_core.durability import DurabilityStatus
from qilbee_core.episode import (
    JSON,
    Consolidation,
    ConsolidationResult,
    Episode,
    JSONObject,
    MemoryType,
    Plan,
    UndoReceipt,
)
from qilbee_core.errors import (
    AuthenticationError,
    ConflictError,
    CorruptRecordError,
    DataError,
    FormatVersionError,
    InvalidError,
    LostWritesError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    PluginError,
    ProviderNotFoundError,
    QilbeeError,
    ReadOnlyError,
    SettingsError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreLockedError,
    UnfinishedCopyError,
    WriteStallError,
)
from qilbee_core.health import Health
from qilbee_core.interfaces import (
    BackendOptions,
    Blocking,
    Codec,
    ConsolidationPolicy,
    Document,
    DurableWrites,
    Embedder,
    MayOpen,
    Provider,
    Reader,
    Serializer,
    SingleProcess,
    Snapshot,
    StorageBackend,
    SupportsCheckpoint,
    SupportsCompaction,
    SupportsDictionary,
    SupportsErase,
    SupportsNativeCompression,
    SupportsPages,
    SupportsReopen,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.keys import encode_agent_id
from qilbee_core.limits import check_storable
from qilbee_core.memory.found import SearchResult, SearchStatus
from qilbee_core.memory.room import Room, Unread
from qilbee_core.memory.statistics import ClearReceipt, ForgetReceipt, MemoryStatistics, PurgeReceipt
from qilbee_core.policies.derived import derived_episode

if TYPE_CHECKING:
    from qilbee_core.account_rows import AccountRows
    from qilbee_core.aio import AsyncStore, aopen_store
    from qilbee_core.copying import CopyReport, copy_store
    from qilbee_core.hookspecs import hookimpl
    from qilbee_core.memory.agent import AgentMemory
    from qilbee_core.memory.aio import AsyncAgentMemory, read_within, store_anew
    from qilbee_core.memory.repair import RepairReport
    from qilbee_core.memory.verify import Problem, VerifyReport
    from qilbee_core.plugins import Plugins, load_plugins
    from qilbee_core.recovery import RecoveryReport
    from qilbee_core.store import Store, open_store
else:
    # What needs an engine, numpy or pluggy is imported when it is first asked for (PEP 562): a client of a server has
    # none of them, and shares the values and errors above.
    _WHERE = {
        "AccountRows": "qilbee_core.account_rows",
        "AsyncStore": "qilbee_core.aio",
        "aopen_store": "qilbee_core.aio",
        "CopyReport": "qilbee_core.copying",
        "copy_store": "qilbee_core.copying",
        "hookimpl": "qilbee_core.hookspecs",
        "AgentMemory": "qilbee_core.memory.agent",
        "AsyncAgentMemory": "qilbee_core.memory.aio",
        "read_within": "qilbee_core.memory.aio",
        "store_anew": "qilbee_core.memory.aio",
        "RepairReport": "qilbee_core.memory.repair",
        "Problem": "qilbee_core.memory.verify",
        "VerifyReport": "qilbee_core.memory.verify",
        "Plugins": "qilbee_core.plugins",
        "load_plugins": "qilbee_core.plugins",
        "RecoveryReport": "qilbee_core.recovery",
        "Store": "qilbee_core.store",
        "open_store": "qilbee_core.store",
    }

    def __getattr__(name: str) -> object:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_WHERE})


# A library is silent unless its program sets up logging: without this, warnings would appear on stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "JSON",
    "AccountRows",
    "AgentMemory",
    "AsyncAgentMemory",
    "AsyncStore",
    "AuthenticationError",
    "BackendOptions",
    "Blocking",
    "ClearReceipt",
    "Codec",
    "ConflictError",
    "Consolidation",
    "ConsolidationPolicy",
    "ConsolidationResult",
    "CopyReport",
    "CorruptRecordError",
    "DataError",
    "Delete",
    "DeleteRange",
    "DirectoryLock",
    "Document",
    "DurabilityStatus",
    "DurableWrites",
    "Embedder",
    "Episode",
    "Expect",
    "ForgetReceipt",
    "FormatVersionError",
    "Health",
    "InvalidError",
    "JSONObject",
    "LostWritesError",
    "MayOpen",
    "MemorySettings",
    "MemoryStatistics",
    "MemoryType",
    "NotFoundError",
    "Operation",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "Plan",
    "PluginError",
    "PluginSettings",
    "Plugins",
    "Problem",
    "Provider",
    "ProviderNotFoundError",
    "PurgeReceipt",
    "Put",
    "QilbeeError",
    "ReadOnlyError",
    "Reader",
    "RecoveryReport",
    "RepairReport",
    "Room",
    "SearchResult",
    "SearchSettings",
    "SearchStatus",
    "Serializer",
    "Settings",
    "SettingsError",
    "SingleProcess",
    "Snapshot",
    "StorageBackend",
    "StorageError",
    "StorageFullError",
    "StorageSettings",
    "Store",
    "StoreClosedError",
    "StoreLockedError",
    "SupportsCheckpoint",
    "SupportsCompaction",
    "SupportsDictionary",
    "SupportsErase",
    "SupportsNativeCompression",
    "SupportsPages",
    "SupportsReopen",
    "SupportsSequence",
    "SupportsStats",
    "UndoReceipt",
    "UnfinishedCopyError",
    "Unread",
    "VerifyReport",
    "WriteBatch",
    "WriteStallError",
    "aopen_store",
    "check_settings",
    "check_storable",
    "copy_store",
    "derived_episode",
    "encode_agent_id",
    "fsync_directory",
    "hookimpl",
    "load_plugins",
    "open_store",
    "read_within",
    "store_anew",
]
