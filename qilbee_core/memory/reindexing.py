"""Bringing the agents of a store into other orders of relevance, after a half-life has changed.

An order is a memory type under one half-life, and never changes. Another half-life is another order, whose rows are
built beside those of the old one, agent by agent. A thread does it in steps. Each step is one batch, written under the
agent's lock or, on a shared engine, where its head is as it was read; and the head says how far the agent has got::

    orders 0     reindex nil                        what is wanted is order 4
    orders 0     reindex to 4, built up to an id    episodes up to that id stand in both, the others in 0
    orders 4     reindex to 4, leaving 0            the switch: one batch
    orders 4     reindex nil                        the rows of 0 are gone

All answers are by the orders in force. Whoever writes an episode up to that id writes it into both; a new episode is
above it, so a usual store is what it always is. After a crash the next opener goes on from what the head says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from qilbee_core.batch import DeleteRange, Operation, Put
from qilbee_core.episode import MEMORY_TYPES
from qilbee_core.errors import ConflictError, DataError, QilbeeError, StorageError, StoreClosedError
from qilbee_core.keys import Space, parse, range_of
from qilbee_core.memory.commit import Context
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head, Reindex
from qilbee_core.memory.relevance import contribution
from qilbee_core.memory.resident import Agent
from qilbee_core.memory.state import State, decode_state, standing

__all__ = ["ReindexFigures", "Reindexing"]

log = logging.getLogger(__name__)

_EPISODES_AT_ONCE = 32
_ROWS_AT_ONCE = 512
"""In a step that removes rows. Either kind holds the agent's writers up for half a millisecond or so."""
_HEADS_AT_ONCE = 64
_PAUSE_S = 0.0002
_RETRY_S = 1.0


class ReindexFigures(Struct, kw_only=True):
    """How far the thread has got since the store was opened."""

    running: bool = False
    episodes: int = 0
    episodes_due: int = 0
    agents: int = 0
    agents_due: int = 0
    rows_removed: int = 0
    errors: int = 0

    @property
    def share(self) -> float | None:
        """How much of the work is done, 0..1; None where none is under way."""
        if not self.running:
            return None
        return min(1.0, (self.agents + self.episodes) / max(1, self.agents_due + self.episodes_due))


class Reindexing:
    """Re-indexes what is not in the orders that the catalog wants, in a thread that ends when all is."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qilbee-reindexing", daemon=True)
        self._removed_to = b""
        self.figures = ReindexFigures()

    def start(self) -> None:
        """Begin, if there may be anything to do."""
        if len(self._context.catalog.orders) > len(MEMORY_TYPES):
            self._thread.start()

    def close(self) -> None:
        """Stop after the step that is under way; the next opener of the store goes on. Idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread

    def _run(self) -> None:
        began_s = time.monotonic()
        figures = self.figures
        with suppress(StoreClosedError):
            for _, episodes in self._behind():
                figures.agents_due += 1
                figures.episodes_due += episodes
            figures.running = figures.agents_due > 0
            is_done = True
            for agent_id, _ in self._behind() if figures.running else ():
                is_done &= self._finish(self._context.agent(agent_id))
            if is_done and not self._closing.is_set() and self._context.single_process:
                self._context.mixed = False
        figures.running = False
        if figures.agents:
            log.info(
                "half-lives have changed: %d episodes of %d agents are in new orders, after %.1f s",
                figures.episodes,
                figures.agents,
                time.monotonic() - began_s,
            )

    def _behind(self) -> Iterator[tuple[str, int]]:
        """The agents that are not where they shall be, with how many episodes they have."""
        start, stop = range_of(bytes((Space.AGENT,)))
        while not self._closing.wait(_PAUSE_S):
            heads = list(islice(self._context.backend.scan(start, stop), _HEADS_AT_ONCE))
            if not heads:
                return
            for key, value in heads:
                with suppress(DataError):  # repair() makes it anew, where it is wanted
                    agent_id, head = parse(key).agent_id, Head.decode(key, value)
                    if agent_id is not None and (head.reindex or head.orders != self._context.catalog.wanted):
                        yield agent_id, head.episodes
            start = heads[-1][0] + b"\x00"

    def _finish(self, agent: Agent) -> bool:
        """Do all steps of an agent; whether it is where it shall be."""
        told = ""
        while not self._closing.is_set():
            began_s = time.monotonic()
            try:
                if not self.step(agent):
                    self.figures.agents += 1
                    return True
            except StoreClosedError:
                raise
            except ConflictError:
                pass  # somebody else was quicker, so the head is read again
            except QilbeeError as error:
                if str(error) != told:
                    told = str(error)
                    self.figures.errors += 1
                    log.warning("the half-lives of agent %r are as before: %s", agent.id, error)
                if not isinstance(error, StorageError):
                    return False  # it will be the same until the store is opened again
                self._closing.wait(_RETRY_S)
            # Others get the agent's lock, and half of the interpreter's time.
            self._closing.wait(max(_PAUSE_S, time.monotonic() - began_s))
        return False

    # --- the steps

    def step(self, agent: Agent) -> bool:
        """Do one step of an agent; whether there was anything to do."""
        return self._context.rearrange(agent, partial(self._plan, agent)) is not None

    def _plan(self, agent: Agent, head: Head, operations: list[Operation]) -> bool | None:
        wanted, reindex = self._context.catalog.wanted, head.reindex
        if reindex is None:
            if head.orders == wanted:
                return None
            reindex = head.reindex = Reindex(wanted)
        if reindex.leaving:
            self._remove_rows(agent, head, operations, reindex)
        elif reindex.orders == wanted:
            self._build(agent, head, operations, reindex)
        else:  # others are wanted by now: what was built is given up
            _leave(head, reindex.orders, head.orders)
        return True

    def _build(self, agent: Agent, head: Head, operations: list[Operation], reindex: Reindex) -> None:
        """Put the next episodes into the orders to come; where there are no more, put those in force."""
        keys, context = agent.keys, self._context
        coming, built = context.orders_of(reindex.orders), reindex.built
        start, stop = keys.episode(built + b"\x00"), keys.range(Space.EPISODE)[1]
        rows = list(islice(context.backend.scan(start, stop), _EPISODES_AT_ONCE))
        for key, value in rows:
            built = key[len(keys.episodes) :]
            with suppress(DataError):  # verify() names it
                document = EpisodeDocument.from_fields(context.records.open(key, value))
                order, place = standing(coming, document, self._state(agent, head, built))
                if order.number in reindex.orders and order.number not in head.orders:
                    head.enter(order.number, contribution(order, place))
                    operations.append(Put(keys.vitality(order.number, place, built), b""))
        self.figures.episodes += len(rows)
        head.reindex = replace(reindex, built=built)
        if len(rows) < _EPISODES_AT_ONCE:
            before, head.orders = head.orders, reindex.orders
            _leave(head, before, head.orders)

    def _state(self, agent: Agent, head: Head, id_bytes: bytes) -> State | None:
        key = agent.keys.state(id_bytes)
        value = self._context.backend.get(key) if head.states else None
        return None if value is None else decode_state(key, value)

    def _remove_rows(self, agent: Agent, head: Head, operations: list[Operation], reindex: Reindex) -> None:
        """Remove some rows of the first order that is leaving."""
        start, stop = agent.keys.order_range(reindex.leaving[0])
        if self._removed_to.startswith(start):  # nothing is added there, and to pass over what is gone takes long
            start = self._removed_to
        rows = [key for key, _ in islice(self._context.backend.scan(start, stop), _ROWS_AT_ONCE)]
        if rows:
            self._removed_to = rows[-1] + b"\x00"
            operations.append(DeleteRange(rows[0], self._removed_to))
        self.figures.rows_removed += len(rows)
        if len(rows) < _ROWS_AT_ONCE:
            self._removed_to = b""
            reindex = replace(reindex, leaving=reindex.leaving[1:])
        head.reindex = reindex if reindex.leaving else None


def _leave(head: Head, orders: tuple[int, ...], kept: tuple[int, int, int, int]) -> None:
    """Let an agent leave those of ``orders`` that are not in force, with all that was counted in them."""
    leaving = tuple(number for number in orders if number not in kept)
    for number in leaving:
        head.tallies.pop(number, None)
    head.reindex = Reindex(kept, leaving=leaving)
