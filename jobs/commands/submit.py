"""Submitting a sweep to a cluster: the same sweep submitted twice is one job."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.commands.working_dir import identity, make_bundle
from jobs.config import Sweep
from storage.errors import UserError
from storage.store.layout import slug
from storage.store.paths import absolute

if TYPE_CHECKING:
    from cluster.runtime.job_server import JobServer

SWEEP, STORE, IDENTITY = "neuralign sweep", "neuralign store", "neuralign identity"
"""Keys of what a job says of itself."""


def base_id(sweep: Sweep) -> str:
    """What the ids of a sweep's jobs begin with."""
    return f"neuralign-{slug(sweep.name)}-{identity(sweep)}"


def submit(server: JobServer, sweep: Sweep, slot: str | None = None) -> tuple[str, bool]:
    """Submit a sweep unless it is under way, or done with nothing left to compute.

    A job that failed or was stopped gets another attempt. The job of a `slot` of a schedule, whose id
    that is, is submitted once whatever becomes of it. Returns the job's id, and whether this call
    submitted it. Raises UserError where another sweep of the same name runs into the same store.
    """
    facts = {SWEEP: sweep.name, STORE: absolute(sweep.store_path), IDENTITY: identity(sweep)}
    _check_name(server, facts)

    def again(job: Any) -> bool:
        return slot is None and (str(job.status) != "SUCCEEDED" or _has_work(sweep))

    with tempfile.TemporaryDirectory(prefix="neuralign-") as folder:
        file = make_bundle(sweep, Path(folder))
        entrypoint = f"python -m jobs.sweep '{file}'"
        return server.submit(slot or base_id(sweep), entrypoint, Path(folder), facts, again)


def running(server: JobServer, sweep: Sweep, but: str) -> str | None:
    """The id of a job, other than `but`, that runs a sweep of this name into its store."""
    from cluster.runtime.job_server import is_living

    wanted = {SWEEP: sweep.name, STORE: absolute(sweep.store_path)}
    for job in server.jobs():
        is_other = is_living(job) and job.submission_id != but
        if is_other and wanted.items() <= (job.metadata or {}).items():
            return str(job.submission_id)
    return None


def _check_name(server: JobServer, facts: dict[str, str]) -> None:
    from cluster.runtime.job_server import is_living

    for job in server.jobs():
        theirs = job.metadata or {}
        same_name = all(theirs.get(key) == facts[key] for key in (SWEEP, STORE))
        if is_living(job) and same_name and theirs.get(IDENTITY) != facts[IDENTITY]:
            raise UserError(
                f"another sweep named {facts[SWEEP]!r} runs into {facts[STORE]} as {job.submission_id}; "
                "give this one another name, or wait"
            )


def _has_work(sweep: Sweep) -> bool:
    """Whether a sweep that was done has something left: a model has a new revision, or the store is
    gone. Where that cannot be told from here it has not."""
    from jobs.planner import plan

    try:
        planned = plan(sweep)
        return not all(stage.is_done(sweep.store_path) for stage in planned.stages)
    except UserError:
        return False
