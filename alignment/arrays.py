"""Array types, by dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

AnyFloats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
UInt32s = npt.NDArray[np.uint32]
UInts = npt.NDArray[np.unsignedinteger[Any]]

Allocator = Callable[[int | tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]
"""Returns an array of a shape and dtype, as `np.empty` does; it may back large ones by a file."""
