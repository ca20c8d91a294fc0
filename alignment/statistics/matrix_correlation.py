"""Agreement of whole matrices of similarity: debiased CKA and the whitened correlation.

Both are Pearson's correlation over all pairs of concepts, after the means of the concepts are removed
from the similarities: all of them for debiased CKA, a part for the whitened correlation.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from alignment.arrays import Floats
from alignment.statistics.correlation import MIN_PAIRS, mantel_test
from alignment.statistics.rank_correlation import CorrelationMeasure, weighted_correlation
from alignment.statistics.resampling import ResampledStatistic

MatrixMeasure = Literal["cka", "whitened"]
MATRIX_MEASURES: tuple[Literal["cka"], Literal["whitened"]] = ("cka", "whitened")
"""Measures that need a score of every pair of concepts."""

AgreementMeasure = CorrelationMeasure | MatrixMeasure

_ROUNDING = 1e-12


def correlate_matrices(measure: MatrixMeasure, matrices: Floats, scores: Floats) -> ResampledStatistic:
    """Agreement of similarity matrices with a matrix of scores, with a jackknife for intervals.

    `matrices` has shape (representations, concepts, concepts), `scores` (concepts, concepts); both are
    symmetric, and their diagonals are not used. The jackknife leaves out one concept at a time. It
    counts the variance of single pairs twice, so intervals are wide where concepts hardly matter. A
    matrix without differences other than those of its concepts has the value NaN.

    cka: the unbiased estimate of HSIC (Song et al. 2012, JMLR 13), which has no diagonal, in the place
    of HSIC in linear CKA (Kornblith et al. 2019, arXiv 1905.00414), with similarities as the kernel.
    whitened: the correlation of dissimilarities, whitened by their covariance for independent noise of
    equal variance (Diedrichsen et al. 2020, arXiv 2007.02789).

    Raises:
        ValueError: if there are fewer than MIN_PAIRS pairs, or a value is not finite.
    """
    n = len(scores)
    n_pairs = n * (n - 1) // 2
    if n_pairs < MIN_PAIRS:
        raise ValueError(f"a correlation needs at least {MIN_PAIRS} pairs, got {n_pairs}")
    if not (np.isfinite(matrices).all() and np.isfinite(scores).all()):
        raise ValueError("a similarity is not finite")
    values = np.array([_correlate(measure, matrix, scores) for matrix in matrices])
    without_concept = np.stack([_leave_one_out(measure, matrix, scores) for matrix in matrices])
    without_concept[np.isnan(values)] = np.nan
    # One group of pairs has no variance to correct by.
    without_pair = values[:, None]
    resampled = np.empty((len(values), 0))
    pairs_per_concept = np.full(n, n - 1)
    return ResampledStatistic(
        "jackknife",
        values,
        resampled,
        without_concept,
        without_pair,
        pairs_per_concept,
        n_pairs,
        (-1, 1),
    )


def matrix_permutation_p(
    measure: MatrixMeasure, matrix: Floats, scores: Floats, permutations: int = 2000, seed: int = 0
) -> float:
    """Two-sided p value of a matrix's agreement with scores; permutes its concepts (`mantel_test`)."""
    pairs = np.triu_indices(len(scores), 1)
    centered_scores = center_concepts(measure, scores)[pairs]
    centered = center_concepts(measure, matrix)
    return mantel_test(centered, centered_scores, *pairs, "pearson", permutations, seed)


def center_concepts(measure: MatrixMeasure, matrices: Floats) -> Floats:
    """The off-diagonal values less their mean and less the measure's part of the concepts' effects.

    The shape, (..., concepts, concepts), stays; the diagonal is 0. The part is 1 for debiased CKA
    (U-centering: Székely and Rizzo 2014, Annals of Statistics 42(6)). Whitening divides by the square
    root of the covariance of dissimilarities, 4 for a pair and 1 for two that share a concept: its
    eigenvalues are n for the n - 1 effects of concepts and 2 for what is left, so that a share of
    sqrt(2 / n) of the effects stays.
    """
    n = matrices.shape[-1]
    is_pair = ~np.eye(n, dtype=bool)
    values = np.where(is_pair, matrices, 0.0)
    mean = values.sum(axis=(-2, -1), keepdims=True) / (n * (n - 1))
    centered = np.where(is_pair, values - mean, 0.0)
    effects = centered.sum(axis=-1) / (n - 2)
    part = 1.0 if measure == "cka" else 1 - np.sqrt(2 / n)
    centered -= part * (effects[..., :, None] + effects[..., None, :])
    scale = np.abs(values).max(axis=(-2, -1), keepdims=True)
    # Rounding leaves a matrix of concepts' effects alone with tiny values.
    is_rounding = np.abs(centered).max(axis=(-2, -1), keepdims=True, where=is_pair, initial=0) <= (
        _ROUNDING * scale
    )
    return np.where(is_pair & ~is_rounding, centered, 0.0)


def _correlate(measure: MatrixMeasure, matrix: Floats, scores: Floats) -> float:
    first, second = np.triu_indices(len(scores), 1)
    centered, centered_scores = (
        center_concepts(measure, values)[first, second] for values in (matrix, scores)
    )
    weights = np.ones((1, len(first)))
    return float(weighted_correlation("pearson", centered, centered_scores, weights)[0])


def _leave_one_out(measure: MatrixMeasure, matrix: Floats, scores: Floats) -> Floats:
    """The agreement without each concept, of shape (concepts,), in time of concepts squared."""
    is_pair = ~np.eye(len(scores), dtype=bool)
    x, y = (np.where(is_pair, values - values[is_pair].mean(), 0.0) for values in (matrix, scores))
    products, squares_x, squares_y = (
        _centered_products(measure, a, b) for a, b in ((x, y), (x, x), (y, y))
    )
    is_constant = (squares_x <= _ROUNDING * (x**2).sum()) | (squares_y <= _ROUNDING * (y**2).sum())
    norms = np.sqrt(np.where(is_constant, 1.0, squares_x * squares_y))
    return np.where(is_constant, np.nan, products / norms)


def _centered_products(measure: MatrixMeasure, x: Floats, y: Floats) -> Floats:
    """Without each concept, the sum over pairs of the products of two centered matrices.

    With s and r the sums of all pairs and of each concept's, and part f of the effects removed, it is
    (sum of x_ij y_ij) - s_x s_y / pairs - f (2 - f) (sum of r_x r_y - 4 s_x s_y / n) / (n - 2).
    """
    n = len(x) - 1
    rows_x, rows_y, shared = x.sum(axis=0), y.sum(axis=0), (x * y).sum(axis=0)
    sums = (rows_x.sum() / 2 - rows_x) * (rows_y.sum() / 2 - rows_y)
    products = shared.sum() / 2 - shared - sums / (n * (n - 1) / 2)
    effects = rows_x @ rows_y - rows_x * rows_y - x @ rows_y - y @ rows_x + shared - 4 * sums / n
    part = 1.0 if measure == "cka" else 1 - 2 / n
    return np.asarray(products - part * effects / (n - 2))
