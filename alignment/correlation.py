"""Spearman correlation over pairs of concepts, with a bootstrap over the concepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FEWEST_PAIRS = 10
"""Below this many pairs no correlation is reported."""

_RESAMPLES_AT_ONCE = 500
_CONSTANT = 1e-3


@dataclass(frozen=True)
class Correlation:
    """A Spearman correlation and its 95% interval."""

    rho: float
    ci_low: float
    ci_high: float


def spearman(
    x: Floats, y: Floats, first: Integers, second: Integers, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Spearman correlation of `x` and `y` over pairs of concepts, with a 95% percentile interval.

    Pair `i` is of the concepts numbered `first[i]` and `second[i]`. Each resample draws the concepts
    with replacement; a pair counts as often as the product of how often its two concepts were drawn
    (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111), because pairs that share a concept are not
    independent. Resamples with the same seed and pairs are the same, so two correlations with the same
    `y` can be compared. A resample in which `x` or `y` is constant is left out.

    Raises ValueError below 10 pairs, for values that are not finite, and where `x` or `y` is constant.
    """
    if len(x) < FEWEST_PAIRS:
        raise ValueError(f"{len(x)} pairs; a correlation needs at least {FEWEST_PAIRS}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a similarity is not finite")
    for name, values in (("x", x), ("y", y)):
        if (values == values[0]).all():
            raise ValueError(f"{name} is constant: it has no ranks to correlate")
    rho = float(weighted_spearman(x, y, np.ones((1, len(x))))[0])
    concepts, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    left, right = np.split(numbers, 2)
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, resamples - start)
        counts = random.multinomial(len(concepts), np.full(len(concepts), 1 / len(concepts)), size=size)
        drawn.append(weighted_spearman(x, y, (counts[:, left] * counts[:, right]).astype(float)))
    low, high = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5])
    return Correlation(rho, float(low), float(high))


def weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman correlation with each pair counted `weights[r, i]` times, for each row `r`.

    `weights` has shape (resamples, pairs); the result (resamples,). Equal to the correlation of the
    sample in which each pair is repeated that often; NaN where that sample is constant.
    """
    ranks_x = _weighted_ranks(x, weights)
    ranks_y = _weighted_ranks(y, weights)
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks_x -= (weights * ranks_x).sum(axis=1, keepdims=True) / total
        ranks_y -= (weights * ranks_y).sum(axis=1, keepdims=True) / total
        covariance = (weights * ranks_x * ranks_y).sum(axis=1)
        variance_x = (weights * ranks_x**2).sum(axis=1)
        variance_y = (weights * ranks_y**2).sum(axis=1)
        rho: Floats = covariance / np.sqrt(variance_x * variance_y)
    # ranks are multiples of a half, so a spread this small is rounding
    rho[~((variance_x > _CONSTANT) & (variance_y > _CONSTANT))] = np.nan
    return rho


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Mid-ranks of the sample in which value `i` is repeated `weights[r, i]` times."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(sizes, axis=1) - sizes / 2
    ranks: npt.NDArray[Any] = middle[:, group]
    return ranks
