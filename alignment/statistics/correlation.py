"""How well representations agree with humans over pairs of concepts, and what chance gives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alignment.statistics.rank_correlation import Measure, agreement_of_prepared, prepare
from alignment.statistics.resampling import Estimates, Method, blocks, estimate

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FEWEST_PAIRS = 10
"""Below this many pairs no correlation is reported."""

_ROUNDING = 1e-9


def correlate(
    x: Floats,
    y: Floats,
    first: Integers,
    second: Integers,
    measure: Measure = "spearman",
    method: Method = "jackknife",
    resamples: int = 2000,
    seed: int = 0,
) -> Estimates:
    """Correlations of each row of `x` with `y` over pairs of concepts, and what their intervals need.

    `x` has shape (representations, pairs); pair `i` is of the concepts numbered `first[i]` and
    `second[i]`. A representation that is constant has the value NaN.

    Raises ValueError below 10 pairs, for values that are not finite, and for a constant `y`.
    """
    _check(x, y)
    rows, scores = [prepare(measure, each) for each in x], prepare(measure, y)

    def statistic(weights: Floats) -> Floats:
        return np.stack([agreement_of_prepared(measure, each, scores, weights) for each in rows])

    return estimate(statistic, np.stack([first, second], 1), (-1, 1), method, resamples, seed)


def mantel(
    matrix: Floats,
    y: Floats,
    first: Integers,
    second: Integers,
    measure: Measure = "spearman",
    permutations: int = 2000,
    seed: int = 0,
) -> float:
    """Two-sided p value of the correlation of a similarity matrix with scores of some of its pairs.

    The names of the matrix's concepts are permuted (Mantel 1967, Cancer Research 27), so `matrix` must
    hold the similarity of every two concepts, rated or not: symmetric, (concepts, concepts). The
    p value counts the correlation itself among the permutations, so it is never 0. NaN where the
    correlation is undefined.
    """
    values, scores = prepare(measure, matrix), prepare(measure, y)
    once = np.ones((1, len(y)))
    observed = agreement_of_prepared(measure, values[first, second], scores, once)[0]
    if np.isnan(observed):
        return float("nan")
    random = np.random.default_rng(seed)
    as_large = 0
    for rows in blocks(permutations, max(len(y), len(matrix))):
        names = random.permuted(np.tile(np.arange(len(matrix)), (len(rows), 1)), axis=1)
        permuted = agreement_of_prepared(
            measure, values[names[:, first], names[:, second]], scores, once
        )
        # one that is undefined speaks for no effect as well as any
        as_large += int((~(np.abs(permuted) < np.abs(observed) - _ROUNDING)).sum())
    return (1 + as_large) / (1 + permutations)


def benjamini_hochberg(p: Floats) -> Floats:
    """The smallest false discovery rates at which each p value is found (Benjamini and Hochberg 1995).

    `p` has shape (tests,); a NaN stays one and counts as no test.
    """
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return q


def _check(x: Floats, y: Floats) -> None:
    if len(y) < FEWEST_PAIRS:
        raise ValueError(f"{len(y)} pairs; a correlation needs at least {FEWEST_PAIRS}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a similarity is not finite")
    if (y == y[0]).all():
        raise ValueError("all scores are equal: there is nothing to correlate with")
