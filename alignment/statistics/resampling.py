"""Intervals of statistics of pairs (or triplets) of concepts.

Pairs that share a concept are not independent, so it is concepts that are left out or resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Method = Literal["jackknife", "concept-bootstrap", "pair-bootstrap"]

METHODS: tuple[Method, ...] = ("jackknife", "concept-bootstrap", "pair-bootstrap")
LEVEL = 0.95
FEWEST_SURE = 40
"""Of fewer concepts, intervals may cover somewhat more or less than they say."""

_CELLS_AT_ONCE = 1 << 20
_MOST_PAIR_GROUPS = 1000
_MOST_UNDEFINED = 0.05
_OUTERMOST = 1 - 1e-9
"""What stands for a value on a bound, which has no finite place on the transformed scale."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95% interval, which is None where it cannot be had."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimates:
    """A statistic of several representations on the same pairs, and what its intervals need.

    `values` has shape (representations,), NaN where the statistic is undefined. The others hold it in
    each resample, or without each concept and each pair (or group of pairs) in turn: (representations,
    resamples), (representations, concepts) and (representations, pairs), empty where the method needs
    none. `pairs_of` counts each concept's pairs, `n_pairs` all of them; `bounds` are the least and
    greatest possible values.
    """

    method: Method
    values: Floats
    resampled: Floats
    without_concept: Floats
    without_pair: Floats
    pairs_of: Integers
    n_pairs: int
    bounds: tuple[float, float]

    def interval(self, one: int) -> Interval:
        """A representation's value with its interval, which is made on Fisher's scale and put back, so
        that it keeps within the bounds."""
        least, greatest = self.bounds

        def widened(values: Floats) -> Any:
            unit = (2 * values - least - greatest) / (greatest - least)
            return np.arctanh(np.clip(unit, -_OUTERMOST, _OUTERMOST))

        def put_back(end: float | None) -> float | None:
            if end is None:
                return None
            return float((np.tanh(end) * (greatest - least) + least + greatest) / 2)

        found = self._interval(*(widened(each[one]) for each in self._parts))
        return Interval(float(self.values[one]), put_back(found.low), put_back(found.high))

    def difference(self, one: int, other: Estimates, of_other: int) -> Interval:
        """The value of `one` less that of one of `other`, which has the same pairs, method and seed,
        with the interval of that difference."""
        parts = zip(self._parts, other._parts, strict=True)
        return self._interval(*(ours[one] - theirs[of_other] for ours, theirs in parts))

    @property
    def _parts(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.values, self.resampled, self.without_concept, self.without_pair

    def _interval(
        self, value: Any, resampled: Floats, without_concept: Floats, without_pair: Floats
    ) -> Interval:
        estimate = float(value)
        none = Interval(estimate, None, None)
        if np.isnan(estimate):
            return none
        if self.method == "jackknife":
            variance, freedom = dyadic_variance(
                without_concept, without_pair, self.pairs_of, self.n_pairs
            )
            if np.isnan(variance):
                return none
            # slow to load
            from scipy import stats

            half = stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance)
            return Interval(estimate, float(estimate - half), float(estimate + half))
        if np.isnan(resampled).mean() > _MOST_UNDEFINED:
            return none
        low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(estimate, float(low), float(high))


def estimate(
    statistic: Callable[[Floats], Floats],
    members: Integers,
    bounds: tuple[float, float],
    method: Method = "jackknife",
    resamples: int = 2000,
    seed: int = 0,
) -> Estimates:
    """A statistic with what its intervals need.

    `statistic` takes weights of shape (rows, pairs) and gives the statistic of each representation with
    each pair counted that often: (representations, rows). `members` has shape (pairs, 2), or (triplets,
    3): the numbers of the concepts. All representations share the resamples. The methods:

    jackknife           each concept left out in turn, corrected for what pairs vary by themselves
                        (`dyadic_variance`), and quantiles of Student's t. Covers whether concepts
                        matter or not. Draws nothing.
    concept-bootstrap   concepts drawn with replacement; a pair counts as often as the product of how
                        often its concepts were drawn (the pigeonhole bootstrap, Owen 2007, arXiv
                        0712.1111). Counts the variance of single pairs up to three times, so it is
                        too wide where concepts have few pairs.
    pair-bootstrap      pairs drawn with replacement: too narrow wherever concepts matter.
    """
    concepts, numbers = np.unique(members, return_inverse=True)
    numbers = numbers.reshape(members.shape)
    n_concepts, n_pairs = len(concepts), len(members)

    def over(weights: Iterable[Floats]) -> Floats:
        return np.concatenate([statistic(block) for block in weights], axis=1)

    def drawn() -> Iterator[Floats]:
        random = np.random.default_rng(seed)
        n = n_pairs if method == "pair-bootstrap" else n_concepts
        for rows in blocks(resamples, n_pairs):
            size = len(rows)
            counts = random.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
            yield counts if method == "pair-bootstrap" else counts[:, numbers].prod(axis=2)

    def without_concept() -> Iterator[Floats]:
        for rows in blocks(n_concepts, n_pairs):
            yield (numbers != rows[:, None, None]).all(axis=2).astype(np.float64)

    def without_pair() -> Iterator[Floats]:
        group = np.arange(n_pairs)
        if n_pairs > _MOST_PAIR_GROUPS:
            # of many pairs, groups are left out in turn: the same variance, from fewer values
            group = np.random.default_rng(seed).permutation(n_pairs) % _MOST_PAIR_GROUPS
        groups = min(n_pairs, _MOST_PAIR_GROUPS)
        for rows in blocks(groups, n_pairs):
            yield (group != rows[:, None]).astype(np.float64)

    values = statistic(np.ones((1, n_pairs)))[:, 0]
    nothing = np.empty((len(values), 0))
    jackknife = method == "jackknife"
    return Estimates(
        method,
        values,
        nothing if jackknife else over(drawn()),
        over(without_concept()) if jackknife else nothing,
        over(without_pair()) if jackknife else nothing,
        np.bincount(numbers.ravel(), minlength=n_concepts),
        n_pairs,
        bounds,
    )


def dyadic_variance(
    without_concept: Floats, without_pair: Floats, pairs_of: Integers, n_pairs: int
) -> tuple[float, int]:
    """Variance of a statistic of pairs that are dependent where they share a concept, and its degrees of
    freedom.

    The jackknife over concepts counts the variance of single pairs about twice, once for each concept
    of a pair; that part, known from the jackknife over pairs, is taken off. This is the dyadic-robust
    variance of Aronow, Samii and Assenova 2015 (Political Analysis 23(4), arXiv 1312.3398) with the
    values left out one at a time in the place of residuals. `without_concept` has shape (concepts,),
    `without_pair` (pairs,), or (groups,) where groups of pairs were left out; `pairs_of` is the number
    of pairs of each concept, `n_pairs` that of all. At least the variance of independent pairs, which is
    known from all of them, so it is too large where pairs that share a concept offset each other. NaN
    where leaving something out leaves no value.
    """
    n = len(without_concept)
    if np.isnan(without_concept).any() or np.isnan(without_pair).any():
        return float("nan"), 0
    by_concept = (n - 1) * float(np.var(without_concept))
    by_pair = (len(without_pair) - 1) * float(np.var(without_pair))
    # how often independent pairs are counted in `by_concept`
    times = (n - 1) / n * float((pairs_of / (n_pairs - pairs_of)).sum())
    if by_concept <= times * by_pair:
        return by_pair, n_pairs - 1
    return by_concept - (times - 1) * by_pair, n - 1


def blocks(rows: int, columns: int) -> Iterator[Integers]:
    """The numbers of the rows, in blocks that fit memory when each row has so many columns."""
    size = max(1, _CELLS_AT_ONCE // columns)
    for start in range(0, rows, size):
        yield np.arange(start, min(start + size, rows))
