"""The null of pseudo-concepts must be able to fail: its words are as frequent as the concepts, are not
the concepts' words, and are scored as concepts are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.expertise.labels import draw_positives, labels_against_rest
from alignment.text.bag_of_words import split_words
from alignment.text.pseudo_words import choose_pseudo_words
from jobs import sentences
from jobs.config.analysis import ExpertSettings
from jobs.engine.stage import Stage, run_if_needed
from jobs.experts import make_params
from jobs.scoring.labelings import COUNT_MATCHED, PSEUDO_CONCEPTS, make_labeling, read_pseudo_concepts
from storage import sql
from storage.errors import UserError
from storage.readers.concepts import Concept, ConceptSet, Sentence

CONCEPTS = {"owl": "night forest", "cat": "milk sofa", "leaf": "autumn forest"}


def make_sentences(store: Path, frames: int = 6, further: int = 0) -> Stage:
    """A finished stage of sentences in which some words are as frequent as the concepts, two that are
    no positives, and further ones of each concept without any other frequent word."""
    texts = [
        Sentence(f"The {name} saw {words} number{number}, and others saw leaves.", concepts=(name,))
        for name, words in CONCEPTS.items()
        for number in range(frames)
    ]
    texts += [
        Sentence(f"{name.title()} number{number}{name}.", concepts=(name,))
        for name in CONCEPTS
        for number in range(further)
    ]
    texts += [Sentence("The night has milk.", pool=True)] * 2
    stage = sentences.plan(ConceptSet("set", [Concept(name) for name in CONCEPTS], texts))
    run_if_needed(stage, store)
    return stage


def test_words_are_the_most_frequent_ones_that_a_concept_can_match() -> None:
    """A word of more sentences than the concept, of which some would have to be negatives; or a rarer
    one than need be, which leaves few positives."""
    frequencies = {"five": 5, "eight": 8, "nine": 9, "twenty": 20, "four": 4}
    texts = [" ".join(word for word, n in frequencies.items() if number < n) for number in range(30)]
    words, indices = choose_pseudo_words(texts, [0, 0], [8, 20], {"twenty"}, seed=0)
    assert words == ["eight", "nine"]
    assert [list(each) for each in indices] == [list(range(8)), list(range(9))]
    for fewest, most, found in ([0] * 5, [8] * 5, 2), ([6, 0], [7, 4], 0), ([0, 9], [20, 8], 1):
        with pytest.raises(ValueError, match=f"of {len(most)} concepts, only {found} have another word"):
            choose_pseudo_words(texts, fewest, most, (), seed=2)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_drawn_positives_are_those_of_a_plain_loop(seed: int) -> None:
    """Another number of positives than the other word has; a sentence that one concept loses for
    another's sake; the same sentences for each seed."""
    random = np.random.default_rng(seed)
    is_member = random.random((20, 3)) < 0.4
    ids, members = np.nonzero(is_member)
    counts = []
    for concept in range(3):
        shared = sum(row[concept] and row.sum() > 1 for row in is_member)
        counts.append(int(random.integers(shared, is_member[:, concept].sum() + 1)))
    is_kept = draw_positives(ids, members, counts, seed)
    for concept in range(3):
        kept = set(ids[is_kept & (members == concept)].tolist())
        own = {number for number in range(20) if is_member[number, concept]}
        assert len(kept) == counts[concept]
        assert {number for number in own if is_member[number].sum() > 1} <= kept <= own
    assert np.array_equal(draw_positives(ids, members, counts, seed), is_kept)
    for counts in ([is_member[:, 0].sum() + 1, 0, 0], [-1, 0, 0]):
        with pytest.raises(ValueError, match="concept 0 cannot be reduced to"):
            draw_positives(ids, members, counts, seed)


def test_a_word_is_chosen_once_and_at_random_among_the_equally_frequent() -> None:
    """The first words of the alphabet, or one word for several concepts, would be no sample of words."""
    names = [f"w{letter}" for letter in "abcdefghij"]
    texts = [" ".join(names)] * 6 + ["other text"]
    chosen = [tuple(choose_pseudo_words(texts, [0] * 3, [6] * 3, (), seed)[0]) for seed in range(20)]
    assert all(len(set(words)) == 3 for words in chosen)
    assert chosen[0] == tuple(choose_pseudo_words(texts, [0] * 3, [6] * 3, (), 0)[0])
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


def test_concepts_have_as_many_positives_as_their_pseudo_concepts(tmp_path: Path) -> None:
    """Fewer positives give more neurons a high AP by chance. The sentences that are not drawn hold the
    word: as negatives they would hide its neurons."""
    stage = make_sentences(tmp_path, further=3)
    run = {"model": "m", "revision": "main", "concept_set": stage.params["concept_set"]}
    matched, pseudo = (
        make_labeling(make_params(run, ExpertSettings(negatives="pool"), 0, control), stage, tmp_path)
        for control in (COUNT_MATCHED, PSEUDO_CONCEPTS)
    )
    texts = [text for text, _ in sentences.read_texts(stage, tmp_path)]
    counts = list(map(len, pseudo.labels.positives))
    assert list(map(len, matched.labels.positives)) == counts
    assert counts == [6, 6, 6]
    labels = zip(matched.labels.positives, matched.labels.negatives, strict=True)
    for name, (positives, negatives) in zip(CONCEPTS, labels, strict=True):
        assert all(name in split_words(texts[n]) for n in matched.sentence_ids[positives])
        others = [n for n in matched.sentence_ids if name not in split_words(texts[n])]
        assert matched.sentence_ids[negatives].tolist() == others
    other_seed = make_params(run, ExpertSettings(), 1, COUNT_MATCHED)
    assert not np.array_equal(
        make_labeling(other_seed, stage, tmp_path).sentence_ids, matched.sentence_ids
    )


def test_too_few_other_words_are_named(tmp_path: Path) -> None:
    """A set with few words would end in a traceback."""
    stage = make_sentences(tmp_path, frames=2)
    run = {"model": "m", "revision": "main", "concept_set": stage.params["concept_set"]}
    params = make_params(run, ExpertSettings(), 0, PSEUDO_CONCEPTS)
    with pytest.raises(
        UserError, match=r"controls: pseudo-concepts: of 3 concepts, only .*; remove this"
    ):
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
        words["n_positives"] = [5, 6]
        sql.create_table(connection, "words", words)
        sql.create_table(connection, "poolings", {"pooling": ["max"]})
        sql.create_table(connection, "thresholds", {"threshold": [0.5]})
        found = connection.sql(sql.read_query("pseudo_concepts")).fetchall()
    assert found == [
        ("max", "cat", 0.5, "sofa", 6, 1, 0.6, 0, 0.45),
        ("max", "owl", 0.5, "night", 5, 0, None, 2, 0.9),
    ]
