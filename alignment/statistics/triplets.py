"""Odd-one-out choices: which of three items is least similar to the other two."""

from __future__ import annotations

import numpy as np

from alignment.arrays import Floats, Ints
from alignment.statistics.resampling import IntervalMethod, ResampledStatistic, index_blocks, resample

_PAIRS_AT_ONCE = 64
_TOLERANCE = 1e-9


def odd_one_out_accuracy(
    chosen: Floats,
    rejected: Floats,
    members: Ints,
    method: IntervalMethod = "jackknife",
    resamples: int = 2000,
    seed: int = 0,
) -> ResampledStatistic:
    """Share of choices that each representation predicts, its most similar pair being the chosen one.

    `chosen` has shape (representations, triplets): the similarity of that pair; `rejected`
    (representations, triplets, 2): of each of its items to the odd one. A tie for the highest counts as
    a random choice, so a constant representation predicts a third. `members` has shape (triplets, 3).
    """
    correct = _credit(chosen, rejected)

    def statistic(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray((correct @ weights.T) / weights.sum(axis=1), np.float64)

    return resample(statistic, members, (0, 1), method, resamples, seed)


def odd_one_out_p_value(matrix: Floats, members: Ints, permutations: int = 2000, seed: int = 0) -> float:
    """Two-sided p value of the odd-one-out accuracy of a similarity matrix.

    Permutes the concepts of the matrix, as Mantel (1967) does for correlations: the expected accuracy is
    then a third, and p is the share of permutations, the observed order included, that deviate from it
    at least as much. `matrix` has shape (concepts, concepts) and is symmetric; `members` (triplets, 3),
    the odd one last.
    """
    first, second, odd = members.T

    def accuracies(order: Ints) -> Floats:
        a, b, c = order[:, first], order[:, second], order[:, odd]
        rejected = np.stack([matrix[a, c], matrix[b, c]], axis=2)
        return np.asarray(_credit(matrix[a, b], rejected).mean(axis=1), np.float64)

    identity = np.arange(len(matrix))[None]
    observed = abs(accuracies(identity)[0] - 1 / 3)
    rng = np.random.default_rng(seed)
    n_as_far = 0
    for rows in index_blocks(permutations, 3 * max(len(members), len(matrix))):
        order = rng.permuted(np.repeat(identity, len(rows), axis=0), axis=1)
        n_as_far += int((np.abs(accuracies(order) - 1 / 3) >= observed - _TOLERANCE).sum())
    return (1 + n_as_far) / (1 + permutations)


def _credit(chosen: Floats, rejected: Floats) -> Floats:
    """1 if the chosen pair is the most similar, a fraction if it is tied, else 0."""
    highest = np.maximum(chosen, rejected.max(axis=2))
    n_tied = (chosen == highest).astype(float) + (rejected == highest[:, :, None]).sum(axis=2)
    return np.where(chosen == highest, 1 / n_tied, 0.0)


def triplet_similarity(vectors: Floats, items: Ints) -> Floats:
    """Probability that a pair of `items` is chosen over the odd one, averaged over all third items.

    Of items with vectors x, i and j are chosen and k is odd with probability exp(xi.xj) / (exp(xi.xj) +
    exp(xi.xk) + exp(xj.xk)) (Zheng et al. 2019, SPoSE, ICLR; Hebart et al. 2020, Nature Human Behaviour
    4, methods). `vectors` has shape (all items, dimensions); the result is a symmetric matrix over
    `items`, with a diagonal of NaN.

    Raises:
        ValueError: if there are fewer than three vectors.
    """
    if len(vectors) < 3:
        raise ValueError(f"odd-one-out choices need at least 3 items, got {len(vectors)}")
    products = vectors @ vectors.T
    rows = products[items]
    similarity = np.full((len(items), len(items)), np.nan)
    for row, item in enumerate(items):
        for start in range(row + 1, len(items), _PAIRS_AT_ONCE):
            columns = np.arange(start, min(start + _PAIRS_AT_ONCE, len(items)))
            chosen = rows[row, items[columns]][:, None]
            # dividing by exp(xi.xj) keeps the exponentials finite where they matter
            with np.errstate(over="ignore"):
                odds = np.exp(rows[row] - chosen) + np.exp(rows[columns] - chosen)
            p_chosen = 1 / (1 + odds)
            p_chosen[:, item] = 0
            p_chosen[np.arange(len(columns)), items[columns]] = 0
            mean = p_chosen.sum(axis=1) / (len(vectors) - 2)
            similarity[row, columns] = similarity[columns, row] = mean
    return similarity
