"""Rows of a concept set in files: CSV, JSON lines, Parquet, and folders as ml-selfcond keeps them.

A folder has `concept_list.csv` (columns group, concept) and GROUP/CONCEPT.json, which holds
`sentences.positive` and `sentences.negative`. Its concepts are named by word and WordNet sense
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
_LIST = "concept_list.csv"
_SENSE_KEY = re.compile(r"^(?P<word>.+)-(?P<kind>\d)_(?P<file>\d\d)_(?P<number>\d\d)__(?P<rest>\w*)$")

Rows = list[tuple[str, dict[str, str]]]
"""Each row's place in its file ("line 7") and its values, empty where there are none."""


def read_rows(path: Path, columns: Mapping[str, str], required: Sequence[str]) -> tuple[Rows, list[str]]:
    """The rows of a file or folder, and the columns that are not used.

    `columns` says what a column of ours is called in the file. Raises UserError, naming file and
    line, for what cannot be read.
    """
    if path.is_dir():
        return _read_folder(path), []
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    readers = {".jsonl": _read_json_lines, ".parquet": _read_parquet}
    if path.suffix == ".json":
        raise UserError(f"{path}: is not read; give .csv, .jsonl, .parquet or a folder")
    names, raw = readers.get(path.suffix, _read_csv)(path)
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise UserError(f"{path}: there is no column {unknown[0]!r} to name; {', '.join(COLUMNS)}")
    called = {name: columns.get(name, name) for name in COLUMNS}
    for name in (*required, *columns):
        if called[name] not in names:
            raise UserError(
                f"{path}: has no column {called[name]!r}; its columns are "
                f"{', '.join(names) or 'none'}, needed are {', '.join(required)}"
            )
    rows = [
        (place, {name: values.get(called[name], "").strip() for name in COLUMNS})
        for place, values in raw
    ]
    return rows, [name for name in names if name not in called.values()]


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows in the format that the path's ending names; a folder without one."""
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
        raise UserError(f"{path}: is no known format; allowed: .csv, .jsonl, .parquet, or a folder")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; UserError that names the byte for any other."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.start, error.reason) from error


def not_utf8(path: Path, byte: int, reason: str) -> UserError:
    """What to say of text in another encoding."""
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin1"
    return UserError(
        f"{path}: is not UTF-8 text: {reason} at byte {byte:,}; convert it, for example "
        f"`iconv -f {encoding} -t utf-8`"
    )


def parse_json_lines(text: str) -> Iterator[tuple[int, Any | ValueError]]:
    """The number and the value of each line that is not empty; what is wrong where it is no JSON."""
    # not splitlines, which also breaks at characters that JSON may hold
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                yield number, error
            else:
                yield number, value


_Raw = tuple[list[str], Iterable[tuple[str, Mapping[str, str]]]]


def _read_csv(path: Path) -> _Raw:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[str, Mapping[str, str]]] = []
    try:
        columns = list(reader.fieldnames or [])
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.line_num}: not {len(columns)} columns")
            rows.append((f"line {reader.line_num}", row))
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV file: {error}") from error
    return columns, rows


def _read_json_lines(path: Path) -> _Raw:
    columns: dict[str, None] = {}
    rows: list[tuple[str, Mapping[str, str]]] = []
    broken: list[str] = []
    for number, value in parse_json_lines(read_text(path)):
        if not isinstance(value, dict):
            why = f"no JSON: {value}" if isinstance(value, ValueError) else "no object"
            broken.append(f"line {number}: {why}")
            continue
        columns.update(dict.fromkeys(value))
        rows.append((f"line {number}", {name: _text(each) for name, each in value.items()}))
    if broken:
        raise UserError(f"{path}: {len(broken)} of its lines cannot be read, first {broken[0]}")
    return list(columns), rows


def _read_parquet(path: Path) -> _Raw:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: is no Parquet file: {error}") from error
    rows = [
        (f"row {number}", {name: _text(value) for name, value in row.items()})
        for number, row in enumerate(table.to_pylist(), 1)
    ]
    return table.column_names, rows


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _read_folder(folder: Path) -> Rows:
    listed = folder / _LIST
    if not listed.is_file():
        raise UserError(f"{folder}: has no {_LIST}")
    names, entries = _read_csv(listed)
    missing = [name for name in ("group", "concept") if name not in names]
    if missing:
        raise UserError(f"{listed}: has no column {missing[0]!r}")
    pairs = [(entry["group"].strip(), entry["concept"].strip()) for _, entry in entries]
    words = Counter(_word_and_sense(concept)[0] for _, concept in pairs)
    rows: Rows = []
    for group, concept in pairs:
        path = folder / group / f"{concept}.json"
        word, sense = _word_and_sense(concept)
        # one word in two senses is two concepts, which keep the names that tell them apart
        name = word if words[word] == 1 else concept
        for role, sentences in _sentences_of(path).items():
            rows += [
                (
                    f"{group}/{concept}.json, {role} {number}",
                    {
                        **dict.fromkeys(COLUMNS, ""),
                        "concept": name,
                        "text": " ".join(text.split()),
                        "domain": group,
                        "sense": sense,
                        "role": role,
                    },
                )
                for number, text in enumerate(dict.fromkeys(sentences), 1)
            ]
    return rows


def _sentences_of(path: Path) -> dict[str, list[str]]:
    try:
        sentences = json.loads(read_text(path))["sentences"]
        found = {role: list(sentences[role]) for role in ("positive", "negative")}
        if not all(isinstance(text, str) for texts in found.values() for text in texts):
            raise TypeError("a sentence is no text")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is no concept: sentences.positive and sentences.negative must be lists of texts "
            f"({type(error).__name__}: {error})"
        ) from error
    return found


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
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        place = (row["domain"] or "concept", row["concept"])
        roles = groups.setdefault(place, {"positive": [], "negative": []})
        roles[row["role"]].append(row["text"])
    folder.mkdir(parents=True, exist_ok=True)
    for (group, concept), sentences in groups.items():
        if "/" in group or "/" in concept:
            raise UserError(f"{folder}: {group}/{concept}: a name with / cannot be a file's")
        path = folder / group / f"{concept}.json"
        path.parent.mkdir(exist_ok=True)
        content = {"concept": concept, "group": group, "sentences": sentences}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    with (folder / _LIST).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("group", "concept"), *groups])
