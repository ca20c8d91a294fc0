"""Finding a concept's word in a sentence."""

from __future__ import annotations

import re
from functools import cache

import inflect


@cache
def word_pattern(concept: str) -> re.Pattern[str]:
    """A pattern that matches a concept's name as a whole word, singular or plural, in any case.

    A name of several words matches with any white space or hyphen between them; its last word may
    be plural.
    """
    *before, last = re.split(r"[\s_-]+", concept.strip())
    forms = {last, _plural(last), f"{last}s"}
    joined = r"[\s-]+".join(
        [
            *map(re.escape, before),
            f"(?:{'|'.join(re.escape(form) for form in sorted(forms, key=len, reverse=True))})",
        ]
    )
    return re.compile(rf"(?<!\w){joined}(?!\w)", re.IGNORECASE)


def find_word(text: str, concept: str) -> list[tuple[int, int]]:
    """Start and end, in characters, of each occurrence of the concept's word in the text."""
    return [match.span() for match in word_pattern(concept).finditer(text)]


def normal_form(word: str) -> str:
    """A word as it is compared: lower case, its parts with one space between them."""
    return " ".join(re.split(r"[\s_-]+", word.strip().lower()))


@cache
def singular(word: str) -> str:
    """The singular of a noun; the word itself where it is none."""
    return str(_engine().singular_noun(word) or word)


@cache
def _engine() -> inflect.engine:
    return inflect.engine()


@cache
def _plural(word: str) -> str:
    return str(_engine().plural_noun(word))
