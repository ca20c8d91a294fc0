"""Paths of a store: a folder, or a prefix in an object store (`s3://bucket/prefix`).

Local paths are `pathlib.Path`; remote paths are `UPath`, which has the same interface (`/`, `glob`,
`read_bytes`, `is_file`, ...) and reads through obstore. All other modules use `Path` for both; the
differences (atomic writes, access from DuckDB) are handled here and in `storage.store.commit`.

Credentials and endpoints come from the environment, for S3 from `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and `AWS_ENDPOINT_URL` (and `AWS_ALLOW_HTTP=true` without TLS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import duckdb
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import BaseError
from obstore.fsspec import register
from obstore.store import ObjectStore, from_url
from upath import UPath

from storage.errors import StoreError

PROTOCOLS = ("s3", "gs", "az")
_SEPARATOR = "://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_open_bucket = cache(from_url)

# at import: workers unpickle remote paths
register(list(PROTOCOLS))


def parse_store_path(text: str | Path, base: Path = Path()) -> Path:
    """Parse a store path from user input: an object-store URL, or a folder relative to `base`.

    Raises:
        StoreError: for an invalid URL or an unknown protocol.
    """
    if is_remote(text):
        return cast(Path, text)
    name = str(text)
    if _SEPARATOR not in name:
        return base / name
    protocol, _, rest = name.partition(_SEPARATOR)
    bucket, _, prefix = rest.rstrip("/").partition("/")
    parts = prefix.split("/") if prefix else []
    if protocol not in PROTOCOLS:
        raise StoreError(f"{name}: unknown protocol {protocol!r}; allowed: {', '.join(PROTOCOLS)}")
    if "@" in rest or "?" in rest:
        raise StoreError(
            f"{name}: a store's URL must not contain credentials or parameters; set them in the "
            "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.fullmatch(bucket) or any(part in ("", ".", "..") for part in parts):
        raise StoreError(f"{name}: invalid object-store URL; expected {protocol}://bucket/prefix")
    return cast(Path, UPath(f"{protocol}://{'/'.join([bucket, *parts])}"))


def is_remote(path: object) -> bool:
    """Whether a path is in an object store."""
    return isinstance(path, UPath)


@contextmanager
def object_store(path: Path) -> Iterator[tuple[ObjectStore, str]]:
    """The object store of a remote path, and the object's key in it. Its errors become StoreErrors."""
    try:
        yield locate_object(path)
    except BaseError as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(f"{path}: object store error: {reason}") from error


def locate_object(path: Path) -> tuple[ObjectStore, str]:
    """The object store of a remote path, and the object's key in it."""
    protocol, _, rest = str(path).partition(_SEPARATOR)
    bucket, _, key = rest.partition("/")
    return _open_bucket(f"{protocol}{_SEPARATOR}{bucket}"), key


def absolute_path(path: Path) -> str:
    """A path for DuckDB, independent of the working directory."""
    return str(path) if is_remote(path) else str(path.resolve())


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: if it does not exist.
        StoreError: if the object store reports an error.
    """
    if not is_remote(path):
        return path.read_bytes()
    with object_store(path) as (store, key):
        return bytes(obstore.get(store, key).bytes())


def read_parquet(path: Path) -> pa.Table:
    """The table of a Parquet file. Raises StoreError if it cannot be read."""
    with explain_read_errors(path):
        return pq.read_table(
            pa.BufferReader(read_bytes(path)) if is_remote(path) else path, partitioning=None
        )


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file opened for partial reads. Raises StoreError if it cannot be read."""
    with explain_read_errors(path):
        source = path.open("rb") if is_remote(path) else nullcontext(path)
        with source as file, pq.ParquetFile(file) as table:
            yield table


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn errors of a file that is missing or damaged into StoreErrors."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read: {error}; run `neuralign verify`") from error


def walk_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted; empty if the folder does not exist."""
    if not is_remote(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    with object_store(folder) as (store, prefix):
        keys = [item["path"] for page in obstore.list(store, prefix) for item in page]
    prefix_length = len(prefix) + 1 if prefix else 0
    return sorted(folder / key[prefix_length:] for key in keys)


def list_dir(folder: Path) -> list[Path]:
    """Files and folders in a folder, sorted; empty if the folder does not exist."""
    if not is_remote(folder):
        return sorted(folder.iterdir()) if folder.is_dir() else []
    with object_store(folder) as (store, prefix):
        listing = obstore.list_with_delimiter(store, prefix)
    names = [*listing["common_prefixes"], *(item["path"] for item in listing["objects"])]
    return sorted(folder / name.rstrip("/").rpartition("/")[2] for name in names)


def file_size(path: Path) -> int | None:
    """Size of a file in bytes; None if it does not exist."""
    try:
        if is_remote(path):
            with object_store(path) as (store, key):
                return int(obstore.head(store, key)["size"])
        return path.stat().st_size if path.is_file() else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def file_version(path: Path) -> object:
    """A value that changes with every change of a file; None if it does not exist."""
    try:
        if is_remote(path):
            with object_store(path) as (store, key):
                head = obstore.head(store, key)
            return head["e_tag"], head["last_modified"]
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove_file(path: Path) -> None:
    """Remove a file if it exists."""
    if is_remote(path):
        with suppress(FileNotFoundError), object_store(path) as (store, key):
            obstore.delete(store, key)
    else:
        path.unlink(missing_ok=True)


def remove_empty_folders(folder: Path) -> None:
    """Remove a folder and those below it as far as they are empty. Object stores have no folders."""
    if is_remote(folder):
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with suppress(OSError):
                path.rmdir()
    with suppress(OSError):
        folder.rmdir()


def register_with_duckdb(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> list[str]:
    """Give a DuckDB connection access to the paths; returns their names for its queries.

    Queries must use `hive_partitioning = false`: folder names are not columns.
    """
    remote = next((path for path in paths if is_remote(path)), None)
    if remote is not None:
        filesystem: Any = cast(UPath, remote).fs
        names = [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
        if not any(map(connection.filesystem_is_registered, names)):
            connection.register_filesystem(filesystem)
    return [absolute_path(path) for path in paths]
