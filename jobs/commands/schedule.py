"""Submitting a sweep again and again, at the times of a cron line.

Of each slot it is decided once for good in the store whether its job is submitted; the job's id is made
from the sweep's name and the slot, and a job server takes an id once. So it does not matter when the
scheduler is killed, and several may run side by side.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.config import Sweep, read_sweep
from jobs.engine.progress import say
from storage.errors import NeuralignError, UserError
from storage.store import layout
from storage.store.fingerprint import fingerprint
from storage.store.lease import HEARTBEAT_SECONDS
from storage.store.paths import absolute
from storage.store.schedule_slots import Slots, slot_name

if TYPE_CHECKING:
    from cluster.runtime.job_server import JobServer

_FIELDS = 5
_LOCAL_ZONE = Path("/etc/localtime")
_RETRY_SECONDS = 30.0


class Submitter(Protocol):
    """What a scheduler submits through. Both raise NeuralignError or OSError when nobody answers."""

    def running(self, but: str) -> str | None:
        """The id of a job of this sweep that has not ended, other than `but`."""

    def submit(self, job: str) -> bool:
        """Submit under an id; whether it was new."""


@dataclass(frozen=True)
class Cron:
    """A cron line in a time zone. Raises UserError for one that never fires."""

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
        """The slots after a moment, as Debian's cron has them: what a change of the clocks skips is run
        right after it, and what it repeats is not run twice, unless it is run every hour or minute."""
        last = moment
        for slot in CronSim(self.line, moment.astimezone(self.zone)):
            # two slots that a change of the clocks makes one
            if slot.astimezone(UTC) > last.astimezone(UTC):
                last = slot
                yield slot

    def due(self, after: datetime, now: datetime) -> list[datetime]:
        """The slots after a moment and not after now."""
        found = []
        for slot in self.after(after):
            if slot.astimezone(UTC) > now.astimezone(UTC):
                break
            found.append(slot)
        return found


class Scheduler:
    """Decides of each slot of a schedule, and submits what is to be submitted."""

    def __init__(self, slots: Slots, cron: Cron, job_base: str, submitter: Submitter) -> None:
        self._slots = slots
        self._cron = cron
        self._job_base = job_base
        self._submitter = submitter

    def tick(self, since: datetime, now: datetime) -> None:
        """Do what is due: of all slots since the last that was decided, the latest alone is run.

        What the submitter raises is raised; nothing is lost by it, the next tick does what this did not.
        """
        last = self._slots.last()
        due = self._cron.due(last[0] if last else since, now)
        if due:
            self._decide(due)
            last = self._slots.last()
        if last is not None and last[1]["submit"] and not self._slots.is_done(last[0]):
            self._submit(last[0])

    def _decide(self, due: list[datetime]) -> None:
        *missed, slot = due
        job = self._job(slot)
        other = self._submitter.running(but=job)
        decision = {"submit": other is None, "job": job, "missed": len(missed), "running": other}
        held = self._slots.decide(slot, decision)
        if held != decision:
            # another scheduler was first
            return
        if missed:
            say(f"{len(missed)} slots were missed, since {missed[0].isoformat()}; they are not run")
        if other is not None:
            say(f"{slot.isoformat()}: skipped, {other} still runs")

    def _submit(self, slot: datetime) -> None:
        job = self._job(slot)
        is_new = self._submitter.submit(job)
        self._slots.mark_done(slot, job)
        say(f"{slot.isoformat()}: {'submitted' if is_new else 'was submitted before'} as {job}")

    def _job(self, slot: datetime) -> str:
        return f"{self._job_base}-{slot_name(slot)}"


def keep(file: Path, line: str, zone: str | None, connect: Callable[[], JobServer]) -> None:
    """Keep the schedule of a sweep file until the process is ended.

    Raises UserError for what is wrong with the line, the zone, the file, the store or the job server.
    """
    sweep = read_sweep(file)
    cron = Cron(line, find_zone(zone))
    submitter = _ToServer(file, sweep, connect())
    slots = Slots(layout.create(sweep.store_path), sweep.name)
    who = {"host": socket.gethostname(), "pid": os.getpid()}
    since = slots.begin({**who, "keeps": f"{file.resolve()} at {line!r} {cron.zone}"}, datetime.now(UTC))
    where = fingerprint([sweep.name, absolute(sweep.store_path)])[:8]
    scheduler = Scheduler(slots, cron, f"neuralign-{layout.slug(sweep.name)}-{where}", submitter)
    say(f"{sweep.name}: next at {next(cron.after(datetime.now(UTC))).isoformat()} ({cron.zone})")
    silent_until = 0.0  # after an error
    while True:
        try:
            if time.monotonic() >= silent_until:
                slots.beat()
                scheduler.tick(since, datetime.now(UTC))
        except (NeuralignError, OSError, RuntimeError) as error:
            say(f"{error}; tried again in {_RETRY_SECONDS:.0f} s")
            silent_until = time.monotonic() + _RETRY_SECONDS
        time.sleep(_pause(cron))


def find_zone(name: str | None) -> tzinfo:
    """The time zone of a name; without one that of this machine. Raises UserError."""
    local = os.environ.get("TZ", "").lstrip(":")
    if name is None and not local and _LOCAL_ZONE.is_symlink():
        _, _, local = str(_LOCAL_ZONE.resolve()).partition("zoneinfo/")
    wanted = name or local or "UTC"
    try:
        return UTC if wanted in ("UTC", "Etc/UTC") else ZoneInfo(wanted)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UserError(
            f"--timezone {wanted}: is not known here; expected a name such as Europe/Berlin"
        ) from error


class _ToServer:
    """Submits a sweep file, as it is at the time, to a job server."""

    def __init__(self, file: Path, sweep: Sweep, server: JobServer) -> None:
        self._file = file
        self._sweep = sweep
        self._server = server

    def running(self, but: str) -> str | None:
        from jobs.commands.submit import running

        # Ray's own client would wait for an answer without end
        self._server.check()
        return running(self._server, self._sweep, but)

    def submit(self, job: str) -> bool:
        from jobs.commands.submit import submit

        self._server.check()
        _, is_new = submit(self._server, read_sweep(self._file), job)
        return is_new


def _pause(cron: Cron) -> float:
    """Seconds until there is something to do: a beat, or the next slot."""
    now = datetime.now(UTC)
    to_slot = (next(cron.after(now)).astimezone(UTC) - now) / timedelta(seconds=1)
    return max(0.05, min(HEARTBEAT_SECONDS, to_slot))
