"""The flags of provided sentences: computed in batches, for sets of any size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from alignment.text.quality import CollectedSentences, SentenceFilter
from alignment.text.word_matching import WordFinder, find_word
from jobs import sentences as stage
from jobs.sentences import concept_word
from storage.readers.concepts import Concept, ConceptSet, Sentence

CONCEPTS = [
    Concept("cat"),
    Concept("dog"),
    Concept("ice cream"),
    Concept("ice"),
    Concept("run", pos="verb"),
]
WORDS = ["The", "cat", "cats", "dog", "ice", "cream", "ran", "slept", "stove", "Ofen", "[x]", "near"]

_texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(
    lambda words: f"{' '.join(words)}."
)
_names = st.lists(st.sampled_from([concept.name for concept in CONCEPTS]), max_size=2, unique=True)
_sentences = st.lists(
    st.builds(
        lambda text, names, pool: Sentence(text, concepts=names, pool=pool and not names),
        *(_texts, _names, st.booleans()),
    ),
    max_size=30,
    unique_by=lambda sentence: sentence.text,
)


def flags_one_at_a_time(concept_set: ConceptSet) -> Iterator[tuple[str, ...]]:
    """The flags by their definition: of each sentence by itself, and against those before it."""
    quality_filter = SentenceFilter([concept_word(concept, "en") for concept in concept_set.concepts])
    indices = {concept.name: index for index, concept in enumerate(concept_set.concepts)}
    collected = {concept.name: CollectedSentences() for concept in concept_set.concepts}
    for sentence in concept_set.sentences:
        flags: list[str | None] = []
        if sentence.concepts or sentence.pool:
            members = [indices[name] for name in sentence.concepts]
            has_pos = all(concept_set.concepts[index].pos for index in members)
            flags.append(quality_filter.rejection_reason(sentence.text, members, has_pos))
        for name in sentence.concepts:
            flags.append(collected[name].repetition_reason(sentence.text))
            collected[name].add(sentence.text)
        yield tuple(dict.fromkeys(filter(None, flags)))


@given(_sentences)
def test_flags_in_batches_are_those_of_single_sentences(sentences: list[Sentence]) -> None:
    """A batch would change which sentences are flagged, and why."""
    concept_set = ConceptSet("x", CONCEPTS, sentences)
    with patch.object(stage, "_SENTENCES_PER_BATCH", 4):
        flagged = stage._flag_sentences(concept_set, "en")
    assert [sentence.flags for sentence in flagged.sentences] == list(flags_one_at_a_time(concept_set))
    assert [replace(sentence, flags=()) for sentence in flagged.sentences] == sentences


@given(st.lists(_texts | st.text(st.sampled_from("ice cream-\n\u2011\u00e9"), max_size=20), max_size=8))
def test_words_found_in_many_texts_are_those_of_each(texts: list[str]) -> None:
    """A name would be found across the end of a text ("ice" and "cream"), or not at its edge."""
    words = [concept_word(concept, "en") for concept in CONCEPTS]
    finder = WordFinder(words)
    candidates = finder.find_candidates(texts)
    assert candidates == [finder.find_candidates([text])[0] for text in texts]
    for text, indices in zip(texts, candidates, strict=True):
        found = {index for index in indices if find_word(text, words[index])}
        assert found == finder.find(text)


def test_the_memory_of_a_concept_is_freed_before_the_next() -> None:
    """250,000 sentences took 1.5 GB, most of it the trigrams of all concepts."""
    names = [f"w{number}" for number in range(60)]
    sentences = [
        Sentence(f"The {name} {' '.join(f'{word}{name}{number}' for word in WORDS)}.", concepts=(name,))
        for name in names
        for number in range(40)
    ]
    concept_set = ConceptSet("x", [Concept(name) for name in names], sentences)
    # what is loaded and cached once
    stage._flag_sentences(concept_set, "en")
    tracemalloc.start()
    try:
        stage._flag_sentences(concept_set, "en")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2000 * len(sentences)
