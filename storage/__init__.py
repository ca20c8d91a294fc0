"""Storage: layout, table definitions, atomic commits, readers of external formats, DuckDB views."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def open(store: str) -> duckdb.DuckDBPyConnection:  # noqa: A001
    """A read-only DuckDB connection with the views of a store (see docs/tables.md).

    `store` is a folder or `s3://bucket/prefix`.

    Raises:
        storage.errors.StoreError: if it is not a store of this version.
    """
    from storage.database import open_store
    from storage.store.paths import parse_store_path

    return open_store(parse_store_path(store))
