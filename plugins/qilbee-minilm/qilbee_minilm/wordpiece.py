"""From text to the numbers of its word pieces, as the uncased BERT models were trained on them.

Texts are cleaned, put into small letters without accents, and split at spaces, marks and Chinese signs; each word is
then cut into the longest pieces that are in the vocabulary, from left to right. After Devlin and others, "BERT", 2018.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping
from functools import cache

__all__ = ["START", "STOP", "pieces_of"]

UNKNOWN, START, STOP = 100, 101, 102
"""Numbers of pieces in the vocabulary: for a word that cannot be cut, and around a text."""

_WORD_CHARACTERS_MAX = 100
_ASCII_MARK = re.compile(f"([{re.escape(string.punctuation)}])")
# Han, as the models were trained: neither kana nor Hangul.
_HAN = re.compile(
    "([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f])"
)


def pieces_of(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The numbers of the pieces of ``text``.

    >>> pieces_of("Embeddings!", {"em": 7, "##bed": 8, "##ding": 9, "##s": 10, "!": 11})
    [7, 8, 9, 10, 11]
    """
    pieces: list[int] = []
    for word in _words(text):
        whole = vocabulary.get(word)
        if whole is not None:
            pieces.append(whole)
        else:
            pieces += _cut(word, vocabulary)
    return pieces


def _words(text: str) -> list[str]:
    if text.isascii() and text.isprintable():
        return _ASCII_MARK.sub(r" \1 ", text.lower()).split()
    text = "".join(_cleaned(character) for character in text)
    text = unicodedata.normalize("NFD", _HAN.sub(r" \1 ", text))
    text = "".join(character for character in text if unicodedata.category(character) != "Mn").lower()
    return "".join(f" {character} " if _is_mark(character) else character for character in text).split()


@cache
def _cleaned(character: str) -> str:
    """The character; a space for any white space; nothing for what is no part of a text."""
    if character in "\t\n\r" or (character.isspace() and unicodedata.category(character)[0] == "Z"):
        return " "
    return "" if unicodedata.category(character) in {"Cc", "Cf", "Co"} or character == "\ufffd" else character


@cache
def _is_mark(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"


def _cut(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    if len(word) > _WORD_CHARACTERS_MAX:
        return [UNKNOWN]
    pieces = []
    start = 0
    while start < len(word):
        for stop in range(len(word), start, -1):
            piece = vocabulary.get(f"##{word[start:stop]}" if start else word[:stop])
            if piece is not None:
                break
        else:
            return [UNKNOWN]
        pieces.append(piece)
        start = stop
    return pieces
