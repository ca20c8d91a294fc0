"""The command `neuralign schedule`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.options import ServerAddress, SweepFile


def schedule(
    file: SweepFile,
    cron: Annotated[str, typer.Option(metavar="EXPR", help="Cron expression (five fields).")],
    timezone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Time zone, e.g. Europe/Berlin (default: local)."),
    ] = None,
    address: ServerAddress = None,
) -> None:
    """Submit a sweep on a cron schedule, until interrupted."""
    from jobs.actions.schedule import run_schedule

    run_schedule(file, cron, timezone, address)
