"""`neuralign submit` and `logs`: a sweep as a Ray job; submission is idempotent."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from cluster.runtime.job_server import JobServer, is_active
from jobs.actions.working_dir import files_to_upload, sweep_identity, write_working_dir
from jobs.config.loader import read_sweep
from jobs.config.sweep import Sweep
from jobs.engine.progress import print_line
from storage.errors import UserError
from storage.printable import printable
from storage.store.layout import slug
from storage.store.paths import absolute_path

SWEEP, STORE, IDENTITY = "neuralign sweep", "neuralign store", "neuralign identity"
"""Keys of a job's metadata."""
_MAX_FILES_LISTED = 20
_COLOR = re.compile(r"\x1b\[[\d;]*m")


def submit_file(file: Path, address: str | None, follow: bool) -> int:
    """Submit a sweep file and print the job's id, or its logs; return the exit code."""
    sweep = read_sweep(file)
    server = JobServer(address)
    _list_uploads(sweep)
    job, is_new = submit_sweep(server, sweep)
    action = "submitted" if is_new else "already submitted"
    print_line(f"{job}: {action} to {server.address}; results: {sweep.store_path}")
    if follow:
        return server.follow(job, _write_log)
    print(job)
    return 0


def print_logs(job: str | None, address: str | None, follow: bool) -> int:
    """Print the logs of a job, or without a job the list of all; return the exit code."""
    server = JobServer(address)
    if job is None:
        for details in server.jobs():
            sweep_name = (details.metadata or {}).get(SWEEP, "")
            print(printable(f"{details.submission_id}  {details.status}  {sweep_name}"))
        return 0
    text = server.logs(job)
    if follow:
        return server.follow(job, _write_log)
    _write_log(text)
    return 0


def submit_sweep(server: JobServer, sweep: Sweep, slot_job: str | None = None) -> tuple[str, bool]:
    """Submit a sweep unless its job is running, or succeeded and left nothing to compute.

    A failed or stopped job is retried. A schedule submits each slot once, under the id `slot_job`,
    whatever its outcome. Returns the job's id and whether this call submitted it.

    Raises:
        UserError: if another sweep of the same name is writing to the same store.
    """
    identity = sweep_identity(sweep)
    for job in _active_jobs(server, sweep):
        if job.metadata.get(IDENTITY) != identity:
            raise UserError(
                f"another sweep named {sweep.name!r} is writing to {absolute_path(sweep.store_path)} as "
                f"{job.submission_id}; rename this one, or wait"
            )

    def should_retry(job: Any) -> bool:
        return slot_job is None and (str(job.status) != "SUCCEEDED" or _has_work(sweep))

    with tempfile.TemporaryDirectory(prefix="neuralign-") as folder:
        file = write_working_dir(sweep, Path(folder))
        entrypoint = f"python -m jobs.sweep {shlex.quote(file)}"
        job_id = slot_job or f"neuralign-{slug(sweep.name)}-{identity}"
        metadata = _target(sweep) | {IDENTITY: identity}
        return server.submit(job_id, entrypoint, Path(folder), metadata, should_retry)


def find_running_job(server: JobServer, sweep: Sweep, exclude: str) -> str | None:
    """The id of a job, other than `exclude`, that runs a sweep of this name into its store."""
    ids = (str(job.submission_id) for job in _active_jobs(server, sweep))
    return next((job_id for job_id in ids if job_id != exclude), None)


def _list_uploads(sweep: Sweep) -> None:
    """Print the files that are sent to the cluster, besides the sweep file and neuralign's code."""
    sizes = files_to_upload(sweep)
    for number, (file, size) in enumerate(sizes.items()):
        if number == _MAX_FILES_LISTED:
            rest = sum(list(sizes.values())[number:])
            print_line(f"  and {len(sizes) - number:,} more files, {rest:,} bytes")
            break
        target = f" -> {file.resolve()}" if file.is_symlink() else ""
        print_line(f"  uploads {os.path.relpath(file, sweep.folder)}{target}, {size:,} bytes")


def _write_log(text: str) -> None:
    # colors of the cluster's own log lines are dropped, too
    print(printable(_COLOR.sub("", text), keep="\n\r\t"), end="", flush=True)


def _active_jobs(server: JobServer, sweep: Sweep) -> list[Any]:
    """Active jobs that run a sweep of this name into its store."""
    target = _target(sweep).items()
    return [job for job in server.jobs() if is_active(job) and target <= (job.metadata or {}).items()]


def _target(sweep: Sweep) -> dict[str, str]:
    return {SWEEP: sweep.name, STORE: absolute_path(sweep.store_path)}


def _has_work(sweep: Sweep) -> bool:
    """Whether a finished sweep has work left: a model has a new revision, or results were deleted.

    False if the sweep cannot be planned on this machine.
    """
    from jobs.planner import plan_sweep

    try:
        planned = plan_sweep(sweep)
        return not all(stage.is_done(sweep.store_path) for stage in planned.stages)
    except UserError:
        return False
