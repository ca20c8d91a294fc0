"""Activation files: one flat column per (site, work unit), neuron by neuron.

Row r of a file with n sentences from `first` is unit r // n and sentence first + r % n.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.arrays import AnyFloats
from storage.errors import StoreError
from storage.store.checksums import blame_damage, damage_error
from storage.store.commit import LOCATION, FileRecord
from storage.store.layout import escape_name
from storage.store.paths import explain_read_errors, open_parquet

CONCEPT, CONTEXT, BEFORE = "concept", "context", "before"
POOLINGS = ("max", CONCEPT, "concept-max", CONTEXT, BEFORE, "mean", "last")
"""Poolings of neurons: the maximum over all real tokens, over the last token of each occurrence of the
concept's word, over all tokens of these, over all other tokens, and over those before the first
occurrence; the mean over all real tokens, and the value at the last."""

INPUT_EMBEDDINGS_FILE = "input-embeddings.parquet"

MLP_HIDDEN = "mlp.hidden"
"""Site: the hidden neurons of a layer's MLP, the input of its down projection."""

MLP_SHARED = "mlp.shared"
"""Site: the same of the shared experts of a mixture of experts, which process every token."""

MLP_EXPERTS = "mlp.experts"
"""Site: the same of its routed experts, expert by expert; 0 on tokens not routed to the expert."""

MLP_ROUTER = "mlp.router"
"""Site: the logits of its router, one per expert."""

RESIDUAL = "residual"
"""Site: the residual stream after a layer."""

_BLOCK_BYTES = 64 << 20
_ROW_GROUP_BYTES = 4 << 20

MEAN, LAST = "mean", "last"
STATE_POOLINGS = (MEAN, LAST, CONCEPT)
"""Poolings of the residual stream: the mean over all real tokens but the first position, unless it is
the only one; the value at the last; and the mean over the last tokens of the occurrences of the
concept's word, but for the first position."""


def units_per_row_group(row_bytes: int, total_row_bytes: int) -> int:
    """Units per row group of a file whose units take `row_bytes` each, of `total_row_bytes` in all
    files of the site: fewer for many sentences, so that reading a few units of all takes bounded
    memory."""
    return max(1, min(_ROW_GROUP_BYTES // row_bytes, _BLOCK_BYTES // total_row_bytes))


def activation_folder(pooling: str, layer: int, site: str) -> str:
    """Folder of one site's activations, relative to the stage's."""
    return f"pooling={escape_name(pooling)}/layer={layer}/site={escape_name(site)}"


@dataclass(frozen=True)
class SiteActivations:
    """The files of one site, in the order of their sentences, and the site's width.

    The files are compared with their `records`, in the same order, unless no manifest lists them.
    """

    paths: Sequence[Path]
    width: int
    records: Sequence[FileRecord | None] = ()

    def read(self) -> AnyFloats:
        """All activations of the site, of shape (units, sentences)."""
        ((_, values),) = self.blocks(sys.maxsize)
        return values

    def blocks(
        self,
        max_bytes: int,
        max_units: int = sys.maxsize,
        allocate: Callable[[tuple[int, int], npt.DTypeLike], AnyFloats] = np.empty,
    ) -> Iterator[tuple[int, AnyFloats]]:
        """Blocks of consecutive units: the first unit, and values of shape (units, sentences).

        A block has at most `max_bytes` and `max_units`, but at least one unit. Blocks end at row groups
        where possible; otherwise the rest of the row group is buffered, so every byte is read once.

        Raises:
            StoreError: if a file is damaged, was written for another site or has the wrong size. The
                last block is checked before it is yielded, earlier ones are not yet.
        """
        records = self.records or [None] * len(self.paths)
        files = [
            _UnitFile(path, self.width, record) for path, record in zip(self.paths, records, strict=True)
        ]
        dtype = files[0].dtype
        for file in files:
            if file.dtype != dtype:
                raise StoreError(f"{file.path}: has dtype {file.dtype}, but {files[0].path} has {dtype}")
        n_sentences = sum(file.n_sentences for file in files)
        block_units = max(1, min(self.width, max_units, max_bytes // (dtype.itemsize * n_sentences)))
        if files[0].units_per_group < block_units < self.width:
            block_units -= block_units % files[0].units_per_group
        for first in range(0, self.width, block_units):
            values = allocate((min(block_units, self.width - first), n_sentences), dtype)
            column = 0
            for file in files:
                file.read_next(values[:, column : column + file.n_sentences])
                column += file.n_sentences
            yield first, values
            del values

    def read_units(self, units: npt.NDArray[np.int64]) -> AnyFloats:
        """Activations of the given units, of shape (units, sentences)."""
        parts, indices = [], []
        for first, block in self.blocks(_BLOCK_BYTES):
            in_block = np.flatnonzero((units >= first) & (units < first + len(block)))
            parts.append(block[units[in_block] - first])
            indices.append(in_block)
        values: AnyFloats = np.concatenate(parts)[np.argsort(np.concatenate(indices))]
        return values


class _UnitFile:
    """The file of one site and work unit, read sequentially, neuron by neuron, and hashed on the way."""

    def __init__(self, path: Path, width: int, record: FileRecord | None) -> None:
        self.path = path
        self._record = record
        with self._explain_errors(), open_parquet(path) as file:
            location = (file.schema_arrow.metadata or {}).get(LOCATION, b"").decode()
            if not location or not str(path).endswith(f"/{location}"):
                raise StoreError(
                    f"{path}: was written for another location ({location or 'unknown'}); "
                    "delete it and rerun"
                )
            n_rows = file.metadata.num_rows
            if n_rows % width or not n_rows:
                raise StoreError(f"{path}: expected a multiple of {width} units, got {n_rows} rows")
            self.dtype = np.dtype(file.schema_arrow.field(0).type.to_pandas_dtype())
            self.n_sentences: int = n_rows // width
            self.units_per_group: int = max(1, file.metadata.row_group(0).num_rows // self.n_sentences)
            self._metadata: pq.FileMetaData = file.metadata
        self._next_group = 0
        self._n_read = 0
        self._sha256 = hashlib.sha256()
        self._buffer: AnyFloats = np.empty((0, self.n_sentences), self.dtype)

    def read_next(self, out: AnyFloats) -> None:
        """Fill `out`, of shape (units, sentences), with the activations of the next units."""
        row = self._drain_buffer(out, 0)
        if row < len(out):
            with self._explain_errors(), self.path.open("rb") as file:
                file.seek(self._n_read)
                while row < len(out):
                    column = self._read_row_group(file).column(0)
                    self._buffer = column.to_numpy().reshape(-1, self.n_sentences)
                    row = self._drain_buffer(out, row)
                if self._record and self._next_group == self._metadata.num_row_groups:
                    self._sha256.update(file.read())
                    if self._sha256.hexdigest() != self._record.sha256:
                        raise damage_error(self.path)
        # a view would keep the complete row group in memory
        self._buffer = self._buffer.copy()

    def _explain_errors(self) -> AbstractContextManager[None]:
        if self._record is None:
            return explain_read_errors(self.path)
        return blame_damage(self.path, self._record.sha256)

    def _read_row_group(self, file: BinaryIO) -> pa.Table:
        """The next row group, from the bytes that are hashed: those up to its end."""
        chunk = self._metadata.row_group(self._next_group).column(0)
        end = chunk.data_page_offset + chunk.total_compressed_size
        content = file.read(end - self._n_read)
        if self._record:
            self._sha256.update(content)
        section = pq.ParquetFile(_FileSection(content, self._n_read), metadata=self._metadata)
        table = section.read_row_group(self._next_group)
        self._next_group += 1
        self._n_read = end
        return table

    def _drain_buffer(self, out: AnyFloats, row: int) -> int:
        """Move buffered units into `out` from `row` on; returns the next row."""
        units = min(len(self._buffer), len(out) - row)
        out[row : row + units] = self._buffer[:units]
        self._buffer = self._buffer[units:]
        return row + units


class _FileSection(io.RawIOBase):
    """Some consecutive bytes of a file at their position in it, the only ones that may be read."""

    def __init__(self, content: bytes, start: int) -> None:
        self._content = memoryview(content)
        self._start = self._position = start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._start + len(self._content)
        self._position = offset + (0, self._position, end)[whence]
        return self._position

    def read(self, size: int = -1) -> Any:
        # pyarrow takes a view instead of bytes, which saves a copy
        first = self._position - self._start
        content = self._content[first:][:size] if size >= 0 else self._content[first:]
        self._position += len(content)
        return content
