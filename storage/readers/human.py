"""Read human similarity judgments: the words and numbers of a file, not yet matched to concepts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from alignment.arrays import Floats
from storage.assets import ASSETS, HUMAN_SETS
from storage.errors import UserError, excerpt
from storage.readers.associations import read_associations
from storage.readers.cells import cell_number, cell_text, is_missing, is_missing_number
from storage.readers.file_format import detect_format, read_text
from storage.readers.number_files import read_numbers
from storage.readers.tabular import ColumnRef, open_table, read_columns

HumanSetKind = Literal[
    "pairs", "matrix", "embeddings", "features", "associations", "categories", "triplets", "wordnet"
]
VectorComparison = Literal["cosine", "dot", "softmax"]
TaxonomyMeasure = Literal["path", "wu-palmer"]

DEFAULT_COLUMNS: dict[HumanSetKind, tuple[ColumnRef, ...]] = {
    "pairs": ("a", "b", "score"),
    "matrix": (),
    "embeddings": (),
    "features": (),
    "associations": (),
    "categories": ("category", "word"),
    "triplets": ("a", "b", "odd"),
    "wordnet": (),
}

_ASYMMETRY = 1e-6
_QUOTED = re.compile(r'^"(.*)"$')
_PANDAS_INDEX = "__index_level_0__"
"""Column in which pandas writes the names of the rows to Parquet, as the last one."""


@dataclass(frozen=True)
class NoiseCeiling:
    """Published agreement of people with each other, and its source."""

    value: float
    source: str


@dataclass(frozen=True)
class HumanSet:
    """A file of judgments and its format.

    pairs       columns of two words and their score; `raters`: columns of individual raters' scores
    matrix      a square table with item names, or an array, square or condensed, with `items`
    embeddings  an array, or numbers in a text file; one row per item of the file `items`
    features    one row per item, one column per feature; or columns of item, feature and value
    associations  cues, responses and strengths, as Small World of Words publishes them
    categories  columns of category and word
    triplets    columns of two similar items and the odd one out; with `items`, indices into it from 0
    wordnet     the folder `dict` of a WordNet release: not human judgments, but compared like them

    `dissimilar`: high numbers of pairs or of a matrix mean dissimilar. `vectors`: similarity of vectors,
    by cosine, dot product or the choice among triplets (softmax). `lemma`: a word that is not a concept
    is tried in its singular form. `suffix`: ending of words of the right part of speech, as in MEN's
    sun-n; other words are left out.
    """

    name: str
    path: Path
    kind: HumanSetKind = "pairs"
    columns: tuple[ColumnRef, ...] = ("a", "b", "score")
    raters: tuple[ColumnRef, ...] = ()
    items: Path | None = None
    dissimilar: bool = False
    vectors: VectorComparison = "cosine"
    taxonomy: TaxonomyMeasure = "path"
    lemma: bool = False
    suffix: str = ""
    ceiling: NoiseCeiling | None = None


@dataclass(frozen=True)
class RatedPair:
    """A pair of words with its score, and the raters' scores (NaN if missing)."""

    first: str
    second: str
    score: float
    raters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Items:
    """Items with one row of numbers each: of a similarity matrix, embeddings or features."""

    names: list[str]
    values: Floats


# columns of the files in the packages
_CSV = ("word1", "word2", "similarity")
_TSV = ("# Word 1", "Word 2", "Human (mean)")
# one person made each comparison of two pairs of MEN, so its scores have no noise ceiling of their own
_PUBLISHED = {
    "men": NoiseCeiling(
        0.84, "Bruni et al. 2014: mean of two of its authors with the scores, all 3,000 pairs"
    ),
    # the data set's web page does not name the correlation
    "mturk771": NoiseCeiling(
        0.8957, "Halawi et al. 2012: means of one half of the raters with the other's"
    ),
}


def builtin_human_sets() -> list[str]:
    """Names of the data sets that packages provide."""
    return list(HUMAN_SETS)


def builtin_human_set(name: str) -> HumanSet:
    """A data set from a package. Raises UserError if the package is missing."""
    path = ASSETS[name].path()
    if name == "battig":
        return HumanSet(name, path, "categories", DEFAULT_COLUMNS["categories"])
    columns = _CSV if path.suffix == ".csv" else _TSV
    # only nouns of MEN are used
    suffix = "-n" if name == "men" else ""
    return HumanSet(name, path, columns=columns, suffix=suffix, ceiling=_PUBLISHED.get(name))


def read_pairs(human: HumanSet) -> list[RatedPair]:
    """The rows of a list of pairs. A rater's cell may be empty or NA.

    Raises:
        UserError: with file and line, for a missing file, column or word, or a non-finite score.
    """
    pairs = []
    for where, cells in read_columns(human.path, (*human.columns, *human.raters)):
        first, second, score, *rater_scores = cells
        _check_words((first, second), where)
        raters = tuple(_number_or_nan(cell, where, "score") for cell in rater_scores)
        pairs.append(RatedPair(first, second, cell_number(score, where, "score"), raters))
    return pairs


def read_triplets(human: HumanSet) -> list[tuple[str, str, str]]:
    """The two similar items and the odd one out of each row."""
    names = None if human.items is None else _read_item_names(human)
    triplets = []
    for where, cells in read_columns(human.path, human.columns):
        first, second, odd = (
            cells if names is None else [_item_name(names, cell, where) for cell in cells]
        )
        _check_words((first, second, odd), where)
        if len({first, second, odd}) < 3:
            raise UserError(f"{where}: {first!r}, {second!r} and {odd!r} are not three different items")
        triplets.append((first, second, odd))
    return triplets


def read_categories(human: HumanSet) -> list[tuple[str, str]]:
    """Category and word of each row."""
    rows = []
    for where, (category, word) in read_columns(human.path, human.columns):
        _check_words((category, word), where)
        rows.append((category, word))
    return rows


def _check_words(words: Sequence[str], where: str) -> None:
    if any(map(is_missing, words)):
        raise UserError(f"{where}: a word is missing")


def _item_name(names: list[str], cell: str, where: str) -> str:
    # compared by its length first, because Python converts no thousands of digits
    digits = cell.lstrip("0") or "0"
    if not cell.isdecimal() or len(digits) > len(str(len(names))) or int(digits) >= len(names):
        raise UserError(f"{where}: item index {excerpt(cell)} is out of range 0..{len(names) - 1}")
    return names[int(digits)]


def read_items(human: HumanSet) -> Items:
    """The items and numbers of a matrix, embeddings or features.

    A matrix must be symmetric or triangular; missing pairs are NaN. Its columns may have another order
    than its rows.

    Raises:
        UserError: for names that do not match the numbers, or duplicates.
    """
    path = human.path
    columns = None
    if human.kind == "features" and human.columns:
        names, values = _read_long_features(human)
    elif human.items is not None or detect_format(path) in ("npy", "npz", "mat"):
        names, values = _read_item_names(human), read_numbers(path)
        if human.kind == "matrix":
            values = _expand_condensed(values, len(names))
    else:
        names, columns, values = _read_wide_table(path)
        if human.kind != "matrix":
            _check_unique(columns, f"{path}: duplicate column")
    if values.ndim != 2 or len(values) != len(names):
        raise UserError(
            f"{path}: has the shape {values.shape}, but there are {len(names)} items"
            + (" (a header line in `items` counts as an item)" if human.items else "")
        )
    _check_unique(names, f"{path}: duplicate item")
    if human.kind == "matrix":
        return Items(names, _complete_matrix(path, values, names, columns))
    for name, row in zip(names, values, strict=True):
        if not np.isfinite(row).all():
            raise UserError(f"{path}: the item {name!r} has missing or non-finite numbers")
    return Items(names, values)


def _expand_condensed(values: Floats, n: int) -> Floats:
    """The symmetric matrix of n items from a vector of its pairs.

    The pairs have the order of SciPy's and MATLAB's `pdist`: (0, 1), (0, 2), ..., (n - 2, n - 1). Other
    arrays are returned as they are.
    """
    is_vector = values.ndim == 1 or (values.ndim == 2 and 1 in values.shape)
    if n < 2 or not is_vector or values.size != n * (n - 1) // 2:
        return values
    square = np.zeros((n, n))
    square[np.triu_indices(n, 1)] = values.ravel()
    return square + square.T


def _complete_matrix(path: Path, values: Floats, names: list[str], columns: list[str] | None) -> Floats:
    """A symmetric matrix with its columns in the order of its rows."""
    if values.shape[0] != values.shape[1]:
        raise UserError(f"{path}: is {values.shape[0]} by {values.shape[1]}; a matrix must be square")
    if np.isinf(values).any():
        raise UserError(f"{path}: contains infinite numbers")
    if columns is not None:
        if unknown := [name for name in columns if name not in names]:
            raise UserError(f"{path}: the column {unknown[0]!r} does not match any row")
        _check_unique(columns, f"{path}: duplicate column")
        values = values[:, [columns.index(name) for name in names]]
    values = np.where(np.isnan(values), values.T, values)
    scale = np.nanmax(np.abs(values), initial=0)
    asymmetric = np.argwhere(~np.isclose(values, values.T, 0, _ASYMMETRY * scale, equal_nan=True))
    if len(asymmetric):
        row, column = asymmetric[0]
        raise UserError(
            f"{path}: is not symmetric: {names[row]!r} with {names[column]!r} is "
            f"{values[row, column]:g}, but the other way {values[column, row]:g}"
        )
    return values


def _check_unique(names: list[str], problem: str) -> None:
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{problem} {duplicates[0]!r}")


def _read_item_names(human: HumanSet) -> list[str]:
    if human.items is None:
        raise UserError(f"{human.path}: has no item names; set `items` to a file with one name per line")
    lines = re.split(r"\r\n?|\n", read_text(human.items).rstrip())
    names = [_QUOTED.sub(r"\1", line.split("\t")[0].strip()) for line in lines]
    if "" in names:
        # left out, it would shift the items after it
        raise UserError(f"{human.items}: line {names.index('') + 1} is empty; expected an item")
    return names


def _number_or_nan(cell: str, where: str, what: str) -> float:
    return math.nan if is_missing_number(cell) else cell_number(cell, where, what)


def _read_wide_table(path: Path) -> tuple[list[str], list[str], Floats]:
    """Items (the first column), names of the other columns, and their numbers."""
    table = open_table(path)
    indices = list(range(len(table.columns)))
    if table.columns and table.columns[-1] == _PANDAS_INDEX:
        indices = [indices[-1], *indices[:-1]]
    columns = [table.columns[index] for index in indices]
    names, values = [], []
    for location, row in table.select(indices):
        where = f"{path}: {location}"
        pairs = zip(row, columns, strict=True)
        name, *numbers = (cell_text(cell, where, column) for cell, column in pairs)
        _check_words((name,), where)
        names.append(name)
        values.append([_number_or_nan(number, where, "value") for number in numbers])
    if not values or len(columns) < 2:
        raise UserError(f"{path}: has no numbers next to the item names")
    return names, columns[1:], np.array(values)


def _read_long_features(human: HumanSet) -> tuple[list[str], Floats]:
    """Items and their features, which are 0 where the file has no row."""
    rows: dict[tuple[str, str], float] = {}
    for where, (item, feature, value) in read_columns(human.path, human.columns):
        _check_words((item, feature), where)
        if (item, feature) in rows:
            raise UserError(f"{where}: the feature {feature!r} of {item!r} is listed twice")
        rows[item, feature] = cell_number(value, where, "value")
    return _tabulate(rows)


def read_association_items(human: HumanSet, is_wanted: Callable[[str], bool]) -> tuple[Items, list[str]]:
    """The wanted cues, each with the strengths of its responses, and the other cues."""
    strengths, others = read_associations(human.path, is_wanted)
    return Items(*_tabulate(strengths)), others


def _tabulate(rows: Mapping[tuple[str, str], float]) -> tuple[list[str], Floats]:
    """Items, and a table of items and features that is 0 where there is no row."""
    items = {item: index for index, item in enumerate(dict.fromkeys(item for item, _ in rows))}
    features = {name: index for index, name in enumerate(dict.fromkeys(name for _, name in rows))}
    values = np.zeros((len(items), len(features)))
    for (item, feature), number in rows.items():
        values[items[item], features[feature]] = number
    return list(items), values
