"""The sentences in which steering measures a concept's word, and those that it should not change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.text.word_matching import ConceptWord, has_word

TextParts = tuple[str, str]
"""The beginning of a sentence, and what follows it after a space."""


@dataclass(frozen=True)
class ConceptSentence:
    """A positive sentence of a concept, and the characters of the concept's word in it: start, end, and
    so on for each occurrence."""

    concept: str
    text: str
    spans: Sequence[int]


def sample_own(
    sentences: Iterable[ConceptSentence], number: int, rng: np.random.Generator
) -> list[TextParts]:
    """Random sentences of one concept, each up to its word's first occurrence, and the word. Leaves out
    sentences in which the word comes first or has no space before it."""
    candidates = []
    for sentence in sentences:
        start, end = sentence.spans[:2] or (0, 0)
        beginning = sentence.text[: max(0, start - 1)]
        if beginning.strip() and sentence.text[start - 1] == " ":
            candidates.append((beginning, sentence.text[start:end]))
    return [candidates[index] for index in rng.permutation(len(candidates))[:number]]


def sample_neutral(
    sentences: Sequence[ConceptSentence],
    concept: str,
    word: ConceptWord,
    number: int,
    rng: np.random.Generator,
) -> list[TextParts]:
    """Random sentences of other concepts without the concept's word, each as its first word and the
    rest. Leaves out sentences of one word."""
    chosen: dict[TextParts, None] = {}
    for index in rng.permutation(len(sentences)):
        if len(chosen) == number:
            break
        sentence = sentences[index]
        first, _, rest = sentence.text.partition(" ")
        if sentence.concept != concept and first and rest.strip() and not has_word(sentence.text, word):
            chosen[first, rest] = None
    return list(chosen)
