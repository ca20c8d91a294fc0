"""The SQL of neuralign, one query a file, and what it takes to run one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import duckdb
import pyarrow as pa


def query(name: str) -> str:
    """Text of the query `name`."""
    return (files(__package__) / f"{name}.sql").read_text(encoding="utf-8")


def provide(
    connection: duckdb.DuckDBPyConnection, name: str, columns: Mapping[str, Sequence[Any]]
) -> None:
    """Make columns a table that queries can read."""
    rows = pa.table({column: pa.array(values) for column, values in columns.items()})
    connection.from_arrow(rows).create(name)
