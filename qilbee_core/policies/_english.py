"""English words that the policy ``duplicates`` treats as special.

Other languages get none of this: what is not known to say nothing is taken to say something.
"""

# ruff: noqa: SIM905 - many words read better as text

from __future__ import annotations

__all__ = [
    "ASIDES",
    "CONTRACTIONS",
    "DEICTIC",
    "FILLERS",
    "FLIPPING",
    "LIGHT",
    "MOVABLE",
    "OPENERS",
    "PHRASES",
    "QUESTION_WORDS",
    "REMINDERS",
    "SAME",
]

FILLERS = frozenset(
    "a an the um uh er erm hm hmm really actually basically literally honestly simply please kindly just".split()
)
"""They say nothing, wherever they stand."""

OPENERS = frozenset("well so oh ah hey hi hello ok anyway alright".split())
"""They say nothing at the beginning of a sentence."""

PHRASES = ("you know", "i mean", "in fact", "of course")
"""They say nothing between commas, or at the beginning of a sentence before one."""

ASIDES = (
    "by the way",
    "as i said",
    "as mentioned",
    "as you know",
    "to be honest",
    "to be clear",
    "for the record",
    "btw",
    "fyi",
)
"""They say nothing, wherever they stand."""

REMINDERS = (
    "(?:please )?(?:note|remember)(?: that|:)",
    "keep in mind that",
    "just to note",
    "i (?:just )?(?:want|wanted) to (?:say|mention|add) that",
)
"""They say nothing at the beginning of a text."""

LIGHT = frozenset("'s of for to that in at on it is do did there this some also very quite then".split())
"""One text may have them where another has nothing; but "on" is never "in"."""

SAME = {
    word: first
    for first, *others in (
        line.split()
        for line in """
        is am are
        was were
        have has
        do does
        because cause cos
        until till
        also too
        but however
        though although
        about around approximately approx roughly circa
        nearly almost
        maybe perhaps possibly
        will shall
        every each everyday
        everyone everybody
        someone somebody
        anyone anybody
        nobody noone
        towards toward
        among amongst
        while whilst
        on upon
        who whom
        yes yeah yep yup
        no nope nah
        ok okay
        thanks thx thankyou
        for of
        percent pct
        0 zero
        1 one
        2 two
        3 three
        4 four
        5 five
        6 six
        7 seven
        8 eight
        9 nine
        10 ten
        11 eleven
        12 twelve
        15 fifteen
        20 twenty
        30 thirty
        40 forty
        50 fifty
        60 sixty
        100 hundred
        """.strip().splitlines()
    )
    for word in others
}
"""Words that stand for one and the same, to the one that is used here."""

CONTRACTIONS = {
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "shan't": "will not",
    "gonna": "going to",
    "wanna": "want to",
    "gotta": "have to",
    "let's": "let us",
    "it's": "it is",
    "he's": "he is",
    "she's": "she is",
    "that's": "that is",
    "there's": "there is",
    "here's": "here is",
    "what's": "what is",
    "where's": "where is",
    "who's": "who is",
    "how's": "how is",
    "its": "it is",
    "thats": "that is",
    "im": "i is",
    "ive": "i have",
    "youre": "you is",
    "theyre": "they is",
    "cant": "can not",
    "wont": "will not",
    "dont": "do not",
    "doesnt": "do not",
    "didnt": "did not",
    "isnt": "is not",
    "arent": "is not",
    "wasnt": "was not",
    "havent": "have not",
    "hasnt": "have not",
    "couldnt": "could not",
    "wouldnt": "would not",
    "shouldnt": "should not",
}
"""In full, also where the apostrophe is missing; endings such as "n't" and "'ll" are cut by rule."""

QUESTION_WORDS = frozenset(
    "what where when why who whose which how is was do did have had can could will would should may might must".split()
)
"""A sentence that begins with one of them is a question even without its mark."""

MOVABLE = frozenset("today yesterday tomorrow tonight now again later recently finally already soon currently".split())
"""They say the same at either end of a sentence."""

DEICTIC = frozenset("today yesterday tomorrow tonight now ago last next this currently".split())
"""What they say depends on the day they are said."""

FLIPPING = frozenset(
    """
    not no never none nobody nothing nowhere nor neither without hardly barely scarcely rarely seldom
    except unless if only nearly maybe probably likely unlikely supposedly allegedly
    may might could would should must can will was had
    before after until since during than more less most least first last next former ex previous other another different
    wrong false fake true stop stopped fail fails failed refuse refused deny denied decline declined cancel cancelled
    canceled avoid avoided lack lacks lost against instead both either half double twice once all every few many
    up down off out under over above below left right increase decrease rise fall open close closed start end
    nicht kein keine nie ne pas jamais non nunca jamas sin mai senza sem niet geen nooit inte ikke aldrig ei
    monday tuesday wednesday thursday friday saturday sunday
    january february march april june july august september october november december
    """.split()
)
"""One of them more or less can turn a sentence round."""
