"""The command `neuralign logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.options import Follow, ServerAddress


def logs(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Job id (default: list all jobs).")
    ] = None,
    address: ServerAddress = None,
    follow: Follow = False,
) -> int:
    """Print the logs of a submitted job, or list the jobs."""
    from jobs.actions.submit import print_logs

    return print_logs(job, address, follow)
