"""Plain writers of as many bytes as a pass, to compare with."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from storage.store.commit import fsync

_CHUNK_BYTES = 16 << 20
_ROUNDS = 2


def plain_seconds(folder: Path, n_writers: int, n_files: int, n_bytes: int) -> float:
    """Shortest time in which so many threads write and flush files of `n_bytes` together, without format
    or checksums."""
    content = np.random.default_rng(0).bytes(n_bytes // n_files)
    durations = []
    with ThreadPoolExecutor(n_writers) as threads:
        for _ in range(_ROUNDS):
            with tempfile.TemporaryDirectory(dir=folder) as name:
                paths = [Path(name) / str(number) for number in range(n_files)]
                started = time.perf_counter()
                list(threads.map(partial(_write, content), paths))
                durations.append(time.perf_counter() - started)
    return min(durations)


def _write(content: bytes, path: Path) -> None:
    """Write a new file and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining[:_CHUNK_BYTES]) :]
    os.fsync(descriptor)
    os.close(descriptor)
    fsync(path.parent)
