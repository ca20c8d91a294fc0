"""Whether a neuron is an expert must not depend on how the score was computed: the fast kernels match
scikit-learn on every kind of data."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from alignment.arrays import AnyFloats
from alignment.expertise import statistics_kernel
from alignment.expertise.ap_kernel import N_AP_BINS
from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import (
    Labels,
    labels_against_others,
    labels_against_pool,
    labels_from_own_negatives,
    labels_matched_by_length,
    split_half,
)
from alignment.expertise.scoring import (
    REFERENCE_PREVALENCE,
    Scores,
    activation_statistics,
    score_neurons,
    score_with_permutations,
)
from alignment.expertise.scoring_torch import score_with_permutations_torch

TOLERANCE = 1e-12


@st.composite
def problems(draw: st.DrawFn) -> tuple[AnyFloats, Labels]:
    """Activations with many ties, and labels with sentences of several concepts."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_concepts = draw(st.integers(2, 6))
    n_sentences = draw(st.integers(n_concepts + 2, 80))
    concepts = random.integers(0, n_concepts, n_sentences)
    concepts[:n_concepts] = np.arange(n_concepts)
    sentences = np.arange(n_sentences)
    if draw(st.booleans()):
        extra = random.integers(n_concepts, n_sentences, n_sentences // 3)
        sentences = np.concatenate([sentences, extra])
        concepts = np.concatenate([concepts, random.integers(0, n_concepts, len(extra))])
    pairs = np.unique(np.stack([sentences, concepts]), axis=1)
    scheme = draw(st.sampled_from(["others", "own", "pool"]))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    values = random.integers(-levels, levels + 1, (5, n_sentences)) / 4
    values[0] = values[0, 0]
    values[1] *= -0.0
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    sampled = draw(st.sampled_from([None, 1, n_concepts - 1]))
    try:
        if scheme == "others":
            labels = labels_against_others(
                pairs[0], pairs[1], n_sentences, n_concepts, sampled, draw(st.integers(0, 9))
            )
        elif scheme == "pool":
            pool = np.arange(n_sentences - n_sentences // 3, n_sentences)
            outside = pairs[:, pairs[0] < pool[0]]
            labels = labels_against_pool(outside[0], outside[1], pool, n_sentences, n_concepts)
        else:
            positive = np.zeros((n_sentences, n_concepts), np.bool_)
            positive[pairs[0], pairs[1]] = True
            negative = ~positive & (random.random(positive.shape) < 0.4)
            negatives = np.nonzero(negative)
            labels = labels_from_own_negatives(
                pairs[0], pairs[1], negatives[0], negatives[1], n_sentences, n_concepts
            )
    except ValueError:
        # invalid, for instance if one concept has all sentences
        labels = labels_against_others(np.arange(4), np.array([0, 1, 0, 1]), 4, 2)
        values = values[:, :4]
    return values.astype(dtype), labels


def score_with_scikit_learn(values: AnyFloats, labels: Labels, prevalence: float) -> Scores:
    shape = (len(values), labels.n_concepts)
    scores = Scores(np.empty(shape), np.empty(shape), np.empty(shape))
    pairs = zip(labels.positives, labels.negatives, strict=True)
    for concept, (positives, negatives) in enumerate(pairs):
        chosen = np.concatenate([positives, negatives])
        truth = np.arange(len(chosen)) < len(positives)
        weight = len(positives) / len(negatives) * (1 - prevalence) / prevalence
        weights = np.where(truth, 1.0, weight)
        for neuron, row in enumerate(values[:, chosen]):
            scores.ap[neuron, concept] = average_precision_score(truth, row, sample_weight=weights)
            scores.ap_raw[neuron, concept] = average_precision_score(truth, row)
            scores.auroc[neuron, concept] = roc_auc_score(truth, row)
    return scores


def assert_equal_scores(actual: Scores, expected: Scores) -> None:
    for name in ("ap", "ap_raw", "auroc"):
        np.testing.assert_allclose(
            getattr(actual, name), getattr(expected, name), rtol=0, atol=TOLERANCE, err_msg=name
        )


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([REFERENCE_PREVALENCE, 0.01, 0.9]))
def test_scores_match_scikit_learn(problem: tuple[AnyFloats, Labels], prevalence: float) -> None:
    """A wrong tie, weight or negative would change every result."""
    values, labels = problem
    scores = score_neurons(values, labels, prevalence)
    assert_equal_scores(scores, score_with_scikit_learn(values, labels, prevalence))


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_scores_are_independent_of_neuron_order(problem: tuple[AnyFloats, Labels], seed: int) -> None:
    """State left over from a neuron would leak into the next one."""
    values, labels = problem
    order = np.random.default_rng(seed).permutation(len(values))
    assert np.array_equal(
        score_neurons(np.ascontiguousarray(values[order]), labels).ap,
        score_neurons(values, labels).ap[order],
    )


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_scores_are_independent_of_sentence_order_and_neuron_blocks(
    problem: tuple[AnyFloats, Labels], seed: int
) -> None:
    """Ties must not be broken by sentence order, nor blocks change a score."""
    values, labels = problem
    scores = score_neurons(values, labels)
    order = np.random.default_rng(seed).permutation(labels.n_sentences)
    reordered = score_neurons(np.ascontiguousarray(values[:, order]), labels.take(order))
    assert_equal_scores(reordered, scores)
    parts = [score_neurons(values[rows], labels).ap for rows in (slice(0, 2), slice(2, None))]
    assert np.array_equal(np.concatenate(parts), scores.ap)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_permuted_scores_match_scoring_each_permutation(
    problem: tuple[AnyFloats, Labels], seed: int
) -> None:
    """The single pass over all permutations must count what separate passes would."""
    values, labels = problem
    permutations = permute_labels(labels, 3, seed)
    scores, histogram = score_with_permutations(values, labels, permutations)
    assert np.array_equal(scores.ap, score_neurons(values, labels).ap)
    labelings = [labels, *map(labels.take, permutations)]
    for row, labeling in enumerate(labelings):
        ap = score_neurons(values, labeling).ap
        assert np.array_equal(histogram.max_ap[row], ap.max(axis=0))
        for ap_bin in range(N_AP_BINS):
            n_above = (ap > ap_bin / N_AP_BINS).sum(axis=0)
            assert np.array_equal(histogram.n_above[row, :, ap_bin], n_above)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_scores_are_independent_of_chunk_sizes(
    problem: tuple[AnyFloats, Labels], seed: int, chunk_size: int, permuted_at_once: int
) -> None:
    """Millions of sentences are sorted, drawn and cached in chunks, even within one threshold. A chunk
    that lost a sentence, or the state before it, would change the scores."""
    values, labels = problem
    expected_permutations = [*permute_labels(labels, 3, seed)]
    expected, expected_histogram = score_with_permutations(
        values, labels, permute_labels(labels, 3, seed)
    )
    with (
        patch("alignment.expertise.sorted_chunks.MAX_CHUNK_SENTENCES", chunk_size),
        patch("alignment.expertise.scoring._MAX_BATCH_BYTES", 1),
        patch("alignment.expertise.label_permutations._MAX_CACHED_BYTES", 4 * labels.n_sentences),
        patch("alignment.expertise.label_permutations._PERMUTED_AT_ONCE", permuted_at_once),
        patch("alignment.expertise.label_permutations._DRAWN_AT_ONCE", 7),
    ):
        permutations = permute_labels(labels, 3, seed)
        assert np.array_equal(expected_permutations, [*permutations])
        plain = score_neurons(values, labels)
        scores, histogram = score_with_permutations(values, labels, permutations)
        invalid = values.copy()
        invalid[3, seed % values.shape[1]] = np.inf
        with pytest.raises(ValueError, match="not finite"):
            score_neurons(invalid, labels)
    for name in ("ap", "ap_raw", "auroc"):
        assert np.array_equal(getattr(scores, name), getattr(expected, name))
        assert np.array_equal(getattr(plain, name), getattr(expected, name))
    assert np.array_equal(histogram.max_ap, expected_histogram.max_ap)
    assert np.array_equal(histogram.n_above, expected_histogram.n_above)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_nearly_equal_activations_are_sorted_across_chunks(dtype: type) -> None:
    """Float32 keys are first binned by their upper 16 bits: values that differ only below these must
    stay distinct, and zeros of either sign equal."""
    random = np.random.default_rng(0)
    near = 1 + random.integers(0, 3000, 6000) * np.finfo(dtype).eps
    values = random.permutation(np.concatenate([near, np.zeros(3000), -np.zeros(3000)]))[None]
    labels = labels_against_others(np.arange(12_000), np.arange(12_000) % 5, 12_000, 5)
    expected = score_neurons(values.astype(dtype), labels)
    with patch("alignment.expertise.sorted_chunks.MAX_CHUNK_SENTENCES", 1000):
        scores = score_neurons(values.astype(dtype), labels)
    assert np.array_equal(scores.ap, expected.ap)
    assert np.array_equal(scores.auroc, expected.auroc)


def test_permutations_of_a_seed_never_change() -> None:
    """Sites scored later than the rest of a store must get the same permuted labels."""
    concepts = np.arange(50) % 3
    others = labels_against_others(np.arange(50), concepts, 50, 3)
    for number, permutation in enumerate(permute_labels(others, 3, 7)):
        assert np.array_equal(permutation, np.argsort(np.random.default_rng([7, number]).random(50)))
    own = labels_from_own_negatives(np.arange(50), concepts, np.arange(50) + 50, concepts, 103, 3)
    for number, permutation in enumerate(permute_labels(own, 3, 7)):
        sort_keys = np.random.default_rng([7, number]).random(103)
        for concept in range(3):
            group = np.arange(concept, 50, 3)
            group = np.concatenate([group, group + 50])
            assert np.array_equal(permutation[group], group[np.argsort(sort_keys[group])])


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_permutations_preserve_the_label_counts(problem: tuple[AnyFloats, Labels], seed: int) -> None:
    """A permutation that lost a label, or separated the labels of one sentence, would test another null
    hypothesis."""
    _, labels = problem
    (permutation,) = permute_labels(labels, 1, seed)
    assert sorted(permutation) == list(range(labels.n_sentences))
    permuted = labels.take(permutation)
    assert np.array_equal(permuted.n_positive, labels.n_positive)
    assert np.array_equal(permuted.n_negative, labels.n_negative)
    is_labeled = np.zeros(labels.n_sentences, np.bool_)
    for sentences in (*labels.positives, *labels.negatives):
        is_labeled[sentences] = True
    assert np.array_equal(permutation[~is_labeled], np.flatnonzero(~is_labeled))


def test_concepts_with_their_own_sentences_are_permuted_separately() -> None:
    """Mixing them would compare a concept with sentences that it was never contrasted with."""
    sentences, concepts = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    labels = labels_from_own_negatives(sentences, concepts, sentences + 6, concepts, 13, 2)
    for permutation in permute_labels(labels, 5, 0):
        for group in ([0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12]):
            assert sorted(permutation[group]) == group


def _random_labels(scheme: str, random: np.random.Generator) -> Labels:
    """Twelve concepts of 16 sentences, with negatives of the given scheme."""
    concepts = np.repeat(np.arange(12), 16)
    sentences = np.arange(len(concepts))
    if scheme == "pool":
        return labels_against_pool(sentences, concepts, np.arange(192, 232), 232, 12)
    if scheme == "own":
        drawn = np.concatenate(
            [random.permutation(np.flatnonzero(concepts != c))[:40] for c in range(12)]
        )
        return labels_from_own_negatives(
            sentences, concepts, drawn, np.repeat(np.arange(12), 40), 192, 12
        )
    return labels_against_others(sentences, concepts, 192, 12)


@pytest.mark.parametrize("scheme", ["others", "pool", "own"])
def test_permutation_p_values_separate_planted_concepts_from_null_ones(scheme: str) -> None:
    """With a wrong null distribution, concepts without experts would seem to have some: for these, p
    must be below 5% in 5% of cases; for planted concepts, always. Neurons are correlated, as in a
    model."""
    p_null, p_planted = [], []
    for seed in range(25):
        random = np.random.default_rng(seed)
        labels = _random_labels(scheme, random)
        factors = random.standard_normal((8, labels.n_sentences))
        values = random.standard_normal((150, 8)) @ factors
        values += random.standard_normal(values.shape)
        for concept in range(3):
            values[10 * concept : 10 * concept + 10, labels.positives[concept]] += 12
        permutations = permute_labels(labels, 19, seed)
        _, histogram = score_with_permutations(values.astype(np.float16), labels, permutations)
        for step in (0, N_AP_BINS // 2, 3 * N_AP_BINS // 4):
            statistic = histogram.n_above[:, :, step] if step else histogram.max_ap
            p = (1 + (statistic[1:] >= statistic[0]).sum(axis=0)) / 20
            p_null += list(p[3:])
            # correlated neurons: occasionally a tenth of them exceeds AP 0.5 by chance
            p_planted += list(p[:3]) if step != N_AP_BINS // 2 else []
    assert max(p_planted) == 0.05
    assert np.mean(np.array(p_null) <= 0.05) < 0.08
    p_max_ap = np.array(p_null).reshape(25, 3, 9)[:, 0]
    assert 0.44 < p_max_ap.mean() < 0.61  # uniform over 1/20 ... 20/20: 0.525
    assert 0.35 < np.mean(p_max_ap <= 0.5) < 0.65


def test_the_reference_prevalence_matches_sampled_negatives_on_average() -> None:
    """All negatives, weighted, must be unbiased against negatives sampled at that ratio, with less
    noise; `pytest -s -k reference_prevalence` prints bias and standard deviation."""
    random = np.random.default_rng(0)
    n_positive, n_all, n_sampled, draws = 100, 5_000, 250, 300
    sampled_labels, all_labels = (
        labels_against_others(
            np.arange(n_positive + n_negative),
            np.repeat([0, 1], [n_positive, n_negative]),
            n_positive + n_negative,
            2,
        )
        for n_negative in (n_sampled, n_all)
    )
    for shift in (0.0, 0.5, 1.0, 2.0):
        positives = (shift + random.standard_normal(n_positive)).astype(np.float32)
        weighted, sampled = [], []
        for _ in range(draws):
            negatives = random.standard_normal(n_all).astype(np.float32)
            full = np.concatenate([positives, negatives])[None]
            sample = np.concatenate([positives, random.choice(negatives, n_sampled, False)])[None]
            prevalence = n_positive / (n_positive + n_sampled)
            weighted.append(score_neurons(full, all_labels, prevalence).ap[0, 0])
            sampled.append(score_neurons(sample, sampled_labels).ap_raw[0, 0])
        bias = np.mean(weighted) - np.mean(sampled)
        print(
            f"\nshift {shift}: AP {np.mean(weighted):.3f}, bias {bias:+.4f}, "
            f"SD {np.std(weighted):.4f} weighted, {np.std(sampled):.4f} sampled"
        )
        assert abs(bias) < 0.01
        assert np.std(weighted) < np.std(sampled) / 3


@settings(max_examples=50, deadline=None)
@given(problems())
def test_scores_depend_only_on_the_order_of_activations(problem: tuple[AnyFloats, Labels]) -> None:
    """Scale and offset differ between neurons and must not favor any."""
    values, labels = problem
    wide = values.astype(np.float32)
    assert_equal_scores(
        score_neurons(np.cbrt(wide).astype(np.float32) * 3 + 1, labels), score_neurons(wide, labels)
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_extreme_floats_sort_correctly(dtype: type) -> None:
    """Signed zeros are equal; subnormal and maximal values are neither zeros nor ties. Also at
    prevalences near 0 and 1."""
    info = np.finfo(dtype)
    extremes = [0.0, info.smallest_subnormal, 2 * info.smallest_subnormal, info.tiny, 1, info.max]
    levels: AnyFloats = np.array([*extremes, *(-np.array(extremes))], dtype)
    random = np.random.default_rng(0)
    values = random.choice(levels, (6, 60))
    labels = labels_against_others(np.arange(60), np.arange(60) % 3, 60, 3)
    for prevalence in (1e-9, REFERENCE_PREVALENCE, 1 - 1e-9):
        # float64, where differences of these values neither vanish nor overflow in scikit-learn
        expected = score_with_scikit_learn(values.astype(np.float64), labels, prevalence)
        assert_equal_scores(score_neurons(values, labels, prevalence), expected)
        no_permutations = permute_labels(labels, 0, 0)
        scores, _ = score_with_permutations_torch("cpu", values, labels, no_permutations, prevalence)
        assert_equal_scores(scores, expected)


def test_more_sentences_than_16_bits_can_index() -> None:
    """Above 65,536 sentences, an index and a float16 no longer fit in 32 bits."""
    n_sentences = (1 << 16) + 5
    random = np.random.default_rng(0)
    values = random.standard_normal((2, n_sentences)).astype(np.float16)
    concepts = np.arange(n_sentences) % 3
    labels = labels_against_others(np.arange(n_sentences), concepts, n_sentences, 3)
    expected = score_with_scikit_learn(values, labels, REFERENCE_PREVALENCE)
    assert_equal_scores(score_neurons(values, labels), expected)


def test_sampled_negatives_are_balanced_over_the_other_concepts() -> None:
    """A large concept would otherwise dominate the negatives of all others."""
    concepts = np.repeat(np.arange(5), [10, 10, 10, 10, 3])
    labels = labels_against_others(np.arange(len(concepts)), concepts, len(concepts), 5, 20)
    negatives = labels.negatives[0]
    assert len(negatives) == len(set(negatives)) == 20
    assert sorted(np.bincount(concepts[negatives], minlength=5)) == [0, 3, 5, 6, 6]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_sentence_is_a_negative_of_its_own_concept(problem: tuple[AnyFloats, Labels]) -> None:
    """It would lower the AP of every expert."""
    _, labels = problem
    for positives, negatives in zip(labels.positives, labels.negatives, strict=True):
        assert not set(positives) & set(negatives)
        assert len(set(negatives)) == len(negatives)


def test_sampled_negatives_exclude_sentences_shared_with_the_concept() -> None:
    """A sentence of two concepts is a positive of both, not a negative of either."""
    sentences = np.array([0, 1, 2, 2, 3, 4, 5, 5])
    concepts = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    labels = labels_against_others(sentences, concepts, 6, 3, sampled=2)
    assert set(labels.negatives[0]) == {3, 4}
    assert set(labels.negatives[1]) < {0, 1, 5}


@settings(max_examples=30, deadline=None)
@given(problems())
def test_activation_statistics_match_numpy(problem: tuple[AnyFloats, Labels]) -> None:
    """Steering clamps neurons to the median: a wrong one would change every intervention."""
    values, labels = problem
    neurons, concepts = (index.ravel() for index in np.indices((len(values), labels.n_concepts)))
    chosen = np.random.default_rng(0).permutation(len(neurons))[: len(neurons) // 2 + 1]
    neurons, concepts = neurons[chosen], concepts[chosen]
    with patch("alignment.expertise.scoring._MAX_BATCH_BYTES", 1):
        p50, p90, off = activation_statistics(values, labels, neurons, concepts)
    exact, positives, negatives = values.astype(np.float64), labels.positives, labels.negatives
    for row, (neuron, concept) in enumerate(zip(neurons, concepts, strict=True)):
        on = exact[neuron, positives[concept]]
        assert p50[row] == pytest.approx(np.median(on), rel=1e-6)
        assert p90[row] == pytest.approx(np.percentile(on, 90), rel=1e-6)
        assert off[row] == pytest.approx(exact[neuron, negatives[concept]].mean(), rel=1e-6, abs=1e-6)


def test_every_finite_float16_is_widened_exactly() -> None:
    """A subnormal number flushed to 0 would be a wrong median of a quiet neuron."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))]
    out = np.empty((1, len(finite)), np.float32)
    statistics_kernel.widen_rows(np.stack([finite[::-1], finite]), np.array([1]), out)
    assert np.array_equal(
        out[0].view(np.uint32), finite.view(np.float16).astype(np.float32).view(np.uint32)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_non_finite_values_are_rejected(bad: float, dtype: type) -> None:
    """A NaN would sort somewhere and yield a plausible score."""
    labels = labels_against_others(np.arange(4), np.array([0, 0, 1, 1]), 4, 2)
    with pytest.raises(ValueError, match="not finite"):
        score_neurons(np.array([[0, 1, bad, 2]], dtype), labels)


def test_invalid_labels_and_inputs_are_rejected() -> None:
    """They would yield NaN or scores of the wrong sentences."""
    with pytest.raises(ValueError, match="concept 1 has no positive"):
        labels_against_others(np.arange(3), np.array([0, 0, 2]), 3, 3)
    with pytest.raises(ValueError, match="concept 0 has no negative"):
        labels_against_others(np.array([0, 1, 1]), np.array([0, 0, 1]), 2, 2)
    with pytest.raises(ValueError, match="2 possible negatives; 5 were requested"):
        labels_against_others(np.arange(4), np.array([0, 0, 1, 1]), 4, 2, sampled=5)
    labels = labels_against_others(np.arange(4), np.array([0, 0, 1, 1]), 4, 2)
    with pytest.raises(ValueError, match="shape \\(neurons, 4 sentences\\), got \\(2, 3\\)"):
        score_neurons(np.zeros((2, 3), np.float16), labels)
    with pytest.raises(ValueError, match="prevalence must be between 0 and 1, got 1"):
        score_neurons(np.zeros((2, 4), np.float16), labels, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_split_halves_are_balanced_within_every_concept(seed: int) -> None:
    """A concept entirely in one half would have no experts in the other."""
    concepts = np.repeat(np.arange(6), [2, 3, 8, 5, 2, 11])
    sentences = np.arange(len(concepts))
    # the last sentence belongs to two concepts
    members = np.append(concepts, 0)
    half = split_half(np.append(sentences, len(concepts) - 1), members, len(concepts), seed)
    for concept in range(6):
        counts = np.bincount(half[concepts == concept], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1
    assert not np.array_equal(half, split_half(sentences, concepts, len(concepts), seed + 1))


@pytest.mark.parametrize("seed", range(3))
def test_length_matched_negatives_are_as_long_as_the_positives(seed: int) -> None:
    """If they were longer, a neuron that only counts words would be an expert."""
    random = np.random.default_rng(seed)
    concepts = np.repeat(np.arange(5), 200)
    lengths = random.integers(5, 25, 1000) + 2 * concepts
    labels = labels_matched_by_length(np.arange(1000), concepts, lengths, 5, seed)
    for concept, (own, others) in enumerate(zip(labels.positives, labels.negatives, strict=True)):
        assert list(own) == list(np.flatnonzero(concepts == concept))
        assert len(others) >= 20
        assert not np.intersect1d(own, others).size
        assert abs(lengths[own].mean() - lengths[others].mean()) < 1
    scores = score_neurons(lengths[None].astype(np.float32), labels)
    unmatched = labels_against_others(np.arange(1000), concepts, 1000, 5)
    assert np.abs(scores.auroc - 0.5).max() < 0.06
    assert score_neurons(lengths[None].astype(np.float32), unmatched).auroc.max() > 0.7
    with pytest.raises(ValueError, match="concept 0 has no negatives as long"):
        labels_matched_by_length(np.arange(4), np.array([0, 0, 1, 1]), np.array([1, 1, 9, 9]), 2)
