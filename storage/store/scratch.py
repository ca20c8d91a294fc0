"""Arrays of any size in bounded memory: large arrays are backed by unnamed temporary files."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import StoreError

_MAX_IN_MEMORY_BYTES = 128 << 20


def scratch(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialized array, like `np.empty`.

    A large array is backed by a file in TMPDIR, which disappears with the array.

    Raises:
        StoreError: if there is not enough disk space.
    """
    size = math.prod(np.atleast_1d(shape)) * np.dtype(dtype).itemsize
    if size <= _MAX_IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            # running out of space in a memory map would kill the process
            os.posix_fallocate(file.fileno(), 0, int(size))
        except OSError as error:
            raise StoreError(
                f"{tempfile.gettempdir()}: {error.strerror} for {size / 1e9:.1f} GB of temporary data; "
                "free disk space, or set TMPDIR to another folder"
            ) from error
        return np.memmap(file, dtype, "r+", shape=shape)
