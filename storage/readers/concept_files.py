"""Rows of a concept set in a table (delimited text, JSON Lines, Parquet) or a folder of ml-selfcond.

A row of a table has one sentence, or in JSON Lines and Parquet a list of sentences.

A folder has `concept_list.csv` (columns group, concept) and GROUP/CONCEPT.json, which holds
`sentences.positive` and `sentences.negative`. Concepts are named by word and WordNet sense
(football-1_04_00__); the group becomes the domain.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import UserError
from storage.readers.cells import cell_text, is_missing
from storage.readers.file_format import plain_suffix, read_text
from storage.readers.strict_json import parse_json
from storage.readers.tabular import Table, open_table

COLUMNS = ("concept", "text", "domain", "sense", "pos", "source", "prompt", "role")
_CONCEPT_LIST = "concept_list.csv"
_SENSE_KEY = re.compile(r"^(?P<word>.+)-(?P<kind>\d)_(?P<file>\d\d)_(?P<number>\d\d)__(?P<rest>\w*)$")
_UNSUPPORTED = "unsupported format; use .csv, .jsonl, .parquet or a folder"

Rows = Iterable[tuple[str, dict[str, str]]]
"""The location of each row in its file ("line 7") and its values, empty if missing."""


def read_concept_rows(
    path: Path, columns: Mapping[str, str], required: Sequence[str]
) -> tuple[Rows, list[str]]:
    """The rows of a file or folder, which can be read once, and the names of the unused columns.

    `columns` maps our column names to those in the file.

    Raises:
        UserError: with file and line, if it cannot be read.
    """
    if path.is_dir():
        return _read_folder(path), []
    if plain_suffix(path) == ".json":
        raise UserError(f"{path}: {_UNSUPPORTED}")
    table = open_table(path)
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise UserError(f"{path}: unknown column {unknown[0]!r}; allowed: {', '.join(COLUMNS)}")
    file_names = {name: columns.get(name, name) for name in COLUMNS}
    read = [
        name for name in COLUMNS if name in (*required, *columns) or file_names[name] in table.columns
    ]
    advice = f", required are {', '.join(required)}"
    indices = [table.find_column(file_names[name], advice) for name in read]
    for number, name in enumerate(read):
        if file_names[name] in (file_names[earlier] for earlier in read[:number]):
            raise UserError(
                f"{path}: the column {file_names[name]!r} would be read twice; see `columns`"
            )
    rows = _read_rows(table, {name: file_names[name] for name in read}, indices)
    return rows, [name for name in table.columns if name not in file_names.values()]


def _read_rows(table: Table, file_names: Mapping[str, str], indices: Sequence[int]) -> Rows:
    """The rows of a table; one at a time, because a large set takes gigabytes as dictionaries."""
    empty = dict.fromkeys(COLUMNS, "")
    for location, cells in table.select(indices):
        by_name = dict(zip(file_names, cells, strict=True))
        for place, cell in _split_sentences(location, by_name.pop("text", None)):
            where = f"{table.path}: {place}"
            texts = {
                name: cell_text(value, where, file_names.get(name, name))
                for name, value in {**by_name, "text": cell}.items()
            }
            yield place, empty | _without_missing(texts, where)


def _split_sentences(location: str, cell: Any) -> list[tuple[str, Any]]:
    """The sentences in a cell, which may be a list, and their locations."""
    if isinstance(cell, list) and cell:
        return [(f"{location}, sentence {number}", item) for number, item in enumerate(cell, 1)]
    return [(location, None if cell == [] else cell)]


def _without_missing(texts: Mapping[str, str], where: str) -> dict[str, str]:
    """The cells of a row, empty where NA and the like mark a missing value, which only some may have."""
    for name in ("text",) if texts.get("role") == "pool" else ("concept", "text"):
        if texts.get(name) and is_missing(texts[name]):
            raise UserError(f"{where}: the {name} is {texts[name]!r}, which marks a missing value")
    return {name: "" if is_missing(text) else text for name, text in texts.items()}


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


def list_concept_files(path: Path) -> list[Path]:
    """The files that are read for a concept set: the file itself, or the folder's list and its files.

    Raises:
        UserError: if the list cannot be read.
    """
    if not path.is_dir():
        return [path]
    files = [path / group / f"{concept}.json" for group, concept in _read_concept_list(path)]
    return [path / _CONCEPT_LIST, *files]


def _read_concept_list(folder: Path) -> list[tuple[str, str]]:
    """The group and the name of each concept of a folder."""
    concept_list = folder / _CONCEPT_LIST
    if not concept_list.is_file():
        raise UserError(f"{folder}: {_CONCEPT_LIST} is missing")
    table = open_table(concept_list)
    indices = [table.find_column(name, "") for name in ("group", "concept")]
    return [
        (
            cell_text(group, f"{concept_list}: {where}", "group"),
            cell_text(concept, f"{concept_list}: {where}", "concept"),
        )
        for where, (group, concept) in table.select(indices)
    ]


def _read_folder(folder: Path) -> Rows:
    pairs = _read_concept_list(folder)
    words = Counter(_word_and_sense(concept)[0] for _, concept in pairs)
    rows: list[tuple[str, dict[str, str]]] = []
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
        content = parse_json(read_text(path))["sentences"]
        sentences = {role: content[role] for role in ("positive", "negative")}
        for role, texts in sentences.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{role} is not a list of strings")
            for number, text in enumerate(texts, 1):
                cell_text(text, f"{path}: {role} {number}", "sentences")
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
