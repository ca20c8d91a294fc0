"""The sites of a sweep's models, for people to check before a run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Console

from cluster.models.size import ModelSize

_MAX_NAMES = 3


def print_sites(console: Console, sizes: Mapping[str, ModelSize]) -> None:
    """Print the sites of models, once for those with the same; `sizes` are by model."""
    names_by_sites: dict[tuple[str, ...], list[str]] = {}
    for name, size in sizes.items():
        lines = (*map(str, size.sites), *(f"note: {note}" for note in size.notes))
        names_by_sites.setdefault(lines, []).append(name)
    for lines, names in names_by_sites.items():
        console.print(f"Sites of {list_names(names)}:", soft_wrap=True)
        for line in lines:
            wrapped = textwrap.fill(
                line,
                console.width,
                initial_indent="  ",
                subsequent_indent="    ",
                break_on_hyphens=False,
            )
            console.print(wrapped, soft_wrap=True)


def list_names(names: Sequence[str]) -> str:
    """The first few of some models' names, and the number of the others."""
    others = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {others} more" if others > 0 else "")
