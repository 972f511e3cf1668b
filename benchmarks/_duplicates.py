"""Pairs of texts that say the same in other words, and pairs that differ in one thing that matters.

All is drawn from a seed. Facts are made of templates, and taken from the sample conversations that the package ships; a
*near duplicate* has one to three edits that change nothing, a *hard negative* one edit that does.
"""

# ruff: noqa: SIM905 - many words read better as text

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

import qilbee_core

__all__ = ["HARD", "LOOSE", "NEAR", "Pair", "facts", "pairs"]

_NAMES = (
    "Ana Ben Carla Dmitri Elin Farid Greta Hiro Ines Jonas Karim Lena Marco Nadia Olaf Priya Quentin Rosa Sven "
    "Tara Umar Vera Wanda Xavier Yusuf Zoe Melissa Bastien Rosalind Tuva"
).split()
_CITIES = "Oslo Lisbon Kyoto Nairobi Quito Perth Leeds Bergen Turin Malmo Boston Riga Porto Cairo Lima Geneva".split()
_ITEMS = (
    "milk eggs bread rice apples onions coffee tea butter flour lemons salt pepper candles batteries soap"
).split()
_MONTHS = "January February March April June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_UNITS = "km miles kg pounds litres hours minutes days weeks euros dollars".split()
_OPPOSITES = (
    ("increase", "decrease"),
    ("increased", "decreased"),
    ("before", "after"),
    ("opens", "closes"),
    ("accepted", "rejected"),
    ("likes", "hates"),
    ("arrived", "left"),
    ("bought", "sold"),
    ("above", "below"),
    ("won", "lost"),
    ("starts", "ends"),
    ("cheaper", "dearer"),
    ("enabled", "disabled"),
    ("include", "exclude"),
    ("hot", "cold"),
)
_TEMPLATES = (
    "{name} moved to {city} in {month} {year}.",
    "{name} has lived in {city} for {number} years and works as a nurse.",
    "The order {number} was shipped to {city} on {day}.",
    "{name} prefers the window seat because the aisle is too loud.",
    "We need {item}, {item2} and {item3} from the shop.",
    "{name} is allergic to {item}, {item2} and {item3}.",
    "The meeting with {name} starts at {hour}:30 on {day}.",
    "The budget will increase by {number} percent in {month}.",
    "{name} bought a house in {city} before the prices went up.",
    "Please send the report to {name} before {day}.",
    "The server in {city} has {number} GB of memory and is always busy.",
    "{name} and {name2} are going to {city} on {day} {number} {month}.",
    "The patient takes {number} mg of the medicine every morning.",
    "{name} can speak French, Arabic and {language}.",
    "The parcel weighs {number} kg and should be delivered to {name}.",
    "Yes, {name} will come to the party on {day}.",
    "{name} ran {number} km with {name2} on {day} morning.",
    "The password of the {city} office was changed by {name} in {month}.",
    "{name} likes the old library although it is far from {city}.",
    "The temperature in the cellar was above {number} degrees on {day}.",
    "{name} accepted the offer from the company in {city}.",
    "The shop in {city} opens at {hour} and sells {item}, {item2} and {item3}.",
    "{name} told {name2} that the contract ends in {month} {year}.",
    "The dark mode is enabled for {name} on the laptop and the phone.",
    "{name} paid {number} euros to {name2} for the tickets to {city}.",
    "My sister {name} is studying biology in {city} until {month}.",
    "The train to {city} is late, so {name} will wait for {number} minutes.",
    "{name} wants the invoice by email, not by post.",
    "The doctor said that {name} should walk {number} minutes every day.",
    "Our team won the match against {city} with {number} points.",
)
_LANGUAGES = "German Polish Hindi Swahili Korean Greek".split()


class Pair(NamedTuple):
    """Two texts, the edits that lead from one to the other, and whether they say the same."""

    first: str
    second: str
    edits: tuple[str, ...]
    same: bool


def facts(random: Random) -> Iterator[str]:
    """Sentences without end: three of four of templates, the others said in the sample conversations."""
    said = _said()
    while True:
        if random.random() < 0.25:
            yield random.choice(said)
            continue
        name, name2 = random.sample(_NAMES, 2)
        item, item2, item3 = random.sample(_ITEMS, 3)
        yield random.choice(_TEMPLATES).format(
            name=name,
            name2=name2,
            city=random.choice(_CITIES),
            item=item,
            item2=item2,
            item3=item3,
            month=random.choice(_MONTHS),
            day=random.choice(_DAYS),
            year=random.randint(1990, 2026),
            hour=random.randint(1, 12),
            number=random.randint(2, 999),
            language=random.choice(_LANGUAGES),
        )


def pairs(count: int, seed: int) -> Iterator[Pair]:
    """``count`` near duplicates and as many hard negatives, each of another fact."""
    random = Random(seed)
    source = facts(random)
    seen: set[str] = set()
    for same in (True, False):
        made = 0
        while made < count:
            fact = next(source)
            if fact in seen:
                continue
            pair = _near(fact, random) if same else _hard(fact, random)
            if pair is not None:
                seen.add(fact)
                made += 1
                yield pair


def _near(fact: str, random: Random) -> Pair | None:
    text, edits = fact, []
    for name in random.sample(sorted(NEAR), random.choice((1, 1, 2, 2, 3))):
        edited = NEAR[name](text, random)
        if edited is not None and edited != text:
            text = edited
            edits.append(name)
    return Pair(fact, text, tuple(edits), True) if text != fact else None


def _hard(fact: str, random: Random) -> Pair | None:
    for name in random.sample(sorted(HARD), len(HARD)):
        edited = HARD[name](fact, random)
        if edited is not None and edited != fact:
            return Pair(fact, edited, (name,), False)
    return None


def _said() -> list[str]:
    lines = (Path(qilbee_core.__file__).parent / "samples" / "conversations.jsonl").read_bytes().splitlines()
    turns = [msgspec.json.decode(line) for line in lines]
    texts = [text for turn in turns for text in (turn["user_input"], turn["agent_response"])]
    return [text for text in texts if len(text.split()) >= 6]


# Edits that change nothing


def _lower(text: str, _: Random) -> str:
    return text.lower()


def _upper(text: str, _: Random) -> str:
    return text.upper()


def _punctuation(text: str, random: Random) -> str:
    return random.choice(
        (text.rstrip("."), re.sub(r"\.(?= |$)", "!", text), text.replace(". ", "; "), f'"{text}"', f"- {text}")
    )


def _whitespace(text: str, random: Random) -> str:
    words = text.split(" ")
    at = random.randrange(len(words))
    words[at] = random.choice(("  ", "\t", "\n" if at == 0 else " ")) + words[at]
    return " ".join(words) + random.choice(("", " ", "\n"))


def _filler(text: str, random: Random) -> str:
    if random.random() < 0.5:
        opener = random.choice(("Well, ", "So, ", "By the way, ", "Actually, ", "Oh, ", "As I said, ", "Okay, "))
        return opener + text
    words = text.split(" ")
    words.insert(random.randrange(1, len(words)), random.choice(("really", "actually", "just", "basically", "um,")))
    return " ".join(words)


def _list_order(text: str, random: Random) -> str | None:
    found = re.search(r"(\w+), (\w+) and (\w+)(?=[. ])", text)
    if found is None:
        return None
    first, second, third = random.sample(found.groups(), 3)
    return f"{text[: found.start()]}{first}, {second} and {third}{text[found.end() :]}"


def _typo(text: str, random: Random) -> str | None:
    words = re.findall(r"\b[a-z]{5,}\b", text)
    if not words:
        return None
    word = random.choice(words)
    at = random.randrange(1, len(word) - 2)
    typed = random.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + random.choice("qwxzj") + word[at + 1 :],
        )
    )
    return re.sub(rf"\b{word}\b", typed, text, count=1)


_ALIKE = (
    ("because", "cause"),
    ("until", "till"),
    ("although", "though"),
    ("every", "each"),
    ("also", "too"),
    (" and ", " & "),
    ("percent", "%"),
    ("will", "shall"),
    ("for ", "of "),
    ("maybe", "perhaps"),
    ("yes", "yeah"),
)


def _alike(text: str, random: Random) -> str | None:
    for one, other in random.sample(_ALIKE, len(_ALIKE)):
        if re.search(rf"(?<!\w){one}(?!\w)" if one.isalpha() else one, text):
            return re.sub(rf"(?<!\w){one}(?!\w)" if one.isalpha() else one, other, text, count=1)
    return None


def _contraction(text: str, random: Random) -> str | None:
    for full, short in random.sample(
        (("is not", "isn't"), ("do not", "don't"), ("it is", "it's"), ("cannot", "can't")), 4
    ):
        for one, other in ((full, short), (short, full)):
            if one in text:
                return text.replace(one, other, 1)
    return None


def _article(text: str, random: Random) -> str | None:
    found = list(re.finditer(r"\b([Tt]he|a|an) ", text))
    if not found:
        return None
    article = random.choice(found)
    return text[: article.start()] + text[article.end() :]


NEAR: dict[str, Callable[[str, Random], str | None]] = {
    "small letters": _lower,
    "capitals": _upper,
    "punctuation": _punctuation,
    "whitespace": _whitespace,
    "filler": _filler,
    "order of a list": _list_order,
    "typo": _typo,
    "function word": _alike,
    "contraction": _contraction,
    "article": _article,
}
"""Edits that change nothing, by name; None where the text offers no place for one."""


# Edits that change what is said


def _number(text: str, random: Random) -> str | None:
    found = list(re.finditer(r"\d+", text))
    if not found:
        return None
    number = random.choice(found)
    changed = random.choice((int(number[0]) + 1, int(number[0]) + 10, int(number[0]) * 10, max(0, int(number[0]) - 1)))
    return f"{text[: number.start()]}{changed}{text[number.end() :]}"


def _another(words: list[str]) -> Callable[[str, Random], str | None]:
    def edit(text: str, random: Random) -> str | None:
        found = [word for word in words if re.search(rf"\b{word}\b", text)]
        if not found:
            return None
        word = random.choice(found)
        other = random.choice([each for each in words if each not in text])
        return re.sub(rf"\b{word}\b", other, text, count=1)

    return edit


def _similar_name(text: str, random: Random) -> str | None:
    """A name one letter away, which looks like a typo."""
    found = [name for name in _NAMES if re.search(rf"\b{name}\b", text)]
    if not found:
        return None
    name = random.choice(found)
    at = random.randrange(1, len(name))
    other = name[:at] + random.choice([letter for letter in "aeioulnrst" if letter != name[at]]) + name[at + 1 :]
    return re.sub(rf"\b{name}\b", other, text, count=1)


def _negation(text: str, random: Random) -> str | None:
    found = list(re.finditer(r"\b(is|are|was|will|can|should|has) (?!not\b)", text))
    if found:
        verb = random.choice(found)
        return f"{text[: verb.end()]}not {text[verb.end() :]}"
    for one, other in (
        (" not ", " "),
        ("n't", ""),
        (" with ", " without "),
        (" always ", " never "),
        (" too ", " not too "),
    ):
        if one in text:
            return text.replace(one, other, 1)
    return None


def _opposite(text: str, random: Random) -> str | None:
    turned = [
        (one, other) for pair in _OPPOSITES for one, other in (pair, pair[::-1]) if re.search(rf"\b{one}\b", text)
    ]
    if not turned:
        return None
    one, other = random.choice(turned)
    return re.sub(rf"\b{one}\b", other, text, count=1)


def _yes_no(text: str, _: Random) -> str | None:
    for one, other in (("Yes", "No"), ("No,", "Yes,")):
        if text.startswith(one):
            return other + text[len(one) :]
    return None


def _swapped(text: str, _: Random) -> str | None:
    """Two names have exchanged their parts."""
    found = [name for name in re.findall(r"\b[A-Z][a-z]+\b", text) if name in _NAMES]
    if len(found) != 2 or f"{found[0]} and {found[1]}" in text:
        return None
    first, second = found
    return text.replace(first, "\0").replace(second, first).replace("\0", second)


HARD: dict[str, Callable[[str, Random], str | None]] = {
    "number": _number,
    "month": _another(_MONTHS),
    "day": _another(_DAYS),
    "name": _another(_NAMES),
    "similar name": _similar_name,
    "names exchanged": _swapped,
    "city": _another(_CITIES),
    "item": _another(_ITEMS),
    "unit": _another(_UNITS),
    "negation": _negation,
    "opposite": _opposite,
    "yes or no": _yes_no,
}
"""Edits that change what is said, by name; None where the text offers no place for one."""


# Edits that change little, which the policy was not made for


def _word_left_out(text: str, random: Random) -> str | None:
    words = text.split()
    telling = {"not", "never", "no", "before", "after", "until"}
    places = [at for at, word in enumerate(words) if at and word.isalpha() and word.islower() and word not in telling]
    if not places:
        return None
    del words[random.choice(places)]
    return " ".join(words)


def _neighbours_exchanged(text: str, random: Random) -> str:
    words = text.split()
    at = random.randrange(len(words) - 1)
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def _any_letter(text: str, random: Random) -> str | None:
    words = text.split()
    places = [at for at, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not places:
        return None
    at = random.choice(places)
    letter = random.randrange(len(words[at]))
    words[at] = words[at][:letter] + random.choice("abcdefghijklmnopqrstuvwxyz") + words[at][letter + 1 :]
    return " ".join(words)


def _no_punctuation(text: str, _: Random) -> str:
    return re.sub(r"[^\w\s]", "", text)


def _reported(text: str, random: Random) -> str:
    return random.choice(("The user said that ", "I wanted to say that ", "Remember that ", "Note: ", "Also, ")) + text


LOOSE: dict[str, Callable[[str, Random], str | None]] = {
    "a word left out": _word_left_out,
    "two neighbours exchanged": _neighbours_exchanged,
    "any letter wrong, of names too": _any_letter,
    "no punctuation": _no_punctuation,
    "reported": _reported,
}
"""Edits that change little, by name: some do change what is said."""
