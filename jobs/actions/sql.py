"""`neuralign sql`: query results as a table, CSV or JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv

from jobs.actions.output import stdout_console, text_table
from storage.database import open_store, run_query
from storage.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")

_VIEWS = """
SELECT table_name AS "view", string_agg(column_name, ', ' ORDER BY column_index) AS columns
FROM duckdb_columns() WHERE NOT internal GROUP BY table_name ORDER BY table_name
"""


def print_rows(store: Path, query: str | None, output_format: str) -> None:
    """Print the rows of a query; without a query, the views and their columns."""
    if query and _SURROGATE.search(query):
        raise UserError("QUERY: is not valid UTF-8")
    with open_store(store) as connection:
        rows = run_query(connection, query or _VIEWS)
    rows = rows.rename_columns(_unique_names(rows.column_names))
    if output_format == "csv":
        pyarrow.csv.write_csv(_flatten(rows), sys.stdout.buffer)
    elif output_format == "json":
        records = [{name: _json_value(value) for name, value in row.items()} for row in _records(rows)]
        print(json.dumps(records, indent=1, default=str, allow_nan=False))
    else:
        console = stdout_console()
        alignment = [
            "r" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else "l"
            for field in rows.schema
        ]
        cells = (map(_format_cell, row.values()) for row in _records(rows))
        console.print(text_table(alignment, rows.column_names, cells))
        console.print(f"{rows.num_rows:,} rows")


def _records(rows: pa.Table) -> list[dict[str, Any]]:
    """The rows as dictionaries. Raises UserError for a date or time that Python cannot represent."""
    try:
        return cast(list[dict[str, Any]], rows.to_pylist())
    except (OverflowError, ValueError) as error:
        raise UserError(
            f"a date or time is not in the years 1 to 9999 ({error}); cast it to VARCHAR"
        ) from error


def _unique_names(names: list[str]) -> list[str]:
    """Column names, with a number appended to repeated ones."""
    counts = [names[: index + 1].count(name) for index, name in enumerate(names)]
    return [name if n == 1 else f"{name}_{n}" for name, n in zip(names, counts, strict=True)]


def _flatten(rows: pa.Table) -> pa.Table:
    """Nested values as JSON text, since a CSV cell holds one value, and bytes in hexadecimal."""
    columns = [
        column if _is_plain(column.type) else pa.array(map(_cell_text, column.to_pylist()), pa.string())
        for column in rows.columns
    ]
    return pa.table(columns, names=rows.column_names)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Arrow writes values of a type into CSV."""
    return any(
        is_kind(kind)
        for is_kind in (
            *(pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal),
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_null),
            *(pa.types.is_date, pa.types.is_time, pa.types.is_timestamp),
        )
    )


def _cell_text(value: Any) -> str | None:
    """A value as the text of a CSV cell."""
    plain = _json_value(value)
    return plain if plain is None or isinstance(plain, str) else json.dumps(plain, default=str)


def _json_value(value: Any) -> Any:
    """JSON has no NaN, no bytes, and only text as keys."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    return value


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
