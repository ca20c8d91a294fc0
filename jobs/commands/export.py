"""The command `neuralign export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import StorePath


def export(
    store: StorePath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="New file: .h5 (RDMs of rsatoolbox) or .nc (xarray).")
    ],
    where: Annotated[
        str,
        typer.Option(metavar="SQL", help="Condition on the columns of the view `similarity`."),
    ] = "true",
) -> None:
    """Export similarity matrices for rsatoolbox or xarray."""
    from jobs.actions.export import export_matrices

    export_matrices(store, file, where)
