"""Words measured in sentences that are not their own, or a perplexity on sentences about the concept,
would pass for effects."""

from __future__ import annotations

import numpy as np

from alignment.text.word_matching import ConceptWord
from jobs.config.analysis import NEUTRAL_PROMPTS
from jobs.interventions.texts import ConceptSentence, sample_neutral, sample_own


def test_own_sentences_end_with_the_word_that_they_introduce() -> None:
    """A word at the beginning has no context, and one after a bracket is another token."""
    sentences = [
        ConceptSentence("cat", "Cats sleep.", [0, 4]),
        ConceptSentence("cat", "We saw (cats) here.", [8, 12]),
        ConceptSentence("cat", "It was raining.", []),
        ConceptSentence("cat", "A small cat saw two cats.", [8, 11, 20, 24]),
        ConceptSentence("cat", "Two cats.", [4, 8]),
    ]
    expected = {("A small", "cat"), ("Two", "cats")}
    assert set(sample_own(sentences, 9, np.random.default_rng(0))) == expected
    firsts = {sample_own(sentences, 1, np.random.default_rng(seed))[0] for seed in range(20)}
    assert firsts == expected


def test_neutral_sentences_have_nothing_of_the_concept() -> None:
    """The concept's word in another concept's sentence is what steering should change."""
    sentences = [
        ConceptSentence("cat", "A cat sleeps.", [2, 5]),
        ConceptSentence("dog", "The dog saw cats.", [4, 7]),
        ConceptSentence("dog", "Woof!", []),
        ConceptSentence("bus", "The bus came late.", [4, 7]),
        ConceptSentence("road", "The bus came late.", []),
        ConceptSentence("dog", "A dog barks at night.", [2, 5]),
    ]
    word = ConceptWord("cat", "noun", "en")
    for seed in range(5):
        chosen = sample_neutral(sentences, "cat", word, 9, np.random.default_rng(seed))
        assert sorted(chosen) == [("A", "dog barks at night."), ("The", "bus came late.")]
    assert len(sample_neutral(sentences, "cat", word, 1, np.random.default_rng(0))) == 1


def test_any_noun_can_follow_the_prompts() -> None:
    """After "a", apple is ungrammatical, and so is bread: their probability would say nothing of
    the experts."""
    assert len(set(NEUTRAL_PROMPTS)) == 8
    assert all(prompt.endswith(" the") for prompt in NEUTRAL_PROMPTS)
