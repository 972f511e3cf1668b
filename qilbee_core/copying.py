"""Copying a store to another place, and so to another engine: from one instant, row by row, to be gone on with.

A note of how far it has come is the first row of the copy, and moves in the same batch as the rows that it counts. The
header is put in its place by the last batch of all, when everything was compared and verified. So wherever a copy ends,
it is either a store or refused as none, and the next run knows where to go on.

What goes over as it is, and what is of the place and made anew, stands in docs/decisions/0011.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from qilbee_core.batch import Delete, Expect, Operation, Put, WriteBatch
from qilbee_core.catalog import Catalog, UnfinishedCopy, encode_copy, encode_header, find_copy
from qilbee_core.config import Settings, StorageSettings
from qilbee_core.durability import Durability
from qilbee_core.errors import (
    ConflictError,
    CorruptRecordError,
    DataError,
    InvalidError,
    NotFoundError,
    ProviderNotFoundError,
    QilbeeError,
    UnfinishedCopyError,
)
from qilbee_core.interfaces import Snapshot, StorageBackend
from qilbee_core.keys import AgentKeys, Space, catalog_key, parse, range_of
from qilbee_core.marker import directory_error
from qilbee_core.memory.commit import Context
from qilbee_core.memory.log import read_head
from qilbee_core.memory.verify import Problem, VerifyReport, verify
from qilbee_core.opening import open_backend, settings_of, value_codec
from qilbee_core.patience import patiently
from qilbee_core.plugins import Plugins, load_plugins
from qilbee_core.records import Records
from qilbee_core.watermark import Watermark

__all__ = ["CopyReport", "copy_store"]

log = logging.getLogger(__name__)

Row = tuple[bytes, bytes]
AnyOperation = TypeVar("AnyOperation", bound=Operation)
Progress = Callable[[str, int, int | None], object]

_BATCH_ROWS = 2000
_BATCH_BYTES = 4 << 20
_TOLD_ROWS = 1000
_INTERVAL_MS = 1000
_REMEDY = "name another destination, or remove what is there; nothing was changed"
_RECORDS = (Space.EPISODE, Space.HISTORY)
_APART = bytes((Space.CATALOG,)), bytes((Space.AGENT,))
_CATALOG, _HEADS = map(range_of, _APART)
_NOTE = catalog_key("copy")
_CHANGING = {catalog_key(name) for name in ("orders", "vectors")}


class CopyReport(Struct, frozen=True, kw_only=True):
    """What :func:`copy_store` has come to.

    ``rows`` of ``bytes`` are there beside the catalog and the heads of the agents; ``copied`` of them are of this run.
    ``problems`` are what ``verify()`` says of both stores: the source had them, and a copy mends nothing.
    """

    source: str
    target: str
    agents: int
    episodes: int
    rows: int
    bytes: int
    copied: int
    problems: list[Problem]


def copy_store(
    source: str | os.PathLike[str] | Settings,
    target: str | os.PathLike[str] | Settings,
    *,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    **overrides: object,
) -> CopyReport:
    """Copy a whole store to another directory or database, with whichever engine; both are closed afterwards.

    Memories with their ids and history, relevance, search, consolidations that can be undone, accounts: the copy is
    the same store at another place. It has an id of its own, and goes its own way from then on. ``overrides`` are keys
    of ``[storage]`` for the copy: ``backend``, ``compression_type`` and so on; records are compressed as these say.
    ``progress`` is called with what is being done, the rows that are done, and how many there are, where that is known.

    The source is held while it is copied; of one that several processes share, an instant is copied. Interrupted at any
    point, call it again: it goes on. Until it is complete, compared and verified, ``target`` is refused by
    ``open_store`` with UnfinishedCopyError.

    Raises NotFoundError where there is no source, StoreLockedError where one of the two is open elsewhere, InvalidError
    where the two are one or ``target`` holds another store, which is left alone, ConflictError where another process
    copies to there as well, CorruptRecordError where the copy is not what was written.

    >>> import tempfile
    >>> from qilbee_core import Episode, open_store
    >>> with tempfile.TemporaryDirectory() as here:
    ...     with open_store(f"{here}/old") as store:
    ...         _ = store.agent_memory("bot").store_episode(Episode.observation("bot", "a heron"))
    ...     report = copy_store(f"{here}/old", f"{here}/new", compression_type="zstd")
    ...     report.agents, report.episodes, report.problems
    (1, 1, [])
    """
    # A directory knows its engine; what is configured is about the copy.
    origin = source if isinstance(source, Settings) else settings_of(source, {"backend": None, "engine": {}})
    settings = settings_of(target, overrides)
    if plugins is None:
        plugins = load_plugins(disabled=settings.plugins.disabled)
    _check_places(origin.storage, settings.storage, plugins)
    with ExitStack() as opened:
        began_s = time.monotonic()
        backend, _ = open_backend(origin, plugins, create=False)
        opened.enter_context(closing(backend))
        catalog = Catalog(backend, create=False)
        read_from = _context(backend, catalog, plugins, "none")
        snapshot = opened.enter_context(closing(backend.snapshot()))
        copy, watermark = open_backend(settings, plugins)
        opened.enter_context(closing(copy))
        where = origin.storage.where, settings.storage.where
        report = _Copy(read_from, snapshot, copy, where, progress or (lambda *_: None)).run(
            value_codec(copy, settings), plugins, watermark
        )
    log.info("copied %s to %s in %.1f s", *where, time.monotonic() - began_s)
    return report


def _check_places(source: StorageSettings, target: StorageSettings, plugins: Plugins) -> None:
    for name in (source.backend, target.backend):
        if name is not None and not ((engine := plugins.backends.find(name)).directory or engine.schemes):
            raise InvalidError(
                f"the {name} backend keeps nothing when it is closed, so there is nothing to copy",
                remedy="name another engine",
            )
    if source.dsn is None and target.dsn is None:
        here, there = (_real(Path(each.data_path)) for each in (source, target))
        if here == there or here in there.parents:
            raise InvalidError(f"{target.where} is the source itself, or inside it", remedy="name another directory")


def _real(directory: Path) -> Path:
    try:
        return Path(os.path.realpath(directory))  # Path.resolve() has an error of its own for links in a circle
    except (OSError, UnicodeError) as error:
        raise directory_error(directory, error) from error


def _context(backend: StorageBackend, catalog: Catalog, plugins: Plugins, codec: str) -> Context:
    """What reads a store, with no thread that would change it."""
    records = Records(catalog, plugins, codec_name=codec, serializer_name=catalog.serializer(1).name)
    return Context(backend, catalog, records, Durability(backend, "async", _INTERVAL_MS), recent_cache_bytes=0)


class _Copy:
    """One run of a copy: the source as it was at an instant, and what is to become the same."""

    def __init__(
        self, source: Context, snapshot: Snapshot, backend: StorageBackend, where: tuple[str, str], progress: Progress
    ) -> None:
        self._source = source
        self._snapshot = snapshot
        self._backend = backend
        self._origin, self._target = where
        self._progress = progress
        self._records = source.records
        """What opens and seals the records of the copy, once its catalog is there."""
        self._noted: bytes | None = None
        """The note as it is stored."""
        self._total: int | None = None
        self._rows = self._bytes = 0
        """What the copy has, as of the last time that all of it was compared."""

    def run(self, codec: str, plugins: Plugins, watermark: Watermark | None) -> CopyReport:
        """Begin, or go on, or find that nothing is left to do."""
        unfinished = find_copy(self._backend.get)
        if unfinished is None and (catalog := self._catalog()) is not None:
            return self._there_already(catalog, plugins)
        self._note = self._begun() if unfinished is None else self._gone_on_with(unfinished)
        before = self._note.rows
        self._write_catalog()
        header = self._note.header
        self._records = _context(self._backend, Catalog(self._backend, header=header), plugins, codec).records
        self._count()
        self._copy_rows()
        copied = self._note.rows - before
        differing = self._write_all(self._changes_of_rows())
        if differing and unfinished is not None:  # the source has changed since an earlier run
            copied += differing
            differing = self._write_all(self._changes_of_rows())
        if differing:
            raise self._spoilt(f"{differing:,} rows of {self._target} were not what had been written there")
        self._write_all(self._changes_of_heads())
        # The catalog is read again: the note in it has moved.
        verified = self._verified(_context(self._backend, Catalog(self._backend, header=header), plugins, codec))
        self._finish(watermark)
        return self._report(verified, copied)

    # Where it begins

    def _catalog(self) -> Catalog | None:
        """That of the store which is there already; None where nothing is. Other things that are there raise."""
        try:
            return Catalog(self._backend, create=False)
        except NotFoundError:
            return None
        except UnfinishedCopyError as error:  # that was not there just now
            raise self._not_alone() from error

    def _begun(self) -> UnfinishedCopy:
        header = self._source.catalog.header
        note = UnfinishedCopy(
            source=header.store_id, origin=self._origin, header=replace(header, store_id=uuid.uuid4().hex)
        )
        _, value = encode_copy(note)
        header_key, _ = encode_header(header)
        self._commit(WriteBatch([Put(_NOTE, value)], [Expect(_NOTE, None), Expect(header_key, None)]))
        self._noted = value
        return note

    def _gone_on_with(self, note: UnfinishedCopy) -> UnfinishedCopy:
        if note.source != self._source.catalog.header.store_id:
            raise InvalidError(
                f"{self._target} holds an unfinished copy of another store, which was at {note.origin}", remedy=_REMEDY
            )
        self._noted = self._backend.get(_NOTE)
        return note

    def _there_already(self, catalog: Catalog, plugins: Plugins) -> CopyReport:
        """A store is there: this very copy, as it was when it was finished, or one to leave alone."""
        mine, theirs = self._source.catalog.header, catalog.header
        if mine.store_id == theirs.store_id:
            raise InvalidError(f"{self._origin} and {self._target} are one and the same store", remedy=_REMEDY)
        if mine.created_us != theirs.created_us:
            raise InvalidError(f"{self._target} holds another store", remedy=_REMEDY)
        context = _context(self._backend, catalog, plugins, "none")
        self._records = context.records
        self._count()
        changes = chain(self._changes_of_catalog(), self._changes_of_rows(), self._changes_of_heads())
        if next(changes, None) is not None:
            raise InvalidError(
                f"{self._target} is a copy of this store, and one of the two has changed since", remedy=_REMEDY
            )
        return self._report(self._verified(context), copied=0)

    # What differs

    def _changes_of_catalog(self) -> Iterator[Put]:
        """What the catalog of the copy lacks. It may know of more codecs: those that its own records are sealed by."""
        header_key, _ = encode_header(self._source.catalog.header)
        for key, value in self._snapshot.scan(*_CATALOG):
            if key != header_key and self._backend.get(key) != value:
                yield Put(key, value)

    def _changes_of_rows(self) -> Iterator[Operation]:
        """What makes all rows of the copy those of the source, but for the catalog and the heads."""
        self._rows = self._bytes = 0
        rows = _merged(_plain(self._snapshot.scan()), _plain(self._backend.scan()))
        for number, (key, mine, theirs) in enumerate(rows):
            if number % _TOLD_ROWS == 0:
                self._progress("comparing", number, self._total)
            if theirs is not None:
                self._rows += 1
                self._bytes += len(key) + len(theirs)
            if mine is None:
                yield Delete(key)
            elif theirs is None or not self._is_same(key, mine, theirs):
                yield Put(key, self._sealed(key, mine))

    def _changes_of_heads(self) -> Iterator[Operation]:
        """What makes the heads of the copy right, whose rows are there."""
        for key, mine, theirs in _merged(self._snapshot.scan(*_HEADS), self._backend.scan(*_HEADS)):
            if mine is None:
                yield Delete(key)
            elif (head := self._head(key, mine)) != theirs:
                yield Put(key, head)

    def _is_same(self, key: bytes, mine: bytes, theirs: bytes) -> bool:
        if mine == theirs:
            return True
        with suppress(DataError, ProviderNotFoundError):
            return key[0] in _RECORDS and self._records.body(key, mine) == self._records.body(key, theirs)
        return False

    def _sealed(self, key: bytes, value: bytes) -> bytes:
        """The value to write. A record is compressed as this place wants it; one that cannot be read stays as it is."""
        with suppress(DataError, ProviderNotFoundError):
            if key[:1] and key[0] in _RECORDS:
                return self._records.reseal(key, value)
        return value

    def _head(self, key: bytes, value: bytes) -> bytes:
        """A head that lags behind the log no more, for on a shared engine none may; of the records as they are here."""
        try:
            agent_id = parse(key).agent_id
        except DataError:
            return value  # no head, but a stranger
        assert agent_id is not None, "a family of agents"
        keys = AgentKeys(agent_id)
        try:
            head = read_head(self._snapshot, keys, value, self._source.records, self._source.orders_of)
        except DataError as error:
            raise CorruptRecordError(
                f"the head of agent {agent_id!r} is damaged ({error.message})",
                remedy="run qilbee repair on the source, and copy again",
            ) from error
        records = self._backend.scan(*keys.range(Space.EPISODE))
        head.record_bytes = sum(len(key) + len(record) for key, record in records)
        return head.encode(key)

    # What is written

    def _count(self) -> None:
        self._progress("counting", 0, None)
        self._total = sum(1 for _ in _plain(self._snapshot.scan()))

    def _write_catalog(self) -> None:
        changes = list(self._changes_of_catalog())
        for change in changes:
            if change.key not in _CHANGING and self._backend.get(change.key) is not None:
                raise ConflictError(
                    f"the source was written to with another codec since {self._target} was begun",
                    remedy="remove what is there, and copy again",
                )
        self._write(changes, self._note)

    def _copy_rows(self) -> None:
        start = bytes.fromhex(self._note.after) + b"\x00" if self._note.after else b""
        rows = (Put(key, self._sealed(key, value)) for key, value in _plain(self._snapshot.scan(start)))
        for batch in _batches(rows):
            note = self._note
            size = sum(len(put.key) + len(put.value) for put in batch)
            after = batch[-1].key.hex()
            self._write(batch, replace(note, rows=note.rows + len(batch), bytes=note.bytes + size, after=after))
            self._progress("copying", self._note.rows, self._total)

    def _write_all(self, changes: Iterable[Operation]) -> int:
        """Write them, and give how many there were."""
        count = 0
        for batch in _batches(changes):
            self._write(batch, self._note)
            count += len(batch)
        return count

    def _write(self, operations: Sequence[Operation], note: UnfinishedCopy) -> None:
        """Write, and note how far that is."""
        _, value = encode_copy(note)
        self._commit(WriteBatch([*operations, Put(_NOTE, value)], [Expect(_NOTE, self._noted)]))
        self._note, self._noted = note, value

    def _commit(self, batch: WriteBatch) -> None:
        try:
            patiently(partial(self._backend.write, batch))
        except ConflictError as error:
            raise self._not_alone() from error

    def _not_alone(self) -> ConflictError:
        return ConflictError(
            f"somebody else has written to {self._target} meanwhile",
            remedy="let one process alone copy to there, and run it again",
        )

    def _spoilt(self, message: str) -> QilbeeError:
        """Why the copy is not what it should be."""
        if self._backend.get(_NOTE) != self._noted:
            return self._not_alone()
        return CorruptRecordError(message, remedy="look at its disk; then remove what is there, and copy again")

    # Where it ends

    def _verified(self, context: Context) -> VerifyReport:
        """What verify() says of the copy, of which nothing may be the fault of copying."""
        self._progress("verifying", 0, None)
        report = verify(context)
        if not report.ok:
            known = {(problem.invariant, problem.key) for problem in verify(self._source).problems}
            new = [problem for problem in report.problems if (problem.invariant, problem.key) not in known]
            if new:
                raise self._spoilt(
                    f"{self._target} has {len(new):,} problems that its source has not, the first being "
                    f"{new[0].invariant}: {new[0].message}"
                )
        return report

    def _finish(self, watermark: Watermark | None) -> None:
        """Make it a store, in one batch, once all that it rests on is durable."""
        self._backend.sync()
        header = encode_header(self._note.header)
        self._commit(WriteBatch([Put(*header), Delete(_NOTE)], [Expect(_NOTE, self._noted)]))
        if watermark is not None:
            watermark.begin(self._note.header.store_id)
        Durability(self._backend, "async", _INTERVAL_MS, watermark).close()

    def _report(self, verified: VerifyReport, copied: int) -> CopyReport:
        return CopyReport(
            source=self._origin,
            target=self._target,
            agents=verified.agents,
            episodes=verified.episodes,
            rows=self._rows,
            bytes=self._bytes,
            copied=copied,
            problems=verified.problems,
        )


def _plain(rows: Iterable[Row]) -> Iterator[Row]:
    """All but those of the catalog and the heads, which are not copied as they are."""
    return (row for row in rows if row[0][:1] not in _APART)


def _merged(mine: Iterator[Row], theirs: Iterator[Row]) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Both in the order of their keys, with what each has under a key.

    >>> list(_merged(iter([(b"a", b"1"), (b"c", b"3")]), iter([(b"b", b"2"), (b"c", b"4")])))
    [(b'a', b'1', None), (b'b', None, b'2'), (b'c', b'3', b'4')]
    """
    left, right = next(mine, None), next(theirs, None)
    while left or right:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            yield left[0], left[1], None
            left = next(mine, None)
        elif left is None or right[0] < left[0]:
            yield right[0], None, right[1]
            right = next(theirs, None)
        else:
            yield left[0], left[1], right[1]
            left, right = next(mine, None), next(theirs, None)


def _batches(operations: Iterable[AnyOperation]) -> Iterator[list[AnyOperation]]:
    """As many at a time as one batch should have."""
    batch: list[AnyOperation] = []
    size = 0
    for operation in operations:
        batch.append(operation)
        size += len(operation.value) if isinstance(operation, Put) else 0
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
