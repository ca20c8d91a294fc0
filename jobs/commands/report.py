"""The command `neuralign report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import StorePath


def report(
    store: StorePath,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Output folder (default: ./NAME-report for store NAME)."
        ),
    ] = None,
) -> None:
    """Write the HTML report of the latest sweep, with figures as PNG and SVG."""
    from jobs.actions.output import display_path
    from jobs.report import write_latest
    from storage.store.paths import parse_store_path

    root = parse_store_path(store)
    for path in write_latest(root, out or Path(f"{root.name or 'store'}-report")):
        print(display_path(path))
