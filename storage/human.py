"""Reading human similarity judgments: scores of pairs of words."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from storage.assets import ASSETS
from storage.errors import UserError
from storage.fingerprint import fingerprint, hash_file


@dataclass(frozen=True)
class HumanSet:
    """Where the judgments are and which columns of the file hold them."""

    name: str
    path: Path
    columns: tuple[str, str, str]
    separator: str = ","
    noun_suffix: str = ""


@dataclass(frozen=True)
class Pairs:
    """Word pairs, each unordered pair once with its mean score; and the file's checksum."""

    name: str
    sha256: str
    scores: dict[tuple[str, str], float]

    @property
    def identity(self) -> str:
        """Stands for the file and for what was read from it: other columns are other judgments."""
        return fingerprint([self.sha256, [[*pair, score] for pair, score in self.scores.items()]])

    def among(self, words: list[str]) -> dict[tuple[str, str], float]:
        """The pairs of two different words of the list."""
        known = set(words)
        return {pair: score for pair, score in self.scores.items() if known.issuperset(pair)}


_CSV_COLUMNS = ("word1", "word2", "similarity")
_TSV_COLUMNS = ("# Word 1", "Word 2", "Human (mean)")


def known_sets() -> list[str]:
    """Names of the data sets that a package carries."""
    return ["men", "simlex999", "wordsim353", "rg65", "mturk771"]


def known_set(name: str) -> HumanSet:
    """A data set that a package carries; UserError when the package is missing."""
    path = ASSETS[name].path()
    if path.suffix == ".csv":
        # MEN marks the part of speech: sun-n; only its nouns name concepts
        return HumanSet(name, path, _CSV_COLUMNS, noun_suffix="-n" if name == "men" else "")
    return HumanSet(name, path, _TSV_COLUMNS, separator="\t")


def read_pairs(human: HumanSet) -> Pairs:
    """Read a data set; a pair that is rated several times gets the mean of its scores.

    Words are compared in lower case. A pair of a word with itself says nothing about similarity
    between concepts and is left out.

    Raises UserError, naming file and line, for a missing file or column and a score that is no
    finite number.
    """
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    suffix = human.noun_suffix
    for where, first_word, second_word, score in _rows(human):
        if not (first_word.endswith(suffix) and second_word.endswith(suffix)):
            continue
        first, second = first_word.removesuffix(suffix), second_word.removesuffix(suffix)
        if first == second:
            continue
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{where}: the score is {score!r}; expected a number")
        scores[min(first, second), max(first, second)].append(value)
    means = {pair: sum(values) / len(values) for pair, values in sorted(scores.items())}
    return Pairs(human.name, hash_file(human.path), means)


def _rows(human: HumanSet) -> list[tuple[str, str, str, str]]:
    if not human.path.is_file():
        raise UserError(f"{human.path}: no such file")
    rows = []
    try:
        lines = human.path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{human.path}: is not UTF-8 text: {error.reason}") from error
    # the published files open with a line that says where they come from
    skipped = 1 if lines and lines[0].startswith("# The ") else 0
    reader = csv.DictReader(lines[skipped:], delimiter=human.separator)
    columns = reader.fieldnames or []
    for column in human.columns:
        if column not in columns:
            raise UserError(
                f"{human.path}: has no column {column!r}; its columns are {', '.join(columns)}"
            )
    for row in reader:
        where = f"{human.path}: line {reader.line_num + skipped}"
        first, second, score = (row[column] for column in human.columns)
        if first is None or second is None or score is None:
            raise UserError(f"{where}: not {len(columns)} columns")
        rows.append((where, first.strip().lower(), second.strip().lower(), score.strip()))
    return rows
