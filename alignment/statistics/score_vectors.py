"""Measures on two concepts' vectors of APs, one number a neuron, from sums over blocks of neurons.

Each measure of all pairs is one product of matrices, (concepts, neurons) by (neurons, concepts), which
SQL would have to write as a join of every neuron with itself for every pair: 1,854 concepts over a
million neurons are 1.7e12 rows there, and 3.4e12 operations of BLAS here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sums:
    """Sums over neurons, of the APs x of each concept: x, x_a x_b, and x_a log x_b."""

    total: Floats
    products: Floats
    logs: Floats

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.total + other.total, self.products + other.products, self.logs + other.logs)


def sums(ap: Values) -> Sums:
    """The sums over some neurons; `ap` has shape (neurons, concepts).

    Raises ValueError for an AP that is not positive: no AP is, while there are positives.
    """
    exact = ap.astype(np.float64)
    if not (exact > 0).all():
        raise ValueError("an AP is not positive")
    return Sums(exact.sum(axis=0), exact.T @ exact, exact.T @ np.log(exact))


def cosine(products: Floats) -> Floats:
    """Cosine of each two vectors, from their products; nan for a vector that is zero."""
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        cosines: Floats = products / np.outer(norms, norms)
    return cosines


def divergence(found: Sums) -> Floats:
    """Kullback-Leibler divergence of each concept a (row) from each b (column), in nats.

    The APs of a concept, divided by their sum, are a distribution over the neurons:
    p = x / sum x, and KL(a || b) = sum p_a log(p_a / p_b) (Kullback and Leibler 1951).
    """
    own = np.diag(found.logs)[:, None]
    log_total = np.log(found.total)
    divergences: Floats = (own - found.logs) / found.total[:, None] - log_total[:, None] + log_total
    # none is negative but by rounding
    return np.maximum(divergences, 0.0)


def centred_ranks(ap: Values) -> Floats:
    """Ranks of the neurons (rows) for each concept, ties sharing their mean, less the mean rank: their
    cosine is Spearman's rho."""
    # slow to load
    from scipy.stats import rankdata

    ranks: Floats = rankdata(ap, axis=0) - (len(ap) + 1) / 2
    return ranks
