"""Reading no more than there is room for: the answer of a server is bounded in bytes, what a library gives is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from qilbee_core.episode import Episode

__all__ = ["Room", "Unread"]


class Unread(Struct, frozen=True, kw_only=True):
    """An episode that there was no room for, by its id; and how well it fits, where it was searched for."""

    id: str
    score: float = 0.0
    keyword_score: float = 0.0
    semantic_score: float = 0.0
    explanation: Mapping[str, float] | None = None


class Room:
    """Room for so many bytes of what ``encode`` makes of episodes, and for at most ``episodes_max`` of them.

    What is read goes in as it comes, in the order of the answer, until one does not fit: neither that nor any behind it
    is given. The first always goes in, however large. Of an answer that cannot be continued from its last episode, as
    one that is ordered by time can be, ``left`` names the others.

    >>> room = Room(80, lambda episode: str(episode.content).encode())
    >>> [room.takes(Episode.observation("bot", text)) for text in ("x" * 50, "y" * 50, "z")]
    [True, False, False]
    >>> len(room.taken), room.is_full
    (1, True)
    """

    def __init__(self, bytes_max: int, encode: Callable[[Episode], bytes], *, episodes_max: int | None = None) -> None:
        self._bytes_max = bytes_max
        self._encode = encode
        self._episodes_max = episodes_max
        self.begin()

    def begin(self) -> None:
        """Be empty, for a reader that has to begin anew."""
        self.taken: list[bytes] = []
        """What ``encode`` made of those that are given."""
        self.left: list[Unread] = []
        self.is_full = False
        """Whether one did not fit, so that there are more than those that are given."""
        self._bytes = 0

    def takes(self, episode: Episode) -> bool:
        """Whether this one is given."""
        if not self.is_full:
            encoded = b"" if len(self.taken) == self._episodes_max else self._encode(episode)
            self._bytes += len(encoded)
            self.is_full = not encoded or (bool(self.taken) and self._bytes > self._bytes_max)
            if not self.is_full:
                self.taken.append(encoded)
        return not self.is_full
