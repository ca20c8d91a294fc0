"""Are two concepts of one domain more alike than two of different ones, and how sure is that?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.statistics.resampling import LEVEL, Interval

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


def separation(similarities: Floats, domains: Integers) -> Interval:
    """Chance that two concepts of one domain are more alike than two of different ones: the area under
    the ROC curve, ties counting half, with its 95% interval.

    `similarities` has shape (pairs,), in the order of `np.triu_indices(n, 1)`; `domains` numbers each
    concept's domain; two domains or more have two concepts or more. NaN where all similarities are
    equal. No interval where the two kinds of pairs do not overlap.

    The variance is that of leaving out each concept in turn, less what single pairs are counted too
    often in it, and at least what pairs vary apart from their concepts. Quantiles are those of Student's
    t with Satterthwaite's degrees of freedom; the interval is made on the scale of log odds.
    """
    pairs = Pairs(similarities, domains)
    area = pairs.area
    if (similarities == similarities[0]).all():
        return Interval(float("nan"), None, None)
    if area in (0.0, 1.0):
        return Interval(area, None, None)
    # slow to load
    from scipy import special, stats

    by_concept = pairs.variance_over_concepts()
    apart = pairs.variance_apart_from_concepts()
    shared = max(by_concept - pairs.counted_too_often() - apart, 0.0)
    variance = shared + apart
    # what is shared is an estimate from so many concepts, in which each pair's own variance is twice
    freedom = pairs.freedom * (variance / (shared + 2 * apart)) ** 2 if shared else np.inf
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance) / (area * (1 - area))
    low, high = special.expit(special.logit(area) + np.array([-half, half]))
    return Interval(area, float(low), float(high))


@dataclass(frozen=True)
class Pairs:
    """Pairs of concepts, each within a domain or between two. All variances are of the area."""

    similarities: Floats
    domains: Integers

    @cached_property
    def ends(self) -> tuple[Integers, Integers]:
        first, second = np.triu_indices(len(self.domains), 1)
        return first, second

    @cached_property
    def kinds(self) -> tuple[Booleans, Booleans]:
        """Which pairs are within a domain, and which are between two."""
        first, second = self.ends
        same = self.domains[first] == self.domains[second]
        return same, ~same

    @cached_property
    def placed(self) -> Floats:
        """Of each pair, the share of the other kind's pairs that are on the right side of it (the
        placement of DeLong et al. 1988, Biometrics 44). Either kind's mean is the area."""
        same, other = self.kinds
        within, between = (np.sort(self.similarities[kind]) for kind in self.kinds)
        found = np.empty(len(same))
        found[same] = _below(between, self.similarities[same]) / len(between)
        found[other] = 1 - _below(within, self.similarities[other]) / len(within)
        return found

    @cached_property
    def area(self) -> float:
        return float(self.placed[self.kinds[0]].mean())

    def over_concepts(self, values: npt.NDArray[Any]) -> Floats:
        """The sum of the pairs' values over each concept's pairs."""
        first, second = (np.bincount(end, values, len(self.domains)) for end in self.ends)
        return np.asarray(first + second, np.float64)

    @cached_property
    def freedom(self) -> float:
        """How many concepts an estimate of their variance rests on, less one: fewer where few of them
        pull at the area, as those of the largest domain do (Bell and McCaffrey 2002, Survey Methodology
        28(2)). A concept's effect pulls by its share of the pairs within domains less that of the
        others, and offsets where these are alike."""
        most = len(self.domains) - 1
        within, between = (self.over_concepts(kind) / kind.sum() for kind in self.kinds)
        squares = (within - between) ** 2
        return min(most, float(squares.sum() ** 2 / (squares**2).sum())) if squares.any() else most

    def variance_over_concepts(self) -> float:
        """The jackknife's, on the scale on which a share varies alike everywhere (the arcsine of its
        root), so that an area of 1 without some concept does no harm."""
        without = 2 * np.arcsin(np.sqrt(np.clip(self.without_concept(), 0, 1)))
        return float((len(without) - 1) * np.var(without) * self.area * (1 - self.area))

    def without_concept(self) -> Floats:
        """The area without each concept in turn."""
        same, other = self.kinds
        n_same, n_other = same.sum(), other.sum()
        wins = self.placed * np.where(same, n_other, n_same)
        left = wins[same].sum() - self.over_concepts(wins)
        square = np.zeros((len(self.domains), len(self.domains)))
        square[self.ends] = self.similarities
        square += square.T
        for concept, row in enumerate(square):
            own = self.domains == self.domains[concept]
            mates = np.delete(row, concept)[np.delete(own, concept)]
            # two pairs of the concept were taken off twice
            left[concept] += _below(np.sort(row[~own]), mates).sum()
        pairs_left = (n_same - self.over_concepts(same)) * (n_other - self.over_concepts(other))
        return np.asarray(left / pairs_left, np.float64)

    def counted_too_often(self) -> float:
        """What independent pairs would have in the variance over concepts beyond their own, once."""
        n, found = len(self.domains), 0.0
        for kind in self.kinds:
            of_each, size = self.over_concepts(kind), kind.sum()
            times = (n - 1) / n * float((of_each / (size - of_each)).sum())
            found += (times - 1) * self.variance_of_pairs(kind)
        return found

    def variance_of_pairs(self, kind: Booleans) -> float:
        """The variance from one kind of pairs if they were independent (DeLong et al. 1988)."""
        return float(np.var(self.placed[kind], ddof=1) / kind.sum())

    def variance_apart_from_concepts(self) -> float:
        """The variance from pairs without what each has from its two concepts.

        A concept's effect is what pairs between domains share that share the concept; that on pairs
        within a domain is as many times as large as they follow it.
        """
        same, other = self.kinds
        centred = (self.placed - self.area) * other
        size, of_each = other.sum(), self.over_concepts(other)
        sums = self.over_concepts(centred)
        squares = float((centred**2).sum())
        products = float((sums**2).sum()) - 2 * squares
        sharing = float((of_each * (of_each - 1)).sum())
        # centring at their own mean made products smaller by that mean's variance
        of_mean = max(0.0, (squares + products) / (size**2 - sharing - size))
        effect = max(0.0, products / sharing + of_mean)
        between = max(0.0, squares / size + of_mean - 2 * effect) / size

        # an effect raises similarities, so it raises placements within and lowers those between
        raised = -sums / of_each
        first, second = (raised[end][same] for end in self.ends)
        expected = first + second - (first + second).mean()
        spread = float(expected @ expected)
        slope = max(0.0, float(expected @ self.placed[same]) / spread) if spread else 0.0
        within = self.variance_of_pairs(same) - 2 * slope**2 * effect / same.sum()
        return float(between + max(0.0, within))


def _below(ordered: Floats, values: Floats) -> Floats:
    """How many of some sorted numbers are below each value; one that is equal counts half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
