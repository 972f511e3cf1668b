"""From text to words: what is said, and what is asked.

The words of a text are its runs of letters and digits, in small letters, without the stop words of its language.
They are stored as they are and stemmed only in RAM: a better stemmer needs no new rows. Chinese, Japanese, Thai and
others that put no space between words give their signs, alone and in pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache

import Stemmer

from qilbee_core.episode import JSON, Episode
from qilbee_core.errors import InvalidError, shown
from qilbee_core.search.stopwords import ENGLISH

__all__ = ["ANALYSER_VERSION", "LANGUAGES", "Analyser", "Said", "analyser", "text_of", "turns_of"]

ANALYSER_VERSION = 1
"""Of the words that are taken from a text. Rows of another version are made anew."""

LANGUAGES = ("none", *Stemmer.algorithms())
WORD_CHARACTERS_MAX = 64
"""What is longer (a key, an encoded file) counts by its beginning."""

USER, AGENT = "user", "agent"
"""Who speaks in the halves of a conversation, where metadata does not say."""

_NAMES_OF_PARTS = frozenset({"user_input", "agent_response", "observation", "action", "result", "text", "content"})
"""Keys that say what kind of text follows, not what it is about."""

_ASCII = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
"""Small letters and digits; spaces for the rest: to translate and to split takes a third of what a pattern does."""
_ACCENTS = re.compile("[\u0300-\u036f]+")
_QUESTION_MARK = re.compile("[?\N{FULLWIDTH QUESTION MARK}\N{ARABIC QUESTION MARK}]")
_SENTENCE_END = re.compile(r"[.!\n\N{IDEOGRAPHIC FULL STOP}\N{DEVANAGARI DANDA}]")
# Scripts without spaces: Thai, Lao, Myanmar, Khmer; kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+"
)


class Said:
    """The words of one turn: those of its statements, and apart those of its questions."""

    __slots__ = ("asked", "said", "speaker")

    def __init__(self, speaker: str | None, said: list[str], asked: list[str]) -> None:
        self.speaker = speaker
        self.said = said
        self.asked = asked


class Analyser:
    """Takes words from texts in one language; the same words from the same text, always.

    >>> analyser("english").words("Where are the Melville novels?")
    ['melville', 'novels']
    >>> analyser("english").stems(["novels"])
    ['novel']
    """

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise InvalidError(
                f"{shown(language)} is not a language of the analyser", remedy=f"use one of {', '.join(LANGUAGES)}"
            )
        self.language = language
        self._stop_words = ENGLISH if language == "english" else frozenset[str]()
        # Where English has an accent it is a matter of taste (café); elsewhere it tells words apart.
        self._folds_accents = language == "english"

    def words(self, text: str) -> list[str]:
        """The words of ``text`` in order, repeated ones too."""
        found = text.translate(_ASCII).split() if text.isascii() else self._foreign_words(text.lower())
        stop_words = self._stop_words
        words = [word for word in found if word not in stop_words]
        if max(map(len, words), default=0) > WORD_CHARACTERS_MAX:
            words = [word[:WORD_CHARACTERS_MAX] for word in words]
        return words

    def said_and_asked(self, text: str) -> tuple[list[str], list[str]]:
        """The words outside and inside of sentences that end with a question mark.

        >>> analyser("english").said_and_asked("I paint. Do you swim? Every week!")
        (['paint', 'every', 'week'], ['swim'])
        """
        if "?" not in text and text.isascii():
            return self.words(text), []
        first, *rest = _QUESTION_MARK.split(text)
        if not rest:
            return self.words(text), []
        said, asked = [], []
        for part in [first, *rest[:-1]]:
            ends = [found.end() for found in _SENTENCE_END.finditer(part)]
            start = ends[-1] if ends else 0
            said.append(part[:start])
            asked.append(part[start:])
        said.append(rest[-1])
        return self.words("\n".join(said)), self.words("\n".join(asked))

    def stems(self, words: Iterable[str]) -> list[str]:
        """What the words of a family share; the words themselves where the language is "none"."""
        if self.language == "none":
            return list(words)
        # A stemmer is not thread-safe, and costs little.
        stemmed: list[str] = Stemmer.Stemmer(self.language, 0).stemWords(list(words))
        return stemmed

    def _foreign_words(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFKC", text).lower()
        if self._folds_accents:
            text = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))
            if text.isascii():
                return text.translate(_ASCII).split()
        found = []
        for word in _word_pattern().findall(text):
            if word.isascii() or not _UNSPACED.search(word):
                found.append(word)
                continue
            at = 0
            for run in _UNSPACED.finditer(word):
                if run.start() > at:
                    found.append(word[at : run.start()])
                signs = run.group()
                found += [sign for sign in signs if sign.isalnum()]
                found += [signs[i : i + 2] for i in range(len(signs) - 1)]
                at = run.end()
            if at < len(word):
                found.append(word[at:])
        return found


@cache
def analyser(language: str) -> Analyser:
    """The analyser of a language; InvalidError where there is none."""
    return Analyser(language)


@cache
def _word_pattern() -> re.Pattern[str]:
    """Runs of letters and digits with their marks: in Hindi or Thai a vowel is a mark."""
    marks, start = [], None
    # The planes between the two are ideographs; this takes 20 ms, all of them 120.
    for code in (*range(0x300, 0x20000), *range(0xE0000, 0xE1000)):
        is_mark = unicodedata.category(chr(code))[0] == "M"
        if is_mark and start is None:
            start = code
        elif not is_mark and start is not None:
            marks.append(f"{chr(start)}-{chr(code - 1)}")
            start = None
    return re.compile(rf"(?:[^\W_]|[{''.join(marks)}])+")


def turns_of(episode: Episode, language: Analyser) -> list[Said]:
    """The turns of an episode: both halves of a conversation, one of anything else.

    Everything in the content counts: texts, numbers, and the keys, which say what a value is about ({"favourite
    colour": "blue"}), but for those that only say what kind of text follows. Metadata is for programs and is not
    searched; its "speaker" is who speaks.

    >>> halves = turns_of(Episode.conversation("bot", "Is it raining?", "Yes, since noon."), analyser("english"))
    >>> [(each.speaker, each.said, each.asked) for each in halves]
    [('user', [], ['raining']), ('agent', ['yes', 'since', 'noon'], [])]
    """
    content = episode.content
    named = episode.metadata.get("speaker")
    speaker = named if isinstance(named, str) and named else None
    if episode.episode_type == "conversation" and "user_input" in content and "agent_response" in content:
        rest = {key: value for key, value in content.items() if key != "user_input"}
        return [
            Said(speaker or USER, *language.said_and_asked(text_of(content["user_input"]))),
            Said(AGENT, *language.said_and_asked(text_of(rest))),
        ]
    return [Said(speaker, *language.said_and_asked(text_of(content)))]


def text_of(value: JSON) -> str:
    """All there is to read in a JSON value, each piece on a line of its own.

    >>> text_of({"action": "refund", "details": {"order": 48213, "express": True}}).split()
    ['refund', 'details', 'order', '48213', 'express']
    """
    if isinstance(value, dict) and len(value) == 1:
        ((key, only),) = value.items()
        if key in _NAMES_OF_PARTS and isinstance(only, str):
            return only  # the usual case
    pieces: list[str] = []
    _collect(value, pieces)
    return "\n".join(pieces)


def _collect(value: JSON, pieces: list[str]) -> None:
    if isinstance(value, str):
        pieces.append(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _NAMES_OF_PARTS:
                pieces.append(key)
            _collect(item, pieces)
    elif isinstance(value, int | float):
        if not isinstance(value, bool):
            pieces.append(str(value))
    elif value is not None:
        for item in value:
            _collect(item, pieces)
