"""A neuron must never be called an expert, or not, because of how the score was computed: the fast
kernel gives scikit-learn's numbers on every kind of data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from alignment.expertise import REFERENCE_PREVALENCE, Scores, expertise, on_and_off
from alignment.labels import Labels, labels_against_others, labels_matched_in_length, split_half

TOLERANCE = 1e-12
Values = npt.NDArray[np.floating[Any]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Values, Labels]:
    """Activations with many ties, and labels with sentences of several concepts."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_concepts = draw(st.integers(2, 6))
    n_sentences = draw(st.integers(n_concepts + 1, 80))
    concepts = random.integers(0, n_concepts, n_sentences)
    concepts[:n_concepts] = np.arange(n_concepts)
    sentences = np.arange(n_sentences)
    if draw(st.booleans()):
        extra = random.integers(n_concepts, n_sentences, n_sentences // 3)
        sentences = np.concatenate([sentences, extra])
        concepts = np.concatenate([concepts, random.integers(0, n_concepts, len(extra))])
    pairs = np.unique(np.stack([sentences, concepts]), axis=1)
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    values = random.integers(-levels, levels + 1, (5, n_sentences)) / 4
    values[0] = values[0, 0]
    values[1] *= -0.0
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    sampled = draw(st.sampled_from([None, 1, n_concepts - 1]))
    try:
        labels = labels_against_others(
            pairs[0], pairs[1], n_sentences, n_concepts, sampled, draw(st.integers(0, 9))
        )
    except ValueError:
        # every sentence drawn into one concept: not a problem that has an answer
        labels = labels_against_others(np.arange(4), np.array([0, 1, 0, 1]), 4, 2)
        values = values[:, :4]
    return values.astype(dtype), labels


def by_scikit_learn(values: Values, labels: Labels, prevalence: float) -> Scores:
    shape = (len(values), labels.n_concepts)
    scores = Scores(np.empty(shape), np.empty(shape), np.empty(shape))
    each = enumerate(zip(labels.positives(), labels.negatives(), strict=True))
    for concept, (positives, negatives) in each:
        chosen = np.concatenate([positives, negatives])
        truth = np.arange(len(chosen)) < len(positives)
        weight = len(positives) / len(negatives) * (1 - prevalence) / prevalence
        weights = np.where(truth, 1.0, weight)
        for neuron, row in enumerate(values[:, chosen]):
            scores.ap[neuron, concept] = average_precision_score(truth, row, sample_weight=weights)
            scores.ap_raw[neuron, concept] = average_precision_score(truth, row)
            scores.auroc[neuron, concept] = roc_auc_score(truth, row)
    return scores


def assert_equal_scores(found: Scores, expected: Scores) -> None:
    for name in ("ap", "ap_raw", "auroc"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=TOLERANCE, err_msg=name
        )


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([REFERENCE_PREVALENCE, 0.01, 0.9]))
def test_scores_are_scikit_learns(problem: tuple[Values, Labels], prevalence: float) -> None:
    values, labels = problem
    found = expertise(values, labels, prevalence)
    assert_equal_scores(found, by_scikit_learn(values, labels, prevalence))


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_the_order_of_neurons_does_not_matter(problem: tuple[Values, Labels], seed: int) -> None:
    values, labels = problem
    order = np.random.default_rng(seed).permutation(len(values))
    assert np.array_equal(
        expertise(np.ascontiguousarray(values[order]), labels).ap, expertise(values, labels).ap[order]
    )


@settings(max_examples=50, deadline=None)
@given(problems())
def test_only_the_order_of_activations_matters(problem: tuple[Values, Labels]) -> None:
    values, labels = problem
    wide = values.astype(np.float32)
    assert_equal_scores(
        expertise(np.cbrt(wide).astype(np.float32) * 3 + 1, labels), expertise(wide, labels)
    )


def test_more_sentences_than_sixteen_bits_can_number() -> None:
    """Past 65,536 sentences the sentence no longer fits beside a float16 in 32 bits."""
    n_sentences = (1 << 16) + 5
    random = np.random.default_rng(0)
    values = random.standard_normal((2, n_sentences)).astype(np.float16)
    concepts = np.arange(n_sentences) % 3
    labels = labels_against_others(np.arange(n_sentences), concepts, n_sentences, 3)
    expected = by_scikit_learn(values, labels, REFERENCE_PREVALENCE)
    assert_equal_scores(expertise(values, labels), expected)


def test_sampled_negatives_come_evenly_from_the_other_concepts() -> None:
    concepts = np.repeat(np.arange(5), [10, 10, 10, 10, 3])
    labels = labels_against_others(np.arange(len(concepts)), concepts, len(concepts), 5, 20)
    drawn = labels.negatives()[0]
    assert len(drawn) == len(set(drawn)) == 20
    assert sorted(np.bincount(concepts[drawn], minlength=5)) == [0, 3, 5, 6, 6]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_sentence_is_a_negative_of_its_own_concept(problem: tuple[Values, Labels]) -> None:
    _, labels = problem
    for positives, negatives in zip(labels.positives(), labels.negatives(), strict=True):
        assert not set(positives) & set(negatives)
        assert len(set(negatives)) == len(negatives)


def test_sampled_negatives_are_drawn_from_the_others_also_where_sentences_are_shared() -> None:
    sentences = np.array([0, 1, 2, 2, 3, 4, 5, 5])
    concepts = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    labels = labels_against_others(sentences, concepts, 6, 3, sampled=2)
    assert set(labels.negatives()[0]) == {3, 4}
    assert set(labels.negatives()[1]) < {0, 1, 5}


@settings(max_examples=30, deadline=None)
@given(problems())
def test_on_and_off_values_are_those_of_numpy(problem: tuple[Values, Labels]) -> None:
    values, labels = problem
    neurons, concepts = (each.ravel() for each in np.indices((len(values), labels.n_concepts)))
    chosen = np.random.default_rng(0).permutation(len(neurons))[: len(neurons) // 2 + 1]
    neurons, concepts = neurons[chosen], concepts[chosen]
    p50, p90, off = on_and_off(values, labels, neurons, concepts)
    exact, positives, negatives = values.astype(np.float64), labels.positives(), labels.negatives()
    for at, (neuron, concept) in enumerate(zip(neurons, concepts, strict=True)):
        on = exact[neuron, positives[concept]]
        assert p50[at] == pytest.approx(np.median(on), rel=1e-6)
        assert p90[at] == pytest.approx(np.percentile(on, 90), rel=1e-6)
        assert off[at] == pytest.approx(exact[neuron, negatives[concept]].mean(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_value_that_is_not_finite_is_refused(bad: float, dtype: type) -> None:
    labels = labels_against_others(np.arange(4), np.array([0, 0, 1, 1]), 4, 2)
    with pytest.raises(ValueError, match="not finite"):
        expertise(np.array([[0, 1, bad, 2]], dtype), labels)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="concept 1 has no positive"):
        labels_against_others(np.arange(3), np.array([0, 0, 2]), 3, 3)
    with pytest.raises(ValueError, match="concept 0 has no negative"):
        labels_against_others(np.array([0, 1, 1]), np.array([0, 0, 1]), 2, 2)
    with pytest.raises(ValueError, match="2 possible negatives; 5 were asked for"):
        labels_against_others(np.arange(4), np.array([0, 0, 1, 1]), 4, 2, sampled=5)
    labels = labels_against_others(np.arange(4), np.array([0, 0, 1, 1]), 4, 2)
    with pytest.raises(ValueError, match="expected \\(neurons, 4 sentences\\)"):
        expertise(np.zeros((2, 3), np.float16), labels)
    with pytest.raises(ValueError, match="prevalence is 1"):
        expertise(np.zeros((2, 4), np.float16), labels, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_each_half_has_half_of_every_concept_by_lot(seed: int) -> None:
    """A concept that lies in one half only would have no experts in the other."""
    concepts = np.repeat(np.arange(6), [2, 3, 8, 5, 2, 11])
    sentences = np.arange(len(concepts))
    # the last sentence belongs to two concepts
    of = np.append(concepts, 0)
    half = split_half(np.append(sentences, len(concepts) - 1), of, len(concepts), seed)
    for concept in range(6):
        counts = np.bincount(half[concepts == concept], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1
    assert not np.array_equal(half, split_half(sentences, concepts, len(concepts), seed + 1))


@pytest.mark.parametrize("seed", range(3))
def test_negatives_are_as_long_as_the_positives(seed: int) -> None:
    """Were they longer, a neuron that only counts words would be an expert."""
    random = np.random.default_rng(seed)
    concepts = np.repeat(np.arange(5), 200)
    lengths = random.integers(5, 25, 1000) + 2 * concepts
    labels = labels_matched_in_length(np.arange(1000), concepts, lengths, 5, seed)
    for concept, (own, others) in enumerate(zip(labels.positives(), labels.negatives(), strict=True)):
        assert list(own) == list(np.flatnonzero(concepts == concept))
        assert len(others) >= 20
        assert not np.intersect1d(own, others).size
        assert abs(lengths[own].mean() - lengths[others].mean()) < 1
    scores = expertise(lengths[None].astype(np.float32), labels)
    unmatched = labels_against_others(np.arange(1000), concepts, 1000, 5)
    assert np.abs(scores.auroc - 0.5).max() < 0.06
    assert expertise(lengths[None].astype(np.float32), unmatched).auroc.max() > 0.7
    with pytest.raises(ValueError, match="concept 0 has no negatives as long"):
        labels_matched_in_length(np.arange(4), np.array([0, 0, 1, 1]), np.array([1, 1, 9, 9]), 2)
