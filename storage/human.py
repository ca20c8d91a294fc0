"""Reading human judgments of how similar things are, from the files that they come in.

A file is one of the kinds below. What it says about concepts of a sweep is worked out elsewhere: here
are words and numbers as they stand in the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storage.assets import ASSETS
from storage.errors import UserError

Kind = Literal["pairs", "matrix", "embeddings", "features", "categories", "triplets", "wordnet"]
Comparison = Literal["cosine", "dot", "softmax"]
Taxonomy = Literal["path", "wu-palmer"]
Floats = npt.NDArray[np.float64]

DEFAULT_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("a", "b", "score"),
    "matrix": (),
    "embeddings": (),
    "features": (),
    "categories": ("category", "word"),
    "triplets": ("a", "b", "odd"),
    "wordnet": (),
}

_ASYMMETRY = 1e-6


@dataclass(frozen=True)
class Ceiling:
    """How well people agree with people, and where that is printed."""

    value: float
    source: str


@dataclass(frozen=True)
class HumanSet:
    """Where judgments are and how the file holds them.

    pairs       columns of two words and their score; `raters`, columns of single people's scores
    matrix      a square table with the items' names, or .npy with the names in `items`
    embeddings  .npy, or numbers in a text file, a row an item of the file `items`
    features    a row an item, a column a feature; or columns of item, feature and value
    categories  columns of category and word
    triplets    columns of two alike and the odd one out
    wordnet     the folder `dict` of a WordNet release: no people's judgment, but compared like one

    `dissimilar` says that a high number of pairs or of a matrix means unlike; `vectors`, how vectors are
    compared: by cosine, dot product or the choice among triplets (softmax); `lemma`, that a word that
    names no concept is tried in its singular. `suffix` ends each word of the right part of speech, as in
    MEN's sun-n; others are left out.
    """

    name: str
    path: Path
    kind: Kind = "pairs"
    columns: tuple[str, ...] = ("a", "b", "score")
    raters: tuple[str, ...] = ()
    items: Path | None = None
    dissimilar: bool = False
    vectors: Comparison = "cosine"
    taxonomy: Taxonomy = "path"
    lemma: bool = False
    suffix: str = ""
    ceiling: Ceiling | None = None


@dataclass(frozen=True)
class Rated:
    """One line of a list of pairs. `raters` is NaN where a rater gave no score."""

    first: str
    second: str
    score: float
    raters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Items:
    """Items with a row of numbers each: of a similarity matrix, of coordinates, of features."""

    names: list[str]
    values: Floats


# the columns of the packages' files
_CSV = ("word1", "word2", "similarity")
_TSV = ("# Word 1", "Word 2", "Human (mean)")
# each item of MEN was rated by one person, so that people's agreement is not known from its scores
_PUBLISHED = {
    "men": Ceiling(0.84, "Bruni et al. 2014: mean of two of its authors with the scores, Spearman"),
    # the page of the data set does not say which correlation
    "mturk771": Ceiling(0.8957, "Halawi et al. 2012: means of one half of the raters with the other's"),
}


def known_sets() -> list[str]:
    """Names of the data sets that a package carries."""
    return [
        "men",
        "simlex999",
        "wordsim353",
        "wordsim353-similarity",
        "wordsim353-relatedness",
        "rg65",
        "mc30",
        "mturk287",
        "mturk771",
        "simverb3500",
        "rw",
        "battig",
    ]


def known_set(name: str) -> HumanSet:
    """A data set that a package carries; UserError when the package is missing."""
    path = ASSETS[name].path()
    if name == "battig":
        return HumanSet(name, path, "categories", DEFAULT_COLUMNS["categories"])
    columns = _CSV if path.suffix == ".csv" else _TSV
    # only MEN's nouns name concepts
    suffix = "-n" if name == "men" else ""
    return HumanSet(name, path, columns=columns, suffix=suffix, ceiling=_PUBLISHED.get(name))


def read_pairs(human: HumanSet) -> list[Rated]:
    """The lines of a list of pairs.

    Raises UserError, naming file and line, for a missing file or column and a score that is no finite
    number. A rater's cell may be empty.
    """
    rated = []
    for where, cells in _rows(human.path, (*human.columns, *human.raters)):
        first, second, score, *scores = cells
        raters = tuple(_number(each, where, "score") if each else math.nan for each in scores)
        rated.append(Rated(first, second, _number(score, where, "score"), raters))
    return rated


def read_triplets(human: HumanSet) -> list[tuple[str, str, str]]:
    """Two that were found alike and the odd one out, line by line."""
    triplets = []
    for where, (first, second, odd) in _rows(human.path, human.columns):
        if len({first, second, odd}) < 3:
            raise UserError(f"{where}: {first!r}, {second!r} and {odd!r} are not three different items")
        triplets.append((first, second, odd))
    return triplets


def read_categories(human: HumanSet) -> list[tuple[str, str]]:
    """Category and word, line by line."""
    return [(category, word) for _, (category, word) in _rows(human.path, human.columns)]


def read_items(human: HumanSet) -> Items:
    """The items and numbers of a matrix, of embeddings or of features.

    A matrix must be symmetric; NaN stands for a pair without a number. Raises UserError for names that
    do not fit the numbers or stand twice.
    """
    if not human.path.is_file():
        raise UserError(f"{human.path}: no such file")
    if human.kind == "features" and human.columns:
        names, values = _long_features(human)
    elif human.path.suffix == ".npy":
        names, values = _item_names(human), _load(human.path)
    elif human.items is not None:
        names, values = _item_names(human), _plain_numbers(human.path)
    else:
        names, values = _wide_table(human.path)
    if values.ndim != 2 or len(values) != len(names):
        raise UserError(f"{human.path}: has the shape {values.shape}, but there are {len(names)} items")
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{human.path}: the item {doubled[0]!r} stands twice")
    if human.kind == "matrix":
        _check_matrix(human.path, values)
    elif not np.isfinite(values).all():
        raise UserError(
            f"{human.path}: {int((~np.isfinite(values)).sum())} of its numbers are not finite"
        )
    return Items(names, values)


def _check_matrix(path: Path, values: Floats) -> None:
    if values.shape[0] != values.shape[1]:
        raise UserError(f"{path}: is {values.shape[0]} by {values.shape[1]}; a matrix is square")
    if np.isinf(values).any():
        raise UserError(f"{path}: some of its numbers are not finite")
    scale = np.nanmax(np.abs(values), initial=0)
    lopsided = np.argwhere(~np.isclose(values, values.T, 0, _ASYMMETRY * scale, equal_nan=True))
    if len(lopsided):
        row, column = lopsided[0]
        raise UserError(
            f"{path}: is not symmetric: row {row + 1}, column {column + 1} is {values[row, column]:g}, "
            f"but the other way {values[column, row]:g}"
        )


def _item_names(human: HumanSet) -> list[str]:
    if human.items is None:
        raise UserError(
            f"{human.path}: holds numbers only; give the file of its items' names as `items`"
        )
    lines = _text(human.items).splitlines()
    names = [line.split("\t")[0].strip() for line in lines]
    return [name for name in names if name]


def _load(path: Path) -> Floats:
    try:
        values = np.load(path, allow_pickle=False)
        return np.asarray(values, np.float64)
    except (ValueError, TypeError, EOFError) as error:
        raise UserError(f"{path}: is no .npy file of numbers: {error}") from error


def _plain_numbers(path: Path) -> Floats:
    try:
        return np.loadtxt(_text(path).replace(",", " ").splitlines(), ndmin=2)
    except ValueError as error:
        raise UserError(f"{path}: is no table of numbers: {error}") from error


def _wide_table(path: Path) -> tuple[list[str], Floats]:
    """A table whose first column names the items and whose others are numbers."""
    columns, rows = _table(path)
    names, values = [], []
    for where, cells in rows:
        names.append(str(cells[0] or "").strip())
        values.append(
            [math.nan if cell in ("", None) else _number(cell, where, "value") for cell in cells[1:]]
        )
    if not values or len(columns) < 2:
        raise UserError(f"{path}: holds no numbers beside the items' names")
    return names, np.array(values)


def _long_features(human: HumanSet) -> tuple[list[str], Floats]:
    rows = [
        (item, feature, _number(value, where, "value"))
        for where, (item, feature, value) in _rows(human.path, human.columns)
    ]
    items = {item: number for number, item in enumerate(dict.fromkeys(row[0] for row in rows))}
    features = {name: number for number, name in enumerate(dict.fromkeys(row[1] for row in rows))}
    values = np.zeros((len(items), len(features)))
    for item, feature, value in rows:
        values[items[item], features[feature]] += value
    return list(items), values


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Where each row stands, and its cells in the wanted columns; rows that are empty there are none."""
    columns, rows = _table(path)
    if not columns:
        raise UserError(f"{path}: is empty; its first line names the columns {', '.join(wanted)}")
    for column in wanted:
        if column not in columns:
            raise UserError(f"{path}: has no column {column!r}; its columns are {', '.join(columns)}")
    places = [columns.index(column) for column in wanted]
    for where, cells in rows:
        found = ["" if cells[place] is None else str(cells[place]).strip() for place in places]
        if any(found):
            yield where, found


def _table(path: Path) -> tuple[list[str], Iterable[tuple[str, Sequence[Any]]]]:
    """The columns and rows of a CSV, TSV or Parquet file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except pa.ArrowException as error:
            raise UserError(f"{path}: is no Parquet file: {error}") from error
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        return table.column_names, ((f"{path}: row {n}", row) for n, row in enumerate(rows, 1))
    lines = _text(path).splitlines()
    # some published files open with a line that says where they come from
    skipped = 1 if lines and lines[0].startswith("# The ") else 0
    reader = csv.reader(lines[skipped:], delimiter="\t" if path.suffix in (".tsv", ".txt") else ",")
    columns = next(reader, [])

    def cut() -> Iterator[tuple[str, Sequence[Any]]]:
        for row in reader:
            where = f"{path}: line {reader.line_num + skipped}"
            if row and len(row) != len(columns):
                raise UserError(f"{where}: not {len(columns)} columns")
            if row:
                yield where, row

    return columns, cut()


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: {error.reason}") from error


def _number(cell: Any, where: str, what: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the {what} is {cell!r}; expected a number")
    return value
