"""Means over a sentence's real tokens on a CPU, of bfloat16: torch turns it into float32 first."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import torch


def bfloat16_means(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """In float32, of shape (sentences, units), from (sentences, tokens, units); `real` tells the tokens,
    one at least in each sentence. Added up in the order of the tokens, whatever the padding."""
    sentences, _, units = hidden.shape
    means = torch.empty(sentences, units)
    _average(hidden.contiguous().view(torch.int16).numpy(), real.numpy(), means.numpy())
    return means


@numba.njit(cache=True, nogil=True)
def _average(
    bits: npt.NDArray[np.int16], real: npt.NDArray[np.bool_], means: npt.NDArray[np.float32]
) -> None:
    sentences, tokens, units = bits.shape
    for sentence in range(sentences):
        mean = means[sentence]
        mean[:] = np.float32(0)
        count = np.float32(0)
        for token in range(tokens):
            if real[sentence, token]:
                count += np.float32(1)
                row = bits[sentence, token]
                for unit in range(units):
                    # a bfloat16 is the upper half of a float32
                    mean[unit] += np.int32(np.int32(row[unit]) << np.int32(16)).view(np.float32)
        for unit in range(units):
            mean[unit] /= count
