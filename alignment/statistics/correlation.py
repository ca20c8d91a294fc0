"""Agreement of representations with human judgments over pairs of concepts, and permutation tests."""

from __future__ import annotations

import numpy as np

from alignment.arrays import Floats, Ints
from alignment.statistics.rank_correlation import CorrelationMeasure, correlate_prepared, prepare
from alignment.statistics.resampling import IntervalMethod, ResampledStatistic, index_blocks, resample

MIN_PAIRS = 10
"""No correlation is reported for fewer pairs."""

_TOLERANCE = 1e-9


def correlate(
    x: Floats,
    y: Floats,
    first: Ints,
    second: Ints,
    measure: CorrelationMeasure = "spearman",
    method: IntervalMethod = "jackknife",
    resamples: int = 2000,
    seed: int = 0,
) -> ResampledStatistic:
    """Correlate each row of `x` with `y` over pairs of concepts, with resamples for intervals.

    `x` has shape (representations, pairs); pair `i` consists of concepts `first[i]` and `second[i]`. A
    constant representation has the value NaN.

    Raises:
        ValueError: if there are fewer than MIN_PAIRS pairs, a value is not finite, or `y` is constant.
    """
    if len(y) < MIN_PAIRS:
        raise ValueError(f"a correlation needs at least {MIN_PAIRS} pairs, got {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a similarity is not finite")
    if (y == y[0]).all():
        raise ValueError("all scores are equal, so the correlation is undefined")
    rows, scores = [prepare(measure, row) for row in x], prepare(measure, y)

    def statistic(weights: Floats) -> Floats:
        return np.stack([correlate_prepared(measure, row, scores, weights) for row in rows])

    return resample(statistic, np.stack([first, second], 1), (-1, 1), method, resamples, seed)


def mantel_test(
    matrix: Floats,
    y: Floats,
    first: Ints,
    second: Ints,
    measure: CorrelationMeasure = "spearman",
    permutations: int = 2000,
    seed: int = 0,
    groups: Ints | None = None,
) -> float:
    """Two-sided p value of the correlation of a similarity matrix with scores of some of its pairs.

    Permutes the concepts of the matrix (Mantel 1967, Cancer Research 27), so `matrix`, of shape
    (concepts, concepts), must be symmetric and hold the similarity of all pairs, rated or not. With
    `groups`, the number of each concept's group, concepts are permuted within their groups. The
    observed correlation counts as one of the permutations, so p is never 0. A permutation without a
    correlation, because its similarities are all equal, counts as 0. NaN if the observed one is
    undefined.
    """
    values, scores = prepare(measure, matrix), prepare(measure, y)
    weights = np.ones((1, len(y)))
    observed = correlate_prepared(measure, values[first, second], scores, weights)[0]
    if np.isnan(observed):
        return float("nan")
    rng = np.random.default_rng(seed)
    if groups is None:
        groups = np.zeros(len(matrix), np.int64)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    n_as_large = 0
    for rows in index_blocks(permutations, max(len(y), len(matrix))):
        order = np.empty((len(rows), len(matrix)), np.int64)
        for concepts in members:
            order[:, concepts] = rng.permuted(np.tile(concepts, (len(rows), 1)), axis=1)
        matrices = values[order[:, first], order[:, second]]
        permuted = correlate_prepared(measure, matrices, scores, weights)
        # NaN, of a permutation whose similarities are all equal, is not as large
        n_as_large += int((np.abs(permuted) >= np.abs(observed) - _TOLERANCE).sum())
    return (1 + n_as_large) / (1 + permutations)


def benjamini_hochberg(p: Floats) -> Floats:
    """Smallest false discovery rate at which each p value is significant (Benjamini and Hochberg 1995).

    `p` has shape (tests,); NaN stays NaN and does not count as a test.
    """
    # not SciPy's false_discovery_control: it rejects NaN, and scales by a rounded n / rank
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return q
