"""Writing the pooled values of a pass to the store, against plain processes that write the same bytes.

`python -m benchmarks.gpu.writers` writes the maxima of Pythia-1b's neurons on the demo's sentences for
three poolings, 2 GB, from the GPU, or a quarter of them from host memory.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storage.store.commit import fsync

if TYPE_CHECKING:
    from cluster.activations.block_buffer import PooledValues

SENTENCES, WIDTH = 2624, 8192
_POOLINGS = ("max", "concept", "context")
_CHUNK_BYTES = 16 << 20
_ROUNDS = 4
_MAX_SECONDS = 30

_shared: dict[str, np.ndarray] = {}


def make_values(n_layers: int, device: str) -> list[PooledValues]:
    """Random activations of all layers and poolings."""
    import torch

    from cluster.activations.block_buffer import PooledValues
    from cluster.models.sites import Site

    sites = tuple(Site(layer, "mlp.hidden", "mlp", "input", WIDTH) for layer in range(n_layers))
    shape = n_layers * WIDTH, SENTENCES
    return [
        PooledValues(pooling, sites, torch.randn(shape, dtype=torch.float16, device=device))
        for pooling in _POOLINGS
    ]


def fill_memory(_: int) -> None:
    """Give a plain process the bytes of a site."""
    random = np.random.default_rng(0)
    _shared["values"] = random.standard_normal((WIDTH, SENTENCES), np.float32).astype(np.float16)
    # Until all have them.
    time.sleep(1)


def write_plainly(path: Path) -> None:
    """Write the bytes of a site to a new file and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    remaining = memoryview(_shared["values"]).cast("B")
    while remaining:
        remaining = remaining[os.write(descriptor, remaining[:_CHUNK_BYTES]) :]
    os.fsync(descriptor)
    os.close(descriptor)
    fsync(path.parent)


def write_with_plain_processes(pool: Pool, folder: Path, n_files: int) -> None:
    """Files of as many bytes as those of the store."""
    paths = [folder / f"site={number}" for number in range(n_files)]
    pool.map(write_plainly, paths, chunksize=1)


def seconds(call: Callable[[], object], folder: Path) -> float:
    """Duration of a call; the files that it wrote are removed and not timed."""
    started = time.perf_counter()
    call()
    duration = time.perf_counter() - started
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    return duration


def main() -> None:
    """Print bytes per second of both, in alternation."""
    # Not in the plain processes.
    import torch

    from cluster.activations.site_writers import SiteWriters

    is_on_gpu = torch.cuda.is_available()
    n_layers = 16 if is_on_gpu else 4
    pooled = make_values(n_layers, "cuda" if is_on_gpu else "cpu")
    n_bytes = sum(values.values.nbytes for values in pooled)
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        with SiteWriters(folder / "ours") as writers:
            n_writers = len(writers)
            with multiprocessing.get_context("spawn").Pool(n_writers) as pool:
                pool.map(fill_memory, range(n_writers), chunksize=1)

                def ours() -> None:
                    writers.write(pooled)
                    writers.finish()

                def theirs() -> None:
                    latest = Path(tempfile.mkdtemp(dir=folder))
                    write_with_plain_processes(pool, latest, n_layers * len(_POOLINGS))

                pairs = []
                started = time.perf_counter()
                while len(pairs) < 2 or (
                    len(pairs) <= _ROUNDS and time.perf_counter() - started < _MAX_SECONDS
                ):
                    pairs.append((seconds(ours, folder), seconds(theirs, folder)))
        print(f"{n_bytes / 1e9:.2f} GB in {folder}, {n_writers} processes; GB/s and their ratio")
        for ours_seconds, theirs_seconds in pairs:
            rates = n_bytes / ours_seconds / 1e9, n_bytes / theirs_seconds / 1e9
            print(
                f"writers {rates[0]:6.2f}   plain processes {rates[1]:6.2f}   {rates[0] / rates[1]:.2f}"
            )
        middle = [statistics.median(column) for column in zip(*pairs[1:], strict=True)]
        print(f"ratio of the medians after the first round: {middle[1] / middle[0]:.2f}")


if __name__ == "__main__":
    main()
