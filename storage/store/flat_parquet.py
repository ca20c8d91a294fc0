"""Write a flat array as a Parquet file of one column at the speed of memory.

In Parquet, a float16 is an array of two bytes, and pyarrow encodes such arrays one by one at 0.5 GB/s.
Plain encoding without compression, however, is the bytes of the array: pyarrow writes the headers once
per size, around zeros, which the values replace. The file is byte-identical to the one from pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.arrays import AnyFloats

_MAGIC = b"PAR1"
_MAX_CACHED_TEMPLATES = 64


@dataclass(frozen=True)
class _Template:
    """A file without its values: the page header of each row group, and the footer's metadata."""

    headers: list[bytes]
    metadata: pq.FileMetaData


def encode(values: AnyFloats, row_group: int, metadata: dict[bytes, bytes]) -> list[Any]:
    """The parts of a file with the non-nullable column `value`, `row_group` rows per group.

    Values are not copied.
    """
    template = _make_template(values.dtype, len(values), row_group)
    parts: list[Any] = [_MAGIC]
    for index, header in enumerate(template.headers):
        first = index * row_group
        parts += [header, values[first : first + row_group].data.cast("B")]
    parts.append(memoryview(_make_footer(template, _schema(values.dtype, metadata)))[len(_MAGIC) :])
    return parts


def decode(file: pa.Buffer) -> Iterator[AnyFloats]:
    """The values of each row group of such a file, read by pyarrow."""
    table = pq.ParquetFile(pa.BufferReader(file))
    for group in range(table.num_row_groups):
        yield table.read_row_group(group, use_threads=False).column(0).to_numpy()


def encode_with_pyarrow(values: AnyFloats, row_group: int, metadata: dict[bytes, bytes]) -> pa.Buffer:
    """The same file as from `encode`, written by pyarrow alone."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays([pa.array(values)], schema=_schema(values.dtype, metadata)),
        sink,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        row_group_size=row_group,
        # one page per row group
        data_page_size=values.nbytes + 1,
        max_rows_per_page=row_group,
        write_batch_size=row_group,
    )
    return sink.getvalue()


@lru_cache(_MAX_CACHED_TEMPLATES)
def _make_template(dtype: np.dtype[Any], size: int, row_group: int) -> _Template:
    file = encode_with_pyarrow(np.zeros(size, dtype), row_group, {})
    metadata = pq.read_metadata(pa.BufferReader(file))
    headers = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        page = group.column(0)
        length = page.total_compressed_size - group.num_rows * dtype.itemsize
        headers.append(file[page.data_page_offset :][:length].to_pybytes())
    return _Template(headers, metadata)


def _make_footer(template: _Template, schema: pa.Schema) -> pa.Buffer:
    """A file without rows, whose footer describes the row groups of the template."""
    empty, file = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_metadata(schema, empty)
    metadata = pq.read_metadata(pa.BufferReader(empty.getvalue()))
    metadata.append_row_groups(template.metadata)
    metadata.write_metadata_file(file)
    return file.getvalue()


def _schema(dtype: np.dtype[Any], metadata: dict[bytes, bytes]) -> pa.Schema:
    return pa.schema([pa.field("value", pa.from_numpy_dtype(dtype), nullable=False)], metadata)
