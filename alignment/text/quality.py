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

from alignment.text.word_matching import NOUN, VERB, Word, WordFinder, find_word

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

_MARK = re.compile(
    r"^\s*(?:(?:[-*•●▪◦‣·–—>#]+|\(?\d{1,3}[.):]|\(?[a-z]\)|"
    r"(?:the )?(?:answer|example|fact|sentence|story)(?: is)?[ \d]*:)\s+)+",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"\*+|__|`|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "„": "“"}
_ENDINGS = tuple(".!?…。！？")
_CLOSERS = "\"'”’»)]"
_TALK = re.compile(
    r"^(?:(?:unfortunately, )?i(?:['’]m| am) (?:sorry|(?:not able|unable) to)|sorry,|i apologi[sz]e|"
    r"(?:unfortunately, )?i can(?:['’]t|not| not)\b|(?:sure|certainly|okay|of course)[,!.]|"
    r"here(?: is| are|['’]s)\b|please (?:provide|let me)|the (?:sentence|story) (?:is|will|begins)\b|"
    r"(?:use|write|say) .*\b(?:word|sentences?)\b)|"
    r"\b(?:language model|as an? (?:ai|chatbot)|(?:this|my|your|following|next) sentence)\b|"
    r"\bthe (?:word|term) [\"“'‘]|\bis an? (?:noun|verb|adjective|adverb)\b|\((?:noun|verb|ad\w+):|\[",
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
    """A sentence on one line, without the mark of a list, emphasis, quotes around it or half of them."""
    plain = _MARK.sub("", " ".join(_EMPHASIS.sub("", _MARK.sub("", sentence)).split()))
    # of brackets and quotations that were split, one half is left
    if plain.count("(") != plain.count(")"):
        plain = plain.lstrip("() ") if plain[:1] in "()" else plain.rstrip("() ")
    for opening, closing in _QUOTES.items():
        # an apostrophe may be a letter's ("'Tis")
        inner = _APOSTROPHE.sub("", plain)
        marks = inner.count(opening) + (inner.count(closing) if closing != opening else 0)
        begins, ends = plain.startswith(opening), plain.rstrip(".!?").endswith(closing)
        if (begins and ends and marks == 2) or (marks == 1 and (begins or ends) and opening not in "'‘"):
            head = plain.removeprefix(opening)
            at = head.rfind(closing) if ends else len(head)
            return (head[:at] + head[at + 1 :]).strip()
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
    have, always. A name is no noun unless the concept is one ("Paris"), but the first word of a sentence
    only looks like a name.
    """
    wanted = TAGGED.get(word.pos)
    if word.language != "en" or wanted is None:
        return True
    tokens = list(_TOKEN.finditer(text))
    tags = _tagger().tag_sent([token.group() for token in tokens], taglevel=0)
    # of a name of several words the one that is inflected: the verb comes first ("gave up")
    heads = [start if word.pos == VERB else end - 1 for start, end in find_word(text, word)]
    is_name = word.pos == NOUN and word.name != word.name.lower()
    return any(
        tag.startswith(wanted) or (tag == "NP0" and (is_name or (word.pos == NOUN and number == 0)))
        for number, (token, tag) in enumerate(zip(tokens, tags, strict=True))
        if any(token.start() <= head < token.end() for head in heads)
    )


def _is_whole(text: str) -> bool:
    """Whether a text begins as a sentence and ends as one."""
    first = re.search(r"\w+", text)
    return text.rstrip(_CLOSERS).endswith(_ENDINGS) and not (first and first.group().islower())


@cache
def _tagger() -> Any:
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")
