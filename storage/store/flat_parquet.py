"""A flat array as a Parquet file of one column, made at the speed of memory.

To Parquet a float16 is an array of two bytes, and pyarrow encodes such arrays one by one, at 0.5 GB/s.
But plainly encoded and not compressed they are just the bytes of the array: pyarrow writes the headers
once for each size, around zeros, and the values take their place. The file is byte for byte the one
that pyarrow would have written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Flat = npt.NDArray[np.floating[Any]]

_MAGIC = b"PAR1"
_SIZES_KEPT = 64


@dataclass(frozen=True)
class _Form:
    """All of a file but its values: the header of the page in each row group, and the footer's facts."""

    headers: list[bytes]
    metadata: pq.FileMetaData


def encode(values: Flat, row_group: int, metadata: dict[bytes, bytes]) -> list[Any]:
    """The parts of a file with the column `value`, never null, `row_group` rows a group, and this
    metadata. Values are not copied."""
    form = _form(values.dtype, len(values), row_group)
    parts: list[Any] = [_MAGIC]
    for number, header in enumerate(form.headers):
        first = number * row_group
        parts += [header, values[first : first + row_group].data.cast("B")]
    parts.append(memoryview(_footer(form, _schema(values.dtype, metadata)))[len(_MAGIC) :])
    return parts


def decode(file: pa.Buffer) -> Flat:
    """The values of such a file, as pyarrow reads them."""
    values: Flat = pq.ParquetFile(pa.BufferReader(file)).read(use_threads=False).column(0).to_numpy()
    return values


def by_pyarrow(values: Flat, row_group: int, metadata: dict[bytes, bytes]) -> pa.Buffer:
    """The same file as `encode` makes, by pyarrow alone."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays([pa.array(values)], schema=_schema(values.dtype, metadata)),
        sink,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        row_group_size=row_group,
        # one page a row group
        data_page_size=values.nbytes + 1,
        max_rows_per_page=row_group,
        write_batch_size=row_group,
    )
    return sink.getvalue()


@lru_cache(_SIZES_KEPT)
def _form(kind: np.dtype[Any], size: int, row_group: int) -> _Form:
    file = by_pyarrow(np.zeros(size, kind), row_group, {})
    metadata = pq.read_metadata(pa.BufferReader(file))
    headers = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        page = group.column(0)
        length = page.total_compressed_size - group.num_rows * kind.itemsize
        headers.append(file[page.data_page_offset :][:length].to_pybytes())
    return _Form(headers, metadata)


def _footer(form: _Form, schema: pa.Schema) -> pa.Buffer:
    """A file without rows, whose footer tells of those of the form."""
    empty, file = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_metadata(schema, empty)
    metadata = pq.read_metadata(pa.BufferReader(empty.getvalue()))
    metadata.append_row_groups(form.metadata)
    metadata.write_metadata_file(file)
    return file.getvalue()


def _schema(kind: np.dtype[Any], metadata: dict[bytes, bytes]) -> pa.Schema:
    return pa.schema([pa.field("value", pa.from_numpy_dtype(kind), nullable=False)], metadata)
