"""Rows and cells of tables of words and numbers in CSV, TSV or Parquet files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import UserError
from storage.readers.concept_files import read_text

Column = str | int
"""A column by its name; or by its number from 1 on, of a file that does not name its columns."""

Table = tuple[list[str], Iterable[tuple[str, Sequence[Any]]]]
"""The names of the columns; and where each row stands, with its cells."""

_TABS = (".tsv", ".txt")


def read_cells(path: Path, wanted: Sequence[Column]) -> Iterator[tuple[str, list[str]]]:
    """Where each row stands, and its cells in the wanted columns; rows that are empty there are none.

    Raises UserError for a file that is missing, empty or without rows, and for a column that it has not
    or has twice.
    """
    numbered = [each for each in wanted if isinstance(each, int)]
    columns, rows = read_table(path, header=not numbered)
    if not columns:
        asked = "" if numbered else f"; its first line names the columns {_listed(wanted)}"
        raise UserError(f"{path}: is empty{asked}")
    places = [_place(path, columns, column) for column in wanted]
    there = False
    for where, cells in rows:
        found = [as_text(cells[place]) for place in places]
        if any(found):
            there = True
            yield where, found
    if not there:
        raise UserError(f"{path}: has no row below the names of its columns")


def read_table(path: Path, header: bool = True) -> Table:
    """A whole table. Without a `header` the columns are named by their numbers.

    The columns of a text file are apart by commas (.csv) or tabs (.tsv, .txt) or, where its first line
    has none of these, by semicolons or spaces.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".parquet":
        return _of_parquet(path)
    lines = read_text(path).splitlines()
    # some published files open with a line that says where they come from
    skipped = 1 if lines and lines[0].startswith("# The ") else 0
    first = lines[skipped] if len(lines) > skipped else ""
    reader = csv.reader(lines[skipped:], delimiter=_delimiter(path, first), skipinitialspace=True)
    if header:
        columns = [name.strip() for name in next(reader, [])]
    else:
        (cells,) = csv.reader([first], delimiter=reader.dialect.delimiter, skipinitialspace=True)
        columns = [str(number) for number in range(1, len(cells) + 1)]

    def rows() -> Iterator[tuple[str, Sequence[Any]]]:
        for row in reader:
            where = f"{path}: line {reader.line_num + skipped}"
            if row and len(row) != len(columns):
                raise UserError(f"{where}: not {len(columns)} columns")
            if row:
                yield where, row

    return columns, rows()


def as_text(cell: Any) -> str:
    """What stands in a cell; nothing where it is null."""
    return "" if cell is None else str(cell).strip()


def as_number(cell: Any, where: str, what: str) -> float:
    """The number in a cell; UserError for anything else, and where it is not finite."""
    try:
        # Python reads 1_0 as 10
        value = math.nan if "_" in str(cell) else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the {what} is {cell!r}; expected a number")
    return value


def _of_parquet(path: Path) -> Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no Parquet file: {error}") from error
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return table.column_names, ((f"{path}: row {n}", row) for n, row in enumerate(rows, 1))


def _delimiter(path: Path, first: str) -> str:
    own = "\t" if path.suffix in _TABS else ","
    return next((mark for mark in (own, "\t", ",", ";", " ") if mark in first), own)


def _place(path: Path, columns: list[str], column: Column) -> int:
    if isinstance(column, int):
        if column > len(columns):
            raise UserError(f"{path}: has no column {column}; there are {len(columns)}")
        return column - 1
    if column not in columns:
        raise UserError(
            f"{path}: has no column {column!r}; its columns are {_listed(columns)}. `columns` says "
            "which count: by number where the first line names none"
        )
    if columns.count(column) > 1:
        raise UserError(f"{path}: has {columns.count(column)} columns {column!r}")
    return columns.index(column)


def _listed(columns: Iterable[Column]) -> str:
    return ", ".join(map(str, columns))
