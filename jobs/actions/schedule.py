"""`neuralign schedule`: submits a sweep on a cron schedule.

Whether the job of a slot is submitted is decided once, in the store; the job's id is derived from the
sweep's name and the slot, and a job server accepts an id once. So a scheduler may be killed at any time,
and several may run concurrently.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import takewhile
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from cluster.runtime.job_server import JobServer
from jobs.actions.submit import find_running_job, submit_sweep
from jobs.config.loader import read_sweep
from jobs.config.sweep import Sweep
from jobs.engine.progress import print_line
from storage.errors import NeuralignError, UserError
from storage.store import layout
from storage.store.fingerprint import fingerprint
from storage.store.lease import HEARTBEAT_SECONDS
from storage.store.paths import absolute_path
from storage.store.schedule_slots import ScheduleSlots, slot_name

_FIELDS = 5
_LOCAL_ZONE = Path("/etc/localtime")
_RECENT = timedelta(days=366)
_RETRY_SECONDS = 30.0


class Submitter(Protocol):
    """What a scheduler submits through; raises NeuralignError or OSError if it is unreachable."""

    def find_running_job(self, exclude: str) -> str | None:
        """The id of an active job of this sweep, other than `exclude`."""

    def submit(self, job: str) -> bool:
        """Submit under an id; return whether it was new."""


@dataclass(frozen=True)
class Cron:
    """A cron expression in a time zone.

    Raises:
        UserError: if it is invalid or never fires.
    """

    line: str
    zone: tzinfo = UTC

    def __post_init__(self) -> None:
        if len(self.line.split()) != _FIELDS:
            raise UserError(
                f"--cron {self.line!r}: expected five fields: minute, hour, day of month, month, day of "
                "week, such as '0 3 * * *'"
            )
        try:
            next(self.after(datetime.now(UTC)))
        except CronSimError as error:
            raise UserError(f"--cron {self.line!r}: never fires: {error}") from error
        except StopIteration:
            raise UserError(f"--cron {self.line!r}: never fires") from None

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The slots after a moment, with Debian cron's rules for clock changes: a skipped slot runs
        right after the change, and a repeated one runs once, unless it is hourly or by the minute."""
        last = moment
        for slot in CronSim(self.line, moment.astimezone(self.zone)):
            # a clock change can make two slots coincide
            if slot.astimezone(UTC) > last.astimezone(UTC):
                last = slot
                yield slot

    def due(self, after: datetime, now: datetime) -> list[datetime]:
        """The slots after a moment, up to and including now; if some are recent, only these.

        A clock that was wrong may have recorded the year 1970.
        """
        recent = now - _RECENT
        if after < recent and (slots := self.due(recent, now)):
            return slots
        later = self.after(after)
        return list(takewhile(lambda slot: slot.astimezone(UTC) <= now.astimezone(UTC), later))


@dataclass(frozen=True)
class Scheduler:
    """Decides which slots of a schedule run, and submits their jobs."""

    slots: ScheduleSlots
    cron: Cron
    job_base: str
    submitter: Submitter
    _told: set[str] = field(default_factory=set, init=False)

    def tick(self, since: datetime, now: datetime) -> None:
        """Decide the slots that are due, of which only the latest runs, and submit its job.

        Errors of the submitter propagate; the next tick resumes.
        """
        last = self.slots.last_decision(now)
        due = self.cron.due(last[0] if last else since, now)
        if due:
            self._decide(due, now)
            last = self.slots.last_decision(now)
        if last is None:
            return
        slot, decision = last
        if not decision:
            self._tell_once(f"{slot.isoformat()}: skipped, the file with its decision is damaged")
        elif decision["submit"] and not self.slots.is_done(slot):
            self._submit(slot)

    def _decide(self, due: list[datetime], now: datetime) -> None:
        *missed, slot = due
        if ahead := self.slots.slots_ahead(now):
            self._tell_once(
                f"{ahead[-1].isoformat()}: was decided by a clock ahead of this one; undecided slots "
                "before it run when they are due"
            )
        job = self._job_id(slot)
        running = self.submitter.find_running_job(exclude=job)
        decision = {"submit": running is None, "job": job, "missed": len(missed), "running": running}
        if self.slots.decide(slot, decision) != decision:
            # another scheduler decided first
            return
        if missed:
            print_line(f"missed {len(missed)} runs since {missed[0].isoformat()}; skipped")
        if running is not None:
            print_line(f"{slot.isoformat()}: skipped, {running} is still running")

    def _submit(self, slot: datetime) -> None:
        job = self._job_id(slot)
        is_new = self.submitter.submit(job)
        self.slots.mark_done(slot, job)
        print_line(f"{slot.isoformat()}: {'submitted' if is_new else 'already submitted'} as {job}")

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            print_line(line)

    def _job_id(self, slot: datetime) -> str:
        return f"{self.job_base}-{slot_name(slot)}"


@dataclass(frozen=True)
class JobServerSubmitter:
    """Submits the current version of a sweep file to a job server."""

    file: Path
    sweep: Sweep
    server: JobServer

    def find_running_job(self, exclude: str) -> str | None:
        # Ray's own client would wait indefinitely
        self.server.check()
        return find_running_job(self.server, self.sweep, exclude)

    def submit(self, job: str) -> bool:
        self.server.check()
        _, is_new = submit_sweep(self.server, read_sweep(self.file), job)
        return is_new


def run_schedule(file: Path, cron: str, timezone: str | None, address: str | None) -> None:
    """Submit a sweep on a cron schedule, until interrupted.

    Raises:
        UserError: for an invalid schedule, time zone, sweep, store or job server.
    """
    sweep = read_sweep(file)
    times = Cron(cron, find_time_zone(timezone))
    submitter = JobServerSubmitter(file, sweep, JobServer(address))
    slots = ScheduleSlots(layout.create_store(sweep.store_path), sweep.name)
    schedule_id = f"{file.resolve()} at {cron!r} {times.zone}"
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "keeps": schedule_id}
    since = slots.begin(owner, datetime.now(UTC))
    identity = fingerprint([sweep.name, absolute_path(sweep.store_path)])[:8]
    scheduler = Scheduler(slots, times, f"neuralign-{layout.slug(sweep.name)}-{identity}", submitter)
    next_slot = next(times.after(datetime.now(UTC)))
    print_line(f"{sweep.name}: next run at {next_slot.isoformat()} ({times.zone})")
    retry_at = 0.0
    while True:
        try:
            if time.monotonic() >= retry_at:
                slots.heartbeat()
                now = datetime.now(UTC)
                # the schedule may have been started by a clock that was ahead
                since = min(since, now)
                scheduler.tick(since, now)
        except (NeuralignError, OSError, RuntimeError) as error:
            print_line(f"{error}; retrying in {_RETRY_SECONDS:.0f} s")
            retry_at = time.monotonic() + _RETRY_SECONDS
        time.sleep(_seconds_to_next(times))


def find_time_zone(name: str | None) -> tzinfo:
    """A time zone by name; the local one without a name.

    Raises:
        UserError: if it is unknown.
    """
    local = os.environ.get("TZ", "").lstrip(":")
    if name is None and not local and _LOCAL_ZONE.is_symlink():
        _, _, local = str(_LOCAL_ZONE.resolve()).partition("zoneinfo/")
    zone = name or local or "UTC"
    try:
        return UTC if zone in ("UTC", "Etc/UTC") else ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UserError(
            f"--timezone {zone}: unknown time zone; expected a name such as Europe/Berlin"
        ) from error


def _seconds_to_next(cron: Cron) -> float:
    """Seconds until the next heartbeat or slot, whichever is first."""
    now = datetime.now(UTC)
    to_slot = (next(cron.after(now)).astimezone(UTC) - now) / timedelta(seconds=1)
    return max(0.05, min(HEARTBEAT_SECONDS, to_slot))
