r"""Every key of a store: one builder and one parser for each family. docs/format.md is the record.

A key is a space byte, the agent's id behind its length, and fixed-width big-endian fields. The length
byte makes the keys of one agent one contiguous range that no other id can reach into: neither
``a`` nor ``a:b`` nor ``a\0b`` is a prefix of another's.
"""

from __future__ import annotations

import struct
import unicodedata
from enum import IntEnum

from msgspec import Struct

from qilbee_core.errors import CorruptRecordError, InvalidError, shown

__all__ = [
    "ACCOUNT_NAME_BYTES_MAX",
    "AGENT_ID_BYTES_MAX",
    "AgentKeys",
    "ParsedKey",
    "Space",
    "account_key",
    "catalog_key",
    "encode_agent_id",
    "parse",
    "range_of",
]

AGENT_ID_BYTES_MAX = 255
ACCOUNT_NAME_BYTES_MAX = 255


class Space(IntEnum):
    """The first byte of a key: which family it belongs to. A number is never used again for another."""

    CATALOG = 0x01
    """name -> header, tags, decay orders"""
    AGENT = 0x10
    """agent -> head: generation, sequence, counts, sums"""
    EPISODE = 0x20
    """agent, id -> record"""
    STATE = 0x21
    """agent, id -> what moves: strength, when its decay began, pin"""
    HISTORY = 0x22
    """agent, id, transaction time -> an earlier record"""
    VITALITY = 0x30
    """agent, order, vitality, id -> nothing"""
    EXPIRY = 0x31
    """agent, expiry time, id -> nothing"""
    CHANGE = 0x40
    """agent, sequence -> operation, transaction time, ids"""
    KEY = 0x41
    """agent, hash of an idempotency key -> id"""
    TERMS = 0x50
    """agent, analyser version, id -> search terms; of the id of zeros: up to where they go"""
    VECTOR = 0x51
    """agent, model, id -> vector; of the id of zeros: up to where they go"""
    PLAN = 0x60
    """agent, transaction time -> what undoes one batch of a consolidation"""
    ACCOUNT = 0x70
    """name -> a row of the server's accounts"""


# What follows the agent's id, in bytes.
_FIELDS_BYTES = {
    Space.AGENT: 0,
    Space.EPISODE: 16,
    Space.STATE: 16,
    Space.HISTORY: 16 + 8,
    Space.VITALITY: 1 + 8 + 16,
    Space.EXPIRY: 8 + 16,
    Space.CHANGE: 8,
    Space.KEY: 16,
    Space.TERMS: 1 + 16,
    Space.VECTOR: 1 + 16,
    Space.PLAN: 8,
}


def encode_agent_id(agent_id: str) -> bytes:
    """The bytes that stand for an agent in keys: UTF-8 of its NFC form.

    >>> encode_agent_id("sales-agent")
    b'sales-agent'
    >>> encode_agent_id("a/b")
    Traceback (most recent call last):
    ...
    qilbee_core.errors.InvalidError: agent id 'a/b' holds '/': use 1 to 255 bytes ...
    """
    remedy = f"use 1 to {AGENT_ID_BYTES_MAX} bytes of text without control characters or '/', not '.' or '..'"
    if not isinstance(agent_id, str):
        raise InvalidError(f"an agent id is text, not {type(agent_id).__name__}", remedy=remedy)
    try:
        encoded = unicodedata.normalize("NFC", agent_id).encode()
    except UnicodeEncodeError:
        raise InvalidError("agent id holds a lone surrogate", remedy=remedy) from None
    if not 1 <= len(encoded) <= AGENT_ID_BYTES_MAX:
        raise InvalidError(f"agent id {shown(agent_id)} is {len(encoded)} bytes long", remedy=remedy)
    if agent_id in {".", ".."}:
        raise InvalidError(f"agent id {shown(agent_id)} is not allowed", remedy=remedy)
    for character in agent_id:
        if character == "/" or unicodedata.category(character) == "Cc":
            raise InvalidError(f"agent id {shown(agent_id)} holds {character!r}", remedy=remedy)
    return encoded


def range_of(prefix: bytes) -> tuple[bytes, bytes]:
    """The half-open range of all keys that begin with ``prefix``.

    Its last byte is never 0xff: it is a space, an order, or the end of an agent id, and UTF-8 has no 0xff.
    """
    return prefix, prefix[:-1] + bytes((prefix[-1] + 1,))


def catalog_key(name: str) -> bytes:
    """The key of one entry of the catalog."""
    return bytes((Space.CATALOG,)) + name.encode()


def account_key(name: str) -> bytes:
    """The key of a row of the server's accounts; InvalidError for a name that is not 1 to 255 bytes of UTF-8.

    >>> account_key("user/7")
    b'puser/7'
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidError("the name of a row holds a lone surrogate") from None
    if not 1 <= len(encoded) <= ACCOUNT_NAME_BYTES_MAX:
        raise InvalidError(
            f"the name {shown(name)} of a row is {len(encoded)} bytes long", remedy=f"use 1 to {ACCOUNT_NAME_BYTES_MAX}"
        )
    return bytes((Space.ACCOUNT,)) + encoded


_PLACE = struct.Struct(">BQ")
_SIGN = 1 << 63
"""Added to a signed integer so that its bytes sort as it does."""


class AgentKeys:
    """Builds the keys of one agent; its prefixes are made once.

    >>> AgentKeys("ab").episode(bytes(16)).hex(" ", 4)
    '20026162 00000000 00000000 00000000 00000000'
    """

    __slots__ = (
        "agent",
        "changes",
        "episodes",
        "expiries",
        "head",
        "histories",
        "idempotency_keys",
        "states",
        "terms",
        "undos",
        "vectors",
        "vitalities",
    )

    def __init__(self, agent_id: str) -> None:
        encoded = encode_agent_id(agent_id)
        self.agent = bytes((len(encoded),)) + encoded
        self.head = self.prefix(Space.AGENT)
        self.episodes = self.prefix(Space.EPISODE)
        self.states = self.prefix(Space.STATE)
        self.histories = self.prefix(Space.HISTORY)
        self.vitalities = self.prefix(Space.VITALITY)
        self.expiries = self.prefix(Space.EXPIRY)
        self.changes = self.prefix(Space.CHANGE)
        self.idempotency_keys = self.prefix(Space.KEY)
        self.terms = self.prefix(Space.TERMS)
        self.vectors = self.prefix(Space.VECTOR)
        self.undos = self.prefix(Space.PLAN)

    def prefix(self, space: Space) -> bytes:
        """What all keys of this agent in ``space`` begin with."""
        return bytes((space,)) + self.agent

    def range(self, space: Space) -> tuple[bytes, bytes]:
        """The half-open range of this agent's keys in ``space``."""
        return range_of(self.prefix(space))

    def episode(self, id_bytes: bytes) -> bytes:
        """Key of the record of an episode."""
        return self.episodes + id_bytes

    def state(self, id_bytes: bytes) -> bytes:
        """Key of the state of an episode."""
        return self.states + id_bytes

    def history(self, id_bytes: bytes, transaction_us: int) -> bytes:
        """Key of the version of an episode that was recorded at ``transaction_us``."""
        return self.histories + id_bytes + transaction_us.to_bytes(8, "big")

    def history_range(self, id_bytes: bytes) -> tuple[bytes, bytes]:
        """The half-open range of all earlier versions of an episode."""
        return self.histories + id_bytes, self.histories + id_bytes + b"\xff" * 9

    def vitality(self, order: int, vitality: int, id_bytes: bytes) -> bytes:
        """Key that sorts an episode by relevance within its order. ``vitality`` is a signed 64-bit integer."""
        return self.vitalities + _PLACE.pack(order, vitality + _SIGN) + id_bytes

    def order_range(self, order: int) -> tuple[bytes, bytes]:
        """The half-open range of all places in one order."""
        return range_of(self.vitalities + bytes((order,)))

    def expiry(self, expires_us: int, id_bytes: bytes) -> bytes:
        """Key that sorts an episode by the time from which it is no more."""
        return self.expiries + expires_us.to_bytes(8, "big") + id_bytes

    def due_range(self, now_us: int) -> tuple[bytes, bytes]:
        """The half-open range of what has expired at ``now_us``."""
        return self.expiries, self.expiry(now_us + 1, b"")

    def change(self, sequence: int) -> bytes:
        """Key of an entry of the change log."""
        return self.changes + sequence.to_bytes(8, "big")

    def idempotency_key(self, digest: bytes) -> bytes:
        """Key of the mark of an idempotency key, by its 16-byte digest."""
        return self.idempotency_keys + digest

    def row(self, version: int, id_bytes: bytes) -> bytes:
        """Key of the search terms of an episode, as one version of the analyser found them."""
        return self.terms + bytes((version,)) + id_bytes

    def row_range(self, version: int) -> tuple[bytes, bytes]:
        """The half-open range of all search terms of one version, up to the last id there can be."""
        return self.row(version, b""), self.row(version, b"\xff" * 16)

    def undo(self, transaction_us: int) -> bytes:
        """Key of what undoes the batch of a consolidation that was committed at ``transaction_us``."""
        return self.undos + transaction_us.to_bytes(8, "big")

    def vector(self, model: int, id_bytes: bytes) -> bytes:
        """Key of the vector of an episode, as one model made it."""
        return self.vectors + bytes((model,)) + id_bytes

    def vector_range(self, model: int) -> tuple[bytes, bytes]:
        """The half-open range of all vectors of one model."""
        return range_of(self.vectors + bytes((model,)))


def place_of(vitality_key: bytes) -> int:
    """The vitality that a key of VITALITY was built with."""
    return int.from_bytes(vitality_key[-24:-16], "big") - _SIGN


class ParsedKey(Struct, frozen=True):
    """A key taken apart. ``agent_id`` is None for CATALOG and ACCOUNT; ``fields`` is what follows the agent."""

    space: Space
    agent_id: str | None
    fields: bytes

    @property
    def id_bytes(self) -> bytes:
        """The episode's id: first in HISTORY, last everywhere else."""
        return self.fields[:16] if self.space is Space.HISTORY else self.fields[-16:]


def parse(key: bytes) -> ParsedKey:
    """Take a key apart; CorruptRecordError where it is of no known form."""
    try:
        space = Space(key[0])
    except (IndexError, ValueError):
        raise CorruptRecordError(f"key {key.hex()} begins with no known space") from None
    if space is Space.ACCOUNT:
        try:
            account_key(key[1:].decode())
        except ValueError:
            raise CorruptRecordError(f"key {key.hex()} of ACCOUNT holds no name") from None
    if space in (Space.CATALOG, Space.ACCOUNT):
        return ParsedKey(space, None, key[1:])
    length = key[1] if len(key) > 1 else 0
    agent, fields = key[2 : 2 + length], key[2 + length :]
    try:
        agent_id = agent.decode()
        if len(agent) != length or encode_agent_id(agent_id) != agent:
            raise ValueError
    except ValueError:
        raise CorruptRecordError(f"key {key.hex()} of {space.name} holds no agent id") from None
    if len(fields) != _FIELDS_BYTES[space]:
        raise CorruptRecordError(f"key {key.hex()} of {space.name} has {len(fields)} bytes after the agent id")
    return ParsedKey(space, agent_id, fields)
