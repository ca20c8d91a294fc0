"""Where a store is: a folder on a disk, or a prefix in an object store (`s3://bucket/prefix`).

Both are paths. On a disk they are `pathlib.Path`; in an object store they are `UPath`, which answers
to the same names (`/`, `glob`, `read_bytes`, `is_file`, ...) and reads through obstore. The rest of
neuralign says `Path` for both and never asks which it is; what differs (how a file is put there, what
DuckDB needs to read it) is in this module and in `storage.store.commit`.

Credentials and endpoint of an object store come from where its own tools look for them, for S3
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL` (and `AWS_ALLOW_HTTP=true`
for one without TLS).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
_MARK = "://"

# at import, so that a path that a worker is sent can be read there
register(list(PROTOCOLS))


def place(text: str | Path, base: Path = Path()) -> Path:
    """The place that a user names: a URL of an object store, or a folder, relative to `base`.

    Raises StoreError for a URL of a kind that is not known.
    """
    if is_remote(text):
        return cast(Path, text)
    name = str(text)
    if _MARK not in name:
        return base / name
    protocol, _, rest = name.partition(_MARK)
    bucket, _, prefix = rest.rstrip("/").partition("/")
    parts = prefix.split("/") if prefix else []
    if protocol not in PROTOCOLS:
        raise StoreError(f"{name}: unknown kind of store {protocol!r}; allowed: {', '.join(PROTOCOLS)}")
    if not bucket or any(part in ("", ".", "..") for part in parts):
        raise StoreError(f"{name}: is no place in a bucket; expected {protocol}://bucket/prefix")
    return cast(Path, UPath(f"{protocol}://{'/'.join([bucket, *parts])}"))


def is_remote(path: object) -> bool:
    """Whether a path is in an object store."""
    return isinstance(path, UPath)


def locate(path: Path) -> tuple[ObjectStore, str]:
    """The object store of a remote path, and the object's name in it."""
    protocol, _, rest = str(path).partition(_MARK)
    bucket, _, key = rest.partition("/")
    return _bucket(f"{protocol}{_MARK}{bucket}"), key


def absolute(path: Path) -> str:
    """A path as DuckDB takes it, the same from every working folder."""
    return str(path) if is_remote(path) else str(path.resolve())


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises FileNotFoundError, and StoreError when the object store does not
    answer."""
    if not is_remote(path):
        return path.read_bytes()
    store, key = locate(path)
    try:
        return bytes(obstore.get(store, key).bytes())
    except BaseError as error:
        raise unreachable(path, error) from error


def read_table(path: Path) -> pa.Table:
    """The table of a Parquet file. Raises StoreError when it cannot be read."""
    try:
        return pq.read_table(
            pa.BufferReader(read_bytes(path)) if is_remote(path) else path, partitioning=None
        )
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file to be read part by part. Raises StoreError when it cannot be read."""
    try:
        if is_remote(path):
            with path.open("rb") as file, pq.ParquetFile(file) as table:
                yield table
        else:
            with pq.ParquetFile(path) as table:
                yield table
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, in the order of their names; none where there is no folder."""
    if not is_remote(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    store, prefix = locate(folder)
    try:
        found = [each["path"] for page in obstore.list(store, prefix) for each in page]
    except BaseError as error:
        raise unreachable(folder, error) from error
    skipped = len(prefix) + 1 if prefix else 0
    return sorted(folder / key[skipped:] for key in found)


def entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, in the order of their names; none where there is no folder."""
    if not is_remote(folder):
        return sorted(folder.iterdir()) if folder.is_dir() else []
    store, prefix = locate(folder)
    try:
        found = obstore.list_with_delimiter(store, prefix)
    except BaseError as error:
        raise unreachable(folder, error) from error
    names = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
    return sorted(folder / name.rstrip("/").rpartition("/")[2] for name in names)


def size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        if is_remote(path):
            store, key = locate(path)
            return int(obstore.head(store, key)["size"])
        return path.stat().st_size if path.is_file() else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BaseError as error:
        raise unreachable(path, error) from error


def remove(path: Path) -> None:
    """Remove a file; nothing when it is not there."""
    if is_remote(path):
        store, key = locate(path)
        try:
            obstore.delete(store, key)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise unreachable(path, error) from error
    else:
        path.unlink(missing_ok=True)


def let_read(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> list[str]:
    """Make a DuckDB connection able to read the paths, and give their names for its queries, which must
    read them with `hive_partitioning = false`: names of folders are no columns."""
    remote = next((path for path in paths if is_remote(path)), None)
    if remote is not None:
        filesystem: Any = cast(UPath, remote).fs
        if not any(connection.filesystem_is_registered(name) for name in _names(filesystem)):
            connection.register_filesystem(filesystem)
    return [absolute(path) for path in paths]


def unreachable(path: Path, error: BaseException) -> StoreError:
    """What to tell of an object store that does not do what it is asked."""
    return StoreError(f"{path}: the object store says: {' '.join(str(error).split())[:300]}")


def _names(filesystem: Any) -> Sequence[str]:
    protocol = filesystem.protocol
    return [protocol] if isinstance(protocol, str) else list(protocol)


@cache
def _bucket(url: str) -> ObjectStore:
    return from_url(url)
