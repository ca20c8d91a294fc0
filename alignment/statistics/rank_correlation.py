"""Compiled Spearman's rho, Kendall's tau-b and Pearson's r of lists with integer weights."""

from __future__ import annotations

from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

from alignment.arrays import Floats

Prepared = npt.NDArray[Any]
CorrelationMeasure = Literal["spearman", "kendall", "pearson"]

_CONSTANT = 1e-12


def weighted_correlation(measure: CorrelationMeasure, x: Floats, y: Floats, weights: Floats) -> Floats:
    """Correlation of `x` and `y` in which entry `i` counts `weights[r, i]` times, for each row `r`.

    `x` has shape (entries,), or (rows, entries) for a different list per row; `y` (entries,); `weights`
    (rows, entries) or (1, entries). The result, of shape (rows,), equals the measure of the lists with
    each entry repeated that often, ties included; NaN where a list is constant.
    """
    return correlate_prepared(measure, prepare(measure, x), prepare(measure, y), weights)


def prepare(measure: CorrelationMeasure, values: Floats) -> Prepared:
    """The input of the kernels: for rank measures, the index of each value among the distinct values."""
    if measure == "pearson":
        return np.asarray(values, np.float64)
    _, levels = np.unique(values, return_inverse=True)
    return np.asarray(levels, np.int64).reshape(values.shape)


def correlate_prepared(measure: CorrelationMeasure, x: Prepared, y: Prepared, weights: Floats) -> Floats:
    """`weighted_correlation` of (parts of) lists returned by `prepare`."""
    kernel = {"spearman": _spearman, "kendall": _kendall, "pearson": _pearson}[measure]
    return np.asarray(kernel(np.atleast_2d(x), y, weights), np.float64)


def lower_noise_ceiling(measure: CorrelationMeasure, ratings: Floats) -> float:
    """Mean correlation of a rater with the mean of the other raters.

    The lower bound of the noise ceiling (Nili et al. 2014, PLoS Computational Biology 10(4)). `ratings`
    has shape (raters, entries), NaN for missing ones. Entries count if rated by the rater and at least
    one other. NaN if no rater has three such entries, or all correlations are undefined.
    """
    correlations = []
    for rater, own_ratings in enumerate(ratings):
        others = np.delete(ratings, rater, axis=0)
        shared = ~np.isnan(own_ratings) & (~np.isnan(others)).any(axis=0)
        if shared.sum() < 3:
            continue
        mean = np.nanmean(others[:, shared], axis=0)
        weights = np.ones((1, shared.sum()))
        correlations.append(weighted_correlation(measure, own_ratings[shared], mean, weights)[0])
    defined = [value for value in correlations if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


@numba.njit(cache=True, nogil=True)
def _spearman(x: Any, y: Any, weights: Floats) -> Floats:
    rows, entries = max(len(x), len(weights)), len(y)
    rho = np.empty(rows)
    rank_x, rank_y = np.empty(x.max() + 1), np.empty(y.max() + 1)
    for row in range(rows):
        row_x = x[row if len(x) > 1 else 0]
        weight = weights[row if len(weights) > 1 else 0]
        rank_x[:] = 0.0
        rank_y[:] = 0.0
        for entry in range(entries):
            rank_x[row_x[entry]] += weight[entry]
            rank_y[y[entry]] += weight[entry]
        variance = _center_ranks(rank_x) * _center_ranks(rank_y)
        covariance = 0.0
        for entry in range(entries):
            covariance += weight[entry] * rank_x[row_x[entry]] * rank_y[y[entry]]
        rho[row] = covariance / np.sqrt(variance) if variance > 0 else np.nan
    return rho


@numba.njit(cache=True, nogil=True)
def _center_ranks(counts: Floats) -> float:
    """Replace the count of each level by its mid-rank minus the mean rank; return the sum of squares.

    All terms are multiples of 1/2, so the sum is exactly 0 if only one level occurs.
    """
    middle = -counts.sum() / 2
    squares = 0.0
    for level in range(len(counts)):
        count = counts[level]
        counts[level] = middle + count / 2
        squares += count * counts[level] ** 2
        middle += count
    return squares


@numba.njit(cache=True, nogil=True)
def _kendall(x: Any, y: Any, weights: Floats) -> Floats:
    """Visits the entries in the order of x; a Fenwick tree over y holds the weight of those visited."""
    rows, entries = max(len(x), len(weights)), len(y)
    tau = np.empty(rows)
    levels = y.max() + 1
    starts = np.empty(x.max() + 2, np.int64)
    order = np.empty(entries, np.int64)
    tree, weight_y = np.empty(levels + 1), np.empty(levels)
    for row in range(rows):
        row_x = x[row if len(x) > 1 else 0]
        weight = weights[row if len(weights) > 1 else 0]
        _counting_sort(row_x, starts, order)
        tree[:] = 0.0
        weight_y[:] = 0.0
        before = untied_x = concordant = 0.0
        first = 0
        while first < entries:
            last, tied = first, 0.0
            while last < entries and row_x[order[last]] == row_x[order[first]]:
                entry = order[last]
                below = _sum_below(tree, y[entry])
                above = before - _sum_below(tree, y[entry] + 1)
                concordant += weight[entry] * (below - above)
                tied += weight[entry]
                last += 1
            for index in range(first, last):
                entry = order[index]
                weight_y[y[entry]] += weight[entry]
                node = y[entry] + 1
                while node <= levels:
                    tree[node] += weight[entry]
                    node += node & -node
            untied_x += before * tied
            before += tied
            first = last
        untied_y = (before**2 - (weight_y**2).sum()) / 2
        norm = untied_x * untied_y
        tau[row] = concordant / np.sqrt(norm) if norm > 0 else np.nan
    return tau


@numba.njit(cache=True, nogil=True)
def _counting_sort(levels: Any, starts: Any, order: Any) -> None:
    starts[:] = 0
    for entry in range(len(order)):
        starts[levels[entry] + 1] += 1
    for level in range(1, len(starts)):
        starts[level] += starts[level - 1]
    for entry in range(len(order)):
        order[starts[levels[entry]]] = entry
        starts[levels[entry]] += 1


@numba.njit(cache=True, nogil=True)
def _sum_below(tree: Floats, node: int) -> float:
    total = 0.0
    while node > 0:
        total += tree[node]
        node -= node & -node
    return total


@numba.njit(cache=True, nogil=True)
def _pearson(x: Any, y: Any, weights: Floats) -> Floats:
    rows, entries = max(len(x), len(weights)), len(y)
    r = np.empty(rows)
    for row in range(rows):
        row_x = x[row if len(x) > 1 else 0]
        weight = weights[row if len(weights) > 1 else 0]
        total = mean_x = mean_y = 0.0
        for entry in range(entries):
            total += weight[entry]
            mean_x += weight[entry] * row_x[entry]
            mean_y += weight[entry] * y[entry]
        if total == 0.0:
            r[row] = np.nan
            continue
        mean_x /= total
        mean_y /= total
        covariance = variance_x = variance_y = 0.0
        for entry in range(entries):
            covariance += weight[entry] * (row_x[entry] - mean_x) * (y[entry] - mean_y)
            variance_x += weight[entry] * (row_x[entry] - mean_x) ** 2
            variance_y += weight[entry] * (y[entry] - mean_y) ** 2
        # rounding leaves a constant list with a tiny variance
        constant_x = variance_x <= _CONSTANT**2 * total * mean_x**2
        constant_y = variance_y <= _CONSTANT**2 * total * mean_y**2
        r[row] = np.nan
        if not (constant_x or constant_y):
            r[row] = covariance / np.sqrt(variance_x * variance_y)
    return r
