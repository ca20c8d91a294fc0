"""The command `neuralign doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import ServerAddress


def doctor(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Also check this sweep file.")
    ] = None,
    address: ServerAddress = None,
) -> int:
    """Check versions, devices, Ray, memory, disk, store and Hub, and suggest fixes."""
    from jobs.actions.doctor import print_checks

    return print_checks(file, address)
