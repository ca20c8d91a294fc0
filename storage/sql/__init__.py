"""SQL queries, one per file, and helpers to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage.store.paths import register_with_duckdb


def read_query(name: str) -> str:
    """The text of a query."""
    return (files(__package__) / f"{name}.sql").read_text(encoding="utf-8")


def create_table(
    connection: duckdb.DuckDBPyConnection, name: str, columns: Mapping[str, Sequence[Any]]
) -> None:
    """Create a table from columns."""
    rows = pa.table({column: pa.array(values) for column, values in columns.items()})
    connection.from_arrow(rows).create(name)


def scan_parquet(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]
) -> duckdb.DuckDBPyRelation:
    """The rows of Parquet files on any file system."""
    names = register_with_duckdb(connection, paths)
    return connection.from_parquet(names, hive_partitioning=False)
