"""Debiased CKA and the whitened correlation: values that differ from their definitions would be reported
as agreement, and intervals or p values that are too small as evidence."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.arrays import Floats
from alignment.statistics.matrix_correlation import (
    MatrixMeasure,
    correlate_matrices,
    matrix_permutation_p,
)

MEASURES: tuple[MatrixMeasure, ...] = ("cka", "whitened")


def symmetric(random: np.random.Generator, n: int, count: int = 1) -> Floats:
    values = random.standard_normal((count, n, n))
    return values + values.transpose(0, 2, 1)


def unbiased_hsic(first: Floats, second: Floats) -> float:
    """Equation 5 of Song et al. 2012 in plain loops."""
    n = len(first)
    product = sum(first[i, j] * second[j, i] for i in range(n) for j in range(n) if i != j)
    sums = [
        sum(matrix[i, j] for i in range(n) for j in range(n) if i != j) for matrix in (first, second)
    ]
    chain = sum(
        first[i, j] * second[j, k]
        for i in range(n)
        for j in range(n)
        for k in range(n)
        if j not in (i, k)
    )
    total = product + sums[0] * sums[1] / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)
    return float(total / (n * (n - 3)))


def test_debiased_cka_is_a_ratio_of_unbiased_hsics() -> None:
    """A centering of its own could give another statistic under the name of CKA."""
    random = np.random.default_rng(0)
    for n in (5, 8, 13):
        scores, *matrices = symmetric(random, n, 3)
        result = correlate_matrices("cka", np.stack(matrices), scores)
        for value, matrix in zip(result.values, matrices, strict=True):
            norm = np.sqrt(unbiased_hsic(matrix, matrix) * unbiased_hsic(scores, scores))
            assert value == pytest.approx(unbiased_hsic(matrix, scores) / norm, abs=1e-12)


def test_debiased_cka_of_embeddings_does_not_depend_on_their_origin() -> None:
    """CKA compares centered features; similarities of shifted ones must give the same value."""
    random = np.random.default_rng(1)
    features, others = random.standard_normal((20, 30)), random.standard_normal((20, 7))
    scores = others @ others.T
    shifted = features + 5 * random.standard_normal(30)
    grams = np.stack([features @ features.T, shifted @ shifted.T])
    plain, moved = correlate_matrices("cka", grams, scores).values
    assert plain == pytest.approx(moved, abs=1e-10)


def test_the_whitened_correlation_matches_rsatoolbox() -> None:
    """The reference implementation of RSA must agree, by its fast way and with the covariance itself."""
    from rsatoolbox.rdm import RDMs, compare

    random = np.random.default_rng(2)
    for n in (5, 9, 30):
        scores, *matrices = symmetric(random, n, 4)
        pairs = np.triu_indices(n, 1)
        models = RDMs(np.stack([-matrix[pairs] for matrix in matrices]))
        human = RDMs(-scores[pairs][None])
        result = correlate_matrices("whitened", np.stack(matrices), scores)
        for sigma in (None, np.eye(n)):
            expected = compare(models, human, method="corr_cov", sigma_k=sigma)[:, 0]
            np.testing.assert_allclose(
                result.values, expected, atol=1e-5 if sigma is not None else 1e-12
            )


@pytest.mark.parametrize("measure", MEASURES)
def test_self_similarities_do_not_matter(measure: MatrixMeasure) -> None:
    """Human data has no similarity of a concept with itself, and a model's is always 1."""
    random = np.random.default_rng(3)
    scores, matrix = symmetric(random, 7, 2)
    value = correlate_matrices(measure, matrix[None], scores).values[0]
    other = correlate_matrices(measure, (matrix + 100 * np.eye(7))[None], scores - np.eye(7)).values[0]
    assert value == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_jackknife_matches_a_plain_loop(measure: MatrixMeasure) -> None:
    """Concepts left out one at a time, each time centered again."""
    random = np.random.default_rng(4)
    scores, matrix = symmetric(random, 8, 2)
    result = correlate_matrices(measure, matrix[None], scores)
    left_out = []
    for concept in range(8):
        rest = [other for other in range(8) if other != concept]
        part = correlate_matrices(measure, matrix[None][:, rest][:, :, rest], scores[rest][:, rest])
        left_out.append(part.values[0])
    np.testing.assert_allclose(result.leave_one_concept_out[0], left_out, atol=1e-12)
    z = np.arctanh(left_out)
    variance = 7 / 8 * sum((value - z.mean()) ** 2 for value in z)
    interval = result.interval(0)
    assert interval.high is not None
    assert np.arctanh(interval.high) - np.arctanh(interval.value) == pytest.approx(
        2.3646242510103 * np.sqrt(variance), abs=1e-9
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_permuted_concepts_match_a_plain_loop(measure: MatrixMeasure) -> None:
    """The centered values are permuted, which must equal centering the permuted matrix."""
    random = np.random.default_rng(5)
    scores, matrix = symmetric(random, 6, 2)
    observed = abs(correlate_matrices(measure, matrix[None], scores).values[0])
    generator = np.random.default_rng(7)
    orders = generator.permuted(np.tile(np.arange(6), (200, 1)), axis=1)
    count = sum(
        abs(correlate_matrices(measure, matrix[order][:, order][None], scores).values[0])
        >= observed - 1e-9
        for order in orders
    )
    assert matrix_permutation_p(measure, matrix, scores, 200, 7) == (1 + count) / 201


@pytest.mark.parametrize("measure", MEASURES)
def test_a_constant_matrix_has_no_value(measure: MatrixMeasure) -> None:
    """Rounding would turn a matrix in which all similarities are equal into a random number."""
    random = np.random.default_rng(6)
    scores, matrix = symmetric(random, 9, 2)
    constant = np.full((9, 9), 0.1)
    result = correlate_matrices(measure, np.stack([constant, matrix]), scores)
    assert np.isnan(result.values[0])
    assert np.isfinite(result.values[1])
    assert result.interval(0).low is None
    assert np.isnan(matrix_permutation_p(measure, constant, scores, 100))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_matrix_of_one_concept_s_pairs_has_no_interval(measure: MatrixMeasure) -> None:
    """Without that concept all similarities are equal, and rounding would give any value."""
    scores = symmetric(np.random.default_rng(11), 9)[0]
    matrix = np.zeros((9, 9))
    matrix[3, 5] = matrix[5, 3] = 0.3
    result = correlate_matrices(measure, matrix[None], scores)
    assert np.isfinite(result.values[0])
    assert np.flatnonzero(np.isnan(result.leave_one_concept_out[0])).tolist() == [3, 5]
    assert result.interval(0).low is None


def test_effects_of_concepts_alone_have_no_cka() -> None:
    """Frequent words that are similar to everything are no agreement in structure."""
    effects = np.arange(9) / 7
    scores = symmetric(np.random.default_rng(8), 9)[0]
    values = correlate_matrices("cka", (effects[:, None] + effects)[None], scores).values
    assert np.isnan(values[0])


def test_few_pairs_and_missing_numbers_are_rejected() -> None:
    """A NaN would spread silently to every value."""
    matrix = symmetric(np.random.default_rng(9), 6)[0]
    with pytest.raises(ValueError, match="at least 10 pairs, got 6"):
        correlate_matrices("cka", matrix[None, :4, :4], matrix[:4, :4])
    with pytest.raises(ValueError, match="not finite"):
        correlate_matrices("cka", np.full((1, 6, 6), np.nan), matrix)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("clustered", [False, True])
def test_matrix_intervals_cover(measure: MatrixMeasure, clustered: bool) -> None:
    """Too small intervals would report agreement that is not there: at least 95% of those of 25 concepts
    must hold the value of 200, whether similarities differ by pair alone or also by concept."""
    random = np.random.default_rng(10)

    def study(n: int) -> tuple[Floats, Floats]:
        features = random.standard_normal((n, 6)) if clustered else np.zeros((n, 6))
        shared = features @ features.T / 2 + (0 if clustered else symmetric(random, n)[0] / 1.4)
        first, second = (shared + symmetric(random, n)[0] / 1.4 for _ in range(2))
        return first, second

    true = np.mean(
        [correlate_matrices(measure, x[None], y).values[0] for x, y in (study(200) for _ in range(4))]
    )
    n_studies, covered = 200, 0
    for _ in range(n_studies):
        matrix, scores = study(25)
        interval = correlate_matrices(measure, matrix[None], scores).interval(0)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= true <= interval.high
    print(f"{measure}, concept effects {clustered}: {100 * covered / n_studies:.1f}%")
    assert covered / n_studies > 0.92
