"""What a store says about itself: its header, which name each tag stands for, and its decay orders.

Every entry is a framed JSON text under a CATALOG key, so that it can be read by eye and by any later
release. Names are global and tags are local: a record carries one byte, the catalog says what it means.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from qilbee_core.batch import Expect, Put, WriteBatch
from qilbee_core.envelope import ENVELOPE_VERSION, frame, unframe
from qilbee_core.episode import MEMORY_TYPES, MemoryType
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    FormatVersionError,
    NotFoundError,
    StorageError,
    UnfinishedCopyError,
)
from qilbee_core.ids import now_us
from qilbee_core.interfaces import StorageBackend
from qilbee_core.keys import Space, catalog_key, range_of
from qilbee_core.patience import patiently

__all__ = [
    "LAYOUT_VERSION",
    "SCHEMA_VERSION",
    "Catalog",
    "CatalogModel",
    "CatalogOrder",
    "Header",
    "Tag",
    "UnfinishedCopy",
    "Vectors",
    "WantedOrders",
    "encode_copy",
    "encode_header",
    "find_copy",
    "find_store_id",
]

T = TypeVar("T", bound=Struct)

LAYOUT_VERSION = 1
"""Key families and the forms of small facts."""
SCHEMA_VERSION = 1
"""Fields of a document, which are only ever appended."""

_NUMBER = re.compile("[1-9][0-9]{0,2}|0")
_FORMAT = "qilbee-store"
_HEADER = "header"
_COPY = "copy"
_WANTED = "orders"
_VECTORS = "vectors"
_TAG_MAX = 255
_MODEL_MAX = 254  # a range of keys ends with one more
_ORDER_MAX = 239  # the numbers above are for what is pinned
_DAY_US = 86_400_000_000
_HALF_LIFE_US: dict[MemoryType, int | None] = {
    "episodic": 30 * _DAY_US,
    "semantic": 180 * _DAY_US,
    "procedural": None,
    "factual": None,
}


class Header(Struct, frozen=True, kw_only=True):
    """The first entry of every store. ``readable_by`` is the oldest layout version that may read it."""

    format: str = _FORMAT
    layout: int
    readable_by: int
    envelope: int
    schema: int
    store_id: str
    created_us: int


class UnfinishedCopy(Struct, frozen=True, kw_only=True):
    """How far a store is copied from another one; in place of the header, which comes last.

    ``source`` is the id of that store and ``origin`` where it is, to be shown; ``header`` is what the copy gets.
    ``rows`` of ``bytes`` are there: all up to the key ``after``, in hexadecimal.
    """

    source: str
    origin: str
    header: Header
    rows: int = 0
    bytes: int = 0
    after: str = ""


class Tag(Struct, frozen=True):
    """What a one-byte tag stands for, and the package that provided it."""

    name: str
    distribution: str


class CatalogOrder(Struct, frozen=True):
    """A memory type under one half-life (microseconds; None: never decays)."""

    memory_type: MemoryType
    half_life_us: int | None


class WantedOrders(Struct, frozen=True):
    """The number of the order that each memory type shall be in, by its position in MEMORY_TYPES."""

    numbers: tuple[int, int, int, int] = (0, 1, 2, 3)


class CatalogModel(Struct, frozen=True):
    """An encoder of texts: two whose entries are equal but for who provided them give vectors that can be compared."""

    model: str
    dimensions: int
    analyser_version: int
    provider: str
    distribution: str

    def is_same(self, other: CatalogModel) -> bool:
        """Whether its vectors can be compared with those of another."""
        mine = self.model, self.dimensions, self.analyser_version
        return mine == (other.model, other.dimensions, other.analyser_version)


class Vectors(Struct, frozen=True):
    """Of which models there are vectors: the numbers of their entries, 0 for none.

    Search goes by those of ``model``; those of ``building`` are made beside them, and those of ``leaving`` removed.
    """

    model: int = 0
    building: int = 0
    leaving: tuple[int, ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """All models that an episode may have a vector of: whoever removes it removes them too."""
        return tuple(number for number in (self.model, self.building, *self.leaving) if number)


class _Tables(NamedTuple):
    codec: dict[int, Tag]
    serializer: dict[int, Tag]
    order: dict[int, CatalogOrder]
    model: dict[int, CatalogModel]


class Catalog:
    """The catalog of one open store, read once and whenever a tag is met that it does not know."""

    def __init__(
        self,
        backend: StorageBackend,
        half_lives_us: Mapping[MemoryType, int | None] | None = None,
        *,
        create: bool = True,
        header: Header | None = None,
    ) -> None:
        """Read it; where there is none, ``create`` one, with ``half_lives_us`` instead of the usual ones.

        ``header`` is that of a copy that is being made, which has none yet.
        """
        self._backend = backend
        self._lock = threading.Lock()
        self._entries: dict[bytes, bytes] = {}
        self.wanted: tuple[int, int, int, int] = WantedOrders().numbers
        """The number of the order that each memory type shall be in; where others are in force, see the heads."""
        self.vectors = Vectors()
        """Of which models there are vectors."""
        header = header or self._read_header()
        if header is None and not create:
            raise NotFoundError("there is no store here", remedy="check where it is; open_store() makes one")
        self.header = header or self._create(half_lives_us or {})
        self._tables = self._read()

    @property
    def orders(self) -> dict[int, CatalogOrder]:
        """Every decay order there is, by its number."""
        return self._tables.order

    def order(self, number: int) -> CatalogOrder:
        """The order with a number that a head names."""
        if number not in self._tables.order:
            with self._lock:
                self._tables = self._read()
        try:
            return self._tables.order[number]
        except KeyError:
            raise CorruptRecordError(f"decay order {number} is not in the catalog of this store") from None

    def want(self, half_lives_us: Mapping[MemoryType, int | None]) -> None:
        """Let the memory types named have these half-lives from now on, in orders that are made where there are none.

        Which are in force follows agent by agent: see memory/reindexing.py.
        """
        with self._lock:
            while True:
                numbers, operations, expects = list(self.wanted), [], []
                last = max(self._tables.order, default=-1)
                for position, memory_type in enumerate(MEMORY_TYPES):
                    if memory_type not in half_lives_us:
                        continue
                    order = CatalogOrder(memory_type, half_lives_us[memory_type])
                    if self._tables.order.get(numbers[position]) == order:
                        continue
                    known = [number for number, each in self._tables.order.items() if each == order]
                    if not known:
                        last += 1
                        if last > _ORDER_MAX:
                            raise StorageError(
                                f"the catalog is full: {_ORDER_MAX + 1} half-lives were used in this store",
                                remedy="give one that was used before",
                            )
                        puts, missing = _new_entry(f"order/{last}", order)
                        operations += puts
                        expects += missing
                    numbers[position] = known[0] if known else last
                if tuple(numbers) == self.wanted:
                    return
                key, value = _encode(_WANTED, WantedOrders((numbers[0], numbers[1], numbers[2], numbers[3])))
                batch = WriteBatch([*operations, Put(key, value)], [*expects, Expect(key, self._entries.get(key))])
                # A conflict: another process wants something else at the same time.
                with suppress(ConflictError):
                    patiently(partial(self._backend.write, batch))
                    self._backend.sync()
                self._tables = self._read()

    def model(self, number: int) -> CatalogModel:
        """The model with a number that :attr:`vectors` has."""
        try:
            return self._tables.model[number]
        except KeyError:
            raise CorruptRecordError(f"model {number} is not in the catalog of this store") from None

    def model_number(self, model: CatalogModel) -> int:
        """The number of a model, made if this is its first use in this store."""
        with self._lock:
            while True:
                for number, known in self._tables.model.items():
                    if known.is_same(model):
                        return number
                number = max(self._tables.model, default=0) + 1
                if number > _MODEL_MAX:
                    raise StorageError(f"the catalog is full: {_MODEL_MAX} models were used in this store")
                # A conflict: another process made this number meanwhile, perhaps for the same model.
                with suppress(ConflictError):
                    patiently(partial(self._backend.write, WriteBatch(*_new_entry(f"model/{number}", model))))
                self._tables = self._read()

    def read_vectors(self) -> Vectors:
        """Of which models there are vectors now, on an engine that others write to as well."""
        key = catalog_key(_VECTORS)
        value = self._backend.get(key)
        if value is not None and value != self._entries.get(key):
            with self._lock:
                self._tables = self._read()
        return self.vectors

    def expect_vectors(self) -> Expect:
        """That :attr:`vectors` still holds: for a batch that writes any."""
        key = catalog_key(_VECTORS)
        return Expect(key, self._entries.get(key))

    def keep_vectors(self, vectors: Vectors) -> None:
        """Say in one key which vectors there are from now on; ConflictError where another process said otherwise."""
        with self._lock:
            key, value = _encode(_VECTORS, vectors)
            if vectors != self.vectors:
                try:
                    batch = WriteBatch([Put(key, value)], [Expect(key, self._entries.get(key))])
                    patiently(partial(self._backend.write, batch))
                    self._backend.sync()
                finally:
                    self._tables = self._read()

    def codec(self, tag: int) -> Tag:
        """The codec behind a record's tag."""
        return self._known("codec", tag)

    def serializer(self, tag: int) -> Tag:
        """The serializer behind a record's tag."""
        return self._known("serializer", tag)

    def tag_of(self, family: str, name: str, distribution: str) -> int:
        """The tag of the codec or serializer ``name``, made if this is its first use in this store."""
        with self._lock:
            while True:
                table = self._table(family)
                for tag, known in table.items():
                    if known.name == name:
                        return tag
                tag = max(table, default=0) + 1
                if tag > _TAG_MAX:
                    raise StorageError(f"the catalog is full: {_TAG_MAX} {family}s were used in this store")
                # A conflict: another process made this tag meanwhile, perhaps for the same name.
                with suppress(ConflictError):
                    entry = WriteBatch(*_new_entry(f"{family}/{tag}", Tag(name, distribution)))
                    patiently(partial(self._backend.write, entry))
                self._tables = self._read()

    def _known(self, family: str, tag: int) -> Tag:
        known = self._table(family).get(tag)
        if known is None:
            with self._lock:
                self._tables = self._read()
            known = self._table(family).get(tag)
        if known is None:
            raise CorruptRecordError(f"{family} tag {tag} is not in the catalog of this store")
        return known

    def _table(self, family: str) -> dict[int, Tag]:
        return self._tables.codec if family == "codec" else self._tables.serializer

    def _read_header(self) -> Header | None:
        key = catalog_key(_HEADER)
        value = self._backend.get(key)
        if value is None:
            if next(self._backend.scan(), None) is None:
                return None
            # Looked for in this order: another process may just be making the store, or finishing a copy.
            copy = find_copy(self._backend.get)
            value = self._backend.get(key)
        if value is None:
            if copy is not None:
                raise UnfinishedCopyError(
                    f"this is no store yet: of a copy of {copy.origin}, {copy.rows:,} rows are here",
                    remedy="run qilbee copy again, with the same two places, to finish it; or remove what is here "
                    "(see docs/operations.md)",
                )
            raise FormatVersionError(
                "the database holds records but no header: it is not a store of ours, or its header was lost",
                remedy="open another directory, or restore a copy",
            )
        header = _decode(key, value, Header)
        if header.readable_by > LAYOUT_VERSION or header.format != _FORMAT:
            raise FormatVersionError(
                f"the store has layout {header.layout}, readable from {header.readable_by}; "
                f"this release knows {LAYOUT_VERSION}",
                remedy="upgrade qilbee-core",
            )
        return header

    def _create(self, half_lives_us: Mapping[MemoryType, int | None]) -> Header:
        header = Header(
            layout=LAYOUT_VERSION,
            readable_by=LAYOUT_VERSION,
            envelope=ENVELOPE_VERSION,
            schema=SCHEMA_VERSION,
            store_id=uuid.uuid4().hex,
            created_us=now_us(),
        )
        operations, expects = _new_entry(_HEADER, header)
        for number, memory_type in enumerate(MEMORY_TYPES):
            half_life_us = half_lives_us.get(memory_type, _HALF_LIFE_US[memory_type])
            puts, missing = _new_entry(f"order/{number}", CatalogOrder(memory_type, half_life_us))
            operations += puts
            expects += missing
        operations.append(Put(*_encode(_WANTED, WantedOrders())))
        expects.append(Expect(catalog_key(_COPY), None))  # or another process has begun to copy a store to here
        # A conflict: another process created the store meanwhile, and its header counts.
        with suppress(ConflictError):
            patiently(partial(self._backend.write, WriteBatch(operations, expects)))
        self._backend.sync()
        created = self._read_header()
        if created is None:
            raise StorageError("the header of the new store cannot be read back")
        return created

    def _read(self) -> _Tables:
        tables = _Tables({}, {}, {}, {})
        entries: dict[bytes, bytes] = {}
        for key, value in self._backend.scan(*range_of(bytes((Space.CATALOG,)))):
            name = key[1:].decode("utf-8", "replace")
            family, _, digits = name.partition("/")
            if family in tables._fields:
                if not _NUMBER.fullmatch(digits):
                    raise CorruptRecordError(f"catalog entry {name!r} has no number")
                number = int(digits)
                if family == "order":
                    tables.order[number] = _decode(key, value, CatalogOrder)
                elif family == "model":
                    tables.model[number] = _decode(key, value, CatalogModel)
                elif family == "codec":
                    tables.codec[number] = _decode(key, value, Tag)
                else:
                    tables.serializer[number] = _decode(key, value, Tag)
            elif name == _WANTED:
                self.wanted = _decode(key, value, WantedOrders).numbers
                entries[key] = value  # this one changes
                continue
            elif name == _VECTORS:
                self.vectors = _decode(key, value, Vectors)
                entries[key] = value  # and so does this one
                continue
            elif name not in (_HEADER, _COPY):
                continue
            entries[key] = self._entries.get(key, value)  # what it was opened with
        self._entries = entries
        return tables

    def entries(self) -> dict[bytes, bytes]:
        """Every entry in use, as it was read: what verify() compares with and repair() puts back."""
        return dict(self._entries)


def find_copy(get: Callable[[bytes], bytes | None]) -> UnfinishedCopy | None:
    """What ``get`` reads of a copy that is not finished; None where there is none."""
    key = catalog_key(_COPY)
    value = get(key)
    return None if value is None else _decode(key, value, UnfinishedCopy)


def encode_copy(copy: UnfinishedCopy) -> tuple[bytes, bytes]:
    """Key and value of the entry that says so."""
    return _encode(_COPY, copy)


def encode_header(header: Header) -> tuple[bytes, bytes]:
    """Key and value of a header."""
    return _encode(_HEADER, header)


def find_store_id(get: Callable[[bytes], bytes | None]) -> str | None:
    """The id of the store that ``get`` reads from; None where there is no header."""
    key = catalog_key(_HEADER)
    value = get(key)
    return None if value is None else _decode(key, value, Header).store_id


def _encode(name: str, entry: Struct) -> tuple[bytes, bytes]:
    key = catalog_key(name)
    return key, frame(key, msgspec.json.encode(entry))


def _new_entry(name: str, entry: Struct) -> tuple[list[Put], list[Expect]]:
    key, value = _encode(name, entry)
    return [Put(key, value)], [Expect(key, None)]


def _decode(key: bytes, value: bytes, kind: type[T]) -> T:
    payload = unframe(key, value)
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptRecordError(f"catalog entry {key[1:]!r} cannot be read: {error}") from error
