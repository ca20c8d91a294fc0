"""Maxima over a sentence's tokens: of its concept's word, of its context and of both.

torch's maximum of bfloat16 is slow on a CPU, and needs one pass over the tokens for each of the three.
There one compiled pass compares the bits as integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import CONCEPT, CONTEXT, IGNORED, copy_to

POOLINGS = ("concept", "context", "max")

_INT_DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class CompiledMaxPooler:
    """Maxima of one batch on a CPU, whose tokens have `roles`, (sentences, tokens)."""

    def __init__(self, roles: npt.NDArray[np.int8], poolings: Sequence[str]) -> None:
        self._roles, self._poolings = roles, poolings

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maxima by pooling, (sentences, units) each, from (sentences, tokens, units). A NaN of either
        sign exceeds any number."""
        sentences, _, units = hidden.shape
        int_dtype, largest, n_nans = _int_limits(hidden.dtype)
        bits = hidden.contiguous().view(int_dtype).numpy()
        maxima = np.empty((len(POOLINGS), sentences, units), bits.dtype)
        _max_kernel(bits, self._roles, largest, n_nans, maxima)
        values = dict(zip(POOLINGS, torch.from_numpy(maxima).view(hidden.dtype).unbind(), strict=True))
        return {pooling: values[pooling] for pooling in self._poolings}

    def write(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Write the maxima to `out`, (poolings, units, sentences)."""
        for row, values in zip(out, self(hidden).values(), strict=True):
            row.copy_(values.T)


class TorchMaxPooler:
    """The same on any device, in four operations: maxima of runs of tokens with one role, and of the
    runs that belong to each pooling."""

    def __init__(
        self, roles: npt.NDArray[np.int8], poolings: Sequence[str], device: torch.device
    ) -> None:
        self._poolings = poolings
        starts, runs = _find_runs(roles, poolings)
        # The run after the last is empty.
        self._offsets = copy_to(np.append(starts, [roles.size, roles.size]), device)
        self._runs = copy_to(runs, device)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `CompiledMaxPooler`."""
        return dict(zip(self._poolings, self._pool(hidden).unbind(1), strict=True))

    def write(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """See `CompiledMaxPooler`."""
        out.copy_(self._pool(hidden).permute(1, 2, 0))

    def _pool(self, hidden: torch.Tensor) -> torch.Tensor:
        maxima = torch.segment_reduce(
            hidden.flatten(0, 1), "max", offsets=self._offsets, axis=0, unsafe=True, initial=-torch.inf
        )
        return maxima[self._runs].amax(2)


def _find_runs(
    roles: npt.NDArray[np.int8], poolings: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of tokens of one sentence and role: the first token of each, counted over the batch, and the
    runs of each sentence and pooling, (sentences, poolings, most runs). The last repeats where there are
    fewer; where there are none, it is one beyond the last of the batch."""
    sentences, tokens = roles.shape
    is_start = np.ones(roles.shape, bool)
    is_start[:, 1:] = roles[:, 1:] != roles[:, :-1]
    starts = np.flatnonzero(is_start)
    run_sentences, run_roles = starts // tokens, roles.ravel()[starts]
    is_wordless = ~(roles == CONCEPT).any(axis=1)
    is_context = run_roles == CONTEXT
    members = {
        "concept": (run_roles == CONCEPT) | (is_context & is_wordless[run_sentences]),
        "context": is_context,
        "max": run_roles != IGNORED,
    }
    columns = []
    for pooling in poolings:
        chosen = np.flatnonzero(members[pooling])
        counts = np.bincount(run_sentences[chosen], minlength=sentences)[:, np.newaxis]
        ends = counts.cumsum()[:, np.newaxis]
        index = ends - counts + np.minimum(np.arange(max(1, counts.max())), counts - 1)
        columns.append(np.where(counts > 0, np.append(chosen, len(starts))[index], len(starts)))
    most = max(column.shape[1] for column in columns)
    return starts, np.stack(
        [np.pad(column, ((0, 0), (0, most - column.shape[1])), "edge") for column in columns], axis=1
    )


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
