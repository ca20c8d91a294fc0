"""The quality filter: splits raw text into sentences and keeps those that can represent a concept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import chain
from typing import Any

import sentencex
from simplemma import LanguageDetector
from simplemma.strategies import DefaultStrategy
from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES

from alignment.text.word_matching import NOUN, VERB, ConceptWord, WordFinder, find_word, has_word

MISSING_WORD = "the concept's word is missing"
OTHER_CONCEPT = "mentions another concept"
SHORT = "too short"
LONG = "too long"
INCOMPLETE = "not a complete sentence"
REFUSAL = "a refusal or a comment on the task"
OTHER_LANGUAGE = "another language"
OTHER_POS = "another part of speech"
REPEAT = "a duplicate"
NEAR_REPEAT = "a near-duplicate"

LANGUAGES = frozenset(SUPPORTED_LANGUAGES)
POS_TAGS = {"noun": ("NN",), "verb": ("VV", "VB", "VD", "VH"), "adjective": ("AJ",), "adverb": ("AV",)}
"""The parts of speech distinguished in English, with the prefixes of their C5 tags."""

MIN_WORDS, MAX_WORDS = 5, 40
_MIN_KNOWN_SHARE = 0.7
_MAX_SHARED_TRIGRAMS = 0.5
_MAX_LEMMAS = 1 << 16

_LIST_MARKER = re.compile(
    r"^\s*(?:(?:[-*•●▪◦‣·–—>#]+|\(?\d{1,3}[.):]|\(?[a-z]\)|"
    r"(?:the )?(?:answer|example|fact|sentence|story)(?: is)?[ \d]*:)\s+)+",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"\*+|__|`|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "„": "“"}
_ENDINGS = tuple(".!?…。！？")
_CLOSERS = "\"'”’»)]"
_REFUSAL_PATTERN = re.compile(
    r"^(?:(?:unfortunately, )?i(?:['’]m| am) (?:sorry|(?:not able|unable) to)|sorry,|i apologi[sz]e|"
    r"(?:unfortunately, )?i can(?:['’]t|not| not)\b|(?:sure|certainly|okay|of course)[,!.]|"
    r"here(?: is| are|['’]s)\b|please (?:provide|let me)|the (?:sentence|story) (?:is|will|begins)\b|"
    r"(?:use|write|say) .*\b(?:word|sentences?)\b)|"
    r"\b(?:language model|as an? (?:ai|chatbot)|(?:this|my|your|following|next) sentence)\b|"
    r"\bthe (?:word|term) [\"“'‘]|\bis an? (?:noun|verb|adjective|adverb)\b|\((?:noun|verb|ad\w+):|\[",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Split a text into sentences without list markers, emphasis and enclosing quotes."""
    lines = (_LIST_MARKER.sub("", line) for line in text.splitlines())
    sentences = (clean_sentence(part) for line in lines for part in sentencex.segment(language, line))
    return [sentence for sentence in sentences if sentence]


def clean_sentence(sentence: str) -> str:
    """Put a sentence on one line and strip list markers, emphasis, enclosing and unpaired quotes."""
    plain = _LIST_MARKER.sub("", " ".join(_EMPHASIS.sub("", _LIST_MARKER.sub("", sentence)).split()))
    # splitting into sentences leaves unpaired brackets and quotes
    if plain.count("(") != plain.count(")"):
        plain = plain.lstrip("() ") if plain[:1] in "()" else plain.rstrip("() ")
    for opening, closing in _QUOTES.items():
        # an apostrophe may replace a letter ("'Tis")
        inner = _APOSTROPHE.sub("", plain)
        marks = inner.count(opening) + (inner.count(closing) if closing != opening else 0)
        begins, ends = plain.startswith(opening), plain.rstrip(".!?").endswith(closing)
        if (begins and ends and marks == 2) or (marks == 1 and (begins or ends) and opening not in "'‘"):
            rest = plain.removeprefix(opening)
            end = rest.rfind(closing) if ends else len(rest)
            return (rest[:end] + rest[end + 1 :]).strip()
    return plain


def lowercase_words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"\w+(?:['’]\w+)?", text.lower())


def word_trigrams(text: str) -> frozenset[tuple[str, str, str]]:
    """The trigrams of words of a text."""
    return _words_and_trigrams(text)[1]


# a sentence is first compared with others and then added to them
@lru_cache(maxsize=1)
def _words_and_trigrams(text: str) -> tuple[tuple[str, ...], frozenset[tuple[str, str, str]]]:
    """The words of a text in lower case, and their trigrams."""
    words = tuple(lowercase_words(text))
    return words, frozenset(zip(words, words[1:], words[2:], strict=False))


class SentenceFilter:
    """Decides which sentences can represent a concept of a set."""

    def __init__(self, concepts: Sequence[ConceptWord], language: str = "en") -> None:
        self._finder = WordFinder(concepts)
        self.language = language
        self.concepts = list(concepts)

    def rejection_reason(
        self, text: str, concepts: Collection[int], check_pos: bool = True
    ) -> str | None:
        """Why a sentence cannot represent the concepts or, if there are none, be a negative; or None."""
        reasons = self._reasons(
            text, concepts, check_pos, lambda: self._finder.find_candidates([text])[0]
        )
        return next(reasons, None)

    def rejection_reasons(
        self, candidates: Sequence[tuple[str, Collection[int], bool]]
    ) -> list[str | None]:
        """`rejection_reason` of many sentences, each with its concepts and whether to check their part
        of speech: faster, because the concepts' words are found in all sentences in one pass."""
        found = self._finder.find_candidates([text for text, _, _ in candidates])
        return [
            next(self._reasons(*candidate, lambda indices=indices: indices), None)  # type: ignore[misc]
            for candidate, indices in zip(candidates, found, strict=True)
        ]

    def _reasons(
        self,
        text: str,
        concepts: Collection[int],
        check_pos: bool,
        find_candidates: Callable[[], list[int]],
    ) -> Iterator[str]:
        """All reasons against a sentence, the quickest to check first."""
        own_words = [self.concepts[number] for number in concepts]
        n_words = len(text.split())
        if _REFUSAL_PATTERN.search(text):
            yield REFUSAL
        if n_words < MIN_WORDS:
            yield SHORT
        if n_words > MAX_WORDS:
            yield LONG
        if not _is_complete(text):
            yield INCOMPLETE
        if not all(has_word(text, word) for word in own_words):
            yield MISSING_WORD
        others = (self.concepts[index] for index in find_candidates() if index not in concepts)
        if any(has_word(text, word) for word in others):
            yield OTHER_CONCEPT
        if not is_in_language(text, self.language):
            yield OTHER_LANGUAGE
        if check_pos and not all(has_pos(text, word) for word in own_words):
            yield OTHER_POS


@dataclass
class CollectedSentences:
    """The sentences collected for one concept, and the number rejected for each reason."""

    sentences: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    _seen: set[tuple[str, ...]] = field(default_factory=set)
    _sizes: list[int] = field(default_factory=list)
    _by_trigram: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)

    def repetition_reason(self, text: str) -> str | None:
        """Whether a sentence repeats or nearly repeats a collected one, as a reason; None if not.

        Two sentences nearly repeat each other if they share more than half of the word trigrams of the
        one with fewer.
        """
        words, trigrams = _words_and_trigrams(text)
        if words in self._seen:
            return REPEAT
        known = filter(None, map(self._by_trigram.get, trigrams))
        shared = Counter(chain.from_iterable(known))
        is_near = any(
            count > _MAX_SHARED_TRIGRAMS * min(len(trigrams), self._sizes[index])
            for index, count in shared.items()
        )
        return NEAR_REPEAT if is_near else None

    def add(self, text: str) -> None:
        """Add a sentence."""
        words, trigrams = _words_and_trigrams(text)
        for trigram in trigrams:
            self._by_trigram.setdefault(trigram, []).append(len(self.sentences))
        self._sizes.append(len(trigrams))
        self._seen.add(words)
        self.sentences.append(text)

    def reject(self, text: str, reason: str) -> None:
        """Count a rejected sentence; the first for each reason is its example."""
        self.rejected[reason] += 1
        self.examples.setdefault(reason, text)


def collect_sentences(
    texts: Iterable[str],
    sentence_filter: SentenceFilter,
    concepts: Collection[int],
    target: int,
    collected: CollectedSentences | None = None,
) -> CollectedSentences:
    """Collect up to `target` sentences of raw texts that pass the filter for the concepts."""
    collected = collected or CollectedSentences()
    language = sentence_filter.language
    for text in (sentence for raw in texts for sentence in split_sentences(raw, language)):
        if len(collected.sentences) >= target:
            break
        reason = sentence_filter.rejection_reason(text, concepts) or collected.repetition_reason(text)
        if reason is None:
            collected.add(text)
        else:
            collected.reject(text, reason)
    return collected


def is_in_language(text: str, language: str) -> bool:
    """Whether at least 70% of a text's words are in a language's dictionary.

    A heuristic: related languages share words; 0.3% of English sentences fail, for foreign names.
    """
    return bool(_language_detector(language).proportion_in_target_languages(text) >= _MIN_KNOWN_SHARE)


class _RememberedLemmas(DefaultStrategy):
    """Looks up each word once: the words of a language are few, those of its texts many."""

    def __init__(self) -> None:
        super().__init__()
        # not a decorator, which would keep the object alive
        self._get_lemma = lru_cache(_MAX_LEMMAS)(super().get_lemma)

    def get_lemma(self, token: str, lang: str) -> str | None:
        return self._get_lemma(token, lang)


@cache
def _language_detector(language: str) -> LanguageDetector:
    return LanguageDetector(language, lemmatization_strategy=_RememberedLemmas())


def has_pos(text: str, word: ConceptWord) -> bool:
    """Whether the word occurs in the text at least once as its part of speech.

    Uses a tagger for English; always true in other languages and for parts of speech not in POS_TAGS. A
    proper noun does not count as a noun unless the concept is one ("Paris"), except at the start of a
    sentence, where any noun may be tagged as one.
    """
    prefixes = POS_TAGS.get(word.pos)
    if word.language != "en" or prefixes is None:
        return True
    tokens = list(_TOKEN.finditer(text))
    tags = _tagger().tag_sent([token.group() for token in tokens], taglevel=0)
    # the inflected word of a multi-word name: the first of a verb ("gave up"), else the last
    heads = [start if word.pos == VERB else end - 1 for start, end in find_word(text, word)]
    is_proper = word.pos == NOUN and word.name != word.name.lower()
    return any(
        tag.startswith(prefixes) or (tag == "NP0" and (is_proper or (word.pos == NOUN and index == 0)))
        for index, (token, tag) in enumerate(zip(tokens, tags, strict=True))
        if any(token.start() <= head < token.end() for head in heads)
    )


def _is_complete(text: str) -> bool:
    """Whether a text begins and ends like a sentence."""
    first = re.search(r"\w+", text)
    return text.rstrip(_CLOSERS).endswith(_ENDINGS) and not (first and first.group().islower())


@cache
def _tagger() -> Any:
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")
