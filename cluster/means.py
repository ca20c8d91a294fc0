"""Means over a sentence's real tokens on a CPU, of bfloat16: torch turns it into float32 first."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch


def bfloat16_means(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """In float32, of shape (sentences, units), from (sentences, tokens, units); `real` tells the tokens,
    one at least in each sentence. Added up in the order of the tokens, whatever the padding."""
    sentences, _, units = hidden.shape
    means = torch.zeros(sentences, units)
    _add_up(hidden.contiguous().view(torch.int16).numpy(), real.numpy(), means.numpy())
    return means / real.sum(dim=1, keepdim=True)


@numba.njit(cache=True, nogil=True)
def _add_up(
    bits: npt.NDArray[np.int16], real: npt.NDArray[np.bool_], sums: npt.NDArray[np.float32]
) -> Any:
    sentences, tokens, units = bits.shape
    for sentence in range(sentences):
        total = sums[sentence]
        for token in range(tokens):
            if real[sentence, token]:
                row = bits[sentence, token]
                for unit in range(units):
                    # a bfloat16 is the upper half of a float32
                    total[unit] += np.int32(np.int32(row[unit]) << np.int32(16)).view(np.float32)
