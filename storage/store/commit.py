"""The file that is there is whole.

On a disk every file of a store is written under a temporary name in its own folder, flushed to the
disk, read back and checked, and only then renamed to its final name, which depends on nothing but what
the file holds. An object store shows an object only when all of it has arrived, so there the put under
the final name is the rename; what was put is read back and checked too. A reader never sees half a file;
work that is done twice writes the same name twice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError, BaseError

from storage.errors import StoreError
from storage.store import flat_parquet
from storage.store.paths import is_remote, locate, read_bytes, unreachable

TEMPORARY_SUFFIX = ".tmp"
KEY = b"key"
"""Metadata of a schema: the names of the columns that tell its rows apart, with commas between."""

PLACE = b"place"
"""Metadata of a file of values: the stage's folder and its path in there."""

_CHUNK = 16 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


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
    """Commit an Arrow table as `folder/name`, compressed with zstd.

    Raises StoreError for rows that `table_problem` finds wrong.
    """

    if problem := table_problem(table):
        raise StoreError(f"{folder / name}: {problem}")

    def check(found: pa.Buffer) -> str | None:
        read = pq.read_table(pa.BufferReader(found))
        if read.num_rows != table.num_rows:
            return f"{read.num_rows} rows read back, {table.num_rows} written"
        if not read.schema.equals(table.schema) or key_columns(read.schema) != key_columns(table.schema):
            return "the schema read back is not the schema written"
        return None if read.equals(table) else "the rows read back are not the rows written"

    content = _parquet(table, compression="zstd")
    return _commit(folder, name, [content], table.num_rows, check)


def write_values(
    folder: Path, name: str, values: npt.NDArray[np.floating[Any]], row_group: int
) -> FileRecord:
    """Commit a flat array as the one column `value`, `row_group` rows a group. Nothing in such a file
    tells whose numbers these are, so it says where it belongs (see PLACE).

    Raises StoreError when a value is not finite: an activation that overflowed must never become a
    number that looks right.
    """
    if not all_finite(values):
        raise StoreError(f"{folder / name}: {int((~np.isfinite(values)).sum())} values not finite")
    flat = values.ravel()

    def check(found: pa.Buffer) -> str | None:
        same = pa.py_buffer(flat_parquet.decode(found)).equals(pa.py_buffer(flat))
        return None if same else "other values read back than written"

    parts = flat_parquet.encode(flat, row_group, {PLACE: f"{folder.name}/{name}".encode()})
    return _commit(folder, name, parts, len(flat), check)


def write_bytes(folder: Path, name: str, content: bytes) -> FileRecord:
    """Commit bytes as `folder/name`."""
    return _commit(folder, name, [content], 0, lambda _: None)


def write_json(folder: Path, name: str, value: Any) -> FileRecord:
    """Commit a value as indented JSON."""
    return write_bytes(folder, name, as_json(value))


def write_sealed(folder: Path, name: str, value: dict[str, Any]) -> FileRecord:
    """Commit a mapping as JSON with a checksum of itself under the key `sha256`."""
    return write_json(folder, name, {**value, "sha256": _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote. Raises ValueError when it is not what was written."""
    content = json.loads(read_bytes(path))
    if not isinstance(content, dict) or content.pop("sha256", None) != _seal(content):
        raise ValueError("its checksum is wrong")
    return content


def table_problem(table: pa.Table) -> str | None:
    """What is wrong with a table's rows: a null where none may be, a number that is not finite, a key
    that stands twice (see KEY). None when all is well."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if not field.nullable and column.null_count:
            return f"{column.null_count} nulls in the column {field.name}"
        if pa.types.is_floating(field.type) and pc.all(pc.is_finite(column)).as_py() not in (True, None):
            return f"a value that is not finite in the column {field.name}"
    key = key_columns(table.schema)
    if key and table.group_by(key, use_threads=False).aggregate([]).num_rows != table.num_rows:
        return f"two rows with the same {', '.join(key)}"
    return None


def key_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that tell the rows of a table apart; none when nothing does."""
    key = (schema.metadata or {}).get(KEY, b"").decode()
    return key.split(",") if key else []


def put_if_absent(folder: Path, name: str, content: bytes) -> bool:
    """Put a file there unless one of that name is there: of several writers just one is told True."""
    final = folder / name
    if is_remote(final):
        store, key = locate(final)
        try:
            obstore.put(store, key, content, mode="create")
        except AlreadyExistsError:
            return False
        except BaseError as error:
            raise unreachable(final, error) from error
        return True
    with _explained(final), temporary_sibling(final) as temporary:
        _write(temporary, [content])
        try:
            os.link(temporary, final)
        except (FileExistsError, FileNotFoundError):
            # another was first; who is first may also sweep what the others left
            return False
        sync(final.parent)
    return True


def sweep_temporary(folder: Path, pattern: str = "*") -> None:
    """Remove the temporary files that writers who were killed left in a folder. Only for the one who
    works there alone; an object store has none."""
    if not is_remote(folder):
        for path in folder.glob(f"{pattern}{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """A name beside `path` for work that is renamed to `path` when it is whole; removed if left."""
    _make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        yield temporary
    finally:
        # another run may sweep it first
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _commit(
    folder: Path, name: str, parts: Sequence[Any], rows: int, check: Callable[[pa.Buffer], str | None]
) -> FileRecord:
    """Commit a file of some parts, one after another: they may be large, and are not put together."""
    final = folder / name
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    record = FileRecord(name, rows, sum(memoryview(part).nbytes for part in parts), digest.hexdigest())
    if is_remote(final):
        _put(final, b"".join(parts))
        _check(final, pa.py_buffer(read_bytes(final)), parts, check)
        return record
    with _explained(final), temporary_sibling(final) as temporary:
        _write(temporary, parts)
        with pa.memory_map(str(temporary)) as file:
            _check(final, file.read_buffer(), parts, check)
        temporary.replace(final)
        sync(final.parent)
    return record


def _check(
    final: Path, found: pa.Buffer, parts: Sequence[Any], check: Callable[[pa.Buffer], str | None]
) -> None:
    written = [pa.py_buffer(part) for part in parts]
    ends = list(accumulate(part.size for part in written))
    same = all(
        found[end - part.size : end].equals(part) for end, part in zip(ends, written, strict=True)
    )
    if not same or found.size != ends[-1]:
        raise StoreError(f"{final}: the bytes read back are not the bytes written; check the disk")
    if problem := check(found):
        raise StoreError(f"{final}: {problem}")


def _put(final: Path, content: bytes) -> None:
    store, key = locate(final)
    try:
        obstore.put(store, key, content)
    except BaseError as error:
        raise unreachable(final, error) from error


def _write(path: Path, parts: Sequence[Any]) -> None:
    """Write a new file and flush it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for part in parts:
            left = memoryview(part).cast("B")
            while left:
                left = left[os.write(descriptor, left[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, and flush the names of the new ones to the disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say what to do where the disk does not take what is written."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            what = "make space and run the same again: it goes on from what is committed"
        elif error.errno in _NO_RIGHT:
            what = "give this user the right to write there and run the same again"
        elif error.errno == errno.EIO:
            what = "the disk fails; mend it and run the same again"
        else:
            raise
        raise StoreError(f"{path}: {error.strerror}; {what}") from error


def all_finite(values: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether no value is infinite or not a number."""
    if values.dtype == np.float16:
        # NumPy computes with float16 in software. As whole numbers, those that are not finite are the
        # greatest with a sign and without one.
        signed, unsigned = values.view(np.int16), values.view(np.uint16)
        return bool(signed.max(initial=0) < 0x7C00 and unsigned.max(initial=0) < 0xFC00)
    return bool(np.isfinite(values).all())


def _parquet(table: pa.Table, **settings: Any) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **settings)
    return sink.getvalue()


def as_json(value: Any) -> bytes:
    """A value as indented JSON. Raises ValueError for a number that is none."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(as_json(value)).hexdigest()
