"""Odd-one-out choices: of three things, people say which one is least like the other two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alignment.statistics.resampling import Estimates, Method, blocks, estimate

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_PAIRS_AT_ONCE = 64
_ROUNDING = 1e-9


def share_predicted(
    alike: Floats,
    others: Floats,
    members: Integers,
    method: Method = "jackknife",
    resamples: int = 2000,
    seed: int = 0,
) -> Estimates:
    """Share of choices that each representation predicts: the two that were kept are its most alike.

    `alike` has shape (representations, triplets): similarity of the two kept; `others`
    (representations, triplets, 2): of each of them to the odd one. A tie for the highest counts as a
    choice by lot, so a representation that is constant predicts a third. `members` has shape (triplets,
    3).
    """
    predicted = _credit(alike, others)

    def statistic(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            share: Floats = (predicted @ weights.T) / weights.sum(axis=1)
        return share

    return estimate(statistic, members, (0, 1), method, resamples, seed)


def chance_of_share(matrix: Floats, members: Integers, permutations: int = 2000, seed: int = 0) -> float:
    """Two-sided p value of the share of choices that a similarity matrix predicts.

    The names of the matrix's concepts are permuted, as Mantel (1967) does for correlations: a third is
    then predicted on average, and p is how often a share is as far from it as the observed, which
    counts among them. `matrix` has shape (concepts, concepts) and is symmetric; `members` (triplets, 3),
    the odd one last.
    """
    first, second, odd = members.T

    def shares(names: Integers) -> Floats:
        a, b, c = names[:, first], names[:, second], names[:, odd]
        others = np.stack([matrix[a, c], matrix[b, c]], axis=2)
        found: Floats = _credit(matrix[a, b], others).mean(axis=1)
        return found

    own = np.arange(len(matrix))[None]
    observed = abs(shares(own)[0] - 1 / 3)
    random = np.random.default_rng(seed)
    as_far = 0
    for rows in blocks(permutations, 3 * max(len(members), len(matrix))):
        names = random.permuted(np.repeat(own, len(rows), axis=0), axis=1)
        as_far += int((np.abs(shares(names) - 1 / 3) >= observed - _ROUNDING).sum())
    return (1 + as_far) / (1 + permutations)


def _credit(alike: Floats, others: Floats) -> Floats:
    """1 where the two that were kept are the most alike, a part where others are so too, else 0."""
    best = np.maximum(alike, others.max(axis=2))
    tied = (alike == best).astype(float) + (others == best[:, :, None]).sum(axis=2)
    return np.where(alike == best, 1 / tied, 0.0)


def triplet_similarity(vectors: Floats, wanted: Integers) -> Floats:
    """Chance that two items are kept together, over all third items, for each two of `wanted`.

    Of items with vectors x, i and j are kept and k is odd with probability
    exp(xi.xj) / (exp(xi.xj) + exp(xi.xk) + exp(xj.xk)) (Zheng et al. 2019, SPoSE, ICLR; Hebart et al.
    2020, Nature Human Behaviour 4, methods). `vectors` has shape (items, dimensions); the result is a
    symmetric matrix over `wanted`, with NaN on its diagonal.

    Raises ValueError with fewer than three items.
    """
    if len(vectors) < 3:
        raise ValueError(f"{len(vectors)} items; the choice is of three")
    products = vectors @ vectors.T
    rows = products[wanted]
    similarity = np.full((len(wanted), len(wanted)), np.nan)
    for row, item in enumerate(wanted):
        for start in range(row + 1, len(wanted), _PAIRS_AT_ONCE):
            columns = np.arange(start, min(start + _PAIRS_AT_ONCE, len(wanted)))
            together = rows[row, wanted[columns]][:, None]
            # dividing all by exp(xi.xj) keeps the exponentials finite where they matter
            with np.errstate(over="ignore"):
                odds = np.exp(rows[row] - together) + np.exp(rows[columns] - together)
            chance = 1 / (1 + odds)
            chance[:, item] = 0
            chance[np.arange(len(columns)), wanted[columns]] = 0
            similarity[row, columns] = similarity[columns, row] = chance.sum(axis=1) / (len(vectors) - 2)
    return similarity
