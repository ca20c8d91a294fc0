"""Confidence intervals of statistics of pairs (or triplets) of concepts.

Pairs that share a concept are not independent, so concepts are resampled or left out, not pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alignment.arrays import Floats, Ints

IntervalMethod = Literal["jackknife", "concept-bootstrap", "pair-bootstrap"]

CONFIDENCE_LEVEL = 0.95
MIN_CONCEPTS_FOR_COVERAGE = 40
"""With fewer concepts, the actual coverage of intervals may differ somewhat from the nominal one."""

_CELLS_AT_ONCE = 1 << 20
_MAX_PAIR_GROUPS = 1000
_MAX_UNDEFINED = 0.05
_MAX_CORRELATION = 1 - 1e-9
"""Replaces values on a bound, whose Fisher z is infinite."""


@dataclass(frozen=True)
class IntervalEstimate:
    """A value and its 95% confidence interval, None where it is undefined."""

    value: float
    low: float | None = None
    high: float | None = None


def t_interval(value: float, error: float, dof: int) -> IntervalEstimate:
    """The interval of a value with this standard error, from Student's t."""
    # slow to import, and not needed to plan a sweep
    from scipy import stats

    margin = float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, dof) * error)
    return IntervalEstimate(value, value - margin, value + margin)


@dataclass(frozen=True)
class ResampledStatistic:
    """A statistic of several representations on the same pairs, with the resamples for its intervals.

    `values` has shape (representations,), NaN where the statistic is undefined. The next three hold it
    in each resample, and without each concept and each pair (or group of pairs): (representations,
    resamples), (representations, concepts) and (representations, pairs), empty where the method does not
    need them. `bounds` are the lowest and highest possible values.
    """

    method: IntervalMethod
    values: Floats
    resampled: Floats
    leave_one_concept_out: Floats
    leave_one_pair_out: Floats
    pairs_per_concept: Ints
    n_pairs: int
    bounds: tuple[float, float]

    def interval(self, index: int) -> IntervalEstimate:
        """A representation's value with its interval, on Fisher's z scale to stay within the bounds."""
        low, high = self.bounds

        def to_fisher_z(values: Floats) -> Any:
            scaled = (2 * values - low - high) / (high - low)
            return np.arctanh(np.clip(scaled, -_MAX_CORRELATION, _MAX_CORRELATION))

        def from_fisher_z(z: float | None) -> float | None:
            return None if z is None else float((np.tanh(z) * (high - low) + low + high) / 2)

        z = self._interval(*(to_fisher_z(part[index]) for part in self._parts))
        return IntervalEstimate(float(self.values[index]), from_fisher_z(z.low), from_fisher_z(z.high))

    def difference(self, index: int, other: ResampledStatistic, other_index: int) -> IntervalEstimate:
        """The paired difference to one of `other` (same pairs, method and seed), with its interval."""
        parts = zip(self._parts, other._parts, strict=True)
        return self._interval(*(ours[index] - theirs[other_index] for ours, theirs in parts))

    @property
    def _parts(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.values, self.resampled, self.leave_one_concept_out, self.leave_one_pair_out

    def _interval(
        self, value: Any, resampled: Floats, without_concept: Floats, without_pair: Floats
    ) -> IntervalEstimate:
        estimate = float(value)
        if np.isnan(estimate):
            return IntervalEstimate(estimate)
        if self.method == "jackknife":
            variance, dof = dyadic_variance(
                without_concept, without_pair, self.pairs_per_concept, self.n_pairs
            )
            if np.isnan(variance):
                return IntervalEstimate(estimate)
            return t_interval(estimate, np.sqrt(variance), dof)
        if np.isnan(resampled).mean() > _MAX_UNDEFINED:
            return IntervalEstimate(estimate)
        tails = [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2]
        low, high = np.nanquantile(resampled, tails)
        return IntervalEstimate(estimate, float(low), float(high))


def resample(
    statistic: Callable[[Floats], Floats],
    members: Ints,
    bounds: tuple[float, float],
    method: IntervalMethod,
    resamples: int,
    seed: int,
) -> ResampledStatistic:
    """Compute a statistic and the resamples for its intervals.

    `statistic` maps weights of shape (rows, pairs), how often each pair counts, to the statistic of each
    representation: (representations, rows). `members` has shape (pairs, 2), or (triplets, 3): the
    concepts. All representations share the resamples. The methods:

    jackknife           leaves out one concept at a time, corrected for the variance of single pairs
                        (`dyadic_variance`), with quantiles of Student's t. Covers with and without
                        concept effects. Deterministic.
    concept-bootstrap   draws concepts with replacement; a pair counts as often as the product of how
                        often its concepts were drawn (pigeonhole bootstrap, Owen 2007, arXiv
                        0712.1111). Counts the variance of single pairs up to three times, so it is
                        too wide where concepts have few pairs.
    pair-bootstrap      draws pairs with replacement: too narrow with concept effects.
    """
    concepts, indices = np.unique(members, return_inverse=True)
    indices = indices.reshape(members.shape)
    n_concepts, n_pairs = len(concepts), len(members)

    def apply(weights: Iterable[Floats]) -> Floats:
        return np.concatenate([statistic(block) for block in weights], axis=1)

    def bootstrap() -> Iterator[Floats]:
        rng = np.random.default_rng(seed)
        n = n_pairs if method == "pair-bootstrap" else n_concepts
        for rows in index_blocks(resamples, n_pairs):
            counts = rng.multinomial(n, np.full(n, 1 / n), size=len(rows)).astype(np.float64)
            yield counts if method == "pair-bootstrap" else counts[:, indices].prod(axis=2)

    def leave_one_concept_out() -> Iterator[Floats]:
        for rows in index_blocks(n_concepts, n_pairs):
            yield (indices != rows[:, None, None]).all(axis=2).astype(np.float64)

    def leave_one_pair_out() -> Iterator[Floats]:
        group = np.arange(n_pairs)
        if n_pairs > _MAX_PAIR_GROUPS:
            # leaving out groups of pairs gives the same variance from fewer values
            group = np.random.default_rng(seed).permutation(n_pairs) % _MAX_PAIR_GROUPS
        n_groups = min(n_pairs, _MAX_PAIR_GROUPS)
        for rows in index_blocks(n_groups, n_pairs):
            yield (group != rows[:, None]).astype(np.float64)

    values = statistic(np.ones((1, n_pairs)))[:, 0]
    empty = np.empty((len(values), 0))
    if method == "jackknife":
        parts = empty, apply(leave_one_concept_out()), apply(leave_one_pair_out())
    else:
        parts = apply(bootstrap()), empty, empty
    pairs_per_concept = np.bincount(indices.ravel(), minlength=n_concepts)
    return ResampledStatistic(method, values, *parts, pairs_per_concept, n_pairs, bounds)


def dyadic_variance(
    without_concept: Floats, without_pair: Floats, pairs_per_concept: Ints, n_pairs: int
) -> tuple[float, int]:
    """Variance and degrees of freedom of a statistic of pairs, dependent if they share a concept.

    The jackknife over concepts counts the variance of single pairs about twice, once per concept of a
    pair; the excess, known from the jackknife over pairs, is subtracted. This is the dyadic-robust
    variance of Aronow, Samii and Assenova 2015 (Political Analysis 23(4), arXiv 1312.3398) with
    leave-one-out values in place of residuals. `without_concept` has shape (concepts,), `without_pair`
    (pairs,), or (groups,) if groups of pairs were left out. The result is at least the variance of
    independent pairs, so it is too large if the effects of pairs that share a concept cancel. NaN if a
    leave-one-out value is undefined.
    """
    n = len(without_concept)
    if np.isnan(without_concept).any() or np.isnan(without_pair).any():
        return float("nan"), 0
    by_concept = (n - 1) * float(np.var(without_concept))
    by_pair = (len(without_pair) - 1) * float(np.var(without_pair))
    # how often `by_concept` counts the variance of independent pairs
    multiplicity = (n - 1) / n * float((pairs_per_concept / (n_pairs - pairs_per_concept)).sum())
    if by_concept <= multiplicity * by_pair:
        return by_pair, n_pairs - 1
    return by_concept - (multiplicity - 1) * by_pair, n - 1


def index_blocks(rows: int, columns: int) -> Iterator[Ints]:
    """The row indices of a (rows, columns) array, in blocks that fit in memory."""
    size = max(1, _CELLS_AT_ONCE // columns)
    for start in range(0, rows, size):
        yield np.arange(start, min(start + size, rows))
