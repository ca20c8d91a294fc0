"""Maxima over a sentence's tokens: over those of its concept's word, over its context and over both.

torch's maximum of bfloat16 is slow on a CPU, and takes a pass over the tokens for each of the three.
There the bits are compared as whole numbers, in one compiled pass.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

Maxima = dict[str, torch.Tensor]

POOLINGS = ("concept", "context", "max")

_NEITHER, _CONCEPT, _CONTEXT = -1, 0, 1
_WHOLE_NUMBERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class CompiledMaxima:
    """Maxima of one batch on a CPU; `real` and `concept` are of shape (sentences, tokens)."""

    def __init__(self, real: torch.Tensor, concept: torch.Tensor) -> None:
        parts = np.where(concept.numpy(), _CONCEPT, _CONTEXT)
        self._parts = np.where(real.numpy(), parts, _NEITHER).astype(np.int8)

    def __call__(self, hidden: torch.Tensor) -> Maxima:
        """Of shape (sentences, units) each, from (sentences, tokens, units). A NaN of either sign is
        greater than any number."""
        sentences, _, units = hidden.shape
        whole, largest, nans = _limits(hidden.dtype)
        bits = hidden.contiguous().view(whole).numpy()
        found = np.empty((len(POOLINGS), sentences, units), bits.dtype)
        _greatest(bits, self._parts, largest, nans, found)
        values = torch.from_numpy(found).view(hidden.dtype)
        return dict(zip(POOLINGS, values.unbind(), strict=True))


class TorchMaxima:
    """The same on any device."""

    def __init__(self, real: torch.Tensor, concept: torch.Tensor) -> None:
        word = real & concept
        self._not_context = (~real | concept).unsqueeze(-1)
        self._rows = torch.arange(len(real), device=real.device).unsqueeze(1)
        self._words = _positions(word)
        self._wordless = ~word.any(dim=1, keepdim=True)

    def __call__(self, hidden: torch.Tensor) -> Maxima:
        """See `CompiledMaxima`: one pass over the tokens and one over the few of the words."""
        context = hidden.masked_fill(self._not_context, -torch.inf).amax(dim=1)
        of_word = hidden[self._rows, self._words].amax(dim=1)
        concept = torch.where(self._wordless, context, of_word)
        return {"concept": concept, "context": context, "max": torch.maximum(concept, context)}


def maxima(real: torch.Tensor, concept: torch.Tensor) -> CompiledMaxima | TorchMaxima:
    """What is fast on the device of a batch. A sentence that is about no concept has no word of its own:
    `concept` then looks at all its real tokens."""
    return (CompiledMaxima if real.device.type == "cpu" else TorchMaxima)(real, concept)


@lru_cache
def _limits(dtype: torch.dtype) -> tuple[torch.dtype, Any, Any]:
    """The whole numbers with the bits of such floats: their type, the largest, and how many of either
    sign are NaNs."""
    whole = _WHOLE_NUMBERS[dtype.itemsize]
    # of the bits' own type, or the compiled loop would widen all of them
    kind = torch.empty(0, dtype=whole).numpy().dtype.type
    return whole, kind(torch.iinfo(whole).max), kind(round(1 / torch.finfo(dtype).eps) - 1)


@numba.njit(cache=True, nogil=True)
def _greatest(
    bits: npt.NDArray[Any], parts: npt.NDArray[np.int8], largest: Any, nans: Any, out: npt.NDArray[Any]
) -> None:
    """Maxima of floating-point numbers, given as the whole numbers that have their bits.

    Below zero the order of these is turned round. Then the NaNs below zero are the least of all, `nans`
    of them; to take off so many lets them wrap, and they are the greatest.
    """
    sentences, tokens, units = bits.shape
    cast = bits.dtype.type
    out[:] = -largest - 1
    for sentence in range(sentences):
        concept, context, both = out[0, sentence], out[1, sentence], out[2, sentence]
        wordless = True
        for token in range(tokens):
            part = parts[sentence, token]
            if part < 0:
                continue
            wordless = wordless and part != 0
            best, row = out[part, sentence], bits[sentence, token]
            for unit in range(units):
                value = row[unit]
                best[unit] = max(best[unit], cast((value if value >= 0 else value ^ largest) - nans))
        if wordless:
            concept[:] = context
        for unit in range(units):
            both[unit] = max(concept[unit], context[unit])
        for part in range(3):
            best = out[part, sentence]
            for unit in range(units):
                value = cast(best[unit] + nans)
                best[unit] = value if value >= 0 else value ^ largest


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of each row's true values, of shape (rows, most in a row); a row with fewer has its
    first again, and one with none has 0."""
    most = max(1, int(mask.sum(dim=1).max()))
    first_true_first = mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    there = mask.gather(1, first_true_first)
    return torch.where(there, first_true_first, first_true_first[:, :1])
