"""Reading activations: one flat column per (site, work unit), neuron by neuron.

Row r of a file with n sentences from `first` is unit r // n and sentence first + r % n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import StoreError
from storage.layout import escaped
from storage.place import read_table

POOLINGS = ("max", "concept", "context", "mean", "last")
"""Poolings of neurons: the maximum over all real tokens, over those of the concept's word, and over
all but those; the mean over all real tokens, and the value at the last."""

INPUT_EMBEDDINGS_FILE = "input-embeddings.parquet"

MLP_HIDDEN = "mlp.hidden"
"""Site: the hidden neurons of a layer's MLP, the input of its down projection."""

RESIDUAL = "residual"
"""Site: the residual stream after a layer."""

MEAN, LAST = "mean", "last"
"""Poolings of the residual stream: the mean over all real tokens, and the value at the last."""


def activation_folder(pooling: str, layer: int, site: str) -> str:
    """Folder of one site's activations, relative to the stage's."""
    return f"pooling={escaped(pooling)}/layer={layer}/site={escaped(site)}"


@dataclass(frozen=True)
class SiteFiles:
    """The files of one site, in the order of their sentences, and the site's width."""

    paths: Sequence[Path]
    width: int

    def read(self) -> npt.NDArray[np.floating[Any]]:
        """All activations of the site, of shape (units, sentences)."""
        parts = [self._read_one(path) for path in self.paths]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def read_units(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.floating[Any]]:
        """Activations of some units, of shape (units, sentences), with one file in memory at a time."""
        return np.concatenate([self._read_one(path)[units] for path in self.paths], axis=1)

    def _read_one(self, path: Path) -> npt.NDArray[np.floating[Any]]:
        chunks = read_table(path).column(0).chunks
        values: npt.NDArray[np.floating[Any]] = np.concatenate([chunk.to_numpy() for chunk in chunks])
        if len(values) % self.width:
            raise StoreError(f"{path}: {len(values)} rows are no multiple of {self.width} units")
        return values.reshape(self.width, -1)
