"""A correlation or an interval that is off would be believed: they must equal SciPy's, and the
bootstrap must mean what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignment.correlation import Floats, Interval, spearman, weighted_spearman
from alignment.vectors import centred, cosine_matrix


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(10, 60), st.sampled_from([3, 10, 10_000]))
def test_spearman_is_scipys_with_ties(seed: int, n_pairs: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, levels, n_pairs).astype(float)
    y = random.integers(0, levels, n_pairs).astype(float)
    x[:2], y[:2] = (0, levels), (0, levels)
    first, second = random.integers(0, 9, n_pairs), random.integers(9, 18, n_pairs)
    found = spearman(x, y, first, second, resamples=20)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert len(found.resampled) == 20


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_weight_repeats_a_pair(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 6, (2, 25)).astype(float)
    weights = random.integers(0, 4, (8, 25))
    found = weighted_spearman(x, y, weights.astype(float))
    for row, rho in zip(weights, found, strict=True):
        repeated_x, repeated_y = np.repeat(x, row), np.repeat(y, row)
        if len(set(repeated_x)) < 2 or len(set(repeated_y)) < 2:
            assert np.isnan(rho)
        else:
            expected = stats.spearmanr(repeated_x, repeated_y).statistic
            assert rho == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_that_of_a_loop_over_drawn_concepts() -> None:
    """The vectorised bootstrap against one that draws concepts and lists their pairs by hand."""
    random = np.random.default_rng(3)
    first, second = np.triu_indices(12, 1)
    x = random.standard_normal(len(first))
    y = x + random.standard_normal(len(first))
    slow = []
    for _ in range(1500):
        drawn = random.integers(0, 12, 12)
        counts = np.bincount(drawn, minlength=12)
        times = counts[first] * counts[second]
        slow.append(stats.spearmanr(np.repeat(x, times), np.repeat(y, times)).statistic)
    found = spearman(x, y, first, second, resamples=4000)
    expected = np.percentile(slow, [2.5, 97.5])
    np.testing.assert_allclose(ends(found.interval), expected, atol=0.03)


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    random = np.random.default_rng(0)
    first, second = np.triu_indices(8, 1)
    x, y = random.standard_normal((2, len(first)))
    again = [spearman(x, y, first, second, 200, seed).interval for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_a_difference_is_taken_within_each_resample() -> None:
    """Two correlations with one `y` go up and down together, so their difference varies less."""
    random = np.random.default_rng(4)
    first, second = np.triu_indices(14, 1)
    y = random.standard_normal(len(first))
    one = spearman(y + random.standard_normal(len(y)), y, first, second)
    other = spearman(y + random.standard_normal(len(y)), y, first, second)
    difference = one.minus(other)
    assert difference.value == one.rho - other.rho
    expected = np.percentile(one.resampled - other.resampled, [2.5, 97.5])
    assert ends(difference) == pytest.approx(expected)
    assert ends(one.minus(one)) == (0.0, 0.0)


def test_an_interval_is_not_made_of_the_resamples_that_happen_to_have_a_value() -> None:
    """One pair that differs is in few resamples; the others have no correlation at all."""
    first, second = np.triu_indices(12, 1)
    x: Floats = np.zeros(len(first))
    x[0] = 1
    y: Floats = np.arange(len(x), dtype=np.float64)
    found = spearman(x, y, first, second)
    assert np.isnan(found.resampled).mean() > 0.3
    assert (found.interval.low, found.interval.high) == (None, None)


def test_shared_concepts_widen_the_interval() -> None:
    """With an effect of each concept, pairs are not independent: drawing concepts must say so."""
    random = np.random.default_rng(5)
    first, second = np.triu_indices(15, 1)
    effect_x, effect_y = random.standard_normal((2, 15)) * 2
    noise = random.standard_normal((2, len(first))) * 0.3
    x = effect_x[first] + effect_x[second] + noise[0]
    y = effect_y[first] + effect_y[second] + noise[1]
    by_concept = spearman(x, y, first, second)
    alone = np.arange(len(first))
    by_pair = spearman(x, y, alone, alone + len(first))
    assert np.ptp(ends(by_concept.interval)) > np.ptp(ends(by_pair.interval))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.arange(9.0), "needs at least 10"),
        (np.append(np.arange(11.0), np.nan), "not finite"),
        (np.ones(12), "x is constant"),
    ],
)
def test_what_has_no_correlation_is_an_error(x: Floats, message: str) -> None:
    pairs = np.arange(len(x))
    y = pairs.astype(np.float64)
    with pytest.raises(ValueError, match=message):
        spearman(x, y, pairs, pairs + 1)


def test_cosines_are_those_of_numpy_and_a_zero_has_none() -> None:
    random = np.random.default_rng(2)
    vectors = random.standard_normal((5, 7)).astype(np.float32)
    exact = vectors.astype(float)
    for one in range(5):
        for other in range(5):
            expected = exact[one] @ exact[other]
            expected /= np.linalg.norm(exact[one]) * np.linalg.norm(exact[other])
            assert cosine_matrix(vectors)[one, other] == pytest.approx(expected, abs=1e-12)
    assert centred(vectors).mean(axis=0) == pytest.approx(np.zeros(7), abs=1e-12)
    with pytest.raises(ValueError, match="zero or not finite"):
        cosine_matrix(np.zeros((2, 3)))
