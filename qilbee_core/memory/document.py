"""Between an episode and the document that is stored for it: fields by position, only ever appended.

======  ==================  =======================================================
field   what                where it is left out (only at the end)
======  ==================  =======================================================
0       episode type
1       content
2       transaction time    microseconds since the Unix epoch
3       metadata            {}
4       memory type         0, its position in MEMORY_TYPES
5       strength            1.0
6       reinforced at       0: in the second of the transaction time
7       idempotency key     "": none; else the hex of its 16-byte digest
8       origin              "": this is what was first stored; else the digest of that
9       previous version    0: there is none in HISTORY; else its transaction time
10      expires at          0: never; else it is absent from then on, unless it is pinned
11      ended at            0: this version was not retired; else when it was
12      superseded by       "": nothing took its place; else the id of what did
13      pinned              False; of a version that was retired, whether it was pinned then
======  ==================  =======================================================
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from qilbee_core.episode import MEMORY_TYPES, Episode, JSONObject
from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import Document

__all__ = [
    "MEMORY_TYPE_NUMBERS",
    "EpisodeDocument",
    "decay_start_us",
    "digest_of",
    "digest_of_key",
    "fields_of",
    "usual_fields",
]

_canonical = msgspec.msgpack.Encoder(order="deterministic").encode
_USUAL_TYPE = MEMORY_TYPES[0]
MEMORY_TYPE_NUMBERS = {name: number for number, name in enumerate(MEMORY_TYPES)}


def digest_of_key(idempotency_key: str) -> bytes:
    """The 16 bytes that stand for an idempotency key."""
    return blake2b(idempotency_key.encode(), digest_size=16).digest()


class EpisodeDocument(Struct):
    """The stored fields of one episode, by name."""

    episode_type: str
    content: JSONObject
    transaction_us: int
    metadata: JSONObject = {}
    memory_type: int = 0
    strength: float = 1.0
    reinforced_us: int = 0
    idempotency_digest: str = ""
    origin: str = ""
    previous_us: int = 0
    expires_us: int = 0
    ended_us: int = 0
    superseded_by: str = ""
    pinned: bool = False

    @classmethod
    def from_fields(cls, fields: Document) -> EpisodeDocument:
        """The document read from a record; fields of a later schema are passed over."""
        try:
            document = cls(*fields[:_FIELDS])  # type: ignore[arg-type]  # the checksum vouches for the types
        except TypeError as error:
            raise CorruptRecordError(f"a document of {len(fields)} fields is not an episode's") from error
        if document.memory_type not in _NUMBERS:
            raise CorruptRecordError(f"memory type {document.memory_type!r} is of a later release")
        return document

    def fields(self) -> Document:
        """The fields by position, without the defaults at the end."""
        fields: Document = list(astuple(self))
        while fields[-1] == _DEFAULTS[len(fields) - 1]:
            del fields[-1]
        return fields

    def own_digest(self) -> str:
        """The digest of what it holds now."""
        return digest_of(self.episode_type, self.content, self.metadata, self.memory_type)

    def digest(self) -> str:
        """The digest of what was first stored under this id."""
        return self.origin or self.own_digest()

    def decay_start_us(self) -> int:
        """When its decay began: it was reinforced then, or recorded in that second."""
        return self.reinforced_us or decay_start_us(self.transaction_us)

    def episode(self, agent_id: str, id_bytes: bytes, relevance: float, *, pinned: bool = False) -> Episode:
        """The episode as it is given back, with its relevance now."""
        episode = Episode.__new__(Episode)
        episode.agent_id = agent_id
        episode.episode_type = self.episode_type
        episode.content = self.content
        episode.metadata = self.metadata
        episode.memory_type = MEMORY_TYPES[self.memory_type]
        episode.relevance = relevance
        episode._id = id_bytes
        episode._id_text = None
        episode._id_fixed = True
        episode._transaction_us = self.transaction_us
        episode._expires_us = self.expires_us
        episode._pinned = pinned
        episode._ended_us = 0
        return episode


_NUMBERS = range(len(MEMORY_TYPES))
_FIELDS = len(EpisodeDocument.__struct_fields__)
_REQUIRED = _FIELDS - len(EpisodeDocument.__struct_defaults__)
_DEFAULTS: tuple[object, ...] = (None,) * _REQUIRED + ({}, 0, 1.0, 0, "", "", 0, 0, 0, "", False)


def usual_fields(episode: Episode, transaction_us: int) -> Document | None:
    """What is stored for a new episode with defaults in all but its first four fields, as most are; else None."""
    if episode.relevance != 1.0 or episode.memory_type != _USUAL_TYPE or episode._expires_us:
        return None
    if episode.metadata:
        return [episode.episode_type, episode.content, transaction_us, episode.metadata]
    return [episode.episode_type, episode.content, transaction_us]


def fields_of(episode: Episode, transaction_us: int, idempotency_digest: str) -> Document:
    """What is stored for a new episode that is recorded at ``transaction_us``."""
    return EpisodeDocument(
        episode.episode_type,
        episode.content,
        transaction_us,
        episode.metadata,
        MEMORY_TYPE_NUMBERS[episode.memory_type],
        episode.relevance,
        idempotency_digest=idempotency_digest,
        expires_us=episode._expires_us,
    ).fields()


def decay_start_us(transaction_us: int) -> int:
    """When an episode that is recorded now begins to decay: at the whole second, alike for all of that second."""
    return transaction_us - transaction_us % 1_000_000


def digest_of(episode_type: str, content: JSONObject, metadata: JSONObject, memory_type: int) -> str:
    """What makes two stores of one id the same store: hex of 16 bytes over what the caller gave.

    UnicodeEncodeError where it holds a lone surrogate.
    """
    return blake2b(_canonical([episode_type, content, metadata, memory_type]), digest_size=16).hexdigest()
