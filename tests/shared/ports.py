"""Ports of this machine that nobody else gets while a test uses them."""

from __future__ import annotations

import socket

__all__ = ["ReservedPort"]


class ReservedPort:
    """A port, this one or any, that is given to nobody else until it is closed; nobody listens there yet.

    It is bound, and so is left out where the system chooses a port: for a listener of somebody else's, or for either
    end of a connection. A port that was only found to be free may be taken a moment later. Whoever binds it by its
    number with SO_REUSEADDR, as servers do, can listen there, again and again.
    """

    def __init__(self, number: int = 0) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", number))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Let others have it. Idempotent."""
        self._socket.close()
