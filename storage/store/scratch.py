"""Arrays of any size in bounded memory: large ones lie in files without a name."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import StoreError

_IN_MEMORY_BYTES = 128 << 20


def scratch(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array with nothing in it yet, as `np.empty` makes it.

    A large one lies in the folder for temporary files (TMPDIR), so that the system may put it aside, and
    is gone with the array. Raises StoreError where there is no room for it.
    """
    size = math.prod(np.atleast_1d(shape)) * np.dtype(dtype).itemsize
    if size <= _IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            # room that turns out not to be there only when it is filled would end the process
            os.posix_fallocate(file.fileno(), 0, int(size))
        except OSError as error:
            raise StoreError(
                f"{tempfile.gettempdir()}: {error.strerror} for {size / 1e9:.1f} GB of temporary data; "
                "make space there, or set TMPDIR to another folder"
            ) from error
        return np.memmap(file, dtype, "r+", shape=shape)
