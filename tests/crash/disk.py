"""What a disk holds after a power cut, for every moment of a program that ran under ``shim.c``.

The program runs once and its trace is kept; each cut is then made from the trace. A :class:`Disk` follows the trace
call by call and knows two things of every file and of every name: how it is, and how much of that was synced.

What a sync makes durable is a question of the file system, and answered in two ways:

``ext4``
    An fsync of a file makes its bytes durable, and with them every name made, moved or removed before it anywhere:
    all names are one journal, which is always written from its beginning. A file is not longer than what reached the
    disk of it (``data=ordered``, the default).
``strict``
    An fsync of a file makes its bytes durable and no name, not even its own. A name needs an fsync of its directory.
    This is all that POSIX says. A file may be longer than what reached the disk of it, and end in zeros or noise.

What else there is after the cut is chosen by the mode:

``drop``
    Nothing that was not synced.
``torn``
    Of the names that were not synced a random beginning; of the writes of each file, each file for itself, a random
    beginning, and of the next one a part.
``keep``
    Everything: what the death of the process alone leaves.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

__all__ = ["Cut", "Disk", "Mode", "Record", "Semantics", "cuts", "read_trace"]

Semantics = Literal["ext4", "strict"]
Mode = Literal["drop", "torn", "keep"]

_RECORD = struct.Struct("<QQIIIc3x")
_ROOT = 0


class Record(NamedTuple):
    """One call of the traced program; ``shim.c`` says what the letters mean."""

    operation: str
    time_ns: int
    offset: int
    file: int
    name: str
    data: bytes


def read_trace(path: Path) -> Iterator[Record]:
    """The records of a trace. A last one that the death of the program cut short is left out."""
    content = path.read_bytes()
    at = 0
    while at + _RECORD.size <= len(content):
        time_ns, offset, file, name_bytes, data_bytes, operation = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        end = at + name_bytes + data_bytes
        if end > len(content):
            return
        name = content[at : at + name_bytes].decode()
        yield Record(operation.decode(), time_ns, offset, file, name, content[at + name_bytes : end])
        at = end


class _Change(NamedTuple):
    """A write (``data`` at ``offset``), or where ``data`` is None a new size."""

    offset: int
    data: bytes | None

    def to(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
        else:
            content.extend(bytes(max(0, self.offset - len(content))))
            content[self.offset : self.offset + len(self.data)] = self.data


class _File:
    """The bytes of a file: as they are, as they were last synced, and what was done to them since."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.pending: list[_Change] = []
        self.changes_durable = 0

    def change(self, change: _Change) -> None:
        change.to(self.content)
        self.pending.append(change)

    @property
    def changes(self) -> int:
        return self.changes_durable + len(self.pending)

    def synced(self, changes: int) -> None:
        """Take the first ``changes`` of all that was ever done to it for durable."""
        count = max(0, changes - self.changes_durable)
        for change in self.pending[:count]:
            change.to(self.durable)
        del self.pending[:count]
        self.changes_durable += count

    def torn(self, random: Random, *, with_noise: bool) -> bytes:
        content = bytearray(self.durable)
        count = random.randint(0, len(self.pending))
        for change in self.pending[:count]:
            change.to(content)
        if count < len(self.pending):
            offset, data = self.pending[count]
            if data:
                kept = data[: random.randrange(len(data))]
                lost = len(data) - len(kept)
                ends = [b"", bytes(lost), random.randbytes(lost)] if with_noise else [b""]
                _Change(offset, kept + random.choice(ends)).to(content)
        return bytes(content)


class _Naming(NamedTuple):
    """A name is given (no ``source``), moved, or taken away (no ``target``): number of the directory, and its text."""

    inode: int
    source: tuple[int, str] | None
    target: tuple[int, str] | None

    def to(self, tree: dict[int, dict[str, int]]) -> None:
        if self.source is not None:
            directory, name = self.source
            if tree.get(directory, {}).get(name) == self.inode:
                del tree[directory][name]
        if self.target is not None:
            directory, name = self.target
            tree.setdefault(directory, {})[name] = self.inode

    def is_in(self, directory: int) -> bool:
        return directory in {place[0] for place in (self.source, self.target) if place is not None}


class Disk:
    """A directory as a trace makes it, and what of it would be there if the power went now.

    ``lies`` says of a file's name whether its syncs do nothing, though they say they did.
    """

    def __init__(self, semantics: Semantics, lies: Callable[[str], bool] = lambda _: False) -> None:
        self._semantics = semantics
        self._lies = lies
        self._inodes = 1
        self._files: dict[int, _File] = {}
        self._directories = {_ROOT}
        self._tree: dict[int, dict[str, int]] = {_ROOT: {}}
        self._durable_tree: dict[int, dict[str, int]] = {_ROOT: {}}
        self._pending_names: list[_Naming] = []
        self._opened: dict[int, int | None] = {}
        self._names: dict[int, str] = {}
        self._syncing: dict[int, tuple[int, list[_Naming]]] = {}
        """By the number of a sync under way: how many changes of its file, and which names, it makes durable."""

    # Following the trace

    def apply(self, record: Record) -> None:
        """Do what the traced program did."""
        match record.operation:
            case "c" | "o":
                self._open(record)
            case "w" | "t":
                inode = self._opened[record.file]
                if inode in self._files:
                    data = record.data if record.operation == "w" else None
                    self._files[inode].change(_Change(record.offset, data))
            case "s":
                self._sync_begins(record)
            case "S":
                self._sync_ends(record)
            case "m":
                inode = self._new_inode()
                self._directories.add(inode)
                self._name(_Naming(inode, None, self._place(record.name)))
            case "u" | "d" | "r" | "k":
                self._move(record)

    def _open(self, record: Record) -> None:
        inode = self._find(record.name)
        if inode is None and record.operation == "c":
            inode = self._new_inode()
            self._files[inode] = _File()
            self._name(_Naming(inode, None, self._place(record.name)))
        self._opened[record.file] = inode
        self._names[record.file] = record.name

    def _move(self, record: Record) -> None:
        inode = self._find(record.name)
        if inode is None:
            return  # made by stdio, which is not traced
        old = None if record.operation == "k" else self._place(record.name)
        new = self._place(record.data.decode()) if record.operation in "rk" else None
        self._name(_Naming(inode, old, new))

    def _new_inode(self) -> int:
        self._inodes += 1
        return self._inodes

    def _name(self, naming: _Naming) -> None:
        naming.to(self._tree)
        self._pending_names.append(naming)

    def _find(self, path: str) -> int | None:
        inode: int | None = _ROOT
        for part in Path(path).parts:
            inode = self._tree.get(-1 if inode is None else inode, {}).get(part)
        return inode

    def _place(self, path: str) -> tuple[int, str]:
        parent = self._find(str(Path(path).parent))
        assert parent is not None, f"the directory of {path} is not in the trace"
        return parent, Path(path).name

    def _sync_begins(self, record: Record) -> None:
        inode = self._opened[record.file]
        file = self._files.get(-1 if inode is None else inode)
        names = [
            naming
            for naming in self._pending_names
            if self._semantics == "ext4" or (inode in self._directories and naming.is_in(inode or _ROOT))
        ]
        self._syncing[record.offset] = file.changes if file is not None else 0, names

    def _sync_ends(self, record: Record) -> None:
        changes, names = self._syncing.pop(record.offset)
        if self._lies(self._names[record.file]):
            return
        file = self._files.get(self._opened[record.file] or _ROOT)
        if file is not None:
            file.synced(changes)
        for naming in names:
            if naming in self._pending_names:
                naming.to(self._durable_tree)
                self._pending_names.remove(naming)

    # After the cut

    def left(self, mode: Mode, seed: object = 0) -> dict[str, bytes | None]:
        """What there is after a power cut: path -> bytes, or None for a directory. ``seed`` draws what is torn."""
        random = Random(f"{seed}")
        tree = self._tree
        if mode != "keep":
            tree = {inode: dict(entries) for inode, entries in self._durable_tree.items()}
            if mode == "torn":
                for naming in self._pending_names[: random.randint(0, len(self._pending_names))]:
                    naming.to(tree)
        found: dict[str, bytes | None] = {}
        self._collect(tree, _ROOT, "", mode, random, found)
        return found

    def _collect(
        self,
        tree: dict[int, dict[str, int]],
        directory: int,
        path: str,
        mode: Mode,
        random: Random,
        found: dict[str, bytes | None],
    ) -> None:
        for name, inode in sorted(tree.get(directory, {}).items()):
            if inode in self._directories:
                found[path + name] = None
                self._collect(tree, inode, f"{path}{name}/", mode, random, found)
                continue
            file = self._files[inode]
            if mode == "torn":
                found[path + name] = file.torn(random, with_noise=self._semantics == "strict")
            else:
                found[path + name] = bytes(file.content if mode == "keep" else file.durable)


class Cut(NamedTuple):
    """A power cut just before call ``number`` of a trace, and what was in the ledger by then."""

    number: int
    time_ns: int
    ledger: bytes
    left: dict[str, bytes | None]
    digest: bytes
    """The same for cuts that leave the same."""

    def restore(self, directory: Path) -> None:
        """Make ``directory`` what is left."""
        directory.mkdir()
        for path, content in self.left.items():
            if content is None:
                (directory / path).mkdir()
            else:
                (directory / path).write_bytes(content)


def _digest(left: dict[str, bytes | None]) -> bytes:
    hashed = hashlib.sha256()
    for path, content in left.items():
        hashed.update(b"%d %s %d " % (len(path), path.encode(), -1 if content is None else len(content)))
        hashed.update(content or b"")
    return hashed.digest()


def cuts(disk: Disk, trace: Path, mode: Mode, seed: object = 0) -> Iterator[Cut]:
    """A cut before every call of ``trace`` that changes anything, and one after the last."""
    ledger = b""
    number = time_ns = 0

    def cut() -> Cut:
        left = disk.left(mode, f"{seed} {number}")
        return Cut(number, time_ns, ledger, left, _digest(left))

    for record in read_trace(trace):
        if record.operation == "l":
            ledger += record.data
            continue
        if record.operation != "o":
            number, time_ns = number + 1, record.time_ns
            yield cut()
        disk.apply(record)
    number += 1
    yield cut()
