"""What agents remember: the values and the verbs, the same for an embedded database and one behind a server."""

from __future__ import annotations

from qilbee_core import (
    JSON,
    ClearReceipt,
    Consolidation,
    ConsolidationResult,
    Episode,
    ForgetReceipt,
    JSONObject,
    MemorySettings,
    MemoryStatistics,
    MemoryType,
    PurgeReceipt,
    SearchResult,
    SearchStatus,
    UndoReceipt,
)
from qilbeedb.protocol import AgentMemory, AsyncAgentMemory

__all__ = [
    "JSON",
    "AgentMemory",
    "AsyncAgentMemory",
    "ClearReceipt",
    "Consolidation",
    "ConsolidationResult",
    "Episode",
    "ForgetReceipt",
    "JSONObject",
    "MemoryConfig",
    "MemoryStatistics",
    "MemoryType",
    "PurgeReceipt",
    "SearchResult",
    "SearchStatus",
    "UndoReceipt",
]

MemoryConfig = MemorySettings
"""How an embedded database forgets: ``QilbeeDB({"uri": "./data", "memory": MemoryConfig(max_episodes=1000)})``.

A server has its own, in the table ``[memory]`` of its configuration.
"""
