"""Reading activations: one flat column per (site, work unit), neuron by neuron.

Row r of a file with n sentences from `first` is unit r // n and sentence first + r % n.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import StoreError
from storage.store.commit import PLACE
from storage.store.layout import escaped
from storage.store.paths import open_table

Values = npt.NDArray[np.floating[Any]]

POOLINGS = ("max", "concept", "context", "mean", "last")
"""Poolings of neurons: the maximum over all real tokens, over those of the concept's word, and over
all but those; the mean over all real tokens, and the value at the last."""

INPUT_EMBEDDINGS_FILE = "input-embeddings.parquet"

MLP_HIDDEN = "mlp.hidden"
"""Site: the hidden neurons of a layer's MLP, the input of its down projection."""

RESIDUAL = "residual"
"""Site: the residual stream after a layer."""

_BLOCK_BYTES = 64 << 20

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

    def read(self) -> Values:
        """All activations of the site, of shape (units, sentences)."""
        ((_, values),) = self.blocks(sys.maxsize)
        return values

    def blocks(
        self,
        most_bytes: int,
        most_units: int = sys.maxsize,
        room: Callable[[tuple[int, int], npt.DTypeLike], Values] = np.empty,
    ) -> Iterator[tuple[int, Values]]:
        """The activations some units at a time: the first of them, and their values, of shape (units,
        sentences), in an array that `room` gives.

        A block has at most so many bytes and units, but one unit at least. Each byte of the files is
        read once: blocks end where row groups do, except where one row group is more than a block; the
        rest of it is kept.

        Raises StoreError for a file that cannot be read, that belongs elsewhere, or that does not fit.
        """
        files = [_UnitFile(path, self.width) for path in self.paths]
        kind = files[0].kind
        for file in files:
            if file.kind != kind:
                raise StoreError(f"{file.path}: holds {file.kind}, {files[0].path} {kind}")
        sentences = sum(file.sentences for file in files)
        at_once = max(1, min(self.width, most_units, most_bytes // (kind.itemsize * sentences)))
        if files[0].units_in_group < at_once < self.width:
            at_once -= at_once % files[0].units_in_group
        for first in range(0, self.width, at_once):
            units = min(at_once, self.width - first)
            values = room((units, sentences), kind)
            place = 0
            for file in files:
                file.take(values[:, place : place + file.sentences])
                place += file.sentences
            yield first, values
            del values

    def read_units(self, units: npt.NDArray[np.int64]) -> Values:
        """Activations of some units, of shape (units, sentences)."""
        parts, found = [], []
        for first, block in self.blocks(_BLOCK_BYTES):
            inside = np.flatnonzero((units >= first) & (units < first + len(block)))
            parts.append(block[units[inside] - first])
            found.append(inside)
        values: Values = np.concatenate(parts)[np.argsort(np.concatenate(found))]
        return values


class _UnitFile:
    """One file of a site, read unit by unit from the first to the last."""

    def __init__(self, path: Path, width: int) -> None:
        self.path = path
        with open_table(path) as table:
            place = (table.schema_arrow.metadata or {}).get(PLACE, b"").decode()
            if not place or not str(path).endswith(f"/{place}"):
                raise StoreError(
                    f"{path}: belongs elsewhere ({place or 'nowhere'}); delete it, run again"
                )
            if table.metadata.num_rows % width or not table.metadata.num_rows:
                raise StoreError(
                    f"{path}: {table.metadata.num_rows} rows are no multiple of {width} units"
                )
            self.kind = np.dtype(table.schema_arrow.field(0).type.to_pandas_dtype())
            self.sentences: int = table.metadata.num_rows // width
            self.units_in_group: int = max(1, table.metadata.row_group(0).num_rows // self.sentences)
        self._next_group = 0
        self._rest: Values = np.empty((0, self.sentences), self.kind)

    def take(self, out: Values) -> None:
        """Fill `out`, of shape (units, sentences), with the activations of the next units."""
        place = self._move(out, 0)
        if place < len(out):
            with open_table(self.path) as table:
                while place < len(out):
                    column = table.read_row_group(self._next_group).column(0)
                    self._rest = column.to_numpy().reshape(-1, self.sentences)
                    self._next_group += 1
                    place = self._move(out, place)
        # not a view that holds the whole row group
        self._rest = self._rest.copy()

    def _move(self, out: Values, place: int) -> int:
        """Fill `out` from a place on with what is left of the last row group; the place after it."""
        units = min(len(self._rest), len(out) - place)
        out[place : place + units] = self._rest[:units]
        self._rest = self._rest[units:]
        return place + units
