"""The null of pseudo-concepts must be able to fail: its words are as frequent as the concepts, are not
the concepts' words, and are scored as concepts are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from alignment.expertise.labels import labels_against_rest
from alignment.text.bag_of_words import split_words
from alignment.text.pseudo_words import choose_pseudo_words
from jobs import sentences
from jobs.config.analysis import ExpertSettings
from jobs.engine.stage import Stage, run_if_needed
from jobs.experts import make_params
from jobs.scoring.labelings import PSEUDO_CONCEPTS, make_labeling, read_pseudo_concepts
from storage import sql
from storage.errors import UserError
from storage.readers.concepts import Concept, ConceptSet, Sentence

CONCEPTS = {"owl": "night forest", "cat": "milk sofa", "leaf": "autumn forest"}


def make_sentences(store: Path, frames: int = 6) -> Stage:
    """A finished stage of sentences in which some words are as frequent as the concepts, and two that
    are no positives."""
    texts = [
        Sentence(f"The {name} saw {words} number{number}, and others saw leaves.", concepts=(name,))
        for name, words in CONCEPTS.items()
        for number in range(frames)
    ]
    texts += [Sentence("The night has milk.", pool=True)] * 2
    stage = sentences.plan(ConceptSet("set", [Concept(name) for name in CONCEPTS], texts))
    run_if_needed(stage, store)
    return stage


def test_words_are_chosen_by_the_nearest_frequency() -> None:
    """A rarer word has fewer positives, and AP depends on their number."""
    frequencies = {"five": 5, "eight": 8, "nine": 9, "twenty": 20, "four": 4}
    texts = [" ".join(word for word, n in frequencies.items() if number < n) for number in range(30)]
    words, indices = choose_pseudo_words(texts, [8, 20], {"twenty"}, seed=0)
    assert words == ["eight", "nine"]
    assert [list(each) for each in indices] == [list(range(8)), list(range(9))]
    with pytest.raises(ValueError, match="4 other words occur in at least 5"):
        choose_pseudo_words(texts, [8] * 5, (), seed=0)


def test_a_word_is_chosen_once_and_at_random_among_the_equally_frequent() -> None:
    """The first words of the alphabet, or one word for several concepts, would be no sample of words."""
    names = [f"w{letter}" for letter in "abcdefghij"]
    texts = [" ".join(names)] * 6 + ["other text"]
    chosen = [tuple(choose_pseudo_words(texts, [6, 6, 6], (), seed)[0]) for seed in range(20)]
    assert all(len(set(words)) == 3 for words in chosen)
    assert chosen[0] == tuple(choose_pseudo_words(texts, [6, 6, 6], (), 0)[0])
    assert len({word for words in chosen for word in words}) == len(names)


def test_the_concepts_words_are_left_out_in_any_inflection(tmp_path: Path) -> None:
    """A pseudo-concept "leaves" would be the concept "leaf"."""
    stage = make_sentences(tmp_path)
    for seed in range(10):
        pseudo = read_pseudo_concepts(stage, tmp_path, seed)
        assert not {"owl", "cat", "leaf", "leaves"} & set(pseudo.words)


def test_positives_are_the_sentences_with_the_word_and_negatives_all_others(tmp_path: Path) -> None:
    """Sentences of the pool, or only those with some other pseudo-concept's word as negatives, would
    make the null another question than that of the concepts."""
    stage = make_sentences(tmp_path)
    run = {"model": "m", "revision": "main", "concept_set": stage.params["concept_set"]}
    params = make_params(run, ExpertSettings(negatives="others:3"), 0, PSEUDO_CONCEPTS)
    labeling = make_labeling(params, stage, tmp_path)
    texts = [text for text, _ in sentences.read_texts(stage, tmp_path)]
    words = read_pseudo_concepts(stage, tmp_path, 0).words
    n_positives = Counter(word for text in texts[:-2] for word in set(split_words(text)))
    for word, positives, negatives in zip(
        words, labeling.labels.positives, labeling.labels.negatives, strict=True
    ):
        ids = set(labeling.sentence_ids[positives].tolist())
        assert ids == {n for n, text in enumerate(texts[:-2]) if word in split_words(text)}
        assert ids | set(labeling.sentence_ids[negatives].tolist()) == set(range(len(texts) - 2))
        assert len(ids) == n_positives[word]


def test_too_few_other_words_are_named(tmp_path: Path) -> None:
    """A set with few words would end in a traceback."""
    stage = make_sentences(tmp_path, frames=2)
    run = {"model": "m", "revision": "main", "concept_set": stage.params["concept_set"]}
    params = make_params(run, ExpertSettings(), 0, PSEUDO_CONCEPTS)
    with pytest.raises(UserError, match=r"controls: pseudo-concepts: .* 3 are needed; remove this"):
        make_labeling(params, stage, tmp_path)


def test_labels_against_the_rest_are_those_of_a_plain_loop() -> None:
    """A sentence with several words is a positive of each, and a negative of none of them."""
    random = np.random.default_rng(0)
    has_word = random.random((30, 4)) < 0.3
    has_word[:4] |= np.eye(4, dtype=bool)
    sentence_ids, members = np.nonzero(has_word)
    labels = labels_against_rest(sentence_ids, members, 30, 4)
    for concept in range(4):
        assert set(labels.positives[concept]) == set(np.flatnonzero(has_word[:, concept]))
        assert set(labels.negatives[concept]) == set(np.flatnonzero(~has_word[:, concept]))
    assert labels.patterns.pattern.shape == (30,)


def test_concepts_without_experts_are_counted() -> None:
    """A pseudo-concept without experts would be missing from the table, as if it were not compared."""
    with duckdb.connect() as connection:
        columns = "(pooling VARCHAR, concept VARCHAR, ap DOUBLE)"
        for name, rows in (
            ("concept_experts", "('max', 'owl', 0.9), ('max', 'owl', 0.55), ('max', 'cat', 0.45)"),
            ("pseudo_experts", "('max', 'cat', 0.6)"),
        ):
            connection.execute(f"CREATE TABLE {name} {columns}; INSERT INTO {name} VALUES {rows}")  # noqa: S608
        words: dict[str, list[Any]] = {"concept": ["owl", "cat"], "word": ["night", "sofa"]}
        words |= {"n_positives": [5, 6], "concept_n_positives": [6, 6]}
        sql.create_table(connection, "words", words)
        sql.create_table(connection, "poolings", {"pooling": ["max"]})
        sql.create_table(connection, "thresholds", {"threshold": [0.5]})
        found = connection.sql(sql.read_query("pseudo_concepts")).fetchall()
    assert found == [
        ("max", "cat", 0.5, "sofa", 6, 1, 0.6, 6, 0, 0.45),
        ("max", "owl", 0.5, "night", 5, 0, None, 6, 2, 0.9),
    ]
