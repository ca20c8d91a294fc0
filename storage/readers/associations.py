"""Word associations in the layout of Small World of Words: text between tabs, without quotes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from storage.errors import UserError
from storage.readers.cells import cell_number
from storage.readers.file_format import read_text

_COLUMNS = ("cue", "response", "R123.Strength")
_LINE = re.compile(r"[^\r\n]+")


def read_associations(
    path: Path, is_wanted: Callable[[str], bool]
) -> tuple[dict[tuple[str, str], float], list[str]]:
    """The strength of each response to each wanted cue, and the cues that are not wanted.

    R writes the files without quotes (SWOWEN-2018, `createAssoStrengthTable.R`), so that a quotation
    mark is a response like any other. An empty response, which they have, is left out.

    Raises:
        UserError: with file and line, for a missing column, other numbers of cells, a strength that is
            no number, and a response that a cue has twice.
    """
    header, *lines = _LINE.findall(read_text(path)) or [""]
    names = header.split("\t")
    if unknown := [column for column in _COLUMNS if column not in names]:
        raise UserError(
            f"{path}: has no column {unknown[0]!r} between tabs; its columns are {', '.join(names)}"
        )
    indices = [names.index(column) for column in _COLUMNS]
    strengths: dict[tuple[str, str], float] = {}
    others: dict[str, None] = {}
    for number, line in enumerate(lines, 2):
        where, cells = f"{path}: line {number}", line.split("\t")
        if len(cells) != len(names):
            raise UserError(f"{where}: expected {len(names)} columns between tabs, got {len(cells)}")
        cue, response, strength = (cells[index].strip() for index in indices)
        if not is_wanted(cue):
            others[cue] = None
        elif response:
            if (cue, response) in strengths:
                raise UserError(f"{where}: {cue!r} has the response {response!r} twice")
            strengths[cue, response] = cell_number(strength, where, "strength")
    return strengths, list(others)
