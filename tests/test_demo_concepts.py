"""In the demo's sentences, neurons must be selected for the concept, not for a template, a repeated
phrase or the name of another concept."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from alignment.text.word_matching import find_word
from jobs.sources.human_judgments import load_judgments
from storage.readers.concepts import ConceptSet, read_concepts
from storage.readers.human import builtin_human_set

FILE = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"


@pytest.fixture(scope="module")
def demo() -> ConceptSet:
    return read_concepts(FILE, "demo")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def trigrams(text: str) -> set[tuple[str, str, str]]:
    tokens = words(text)
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))


def test_there_are_enough_concepts_domains_and_rated_pairs(demo: ConceptSet) -> None:
    names = [concept.name for concept in demo.concepts]
    domains = {concept.domain for concept in demo.concepts}
    assert len(names) >= 64
    assert len(load_judgments(builtin_human_set("men"), names).scores) >= 250
    assert None not in domains
    assert len(domains) >= 10
    assert domains <= set(names)


def test_each_concept_has_sixteen_facts_and_sixteen_stories(demo: ConceptSet) -> None:
    counts = Counter((name, s.prompt) for s in demo.sentences for name in s.concepts)
    assert set(counts.values()) == {16}
    assert len(counts) == 2 * len(demo.concepts)
    assert {sentence.source for sentence in demo.sentences} == {"written for neuralign"}


def test_each_sentence_names_its_concept_and_no_other(demo: ConceptSet) -> None:
    for sentence in demo.sentences:
        (name,) = sentence.concepts
        named = {c.name for c in demo.concepts if find_word(sentence.text, c.name)}
        assert named == {name}, sentence.text


def test_sentences_are_neither_short_nor_long(demo: ConceptSet) -> None:
    for sentence in demo.sentences:
        assert 6 <= len(sentence.text.split()) <= 30, sentence.text


def test_no_two_sentences_of_a_concept_share_half_their_trigrams(demo: ConceptSet) -> None:
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for _, group in itertools.groupby(rows, key=lambda row: row["concept"]):
        texts = [(row["text"], trigrams(row["text"])) for row in group]
        for (text_a, a), (text_b, b) in itertools.combinations(texts, 2):
            assert len(a & b) <= min(len(a), len(b)) / 2, (text_a, text_b)


def test_sentences_of_a_concept_begin_in_many_ways(demo: ConceptSet) -> None:
    openings = Counter((sentence.concepts[0], *words(sentence.text)[:2]) for sentence in demo.sentences)
    assert max(openings.values()) <= 4
