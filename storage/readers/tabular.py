"""Rows and cells of tables of words and numbers in CSV, TSV or Parquet files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.readers.concept_files import read_parquet_file, read_text

ColumnRef = str | int
"""A column by its name or, in a file without column names, by its number from 1."""

TabularData = tuple[list[str], Iterable[tuple[str, Sequence[Any]]]]
"""The column names; and the location of each row with its cells."""

_TAB_SUFFIXES = (".tsv", ".txt")


def read_columns(path: Path, columns: Sequence[ColumnRef]) -> Iterator[tuple[str, list[str]]]:
    """The location of each row and its cells in the given columns; rows without any are skipped.

    Raises:
        UserError: if the file is missing or has no rows, or a column is missing or duplicated.
    """
    has_header = not any(isinstance(column, int) for column in columns)
    names, rows = open_tabular(path, has_header)
    if not names:
        advice = f"; the first line must name the columns {_join(columns)}" if has_header else ""
        raise UserError(f"{path}: is empty{advice}")
    indices = [_find_column(path, names, column) for column in columns]
    is_empty = True
    for where, row in rows:
        cells = [cell_text(row[index]) for index in indices]
        if any(cells):
            is_empty = False
            yield where, cells
    if is_empty:
        raise UserError(f"{path}: has no rows below the column names")


def open_tabular(path: Path, has_header: bool = True) -> TabularData:
    """The rows of a table. Without a header, columns are named by their numbers.

    The delimiter of a text file is the comma (.csv) or the tab (.tsv, .txt) or, if its first line has
    neither, the semicolon or the space.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".parquet":
        table = read_parquet_file(path)
        numbered = enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True), 1)
        return table.column_names, ((f"{path}: row {number}", row) for number, row in numbered)
    lines = read_text(path).splitlines()
    # some published files start with a line about their source
    skipped = 1 if lines and lines[0].startswith("# The ") else 0
    first = lines[skipped] if len(lines) > skipped else ""
    reader = csv.reader(lines[skipped:], delimiter=_delimiter(path, first), skipinitialspace=True)
    if has_header:
        columns = [name.strip() for name in next(reader, [])]
    else:
        (cells,) = csv.reader([first], delimiter=reader.dialect.delimiter, skipinitialspace=True)
        columns = [str(number) for number in range(1, len(cells) + 1)]

    def rows() -> Iterator[tuple[str, Sequence[Any]]]:
        for row in reader:
            where = f"{path}: line {reader.line_num + skipped}"
            if row and len(row) != len(columns):
                raise UserError(f"{where}: expected {len(columns)} columns, got {len(row)}")
            if row:
                yield where, row

    return columns, rows()


def cell_text(cell: Any) -> str:
    """The text of a cell; empty for null."""
    return "" if cell is None else str(cell).strip()


def cell_number(cell: Any, where: str, what: str) -> float:
    """The number in a cell. Raises UserError for anything else and for non-finite numbers."""
    try:
        # Python reads 1_0 as 10
        value = math.nan if "_" in str(cell) else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the {what} is {cell!r}; expected a number")
    return value


def _delimiter(path: Path, first: str) -> str:
    default = "\t" if path.suffix in _TAB_SUFFIXES else ","
    return next((mark for mark in (default, "\t", ",", ";", " ") if mark in first), default)


def _find_column(path: Path, columns: list[str], column: ColumnRef) -> int:
    if isinstance(column, int):
        if column > len(columns):
            raise UserError(f"{path}: has no column {column}, only {len(columns)}")
        return column - 1
    if column not in columns:
        raise UserError(
            f"{path}: has no column {column!r}; its columns are {_join(columns)}. Set `columns`, by "
            "number if the first line has no column names"
        )
    if columns.count(column) > 1:
        raise UserError(f"{path}: has {columns.count(column)} columns {column!r}")
    return columns.index(column)


def _join(columns: Iterable[ColumnRef]) -> str:
    return ", ".join(map(str, columns))
