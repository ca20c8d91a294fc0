"""Rows of a concept set in CSV, JSON Lines or Parquet files, or in folders in the format of ml-selfcond.

A folder has `concept_list.csv` (columns group, concept) and GROUP/CONCEPT.json, which holds
`sentences.positive` and `sentences.negative`. Concepts are named by word and WordNet sense
(football-1_04_00__); the group becomes the domain.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import UserError

COLUMNS = ("concept", "text", "domain", "sense", "pos", "source", "prompt", "role")
_CONCEPT_LIST = "concept_list.csv"
_SENSE_KEY = re.compile(r"^(?P<word>.+)-(?P<kind>\d)_(?P<file>\d\d)_(?P<number>\d\d)__(?P<rest>\w*)$")
_UNSUPPORTED = "unsupported format; use .csv, .jsonl, .parquet or a folder"

Rows = list[tuple[str, dict[str, str]]]
"""The location of each row in its file ("line 7") and its values, empty if missing."""


def read_concept_rows(
    path: Path, columns: Mapping[str, str], required: Sequence[str]
) -> tuple[Rows, list[str]]:
    """The rows of a file or folder, and the names of the unused columns.

    `columns` maps our column names to those in the file.

    Raises:
        UserError: with file and line, if it cannot be read.
    """
    if path.is_dir():
        return _read_folder(path), []
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".json":
        raise UserError(f"{path}: {_UNSUPPORTED}")
    readers = {".jsonl": _read_json_lines, ".parquet": _read_parquet_rows}
    file_columns, file_rows = readers.get(path.suffix, _read_csv)(path)
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise UserError(f"{path}: unknown column {unknown[0]!r}; allowed: {', '.join(COLUMNS)}")
    file_names = {name: columns.get(name, name) for name in COLUMNS}
    for name in (*required, *columns):
        if file_names[name] not in file_columns:
            raise UserError(
                f"{path}: has no column {file_names[name]!r}; its columns are "
                f"{', '.join(file_columns) or 'none'}, required are {', '.join(required)}"
            )
    rows = [
        (location, {name: values.get(file_names[name], "").strip() for name in COLUMNS})
        for location, values in file_rows
    ]
    return rows, [name for name in file_columns if name not in file_names.values()]


def write_concept_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows in the format of the path's suffix; without a suffix, a folder."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, compression="zstd")
    elif not path.suffix:
        _write_folder(path, rows)
    else:
        raise UserError(f"{path}: {_UNSUPPORTED}")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises UserError, with the byte, for other encodings."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise encoding_error(path, error.start, error.reason) from error


def encoding_error(path: Path, byte: int, reason: str) -> UserError:
    """The error to raise for text that is not UTF-8."""
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin1"
    return UserError(
        f"{path}: is not UTF-8 text: {reason} at byte {byte:,}; convert it, for example "
        f"`iconv -f {encoding} -t utf-8`"
    )


def parse_json_lines(text: str) -> Iterator[tuple[int, Any | ValueError]]:
    """Number and value of each non-empty line; for invalid JSON the error."""
    # not splitlines, which also splits at characters that JSON may contain
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                yield number, error
            else:
                yield number, value


def read_parquet_file(path: Path) -> pa.Table:
    """The table of a Parquet file. Raises UserError for other files."""
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is not a Parquet file: {error}") from error


_FileRows = tuple[list[str], Iterable[tuple[str, Mapping[str, str]]]]


def _read_csv(path: Path) -> _FileRows:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[str, Mapping[str, str]]] = []
    try:
        columns = list(reader.fieldnames or [])
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.line_num}: expected {len(columns)} columns")
            rows.append((f"line {reader.line_num}", row))
    except csv.Error as error:
        raise UserError(f"{path}: is not a CSV file: {error}") from error
    return columns, rows


def _read_json_lines(path: Path) -> _FileRows:
    columns: dict[str, None] = {}
    rows: list[tuple[str, Mapping[str, str]]] = []
    problems: list[str] = []
    for number, value in parse_json_lines(read_text(path)):
        if not isinstance(value, dict):
            problem = f"invalid JSON: {value}" if isinstance(value, ValueError) else "not an object"
            problems.append(f"line {number}: {problem}")
            continue
        columns.update(dict.fromkeys(value))
        rows.append((f"line {number}", {name: _to_text(item) for name, item in value.items()}))
    if problems:
        raise UserError(f"{path}: {len(problems)} lines cannot be read; first: {problems[0]}")
    return list(columns), rows


def _read_parquet_rows(path: Path) -> _FileRows:
    table = read_parquet_file(path)
    rows = [
        (f"row {number}", {name: _to_text(value) for name, value in row.items()})
        for number, row in enumerate(table.to_pylist(), 1)
    ]
    return table.column_names, rows


def _to_text(value: Any) -> str:
    return "" if value is None else str(value)


def _read_folder(folder: Path) -> Rows:
    concept_list = folder / _CONCEPT_LIST
    if not concept_list.is_file():
        raise UserError(f"{folder}: {_CONCEPT_LIST} is missing")
    columns, list_rows = _read_csv(concept_list)
    missing = [name for name in ("group", "concept") if name not in columns]
    if missing:
        raise UserError(f"{concept_list}: has no column {missing[0]!r}")
    pairs = [(row["group"].strip(), row["concept"].strip()) for _, row in list_rows]
    words = Counter(_word_and_sense(concept)[0] for _, concept in pairs)
    rows: Rows = []
    for group, concept in pairs:
        word, sense = _word_and_sense(concept)
        # a word in two senses is two concepts, which keep their full names
        name = word if words[word] == 1 else concept
        for role, sentences in _read_sentences(folder / group / f"{concept}.json").items():
            values = {"concept": name, "domain": group, "sense": sense, "role": role}
            row = dict.fromkeys(COLUMNS, "") | values
            rows += [
                (f"{group}/{concept}.json, {role} {number}", row | {"text": " ".join(text.split())})
                for number, text in enumerate(dict.fromkeys(sentences), 1)
            ]
    return rows


def _read_sentences(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(read_text(path))["sentences"]
        sentences = {role: list(content[role]) for role in ("positive", "negative")}
        if not all(isinstance(text, str) for texts in sentences.values() for text in texts):
            raise TypeError("a sentence is not a string")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not a concept file: sentences.positive and sentences.negative must be lists of "
            f"strings ({type(error).__name__}: {error})"
        ) from error
    return sentences


def _word_and_sense(concept: str) -> tuple[str, str]:
    """The word and the WordNet sense key of a name such as football-1_04_00__."""
    match = _SENSE_KEY.match(concept)
    if match is None:
        return concept, ""
    key = f"{match['word']}%{match['kind']}:{match['file']}:{match['number']}::{match['rest']}"
    return match["word"], key


def _write_folder(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    if any(row["role"] == "pool" for row in rows):
        raise UserError(f"{folder}: a folder cannot hold neutral sentences (role pool); write .csv")
    concepts: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        group_and_concept = (row["domain"] or "concept", row["concept"])
        sentences = concepts.setdefault(group_and_concept, {"positive": [], "negative": []})
        sentences[row["role"]].append(row["text"])
    folder.mkdir(parents=True, exist_ok=True)
    for (group, concept), sentences in concepts.items():
        if "/" in group or "/" in concept:
            raise UserError(f"{folder}: {group}/{concept}: names in a folder must not contain /")
        path = folder / group / f"{concept}.json"
        path.parent.mkdir(exist_ok=True)
        content = {"concept": concept, "group": group, "sentences": sentences}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    with (folder / _CONCEPT_LIST).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("group", "concept"), *concepts])
