"""Reading the nouns of WordNet 3.x from its own files, the folder `dict` of a release."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from storage.errors import UserError

INDEX, DATA = "index.noun", "data.noun"

_HYPERNYMS = ("@", "@i")
_SENSE = re.compile(r"(?P<lemma>.+)\.n\.(?P<number>\d+)")
_OFFSET = re.compile(r"(?P<offset>\d{8})-?n?")


@dataclass(frozen=True)
class Nouns:
    """Synsets by their offset: `senses` of each lemma, the commonest first, and `hypernyms` of each."""

    senses: dict[str, list[int]]
    hypernyms: dict[int, list[int]]

    def synset(self, name: str, sense: str | None) -> int | None:
        """The synset of a concept: of its sense, written dog.n.01 or 02084071-n, else the commonest of
        its name. None where WordNet has none."""
        if sense and (match := _OFFSET.fullmatch(sense)):
            offset = int(match["offset"])
            return offset if offset in self.hypernyms else None
        number = 1
        if sense and (match := _SENSE.fullmatch(sense)):
            name, number = match["lemma"], int(match["number"])
        found = self.senses.get(re.sub(r"[\s_]+", "_", name.strip().lower()), [])
        return found[number - 1] if 0 < number <= len(found) else None


def read_nouns(folder: Path) -> Nouns:
    """Raises UserError for a folder without WordNet's files, or files that are none of WordNet's."""
    try:
        senses = dict(_sense(line) for line in _lines(folder / INDEX))
        hypernyms = dict(_synset(line) for line in _lines(folder / DATA))
    except (ValueError, IndexError) as error:
        raise UserError(f"{folder}: {INDEX} or {DATA} is not in WordNet's format: {error}") from error
    return Nouns(senses, hypernyms)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder `dict` of a WordNet release")
    # the licence at the top is set in by two spaces
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", " ")]


def _sense(line: str) -> tuple[str, list[int]]:
    """lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt offset [offset...]"""
    fields = line.split()
    return fields[0], [int(offset) for offset in fields[6 + int(fields[3]) :]]


def _synset(line: str) -> tuple[int, list[int]]:
    """offset lex_filenum ss_type w_cnt(hex) [word lex_id]... p_cnt [symbol offset pos source]..."""
    fields = line.partition(" | ")[0].split()
    first = 5 + 2 * int(fields[3], 16)
    pointers = [fields[at : at + 2] for at in range(first, first + 4 * int(fields[first - 1]), 4)]
    return int(fields[0]), [int(offset) for symbol, offset in pointers if symbol in _HYPERNYMS]
