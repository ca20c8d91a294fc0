"""Large arrays must keep their values, leave no file behind, and fail early on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from storage.errors import StoreError
from storage.store import scratch as scratch_module
from storage.store.scratch import scratch


def test_a_file_backed_array_behaves_like_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values could be lost, or the file left behind."""
    monkeypatch.setattr(scratch_module, "_MAX_IN_MEMORY_BYTES", 100)
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


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory map on a full disk would kill the process."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        patch("os.posix_fallocate", side_effect=full),
        pytest.raises(StoreError, match=rf"{tmp_path}: No space left.* 0\.3 GB.*TMPDIR"),
    ):
        scratch(300_000_000, np.uint8)
