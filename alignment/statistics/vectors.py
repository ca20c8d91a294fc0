"""Similarity of concepts represented by vectors."""

from __future__ import annotations

import numpy as np

from alignment.arrays import AnyFloats, Floats


def cosine_matrix(vectors: AnyFloats) -> Floats:
    """Cosine similarity of every pair of rows of `vectors`, in float64.

    Raises:
        ValueError: if a row is zero or not finite.
    """
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("a vector is zero or not finite, so its cosine is undefined")
    normalized = exact / norms
    return np.asarray(normalized @ normalized.T, np.float64)


def subtract_mean(vectors: AnyFloats) -> Floats:
    """Subtract the mean vector, and with it the direction common to all vectors.

    A language model's hidden states are nearly parallel (Ethayarajh 2019, arXiv 1909.00512), which hides
    their differences from the plain cosine.
    """
    exact = vectors.astype(np.float64)
    return np.asarray(exact - exact.mean(axis=0, keepdims=True), np.float64)


def standardize(vectors: AnyFloats) -> Floats:
    """Subtract each dimension's mean over the vectors, and divide by its standard deviation.

    A few dimensions of a language model's hidden states have most of their variance, and dominate their
    cosine (Timkey and van Schijndel 2021, arXiv 2109.04404). A dimension that is constant becomes 0.
    """
    centered = subtract_mean(vectors)
    deviations = centered.std(axis=0, keepdims=True)
    is_constant = np.ptp(vectors, axis=0, keepdims=True) == 0
    return np.asarray(
        np.where(is_constant, 0, centered / np.where(is_constant, 1, deviations)), np.float64
    )
