"""Build a zstd dictionary for stored records from the text in ``tools/corpus``.

    python tools/build_dictionary.py OUTPUT

The same corpus and the same zstandard give the same bytes. A dictionary that has been shipped never
changes: give a new one the next number, and add its SHA-256 to ``qilbee_core/codecs/dictionaries.py``.

The corpus is all our own: ``agent.txt`` has an observation, or an action and its result, on each
line; ``phrases.txt`` what people say all the time; every other file has conversations, one turn on
each line, with an empty line between two of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import zstandard

from qilbee_core import JSON
from qilbee_core.serializers.msgpack import MsgpackSerializer

CORPUS = Path(__file__).parent / "corpus"
TRAINED_BYTES = 24_000

# Ends the entropy tables of every trained dictionary: the offsets 1, 4, 8 that each frame starts with.
_END_OF_TABLES = b"".join(offset.to_bytes(4, "little") for offset in (1, 4, 8))


def build() -> bytes:
    """The dictionary: entropy tables, then text to refer to, the most useful last, where references are short.

    The trainer finds what records have in common, and little of that is language: it needs a phrase in
    many samples, and has 50 kB. So the phrases are put in by hand, before the best third of what it found.
    """
    trained = zstandard.train_dictionary(TRAINED_BYTES, list(records()), level=5, dict_id=1).as_bytes()
    start = trained.index(_END_OF_TABLES) + len(_END_OF_TABLES)
    best = start + (len(trained) - start) * 2 // 3
    phrases = (CORPUS / "phrases.txt").read_bytes().replace(b"\n", b" ")
    return trained[:best] + phrases + trained[best:]


def records() -> Iterator[bytes]:
    """The corpus as the store would keep it: one record for each turn, and one for each exchange."""
    dumps = MsgpackSerializer().dumps
    for number, (episode_type, content, speaker) in enumerate(episodes()):
        yield dumps([episode_type, content, transaction_us(number), metadata(number, speaker)])


def episodes() -> Iterator[tuple[str, dict[str, JSON], str]]:
    """Type, content and speaker."""
    for path in sorted(CORPUS.glob("*.txt")):
        if path.name == "agent.txt":
            for line in path.read_text().splitlines():
                kind, text = line.split(": ", 1)
                if kind == "observation":
                    yield kind, {"observation": text}, "agent"
                else:
                    action, result = text.split(" | ", 1)
                    yield kind, {"action": action, "result": result}, "agent"
        elif path.name != "phrases.txt":
            for conversation in path.read_text().split("\n\n"):
                turns = [line.split(": ", 1) for line in conversation.splitlines()]
                for at, (speaker, text) in enumerate(turns):
                    yield "observation", {"observation": f"{speaker}: {text}"}, speaker
                    if at % 2 == 0 and at + 1 < len(turns):
                        yield "conversation", {"user_input": text, "agent_response": turns[at + 1][1]}, speaker


def transaction_us(number: int) -> int:
    """Some instant between 2024 and 2031, so that only what all of them share is learned."""
    return 1_704_067_200_000_000 + number * 86_028_121_369_331 % 220_000_000_000_000


def metadata(number: int, speaker: str) -> dict[str, JSON]:
    """What callers tend to say about an episode."""
    session = number * 7 % 40
    shapes: list[dict[str, JSON]] = [
        {"session_id": str(session), "speaker": speaker},
        {"session_id": f"s-{session}", "user_id": speaker.lower(), "channel": "chat"},
        {"session_id": str(session), "speaker": speaker},
        {},
        {
            "session_id": str(session),
            "speaker": speaker,
            "timestamp": f"2026-0{number % 9 + 1}-12T09:{number % 60:02}:00Z",
        },
        {"source": "web", "tags": ["support"], "user_id": f"u-{session}"},
        {"speaker": speaker},
    ]
    return shapes[number % len(shapes)]


if __name__ == "__main__":
    data = build()
    Path(sys.argv[1]).write_bytes(data)
    sys.stdout.write(f"{len(data)} bytes, SHA-256 {sha256(data).hexdigest()}\n")
