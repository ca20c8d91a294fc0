"""The quality gate: from raw text to sentences that can stand for a concept, and why others cannot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sentencex
import simplemma
from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES

from alignment.words import Word, WordFinder, find_word

NO_WORD = "the concept's word is not in it"
OTHER_CONCEPT = "names another concept"
SHORT = "too short"
LONG = "too long"
NOT_WHOLE = "no whole sentence"
REFUSAL = "a refusal or talk about the task"
OTHER_LANGUAGE = "another language"
OTHER_POS = "another part of speech"
REPEAT = "repeats another"
NEAR_REPEAT = "nearly repeats another"

LANGUAGES = frozenset(SUPPORTED_LANGUAGES)
TAGGED = {"noun": ("NN",), "verb": ("VV", "VB", "VD", "VH"), "adjective": ("AJ",), "adverb": ("AV",)}
"""The parts of speech that are told apart in English, with the C5 tags (their start) of each."""

FEWEST_WORDS, MOST_WORDS = 5, 40
_KNOWN_SHARE = 0.7
_SHARED_TRIGRAMS = 0.5

_MARK = re.compile(r"^\s*(?:(?:[-*•–—>#]+|\(?\d{1,3}[.):]|\(?[a-zA-Z]\))\s+)+")
_EMPHASIS = re.compile(r"\*\*|__|`|^\*(?=\S)|(?<=\S)\*$")
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "„": "“"}
_ENDINGS = tuple(".!?…。！？")
_CLOSERS = "\"'”’»)]"
_TALK = re.compile(
    r"^(?:i(?:['’]m| am) (?:sorry|(?:not able|unable) to)|sorry,|i apologi[sz]e|"
    r"i can(?:['’]t|not| not)\b|as an ai\b|(?:sure|certainly|of course)[,!.]|"
    r"here(?: is| are|['’]s)\b|please (?:provide|let me)|the sentence (?:is|will)\b)|"
    r"\b(?:language model|as an ai|(?:this|my|your|following) sentence)\b|\bthe word [\"“'‘]",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")


def split(text: str, language: str = "en") -> list[str]:
    """The sentences of a text, each without the mark of a list, emphasis or quotes around it."""
    found = []
    for line in text.splitlines():
        for sentence in sentencex.segment(language, _MARK.sub("", line)):
            cleaned = clean(sentence)
            if cleaned:
                found.append(cleaned)
    return found


def clean(sentence: str) -> str:
    """A sentence on one line, without the mark of a list, emphasis or quotes around it."""
    plain = _EMPHASIS.sub("", _MARK.sub("", " ".join(sentence.split()))).strip()
    closing = _QUOTES.get(plain[:1])
    # an apostrophe may be the first letter's ("'Tis")
    if closing is None or (plain[0] in "'‘" and not plain.endswith(closing)):
        return plain
    rest = plain[1:]
    if closing not in rest.replace("’s", "").rstrip(closing):
        return rest.removesuffix(closing).strip()
    return plain


def words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return re.findall(r"\w+(?:['’]\w+)?", text.lower())


def trigrams(text: str) -> set[tuple[str, str, str]]:
    """Each three words that follow each other."""
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


class Gate:
    """What makes a sentence fit for one of the concepts of a set."""

    def __init__(self, concepts: Sequence[Word], language: str = "en") -> None:
        self._finder = WordFinder(concepts)
        self.language = language
        self.concepts = list(concepts)

    def objection(self, text: str, concepts: Collection[int], check_pos: bool = True) -> str | None:
        """Why a sentence cannot stand for the concepts of these numbers or, for none of them, be a
        negative of all; None if it can."""
        own = [self.concepts[number] for number in concepts]
        checks: list[tuple[str, Callable[[], bool]]] = [
            (REFUSAL, lambda: bool(_TALK.search(text))),
            (SHORT, lambda: len(text.split()) < FEWEST_WORDS),
            (LONG, lambda: len(text.split()) > MOST_WORDS),
            (NOT_WHOLE, lambda: not _is_whole(text)),
            (NO_WORD, lambda: not all(find_word(text, word) for word in own)),
            (OTHER_CONCEPT, lambda: bool(self._finder.find(text).difference(concepts))),
            (OTHER_LANGUAGE, lambda: not is_in(text, self.language)),
            (OTHER_POS, lambda: check_pos and not all(has_pos(text, word) for word in own)),
        ]
        return next((reason for reason, is_wrong in checks if is_wrong()), None)


@dataclass
class Collected:
    """The sentences kept for one concept, and how many were dropped for which reason."""

    kept: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    _seen: set[tuple[str, ...]] = field(default_factory=set)
    _sizes: list[int] = field(default_factory=list)
    _holding: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)

    def repeats(self, text: str) -> str | None:
        """Why a sentence says what a kept one says; None if it does not.

        Two nearly repeat each other when they share more than half of the trigrams of words of the
        one that has fewer.
        """
        if tuple(words(text)) in self._seen:
            return REPEAT
        own = trigrams(text)
        shared = Counter(number for each in own for number in self._holding.get(each, ()))
        near = (
            count > _SHARED_TRIGRAMS * min(len(own), self._sizes[number])
            for number, count in shared.items()
        )
        return NEAR_REPEAT if any(near) else None

    def keep(self, text: str) -> None:
        """Take a sentence in."""
        own = trigrams(text)
        for each in own:
            self._holding.setdefault(each, []).append(len(self.kept))
        self._sizes.append(len(own))
        self._seen.add(tuple(words(text)))
        self.kept.append(text)

    def drop(self, text: str, reason: str) -> None:
        """Count a sentence that is not kept; the first of each reason is its example."""
        self.dropped[reason] += 1
        self.examples.setdefault(reason, text)


def collect(
    texts: Iterable[str],
    gate: Gate,
    concepts: Collection[int],
    wanted: int,
    into: Collected | None = None,
) -> Collected:
    """Keep the sentences of raw texts that pass the gate for the concepts, until `wanted` are kept."""
    collected = into or Collected()
    for sentence in (each for text in texts for each in split(text, gate.language)):
        if len(collected.kept) >= wanted:
            break
        reason = gate.objection(sentence, concepts) or collected.repeats(sentence)
        if reason is None:
            collected.keep(sentence)
        else:
            collected.drop(sentence, reason)
    return collected


def is_in(text: str, language: str) -> bool:
    """Whether at least 70% of a text's words are in a language's dictionary: a heuristic, since kin
    languages share words. Of English sentences it loses 3 in 1,000, those full of foreign names."""
    return bool(simplemma.in_target_language(text, language) >= _KNOWN_SHARE)


def has_pos(text: str, word: Word) -> bool:
    """Whether the word stands in the text in its own part of speech at least once.

    Judged by a tagger for English; in other languages, and for parts of speech that TAGGED does not
    have, always. A name is no noun, but the first word of a sentence only looks like a name.
    """
    wanted = TAGGED.get(word.pos)
    if word.language != "en" or wanted is None:
        return True
    tokens = list(_TOKEN.finditer(text))
    tags = [tag for _, _, tag in _tagger().tag_sent([token.group() for token in tokens])]
    ends = {end for _, end in find_word(text, word)}
    return any(
        tag.startswith(wanted) or (number == 0 and word.pos == "noun" and tag == "NP0")
        for number, (token, tag) in enumerate(zip(tokens, tags, strict=True))
        if any(token.start() < end <= token.end() for end in ends)
    )


def _is_whole(text: str) -> bool:
    """Whether a text begins as a sentence and ends as one."""
    first = next((character for character in text if character.isalnum()), "")
    return text.rstrip(_CLOSERS).endswith(_ENDINGS) and not first.islower()


@cache
def _tagger() -> Any:
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")
