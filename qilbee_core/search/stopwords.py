"""Words that say nothing about what a text is about.

The words of other languages weigh little by being frequent; English ones are left out, which makes rows smaller.
What follows an apostrophe ("don't", "we've") stands alone here, as analysis gives it.
"""

from __future__ import annotations

__all__ = ["ENGLISH"]

_WORDS = """
a an the and or but if then than that this these those there here
i me my mine myself you your yours yourself yourselves we us our ours ourselves he him his himself she her hers
herself it its itself they them their theirs themselves who whom whose what which when where why how
am is are was were be been being do does did done doing have has had having
will would shall should can could may might must cannot ain
of in on at by for with about to from into over under up down out off as so
no not nor too very just also only own same such both each few more most other some any all again once
because while during before after between through until against
d ll m re s t ve don didn doesn isn aren wasn weren won couldn shouldn wouldn haven hasn hadn mustn needn
"""
ENGLISH = frozenset(_WORDS.split())
"""Pronouns, auxiliaries, prepositions, conjunctions and the commonest adverbs."""
