"""Finding a concept's word in a sentence, and the words of many concepts in much text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING
from unicodedata import combining, normalize

import numpy as np
import numpy.typing as npt
from ahocorasick_rs import BytesAhoCorasick, MatchKind

if TYPE_CHECKING:
    import inflect

NOUN, VERB = "noun", "verb"

# what may stand between the parts of a name
_BETWEEN = r"[\s\-\u2010\u2011]+"

# bytes of letters, digits and all beyond ASCII stay, in small letters; the others become spaces
_SPACED = bytes(
    byte + 32
    if chr(byte).isupper() and byte < 128
    else byte
    if chr(byte).isalnum() or byte >= 128 or byte == ord("_")
    else ord(" ")
    for byte in range(256)
)
# general punctuation (dashes, curly quotes), and the marks of Latin-1
_WIDE_MARKS = re.compile(rb"\xe2\x80[\x80-\xbf]|\xc2[\xa0-\xbf]")


@dataclass(frozen=True)
class Word:
    """The word of a concept: its name, its part of speech and the language that it is of."""

    name: str
    pos: str = NOUN
    language: str = "en"


@cache
def word_pattern(concept: str | Word) -> re.Pattern[str]:
    """A pattern that matches a concept's name as a whole word, in any inflection and case.

    A name of several words matches with any white space or hyphen between them, and its apostrophes
    straight or curly. Part of a longer word is none, nor of one with a hyphen ("cat-like").
    """
    word = concept if isinstance(concept, Word) else Word(concept)
    forms = sorted(inflections(word.name, word.pos, word.language), key=len, reverse=True)
    spelled = [_BETWEEN.join(map(re.escape, form.split(" "))).replace("'", "['’]") for form in forms]
    return re.compile(rf"(?<!\w)(?<!\w-)(?:{'|'.join(spelled)})(?!-?\w)", re.IGNORECASE)


def find_word(text: str, concept: str | Word) -> list[tuple[int, int]]:
    """Start and end, in characters, of each occurrence of the concept's word in the text."""
    return [match.span() for match in word_pattern(concept).finditer(text)]


def shuffled(text: str, words: Sequence[str | Word], random: np.random.Generator) -> str:
    """The words of a text in another order, each with the marks that stand at it; `words`, which may be
    of several parts, are kept whole."""
    spans = sorted(span for word in words for span in find_word(text, word))
    pieces, end = [""], 0
    for match in re.finditer(r"\S+", text):
        inside = any(start < match.start() < stop for start, stop in spans)
        pieces[-1:] = [pieces[-1] + text[end : match.end()]] if inside else [pieces[-1], match.group()]
        end = match.end()
    return " ".join(random.permutation(pieces[1:]))


def normal_form(word: str) -> str:
    """A word as it is compared: lower case, one space between its parts, accented letters as one
    character."""
    return " ".join(re.split(r"[\s_-]+", normalize("NFC", word).strip().lower()))


@cache
def singular(word: str) -> str:
    """The singular of a noun; the word itself where it is none."""
    return str(_engine().singular_noun(word) or word)


@cache
def inflections(name: str, pos: str = NOUN, language: str = "en") -> frozenset[str]:
    """The forms of a name, itself among them, with one space between their parts.

    An English noun's are its plurals, made by rule: everyday ones and those of Latin and Greek, with and
    without accents. Others' are those that simplemma's dictionary of the language leads back to the
    word, whatever their part of speech; of a name of several words the first is inflected if it is a
    verb ("gave up"), else the last.
    """
    parts = re.split(r"[\s_-]+", name.strip().replace("’", "'"))
    whole = " ".join(parts)
    if language == "en" and pos == NOUN:
        plurals = (str(_engine(classical).plural_noun(whole)) for classical in (False, True))
        forms = {whole, _regular_plural(whole), *plurals}
        return frozenset(forms | {_without_accents(form) for form in forms})
    if pos == VERB:
        return frozenset(" ".join([form, *parts[1:]]) for form in _forms(parts[0], language))
    return frozenset(" ".join([*parts[:-1], form]) for form in _forms(parts[-1], language))


def _without_accents(text: str) -> str:
    return "".join(each for each in normalize("NFD", text) if not combining(each))


def _regular_plural(noun: str) -> str:
    """What the rules know as irregular may be regular too: "fishes"."""
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if re.search(r"([sxz]|ch|sh)$", noun) else f"{noun}s"


class WordFinder:
    """Finds which of many words stand in a text, in one pass over it."""

    def __init__(self, words: Sequence[Word]) -> None:
        self.words = list(words)
        of: dict[bytes, list[int]] = {}
        for number, word in enumerate(self.words):
            for pattern in _byte_patterns(word):
                of.setdefault(pattern, []).append(number)
        # two words may have a form in common ("leaf" and "leave"): both are found
        self._counts = np.array([len(numbers) for numbers in of.values()], np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self._numbers = np.array([each for numbers in of.values() for each in numbers], np.int64)
        self._automaton = BytesAhoCorasick(list(of), matchkind=MatchKind.Standard)

    def hits(self, text: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the words found in UTF-8 text and, side by side, the bytes where they start.

        A word inside another's longer name ("ice" in "ice cream") is not counted. A name with marks
        in it ("C++") is found by its letters: `find` looks closer.
        """
        found = self._automaton.find_matches_as_indexes(b" " + spaced(text) + b" ", overlapping=True)
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        flat = np.fromiter(chain.from_iterable(found), np.int64, 3 * len(found))
        pattern, start, end = flat.reshape(-1, 3).T
        order = np.lexsort((-end, start))
        pattern, start, end = pattern[order], start[order], end[order]
        furthest = np.maximum.accumulate(end)
        # the spaces on both sides belong to a match, so two that share only these are apart
        inside = np.zeros(len(end), np.bool_)
        inside[1:] = end[1:] <= furthest[:-1]
        pattern, start = pattern[~inside], start[~inside]
        counts = self._counts[pattern]
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = self._numbers[np.repeat(self._firsts[pattern], counts) + nth]
        return numbers, np.repeat(start, counts)

    def find(self, text: str) -> set[int]:
        """Numbers of the words that stand in a text, but not inside another's longer name."""
        numbers, _ = self.hits(text.encode())
        return {int(each) for each in np.unique(numbers) if find_word(text, self.words[each])}


def spaced(text: bytes) -> bytes:
    """UTF-8 text of the same length in which all that is no word is spaces, and A-Z are a-z."""
    if b"\xe2\x80" in text or b"\xc2" in text:
        text = _WIDE_MARKS.sub(lambda mark: b" " * len(mark.group()), text)
    return text.translate(_SPACED)


def _byte_patterns(word: Word) -> set[bytes]:
    """The word's forms as they stand in spaced text, with a space on either side.

    A-Z are small there but other letters are as they were, so each casing of these is a pattern; and a
    mark is as many spaces as it has bytes.
    """
    forms = inflections(word.name, word.pos, word.language)
    cased = {case(form) for form in forms for case in (str, str.lower, str.upper, str.title)}
    spelled = {
        form.replace(" ", between).replace("'", apostrophe)
        for form in cased
        for between in (" ", "\N{NON-BREAKING HYPHEN}")
        for apostrophe in ("'", "’")
    }
    return {b" " + spaced(form.encode()) + b" " for form in spelled}


@cache
def _engine(classical: bool = False) -> inflect.engine:
    # slow to load
    import inflect

    engine = inflect.engine()
    engine.classical(all=classical)
    return engine


def _forms(word: str, language: str) -> set[str]:
    return {word, *_dictionary(language).get(word, ())}


@cache
def _dictionary(language: str) -> dict[str, list[str]]:
    """Each word of a language with the forms that a dictionary leads back to it."""
    from simplemma.strategies import DefaultDictionaryFactory

    forms: dict[str, list[str]] = {}
    for form, word in DefaultDictionaryFactory().get_dictionary(language).items():
        forms.setdefault(word, []).append(form)
    return forms
