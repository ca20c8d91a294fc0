"""Reorders the columns of pooled values in place, and finds values that are not finite on the way."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

REORDERED_BYTES = 256 << 20
"""Memory of a GPU in which values are reordered."""

_INFINITY_BITS = {torch.float16: (torch.int16, 0x7C00), torch.float32: (torch.int32, 0x7F800000)}
"""The integer dtype of a float dtype's width, and the bits of infinity: those of its exponent."""


def reorder_columns(rows: torch.Tensor, columns: torch.Tensor) -> bool:
    """Replace `rows`, (rows, columns) in float16 or float32, by `rows[:, columns]`; whether all values
    are finite."""
    if rows.device.type == "cpu":
        int_dtype, infinity = _INFINITY_BITS[rows.dtype]
        bits = rows.view(int_dtype).numpy()
        return bool(_reorder_kernel(bits, columns.numpy(), bits.dtype.type(infinity)))
    index, is_finite = columns.to(rows.device), []
    for part in torch.split(rows, max(1, REORDERED_BYTES // (rows.shape[1] * rows.itemsize))):
        part.copy_(part.index_select(1, index))
        is_finite.append(torch.stack(torch.aminmax(part, dim=-1)).isfinite().all())
    return bool(torch.stack(is_finite).all())


@numba.njit(cache=True, nogil=True)
def _reorder_kernel(rows: npt.NDArray[Any], columns: npt.NDArray[np.int64], infinity: Any) -> bool:
    # A row at a time, which fits in the CPU's caches.
    row, is_finite = np.empty_like(rows[0]), True
    for index in range(len(rows)):
        values = rows[index]
        n_infinite = 0
        for column in range(len(values)):
            row[column] = values[column]
            n_infinite += (values[column] & infinity) == infinity
        is_finite = is_finite and n_infinite == 0
        for column in range(len(values)):
            values[column] = row[columns[column]]
    return is_finite
