"""What is kept in RAM of one agent: its keys, its head, its newest episodes, and what follows from them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from qilbee_core.batch import Expect
from qilbee_core.episode import Episode
from qilbee_core.keys import AgentKeys
from qilbee_core.memory.head import Head
from qilbee_core.memory.relevance import Order
from qilbee_core.memory.tail import Tail

__all__ = ["CHANGES_KEPT", "NO_PLACE", "STORES_AHEAD_MAX", "Agent", "Ends", "Place", "Position", "Waiting"]

CHANGES_KEPT = 1024
"""Entries of an agent's change log that are kept for readers in RAM; trimmed when twice as many."""

STORES_AHEAD_MAX = 64
"""How far the log may run ahead of the stored head: what an open after a crash has to read again."""


class Place(NamedTuple):
    """Where new episodes of full strength stand in the order of relevance: the same place for a whole second."""

    decay_start_us: int
    order: int
    contribution: int
    key_start: bytes


NO_PLACE = Place(-1, -1, 0, b"")


class Ends(NamedTuple):
    """The event times of an agent's oldest and newest episode, as of a sequence of its head."""

    generation: int
    sequence: int
    oldest: datetime | None
    newest: datetime | None


class Waiting:
    """An episode that a thread has left to others to store. ``ticket`` is None as long as nothing is known of it."""

    __slots__ = ("episode", "is_new", "ticket")

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.is_new = False
        self.ticket: int | None = None


class Agent:
    """What is kept in RAM of one agent while anybody uses it: its keys, its head, its newest episodes."""

    __slots__ = (
        "__weakref__",
        "ends",
        "expiry_us",
        "head",
        "head_due",
        "id",
        "indexed",
        "keys",
        "last_head",
        "lock",
        "orders",
        "place",
        "tail",
        "trim_due",
        "unindexed",
        "waiting",
    )

    def __init__(self, agent_id: str) -> None:
        self.id = agent_id
        self.keys = AgentKeys(agent_id)
        self.lock = threading.Lock()
        self.head: Head | None = None
        self.last_head: tuple[Head, Sequence[Expect]] | None = None
        """On a shared engine, the head that this process wrote last, as expected: most likely it is there still."""
        self.head_due = 0
        """From this sequence on append() writes the head too."""
        self.trim_due = 0
        """From this sequence on it leaves the write to commit(), which trims the log."""
        self.expiry_us = 0
        """What the head says of the first to expire, as of the last write of this process."""
        self.tail = Tail()
        self.place = NO_PLACE
        self.orders: tuple[Order, ...] = ()
        """The orders in force, by memory type, for whoever reads; what is written goes by the head."""
        self.ends: Ends | None = None
        self.indexed = 0
        """The change log was followed up to this sequence for search; 0: not known yet."""
        self.unindexed = 0
        """Episodes that the log names beyond that."""
        self.waiting: deque[Waiting] = deque()
        """What whoever leads the next sync is to store."""

    def head_stored(self, head: Head) -> None:
        """Take note that ``head`` is what is stored, or about to be."""
        self.head_due = head.sequence + STORES_AHEAD_MAX
        self.trim_due = head.trimmed + 2 * CHANGES_KEPT
        if head.sequence >= self.trim_due:  # the log waits to be followed
            self.trim_due = self.head_due


class Position(NamedTuple):
    """Where a change log ends, and what else of the head tells whether what is known in RAM still holds."""

    generation: int
    sequence: int
    trimmed: int
    expiry_us: int
