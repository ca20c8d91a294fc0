"""What is kept: layout, schemas, atomic commits, readers of outside formats, DuckDB views."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

__version__ = "0.1.0"


def open(store: str) -> duckdb.DuckDBPyConnection:  # noqa: A001
    """A DuckDB connection with the views of a store, which is a folder or `s3://bucket/prefix`; see
    docs/tables.md. It can read the store and nothing else.

    Raises `storage.errors.StoreError` when there is no store of this version.
    """
    from storage.database import open_store
    from storage.store.paths import place

    return open_store(place(store))
