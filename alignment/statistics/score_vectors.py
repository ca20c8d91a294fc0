"""Similarity of two concepts' vectors of APs, one entry per neuron, from sums over blocks of neurons.

Each measure of all pairs is one matrix product, (concepts, neurons) by (neurons, concepts). SQL would
need a self-join: 1.7e12 rows for 1,854 concepts and a million neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.arrays import AnyFloats, Floats


@dataclass(frozen=True)
class SufficientStatistics:
    """Sums over neurons of the APs x of each concept: x, x_a x_b, and x_a log x_b."""

    total: Floats
    products: Floats
    logs: Floats

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        total, products = self.total + other.total, self.products + other.products
        return SufficientStatistics(total, products, self.logs + other.logs)


def sufficient_statistics(ap: AnyFloats) -> SufficientStatistics:
    """The sums over a block of neurons; `ap` has shape (neurons, concepts).

    Raises:
        ValueError: if an AP is not positive, which cannot happen for a concept with positives.
    """
    exact = ap.astype(np.float64)
    if not (exact > 0).all():
        raise ValueError("an AP is not positive")
    return SufficientStatistics(exact.sum(axis=0), exact.T @ exact, exact.T @ np.log(exact))


def cosine_from_products(products: Floats) -> Floats:
    """Cosine of every pair of vectors, from their dot products; NaN for a zero vector."""
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        return products / np.outer(norms, norms)


def kl_divergence(sums: SufficientStatistics) -> Floats:
    """Kullback-Leibler divergence of each concept a (row) from each b (column), in nats.

    The APs of a concept, divided by their sum, form a distribution over neurons: p = x / sum x, and
    KL(a || b) = sum p_a log(p_a / p_b) (Kullback and Leibler 1951).
    """
    diagonal = np.diag(sums.logs)[:, None]
    log_total = np.log(sums.total)
    divergences = (diagonal - sums.logs) / sums.total[:, None] - log_total[:, None] + log_total
    # negative only through rounding
    return np.asarray(np.maximum(divergences, 0.0), np.float64)


def centered_ranks(ap: AnyFloats) -> Floats:
    """Ranks of the neurons (rows) for each concept, centered: their cosine is Spearman's rho."""
    # slow to import
    from scipy.stats import rankdata

    return np.asarray(rankdata(ap, axis=0) - (len(ap) + 1) / 2, np.float64)
