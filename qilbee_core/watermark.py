"""The last operation of a store that is known to be durable, in a small file beside the engine's own.

An engine that has lost the end of its log looks like one that was never given those writes. So what a sync made
durable is noted elsewhere, and an engine that opens with less has lost writes: LostWritesError, and nothing changed.

Nobody waits for the note. A thread of its own writes it, at most ten times a second, and again when the store is
closed. So it may be a little behind what is durable, and never ahead of it: each number was read before the sync
that made it durable.

The file has two slots, written in turn, so that a power cut damages at most the older number. docs/format.md has
its bytes.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qilbee_core.directory import fsync_directory
from qilbee_core.envelope import frame, unframe
from qilbee_core.errors import CorruptRecordError, LostWritesError

__all__ = ["WATERMARK_NAME", "Mark", "Watermark", "read_slot", "slot"]

log = logging.getLogger(__name__)

WATERMARK_NAME = "qilbee.watermark"
_MAGIC = b"QWM1"
_SLOT = struct.Struct(">4s16sQ")
_SLOT_BYTES = _SLOT.size + 4
_SLOTS_AT = (0, 4096)
"""A page of its own for each, which is the most that a torn write can damage."""
_FILE_BYTES = 8192
_PAUSE_S = 0.1
_NOBODY = bytes(16).hex()
"""In place of a store id: of a store that is being made, and has none yet."""


class Mark(NamedTuple):
    """What a slot says: of the store with this id (32 hexadecimal digits), everything up to ``sequence`` is durable."""

    store_id: str
    sequence: int


def slot(mark: Mark) -> bytes:
    """The 32 bytes of a slot.

    >>> slot(Mark("00112233445566778899aabbccddeeff", 7)).hex()
    '51574d3100112233445566778899aabbccddeeff0000000000000007057128e3'
    """
    return frame(b"", _SLOT.pack(_MAGIC, bytes.fromhex(mark.store_id), mark.sequence))


def read_slot(data: bytes) -> Mark | None:
    """What :func:`slot` was given, or None where this is none."""
    try:
        magic, store_id, sequence = _SLOT.unpack(unframe(b"", data))
    except (CorruptRecordError, struct.error):
        return None
    return Mark(store_id.hex(), sequence) if magic == _MAGIC else None


class Watermark:
    """The file of one store.

    ``accept_loss`` says that the store is opened with whatever is left: what is missing raises nothing.
    """

    def __init__(self, path: Path, *, accept_loss: bool = False) -> None:
        self._path = path
        self.accept_loss = accept_loss
        self._mark, self._next_slot = self._read()
        self._saved = self._mark
        self.expected = None if self._mark is None else self._mark.sequence
        """What the file said when the store was opened; None where there was none to believe."""
        self._store_id = ""
        self._is_failing = False
        self._new_locks()

    def _new_locks(self) -> None:
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def _read(self) -> tuple[Mark | None, int]:
        """The newest mark of the file, and which slot to write next."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None, 0
        found = [read_slot(content[at : at + _SLOT_BYTES]) for at in _SLOTS_AT]
        marks = [mark for mark in found if mark is not None]
        if not marks:
            log.warning("%s is damaged, so it cannot tell whether writes are missing; it will be made anew", self._path)
            return None, 0
        newest = max(marks, key=lambda mark: mark.sequence)
        return newest, 1 - found.index(newest)

    @property
    def _is_new(self) -> bool:
        """Whether the store is only being made."""
        return self._mark is not None and self._mark.store_id == _NOBODY

    @property
    def sequence(self) -> int:
        """The last operation that is known to be durable; 0 where nothing is known."""
        return 0 if self._mark is None else self._mark.sequence

    def allows(self, sequence: int, find_store_id: Callable[[], str | None], *, damaged: bool) -> bool:
        """Whether the engine may open with what it has, of which ``sequence`` is the last operation.

        ``damaged`` says that it would drop something that follows. True means: go on, nothing durable is missing, or
        its loss was accepted by name. False means that nothing is known. Otherwise this raises LostWritesError.
        ``find_store_id`` is called where the answer rests on whose mark it is; None from it means an empty database.
        """
        mark = self._mark
        if mark is None and not damaged and not self.accept_loss and find_store_id() is None:
            # Before anything is written: of what a power cut leaves from here on, nothing was promised to anybody.
            self._mark = Mark(_NOBODY, 0)
            self.save()
            return True
        if mark is None or self.accept_loss:
            return self.accept_loss
        if (damaged or sequence < mark.sequence) and find_store_id() not in (None, mark.store_id) and not self._is_new:
            self._disbelieve()
            return False
        if sequence < mark.sequence:
            raise LostWritesError(
                f"{self._path.parent} ends with operation {sequence:,}, and operation {mark.sequence:,} was durable: "
                f"{mark.sequence - sequence:,} operations are missing",
                remedy='restore a copy, or open it with what is left: open_store(path, recover="tail"), or qilbee '
                "recover PATH; nothing was changed (see docs/durability.md)",
            )
        return True

    def begin(self, store_id: str) -> None:
        """Take part in the syncs of the store, which is open now."""
        if self._is_new:
            self._mark = None
        elif self._mark is not None and self._mark.store_id != store_id and not self.accept_loss:
            self._disbelieve()
        self._store_id = store_id
        if self.accept_loss:
            self._mark = self._saved = None  # what is reached next is written over all there is
            self.accept_loss = False
        elif self._mark is None:
            self._mark, self._saved = Mark(store_id, 0), None
            self.save()

    def _disbelieve(self) -> None:
        log.warning("%s is of another store and is not believed; it will be made anew", self._path)
        self._mark = self.expected = None

    # While the store is open

    def reached(self, sequence: int) -> None:
        """Note that everything up to ``sequence`` is durable. Returns at once; the file says so a little later."""
        if self._closing.is_set() or (self._mark is not None and sequence <= self._mark.sequence):
            return
        self._mark = Mark(self._store_id, sequence)
        if self._thread is None:
            thread = threading.Thread(target=self._save_regularly, name="qilbee-watermark", daemon=True)
            with suppress(RuntimeError):  # the system gives no more threads: whoever syncs next asks again
                thread.start()
                self._thread = thread
        self._due.set()

    def _save_regularly(self) -> None:
        closing, due = self._closing, self._due
        while not closing.is_set():
            due.wait()
            due.clear()
            self.save()
            closing.wait(_PAUSE_S)

    def save(self) -> None:
        """Bring the file up to date. What the disk says against it is logged: the store is as good without."""
        with self._lock:
            mark = self._mark
            if mark is None or mark == self._saved:
                return
            try:
                if self._saved is None or not self._path.exists():
                    self._create(mark)
                else:
                    self._write(mark)
            except OSError as error:
                if not self._is_failing:
                    log.warning("cannot write %s, so lost writes may go unnoticed: %s", self._path, error.strerror)
                self._is_failing = True
                return
            self._saved = mark
            self._is_failing = False

    def _write(self, mark: Mark) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(handle, slot(mark), _SLOTS_AT[self._next_slot])
            os.fdatasync(handle)
        finally:
            os.close(handle)
        self._next_slot = 1 - self._next_slot

    def _create(self, mark: Mark) -> None:
        """Make a new file, in which nothing of an old one is left."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        content = bytearray(_FILE_BYTES)
        for at in _SLOTS_AT:
            content[at : at + _SLOT_BYTES] = slot(mark)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(handle, content, 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        fresh.rename(self._path)
        fsync_directory(self._path.parent)

    def close(self) -> None:
        """Bring the file up to date and end the thread. Idempotent."""
        self._closing.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join()
        self.save()

    def abandon(self) -> None:
        """In a forked child: the file is the parent's."""
        self._new_locks()
        self._closing.set()
        self._saved = self._mark
