"""How a RocksDB database that was not closed may be opened, found out without changing it.

RocksDB's recovery modes each get one case wrong. ``point_in_time``, its default, opens with everything behind a damaged
record silently dropped. ``tolerate_corrupted_tail_records`` refuses that, but it also refuses the end of a log that a
power cut left full of zeros, which nobody was promised. Which of the two it is, only the store can tell, from the last
operation that it knows to be durable. To open the database for reading shows what would be there, and writes nothing.

And one flipped bit can keep RocksDB busy for ever, in every mode: that which makes the kind of a record one of a
recycled log. So the kinds are looked at first. Logs and manifests are rows of blocks of 32 KiB, and a block is a row of
records, none of which crosses its end::

    4 bytes  masked crc32c of kind and payload, little endian as everything here
    2 bytes  length of the payload
    1 byte   kind
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rocksdict import AccessType, DBRecoveryMode, Rdict

from qilbee_core.backends._rocksdb_options import EngineSettings, rocksdb_options
from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import BackendOptions

__all__ = ["recovery_mode"]

log = logging.getLogger(__name__)

_BLOCK_BYTES = 32 << 10
_HEADER_BYTES = 7
_RECYCLED_KINDS = frozenset({5, 6, 7, 8, 11})
_NO_KIND = b"\xff"  # a record of this kind is damaged, and RocksDB says so


def recovery_mode(directory: Path, options: BackendOptions, settings: EngineSettings) -> DBRecoveryMode:
    """The mode to open ``directory`` with, or LostWritesError, or CorruptRecordError. Nothing is changed then."""
    tolerant = DBRecoveryMode.tolerate_corrupted_tail_records()
    may_open = options.may_open
    if not (directory / "CURRENT").exists():
        # RocksDB would take it for a new database, and delete the files of the old one.
        left = sorted(path.name for path in directory.iterdir() if path.suffix in {".sst", ".log"})
        if left:
            raise CorruptRecordError(f"{directory} lacks its file CURRENT, and has {left[0]}", remedy="restore a copy")
        if may_open is not None:
            may_open(0, lambda _: None, damaged=False)
        return tolerant
    current = (directory / "CURRENT").read_bytes()
    manifests = [path for path in directory.glob("MANIFEST-*") if path.name.encode() == current.strip()]
    if any(True for path in manifests for _ in _recycled(path)):
        raise CorruptRecordError(f"the manifest of {directory} is damaged", remedy="restore a copy")
    traps = [(path, at) for path in directory.glob("*.log") for at in _recycled(path)]
    if traps and (may_open is None or options.read_only):
        raise CorruptRecordError(f"the log of {directory} is damaged")
    if may_open is None:
        return tolerant
    damage: Exception | None = None
    with _disarmed_copy(directory, traps) if traps else nullcontext(directory) as shown:
        try:
            database = _open_to_read(shown, options, settings, tolerant)
        except Exception as error:
            if "Corruption" not in str(error):
                raise
            damage = error
            database = _open_to_read(shown, options, settings, DBRecoveryMode.point_in_time())
        try:
            sequence = database.latest_sequence_number()
            is_fine = may_open(sequence, database.get, damaged=damage is not None or bool(traps))
        finally:
            database.close()
    if damage is None and not traps:
        return tolerant
    if not is_fine:
        raise damage or CorruptRecordError(f"the log of {directory} is damaged")
    log.warning("%s: %s in the log; what follows operation %d is dropped", directory, damage or "damage", sequence)
    _disarm(traps)
    return DBRecoveryMode.point_in_time()


def _open_to_read(directory: Path, options: BackendOptions, settings: EngineSettings, mode: DBRecoveryMode) -> Rdict:
    engine = rocksdb_options(options, settings)
    engine.set_wal_recovery_mode(mode)
    return Rdict(str(directory), engine, column_families={"default": engine}, access_type=AccessType.read_only())


def _recycled(path: Path) -> Iterator[int]:
    """Where in a log or manifest a kind stands that says that its record is of a recycled log: we recycle none."""
    content = path.read_bytes()
    size, at = len(content), 0
    while at + _HEADER_BYTES <= size:
        room = _BLOCK_BYTES - at % _BLOCK_BYTES
        if room < _HEADER_BYTES:
            at += room
            continue
        kind = content[at + 6]
        if kind in _RECYCLED_KINDS:
            yield at + 6
        end = at + _HEADER_BYTES + (content[at + 4] | content[at + 5] << 8)
        # Where a length is damaged RocksDB goes on with the next block at most.
        at = end if kind and end <= at + room else at + room


def _disarm(traps: Sequence[tuple[Path, int]]) -> None:
    for path, at in traps:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(_NO_KIND)


@contextmanager
def _disarmed_copy(directory: Path, traps: Sequence[tuple[Path, int]]) -> Iterator[Path]:
    """A copy in which RocksDB sees the damage, to look at."""
    with tempfile.TemporaryDirectory(prefix="peek.", dir=directory.parent) as scratch:
        copy = Path(scratch)
        for file in directory.iterdir():
            try:
                if file.suffix != ".sst":
                    shutil.copyfile(file, copy / file.name)
                else:
                    (copy / file.name).hardlink_to(file)  # these never change
            except OSError:
                shutil.copyfile(file, copy / file.name)
        _disarm([(copy / path.name, at) for path, at in traps])
        yield copy
