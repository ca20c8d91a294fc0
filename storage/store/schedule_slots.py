"""The slots of a schedule, recorded in the store: what was decided of each, once for good.

STORE/_schedules/<name>/schedule.json    since when there is a schedule of this name, and who keeps it
STORE/_schedules/<name>/<slot>.json      what was decided of a slot, by the one who was first
STORE/_schedules/<name>/<slot>.done      that its job was submitted
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.store.commit import as_json, put_if_absent, write_json
from storage.store.layout import SCHEDULES, escaped
from storage.store.lease import HEARTBEAT_SECONDS, pulse, read_lease
from storage.store.paths import entries, is_remote, read_bytes, remove

_SCHEDULE = "schedule.json"
_DECIDED, _DONE = ".json", ".done"
_FORM = "%Y%m%dT%H%MZ"
_KEPT = 200


class Slots:
    """The slots of the schedule of one name in a store."""

    def __init__(self, store: Path, name: str) -> None:
        self._folder = store / SCHEDULES / escaped(name)
        self._name = name

    def begin(self, keeper: dict[str, Any], now: datetime) -> datetime:
        """Take the schedule up, or begin it; since when it is.

        `keeper` is what is kept (`keeps`), and who keeps it. Raises UserError when someone alive keeps
        another schedule of this name.
        """
        path = self._folder / _SCHEDULE
        mine = {**keeper, "since": now.astimezone(UTC).isoformat()}
        if put_if_absent(self._folder, _SCHEDULE, as_json(mine)):
            return now
        theirs = read_lease(path) or mine
        if theirs.get("keeps") != keeper["keeps"] and self._is_kept(path):
            who = f"process {theirs.get('pid')} on {theirs.get('host')}"
            raise UserError(
                f"{self._folder.parent.parent}: another schedule named {self._name!r} is kept by {who}: "
                f"{theirs.get('keeps')}; stop it or give this sweep another name"
            )
        mine["since"] = theirs.get("since", mine["since"])
        write_json(self._folder, _SCHEDULE, mine)
        return datetime.fromisoformat(mine["since"])

    def beat(self) -> None:
        """Show that the schedule is kept."""
        path = self._folder / _SCHEDULE
        if is_remote(path):
            found = read_lease(path) or {}
            write_json(self._folder, _SCHEDULE, {**found, "beats": found.get("beats", 0) + 1})
        else:
            with suppress(FileNotFoundError):
                os.utime(path)

    def last(self) -> tuple[datetime, dict[str, Any]] | None:
        """The last slot of which something was decided, and what."""
        decided = self._decided()
        if not decided:
            return None
        content: dict[str, Any] = json.loads(read_bytes(self._folder / f"{decided[-1]}{_DECIDED}"))
        return datetime.strptime(decided[-1], _FORM).replace(tzinfo=UTC), content

    def decide(self, slot: datetime, decision: dict[str, Any]) -> dict[str, Any]:
        """Decide of a slot unless it was decided; the decision that holds."""
        name = f"{slot_name(slot)}{_DECIDED}"
        if put_if_absent(self._folder, name, as_json(decision)):
            self._forget()
            return decision
        held: dict[str, Any] = json.loads(read_bytes(self._folder / name))
        return held

    def is_done(self, slot: datetime) -> bool:
        """Whether the job of a slot is known to have been submitted."""
        return pulse(self._folder / f"{slot_name(slot)}{_DONE}") is not None

    def mark_done(self, slot: datetime, job: str) -> None:
        """Record that the job of a slot was submitted."""
        put_if_absent(self._folder, f"{slot_name(slot)}{_DONE}", f"{job}\n".encode())

    def _decided(self) -> list[str]:
        return [
            path.stem
            for path in entries(self._folder)
            if path.suffix == _DECIDED and path.name != _SCHEDULE
        ]

    def _forget(self) -> None:
        for name in self._decided()[:-_KEPT]:
            for ending in (_DECIDED, _DONE):
                remove(self._folder / f"{name}{ending}")

    def _is_kept(self, path: Path) -> bool:
        before, until = pulse(path), time.monotonic() + 2 * HEARTBEAT_SECONDS
        while time.monotonic() < until:
            time.sleep(HEARTBEAT_SECONDS / 10)
            if pulse(path) != before:
                return True
        return False


def slot_name(slot: datetime) -> str:
    """A slot's time as it stands in names, in UTC."""
    return slot.astimezone(UTC).strftime(_FORM)
