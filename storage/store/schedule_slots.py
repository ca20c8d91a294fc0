"""The slots of a schedule, recorded in the store: the decision about each slot is final.

STORE/_schedules/<name>/schedule.json    start of the schedule of this name, and its owner
STORE/_schedules/<name>/<slot>.json      decision about a slot, by whoever came first
STORE/_schedules/<name>/<slot>.done      the slot's job was submitted

Other files in the folder are ignored. A clock may jump ahead and back, so slots far ahead of a clock are
not taken for past ones.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import MAXYEAR, UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.readers.strict_json import parse_json
from storage.store.commit import encode_json, put_if_absent, write_json
from storage.store.layout import SCHEDULES, escape_name
from storage.store.lease import HEARTBEAT_SECONDS, read_facts, wait_for_heartbeat
from storage.store.paths import file_version, is_remote, list_dir, read_bytes, remove_file

_SCHEDULE = "schedule.json"
_DECIDED, _DONE = ".json", ".done"
_TIME_FORMAT = "%Y%m%dT%H%MZ"
_SLOT_NAME = re.compile(r"\d{8}T\d{4}Z")
_MAX_DECISIONS = 200
_FIRST_YEAR = 1970
_MAX_CLOCK_DIFFERENCE = timedelta(minutes=5)
"""Hosts' clocks differ; a slot that is further ahead was decided by a clock that was wrong."""


class ScheduleSlots:
    """The slots of one schedule of a store."""

    def __init__(self, store: Path, name: str) -> None:
        self._folder = store / SCHEDULES / escape_name(name)
        self._name = name

    def begin(self, owner: dict[str, Any], now: datetime) -> datetime:
        """Start or resume the schedule; returns when it was started, which is never after `now`.

        `owner` describes the schedule (`keeps`) and the process that runs it.

        Raises:
            UserError: if another schedule of this name is running.
        """
        path = self._folder / _SCHEDULE
        record = {**owner, "since": now.astimezone(UTC).isoformat()}
        if put_if_absent(self._folder, _SCHEDULE, encode_json(record)):
            return now
        previous = read_facts(path) or {}
        is_other = previous.get("keeps") != owner["keeps"]
        if is_other and wait_for_heartbeat(path, 2 * HEARTBEAT_SECONDS):
            raise UserError(
                f"{self._folder.parent.parent}: another schedule named {self._name!r} is already run by "
                f"process {previous.get('pid')} on host {previous.get('host')}: "
                f"{previous.get('keeps')}; stop it or rename this sweep"
            )
        # the previous start is after now if the clock was wrong then
        since = min(now, _parse_time(previous.get("since")) or now)
        write_json(self._folder, _SCHEDULE, {**record, "since": since.astimezone(UTC).isoformat()})
        return since

    def heartbeat(self) -> None:
        """Signal that the schedule is running."""
        path = self._folder / _SCHEDULE
        if is_remote(path):
            beat = datetime.now(UTC).isoformat()
            write_json(self._folder, _SCHEDULE, {**(read_facts(path) or {}), "beat": beat})
        else:
            with suppress(FileNotFoundError):
                os.utime(path)

    def last_decision(self, now: datetime) -> tuple[datetime, dict[str, Any]] | None:
        """The latest decided slot up to now, and the decision, which is empty if its file is damaged."""
        decided = [slot for slot in self._decided_slots() if slot <= now + _MAX_CLOCK_DIFFERENCE]
        return (decided[-1], self._read_decision(decided[-1])) if decided else None

    def slots_ahead(self, now: datetime) -> list[datetime]:
        """Slots that were decided by a clock that was ahead of `now`."""
        return [slot for slot in self._decided_slots() if slot > now + _MAX_CLOCK_DIFFERENCE]

    def decide(self, slot: datetime, decision: dict[str, Any]) -> dict[str, Any]:
        """Record a decision unless the slot has one; returns the recorded decision."""
        if put_if_absent(self._folder, f"{slot_name(slot)}{_DECIDED}", encode_json(decision)):
            self._remove_old_decisions(slot)
            return decision
        return self._read_decision(slot)

    def is_done(self, slot: datetime) -> bool:
        """Whether the slot's job is known to have been submitted."""
        return file_version(self._folder / f"{slot_name(slot)}{_DONE}") is not None

    def mark_done(self, slot: datetime, job: str) -> None:
        """Record that the slot's job was submitted."""
        put_if_absent(self._folder, f"{slot_name(slot)}{_DONE}", f"{job}\n".encode())

    def _read_decision(self, slot: datetime) -> dict[str, Any]:
        path = self._folder / f"{slot_name(slot)}{_DECIDED}"
        with suppress(ValueError, IsADirectoryError):
            decision = parse_json(read_bytes(path))
            if isinstance(decision, dict) and isinstance(decision.get("submit"), bool):
                return decision
        return {}

    def _decided_slots(self) -> list[datetime]:
        """The slots that have a decision, in order."""
        slots = (_parse_slot(path.stem) for path in list_dir(self._folder) if path.suffix == _DECIDED)
        return [slot for slot in slots if slot is not None]

    def _remove_old_decisions(self, decided: datetime) -> None:
        """Remove decisions that are old when `decided` has just been decided."""
        # slots after it were decided by a clock that was ahead
        past = [slot for slot in self._decided_slots() if slot <= decided]
        for slot in past[:-_MAX_DECISIONS]:
            for suffix in (_DECIDED, _DONE):
                # a folder of that name is not ours
                with suppress(IsADirectoryError, PermissionError):
                    remove_file(self._folder / f"{slot_name(slot)}{suffix}")


def slot_name(slot: datetime) -> str:
    """A slot's time in UTC, as used in file and job names."""
    return slot.astimezone(UTC).strftime(_TIME_FORMAT)


def _parse_slot(name: str) -> datetime | None:
    """The slot of a name; None if it is not the name of a slot."""
    if _SLOT_NAME.fullmatch(name):
        with suppress(ValueError):
            return _plausible(datetime.strptime(name, _TIME_FORMAT).replace(tzinfo=UTC))
    return None


def _parse_time(text: object) -> datetime | None:
    if isinstance(text, str):
        with suppress(ValueError):
            time = datetime.fromisoformat(text)
            return _plausible(time if time.tzinfo else time.replace(tzinfo=UTC))
    return None


def _plausible(time: datetime) -> datetime | None:
    """A time that a clock can show, which time zones cannot move out of Python's range; else None."""
    return time if _FIRST_YEAR <= time.year < MAXYEAR else None
