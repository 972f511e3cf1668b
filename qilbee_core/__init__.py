"""Durable memory for AI agents, embedded in your program, on any storage engine."""

import logging

from qilbee_core.aio import AsyncStore, aopen_store
from qilbee_core.batch import Delete, DeleteRange, Expect, Operation, Put, WriteBatch
from qilbee_core.config import MemorySettings, PluginSettings, SearchSettings, Settings, StorageSettings
from qilbee_core.directory import DirectoryLock, fsync_directory
from qilbee_core.durability import DurabilityStatus
from qilbee_core.episode import JSON, Episode, JSONObject, MemoryType, Plan
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
    WriteStallError,
)
from qilbee_core.health import Health
from qilbee_core.hookspecs import hookimpl
from qilbee_core.interfaces import (
    BackendOptions,
    Blocking,
    Codec,
    ConsolidationPolicy,
    Document,
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
    SupportsReopen,
    SupportsSequence,
    SupportsStats,
)
from qilbee_core.memory.agent import AgentMemory
from qilbee_core.memory.aio import AsyncAgentMemory
from qilbee_core.memory.repair import RepairReport
from qilbee_core.memory.searching import SearchResult, SearchStatus
from qilbee_core.memory.statistics import ClearReceipt, ForgetReceipt, MemoryStatistics
from qilbee_core.memory.verify import Problem, VerifyReport
from qilbee_core.plugins import Plugins, load_plugins
from qilbee_core.policies.derived import derived_episode
from qilbee_core.recovery import RecoveryReport
from qilbee_core.store import Store, open_store

# A library is silent unless its program sets up logging: without this, warnings would appear on stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "JSON",
    "AgentMemory",
    "AsyncAgentMemory",
    "AsyncStore",
    "AuthenticationError",
    "BackendOptions",
    "Blocking",
    "ClearReceipt",
    "Codec",
    "ConflictError",
    "ConsolidationPolicy",
    "CorruptRecordError",
    "DataError",
    "Delete",
    "DeleteRange",
    "DirectoryLock",
    "Document",
    "DurabilityStatus",
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
    "Put",
    "QilbeeError",
    "ReadOnlyError",
    "Reader",
    "RecoveryReport",
    "RepairReport",
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
    "SupportsReopen",
    "SupportsSequence",
    "SupportsStats",
    "VerifyReport",
    "WriteBatch",
    "WriteStallError",
    "aopen_store",
    "derived_episode",
    "fsync_directory",
    "hookimpl",
    "load_plugins",
    "open_store",
]
