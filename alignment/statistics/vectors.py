"""Similarity of concepts that are given as vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def cosine_matrix(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Cosine similarity of each two rows of `vectors`, in float64.

    Raises ValueError for a row that is zero or not finite: it has no direction.
    """
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("a vector is zero or not finite, so its cosine is undefined")
    unit = exact / norms
    cosines: npt.NDArray[np.float64] = unit @ unit.T
    return cosines


def centred(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The vectors less their mean, which takes away the direction that all of them share.

    Hidden states of a language model are nearly parallel (Ethayarajh 2019, arXiv 1909.00512), so the
    plain cosine hides their differences.
    """
    exact = vectors.astype(np.float64)
    shifted: npt.NDArray[np.float64] = exact - exact.mean(axis=0, keepdims=True)
    return shifted
