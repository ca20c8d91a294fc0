"""A slot must never be submitted twice, and none be lost, whoever is killed when; and slots must be when
a user of cron expects them."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest

from jobs.commands.schedule import Cron, Scheduler, find_zone
from storage.errors import UserError
from storage.store.schedule_slots import Slots

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: thousands of slots are flushed to it. Few of them are kept."""
    place = Path("/dev/shm")  # noqa: S108
    with (
        tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder,
        patch("storage.store.schedule_slots._KEPT", 20),
    ):
        yield Path(folder)


class Killed(BaseException):
    pass


class Server:
    """Takes each id once, as Ray's does; may kill who asks, before or after it did what it is asked."""

    def __init__(self, chance: random.Random, kills: float = 0.0) -> None:
        self.chance = chance
        self.kills = kills
        self.jobs: list[str] = []
        self.known: set[str] = set()
        self.alive: str | None = None

    def _may_kill(self) -> None:
        if self.chance.random() < self.kills:
            raise Killed

    def running(self, but: str) -> str | None:
        self._may_kill()
        return self.alive if self.alive != but else None

    def submit(self, job: str) -> bool:
        self._may_kill()
        is_new = job not in self.known
        if is_new:
            self.known.add(job)
            self.jobs.append(job)
        self._may_kill()
        return is_new


class KillingSlots(Slots):
    """Kills who records something, before or after it is recorded."""

    server: Server

    def decide(self, slot: datetime, decision: dict[str, Any]) -> dict[str, Any]:
        self.server._may_kill()
        held = super().decide(slot, decision)
        self.server._may_kill()
        return held

    def mark_done(self, slot: datetime, job: str) -> None:
        self.server._may_kill()
        super().mark_done(slot, job)
        self.server._may_kill()


def _keep(
    store: Path, line: str, server: Server, start: datetime, end: datetime, step: timedelta
) -> list[datetime]:
    """Two schedulers side by side from one day to another, who tick in random order and are started
    again when they are killed; the slots whose jobs were submitted."""
    slots = KillingSlots(store, "study")
    slots.server = server
    keepers = [Scheduler(slots, Cron(line, BERLIN), "job", server) for _ in range(2)]
    now = start
    while now < end:
        now += step
        for keeper in server.chance.sample(keepers, 2):
            while True:
                try:
                    keeper.tick(start, now)
                    break
                except Killed:
                    continue
    return [
        datetime.strptime(job.removeprefix("job-"), "%Y%m%dT%H%MZ").replace(tzinfo=UTC)
        for job in server.jobs
    ]


def test_every_slot_of_years_is_submitted_once_though_schedulers_are_killed(memory: Path) -> None:
    """Once every local day, also on those of 23 and 25 hours, when 2:30 is not there or there twice."""
    server = Server(random.Random(0), 0.2)
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)
    found = _keep(memory, "30 2 * * *", server, start, end, timedelta(hours=12))
    local = [slot.astimezone(BERLIN) for slot in found]
    days = [date(2026, 1, 1) + timedelta(days=n) for n in range(3 * 365 + 1)]
    assert [slot.date() for slot in local] == days
    for slot in local:
        spring = slot.month == 3 and slot.weekday() == 6 and slot.day > 24
        assert (slot.hour, slot.minute) == ((3, 0) if spring else (2, 30))


def test_hourly_slots_are_every_real_hour(memory: Path) -> None:
    """The hour that is there twice in autumn is two hours, and the one that is not there none."""
    server = Server(random.Random(1), 0.05)
    start = datetime(2026, 10, 20, tzinfo=UTC)
    found = _keep(memory, "15 * * * *", server, start, start + timedelta(days=10), timedelta(minutes=30))
    expected = [start + timedelta(minutes=15, hours=n) for n in range(240)]
    assert found == expected
    start = datetime(2026, 3, 25, tzinfo=UTC)
    shutil.rmtree(memory / "_schedules")
    server = Server(random.Random(1))
    found = _keep(memory, "15 * * * *", server, start, start + timedelta(days=10), timedelta(minutes=30))
    assert found == [start + timedelta(minutes=15, hours=n) for n in range(240)]


def test_missed_slots_are_caught_up_once_and_no_slot_comes_again(memory: Path) -> None:
    server = Server(random.Random(0))
    slots = Slots(memory, "study")
    start = datetime(2026, 6, 1, 12, tzinfo=UTC)
    keeper = Scheduler(slots, Cron("0 3 * * *", UTC), "job", server)
    keeper.tick(start, start)
    keeper.tick(start, datetime(2026, 6, 2, 2, 59, tzinfo=UTC))
    assert server.jobs == []
    keeper.tick(start, datetime(2026, 6, 9, 8, tzinfo=UTC))
    assert server.jobs == ["job-20260609T0300Z"]
    last = slots.last()
    assert last is not None
    assert last[1]["missed"] == 7
    server.known.clear()  # a new cluster, which knows of no job
    for again in (keeper, Scheduler(Slots(memory, "study"), Cron("0 3 * * *", UTC), "job", server)):
        again.tick(start, datetime(2026, 6, 9, 9, tzinfo=UTC))
        again.tick(start, datetime(2026, 6, 8, 9, tzinfo=UTC))  # a clock that was set back
    assert len(server.jobs) == 1


def test_a_slot_during_which_the_sweep_still_runs_is_skipped_and_said_so(
    memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(random.Random(0))
    keeper = Scheduler(Slots(memory, "study"), Cron("0 * * * *", UTC), "job", server)
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    keeper.tick(start, start + timedelta(hours=1))
    server.alive = server.jobs[0]
    keeper.tick(start, start + timedelta(hours=2))
    assert "skipped, job-20260601T0100Z still runs" in capsys.readouterr().err
    server.alive = None
    keeper.tick(start, start + timedelta(hours=2, minutes=5))
    keeper.tick(start, start + timedelta(hours=3))
    assert server.jobs == ["job-20260601T0100Z", "job-20260601T0300Z"]


def test_a_cluster_that_is_gone_for_a_while_delays_a_slot_and_does_not_lose_it(memory: Path) -> None:
    server = Server(random.Random(0))
    keeper = Scheduler(Slots(memory, "study"), Cron("0 * * * *", UTC), "job", server)
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    server.kills = 1.0
    with pytest.raises(Killed):
        keeper.tick(start, start + timedelta(hours=1))
    server.kills = 0.0
    keeper.tick(start, start + timedelta(hours=1, minutes=10))
    assert server.jobs == ["job-20260601T0100Z"]


def test_two_schedules_of_one_name_are_refused_while_both_are_kept(memory: Path) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    first = Slots(memory, "study")
    assert first.begin({"keeps": "one", "host": "here", "pid": 1}, now) == now
    later = now + timedelta(days=1)
    assert Slots(memory, "study").begin({"keeps": "one", "host": "here", "pid": 2}, later) == now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.store.schedule_slots.HEARTBEAT_SECONDS", 0.2)
        patch.setattr("storage.store.schedule_slots.time.sleep", lambda _: first.beat())
        with pytest.raises(
            UserError, match="another schedule named 'study' is kept by process 2 on here"
        ):
            Slots(memory, "study").begin({"keeps": "two", "host": "here", "pid": 3}, later)
        patch.setattr("storage.store.schedule_slots.time.sleep", lambda _: None)
        assert Slots(memory, "study").begin({"keeps": "two", "host": "here", "pid": 3}, later) == now


def test_days_of_the_week_are_those_of_cron() -> None:
    """Sunday is 0 and 7, not Monday; and two fields of days mean either, unless one is a star."""
    start = datetime(2026, 6, 1, 12, tzinfo=UTC)  # a Monday
    for line, expected in (
        ("0 3 * * 0", [7, 14]),
        ("0 3 * * 7", [7, 14]),
        ("0 3 * * 1", [8, 15]),
        ("0 3 10 * 2", [2, 9]),
        ("0 3 10 * *", [10, 10]),
    ):
        slots = Cron(line, UTC).after(start)
        assert [next(slots).day, next(slots).day] == expected, line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("0 0 * *", "expected five fields"),
        ("0 0 0 * * *", "expected five fields"),
        ("60 0 * * *", "never fires"),
        ("@daily", "expected five fields"),
        ("a b c d e", "never fires"),
    ],
)
def test_a_line_that_never_fires_is_refused(line: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Cron(line)


def test_a_zone_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_zone("Europe/Berlin") == BERLIN
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert find_zone(None) == BERLIN
    for wrong in ("Nowhere/City", "../etc/passwd"):
        with pytest.raises(UserError, match="is not known here"):
            find_zone(wrong)
