"""The contracts between the store and what plugs into it.

Below the memory model everything is bytes to bytes: a :class:`StorageBackend` keeps ordered pairs of
bytes, a :class:`Codec` makes bytes fewer, a :class:`Serializer` turns plain values into bytes and
back. Above it everything is values: an :class:`Embedder` turns texts into vectors, a
:class:`ConsolidationPolicy` turns episodes into a plan. None of them ever sees the layer above.

What an implementation must promise stands in the docstrings, and each sentence is a test of the kit
in :mod:`qilbee_core.testing`. What it *may* offer is a protocol of its own, found by ``isinstance``:
there are no capability flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar, runtime_checkable

from msgspec import Struct

from qilbee_core.batch import WriteBatch
from qilbee_core.episode import JSON, Episode, Plan

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BackendOptions",
    "Blocking",
    "Codec",
    "ConsolidationPolicy",
    "Document",
    "Embedder",
    "MayOpen",
    "Provider",
    "Reader",
    "Serializer",
    "SingleProcess",
    "Snapshot",
    "StorageBackend",
    "SupportsCheckpoint",
    "SupportsCompaction",
    "SupportsDictionary",
    "SupportsErase",
    "SupportsNativeCompression",
    "SupportsPages",
    "SupportsReopen",
    "SupportsSequence",
    "SupportsStats",
]

T_co = TypeVar("T_co", covariant=True)

Document = list[JSON]
"""What a serializer is given: a list of JSON values (None, bool, 64-bit int, finite float, str, list, dict)."""


class Reader(Protocol):
    """Ordered pairs of bytes. Keys are compared as unsigned bytes; empty is not missing."""

    def get(self, key: bytes) -> bytes | None:
        """The value under ``key``, or None where there is none."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key, in the order given, duplicates included."""

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs with ``start <= key < stop`` in order of key; ``reverse`` gives the same ones backwards.

        The view is fixed when ``scan`` is *called*, not at the first ``next``.
        """


class Snapshot(Reader, Protocol):
    """One instant of the store: ``get``, ``get_many`` and ``scan`` agree with each other, from any thread."""

    def close(self) -> None:
        """Let go of the instant. Idempotent; every other call then raises StoreClosedError."""


@runtime_checkable
class StorageBackend(Reader, Protocol):
    """An engine: thread-safe, ordered, atomic.

    After ``close`` every call raises :class:`~qilbee_core.errors.StoreClosedError`. A power cut leaves
    a prefix of the batches, each of them whole.
    """

    name: str

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` whole, or raise and apply nothing.

        It then survives the death of the process, though not yet a power cut. A failed ``Expect``
        raises :class:`~qilbee_core.errors.ConflictError`.
        """

    def sync(self) -> None:
        """Return once every earlier write survives a power cut.

        It may be called again after StorageFullError, and after no other.
        """

    def snapshot(self) -> Snapshot:
        """This instant, to read from while writes go on."""

    def close(self) -> None:
        """Make everything durable and let go of the directory. Idempotent."""


@runtime_checkable
class SupportsCheckpoint(Protocol):
    """Can copy itself while open."""

    def checkpoint(self, target: Path) -> None:
        """Make ``target``, which must not exist, a copy of this instant that opens by itself."""


@runtime_checkable
class SupportsStats(Protocol):
    """Can tell about itself."""

    def stats(self) -> Mapping[str, JSON]:
        """Figures of the engine, by name, units last.

        ``writes_stopped`` says that no write gets through: True where compaction has to catch up, else why, in words.
        """


@runtime_checkable
class SupportsCompaction(Protocol):
    """Can give space back on demand."""

    def compact(self, start: bytes = b"", stop: bytes | None = None) -> None:
        """Rewrite the range so that what was deleted takes no more space."""


@runtime_checkable
class SupportsErase(Protocol):
    """Can remove deleted bytes from its files on demand."""

    def erase(self, ranges: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Return once no file of this engine holds bytes that were deleted from these ranges.

        Snapshots that are still open may keep what they show; the engine then raises StorageError.
        """


@runtime_checkable
class SupportsNativeCompression(Protocol):
    """Compresses its own blocks, so that values need no codec."""

    @property
    def native_codecs(self) -> frozenset[str]:
        """Names of the codecs it has for its blocks."""


@runtime_checkable
class SupportsPages(Protocol):
    """Can give the first pairs of a scan at the cost of one call, where a scan that goes on costs more."""

    def page(
        self, start: bytes = b"", stop: bytes | None = None, limit: int = 1, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """The first ``limit`` pairs of that scan, or all where there are fewer."""


@runtime_checkable
class SupportsReopen(Protocol):
    """Can recover from a failed write or sync while others hold on to it."""

    def reopen(self) -> None:
        """Open the files anew, with all that they hold durable.

        Raises where the disk takes no writes; reads then go on. Reads that come meanwhile wait; snapshots and
        scans of before may raise StoreClosedError from now on. No write is on its way when it is called.
        """


@runtime_checkable
class SupportsSequence(Protocol):
    """Counts its writes, so that lost ones can be noticed: see ``BackendOptions.may_open``."""

    def sequence(self) -> int:
        """A number that rises with every write and never falls while nothing is lost, over closing and crashes too."""


class SingleProcess:
    """Mark of an engine with one opener at a time, to inherit from.

    A second opener gets StoreLockedError at once, with the holder's pid and path; a forked child that
    uses what its parent opened gets StoreClosedError. :class:`~qilbee_core.directory.DirectoryLock`
    does both.
    """

    __slots__ = ()


class Blocking:
    """Mark of an engine whose calls may wait on a network or a lock, to inherit from.

    The asyncio face runs it in a bounded pool.
    """

    __slots__ = ()


class DurableWrites:
    """Mark of an engine whose ``write`` at the level ``sync`` returns when the batch is durable, to inherit from.

    Its ``sync`` is called there before an answer that rests on what others wrote, and must make that durable too.
    """

    __slots__ = ()


class Codec(Protocol):
    """Bytes to fewer bytes. Thread-safe; a decoder may never change, an encoder may."""

    name: str

    def encode(self, data: bytes) -> bytes:
        """The encoded bytes; they may be longer, the store then keeps ``data`` itself."""

    def decode(self, data: bytes, size: int) -> bytes:
        """Exactly ``size`` bytes, or CorruptRecordError; never more memory than ``size`` asks for."""


@runtime_checkable
class SupportsDictionary(Protocol):
    """A codec that does better on short values with a dictionary."""

    def with_dictionary(self, dictionary: bytes) -> Codec:
        """The same codec, with ``dictionary`` on both ways."""


class Serializer(Protocol):
    """Plain values to bytes and back, equal to what was given. Thread-safe."""

    name: str

    def dumps(self, document: Document) -> bytes:
        """The bytes of ``document``."""

    def loads(self, data: bytes) -> Document:
        """The document of ``data``, or CorruptRecordError."""


class Embedder(Protocol):
    """Texts to vectors of one length. Thread-safe.

    ``name`` says which model it is, and is kept beside its vectors: embedders of one name and the same ``dimensions``
    give vectors that can be compared, so another model needs another name. Both are known before anything is asked.
    """

    name: str
    dimensions: int

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """An array of shape (len(texts), dimensions), each row of length 1.

        A text has the same vector each time, alone and among others, and one that is empty or very long has one too.
        What cannot be embedded now raises; the store asks again.
        """


class ConsolidationPolicy(Protocol):
    """Decides what to do with a group of memories, and only decides: it never sees the store."""

    name: str

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        """What to create, supersede and forget; the same for the same episodes and ``now``."""


class MayOpen(Protocol):
    """Whether an engine may open with what it has."""

    def __call__(self, sequence: int, get: Callable[[bytes], bytes | None], *, damaged: bool) -> bool:
        """True: go on, nothing durable is missing, or its loss was accepted by name. False: nothing is known.

        ``sequence`` is the number of the last operation there would be, ``get`` reads what there would be, and
        ``damaged`` says that something behind it would be dropped. With False an engine drops nothing that may have
        been acknowledged: it refuses to open. Raises LostWritesError where durable writes are missing.
        """


class BackendOptions(Struct, frozen=True, kw_only=True):
    """What a backend is opened with.

    ``compression`` is the codec wished for the engine's own blocks: an engine that has not got it (see
    :class:`SupportsNativeCompression`) leaves its blocks as they are, and values are compressed instead.
    ``engine`` holds the settings of ``[storage.engine]``, which only this engine understands.

    ``may_open`` is what the store knows of writes that must be there. An engine that :class:`SupportsSequence` should
    ask it before it changes anything on disk; the store asks again once it is open. See :class:`MayOpen`.

    ``read_only`` is given to an engine alone whose provider says that it can: it shows one moment, changes nothing on
    disk, minds no other opener, and its ``write`` raises ReadOnlyError.

    ``dsn`` says where the database of an engine without files is; it may hold a password. ``durability`` is the level
    in force: an engine whose commits can wait for the disk by themselves does so at ``sync``
    (:class:`DurableWrites`).

    ``create`` False asks for NotFoundError, and nothing made, where the database of ``dsn`` holds no store yet. In
    directories the store looks itself.
    """

    path: Path
    dsn: str = ""
    durability: Literal["sync", "interval", "async", "none"] = "interval"
    wal: bool = True
    compression: str = "none"
    cache_bytes: int = 64 << 20
    engine: Mapping[str, JSON] = {}
    may_open: MayOpen | None = None
    read_only: bool = False
    create: bool = True


class Provider(Struct, Generic[T_co], frozen=True):
    """A name and the function that makes what it names: all that a plugin hands over.

    Third parties put a dot into their names (``acme.fast``), so that ours never clash with theirs.
    ``create`` takes a :class:`BackendOptions` for a backend, nothing for a codec or a serializer, and
    the settings of its own table as keywords for an embedder or a policy. ``install`` is the command
    that makes ``create`` work where what it needs is missing. ``directory`` says of a backend that it
    keeps its files in ``BackendOptions.path``, ``read_only`` that it can be opened with that option, and ``schemes``
    how the URLs begin that it takes as ``dsn``.
    """

    name: str
    create: Callable[..., T_co]
    summary: str = ""
    install: str = ""
    directory: bool = True
    read_only: bool = False
    schemes: tuple[str, ...] = ()
