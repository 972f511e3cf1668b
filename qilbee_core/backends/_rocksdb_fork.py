"""What keeps RocksDB from doing anything in a forked child, where its threads are missing and its files are shared."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

__all__ = ["leak"]


def leak(thing: object) -> None:
    """Keep ``thing`` for ever, so that its destructor never runs, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _skip_exit_handlers() -> None:
    """Let ``exit`` end the process at once when it comes to the handlers that were there before the fork.

    One of them joins RocksDB's threads, of databases long closed too. In the child those never were, and where another
    thread of the parent is missing as well, the stack that held their state is gone: a segmentation fault.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # on_exit is of glibc
        libc.on_exit(libc._exit, None)


os.register_at_fork(after_in_child=_skip_exit_handlers)
