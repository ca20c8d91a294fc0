"""The slots of a schedule, recorded in the store: the decision about each slot is final.

STORE/_schedules/<name>/schedule.json    start of the schedule of this name, and its owner
STORE/_schedules/<name>/<slot>.json      decision about a slot, by whoever came first
STORE/_schedules/<name>/<slot>.done      the slot's job was submitted
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.store.commit import encode_json, put_if_absent, write_json
from storage.store.layout import SCHEDULES, escape_name
from storage.store.lease import HEARTBEAT_SECONDS, last_heartbeat, read_lease, wait_for_heartbeat
from storage.store.paths import is_remote, list_dir, read_bytes, remove_file

_SCHEDULE = "schedule.json"
_DECIDED, _DONE = ".json", ".done"
_TIME_FORMAT = "%Y%m%dT%H%MZ"
_MAX_DECISIONS = 200


class ScheduleSlots:
    """The slots of one schedule of a store."""

    def __init__(self, store: Path, name: str) -> None:
        self._folder = store / SCHEDULES / escape_name(name)
        self._name = name

    def begin(self, owner: dict[str, Any], now: datetime) -> datetime:
        """Start or resume the schedule; returns when it was started.

        `owner` describes the schedule (`keeps`) and the process that runs it.

        Raises:
            UserError: if another schedule of this name is running.
        """
        path = self._folder / _SCHEDULE
        record = {**owner, "since": now.astimezone(UTC).isoformat()}
        if put_if_absent(self._folder, _SCHEDULE, encode_json(record)):
            return now
        previous = read_lease(path) or record
        is_other = previous.get("keeps") != owner["keeps"]
        if is_other and wait_for_heartbeat(path, 2 * HEARTBEAT_SECONDS):
            raise UserError(
                f"{self._folder.parent.parent}: another schedule named {self._name!r} is already run by "
                f"process {previous.get('pid')} on host {previous.get('host')}: "
                f"{previous.get('keeps')}; stop it or rename this sweep"
            )
        record["since"] = previous.get("since", record["since"])
        write_json(self._folder, _SCHEDULE, record)
        return datetime.fromisoformat(record["since"])

    def heartbeat(self) -> None:
        """Signal that the schedule is running."""
        path = self._folder / _SCHEDULE
        if is_remote(path):
            record = read_lease(path) or {}
            write_json(self._folder, _SCHEDULE, {**record, "beats": record.get("beats", 0) + 1})
        else:
            with suppress(FileNotFoundError):
                os.utime(path)

    def last_decision(self) -> tuple[datetime, dict[str, Any]] | None:
        """The latest decided slot and the decision."""
        names = self._decided_names()
        if not names:
            return None
        decision: dict[str, Any] = json.loads(read_bytes(self._folder / f"{names[-1]}{_DECIDED}"))
        return datetime.strptime(names[-1], _TIME_FORMAT).replace(tzinfo=UTC), decision

    def decide(self, slot: datetime, decision: dict[str, Any]) -> dict[str, Any]:
        """Record a decision unless the slot has one; returns the recorded decision."""
        name = f"{slot_name(slot)}{_DECIDED}"
        if put_if_absent(self._folder, name, encode_json(decision)):
            self._remove_old_decisions()
            return decision
        earlier: dict[str, Any] = json.loads(read_bytes(self._folder / name))
        return earlier

    def is_done(self, slot: datetime) -> bool:
        """Whether the slot's job is known to have been submitted."""
        return last_heartbeat(self._folder / f"{slot_name(slot)}{_DONE}") is not None

    def mark_done(self, slot: datetime, job: str) -> None:
        """Record that the slot's job was submitted."""
        put_if_absent(self._folder, f"{slot_name(slot)}{_DONE}", f"{job}\n".encode())

    def _decided_names(self) -> list[str]:
        paths = list_dir(self._folder)
        return [path.stem for path in paths if path.suffix == _DECIDED and path.name != _SCHEDULE]

    def _remove_old_decisions(self) -> None:
        for name in self._decided_names()[:-_MAX_DECISIONS]:
            for suffix in (_DECIDED, _DONE):
                remove_file(self._folder / f"{name}{suffix}")


def slot_name(slot: datetime) -> str:
    """A slot's time in UTC, as used in file and job names."""
    return slot.astimezone(UTC).strftime(_TIME_FORMAT)
