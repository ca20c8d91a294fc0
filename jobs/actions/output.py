"""Output helpers that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, OverflowMethod
from rich.table import Table

from jobs.engine.terminal import DataConsole
from storage.store.paths import is_remote


def stdout_console() -> Console:
    """A console for results (progress goes to stderr); names may look like markup or emoji codes."""
    return DataConsole()


def text_table(
    alignment: Iterable[str],
    names: Iterable[str],
    rows: Iterable[Iterable[Any]],
    overflow: OverflowMethod = "fold",
) -> Table:
    """A table without lines; `alignment` has l (left) or r (right) for each column."""
    table = Table(box=None, pad_edge=False)
    for letter, name in zip(alignment, names, strict=True):
        table.add_column(name, justify="right" if letter == "r" else "left", overflow=overflow)
    for cells in rows:
        table.add_row(*map(str, cells))
    return table


def display_path(path: Path) -> Path:
    """A path relative to the working folder if it is below it."""
    if is_remote(path):
        return path
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
