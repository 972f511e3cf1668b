"""The policy ``duplicates``: of memories that say the same, the fullest stays, and of equally full ones the newest.

Two memories say the same where type, metadata (but for what ``ignore_metadata`` names) and everything in the content
that is not text are equal, and their texts have one canonical form (:mod:`qilbee_core.policies.canonical`); or where
the fuller has one ordinary word more, in a text of 8 or more. So whatever is superseded is said by what stays. A
similarity alone would not do: two texts of forty words that differ in one number are similar to .95.

Every text is looked up by hashes of its form: the cost grows with the words, not with the pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

import msgspec
from msgspec import Struct

from qilbee_core.episode import JSON, Episode, Plan
from qilbee_core.policies._english import DEICTIC
from qilbee_core.policies.canonical import Canonical, Vocabulary, Words, canonical, removable, words_of

__all__ = ["DuplicateSettings", "Duplicates"]

_WORDS_MIN, _WORDS_MAX = 8, 200
"""A text of so many words may have one more than its duplicate; trying each costs the square."""
_SURVIVORS_MAX = 16
"""Of one content, so many are compared whose light words disagree."""

_BOUNDARY = "\0"
_encode = msgspec.json.Encoder(order="deterministic").encode


class DuplicateSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of ``duplicates``."""

    ignore_metadata: tuple[str, ...] = ("session_id",)
    """Keys in which duplicates may differ; every other key and value must be equal."""
    correct_spelling: bool = True
    """Whether a word that nobody knows may be one that is known, misspelt."""


class _Memory(NamedTuple):
    """An episode and what it says."""

    episode: Episode
    kind: bytes
    said: tuple[Canonical, ...]
    """One form, or two: with its lists in alphabetical order, and as they stand."""
    english: bool


_Rivals = dict[tuple[bytes, tuple[str, ...]], list[tuple[Episode, Canonical]]]
"""Those that stay, by the kind of memory and what it says; with the light words."""


class Duplicates:
    """See the module.

    >>> said = ["Order 4711 was sent to Oslo.", "the order 4711 was sent to oslo!", "Order 4712 was sent to Oslo."]
    >>> first, second, other = (Episode.observation("bot", text) for text in said)
    >>> plan = Duplicates().plan([first, second, other], now=other.event_time)
    >>> plan.supersede == {first.id: second.id}
    True
    """

    name = "duplicates"

    def __init__(self, settings: DuplicateSettings = DuplicateSettings()) -> None:  # noqa: B008 - frozen
        self._ignored = frozenset(settings.ignore_metadata)
        self._correct_spelling = settings.correct_spelling

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:  # noqa: ARG002 - of the protocol
        """Each duplicate superseded by the memory that says the same."""
        texts: dict[str, Words] = {}
        for episode in episodes:
            for text in _texts(episode.content):
                if text not in texts:
                    texts[text] = words_of(text)
        vocabulary = Vocabulary(texts.values(), correct_spelling=self._correct_spelling)
        forms = {
            text: (canonical(words, vocabulary), canonical(words, vocabulary, listed=False))
            for text, words in texts.items()
        }
        memories = [self._read(episode, texts, forms) for episode in episodes]
        # Fullest first, of equally full ones the newest: what comes first stays.
        memories.sort(key=lambda memory: (_length(memory), memory.episode.id), reverse=True)
        return Plan(supersede=_superseded(memories, vocabulary))

    def _read(
        self, episode: Episode, texts: dict[str, Words], forms: dict[str, tuple[Canonical, Canonical]]
    ) -> _Memory:
        metadata = {key: value for key, value in episode.metadata.items() if key not in self._ignored}
        found = _texts(episode.content)
        said = dict.fromkeys(_joined([forms[text][form] for text in found]) for form in (0, 1))
        deictic = any(word in DEICTIC for text in found for sentence in texts[text].sentences for word in sentence)
        day = episode.event_time.date().isoformat() if deictic else ""
        # Where there is no word, signs are all there is.
        signs = [] if any(form.content for form in said) else [" ".join(text.split()) for text in found]
        kind = [
            episode.agent_id,
            episode.episode_type,
            episode.memory_type,
            metadata,
            _frame(episode.content),
            day,
            signs,
        ]
        return _Memory(episode, _encode(kind), tuple(said), all(texts[text].english for text in found))


def _superseded(memories: Sequence[_Memory], vocabulary: Vocabulary) -> dict[str, str]:
    """Whom each duplicate gives way to; ``memories`` are the fullest first."""
    superseded: dict[str, str] = {}
    above: list[_Memory] = []  # survivors with one word more
    for length, level in groupby(memories, key=_length):
        longer = _without_a_word(above, vocabulary) if above and _length(above[0]) == length + 1 else {}
        survivors: _Rivals = defaultdict(list)
        above = []
        for memory in level:
            survivor = _rival(memory, survivors) or _rival(memory, longer)
            if survivor is not None:
                superseded[memory.episode.id] = survivor.id
                continue
            above.append(memory)
            for form in memory.said:
                _add(survivors, memory, form)
    return superseded


def _rival(memory: _Memory, rivals: _Rivals) -> Episode | None:
    """The first of those that say the same."""
    for form in memory.said:
        for episode, said in rivals.get((memory.kind, form.content), ()):
            if said.agrees(form):
                return episode
    return None


def _add(rivals: _Rivals, memory: _Memory, form: Canonical) -> None:
    same = rivals[memory.kind, form.content]
    if len(same) < _SURVIVORS_MAX:
        same.append((memory.episode, form))


def _without_a_word(memories: Iterable[_Memory], vocabulary: Vocabulary) -> _Rivals:
    """English memories, by each thing they would say without one of their words."""
    found: _Rivals = defaultdict(list)
    for memory in memories:
        for content, light in memory.said if memory.english else ():
            if _WORDS_MIN <= len(content) <= _WORDS_MAX:
                for at in removable(content, vocabulary):
                    joined = (*light[:at], light[at] + light[at + 1], *light[at + 2 :])
                    _add(found, memory, Canonical(content[:at] + content[at + 1 :], joined))
    return found


def _length(memory: _Memory) -> int:
    return len(memory.said[0].content)


def _texts(value: JSON) -> list[str]:
    """Every text in a JSON value, in an order that does not depend on how it was put together."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key in sorted(value) for text in _texts(value[key])]
    if isinstance(value, Sequence):
        return [text for item in value for text in _texts(item)]
    return []


def _frame(value: JSON) -> JSON:
    """A JSON value without its texts."""
    if isinstance(value, str):
        return ""
    if isinstance(value, Mapping):
        return {key: _frame(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_frame(item) for item in value]
    return value


def _joined(forms: Sequence[Canonical]) -> Canonical:
    """Several texts as one, with a mark between them that no text has."""
    content: list[str] = []
    light: list[tuple[str, ...]] = []
    for number, form in enumerate(forms):
        content += [_BOUNDARY, *form.content] if number else form.content
        light += form.light
    return Canonical(tuple(content), tuple(light) or ((),))
