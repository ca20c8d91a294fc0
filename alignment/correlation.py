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


_MOST_UNDEFINED = 0.05
"""Above this share of resamples without a correlation, those that have one are no fair sample."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95% interval, which is None where too many resamples have no value."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Correlation:
    """A Spearman correlation: over all pairs, and in each resample (NaN where it is undefined)."""

    rho: float
    resampled: Floats

    @property
    def interval(self) -> Interval:
        """The correlation with its percentile interval."""
        return _interval(self.rho, self.resampled)

    def minus(self, other: Correlation) -> Interval:
        """The difference to a correlation with the same `y`, pairs, resamples and seed: its interval is
        that of the differences within each resample."""
        return _interval(self.rho - other.rho, self.resampled - other.resampled)


def spearman(
    x: Floats, y: Floats, first: Integers, second: Integers, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Spearman correlation of `x` and `y` over pairs of concepts, with a bootstrap over the concepts.

    Pair `i` is of the concepts numbered `first[i]` and `second[i]`. Each resample draws the concepts
    with replacement; a pair counts as often as the product of how often its two concepts were drawn
    (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111), because pairs that share a concept are not
    independent.

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
    return Correlation(rho, np.concatenate(drawn))


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


def _interval(value: float, resampled: Floats) -> Interval:
    if np.isnan(resampled).mean() > _MOST_UNDEFINED:
        return Interval(value, None, None)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Interval(value, float(low), float(high))
