"""Finding a concept's word in a sentence, and the words of many concepts in a large text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING
from unicodedata import combining, normalize

import numpy as np
from ahocorasick_rs import BytesAhoCorasick, MatchKind

from alignment.arrays import Ints

if TYPE_CHECKING:
    import inflect

NOUN, VERB = "noun", "verb"

# between the words of a multi-word name
_SEPARATOR = r"[\s\-\u2010\u2011]+"

# keeps letters (in lower case), digits, underscores and bytes beyond ASCII; the others become spaces
_MASK_TABLE = re.sub(rb"[^\w\x80-\xff]", b" ", bytes(range(256))).lower()
# general punctuation (dashes, curly quotes) and Latin-1 punctuation
_MULTIBYTE_PUNCTUATION = re.compile(rb"\xe2\x80[\x80-\xbf]|\xc2[\xa0-\xbf]")

# between texts that are searched together: a space at the end of one, a mark, a space before the next
_TEXT_GAP = b" \n "


@dataclass(frozen=True)
class ConceptWord:
    """The word to match for a concept: its name, part of speech and language."""

    name: str
    pos: str = NOUN
    language: str = "en"


@cache
def word_pattern(concept: str | ConceptWord) -> re.Pattern[str]:
    """A pattern that matches a concept's name as a separate word, in any inflection and case.

    A multi-word name matches with any white space or hyphen between its words, and with straight or
    curly apostrophes. Parts of longer words do not match, hyphenated ones ("cat-like") included.
    """
    word = concept if isinstance(concept, ConceptWord) else ConceptWord(concept)
    forms = sorted(inflections(word.name, word.pos, word.language), key=len, reverse=True)
    spellings = [_SEPARATOR.join(map(re.escape, form.split(" "))).replace("'", "['’]") for form in forms]
    return re.compile(rf"(?<!\w)(?<!\w-)(?:{'|'.join(spellings)})(?!-?\w)", re.IGNORECASE)


def find_word(text: str, concept: str | ConceptWord) -> list[tuple[int, int]]:
    """Start and end, in characters, of every occurrence of the concept's word in the text."""
    return [match.span() for match in word_pattern(concept).finditer(text)]


def has_word(text: str, concept: str | ConceptWord) -> bool:
    """Whether the concept's word occurs in the text."""
    return word_pattern(concept).search(text) is not None


def shuffle_words(text: str, words: Sequence[str | ConceptWord], rng: np.random.Generator) -> str:
    """Shuffle the words of a text with their punctuation, without splitting multi-word `words`."""
    spans = sorted(span for word in words for span in find_word(text, word))
    parts, end = [""], 0
    for match in re.finditer(r"\S+", text):
        inside = any(start < match.start() < stop for start, stop in spans)
        parts[-1:] = [parts[-1] + text[end : match.end()]] if inside else [parts[-1], match.group()]
        end = match.end()
    return " ".join(rng.permutation(parts[1:]))


def normalize_word(word: str) -> str:
    """Normalize a word for comparison: lower case, single spaces, composed characters (NFC)."""
    return " ".join(re.split(r"[\s_-]+", normalize("NFC", word).strip().lower()))


@cache
def singularize(word: str) -> str:
    """The singular of an English noun; the word itself if it is not a plural."""
    return str(_inflect_engine().singular_noun(word) or word)


@cache
def inflections(name: str, pos: str = NOUN, language: str = "en") -> frozenset[str]:
    """The inflected forms of a name, itself included, with single spaces between words.

    For an English noun these are its rule-based plurals, regular and classical (Latin, Greek), with and
    without accents. Otherwise they are the forms that simplemma's dictionary of the language lemmatizes
    to the word, whatever their part of speech; a multi-word name inflects its first word if it is a verb
    ("gave up"), else its last.
    """
    parts = re.split(r"[\s_-]+", name.strip().replace("’", "'"))
    name = " ".join(parts)
    if language == "en" and pos == NOUN:
        plurals = (str(_inflect_engine(classical).plural_noun(name)) for classical in (False, True))
        forms = {name, _regular_plural(name), *plurals}
        return frozenset(forms | {strip_accents(form) for form in forms})
    head = 0 if pos == VERB else len(parts) - 1
    head_forms = {parts[head], *_load_forms(language).get(parts[head], ())}
    return frozenset(" ".join([*parts[:head], form, *parts[head + 1 :]]) for form in head_forms)


def strip_accents(text: str) -> str:
    """The text with letters in place of accented ones."""
    return "".join(char for char in normalize("NFD", text) if not combining(char))


def _regular_plural(noun: str) -> str:
    """The regular plural, which some irregular nouns have too ("fishes")."""
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if re.search(r"([sxz]|ch|sh)$", noun) else f"{noun}s"


class WordFinder:
    """Finds which of many words occur in a text, in one pass over it."""

    def __init__(self, words: Sequence[ConceptWord]) -> None:
        self.words = list(words)
        # words may have a form in common ("leaf" and "leave"): both match
        indices_by_pattern: dict[bytes, list[int]] = {}
        for index, word in enumerate(self.words):
            for pattern in _byte_patterns(word):
                indices_by_pattern.setdefault(pattern, []).append(index)
        self._counts = np.array(list(map(len, indices_by_pattern.values())), np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self._indices = np.array(list(chain.from_iterable(indices_by_pattern.values())), np.int64)
        self._automaton = BytesAhoCorasick(list(indices_by_pattern), matchkind=MatchKind.Standard)

    def find_in_bytes(self, text: bytes) -> tuple[Ints, Ints]:
        """The indices of the words in a UTF-8 text and, as a parallel array, their start bytes.

        A word inside a longer name ("ice" in "ice cream") does not count. A name with punctuation
        ("C++") matches by its letters only; `find` is exact.
        """
        return self._find_in_masked(b" " + mask_non_words(text) + b" ")

    def _find_in_masked(self, masked: bytes) -> tuple[Ints, Ints]:
        """As `find_in_bytes`, in masked text with a space at each end."""
        matches = self._automaton.find_matches_as_indexes(masked, overlapping=True)
        flat = np.fromiter(chain.from_iterable(matches), np.int64, 3 * len(matches))
        pattern, start, end = flat.reshape(-1, 3).T
        order = np.lexsort((-end, start))
        pattern, start, end = pattern[order], start[order], end[order]
        furthest = np.maximum.accumulate(end)
        # a match includes the spaces around it, so neighbors overlap by one byte
        is_nested = np.zeros(len(end), np.bool_)
        is_nested[1:] = end[1:] <= furthest[:-1]
        pattern, start = pattern[~is_nested], start[~is_nested]
        counts = self._counts[pattern]
        # one entry per word of a pattern
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        indices = self._indices[np.repeat(self._firsts[pattern], counts) + nth]
        return indices, np.repeat(start, counts)

    def find(self, text: str) -> set[int]:
        """The indices of the words in a text, except inside longer names."""
        (candidates,) = self.find_candidates([text])
        return {index for index in candidates if has_word(text, self.words[index])}

    def find_candidates(self, texts: Sequence[str]) -> list[list[int]]:
        """For each of many texts, the indices of the words that `find` would check in it, sorted."""
        encoded = [text.encode() for text in texts]
        starts = np.cumsum([0, *(len(text) + len(_TEXT_GAP) for text in encoded)])
        indices, places = self._find_in_masked(_mask_texts(encoded, starts))
        # the space before a word is where it starts
        owners = np.searchsorted(starts, places, "right") - 1
        found: list[list[int]] = [[] for _ in texts]
        for owner, index in np.unique(np.stack((owners, indices), 1), axis=0).tolist():
            found[owner].append(index)
        return found


def mask_non_words(text: bytes) -> bytes:
    """Replace non-word bytes of UTF-8 text by spaces and A-Z by a-z; the length stays the same."""
    if b"\xe2\x80" in text or b"\xc2" in text:
        text = _MULTIBYTE_PUNCTUATION.sub(lambda match: b" " * len(match.group()), text)
    return text.translate(_MASK_TABLE)


def _mask_texts(texts: Sequence[bytes], starts: Ints) -> bytes:
    """Masked texts, each with a space at either end, joined by a byte that occurs in no pattern."""
    masked = bytearray(b" " + mask_non_words(_TEXT_GAP.join(texts)) + b" ")
    for start in starts[1:-1].tolist():
        masked[start - 1 : start] = b"\n"
    return bytes(masked)


def _byte_patterns(word: ConceptWord) -> set[bytes]:
    """The word's forms in masked text, with a space on either side.

    Masking lower-cases only A-Z, so other letters need a pattern for each casing; and it turns
    multibyte punctuation into several spaces, so each variant needs a pattern.
    """
    forms = inflections(word.name, word.pos, word.language)
    cased = {case(form) for form in forms for case in (str, str.lower, str.upper, str.title)}
    spellings = {
        form.replace(" ", separator).replace("'", apostrophe)
        for form in cased
        for separator in (" ", "\N{NON-BREAKING HYPHEN}")
        for apostrophe in ("'", "’")
    }
    return {b" " + mask_non_words(form.encode()) + b" " for form in spellings}


@cache
def _inflect_engine(classical: bool = False) -> inflect.engine:
    # slow to import
    import inflect

    engine = inflect.engine()
    engine.classical(all=classical)
    return engine


@cache
def _load_forms(language: str) -> dict[str, list[str]]:
    """The inflected forms of each lemma in a language's dictionary."""
    from simplemma.strategies import DefaultDictionaryFactory

    forms: dict[str, list[str]] = {}
    for form, word in DefaultDictionaryFactory().get_dictionary(language).items():
        forms.setdefault(word, []).append(form)
    return forms
