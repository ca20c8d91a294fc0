"""In the demo's sentences, neurons must be selected for the concept, not for a template, a length, a
position, a repeated phrase or the name of another concept."""

from __future__ import annotations

import itertools
import re
import runpy
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from alignment.text.word_matching import find_word
from storage.readers.concepts import ConceptSet, read_concepts

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def demo() -> ConceptSet:
    return read_concepts(EXAMPLES / "demo-concepts.csv", "demo")


@pytest.fixture(scope="module")
def texts(demo: ConceptSet) -> dict[str, list[str]]:
    """The sentences of each concept."""
    found = defaultdict(list)
    for sentence in demo.sentences:
        found[sentence.concepts[0]].append(sentence.text)
    return found


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def trigrams(text: str) -> set[tuple[str, str, str]]:
    tokens = words(text)
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))


def third(text: str, name: str) -> int:
    """Which third of the sentence's words has the concept's word: 0, 1 or 2."""
    start = find_word(text, name)[0][0]
    return int(3 * (len(text[:start].split()) + 0.5) / len(text.split()))


def test_the_nouns_are_those_that_human_scores_alone_choose(demo: ConceptSet) -> None:
    """Concepts picked by hand, or by a model's results, would flatter the model."""
    script = runpy.run_path(str(EXAMPLES / "demo_nouns.py"))
    scores = script["read_noun_pairs"]()
    nouns = script["choose_nouns"](scores, script["COUNT"])
    rated = [score for pair, score in scores.items() if set(pair) <= set(nouns)]
    assert len(rated) == 319
    assert np.percentile(rated, [5, 50, 95]).tolist() == [5, 24, 42]
    added = {concept.name for concept in demo.concepts} - set(nouns)
    assert len(demo.concepts) == len(nouns) + len(added)
    # those that the hierarchy needs: names of domains, and a third season
    assert added - {"winter"} <= {concept.domain for concept in demo.concepts}


def test_there_are_ten_domains_with_their_names_as_concepts(demo: ConceptSet) -> None:
    """The hierarchy would have too few domains to tell recovery from chance."""
    members = Counter(concept.domain for concept in demo.concepts if concept.domain != concept.name)
    del members[None]
    assert len(members) >= 10
    assert min(members.values()) >= 3
    assert set(members) <= {concept.name for concept in demo.concepts}


def test_each_concept_has_as_many_facts_as_stories(demo: ConceptSet) -> None:
    counts = Counter((name, s.prompt) for s in demo.sentences for name in s.concepts)
    assert set(counts.values()) == {12}
    assert len(counts) == 2 * len(demo.concepts)
    assert {sentence.source for sentence in demo.sentences} == {"written for neuralign"}


def test_each_sentence_names_its_concept_once_and_no_other(demo: ConceptSet) -> None:
    for sentence in demo.sentences:
        (name,) = sentence.concepts
        named = {c.name for c in demo.concepts if find_word(sentence.text, c.name)}
        assert named == {name}, sentence.text
        assert len(find_word(sentence.text, name)) == 1, sentence.text


def test_lengths_are_balanced_over_concepts(texts: dict[str, list[str]]) -> None:
    """A neuron that responds to long sentences would be an expert of a concept."""
    lengths = {name: [len(text.split()) for text in group] for name, group in texts.items()}
    mean = np.mean(list(lengths.values()))
    for name, values in lengths.items():
        assert np.mean(values) == pytest.approx(mean, rel=0.1), name
        assert min(values) >= 7
        assert max(values) <= 24


def test_the_word_is_as_often_early_as_late(texts: dict[str, list[str]]) -> None:
    """A neuron that responds to a position would be an expert of a concept."""
    for name, group in texts.items():
        assert Counter(third(text, name) for text in group) == {0: 8, 1: 8, 2: 8}, name


def test_no_two_sentences_of_a_concept_share_a_third_of_their_trigrams(
    texts: dict[str, list[str]],
) -> None:
    for group in texts.values():
        for first, second in itertools.combinations(group, 2):
            a, b = trigrams(first), trigrams(second)
            assert len(a & b) <= min(len(a), len(b)) / 3, (first, second)


def test_sentences_of_a_concept_begin_in_many_ways(texts: dict[str, list[str]]) -> None:
    for name, group in texts.items():
        openings = Counter(tuple(words(text)[:2]) for text in group)
        assert max(openings.values()) <= 3, name
