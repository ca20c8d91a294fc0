"""Maxima over a sentence's tokens: of its concept's word, of its context and of both.

torch's maximum of bfloat16 is slow on a CPU, and needs one pass over the tokens for each of the three.
There one compiled pass compares the bits as integers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

POOLINGS = ("concept", "context", "max")

_IGNORED, _CONCEPT, _CONTEXT = -1, 0, 1
_INT_DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class CompiledMaxPooler:
    """Maxima of one batch on a CPU; `real` and `concept` are of shape (sentences, tokens)."""

    def __init__(self, real: torch.Tensor, concept: torch.Tensor) -> None:
        roles = np.where(concept.numpy(), _CONCEPT, _CONTEXT)
        self._roles = np.where(real.numpy(), roles, _IGNORED).astype(np.int8)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maxima by pooling, (sentences, units) each, from (sentences, tokens, units). A NaN of either
        sign exceeds any number."""
        sentences, _, units = hidden.shape
        int_dtype, largest, n_nans = _int_limits(hidden.dtype)
        bits = hidden.contiguous().view(int_dtype).numpy()
        maxima = np.empty((len(POOLINGS), sentences, units), bits.dtype)
        _max_kernel(bits, self._roles, largest, n_nans, maxima)
        values = torch.from_numpy(maxima).view(hidden.dtype)
        return dict(zip(POOLINGS, values.unbind(), strict=True))


class TorchMaxPooler:
    """The same on any device."""

    def __init__(self, real: torch.Tensor, concept: torch.Tensor) -> None:
        word = real & concept
        self._not_context = (~real | concept).unsqueeze(-1)
        self._rows = torch.arange(len(real), device=real.device).unsqueeze(1)
        self._word_positions = _true_positions(word)
        self._wordless = ~word.any(dim=1, keepdim=True)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `CompiledMaxPooler`: one pass over all tokens and one over the few of the words."""
        context = hidden.masked_fill(self._not_context, -torch.inf).amax(dim=1)
        word = hidden[self._rows, self._word_positions].amax(dim=1)
        concept = torch.where(self._wordless, context, word)
        return {"concept": concept, "context": context, "max": torch.maximum(concept, context)}


@lru_cache
def _int_limits(dtype: torch.dtype) -> tuple[torch.dtype, Any, Any]:
    """The integer dtype of a float dtype's width, its largest value, and the number of NaNs per sign."""
    int_dtype = _INT_DTYPES[dtype.itemsize]
    # scalars of this dtype, or the compiled loop would widen all bits
    scalar = torch.empty(0, dtype=int_dtype).numpy().dtype.type
    return int_dtype, scalar(torch.iinfo(int_dtype).max), scalar(round(1 / torch.finfo(dtype).eps) - 1)


@numba.njit(cache=True, nogil=True)
def _max_kernel(
    bits: npt.NDArray[Any], roles: npt.NDArray[np.int8], largest: Any, n_nans: Any, out: npt.NDArray[Any]
) -> None:
    """Maxima of floating-point numbers from their bits as integers.

    Negative numbers are in reverse order as integers, so their bits are flipped. Negative NaNs are then
    the `n_nans` smallest integers; subtracting `n_nans` wraps them to the largest.
    """
    sentences, tokens, units = bits.shape
    cast = bits.dtype.type
    out[:] = -largest - 1
    for sentence in range(sentences):
        concept, context, both = out[0, sentence], out[1, sentence], out[2, sentence]
        wordless = True
        for token in range(tokens):
            role = roles[sentence, token]
            if role < 0:
                continue
            wordless = wordless and role != 0
            best, row = out[role, sentence], bits[sentence, token]
            for unit in range(units):
                value = row[unit]
                best[unit] = max(best[unit], cast((value if value >= 0 else value ^ largest) - n_nans))
        if wordless:
            concept[:] = context
        for unit in range(units):
            both[unit] = max(concept[unit], context[unit])
        for role in range(3):
            best = out[role, sentence]
            for unit in range(units):
                value = cast(best[unit] + n_nans)
                best[unit] = value if value >= 0 else value ^ largest


def _true_positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of each row's true values, (rows, largest count); a shorter row repeats its first
    position, and an empty one has 0."""
    width = max(1, int(mask.sum(dim=1).max()))
    positions = mask.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return torch.where(mask.gather(1, positions), positions, positions[:, :1])
