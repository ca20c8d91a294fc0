"""Replacing concepts' words in a sentence by a neutral placeholder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from alignment.text.word_matching import NOUN, ConceptWord, find_word, normalize_word, strip_accents

SINGULAR, PLURAL = "thing", "things"
_BEFORE_SENTENCES = ("", *'.!?:("', *"\N{HORIZONTAL ELLIPSIS}\N{LEFT DOUBLE QUOTATION MARK}")
_INDEFINITE_ARTICLE = re.compile(r"\b(a)n(\s+)$", re.IGNORECASE)


def mask_words(
    text: str, words: Mapping[str, ConceptWord]
) -> tuple[str, dict[str, list[tuple[int, int]]]]:
    """An English text with every occurrence of the words replaced by "thing" or, for a plural, "things";
    and, by the keys of `words`, start and end of the placeholders of each, in characters.

    "an" before a placeholder becomes "a". A word inside another ("bear", "polar bear") shares its
    placeholder.
    """
    occurrences: list[tuple[int, int, list[str]]] = []
    matches = [(start, -end, key) for key, word in words.items() for start, end in find_word(text, word)]
    for start, negative_end, key in sorted(matches):
        if occurrences and start < occurrences[-1][1]:
            first, end, keys = occurrences[-1]
            occurrences[-1] = first, max(end, -negative_end), [*keys, key]
        else:
            occurrences.append((start, -negative_end, [key]))
    spans: dict[str, list[tuple[int, int]]] = {key: [] for key in words}
    masked = ""
    for (_, gap_start, _), (start, end, keys) in pairwise([(0, 0, []), *occurrences]):
        masked += _INDEFINITE_ARTICLE.sub(r"\1\2", text[gap_start:start])
        placeholder = _placeholder(text[start:end], words[keys[0]], text[:start])
        for key in keys:
            spans[key].append((len(masked), len(masked) + len(placeholder)))
        masked += placeholder
    return masked + text[occurrences[-1][1] if occurrences else 0 :], spans


def _placeholder(form: str, word: ConceptWord, preceding: str) -> str:
    """The placeholder of a matched form, capitalized only where a sentence may start: elsewhere a
    capital would tell that the word is a name."""
    placeholder = PLURAL if _is_plural(form, word) else SINGULAR
    is_start = preceding.rstrip()[-1:] in _BEFORE_SENTENCES
    return placeholder.capitalize() if is_start and form[0].isupper() else placeholder


def _is_plural(form: str, word: ConceptWord) -> bool:
    """Whether a matched form is a plural other than the noun itself (as that of "sheep" is)."""
    return word.pos == NOUN and _normalize(form) != _normalize(word.name)


def _normalize(form: str) -> str:
    """A form without accents and capitals, with single spaces between its words."""
    spaced = re.sub(r"[\u2010\u2011]", " ", form.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return strip_accents(normalize_word(spaced))
