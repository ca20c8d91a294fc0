"""A neuron must never be called an expert, or not, because of how the score was computed: the fast
kernel gives scikit-learn's numbers on every kind of data."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from alignment.expertise.ap_kernel import STEPS
from alignment.expertise.label_permutations import shuffles
from alignment.expertise.labels import (
    Labels,
    labels_against_others,
    labels_against_pool,
    labels_matched_in_length,
    labels_of_own,
    split_half,
)
from alignment.expertise.scoring import (
    REFERENCE_PREVALENCE,
    Scores,
    expertise,
    expertise_and_chance,
    on_and_off,
)
from alignment.expertise.scoring_torch import expertise_and_chance_on

TOLERANCE = 1e-12
Values = npt.NDArray[np.floating[Any]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Values, Labels]:
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
            kept = pairs[:, pairs[0] < pool[0]]
            labels = labels_against_pool(kept[0], kept[1], pool, n_sentences, n_concepts)
        else:
            positive = np.zeros((n_sentences, n_concepts), np.bool_)
            positive[pairs[0], pairs[1]] = True
            negative = ~positive & (random.random(positive.shape) < 0.4)
            of, own = np.nonzero(negative)
            labels = labels_of_own(pairs[0], pairs[1], of, own, n_sentences, n_concepts)
    except ValueError:
        # every sentence drawn into one concept: not a problem that has an answer
        labels = labels_against_others(np.arange(4), np.array([0, 1, 0, 1]), 4, 2)
        values = values[:, :4]
    return values.astype(dtype), labels


def by_scikit_learn(values: Values, labels: Labels, prevalence: float) -> Scores:
    shape = (len(values), labels.n_concepts)
    scores = Scores(np.empty(shape), np.empty(shape), np.empty(shape))
    each = enumerate(zip(labels.positives, labels.negatives, strict=True))
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
@given(problems(), st.integers(0, 2**32 - 1))
def test_the_order_of_sentences_and_the_block_of_a_neuron_do_not_matter(
    problem: tuple[Values, Labels], seed: int
) -> None:
    values, labels = problem
    scores = expertise(values, labels)
    order = np.random.default_rng(seed).permutation(labels.n_sentences)
    moved = expertise(np.ascontiguousarray(values[:, order]), labels.of(order))
    assert_equal_scores(moved, scores)
    parts = [expertise(values[rows], labels).ap for rows in (slice(0, 2), slice(2, None))]
    assert np.array_equal(np.concatenate(parts), scores.ap)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_torch_gives_the_same_numbers(problem: tuple[Values, Labels], seed: int) -> None:
    """Which device scores a site must not show in its experts, nor in what is told of chance."""
    values, labels = problem
    dealt = shuffles(labels, 2, seed)
    expected, chance = expertise_and_chance(values, labels, dealt)
    found, tallied = expertise_and_chance_on("cpu", values, labels, dealt, REFERENCE_PREVALENCE)
    assert_equal_scores(found, expected)
    np.testing.assert_allclose(tallied.best, chance.best, rtol=0, atol=TOLERANCE)
    assert tallied.above.shape == chance.above.shape
    with pytest.raises(ValueError, match="not finite"):
        expertise_and_chance_on("cpu", np.full_like(values, np.nan), labels, dealt, REFERENCE_PREVALENCE)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_chance_is_expertise_with_the_labels_of_other_sentences(
    problem: tuple[Values, Labels], seed: int
) -> None:
    """The walk over all shuffles at once must count what one walk after the other would."""
    values, labels = problem
    dealt = shuffles(labels, 3, seed)
    scores, chance = expertise_and_chance(values, labels, dealt)
    assert np.array_equal(scores.ap, expertise(values, labels).ap)
    given_labels = [labels, *(labels.of(each) for each in dealt)]
    for row, shuffled in enumerate(given_labels):
        ap = expertise(values, shuffled).ap
        assert np.array_equal(chance.best[row], ap.max(axis=0))
        for step in range(STEPS):
            assert np.array_equal(chance.above[row, :, step], (ap > step / STEPS).sum(axis=0))


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_in_how_many_pieces_a_neuron_is_sorted_does_not_show(
    problem: tuple[Values, Labels], seed: int, at_once: int, dealt_at_once: int
) -> None:
    """Of millions of sentences not all are sorted, drawn or held at once, nor those of one threshold. A
    piece that lost a sentence, or forgot what lay above it, would give another number."""
    values, labels = problem
    whole = [*shuffles(labels, 3, seed)]
    scores, chance = expertise_and_chance(values, labels, shuffles(labels, 3, seed))
    with (
        patch("alignment.expertise.sorted_chunks.SORTED_AT_ONCE", at_once),
        patch("alignment.expertise.scoring._SORTED_BYTES", 1),
        patch("alignment.expertise.label_permutations._HELD_BYTES", 4 * labels.n_sentences),
        patch("alignment.expertise.label_permutations._DEALT_AT_ONCE", dealt_at_once),
        patch("alignment.expertise.label_permutations._DRAWN_AT_ONCE", 7),
    ):
        shuffled = shuffles(labels, 3, seed)
        assert np.array_equal(whole, [*shuffled])
        plain = expertise(values, labels)
        found, tallied = expertise_and_chance(values, labels, shuffled)
        spoilt = values.copy()
        spoilt[3, seed % values.shape[1]] = np.inf
        with pytest.raises(ValueError, match="not finite"):
            expertise(spoilt, labels)
    for name in ("ap", "ap_raw", "auroc"):
        assert np.array_equal(getattr(found, name), getattr(scores, name))
        assert np.array_equal(getattr(plain, name), getattr(scores, name))
    assert np.array_equal(tallied.best, chance.best)
    assert np.array_equal(tallied.above, chance.above)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_many_sentences_of_nearly_one_activation_are_sorted_in_pieces(dtype: type) -> None:
    """The keys of a float32 are told apart by their upper 16 bits first: values that share these, and
    zeros of either sign, are told apart or not as they must be."""
    random = np.random.default_rng(0)
    near = 1 + random.integers(0, 3000, 6000) * np.finfo(dtype).eps
    values = random.permutation(np.concatenate([near, np.zeros(3000), -np.zeros(3000)]))[None]
    labels = labels_against_others(np.arange(12_000), np.arange(12_000) % 5, 12_000, 5)
    expected = expertise(values.astype(dtype), labels)
    with patch("alignment.expertise.sorted_chunks.SORTED_AT_ONCE", 1000):
        found = expertise(values.astype(dtype), labels)
    assert np.array_equal(found.ap, expected.ap)
    assert np.array_equal(found.auroc, expected.auroc)


def test_a_seed_gives_the_same_shuffles_as_ever() -> None:
    """What is scored later than the rest of a store must be dealt the same labels."""
    concepts = np.arange(50) % 3
    others = labels_against_others(np.arange(50), concepts, 50, 3)
    for number, dealt in enumerate(shuffles(others, 3, 7)):
        assert np.array_equal(dealt, np.argsort(np.random.default_rng([7, number]).random(50)))
    own = labels_of_own(np.arange(50), concepts, np.arange(50) + 50, concepts, 103, 3)
    for number, dealt in enumerate(shuffles(own, 3, 7)):
        lots = np.random.default_rng([7, number]).random(103)
        for concept in range(3):
            group = np.arange(concept, 50, 3)
            group = np.concatenate([group, group + 50])
            assert np.array_equal(dealt[group], group[np.argsort(lots[group])])


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_shuffled_labels_are_the_same_labels(problem: tuple[Values, Labels], seed: int) -> None:
    """A shuffle that lost a label, or parted those of one sentence, would be of another question."""
    _, labels = problem
    (dealt,) = shuffles(labels, 1, seed)
    assert sorted(dealt) == list(range(labels.n_sentences))
    shuffled = labels.of(dealt)
    assert np.array_equal(shuffled.n_positive, labels.n_positive)
    assert np.array_equal(shuffled.n_negative, labels.n_negative)
    labelled = np.zeros(labels.n_sentences, np.bool_)
    for each in (*labels.positives, *labels.negatives):
        labelled[each] = True
    assert np.array_equal(dealt[~labelled], np.flatnonzero(~labelled))


def test_concepts_with_sentences_of_their_own_are_shuffled_each_by_itself() -> None:
    sentences, concepts = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    labels = labels_of_own(sentences, concepts, sentences + 6, concepts, 13, 2)
    for dealt in shuffles(labels, 5, 0):
        for own in ([0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12]):
            assert sorted(dealt[own]) == own


def _random_labels(scheme: str, random: np.random.Generator) -> Labels:
    """Twelve concepts of 16 sentences each, with negatives of one scheme or the other."""
    concepts = np.repeat(np.arange(12), 16)
    sentences = np.arange(len(concepts))
    if scheme == "pool":
        return labels_against_pool(sentences, concepts, np.arange(192, 232), 232, 12)
    if scheme == "own":
        drawn = np.concatenate(
            [random.permutation(np.flatnonzero(concepts != c))[:40] for c in range(12)]
        )
        return labels_of_own(sentences, concepts, drawn, np.repeat(np.arange(12), 40), 192, 12)
    return labels_against_others(sentences, concepts, 192, 12)


@pytest.mark.parametrize("scheme", ["others", "pool", "own"])
def test_chance_tells_planted_concepts_from_none(scheme: str) -> None:
    """Were the shuffles unlike what chance does, concepts without experts would seem to have some: of
    concepts without, p must be as often below 5% as it says; of planted ones, always. Neurons are
    correlated, as those of a model are."""
    p_none, p_planted = [], []
    for seed in range(25):
        random = np.random.default_rng(seed)
        labels = _random_labels(scheme, random)
        factors = random.standard_normal((8, labels.n_sentences))
        values = random.standard_normal((150, 8)) @ factors
        values += random.standard_normal(values.shape)
        for concept in range(3):
            values[10 * concept : 10 * concept + 10, labels.positives[concept]] += 12
        dealt = shuffles(labels, 19, seed)
        _, chance = expertise_and_chance(values.astype(np.float16), labels, dealt)
        for step in (0, STEPS // 2, 3 * STEPS // 4):
            counted = chance.above[:, :, step] if step else chance.best
            p = (1 + (counted[1:] >= counted[0]).sum(axis=0)) / 20
            p_none += list(p[3:])
            # a tenth of the neurons is above AP 0.5 by chance now and then, for they go together
            p_planted += list(p[:3]) if step != STEPS // 2 else []
    assert max(p_planted) == 0.05
    assert np.mean(np.array(p_none) <= 0.05) < 0.08
    best = np.array(p_none).reshape(25, 3, 9)[:, 0]
    assert 0.44 < best.mean() < 0.61  # that of p = 1/20 ... 20/20 by chance is 0.525
    assert 0.35 < np.mean(best <= 0.5) < 0.65


def test_the_reference_prevalence_is_what_sampled_negatives_give_on_average() -> None:
    """`pytest -s -k reference_prevalence` prints bias and standard deviation: all negatives, weighed,
    must tell what negatives sampled at that ratio tell, with less of their noise."""
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
        of_all, of_sampled = [], []
        for _ in range(draws):
            negatives = random.standard_normal(n_all).astype(np.float32)
            whole = np.concatenate([positives, negatives])[None]
            part = np.concatenate([positives, random.choice(negatives, n_sampled, False)])[None]
            prevalence = n_positive / (n_positive + n_sampled)
            of_all.append(expertise(whole, all_labels, prevalence).ap[0, 0])
            of_sampled.append(expertise(part, sampled_labels).ap_raw[0, 0])
        bias = np.mean(of_all) - np.mean(of_sampled)
        print(
            f"\nshift {shift}: AP {np.mean(of_all):.3f}, bias {bias:+.4f}, "
            f"sd {np.std(of_all):.4f} of all, {np.std(of_sampled):.4f} of sampled"
        )
        assert abs(bias) < 0.01
        assert np.std(of_all) < np.std(of_sampled) / 3


@settings(max_examples=50, deadline=None)
@given(problems())
def test_only_the_order_of_activations_matters(problem: tuple[Values, Labels]) -> None:
    values, labels = problem
    wide = values.astype(np.float32)
    assert_equal_scores(
        expertise(np.cbrt(wide).astype(np.float32) * 3 + 1, labels), expertise(wide, labels)
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_ends_of_the_numbers_keep_their_order(dtype: type) -> None:
    """Zeros of either sign are one value; the smallest and the largest numbers are no zeros and no ties.
    Also at prevalences near 0 and 1."""
    info = np.finfo(dtype)
    ends = [0.0, info.smallest_subnormal, 2 * info.smallest_subnormal, info.tiny, 1, info.max]
    levels: Values = np.array([*ends, *(-np.array(ends))], dtype)
    random = np.random.default_rng(0)
    values = random.choice(levels, (6, 60))
    labels = labels_against_others(np.arange(60), np.arange(60) % 3, 60, 3)
    for prevalence in (1e-9, REFERENCE_PREVALENCE, 1 - 1e-9):
        # in float64 scikit-learn takes no difference of two values for zero or infinite
        expected = by_scikit_learn(values.astype(np.float64), labels, prevalence)
        assert_equal_scores(expertise(values, labels, prevalence), expected)
        found, _ = expertise_and_chance_on("cpu", values, labels, shuffles(labels, 0, 0), prevalence)
        assert_equal_scores(found, expected)


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
    drawn = labels.negatives[0]
    assert len(drawn) == len(set(drawn)) == 20
    assert sorted(np.bincount(concepts[drawn], minlength=5)) == [0, 3, 5, 6, 6]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_sentence_is_a_negative_of_its_own_concept(problem: tuple[Values, Labels]) -> None:
    _, labels = problem
    for positives, negatives in zip(labels.positives, labels.negatives, strict=True):
        assert not set(positives) & set(negatives)
        assert len(set(negatives)) == len(negatives)


def test_sampled_negatives_are_drawn_from_the_others_also_where_sentences_are_shared() -> None:
    sentences = np.array([0, 1, 2, 2, 3, 4, 5, 5])
    concepts = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    labels = labels_against_others(sentences, concepts, 6, 3, sampled=2)
    assert set(labels.negatives[0]) == {3, 4}
    assert set(labels.negatives[1]) < {0, 1, 5}


@settings(max_examples=30, deadline=None)
@given(problems())
def test_on_and_off_values_are_those_of_numpy(problem: tuple[Values, Labels]) -> None:
    values, labels = problem
    neurons, concepts = (each.ravel() for each in np.indices((len(values), labels.n_concepts)))
    chosen = np.random.default_rng(0).permutation(len(neurons))[: len(neurons) // 2 + 1]
    neurons, concepts = neurons[chosen], concepts[chosen]
    with patch("alignment.expertise.scoring.SORTED_AT_ONCE", 3):
        p50, p90, off = on_and_off(values, labels, neurons, concepts)
    exact, positives, negatives = values.astype(np.float64), labels.positives, labels.negatives
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
    for concept, (own, others) in enumerate(zip(labels.positives, labels.negatives, strict=True)):
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
