"""AUC of within- vs. between-domain similarities, with a confidence interval."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.arrays import Bools, Floats, Ints
from alignment.statistics.resampling import CONFIDENCE_LEVEL, IntervalEstimate


def within_domain_auc(similarities: Floats, domains: Ints) -> IntervalEstimate:
    """AUC of within- vs. between-domain similarities, with its 95% interval.

    The probability that a within-domain pair is more similar than a between-domain one; ties count half.
    `similarities` has shape (pairs,), in the order of `np.triu_indices(n, 1)`; `domains` has the index
    of each concept's domain; at least two domains must have two concepts. NaN if all similarities are
    equal. No interval if the two kinds of pairs do not overlap.

    The variance is the jackknife's over concepts minus the pair variance that it double-counts, but at
    least the residual variance of pairs, without concept effects. The interval uses Student's t with
    Satterthwaite's degrees of freedom on the log-odds scale.
    """
    pairs = DomainPairs(similarities, domains)
    auc = pairs.auc
    if (similarities == similarities[0]).all():
        return IntervalEstimate(float("nan"))
    if auc in (0.0, 1.0):
        return IntervalEstimate(auc)
    # slow to import
    from scipy import special, stats

    jackknife = pairs.jackknife_variance()
    residual = pairs.residual_variance()
    shared = max(jackknife - pairs.double_counted_variance() - residual, 0.0)
    variance = shared + residual
    # only `shared` has the dof of the concepts, and its estimate contains the residual twice
    dof = pairs.dof * (variance / (shared + 2 * residual)) ** 2 if shared else np.inf
    margin = stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, dof) * np.sqrt(variance) / (auc * (1 - auc))
    low, high = special.expit(special.logit(auc) + np.array([-margin, margin]))
    return IntervalEstimate(auc, float(low), float(high))


@dataclass(frozen=True)
class DomainPairs:
    """Concept pairs, within a domain or between two domains. Every variance is a variance of the AUC."""

    similarities: Floats
    domains: Ints

    @cached_property
    def ends(self) -> tuple[Ints, Ints]:
        """The two concepts of each pair."""
        first, second = np.triu_indices(len(self.domains), 1)
        return first, second

    @cached_property
    def masks(self) -> tuple[Bools, Bools]:
        """Masks of the within-domain and of the between-domain pairs."""
        first, second = self.ends
        is_within = self.domains[first] == self.domains[second]
        return is_within, ~is_within

    @cached_property
    def placements(self) -> Floats:
        """For each pair, the share of pairs of the other kind that it ranks correctly against (DeLong et
        al. 1988, Biometrics 44). The mean over either kind is the AUC."""
        is_within, is_between = self.masks
        within, between = (np.sort(self.similarities[mask]) for mask in self.masks)
        placements = np.empty(len(is_within))
        placements[is_within] = _count_below(between, self.similarities[is_within]) / len(between)
        placements[is_between] = 1 - _count_below(within, self.similarities[is_between]) / len(within)
        return placements

    @cached_property
    def auc(self) -> float:
        return float(self.placements[self.masks[0]].mean())

    def sum_per_concept(self, values: npt.NDArray[Any]) -> Floats:
        """The sum of the values of each concept's pairs."""
        first, second = (np.bincount(end, values, len(self.domains)) for end in self.ends)
        return np.asarray(first + second, np.float64)

    @cached_property
    def dof(self) -> float:
        """Effective degrees of freedom of a variance over concepts: below n - 1 where few concepts
        dominate the AUC, such as those of the largest domain (Bell and McCaffrey 2002, Survey
        Methodology 28(2)). The leverage of a concept is its share of within-domain pairs minus its share
        of between-domain pairs."""
        max_dof = len(self.domains) - 1
        within, between = (self.sum_per_concept(mask) / mask.sum() for mask in self.masks)
        squares = (within - between) ** 2
        if not squares.any():
            return max_dof
        return min(max_dof, float(squares.sum() ** 2 / (squares**2).sum()))

    def jackknife_variance(self) -> float:
        """Jackknife over concepts, on the variance-stabilizing arcsine scale; tolerates an AUC of 1."""
        angles = 2 * np.arcsin(np.sqrt(np.clip(self.leave_one_concept_out(), 0, 1)))
        return float((len(angles) - 1) * np.var(angles) * self.auc * (1 - self.auc))

    def leave_one_concept_out(self) -> Floats:
        """The AUC without each concept in turn."""
        from scipy.spatial.distance import squareform

        is_within, is_between = self.masks
        n_within, n_between = is_within.sum(), is_between.sum()
        wins = self.placements * np.where(is_within, n_between, n_within)
        remaining = wins[is_within].sum() - self.sum_per_concept(wins)
        for concept, row in enumerate(squareform(self.similarities)):
            same_domain = self.domains == self.domains[concept]
            within = np.delete(row, concept)[np.delete(same_domain, concept)]
            # comparisons of two pairs of the concept were subtracted twice
            remaining[concept] += _count_below(np.sort(row[~same_domain]), within).sum()
        n_within_left = n_within - self.sum_per_concept(is_within)
        n_between_left = n_between - self.sum_per_concept(is_between)
        return np.asarray(remaining / (n_within_left * n_between_left), np.float64)

    def double_counted_variance(self) -> float:
        """The variance of independent pairs that the jackknife over concepts counts more than once."""
        n, excess = len(self.domains), 0.0
        for mask in self.masks:
            pairs_per_concept, n_pairs = self.sum_per_concept(mask), mask.sum()
            multiplicity = (n - 1) / n * float((pairs_per_concept / (n_pairs - pairs_per_concept)).sum())
            excess += (multiplicity - 1) * self.independent_variance(mask)
        return excess

    def independent_variance(self, mask: Bools) -> float:
        """The variance from one kind of pairs if they were independent (DeLong et al. 1988)."""
        return float(np.var(self.placements[mask], ddof=1) / mask.sum())

    def residual_variance(self) -> float:
        """The variance from pairs after removing the effects of their two concepts.

        The variance of concept effects is the covariance of between-domain pairs that share a concept;
        within domains it is scaled by the squared slope of placements on the effects.
        """
        is_within, is_between = self.masks
        centered = (self.placements - self.auc) * is_between
        n_pairs, pairs_per_concept = is_between.sum(), self.sum_per_concept(is_between)
        sums = self.sum_per_concept(centered)
        squares = float((centered**2).sum())
        products = float((sums**2).sum()) - 2 * squares
        n_sharing = float((pairs_per_concept * (pairs_per_concept - 1)).sum())
        # centring at the sample mean reduced the products by the variance of the mean
        mean_variance = max(0.0, (squares + products) / (n_pairs**2 - n_sharing - n_pairs))
        effect = max(0.0, products / n_sharing + mean_variance)
        between = max(0.0, squares / n_pairs + mean_variance - 2 * effect) / n_pairs

        # a concept of high similarities has higher placements within its domain, lower ones between
        effects = -sums / pairs_per_concept
        first, second = (effects[end][is_within] for end in self.ends)
        expected = first + second - (first + second).mean()
        spread = float(expected @ expected)
        slope = max(0.0, float(expected @ self.placements[is_within]) / spread) if spread else 0.0
        within = self.independent_variance(is_within) - 2 * slope**2 * effect / is_within.sum()
        return float(between + max(0.0, within))


def _count_below(ascending: Floats, values: Floats) -> Floats:
    """How many of the `ascending` numbers are below each value; equal ones count half."""
    left, right = (np.searchsorted(ascending, values, side) for side in ("left", "right"))
    return (left + right) / 2
