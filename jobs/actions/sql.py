"""`neuralign sql`: query results as a table, CSV or JSON."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from jobs.actions.output import stdout_console, text_table
from storage.database import open_store, run_query

_VIEWS = """
SELECT table_name AS "view", string_agg(column_name, ', ' ORDER BY column_index) AS columns
FROM duckdb_columns() WHERE NOT internal GROUP BY table_name ORDER BY table_name
"""


def print_rows(store: Path, query: str | None, output_format: str) -> None:
    """Print the rows of a query; without a query, the views and their columns."""
    with open_store(store) as connection:
        rows = run_query(connection, query or _VIEWS)
    rows = rows.rename_columns(_unique_names(rows.column_names))
    if output_format == "csv":
        pyarrow.csv.write_csv(_flatten(rows), sys.stdout.buffer)
    elif output_format == "json":
        records = [{name: _json_value(value) for name, value in row.items()} for row in rows.to_pylist()]
        print(json.dumps(records, indent=1, default=str, allow_nan=False))
    else:
        console = stdout_console()
        alignment = [
            "r" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else "l"
            for field in rows.schema
        ]
        cells = (map(_format_cell, row.values()) for row in rows.to_pylist())
        console.print(text_table(alignment, rows.column_names, cells))
        console.print(f"{rows.num_rows:,} rows")


def _unique_names(names: list[str]) -> list[str]:
    """Column names, with a number appended to repeated ones."""
    counts = [names[: index + 1].count(name) for index, name in enumerate(names)]
    return [name if n == 1 else f"{name}_{n}" for name, n in zip(names, counts, strict=True)]


def _flatten(rows: pa.Table) -> pa.Table:
    """Nested values as JSON text, since a CSV cell holds one value."""
    columns = [
        pa.array([json.dumps(value, default=str) for value in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in rows.columns
    ]
    return pa.table(columns, names=rows.column_names)


def _json_value(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
