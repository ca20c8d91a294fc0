"""An array that is too large for memory must hold what is put into it, leave nothing behind, and say so
before it is filled where the disk has no room for it: a file that ends early would end the process."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from storage.errors import StoreError
from storage.store import scratch as module
from storage.store.scratch import scratch


def test_an_array_in_a_file_is_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    values = np.arange(60, dtype=np.float16).reshape(3, 20)
    for shape in (values.shape, values.size):
        large = scratch(shape, np.float16)
        assert isinstance(large, np.memmap)
        large[...] = values.reshape(shape)
        assert np.array_equal(large, values.reshape(shape))
    assert not list(tmp_path.iterdir())
    assert type(scratch((5, 10), np.uint16)) is np.ndarray
    assert scratch(0, np.uint32).shape == (0,)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        patch("os.posix_fallocate", side_effect=full),
        pytest.raises(StoreError, match=rf"{tmp_path}: No space left.* 0\.3 GB.*TMPDIR"),
    ):
        scratch(300_000_000, np.uint8)
