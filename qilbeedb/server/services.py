"""What all requests share: the store, the accounts, the settings, and the counters."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

from qilbee_core import AsyncStore, Store
from qilbeedb.accounts import Caller, Principal
from qilbeedb.server.metrics import Meter
from qilbeedb.server.settings import ServiceSettings

if TYPE_CHECKING:
    from qilbeedb.accounts import Accounts
    from qilbeedb.server.route import Route

__all__ = ["DEVELOPER", "NOBODY", "Services"]

DEVELOPER = Principal(user_id="developer", username="developer", roles=("Admin",))
"""Who everybody is to a server without login."""

NOBODY = Principal(user_id="", username="", roles=())
"""Who calls what is for everybody."""

_MEMORIES_KEPT = 1024
_READERS = 8


class Services:
    """The parts of a running server. Without ``accounts`` everybody is :data:`DEVELOPER`."""

    def __init__(self, store: Store, accounts: Accounts | None, settings: ServiceSettings) -> None:
        self.store = AsyncStore(store)
        self.accounts = accounts
        self.settings = settings
        self.memory_of = lru_cache(_MEMORIES_KEPT)(self.store.agent_memory)
        """The memory of an agent; making one takes longer than to ask it for an episode."""
        self.readers = None if store.settings.storage.dsn is None else ThreadPoolExecutor(_READERS, "qilbee-readers")
        """Where a request finds out who calls, if that stands in a database: nobody else shall wait for it."""
        self.began_s = time.monotonic()
        self.table: tuple[Route, ...] = ()
        """Everything that the server answers."""
        self.meters: list[Meter] = []
        """The counters of all routes."""
        self.connections: set[object] = set()
        """Those that are open."""
        self.in_flight = 0
        """Requests that are being answered."""
        self.slow_in_flight = 0
        """Those of them that take a place in the pool."""

    @property
    def search_is_on(self) -> bool:
        """Whether the store may be searched."""
        return self.settings.search.indexing != "off"

    async def record(self, event_type: str, caller: Caller, action: str, resource: str) -> None:
        """Have the audit log, where there is one, say what a caller did; never with what somebody stored."""
        if self.accounts is not None:
            # Not among those who wait for accounts, and are refused where they are too many: it is done already.
            await asyncio.to_thread(self.accounts.record, event_type, caller, action, resource)

    async def close(self) -> None:
        """Close accounts and store. Idempotent."""
        try:
            if self.accounts is not None:
                await self.record("server_stopped", Caller(user_agent="qilbee serve"), "stop", "")
                await asyncio.to_thread(self.accounts.close)
        finally:
            if self.readers is not None:
                self.readers.shutdown(wait=False)
            await self.store.close()
