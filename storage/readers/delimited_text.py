"""Tables in delimited text (CSV, TSV and so on), whose delimiter is found in the contents."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from storage.errors import UserError
from storage.readers.cells import is_missing_number
from storage.readers.file_format import plain_suffix

_TAB_SUFFIXES = (".tsv", ".txt")
_MARKS = ("\t", ",", ";", "|")
_SAMPLE_ROWS = 50
_JSON = re.compile(r"\s*(\{|\[\s*[\[{\"])")

_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")

Record = tuple[int, list[str]]
"""The number of a record's last line, and its cells."""


@dataclass(frozen=True)
class _Layout:
    delimiter: str
    has_row_names: bool = False
    """Whether each row starts with a name for which the header has no column, as in R's write.table."""


def parse_delimited(path: Path, text: str, has_header: bool) -> tuple[list[str], Iterator[Record]]:
    """Names of the columns, which are numbered if there is no header, and the rows.

    The delimiter is the one that divides the first 50 rows into equally many cells, at least two: tab,
    comma, semicolon or |, else spaces. R's row names become a first column without a name; if they are
    row numbers, they are left out.

    Raises:
        UserError: naming the line, for a row with another number of cells or invalid quotes.
    """
    # some published files start with a line about their source
    skipped = 1 if text.startswith("# The ") else 0
    table = text.partition("\n")[2] if skipped else text
    if _JSON.match(table):
        raise UserError(f"{path}: is JSON; use JSON Lines, one object per line, with the suffix .jsonl")
    layout = _detect_layout(path, table, has_header)
    records = _number_lines(path, table, layout.delimiter, skipped)
    if not has_header:
        first = next(_parse(table, layout.delimiter), (0, []))[1]
        columns = [str(number) for number in range(1, len(first) + 1)]
        return columns, _check_widths(path, records, len(columns))
    columns = [name.strip() for name in next(records, (0, []))[1]]
    if not layout.has_row_names:
        return columns, _check_widths(path, records, len(columns))
    rows = _check_row_names(path, _check_widths(path, records, len(columns) + 1))
    sample = _sample(table, layout.delimiter)[1:]
    if all(row[0].isdecimal() for row in sample):
        return columns, ((line, row[1:]) for line, row in rows)
    return ["", *columns], rows


def _detect_layout(path: Path, text: str, has_header: bool) -> _Layout:
    default = "\t" if plain_suffix(path) in _TAB_SUFFIXES else ","
    marks = list(dict.fromkeys((default, *_MARKS)))
    samples = {mark: _sample(text, mark) for mark in (*marks, " ")}
    widths = {mark: len(rows[0]) for mark, rows in samples.items() if _is_regular(rows)}
    if regular := [mark for mark in marks if mark in widths]:
        return _Layout(max(regular, key=lambda mark: widths[mark]))
    if " " in widths:
        return _Layout(" ")
    for mark, rows in samples.items():
        if has_header and _has_row_names(rows):
            return _Layout(mark, has_row_names=True)
    first_line = next(iter(text.splitlines()), "")
    return _Layout(next((mark for mark in (*marks, " ") if mark in first_line), default))


def _sample(text: str, delimiter: str) -> list[list[str]]:
    """The cells of the first rows; none if the quotes are invalid with this delimiter."""
    try:
        return [row for _, row in islice(_parse(text, delimiter), _SAMPLE_ROWS)]
    except csv.Error:
        return []


def _is_regular(rows: Sequence[Sequence[str]]) -> bool:
    return len({len(row) for row in rows}) == 1 and len(rows[0]) > 1


def _has_row_names(rows: Sequence[Sequence[str]]) -> bool:
    return (
        len(rows) > 1
        and {len(row) for row in rows[1:]} == {len(rows[0]) + 1}
        and all(map(_is_named_row, rows[1:]))
    )


def _is_named_row(row: Sequence[str]) -> bool:
    """Whether the first cell is a row name, not an item: a row number, or a name before numbers only."""
    return row[0].isdecimal() or all(map(_is_number, row[1:]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return is_missing_number(cell)
    return True


def _parse(text: str, delimiter: str) -> Iterator[Record]:
    # not io.StringIO, which takes four bytes per character
    lines = (match.group() for match in _LINE.finditer(text))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    for row in reader:
        if len(row) > 1 or (row and row[0].strip()):
            yield reader.line_num, row


def _number_lines(path: Path, text: str, delimiter: str, skipped: int) -> Iterator[Record]:
    records = _parse(text, delimiter)
    line = skipped
    while True:
        try:
            record = next(records, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise UserError(
                    f"{path}: after line {line}: a cell has more than {csv.field_size_limit():,} "
                    "characters; is a quote missing?"
                ) from error
            raise UserError(f"{path}: is not a CSV file: after line {line}: {error}") from error
        if record is None:
            return
        line = record[0] + skipped
        yield line, record[1]


def _check_widths(path: Path, records: Iterable[Record], width: int) -> Iterator[Record]:
    for line, row in records:
        if len(row) != width:
            raise UserError(f"{path}: line {line}: expected {width} columns, got {len(row)}")
        yield line, row


def _check_row_names(path: Path, records: Iterable[Record]) -> Iterator[Record]:
    seen = set()
    for line, row in records:
        if row[0] in seen or not _is_named_row(row):
            raise UserError(
                f"{path}: line {line}: expected {len(row) - 1} columns, got {len(row)}, and {row[0]!r} "
                "is not the name of a row"
            )
        seen.add(row[0])
        yield line, row
