"""Similarity of two concepts' vectors of scores, one entry per neuron, from sums over blocks of neurons.

Each measure of all pairs is one matrix product, (concepts, neurons) by (neurons, concepts). SQL would
need a self-join: 1.7e12 rows for 1,854 concepts and a million neurons.

AUROCs are given less 0.5, the value of a neuron that tells nothing: d, above 0 for a neuron that is
higher on the concept's sentences and below 0 for one that is lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.arrays import AnyFloats, Floats


@dataclass(frozen=True)
class SufficientStatistics:
    """Sums over neurons of the APs x of each concept: x, and x_a log x_b."""

    total: Floats
    logs: Floats

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        return SufficientStatistics(self.total + other.total, self.logs + other.logs)


def sufficient_statistics(ap: AnyFloats) -> SufficientStatistics:
    """The sums over a block of neurons; `ap` has shape (neurons, concepts).

    Raises:
        ValueError: if an AP is not positive, which cannot happen for a concept with positives.
    """
    exact = ap.astype(np.float64)
    if not (exact > 0).all():
        raise ValueError("an AP is not positive")
    return SufficientStatistics(exact.sum(axis=0), exact.T @ np.log(exact))


def dot_products(vectors: AnyFloats) -> Floats:
    """Dot products over a block of neurons, (concepts, concepts), of vectors of shape (neurons,
    concepts)."""
    exact = vectors.astype(np.float64)
    return np.asarray(exact.T @ exact, np.float64)


def subtract_neuron_means(vectors: AnyFloats) -> Floats:
    """Vectors of shape (neurons, concepts), less each neuron's mean over concepts."""
    exact: Floats = vectors.astype(np.float64)
    return np.asarray(exact - exact.mean(axis=1, keepdims=True), np.float64)


def crossed_products(first: AnyFloats, second: AnyFloats) -> Floats:
    """Dot products over a block of neurons of vectors from one half of the sentences with those from the
    other: (X'Y + Y'X) / 2, (concepts, concepts).

    `first` and `second` are AUROCs less 0.5, d, of shape (neurons, concepts), and X, Y are sign(d) d^2:
    squared, because many weak neurons add mostly noise. The noise of the halves is independent, so that
    it cancels in the products, those of a concept with itself included.
    """
    x, y = (np.abs(d) * d for d in (first.astype(np.float64), second.astype(np.float64)))
    products: Floats = x.T @ y
    return (products + products.T) / 2


def cosine_from_products(products: Floats) -> Floats:
    """Cosine of every pair of vectors, from their dot products; NaN for a vector whose product with
    itself is not positive: a zero vector or, where products are crossed, one without a reliable part."""
    diagonal = np.diag(products)
    norms = np.sqrt(np.where(diagonal > 0, diagonal, np.nan))
    return np.asarray(products / np.outer(norms, norms), np.float64)


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
