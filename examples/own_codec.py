"""A codec of one's own, in one file: words that this program uses all the time become one byte each.

python examples/own_codec.py [DIRECTORY]

To have others install it, make it a package with an entry point: docs/plugins.md.
"""

import sys
from collections.abc import Iterable

from qilbee_core import Codec, CorruptRecordError, Episode, Provider, hookimpl, load_plugins, open_store

WORDS = (b"observation", b"temperature", b" degrees", b"the ", b" is ")
MARK = 0xF8  # no byte of UTF-8 is 0xf8 or above, so that text never needs it
NAME = "example.words"


class WordsCodec:
    """Replaces each of WORDS by 0xf8 and its number. 0xf8 itself becomes 0xf8 0xff."""

    name = NAME

    def encode(self, data: bytes) -> bytes:
        """The shorter bytes."""
        data = data.replace(bytes((MARK,)), bytes((MARK, 0xFF)))
        for number, word in enumerate(WORDS):
            data = data.replace(word, bytes((MARK, number)))
        return data

    def decode(self, data: bytes, size: int) -> bytes:
        """The bytes as they were; checked, since what a disk gives back may be damaged."""
        first, *rest = data.split(bytes((MARK,)))
        parts = [first]
        for part in rest:
            number = part[0] if part else -1
            if number == 0xFF:
                parts.append(bytes((MARK,)))
            elif 0 <= number < len(WORDS):
                parts.append(WORDS[number])
            else:
                raise CorruptRecordError(f"there is no word {number}")
            parts.append(part[1:])
        decoded = b"".join(parts)
        if len(decoded) != size:
            raise CorruptRecordError(f"{len(decoded)} bytes instead of {size}")
        return decoded


class WordsPlugin:
    """Says that the codec exists."""

    @hookimpl
    def qilbee_register_codecs(self) -> Iterable[Provider[Codec]]:
        """One provider."""
        return [Provider(NAME, WordsCodec, "the words of this program in one byte each")]


directory = sys.argv[1] if len(sys.argv) > 1 else "words-data"
plugins = load_plugins(extra=[WordsPlugin()])
with open_store(directory, plugins=plugins, compression_type=NAME, compression_scope="value") as store:
    memory = store.agent_memory("thermometer")
    text = ", ".join(f"the temperature is {degrees} degrees" for degrees in range(18, 24))
    episode_id = memory.store_episode(Episode.observation("thermometer", text))
    found = memory.get_episode(episode_id)
    assert found is not None
    print(found.content["observation"])
    print(f"stored in {memory.get_statistics().bytes} bytes, the text alone has {len(text)}")
