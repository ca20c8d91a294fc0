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
