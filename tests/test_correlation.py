"""A wrong correlation, interval or p value would go unnoticed: values must match SciPy's, resamples
those of plain loops, and intervals and p values must have their nominal coverage and error rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignment.arrays import Floats, Ints
from alignment.statistics.correlation import benjamini_hochberg, correlate, mantel_test
from alignment.statistics.rank_correlation import CorrelationMeasure, weighted_correlation
from alignment.statistics.resampling import (
    IntervalEstimate,
    IntervalMethod,
    ResampledStatistic,
    dyadic_variance,
)
from alignment.statistics.vectors import cosine_matrix, subtract_mean

SCIPY: dict[CorrelationMeasure, Callable[..., Any]] = {
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
    "pearson": stats.pearsonr,
}
INTERVAL_METHODS: tuple[IntervalMethod, ...] = get_args(IntervalMethod)


def bounds(interval: IntervalEstimate) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def correlate_one(
    x: Floats, y: Floats, first: Ints, second: Ints, **settings: Any
) -> ResampledStatistic:
    """`correlate` for a single representation."""
    return correlate(x[None], y, first, second, **settings)


@pytest.mark.parametrize("measure", SCIPY)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(10, 60), st.sampled_from([3, 10, 10_000]))
def test_values_match_scipy_with_ties(
    measure: CorrelationMeasure, seed: int, n_pairs: int, levels: int
) -> None:
    """Human ratings have many ties, which the compiled measures must treat as SciPy does."""
    random = np.random.default_rng(seed)
    x = random.integers(0, levels, n_pairs).astype(float)
    y = random.integers(0, levels, n_pairs).astype(float)
    x[:2], y[:2] = (0, levels), (0, levels)
    first, second = random.integers(0, 9, n_pairs), random.integers(9, 18, n_pairs)
    result = correlate_one(
        x, y, first, second, measure=measure, method="concept-bootstrap", resamples=20
    )
    assert result.values[0] == pytest.approx(SCIPY[measure](x, y).statistic, abs=1e-12)
    assert result.resampled.shape == (1, 20)


def test_correlations_of_matrices_match_rsatoolbox() -> None:
    """The field's reference implementation of RSA must agree."""
    from rsatoolbox.rdm import RDMs, compare

    random = np.random.default_rng(9)
    first, second = np.triu_indices(10, 1)
    models, human = (
        random.integers(0, 20, (3, 45)).astype(float),
        random.integers(0, 8, 45).astype(float),
    )
    names: dict[CorrelationMeasure, str] = {
        "spearman": "spearman",
        "kendall": "tau-b",
        "pearson": "corr",
    }
    for measure, name in names.items():
        result = correlate(models, human, first, second, measure, resamples=10)
        expected = compare(RDMs(models), RDMs(human[None]), method=name)[:, 0]
        np.testing.assert_allclose(result.values, expected, atol=1e-12)


@pytest.mark.parametrize("measure", SCIPY)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_integer_weights_equal_repeated_pairs(measure: CorrelationMeasure, seed: int) -> None:
    """Every bootstrap resample rests on this."""
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 6, (2, 25)).astype(float)
    weights = random.integers(0, 4, (8, 25))
    values = weighted_correlation(measure, x, y, weights.astype(float))
    for row, value in zip(weights, values, strict=True):
        repeated_x, repeated_y = np.repeat(x, row), np.repeat(y, row)
        if len(set(repeated_x)) < 2 or len(set(repeated_y)) < 2:
            assert np.isnan(value)
        else:
            expected = SCIPY[measure](repeated_x, repeated_y).statistic
            assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("measure", SCIPY)
def test_resamples_match_plain_loops(measure: CorrelationMeasure) -> None:
    """The vectorized resamples against loops that list the pairs of the sampled concepts explicitly."""
    random = np.random.default_rng(3)
    first, second = np.triu_indices(9, 1)
    pairs = random.permutation(len(first))[:25]
    first, second = first[pairs], second[pairs]
    x = random.integers(0, 12, (2, 25)).astype(float)
    y = x[0] + random.integers(0, 9, 25)
    bootstrap = correlate(x, y, first, second, measure, "concept-bootstrap", resamples=60, seed=5)
    jackknife = correlate(x, y, first, second, measure, "jackknife")
    counts = np.random.default_rng(5).multinomial(9, np.full(9, 1 / 9), size=60)
    for row in range(2):

        def expected(pairs: Ints, row: int = row) -> float:
            return float(SCIPY[measure](x[row][pairs], y[pairs]).statistic)

        for resample, count in enumerate(counts):
            repeated = np.repeat(np.arange(25), count[first] * count[second])
            if len(set(x[row][repeated])) > 1 and len(set(y[repeated])) > 1:
                assert bootstrap.resampled[row, resample] == pytest.approx(expected(repeated), abs=1e-12)
        for concept in range(9):
            rest = np.flatnonzero((first != concept) & (second != concept))
            actual = jackknife.leave_one_concept_out[row, concept]
            assert actual == pytest.approx(expected(rest), abs=1e-12)
        for pair in range(25):
            rest = np.delete(np.arange(25), pair)
            assert jackknife.leave_one_pair_out[row, pair] == pytest.approx(expected(rest), abs=1e-12)


def test_intervals_depend_only_on_the_seed() -> None:
    """A rerun must reproduce the published interval."""
    random = np.random.default_rng(0)
    first, second = np.triu_indices(8, 1)
    x, y = random.standard_normal((2, len(first)))
    intervals = [
        correlate_one(
            x, y, first, second, method="concept-bootstrap", resamples=200, seed=seed
        ).interval(0)
        for seed in (1, 1, 2)
    ]
    assert intervals[0] == intervals[1] != intervals[2]


@pytest.mark.parametrize("method", INTERVAL_METHODS)
def test_differences_are_paired_within_resamples(method: IntervalMethod) -> None:
    """Correlations with the same `y` vary together; an unpaired interval of the difference is too
    wide."""
    random = np.random.default_rng(4)
    first, second = np.triu_indices(14, 1)
    y = random.standard_normal(len(first))
    x = y + 0.7 * random.standard_normal((2, len(y)))
    result = correlate(x, y, first, second, method=method)
    difference = result.difference(0, result, 1)
    assert difference.value == result.values[0] - result.values[1]
    low, high = bounds(result.difference(1, result, 0))
    assert bounds(difference) == pytest.approx((-high, -low))
    assert bounds(result.difference(0, result, 0)) == (0.0, 0.0)
    total_width = sum(np.ptp(bounds(result.interval(index))) for index in (0, 1))
    assert np.ptp(bounds(difference)) < total_width


def test_no_interval_if_many_resamples_are_undefined() -> None:
    """Few resamples contain the only pair that differs; an interval from these alone would mislead."""
    first, second = np.triu_indices(12, 1)
    x: Floats = np.zeros(len(first))
    x[0] = 1
    y: Floats = np.arange(len(x), dtype=np.float64)
    for method in INTERVAL_METHODS:
        interval = correlate_one(x, y, first, second, method=method).interval(0)
        assert (interval.low, interval.high) == (None, None)


def test_the_dyadic_variance_of_independent_pairs_is_theirs() -> None:
    """The jackknife over concepts counts pairs that share no concept twice, which must be corrected."""
    values = np.random.default_rng(1).standard_normal(40)
    without_pair = (values.sum() - values) / 39
    without_concept = np.repeat(without_pair, 2)
    variance, dof = dyadic_variance(without_concept, without_pair, np.ones(80, np.int64), 40)
    assert variance == pytest.approx(values.var(ddof=1) / 40, rel=0.01)
    assert dof == 39


def test_leaving_out_groups_of_pairs_gives_the_same_variance() -> None:
    """With many pairs, groups are left out to save time, which must not bias the variance."""
    random = np.random.default_rng(2)
    first, second = np.triu_indices(70, 1)
    effect = random.standard_normal(70)
    y = effect[first] + effect[second] + random.standard_normal(len(first))
    x = y + random.standard_normal(len(first))
    result = correlate_one(x, y, first, second, measure="pearson")
    assert result.leave_one_pair_out.shape == (1, 1000)
    left_out = [stats.pearsonr(np.delete(x, i), np.delete(y, i))[0] for i in range(len(x))]
    exact = (len(x) - 1) * np.var(left_out)
    assert 999 * result.leave_one_pair_out.var() == pytest.approx(exact, rel=0.15)


# for the coverage of 95% intervals: documented as 93 to 97%, measured to within 2 points
_SIMULATIONS = 400


def _sample_pairs(graph: str, random: np.random.Generator) -> tuple[Ints, Ints, int]:
    """The concepts of each pair, and the number of concepts."""
    if graph == "sparse":  # four pairs per concept, as in lists of rated word pairs
        first, second = np.triu_indices(60, 1)
        pairs = random.choice(len(first), 240, replace=False)
        return first[pairs], second[pairs], 60
    if graph == "tiny":  # as many pairs as concepts
        first, second = np.triu_indices(20, 1)
        pairs = random.choice(len(first), 20, replace=False)
        return first[pairs], second[pairs], 20
    if graph == "full":
        first, second = np.triu_indices(25, 1)
        return first, second, 25
    return np.arange(0, 130, 2), np.arange(1, 130, 2), 130


@pytest.mark.parametrize(
    ("graph", "clustered"),
    [
        *((graph, clustered) for graph in ("sparse", "full", "tiny") for clustered in (False, True)),
        ("disjoint", False),
    ],
)
def test_intervals_cover_with_and_without_concept_effects(graph: str, clustered: bool) -> None:
    """The pair bootstrap fails with concept effects, the concept bootstrap without: the reason why
    neither is the default."""
    random = np.random.default_rng(11)
    first, second, n = _sample_pairs(graph, random)
    # true Pearson correlations with y of x, and of x plus noise of the same variance
    truth, noisy_truth = 0.5, 0.5 / np.sqrt(2)
    covered = dict.fromkeys((*INTERVAL_METHODS, "difference"), 0.0)
    for _ in range(_SIMULATIONS):
        effect = random.standard_normal((2, n)) * clustered
        noise = random.standard_normal((2, len(first)))
        x, residual = effect[:, first] + effect[:, second] + noise
        y = truth * x + np.sqrt(1 - truth**2) * residual
        noisy_x = x + np.sqrt(1 + 2 * clustered) * random.standard_normal(len(x))
        for method in INTERVAL_METHODS:
            result = correlate(
                np.stack([x, noisy_x]), y, first, second, "pearson", method, resamples=200
            )
            interval = result.interval(0)
            if interval.low is not None and interval.high is not None:
                covered[method] += (interval.low <= truth <= interval.high) / _SIMULATIONS
            if method == "jackknife":
                low, high = bounds(result.difference(0, result, 1))
                covered["difference"] += (low <= truth - noisy_truth <= high) / _SIMULATIONS
    print(graph, "clustered" if clustered else "independent", covered)
    # the documented range plus three standard errors
    assert 0.90 <= covered["jackknife"] <= 0.985
    assert 0.90 <= covered["difference"] <= 0.99
    if clustered and graph != "tiny":
        assert covered["pair-bootstrap"] < 0.85
    if graph == "sparse" and not clustered:
        assert covered["concept-bootstrap"] > 0.985


def _split_half_similarities(
    random: np.random.Generator, clusters: Floats, n: int
) -> tuple[Floats, Floats]:
    """Jaccard similarities of the experts of `n` concepts from either half of their sentences. Concepts
    belong to clusters and vary in their neurons and in how many they have; halves add noise."""
    neurons = clusters.shape[1]
    concepts = 0.6 * clusters[random.integers(0, len(clusters), n)]
    concepts += 0.8 * random.standard_normal((n, neurons))
    threshold = 1.6 + 0.3 * random.standard_normal((n, 1))
    halves = []
    for _ in range(2):
        noisy = np.sqrt(0.7) * concepts + np.sqrt(0.3) * random.standard_normal((n, neurons))
        experts = (noisy > threshold).astype(np.float64)
        intersection, size = experts @ experts.T, experts.sum(axis=1)
        union = np.maximum(size[:, None] + size - intersection, 1)
        halves.append((intersection / union)[np.triu_indices(n, 1)])
    return halves[0], halves[1]


@pytest.mark.parametrize("n", [20, 40, 80])
def test_split_half_intervals_cover(n: int) -> None:
    """The stage `reliability` correlates the similarities of all pairs between halves: a different graph
    of pairs and noise on both sides."""
    random = np.random.default_rng(n)
    clusters = random.standard_normal((6, 300))
    first, second = np.triu_indices(n, 1)
    intervals = []
    for _ in range(_SIMULATIONS // 2):
        x, y = _split_half_similarities(random, clusters, n)
        intervals.append(correlate_one(x, y, first, second).interval(0))
    truth = np.tanh(np.mean([np.arctanh(interval.value) for interval in intervals]))
    covered = float(np.mean([low <= truth <= high for low, high in map(bounds, intervals)]))
    print(f"{n} concepts, rho {truth:.2f}: {covered:.1%}")
    # the documented range plus three standard errors of 200 simulations
    assert 0.88 <= covered <= 0.995


@pytest.mark.parametrize("measure", SCIPY)
def test_mantel_p_values_are_uniform_under_the_null_with_concept_effects(
    measure: CorrelationMeasure,
) -> None:
    """Concept effects make pairs dependent, which a permutation of pairs would ignore."""
    random = np.random.default_rng(6)
    first, second, n = _sample_pairs("sparse", random)
    p = []
    for number in range(300):
        model, human = random.standard_normal((2, n)) * 2
        matrix = model[:, None] + model + np.abs(random.standard_normal((n, n)))
        matrix += matrix.T
        y = human[first] + human[second] + random.standard_normal(len(first))
        p.append(mantel_test(matrix, y, first, second, measure, permutations=199, seed=number))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_the_mantel_test_matches_a_plain_loop_and_detects_an_effect() -> None:
    """The vectorized permutations must be those of the concepts, applied to rows and columns alike."""
    random = np.random.default_rng(8)
    matrix = random.integers(0, 9, (12, 12)).astype(float)
    matrix += matrix.T
    first, second = np.triu_indices(12, 1)
    first, second = first[::2], second[::2]
    y = matrix[first, second] + 6 * random.standard_normal(len(first))
    p = mantel_test(matrix, y, first, second, permutations=500, seed=1)
    observed = abs(stats.spearmanr(matrix[first, second], y).statistic)
    orders = np.random.default_rng(1).permuted(np.tile(np.arange(12), (500, 1)), axis=1)
    null = [abs(stats.spearmanr(matrix[row[first], row[second]], y).statistic) for row in orders]
    assert p == (1 + sum(value >= observed - 1e-9 for value in null)) / 501
    assert mantel_test(matrix, matrix[first, second], first, second, permutations=500) == 1 / 501
    assert np.isnan(mantel_test(np.ones((12, 12)), y, first, second))


def test_a_permutation_without_a_correlation_is_not_as_large() -> None:
    """With few similarities above 0, most permutations have none among the rated pairs, and counting
    them as large would make no agreement significant."""
    matrix = np.zeros((40, 40))
    matrix[0, 1] = matrix[1, 0] = 1
    first, second, y = np.array([0, 2, 4]), np.array([1, 3, 5]), np.array([3.0, 1.0, 2.0])
    # 6 of the 40 * 39 places of the two concepts are rated pairs, so p is near 3 / 780
    assert mantel_test(matrix, y, first, second, permutations=2000) < 0.02


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_false_discovery_rates_match_scipy_and_skip_nan(p: list[float]) -> None:
    """An undefined correlation must neither count as a test nor make the others undefined."""
    expected = stats.false_discovery_control(p)
    assert benjamini_hochberg(np.array(p)) == pytest.approx(expected)
    with_nan = np.array([*p, np.nan])
    assert benjamini_hochberg(with_nan)[:-1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.arange(9.0), "needs at least 10"),
        (np.append(np.arange(11.0), np.nan), "not finite"),
    ],
)
def test_invalid_similarities_are_rejected(x: Floats, message: str) -> None:
    """They would yield a correlation without meaning."""
    pairs = np.arange(len(x))
    y = pairs.astype(np.float64)
    with pytest.raises(ValueError, match=message):
        correlate_one(x, y, pairs, pairs + 1)


def test_constant_representations_are_undefined_and_constant_scores_rejected() -> None:
    """One degenerate representation must not fail the others; degenerate scores fail all."""
    pairs = np.arange(12)
    y = pairs.astype(np.float64)
    result = correlate(np.stack([np.ones(12), y]), y, pairs, pairs + 1)
    assert np.isnan(result.values[0])
    assert result.values[1] == pytest.approx(1)
    assert result.interval(0).low is None
    with pytest.raises(ValueError, match="all scores are equal"):
        correlate_one(y, np.ones(12), pairs, pairs + 1)


def test_cosines_match_numpy_and_zero_vectors_are_rejected() -> None:
    """Float32 input must not cost precision, nor a zero vector yield NaN."""
    random = np.random.default_rng(2)
    vectors = random.standard_normal((5, 7)).astype(np.float32)
    exact = vectors.astype(float)
    for row in range(5):
        for column in range(5):
            expected = exact[row] @ exact[column]
            expected /= np.linalg.norm(exact[row]) * np.linalg.norm(exact[column])
            assert cosine_matrix(vectors)[row, column] == pytest.approx(expected, abs=1e-12)
    assert subtract_mean(vectors).mean(axis=0) == pytest.approx(np.zeros(7), abs=1e-12)
    with pytest.raises(ValueError, match="zero or not finite"):
        cosine_matrix(np.zeros((2, 3)))
