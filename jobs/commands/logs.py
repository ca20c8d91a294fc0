"""The command `neuralign logs`."""

from typing import Annotated

import typer

from cluster.runtime.job_server import JobServer
from jobs.commands.options import Follow, ServerAddress, write_log
from jobs.commands.submit import SWEEP


def logs(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Job id (default: list all jobs).")
    ] = None,
    address: ServerAddress = None,
    follow: Follow = False,
) -> int:
    """Print the logs of a submitted job, or list the jobs."""
    server = JobServer(address)
    if job is None:
        for details in server.jobs():
            sweep_name = (details.metadata or {}).get(SWEEP, "")
            print(details.submission_id, details.status, sweep_name, sep="  ")
        return 0
    text = server.logs(job)
    if follow:
        return server.follow(job, write_log)
    write_log(text)
    return 0
