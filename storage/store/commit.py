"""Atomic commits: a file that exists is complete.

On a disk, a file is written under a temporary name in its own folder, flushed, read back, checked and
then renamed to its final name, which depends only on its contents. An object store shows only complete
objects, so there the upload under the final name replaces the rename; it is read back and checked too.
Readers never see partial files, and repeated work writes the same names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError

from alignment.arrays import AnyFloats
from storage.errors import StoreError, UserError
from storage.readers.strict_json import parse_json
from storage.store import flat_parquet
from storage.store.paths import is_remote, object_store, read_bytes

TEMPORARY_SUFFIX = ".tmp"
KEY = b"key"
"""Schema metadata: the names of the key columns, separated by commas."""

LOCATION = b"place"
"""Metadata of a file of values: the stage's folder and the path within it."""

_ROWS_READ_BACK = 1 << 16
_CHUNK_BYTES = 16 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk that is full, or of a limit on what a user or a process may write."""

_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class FileRecord:
    """One committed file: its path relative to the stage's folder, and its expected contents."""

    path: str
    rows: int
    bytes: int
    sha256: str


def write_table(folder: Path, name: str, table: pa.Table) -> FileRecord:
    """Commit an Arrow table as `folder/name`, compressed with zstd.

    Raises:
        StoreError: if `find_table_problem` reports a problem.
    """
    if problem := find_table_problem(table):
        raise StoreError(f"{folder / name}: {problem}")

    def check(content: pa.Buffer) -> str | None:
        file = pq.ParquetFile(pa.BufferReader(content))
        if file.metadata.num_rows != table.num_rows:
            return f"{file.metadata.num_rows} rows read back, {table.num_rows} written"
        schema = file.schema_arrow
        if not schema.equals(table.schema) or key_columns(schema) != key_columns(table.schema):
            return "the schema read back differs from the schema written"
        first = 0
        # in batches, because the rows may take much memory
        for batch in file.iter_batches(_ROWS_READ_BACK):
            if not pa.Table.from_batches([batch]).equals(table.slice(first, batch.num_rows)):
                return "the rows read back differ from the rows written"
            first += batch.num_rows
        return None

    content = pa.BufferOutputStream()
    # Dictionaries of numbers take longer to make, and files with them are larger.
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table, content, compression="zstd", use_dictionary=strings)
    return _commit(folder, name, [content.getvalue()], table.num_rows, check)


def write_values(folder: Path, name: str, values: AnyFloats, row_group: int) -> FileRecord:
    """Commit a flat array as the single column `value`, with `row_group` rows per group.

    The values do not identify themselves, so the file's metadata contain its location (see LOCATION).

    Raises:
        StoreError: if a value is not finite, so that an overflow never passes for an activation.
    """
    if not all_finite(values):
        raise StoreError(f"{folder / name}: {int((~np.isfinite(values)).sum())} values not finite")
    flat = values.ravel()

    def check(content: pa.Buffer) -> str | None:
        n_equal = 0
        for group in flat_parquet.decode(content):
            if not pa.py_buffer(group).equals(pa.py_buffer(flat[n_equal : n_equal + len(group)])):
                break
            n_equal += len(group)
        return None if n_equal == len(flat) else "the values read back differ from the values written"

    parts = flat_parquet.encode(flat, row_group, {LOCATION: f"{folder.name}/{name}".encode()})
    return _commit(folder, name, parts, len(flat), check)


def write_bytes(folder: Path, name: str, content: bytes) -> FileRecord:
    """Commit bytes as `folder/name`."""
    return _commit(folder, name, [content], 0, lambda _: None)


def write_json(folder: Path, name: str, value: Any) -> FileRecord:
    """Commit a value as indented JSON."""
    return write_bytes(folder, name, encode_json(value))


def write_checksummed(folder: Path, name: str, value: dict[str, Any]) -> FileRecord:
    """Commit a mapping as JSON, with its own checksum under the key `sha256`."""
    return write_json(folder, name, {**value, "sha256": _checksum(value)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """The mapping that `write_checksummed` wrote. Raises ValueError for a checksum mismatch."""
    content = parse_json(read_bytes(path))
    if not isinstance(content, dict) or content.pop("sha256", None) != _checksum(content):
        raise ValueError("checksum mismatch")
    return content


def find_table_problem(table: pa.Table) -> str | None:
    """A null in a non-nullable column, a non-finite number or a duplicate key (see KEY), if any."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if not field.nullable and column.null_count:
            return f"{column.null_count} nulls in the column {field.name}"
        if pa.types.is_floating(field.type) and pc.all(pc.is_finite(column)).as_py() not in (True, None):
            return f"a non-finite value in the column {field.name}"
    key = key_columns(table.schema)
    if key and not _are_unique(table.select(key)):
        return f"two rows with the same {', '.join(key)}"
    return None


def _are_unique(rows: pa.Table) -> bool:
    if rows.num_rows < 2:
        return True
    # Columns of a single value distinguish no rows, and take as long as others.
    varied = [
        name
        for name, column in zip(rows.column_names, rows.columns, strict=True)
        if pc.all(pc.equal(column, column[0]), skip_nulls=False).as_py() is not True
    ]
    groups = rows.group_by(varied, use_threads=False).aggregate([])
    return bool(varied) and groups.num_rows == rows.num_rows


def key_columns(schema: pa.Schema) -> list[str]:
    """Names of the key columns of a table; empty if it has no key."""
    key = (schema.metadata or {}).get(KEY, b"").decode()
    return key.split(",") if key else []


def put_if_absent(folder: Path, name: str, content: bytes) -> bool:
    """Create a file unless it exists; of several concurrent writers, exactly one gets True."""
    final = folder / name
    if is_remote(final):
        with object_store(final) as (store, key):
            try:
                obstore.put(store, key, content, mode="create")
            except AlreadyExistsError:
                return False
        return True
    with _translate_os_errors(final), temporary_sibling(final) as temporary:
        try:
            _write(temporary, [content])
            os.link(temporary, final)
        except (FileExistsError, FileNotFoundError):
            # another writer was first, or the temporary file or its folder was removed
            return False
        fsync(final.parent)
    return True


def remove_temporary_files(folder: Path, pattern: str = "*") -> None:
    """Remove temporary files of killed writers from a folder. Not safe with concurrent writers."""
    if not is_remote(folder):
        for path in folder.glob(f"{pattern}{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, to be renamed to it when complete; removed otherwise."""
    _make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        yield temporary
    finally:
        # another run may have removed it
        temporary.unlink(missing_ok=True)


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """A temporary path for a user's file, renamed to it at the end.

    Raises:
        UserError: if the file already exists, or its folder does not.
    """
    if file.exists() or file.is_symlink():
        raise UserError(f"{file}: already exists; name another file")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}; create it first")
    with temporary_sibling(file) as temporary:
        yield temporary
        temporary.replace(file)


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _commit(
    folder: Path, name: str, parts: Sequence[Any], rows: int, check: Callable[[pa.Buffer], str | None]
) -> FileRecord:
    """Commit a file in parts, which may be large and are not concatenated."""
    final = folder / name
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    record = FileRecord(name, rows, sum(memoryview(part).nbytes for part in parts), digest.hexdigest())
    if is_remote(final):
        with object_store(final) as (store, key):
            obstore.put(store, key, b"".join(parts))
        _check(final, pa.py_buffer(read_bytes(final)), parts, check)
        return record
    with _translate_os_errors(final), temporary_sibling(final) as temporary:
        _write(temporary, parts)
        with pa.memory_map(str(temporary)) as file:
            _check(final, file.read_buffer(), parts, check)
        temporary.replace(final)
        fsync(final.parent)
    return record


def _check(
    final: Path, content: pa.Buffer, parts: Sequence[Any], check: Callable[[pa.Buffer], str | None]
) -> None:
    buffers = [pa.py_buffer(part) for part in parts]
    ends = list(accumulate(part.size for part in buffers))
    is_equal = content.size == ends[-1] and all(
        content[end - part.size : end].equals(part) for end, part in zip(ends, buffers, strict=True)
    )
    if not is_equal:
        raise StoreError(f"{final}: the bytes read back differ from the bytes written; check the disk")
    if problem := check(content):
        raise StoreError(f"{final}: {problem}")


def _write(path: Path, parts: Sequence[Any]) -> None:
    """Write a new file and flush it to disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for part in parts:
            remaining = memoryview(part).cast("B")
            while remaining:
                remaining = remaining[os.write(descriptor, remaining[:_CHUNK_BYTES]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush the new directory entries to disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync(folder.parent)


@contextmanager
def _translate_os_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full, read-only or failing disk into StoreErrors with advice."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            advice = "free disk space and rerun to resume"
        elif error.errno in _NO_PERMISSION:
            advice = "give this user write permission and rerun to resume"
        elif error.errno == errno.EIO:
            advice = "the disk is failing; fix it and rerun to resume"
        else:
            raise
        raise StoreError(f"{path}: {error.strerror}; {advice}") from error


def all_finite(values: AnyFloats) -> bool:
    """Whether all values are finite."""
    if values.dtype == np.float16:
        # NumPy computes float16 in software; as integers, signed or not, non-finite values are largest
        signed, unsigned = values.view(np.int16), values.view(np.uint16)
        return bool(signed.max(initial=0) < 0x7C00 and unsigned.max(initial=0) < 0xFC00)
    return bool(np.isfinite(values).all())


def encode_json(value: Any) -> bytes:
    """A value as indented JSON. Raises ValueError for NaN and infinities."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(encode_json(value)).hexdigest()
