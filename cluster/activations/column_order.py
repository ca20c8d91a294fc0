"""Puts the sentences of pooled values in their order, in place, and finds values that are not finite."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

REORDERED_BYTES = 256 << 20
"""Memory in which values are reordered, or that of a site if it takes more."""

_INFINITY_BITS = {torch.float16: (torch.int16, 0x7C00), torch.float32: (torch.int32, 0x7F800000)}
"""The integer dtype of a float dtype's width, and the bits of infinity: those of its exponent."""


def transpose_rows(rows: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """`rows[order].T`, in the memory of `rows`, (sentences, units) in float16 or float32 on a CPU; and
    whether all values are finite. Takes the memory of `rows` once more."""
    int_dtype, infinity = _INFINITY_BITS[rows.dtype]
    bits, ordered = rows.view(int_dtype).numpy(), torch.empty_like(rows)
    is_finite = _gather_kernel(
        bits, order.numpy(), ordered.view(int_dtype).numpy(), bits.dtype.type(infinity)
    )
    columns = rows.view(rows.shape[1], rows.shape[0])
    return columns.copy_(ordered.T), bool(is_finite)


def reorder_columns(rows: torch.Tensor, columns: torch.Tensor) -> bool:
    """Replace `rows`, (rows, columns) on a GPU, by `rows[:, columns]`; whether all values are finite."""
    index, is_finite = columns.to(rows.device), []
    for part in torch.split(rows, max(1, REORDERED_BYTES // (rows.shape[1] * rows.itemsize))):
        part.copy_(part.index_select(1, index))
        is_finite.append(torch.stack(torch.aminmax(part, dim=-1)).isfinite().all())
    return bool(torch.stack(is_finite).all())


@numba.njit(cache=True, nogil=True)
def _gather_kernel(
    rows: npt.NDArray[Any], order: npt.NDArray[np.int64], out: npt.NDArray[Any], infinity: Any
) -> bool:
    n_infinite = 0
    for index in range(len(order)):
        row, copied = rows[order[index]], out[index]
        for unit in range(len(row)):
            n_infinite += (row[unit] & infinity) == infinity
            copied[unit] = row[unit]
    return n_infinite == 0
