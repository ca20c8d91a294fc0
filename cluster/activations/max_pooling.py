"""Maxima over a sentence's tokens by several poolings, each over the tokens with some roles.

torch's maximum of bfloat16 is slow on a CPU, and needs one pass over the tokens for each pooling. There
one compiled pass compares the bits as integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import copy_to
from cluster.models.token_roles import N_ROLES, role_bits

_INT_DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class CompiledMaxPooler:
    """Maxima of one batch on a CPU, whose tokens have `roles`, (sentences, tokens)."""

    def __init__(self, roles: npt.NDArray[np.int8], poolings: Sequence[str]) -> None:
        self._poolings = poolings
        self._pooled_roles = np.array([role_bits(pooling) for pooling in poolings])
        # Roles that are in the same poolings are one to the kernel.
        is_pooled = self._pooled_roles[:, np.newaxis] >> np.arange(N_ROLES) & 1
        _, lowest, alike = np.unique(is_pooled, axis=1, return_index=True, return_inverse=True)
        self._roles = lowest[alike].astype(np.int8)[roles]

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maxima by pooling, (sentences, units) each, from (sentences, tokens, units): 0 where a
        sentence has no token for the pooling. A NaN of either sign exceeds any number."""
        sentences, _, units = hidden.shape
        int_dtype, largest, n_nans = _int_limits(hidden.dtype)
        bits = hidden.contiguous().view(int_dtype).numpy()
        maxima = np.empty((len(self._poolings), sentences, units), bits.dtype)
        _max_kernel(bits, self._roles, self._pooled_roles, largest, n_nans, maxima)
        values = torch.from_numpy(maxima).view(hidden.dtype)
        return dict(zip(self._poolings, values.unbind(), strict=True))

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
        # The run after the last is empty: its maximum is -inf.
        self._offsets = copy_to(np.append(starts, [roles.size, roles.size]), device)
        self._runs = copy_to(runs, device)
        is_empty = runs[:, :, :1] == len(starts)
        self._least = copy_to(np.where(is_empty, 0, -np.inf).astype(np.float32), device)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `CompiledMaxPooler`."""
        maxima = torch.maximum(self._pool(hidden), self._least).to(hidden.dtype)
        return dict(zip(self._poolings, maxima.unbind(1), strict=True))

    def write(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """See `CompiledMaxPooler`."""
        torch.maximum(self._pool(hidden), self._least, out=out.permute(2, 0, 1))

    def _pool(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maxima, (sentences, poolings, units), -inf where there is no token."""
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
    columns = []
    for pooling in poolings:
        chosen = np.flatnonzero((role_bits(pooling) >> run_roles) & 1)
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
    bits: npt.NDArray[Any],
    roles: npt.NDArray[np.int8],
    pooled_roles: npt.NDArray[np.int64],
    largest: Any,
    n_nans: Any,
    out: npt.NDArray[Any],
) -> None:
    """Maxima of floating-point numbers from their bits as integers: of the tokens of each role, and of
    the roles of each pooling.

    Negative numbers are in reverse order as integers, so their bits are flipped. Negative NaNs are then
    the `n_nans` smallest integers; subtracting `n_nans` wraps them to the largest.
    """
    sentences, tokens, units = bits.shape
    cast = bits.dtype.type
    by_role = np.empty((N_ROLES, units), bits.dtype)
    used = 0
    for pooled in pooled_roles:
        used |= pooled
    for sentence in range(sentences):
        found = 0
        for token in range(tokens):
            role = roles[sentence, token]
            if not (used >> role) & 1:
                continue
            best, row = by_role[role], bits[sentence, token]
            if not (found >> role) & 1:
                found |= 1 << role
                best[:] = -largest - 1
            for unit in range(units):
                value = row[unit]
                best[unit] = max(best[unit], cast((value if value >= 0 else value ^ largest) - n_nans))
        for pooling in range(len(pooled_roles)):
            pooled, maxima = pooled_roles[pooling] & found, out[pooling, sentence]
            if not pooled:
                maxima[:] = 0
                continue
            maxima[:] = -largest - 1
            for role in range(N_ROLES):
                if (pooled >> role) & 1:
                    best = by_role[role]
                    for unit in range(units):
                        maxima[unit] = max(maxima[unit], best[unit])
            for unit in range(units):
                value = cast(maxima[unit] + n_nans)
                maxima[unit] = value if value >= 0 else value ^ largest
