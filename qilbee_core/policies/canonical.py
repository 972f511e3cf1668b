"""What a text says, apart from how it is written: the form in which near duplicates are equal.

Case, punctuation, spaces, the order of a list, and in English fillers, contractions, synonyms of function words and
misspelt words make no difference. Numbers, names, negations, units, every other word, and their order do.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from qilbee_core.policies._english import (
    ASIDES,
    CONTRACTIONS,
    FILLERS,
    FLIPPING,
    LIGHT,
    MOVABLE,
    OPENERS,
    PHRASES,
    QUESTION_WORDS,
    REMINDERS,
    SAME,
)
from qilbee_core.search.stopwords import ENGLISH
from qilbee_core.search.table import numbers_of_words

__all__ = ["Canonical", "Vocabulary", "Words", "canonical", "removable", "words_of"]

_TYPO_LETTERS_MIN, _TYPO_LETTERS_MAX = 4, 32
_KNOWN_TEXTS_MIN = 3
"""A word that so many texts have is no misspelling."""
_STOP_SHARE, _KNOWN_SHARE = 0.2, 0.75
"""Of the words of an English text so many are stop words, or else so many are among the shipped words."""

_CAPITALS_MOST = 0.75
"""A sentence with more capitals than that is a heading, or shouted: they tell no names."""

_COMMA, _END, _ASKED = ",", ".", "?"
_OR = "or"
_SMILES = frozenset(map(chr, range(0x1F600, 0x1F645)))
_JOINTS = frozenset({_COMMA, "and", _OR})
_ITEM_WORDS_MAX = 3
_ENDS = frozenset({_END, _ASKED})


class _Characters(dict[int, str]):
    """What each character is read as; made as they are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if kind == "Nd":
            read = str(unicodedata.decimal(character))
        elif kind[0] in "LMN" or character in "_'.:/-,?":
            read = character
        elif kind[0] == "S":
            read = f" {character} "
        else:
            read = "" if kind == "Cf" else " "
        self[code] = read
        return read


_CHARACTERS = _Characters(
    {
        ord(character): read
        for characters, read in (
            ("\u2018\u2019\u02bc`", "'"),
            ("\u2212", "-"),
            ("!;\u3002\u061b\u0964\n\r", " . "),
            ("\u3001\u060c", ","),
            ("\u061f", "?"),
            ("%", " percent "),
            ("&", " and "),
        )
        for character in characters
    }
)
_TOKEN = re.compile(r"(?:(?<![\w)\]])-)?\d+(?:[.,:/]\d+)*|[^\s\d,?.:/'-]+(?:'[^\s\d,?.:/'-]+)*|[,?.]")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_CLOCK = re.compile(r"(?<=\d)\s*([ap])\.?\s?m\b\.?", re.I)
_SAID_ASIDE = re.compile(
    rf"(^\W*|[,.;?!\n][ \t]*)(?:{'|'.join(PHRASES)})\s*(?=[,.;?!\n]|$)"
    rf"|\b(?:{'|'.join(ASIDES)})\b|^(\W*)(?:{'|'.join(REMINDERS)})(?!\w)",
    re.I,
)
_ENDINGS = re.compile(r"(.+?)(n't|'ll|'re|'ve|'d|'m|'s)")
_ENDING_IN_FULL = {"n't": "not", "'ll": "will", "'re": "is", "'ve": "have", "'d": "would", "'m": "is", "'s": "'s"}


class Words(NamedTuple):
    """A text as it was written: words, numbers and signs in small letters, in sentences."""

    sentences: tuple[tuple[str, ...], ...]
    capital: frozenset[str]
    """Words with a capital inside of a sentence that has others without."""
    english: bool


class Canonical(NamedTuple):
    """What a text says. Texts with equal ``content`` and agreeing ``light`` words are near duplicates."""

    content: tuple[str, ...]
    light: tuple[tuple[str, ...], ...]
    """The light words before each word of the content, and after the last."""

    def agrees(self, other: Canonical) -> bool:
        """Whether light words are alike, or missing in one of the two, though not before a number."""
        following = (*self.content, "")
        return all(
            mine == theirs or (not (mine and theirs) and not word[:1].isdigit())
            for mine, theirs, word in zip(self.light, other.light, following, strict=True)
        )


def words_of(text: str) -> Words:
    """Read a text.

    >>> words_of("It costs 1,000 EUR, Ana!").sentences
    (('it', 'costs', '1000', 'eur', ',', 'ana'),)
    """
    text = _CLOCK.sub(r" \1m_", unicodedata.normalize("NFKC", text))
    text = _SAID_ASIDE.sub(r"\1\2", text).translate(_CHARACTERS)
    sentences: list[tuple[str, ...]] = []
    capital: set[str] = set()
    stops = known = total = 0
    sentence: list[str] = []
    for token in [*_TOKEN.findall(text), _END]:
        if token in _ENDS:
            if sentence:
                written = [word for word in sentence if word[0].isalpha()]
                if 0 < sum(word[0].isupper() for word in written) <= _CAPITALS_MOST * len(written):
                    capital.update(word.casefold() for word in written[1:] if word[0].isupper() and word != "I")
                    if written[0][0].isupper() and written[0].casefold() not in numbers_of_words():
                        capital.add(written[0].casefold())
                lowered = [word.casefold() for word in sentence]
                heads = [word.partition("'")[0] for word in lowered]
                stops += sum(word in ENGLISH for word in heads)
                known += sum(word in numbers_of_words() for word in heads)
                total += len(written)
                sentences.append((*lowered, _ASKED) if token == _ASKED else tuple(lowered))
            sentence = []
        elif token[0].isdigit() and _THOUSANDS.fullmatch(token):
            sentence.append(token.replace(",", ""))
        else:
            sentence.append(token)
    english = total > 0 and (stops >= _STOP_SHARE * total or known >= _KNOWN_SHARE * total)
    return Words(tuple(sentences), frozenset(capital), english)


class Vocabulary:
    """The words of many texts: which are names, and which are other words misspelt."""

    def __init__(self, texts: Iterable[Words], *, correct_spelling: bool = True) -> None:
        self._correct_spelling = correct_spelling
        self._texts: Counter[str] = Counter()
        self._capital: Counter[str] = Counter()
        for text in texts:
            self._texts.update({word for sentence in text.sentences for word in sentence})
            self._capital.update(text.capital)
        self._corrections: dict[str, str] = {}

    def is_name(self, word: str) -> bool:
        """Whether a word is written with a capital as often as not."""
        return 2 * self._capital[word] >= self._texts[word] > 0 and self._capital[word] > 0

    def is_known(self, word: str) -> bool:
        """Whether it is a word: one of the shipped ones, or one that several texts have."""
        return word in numbers_of_words() or word in SAME or self._texts[word] >= _KNOWN_TEXTS_MIN

    def corrected(self, word: str) -> str:
        """The known word of these texts that an unknown one is one slip of the hand away from; else itself."""
        if not self._correct_spelling:
            return word
        found = self._corrections.get(word)
        if found is None:
            found = self._corrections[word] = self._correction(word)
        return found

    def _correction(self, word: str) -> str:
        if not _TYPO_LETTERS_MIN <= len(word) <= _TYPO_LETTERS_MAX or not word.isalpha():
            return word
        if self.is_known(word) or self.is_name(word):
            return word
        near = {each for deleted in _deletions(word) for each in self._known_by_deletion.get(deleted, ())}
        meant = [each for each in near if _one_slip(word, each)]
        return min(meant, key=lambda each: (-self._texts[each], each), default=word)

    @cached_property
    def _known_by_deletion(self) -> dict[str, list[str]]:
        """Known words under what is left of them without any one letter (SymSpell, Garbe 2012)."""
        found: dict[str, list[str]] = {}
        for word in self._texts:
            if not _TYPO_LETTERS_MIN - 1 <= len(word) <= _TYPO_LETTERS_MAX + 1 or not word.isalpha():
                continue
            if self.is_known(word) and not self.is_name(word):
                for deleted in _deletions(word):
                    found.setdefault(deleted, []).append(word)
        return found


def _deletions(word: str) -> set[str]:
    return {word, *(word[:at] + word[at + 1 :] for at in range(len(word)))}


def _one_slip(written: str, meant: str) -> bool:
    """One letter wrong, left out, doubled or too many, or two exchanged; an ending more or less is another word.

    >>> _one_slip("recieved", "received"), _one_slip("orders", "order"), _one_slip("amoral", "moral")
    (True, False, False)
    """
    if len(written) == len(meant):
        wrong = [at for at in range(len(meant)) if written[at] != meant[at]]
        if len(wrong) == 1:
            return True
        return (
            len(wrong) == 2
            and wrong[1] == wrong[0] + 1
            and written[wrong[0]] == meant[wrong[1]]
            and written[wrong[1]] == meant[wrong[0]]
        )
    shorter, longer = sorted((written, meant), key=len)
    if len(longer) != len(shorter) + 1 or longer[1:] == shorter:
        return False
    if longer[:-1] == shorter:
        return longer[-1] == longer[-2]  # "calll"
    return any(longer[:at] + longer[at + 1 :] == shorter for at in range(1, len(shorter)))


def canonical(text: Words, vocabulary: Vocabulary, *, listed: bool = True) -> Canonical:
    """What ``text`` says; without ``listed`` its lists stay in their order, as they do where commas are missing.

    >>> texts = [words_of(text) for text in ("Well, we need milk, eggs and tea.", "we need TEA, eggs, milk")]
    >>> first, second = (canonical(text, Vocabulary(texts)) for text in texts)
    >>> first == second, first.content
    (True, ('we', 'need', 'eggs', 'milk', 'tea'))
    """
    content: list[str] = []
    light: list[tuple[str, ...]] = []
    before: list[str] = []
    for sentence in text.sentences:
        for word in _said(sentence, vocabulary, listed) if text.english else _in_order(sentence, listed):
            if text.english and word in LIGHT:
                before.append(word)
            else:
                content.append(word)
                light.append(tuple(before))
                before = []
    light.append(tuple(before))
    return Canonical(tuple(content), tuple(light))


def removable(content: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Places of the words without which a text still says the rest: no number, unit or name, nothing that flips it."""
    return [
        at
        for at, word in enumerate(content)
        if word.isalpha()
        and word not in FLIPPING
        and word in numbers_of_words()
        and not vocabulary.is_name(word)
        and not any(near[:1].isdigit() for near in content[max(0, at - 1) : at + 2])
    ]


def _said(sentence: Sequence[str], vocabulary: Vocabulary, listed: bool) -> list[str]:
    """The words of an English sentence that say something, each in its one form."""
    words: list[str] = []
    for word in sentence:
        full = CONTRACTIONS.get(word)
        if full is None and "'" in word and (cut := _ENDINGS.fullmatch(word)):
            full = f"{cut[1]} {_ENDING_IN_FULL[cut[2]]}"
        words += full.split() if full else [vocabulary.corrected(word)]
    words = _without_fillers([SAME.get(word, word) for word in words])
    asked = words[-1:] == [_ASKED]
    said = _in_order(words[:-1] if asked else words, listed)
    if asked and said and said[0] not in QUESTION_WORDS:
        said.append(_ASKED)
    movable = [word for word in said if word in MOVABLE]
    if len(movable) == 1:
        said.remove(movable[0])
        said.append(movable[0])
    return said


def _without_fillers(words: Sequence[str]) -> list[str]:
    """The words that say something; the comma after a filler goes with it."""
    said: list[str] = []
    left_out = True
    for word in words:
        if word in FILLERS or word in _SMILES or (word in OPENERS and not said) or (word == _COMMA and left_out):
            left_out = True
        else:
            said.append(word)
            left_out = False
    return said


def _in_order(words: Sequence[str], listed: bool) -> list[str]:
    """The words without commas and "and"; where they are ``listed``, the items of each list in alphabetical order.

    A list is three items or more with commas between them, or two joined by "and" or "or" that begin or end the
    sentence. The longest of the inner items tells how many words each has, for no comma tells where the first begins.
    """
    if not listed:
        return [word for word in words if word not in {_COMMA, "and"}]
    items: list[list[str]] = [[]]
    joints: list[str] = []
    for word in words:
        if word not in _JOINTS:
            items[-1].append(word)
        elif items[-1]:
            items.append([])
            joints.append(word)
        elif joints and word not in joints[-1].split():
            joints[-1] = f"{joints[-1]} {word}"  # ", and"
    ordered: list[str] = []
    first = items[0]
    at = 0
    while at < len(joints):
        end = at
        while joints[end] == _COMMA and end + 1 < len(joints):
            end += 1
        inner, last = items[at + 1 : end + 1], items[end + 1]
        length = _length_of_items(first, inner, last, joints[end], whole=len(joints) == 1)
        if length:
            in_order = sorted([first[-length:], *inner, last[:length]])
            ordered += [*first[:-length], *chain.from_iterable(in_order)]
        else:
            ordered += [*first, *chain.from_iterable(inner)]
        if joints[end].endswith(_OR):
            ordered.append(_OR)
        first = last[length:]
        at = end + 1
    return ordered + first


def _length_of_items(first: list[str], inner: list[list[str]], last: list[str], joint: str, *, whole: bool) -> int:
    """How many words each item of a list has; 0 where it is none."""
    if inner:
        length = max(len(item) for item in inner)
        return length if length <= _ITEM_WORDS_MAX else 0
    return int(whole and joint != _COMMA and (len(first) == 1 or len(last) == 1) and " " not in joint)
