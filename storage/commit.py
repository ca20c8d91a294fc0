"""The file that is there is whole.

Every file of a store is written under a temporary name in its own folder, flushed to the disk, read
back and checked, and only then renamed to its final name, which depends on nothing but what the file
holds. A reader never sees half a file; work that is done twice writes the same name twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.fingerprint import hash_file

TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True)
class FileRecord:
    """One committed file: its path relative to the stage's folder, and what must be found in it."""

    path: str
    rows: int
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_table(folder: Path, name: str, table: pa.Table) -> FileRecord:
    """Commit an Arrow table as `folder/name`, compressed with zstd."""

    def write(path: Path) -> None:
        pq.write_table(table, path, compression="zstd")

    def check(path: Path) -> None:
        found = pq.read_metadata(path)
        if found.num_rows != table.num_rows:
            raise StoreError(f"{path}: {found.num_rows} rows read back, {table.num_rows} written")
        if not pq.read_schema(path).equals(table.schema):
            raise StoreError(f"{path}: the schema read back is not the schema written")

    return _commit(folder, name, table.num_rows, write, check)


def write_values(
    folder: Path, name: str, values: npt.NDArray[np.floating[Any]], row_group: int
) -> FileRecord:
    """Commit a flat array as the one column `value`, plainly encoded, `row_group` rows a group.

    Raises StoreError when a value is not finite: an activation that overflowed must never become a
    number that looks right.
    """
    if not np.isfinite(values).all():
        raise StoreError(f"{folder / name}: {int((~np.isfinite(values)).sum())} values not finite")
    column = pa.array(values.ravel())
    schema = pa.schema([pa.field("value", column.type, nullable=False)])
    table = pa.Table.from_arrays([column], schema=schema)

    def write(path: Path) -> None:
        pq.write_table(
            table,
            path,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            row_group_size=row_group,
        )

    def check(path: Path) -> None:
        if not np.array_equal(pq.read_table(path).column(0).to_numpy(), values.ravel()):
            raise StoreError(f"{path}: the values read back are not the values written")

    return _commit(folder, name, len(table), write, check)


def write_bytes(folder: Path, name: str, content: bytes) -> FileRecord:
    """Commit bytes as `folder/name`."""

    def write(path: Path) -> None:
        path.write_bytes(content)

    def check(path: Path) -> None:
        if hash_file(path) != hashlib.sha256(content).hexdigest():
            raise StoreError(f"{path}: the bytes read back are not the bytes written")

    return _commit(folder, name, 0, write, check)


def write_json(folder: Path, name: str, value: Any) -> FileRecord:
    """Commit a value as indented JSON."""
    return write_bytes(folder, name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """A name beside `path` for work that is renamed to `path` when it is whole; removed if left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        yield temporary
    finally:
        if temporary.is_file():
            temporary.unlink()


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _commit(
    folder: Path,
    name: str,
    rows: int,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
) -> FileRecord:
    final = folder / name
    with temporary_sibling(final) as temporary:
        write(temporary)
        sync(temporary)
        check(temporary)
        record = FileRecord(name, rows, temporary.stat().st_size, hash_file(temporary))
        temporary.replace(final)
    sync(final.parent)
    return record
