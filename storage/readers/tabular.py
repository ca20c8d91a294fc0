"""Tables in delimited text, JSON Lines or Parquet: rows and cells, for all readers of users' tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import UserError
from storage.readers.cells import cell_text
from storage.readers.delimited_text import parse_delimited
from storage.readers.file_format import detect_format, open_file, plain_suffix, read_text
from storage.readers.strict_json import parse_json

ColumnRef = str | int
"""A column by its name or, in a file without column names, by its number from 1."""

Row = tuple[str, Sequence[Any]]
"""The location of a row in its file ("line 7") and its cells."""


@dataclass(frozen=True)
class Table:
    """The columns of a file, and a function from indices of columns to the rows' cells in them.

    The function can be called once.
    """

    path: Path
    columns: list[str]
    select: Callable[[Sequence[int]], Iterable[Row]]

    def find_column(self, column: ColumnRef, advice: str) -> int:
        """Index of a column. Raises UserError, with advice, if it is missing or not unique."""
        names = self.columns
        if isinstance(column, int):
            if column > len(names):
                raise UserError(f"{self.path}: has no column {column}, only {len(names)}")
            return column - 1
        if column not in names:
            known = _join(names) or "none"
            raise UserError(f"{self.path}: has no column {column!r}; its columns are {known}{advice}")
        if names.count(column) > 1:
            raise UserError(f"{self.path}: has {names.count(column)} columns {column!r}")
        return names.index(column)


def open_table(path: Path, has_header: bool = True) -> Table:
    """The table in a file. Columns of delimited text without a header are named by their numbers.

    Raises:
        UserError: if the file is missing or not a table, naming its format.
    """
    found = detect_format(path)
    if found == "parquet":
        return _open_parquet(path)
    text = read_text(path)
    if plain_suffix(path) == ".jsonl":
        return _open_json_lines(path, text)
    columns, records = parse_delimited(path, text, has_header)
    return Table(
        path,
        columns,
        lambda indices: ((f"line {line}", [row[i] for i in indices]) for line, row in records),
    )


def read_columns(path: Path, columns: Sequence[ColumnRef]) -> Iterator[tuple[str, list[str]]]:
    """The location of each row and its cells in the given columns; rows without any are skipped.

    Raises:
        UserError: if the file is missing or has no rows, or a column is missing or duplicated.
    """
    has_header = not any(isinstance(column, int) for column in columns)
    table = open_table(path, has_header)
    if not table.columns:
        advice = f"; the first line must name the columns {_join(columns)}" if has_header else ""
        raise UserError(f"{path}: is empty{advice}")
    advice = ". Set `columns`, by number if the first line has no column names"
    indices = [table.find_column(column, advice) for column in columns]
    names = [table.columns[index] for index in indices]
    is_empty = True
    for location, row in table.select(indices):
        where = f"{path}: {location}"
        cells = [cell_text(cell, where, name) for cell, name in zip(row, names, strict=True)]
        if any(cells):
            is_empty = False
            yield where, cells
    if is_empty:
        raise UserError(f"{path}: has no rows below the column names")


def _open_parquet(path: Path) -> Table:
    try:
        with open_file(path) as file, pq.ParquetFile(file) as parquet:
            table = parquet.read()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not a Parquet file: {reason}") from error

    def select(indices: Sequence[int]) -> Iterator[Row]:
        cells = [_parquet_cells(path, table, index) for index in indices]
        for number, row in enumerate(zip(*cells, strict=True), 1):
            yield f"row {number}", row

    return Table(path, table.column_names, select)


def _parquet_cells(path: Path, table: pa.Table, index: int) -> list[Any]:
    try:
        cells: list[Any] = table.column(index).to_pylist()
    # invalid UTF-8, or times that Python cannot represent
    except (pa.ArrowException, ValueError, OverflowError) as error:
        name = table.column_names[index]
        raise UserError(f"{path}: cannot read {name!r} as text or numbers: {error}") from error
    return cells


def _open_json_lines(path: Path, text: str) -> Table:
    columns: dict[str, None] = {}
    objects: list[tuple[int, dict[str, Any]]] = []
    problems: list[str] = []
    # not splitlines, which also splits at characters that JSON may contain
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            problems.append(f"line {number}: invalid JSON: {error}")
            continue
        if not isinstance(value, dict):
            problems.append(f"line {number}: not an object")
            continue
        columns.update(dict.fromkeys(value))
        objects.append((number, value))
    if problems:
        raise UserError(f"{path}: {len(problems)} lines cannot be read; first: {problems[0]}")
    names = list(columns)
    return Table(
        path,
        names,
        lambda indices: (
            (f"line {number}", [value.get(names[index]) for index in indices])
            for number, value in objects
        ),
    )


def _join(columns: Iterable[ColumnRef]) -> str:
    return ", ".join(map(str, columns))
