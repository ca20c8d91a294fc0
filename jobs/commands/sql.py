"""Answers to SQL, as a table, CSV or JSON."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from storage.database import ask, open_store

_VIEWS = """
SELECT table_name AS "view", string_agg(column_name, ', ' ORDER BY column_index) AS columns
FROM duckdb_columns() WHERE NOT internal GROUP BY table_name ORDER BY table_name
"""


def print_rows(console: Console, store: Path, query: str | None, form: str) -> None:
    """Print what a query gives; without a query, the views and their columns."""
    with open_store(store) as connection:
        rows = ask(connection, query or _VIEWS)
    rows = rows.rename_columns(_told_apart(rows.column_names))
    if form == "csv":
        pyarrow.csv.write_csv(_flat(rows), sys.stdout.buffer)
    elif form == "json":
        plain = [{name: _plain(value) for name, value in row.items()} for row in rows.to_pylist()]
        print(json.dumps(plain, indent=1, default=str, allow_nan=False))
    else:
        console.print(_table(rows))
        console.print(f"{rows.num_rows:,} rows")


def _told_apart(names: list[str]) -> list[str]:
    """Names of columns, numbered where a query gives one twice."""
    seen: Counter[str] = Counter()
    told = []
    for name in names:
        seen[name] += 1
        told.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return told


def _flat(rows: pa.Table) -> pa.Table:
    """Lists and the like as JSON text, since a cell of CSV holds one value."""
    columns = [
        pa.array([json.dumps(value, default=str) for value in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in rows.columns
    ]
    return pa.table(columns, names=rows.column_names)


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(rows: pa.Table) -> Table:
    table = Table(box=None, pad_edge=False)
    for field in rows.schema:
        numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        table.add_column(escape(field.name), justify="right" if numeric else "left", overflow="fold")
    for row in rows.to_pylist():
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
