"""Agreement of two lists of numbers in which each entry counts a number of times: Spearman's rho,
Kendall's tau-b and Pearson's r, compiled, for many weights or many lists at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Prepared = npt.NDArray[Any]
Measure = Literal["spearman", "kendall", "pearson"]

MEASURES: tuple[Measure, ...] = ("spearman", "kendall", "pearson")

_CONSTANT = 1e-12


def agreement(measure: Measure, x: Floats, y: Floats, weights: Floats) -> Floats:
    """Agreement of `x` and `y` in which entry `i` counts `weights[r, i]` times, for each row `r`.

    `x` has shape (entries,), or (rows, entries) for another list in each row; `y` (entries,);
    `weights` (rows, entries) or (1, entries). The result has shape (rows,). It equals the measure of
    the lists in which each entry is repeated that often, ties included; NaN where one is constant.
    """
    return agreement_of_prepared(measure, prepare(measure, x), prepare(measure, y), weights)


def prepare(measure: Measure, values: Floats) -> Prepared:
    """What a measure sees of the values: for ranks, the place of each among the distinct values."""
    if measure == "pearson":
        return np.asarray(values, np.float64)
    _, places = np.unique(values, return_inverse=True)
    return np.asarray(places, np.int64).reshape(values.shape)


def agreement_of_prepared(measure: Measure, x: Prepared, y: Prepared, weights: Floats) -> Floats:
    """`agreement` of lists that `prepare` has seen, alone or among further values."""
    kernels: dict[Measure, Callable[..., Floats]] = {
        "spearman": _spearman,
        "kendall": _kendall,
        "pearson": _pearson,
    }
    return kernels[measure](np.atleast_2d(x), y, weights)


def rater_ceiling(measure: Measure, ratings: Floats) -> float:
    """How well a rater agrees with the mean of the others, averaged over the raters.

    The lower bound of the noise ceiling (Nili et al. 2014, PLoS Computational Biology 10(4)). `ratings`
    has shape (raters, entries), NaN where a rater gave none. Only entries count that the rater and at
    least one other rated. NaN where no rater has three of these, or all are constant.
    """
    found = []
    for rater, own in enumerate(ratings):
        others = np.delete(ratings, rater, axis=0)
        shared = ~np.isnan(own) & (~np.isnan(others)).any(axis=0)
        if shared.sum() < 3:
            continue
        mean = np.nanmean(others[:, shared], axis=0)
        found.append(agreement(measure, own[shared], mean, np.ones((1, shared.sum())))[0])
    defined = [value for value in found if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


@numba.njit(cache=True, nogil=True)
def _spearman(x: Any, y: Any, weights: Floats) -> Floats:
    rows, entries = max(len(x), len(weights)), len(y)
    rho = np.empty(rows)
    rank_x, rank_y = np.empty(x.max() + 1), np.empty(y.max() + 1)
    for row in range(rows):
        of_x = x[row if len(x) > 1 else 0]
        weight = weights[row if len(weights) > 1 else 0]
        rank_x[:] = 0.0
        rank_y[:] = 0.0
        for entry in range(entries):
            rank_x[of_x[entry]] += weight[entry]
            rank_y[y[entry]] += weight[entry]
        variance = _centre_ranks(rank_x) * _centre_ranks(rank_y)
        covariance = 0.0
        for entry in range(entries):
            covariance += weight[entry] * rank_x[of_x[entry]] * rank_y[y[entry]]
        rho[row] = covariance / np.sqrt(variance) if variance > 0 else np.nan
    return rho


@numba.njit(cache=True, nogil=True)
def _centre_ranks(counts: Floats) -> float:
    """Turn how often each place occurs into its mid-rank less the mean rank; return the sum of squares.

    All are halves of whole numbers, so the sum is exactly 0 where only one place occurs.
    """
    middle = -counts.sum() / 2
    squares = 0.0
    for place in range(len(counts)):
        count = counts[place]
        counts[place] = middle + count / 2
        squares += count * counts[place] ** 2
        middle += count
    return squares


@numba.njit(cache=True, nogil=True)
def _kendall(x: Any, y: Any, weights: Floats) -> Floats:
    """Entries in the order of x; a Fenwick tree over y holds the weight of those with a smaller x."""
    rows, entries = max(len(x), len(weights)), len(y)
    tau = np.empty(rows)
    levels = y.max() + 1
    starts = np.empty(x.max() + 2, np.int64)
    order = np.empty(entries, np.int64)
    tree, of_y = np.empty(levels + 1), np.empty(levels)
    for row in range(rows):
        of_x = x[row if len(x) > 1 else 0]
        weight = weights[row if len(weights) > 1 else 0]
        _sort_by_place(of_x, starts, order)
        tree[:] = 0.0
        of_y[:] = 0.0
        before = untied_x = concordant = 0.0
        first = 0
        while first < entries:
            last, tied = first, 0.0
            while last < entries and of_x[order[last]] == of_x[order[first]]:
                entry = order[last]
                below = _sum_below(tree, y[entry])
                above = before - _sum_below(tree, y[entry] + 1)
                concordant += weight[entry] * (below - above)
                tied += weight[entry]
                last += 1
            for place in range(first, last):
                entry = order[place]
                of_y[y[entry]] += weight[entry]
                node = y[entry] + 1
                while node <= levels:
                    tree[node] += weight[entry]
                    node += node & -node
            untied_x += before * tied
            before += tied
            first = last
        untied_y = (before**2 - (of_y**2).sum()) / 2
        norm = untied_x * untied_y
        tau[row] = concordant / np.sqrt(norm) if norm > 0 else np.nan
    return tau


@numba.njit(cache=True, nogil=True)
def _sort_by_place(places: Any, starts: Any, order: Any) -> None:
    starts[:] = 0
    for entry in range(len(order)):
        starts[places[entry] + 1] += 1
    for place in range(1, len(starts)):
        starts[place] += starts[place - 1]
    for entry in range(len(order)):
        order[starts[places[entry]]] = entry
        starts[places[entry]] += 1


@numba.njit(cache=True, nogil=True)
def _sum_below(tree: Floats, place: int) -> float:
    total = 0.0
    while place > 0:
        total += tree[place]
        place -= place & -place
    return total


@numba.njit(cache=True, nogil=True)
def _pearson(x: Any, y: Any, weights: Floats) -> Floats:
    rows, entries = max(len(x), len(weights)), len(y)
    r = np.empty(rows)
    for row in range(rows):
        of_x = x[row if len(x) > 1 else 0]
        weight = weights[row if len(weights) > 1 else 0]
        total = mean_x = mean_y = 0.0
        for entry in range(entries):
            total += weight[entry]
            mean_x += weight[entry] * of_x[entry]
            mean_y += weight[entry] * y[entry]
        if total == 0.0:
            r[row] = np.nan
            continue
        mean_x /= total
        mean_y /= total
        covariance = variance_x = variance_y = 0.0
        for entry in range(entries):
            covariance += weight[entry] * (of_x[entry] - mean_x) * (y[entry] - mean_y)
            variance_x += weight[entry] * (of_x[entry] - mean_x) ** 2
            variance_y += weight[entry] * (y[entry] - mean_y) ** 2
        # what rounding leaves of a constant list is no variance
        constant_x = variance_x <= _CONSTANT**2 * total * mean_x**2
        constant_y = variance_y <= _CONSTANT**2 * total * mean_y**2
        r[row] = np.nan
        if not (constant_x or constant_y):
            r[row] = covariance / np.sqrt(variance_x * variance_y)
    return r
