"""Reading human judgments of how similar things are, from the files that they come in.

A file is one of the kinds below. What it says about concepts of a sweep is worked out elsewhere: here
are words and numbers as they stand in the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from storage.assets import ASSETS
from storage.errors import UserError
from storage.readers.concept_files import read_text
from storage.readers.tabular import Column, as_number, as_text, read_cells, read_table

Kind = Literal["pairs", "matrix", "embeddings", "features", "categories", "triplets", "wordnet"]
Comparison = Literal["cosine", "dot", "softmax"]
Taxonomy = Literal["path", "wu-palmer"]
Floats = npt.NDArray[np.float64]

DEFAULT_COLUMNS: dict[Kind, tuple[Column, ...]] = {
    "pairs": ("a", "b", "score"),
    "matrix": (),
    "embeddings": (),
    "features": (),
    "categories": ("category", "word"),
    "triplets": ("a", "b", "odd"),
    "wordnet": (),
}

_ASYMMETRY = 1e-6
_MISSING = ("", "nan", "na")
"""What stands for a number that is not there, in any case."""


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
    triplets    columns of two alike and the odd one out; with `items`, of their places there from 0 on
    wordnet     the folder `dict` of a WordNet release: no people's judgment, but compared like one

    `dissimilar` says that a high number of pairs or of a matrix means unlike; `vectors`, how vectors are
    compared: by cosine, dot product or the choice among triplets (softmax); `lemma`, that a word that
    names no concept is tried in its singular. `suffix` ends each word of the right part of speech, as in
    MEN's sun-n; others are left out.
    """

    name: str
    path: Path
    kind: Kind = "pairs"
    columns: tuple[Column, ...] = ("a", "b", "score")
    raters: tuple[Column, ...] = ()
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

    Raises UserError, naming file and line, for a missing file, column or word and a score that is no
    finite number. A rater's cell may be empty.
    """
    rated = []
    for where, cells in read_cells(human.path, (*human.columns, *human.raters)):
        first, second, score, *scores = cells
        _check_words((first, second), where)
        raters = tuple(as_number(each, where, "score") if each else math.nan for each in scores)
        rated.append(Rated(first, second, as_number(score, where, "score"), raters))
    return rated


def read_triplets(human: HumanSet) -> list[tuple[str, str, str]]:
    """Two that were found alike and the odd one out, line by line."""
    names = None if human.items is None else _item_names(human)
    triplets = []
    for where, cells in read_cells(human.path, human.columns):
        first, second, odd = cells if names is None else [_item(names, cell, where) for cell in cells]
        _check_words((first, second, odd), where)
        if len({first, second, odd}) < 3:
            raise UserError(f"{where}: {first!r}, {second!r} and {odd!r} are not three different items")
        triplets.append((first, second, odd))
    return triplets


def read_categories(human: HumanSet) -> list[tuple[str, str]]:
    """Category and word, line by line."""
    rows = []
    for where, (category, word) in read_cells(human.path, human.columns):
        _check_words((category, word), where)
        rows.append((category, word))
    return rows


def _check_words(words: Sequence[str], where: str) -> None:
    if not all(words):
        raise UserError(f"{where}: a word is missing")


def _item(names: list[str], cell: str, where: str) -> str:
    if not cell.isdecimal() or int(cell) >= len(names):
        raise UserError(f"{where}: {cell!r} is no item's place, from 0 to {len(names) - 1}")
    return names[int(cell)]


def read_items(human: HumanSet) -> Items:
    """The items and numbers of a matrix, of embeddings or of features.

    A matrix must be symmetric, or have one half; NaN stands for a pair without a number. Its columns
    may stand in another order than its rows. Raises UserError for names that do not fit the numbers or
    stand twice.
    """
    path = human.path
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    columns = None
    if human.kind == "features" and human.columns:
        names, values = _long_features(human)
    elif path.suffix == ".npy":
        names, values = _item_names(human), _load(path)
    elif human.items is not None:
        names, values = _item_names(human), _plain_numbers(path)
    else:
        names, columns, values = _wide_table(path)
    if values.ndim != 2 or len(values) != len(names):
        raise UserError(
            f"{path}: has the shape {values.shape}, but there are {len(names)} items"
            + (" (a first line that is no item is counted too)" if human.items else "")
        )
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: the item {doubled[0]!r} stands twice")
    if human.kind == "matrix":
        return Items(names, _whole_matrix(path, values, names, columns))
    for name, row in zip(names, values, strict=True):
        if not np.isfinite(row).all():
            raise UserError(f"{path}: the item {name!r} has numbers that are missing or not finite")
    return Items(names, values)


def _whole_matrix(path: Path, values: Floats, names: list[str], columns: list[str] | None) -> Floats:
    """A matrix with its columns in the order of its rows, and both halves."""
    if values.shape[0] != values.shape[1]:
        raise UserError(f"{path}: is {values.shape[0]} by {values.shape[1]}; a matrix is square")
    if np.isinf(values).any():
        raise UserError(f"{path}: some of its numbers are not finite")
    if columns is not None:
        if unknown := [name for name in columns if name not in names]:
            raise UserError(f"{path}: the column {unknown[0]!r} is the name of no row")
        if doubled := [name for name, count in Counter(columns).items() if count > 1]:
            raise UserError(f"{path}: the column {doubled[0]!r} stands twice")
        values = values[:, [columns.index(name) for name in names]]
    values = np.where(np.isnan(values), values.T, values)
    scale = np.nanmax(np.abs(values), initial=0)
    lopsided = np.argwhere(~np.isclose(values, values.T, 0, _ASYMMETRY * scale, equal_nan=True))
    if len(lopsided):
        row, column = lopsided[0]
        raise UserError(
            f"{path}: is not symmetric: {names[row]!r} with {names[column]!r} is "
            f"{values[row, column]:g}, but the other way {values[column, row]:g}"
        )
    return values


def _item_names(human: HumanSet) -> list[str]:
    if human.items is None:
        raise UserError(
            f"{human.path}: holds numbers only; give the file of its items' names as `items`"
        )
    lines = read_text(human.items).splitlines()
    names = [line.split("\t")[0].strip() for line in lines]
    return [name for name in names if name]


def _load(path: Path) -> Floats:
    try:
        values = np.load(path, allow_pickle=False)
        if values.dtype.kind not in "biuf":
            raise TypeError(f"its values are {values.dtype}")
        return np.asarray(values, np.float64)
    except (ValueError, TypeError, EOFError) as error:
        raise UserError(f"{path}: is no .npy file of numbers: {error}") from error


def _plain_numbers(path: Path) -> Floats:
    try:
        return np.loadtxt(read_text(path).replace(",", " ").splitlines(), ndmin=2)
    except ValueError as error:
        raise UserError(f"{path}: is no table of numbers: {error}") from error


def _wide_table(path: Path) -> tuple[list[str], list[str], Floats]:
    """A table whose first column names the items and whose others are numbers: the items, the other
    columns' names and the numbers."""
    columns, rows = read_table(path)
    names, values = [], []
    for where, cells in rows:
        name, *numbers = map(as_text, cells)
        names.append(name)
        values.append(
            [
                math.nan if number.lower() in _MISSING else as_number(number, where, "value")
                for number in numbers
            ]
        )
    if not values or len(columns) < 2:
        raise UserError(f"{path}: holds no numbers beside the items' names")
    return names, columns[1:], np.array(values)


def _long_features(human: HumanSet) -> tuple[list[str], Floats]:
    rows = []
    for where, (item, feature, value) in read_cells(human.path, human.columns):
        _check_words((item, feature), where)
        rows.append((item, feature, as_number(value, where, "value")))
    items = {item: number for number, item in enumerate(dict.fromkeys(row[0] for row in rows))}
    features = {name: number for number, name in enumerate(dict.fromkeys(row[1] for row in rows))}
    values = np.zeros((len(items), len(features)))
    for item, feature, number in rows:
        values[items[item], features[feature]] += number
    return list(items), values
