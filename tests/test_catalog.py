"""The catalog: what a store says about itself, agreed upon by all who open it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread

import msgspec
import pytest

from qilbee_core import (
    BackendOptions,
    CorruptRecordError,
    Delete,
    FormatVersionError,
    NotFoundError,
    Put,
    StorageBackend,
    StorageError,
    UnfinishedCopyError,
    WriteBatch,
)
from qilbee_core.backends.ephemeral import EphemeralBackend
from qilbee_core.catalog import LAYOUT_VERSION, Catalog, Tag, UnfinishedCopy, encode_copy, encode_header
from qilbee_core.envelope import frame, unframe
from qilbee_core.keys import catalog_key


@pytest.fixture
def backend() -> Iterator[EphemeralBackend]:
    opened = EphemeralBackend(BackendOptions(path=Path("unused")))
    yield opened
    opened.close()


def put(backend: StorageBackend, name: str, payload: bytes) -> None:
    """Write an entry behind the catalog's back."""
    key = catalog_key(name)
    backend.write(WriteBatch([Put(key, frame(key, payload))]))


def put_header(backend: StorageBackend, **changes: object) -> None:
    fields = {
        "format": "qilbee-store",
        "layout": LAYOUT_VERSION,
        "readable_by": LAYOUT_VERSION,
        "envelope": 1,
        "schema": 1,
        "store_id": "0123456789abcdef",
        "created_us": 1_772_000_000_000_000,
    }
    put(backend, "header", msgspec.json.encode(fields | changes))


class Racing(EphemeralBackend):
    """Somebody else does something just after it was looked for a header for the first time."""

    def __init__(self, others: Callable[[EphemeralBackend], object]) -> None:
        super().__init__(BackendOptions(path=Path("unused")))
        self._others: Callable[[EphemeralBackend], object] | None = others

    def get(self, key: bytes) -> bytes | None:
        value = super().get(key)
        others, self._others = self._others, None
        if others is not None:
            others(self)
        return value


def test_a_store_that_another_process_makes_at_the_same_moment_is_opened() -> None:
    backend = Racing(Catalog)
    assert Catalog(backend).header == Catalog(backend).header


def test_a_copy_that_another_process_begins_or_finishes_at_the_same_moment_is_seen() -> None:
    header = Catalog(EphemeralBackend(BackendOptions(path=Path("unused")))).header
    begun = Put(*encode_copy(UnfinishedCopy(source="0123", origin="there", header=header)))
    with pytest.raises(UnfinishedCopyError, match="a copy of there"):
        Catalog(Racing(lambda backend: backend.write(WriteBatch([begun]))))

    def finish(backend: EphemeralBackend) -> None:
        backend.write(WriteBatch([Put(*encode_header(header)), Delete(begun.key)]))

    backend = Racing(finish)
    backend.write(WriteBatch([begun]))
    assert Catalog(backend).header == header


def test_a_catalog_that_is_not_there_is_made_only_if_it_may_be(backend: EphemeralBackend) -> None:
    with pytest.raises(NotFoundError, match=r"there is no store here: .* open_store\(\) makes one"):
        Catalog(backend, create=False)
    assert list(backend.scan()) == []
    made = Catalog(backend)
    assert Catalog(backend, create=False).header == made.header


class Counting(EphemeralBackend):
    """Counts scans, and does something before the next write: another process is quicker."""

    def __init__(self) -> None:
        super().__init__(BackendOptions(path=Path("unused")))
        self.scans = 0
        self.before_write: list[Callable[[], object]] = []

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self.scans += 1
        return super().scan(start, stop, reverse=reverse)

    def write(self, batch: WriteBatch) -> None:
        if self.before_write:
            self.before_write.pop()()
        super().write(batch)


def test_a_new_store_says_what_it_is_and_says_the_same_ever_after(backend: EphemeralBackend) -> None:
    made = Catalog(backend)
    assert (made.header.format, made.header.layout, made.header.readable_by) == ("qilbee-store", 1, 1)
    assert [order.memory_type for _, order in sorted(made.orders.items())] == [
        "episodic",
        "semantic",
        "procedural",
        "factual",
    ]
    again = Catalog(backend)
    assert (again.header, again.orders) == (made.header, made.orders)


def test_two_stores_are_never_the_same() -> None:
    ids = {Catalog(EphemeralBackend(BackendOptions(path=Path("unused")))).header.store_id for _ in range(100)}
    assert len(ids) == 100


def test_an_entry_can_be_read_by_eye(backend: EphemeralBackend) -> None:
    Catalog(backend).tag_of("codec", "zstd", "qilbee-core")
    key = catalog_key("codec/1")
    value = backend.get(key)
    assert value is not None
    assert unframe(key, value) == b'{"name":"zstd","distribution":"qilbee-core"}'


def test_of_two_who_make_the_store_at_once_both_use_what_was_there_first() -> None:
    backend = Counting()
    other: list[Catalog] = []
    backend.before_write.append(lambda: other.append(Catalog(backend)))
    mine = Catalog(backend)
    assert mine.header == other[0].header
    assert Catalog(backend).header == mine.header


def test_a_name_has_one_tag_for_ever(backend: EphemeralBackend) -> None:
    catalog = Catalog(backend)
    tags = [catalog.tag_of("codec", name, "acme") for name in ("lz4", "zstd", "lz4", "acme.fast", "zstd")]
    assert tags == [1, 2, 1, 3, 2]
    assert catalog.tag_of("serializer", "lz4", "acme") == 1  # another family
    again = Catalog(backend)
    assert [again.tag_of("codec", name, "other") for name in ("acme.fast", "lz4", "zstd")] == [3, 1, 2]
    assert again.codec(3) == Tag("acme.fast", "acme")


def test_of_two_who_tag_the_same_name_at_once_both_get_the_same_tag() -> None:
    backend = Counting()
    mine, other = Catalog(backend), Catalog(backend)
    theirs: list[int] = []
    backend.before_write.append(lambda: theirs.append(other.tag_of("codec", "lz4", "qilbee-core")))
    assert mine.tag_of("codec", "lz4", "qilbee-core") == theirs[0] == 1
    assert mine.codec(1) == other.codec(1) == Tag("lz4", "qilbee-core")


def test_of_two_who_tag_different_names_at_once_each_gets_his_own_and_both_know_both() -> None:
    backend = Counting()
    mine, other = Catalog(backend), Catalog(backend)
    theirs: list[int] = []
    backend.before_write.append(lambda: theirs.append(other.tag_of("codec", "lz4", "qilbee-core")))
    assert mine.tag_of("codec", "zstd", "qilbee-core") == 2
    assert theirs == [1]
    for catalog in (mine, other):
        assert (catalog.codec(1).name, catalog.codec(2).name) == ("lz4", "zstd")


def test_many_catalogs_that_tag_at_once_agree(backend: EphemeralBackend) -> None:
    catalogs = [Catalog(backend) for _ in range(6)]
    names = [f"acme.{number}" for number in range(8)]
    found: list[dict[str, int]] = []
    barrier = Barrier(len(catalogs))

    def make(catalog: Catalog, offset: int) -> None:
        barrier.wait()
        turned = names[offset:] + names[:offset]
        found.append({name: catalog.tag_of("codec", name, "acme") for name in turned})

    threads = [Thread(target=make, args=(catalog, offset)) for offset, catalog in enumerate(catalogs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(catalogs)
    assert all(tags == found[0] for tags in found)
    assert sorted(found[0].values()) == list(range(1, 9))


def test_an_unknown_tag_reads_the_catalog_once_more_and_then_is_an_error() -> None:
    backend = Counting()
    catalog = Catalog(backend)
    before = backend.scans
    with pytest.raises(CorruptRecordError, match="codec tag 9 is not in the catalog"):
        catalog.codec(9)
    assert backend.scans == before + 1


def test_a_tag_that_another_process_made_meanwhile_is_found() -> None:
    backend = Counting()
    mine, other = Catalog(backend), Catalog(backend)
    tag = other.tag_of("serializer", "acme.cbor", "acme")
    before = backend.scans
    assert mine.serializer(tag).name == "acme.cbor"
    assert mine.serializer(tag).name == "acme.cbor"
    assert backend.scans == before + 1


def test_a_catalog_with_255_codecs_takes_no_other_and_says_so(backend: EphemeralBackend) -> None:
    catalog = Catalog(backend)
    assert [catalog.tag_of("codec", f"acme.{number}", "acme") for number in range(255)] == list(range(1, 256))
    with pytest.raises(StorageError, match="255 codecs"):
        catalog.tag_of("codec", "acme.255", "acme")
    assert catalog.tag_of("codec", "acme.254", "acme") == 255


def test_a_layout_that_this_release_may_not_read_is_refused(backend: EphemeralBackend) -> None:
    put_header(backend, layout=3, readable_by=2)
    with pytest.raises(FormatVersionError, match=r"layout 3, readable from 2; this release knows 1.*upgrade"):
        Catalog(backend)


def test_a_newer_layout_that_this_release_may_read_opens(backend: EphemeralBackend) -> None:
    Catalog(backend)
    put_header(backend, layout=2, readable_by=1, envelope=2, schema=5, later="whatever")
    catalog = Catalog(backend)
    assert catalog.header.layout == 2
    assert catalog.tag_of("codec", "lz4", "qilbee-core") == 1


def test_a_header_of_another_format_is_refused(backend: EphemeralBackend) -> None:
    put_header(backend, format="acme-store")
    with pytest.raises(FormatVersionError):
        Catalog(backend)


def test_a_database_with_keys_and_no_header_is_refused_and_left_alone(backend: EphemeralBackend) -> None:
    backend.write(WriteBatch([Put(b"foreign", b"")]))
    with pytest.raises(FormatVersionError, match="no header"):
        Catalog(backend)
    assert list(backend.scan()) == [(b"foreign", b"")]


@pytest.mark.parametrize("name", ["header", "codec/1", "order/0"])
def test_every_flipped_bit_of_an_entry_is_noticed_at_open(backend: EphemeralBackend, name: str) -> None:
    Catalog(backend).tag_of("codec", "lz4", "qilbee-core")
    key = catalog_key(name)
    value = backend.get(key)
    assert value is not None
    for bit in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << bit % 8
        backend.write(WriteBatch([Put(key, bytes(flipped))]))
        with pytest.raises(CorruptRecordError):
            Catalog(backend)


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"null", b'{"name":7}', b'{"name":"\xff","distribution":""}'])
def test_an_entry_that_is_no_json_of_its_kind_is_corrupt(backend: EphemeralBackend, payload: bytes) -> None:
    Catalog(backend)
    put(backend, "codec/1", payload)
    with pytest.raises(CorruptRecordError, match="codec/1"):
        Catalog(backend)


@pytest.mark.parametrize("name", ["codec/x", "codec/", "codec", "order/1.5", "serializer/0x1"])
def test_an_entry_whose_number_is_none_is_corrupt(backend: EphemeralBackend, name: str) -> None:
    Catalog(backend)
    put(backend, name, b'{"name":"lz4","distribution":"qilbee-core","memory_type":"episodic","half_life_us":null}')
    with pytest.raises(CorruptRecordError):
        Catalog(backend)


def test_an_entry_of_a_kind_that_this_release_does_not_know_is_passed_over(backend: EphemeralBackend) -> None:
    made = Catalog(backend)
    put(backend, "embedder/1", b'{"name":"acme"}')
    assert Catalog(backend).entries() == made.entries()


def test_of_several_orders_for_one_memory_type_all_are_known(backend: EphemeralBackend) -> None:
    Catalog(backend)
    put(backend, "order/4", b'{"memory_type":"episodic","half_life_us":3600000000}')
    assert sorted(Catalog(backend).orders) == [0, 1, 2, 3, 4]


def test_the_entries_to_put_back_are_the_bytes_that_are_stored(backend: EphemeralBackend) -> None:
    catalog = Catalog(backend)
    catalog.tag_of("codec", "lz4", "qilbee-core")
    catalog.tag_of("serializer", "msgpack", "qilbee-core")
    assert catalog.entries() == dict(backend.scan())


def test_the_entries_to_put_back_keep_what_a_newer_release_added_to_them(backend: EphemeralBackend) -> None:
    Catalog(backend)
    put_header(backend, layout=2, readable_by=1, later="whatever")
    put(backend, "codec/1", b'{"name":"lz4","distribution":"qilbee-core","later":7}')
    assert Catalog(backend).entries() == dict(backend.scan())
