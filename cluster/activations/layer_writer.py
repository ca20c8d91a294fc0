"""Writes a layer's values to the store, a file a pooling and site: what a pass does with values that are
kept."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cluster.activations.site_writers import SiteWriters
from storage.store.activation_files import activation_folder, units_per_row_group
from storage.store.commit import FileRecord, write_values

if TYPE_CHECKING:
    from cluster.activations.pass_request import SiteValues

_CPU_BYTES, _GPU_BYTES = 64 << 20, 256 << 20
"""Buffers of a file that is encoded; on a GPU what the check for finite values takes."""

_PARALLEL_WRITES = 4
"""Hides the latency of object stores, and of disks that flush a file."""


def activation_file(pooling: str, layer: int, site: str) -> str:
    """Name of the file of a site's activations of all sentences, relative to the stage's folder."""
    return f"{activation_folder(pooling, layer, site)}/00000.parquet"


@dataclass
class LayerWriter:
    """Commits the activations of one layer after another into `folder`.

    Values in host memory are written by threads of this process, and those of a GPU by processes, to
    which they are copied through pinned and shared memory.
    """

    folder: Path
    notes: list[str] = field(default_factory=list, init=False)
    _writers: SiteWriters | None = field(default=None, init=False)

    def working_bytes(self, device: str) -> int:
        """Memory of the device that writing needs beside a layer's values."""
        return _CPU_BYTES if device == "cpu" else _GPU_BYTES

    def __call__(self, layer: int, sites: Sequence[SiteValues], threads: int) -> list[FileRecord]:
        """Write a layer's neurons and hidden states."""
        files = {activation_file(site.pooling, layer, site.site): site.values for site in sites}
        if all(values.device.type == "cpu" for values in files.values()):
            return self._write_in_threads(files, threads)
        if self._writers is None:
            self._writers = SiteWriters(self.folder)
            weakref.finalize(self, self._writers.close)
        for name, values in files.items():
            self._writers.write(name, values, row_group_size(values))
        return self._writers.finish()

    def _write_in_threads(self, files: dict[str, torch.Tensor], threads: int) -> list[FileRecord]:
        def write(name: str) -> FileRecord:
            values = files[name]
            return write_values(self.folder, name, values.numpy(), row_group_size(values))

        with ThreadPoolExecutor(max(threads, _PARALLEL_WRITES)) as pool:
            return list(pool.map(write, files))


def row_group_size(values: torch.Tensor) -> int:
    """Values in a row group of a file of a site's values, (units, sentences)."""
    row_bytes = values[0].nbytes
    return units_per_row_group(row_bytes, row_bytes) * values.shape[1]
