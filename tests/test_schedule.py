"""A schedule must submit every slot exactly once, even if schedulers are killed at any time, and its
slots must be those of cron."""

from __future__ import annotations

import json
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

from jobs.actions.schedule import Cron, Scheduler, find_time_zone
from storage.errors import UserError
from storage.store.schedule_slots import ScheduleSlots

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, since thousands of slots are flushed to disk; few of them are retained."""
    shared_memory = Path("/dev/shm")  # noqa: S108
    with (
        tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder,
        patch("storage.store.schedule_slots._MAX_DECISIONS", 20),
    ):
        yield Path(folder)


class Killed(BaseException):
    pass


class Server:
    """Accepts an id once, as Ray's does; may kill the caller before or after the operation."""

    def __init__(self, generator: random.Random, kill_probability: float = 0.0) -> None:
        self.generator = generator
        self.kill_probability = kill_probability
        self.jobs: list[str] = []
        self.known_ids: set[str] = set()
        self.running_job: str | None = None

    def maybe_kill(self) -> None:
        if self.generator.random() < self.kill_probability:
            raise Killed

    def find_running_job(self, exclude: str) -> str | None:
        self.maybe_kill()
        return self.running_job if self.running_job != exclude else None

    def submit(self, job: str) -> bool:
        self.maybe_kill()
        is_new = job not in self.known_ids
        if is_new:
            self.known_ids.add(job)
            self.jobs.append(job)
        self.maybe_kill()
        return is_new


class KillingSlots(ScheduleSlots):
    """Kills the caller before or after a record is written."""

    server: Server

    def decide(self, slot: datetime, decision: dict[str, Any]) -> dict[str, Any]:
        self.server.maybe_kill()
        recorded = super().decide(slot, decision)
        self.server.maybe_kill()
        return recorded

    def mark_done(self, slot: datetime, job: str) -> None:
        self.server.maybe_kill()
        super().mark_done(slot, job)
        self.server.maybe_kill()


def _run_two_schedulers(
    store: Path, line: str, server: Server, start: datetime, end: datetime, step: timedelta
) -> list[datetime]:
    """Tick two concurrent schedulers in random order and restart them when killed; return the submitted
    slots."""
    slots = KillingSlots(store, "study")
    slots.server = server
    schedulers = [Scheduler(slots, Cron(line, BERLIN), "job", server) for _ in range(2)]
    now = start
    while now < end:
        now += step
        for scheduler in server.generator.sample(schedulers, 2):
            while True:
                try:
                    scheduler.tick(start, now)
                    break
                except Killed:
                    continue
    return [
        datetime.strptime(job.removeprefix("job-"), "%Y%m%dT%H%MZ").replace(tzinfo=UTC)
        for job in server.jobs
    ]


def test_every_slot_is_submitted_once_although_schedulers_are_killed(memory: Path) -> None:
    """A slot may be lost or run twice on days of 23 and 25 hours, when 2:30 is skipped or repeated."""
    server = Server(random.Random(0), 0.2)
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)
    slots = _run_two_schedulers(memory, "30 2 * * *", server, start, end, timedelta(hours=12))
    local = [slot.astimezone(BERLIN) for slot in slots]
    days = [date(2026, 1, 1) + timedelta(days=n) for n in range(3 * 365 + 1)]
    assert [slot.date() for slot in local] == days
    for slot in local:
        is_spring_change = slot.month == 3 and slot.weekday() == 6 and slot.day > 24
        assert (slot.hour, slot.minute) == ((3, 0) if is_spring_change else (2, 30))


def test_hourly_slots_are_every_real_hour(memory: Path) -> None:
    """An hour may be lost or run twice when clocks change; the repeated hour in autumn is two hours."""
    server = Server(random.Random(1), 0.05)
    start = datetime(2026, 10, 20, tzinfo=UTC)
    slots = _run_two_schedulers(
        memory, "15 * * * *", server, start, start + timedelta(days=10), timedelta(minutes=30)
    )
    expected = [start + timedelta(minutes=15, hours=n) for n in range(240)]
    assert slots == expected
    start = datetime(2026, 3, 25, tzinfo=UTC)
    shutil.rmtree(memory / "_schedules")
    server = Server(random.Random(1))
    slots = _run_two_schedulers(
        memory, "15 * * * *", server, start, start + timedelta(days=10), timedelta(minutes=30)
    )
    assert slots == [start + timedelta(minutes=15, hours=n) for n in range(240)]


def test_only_the_latest_missed_slot_runs_and_no_slot_runs_again(memory: Path) -> None:
    server = Server(random.Random(0))
    slots = ScheduleSlots(memory, "study")
    start = datetime(2026, 6, 1, 12, tzinfo=UTC)
    scheduler = Scheduler(slots, Cron("0 3 * * *", UTC), "job", server)
    scheduler.tick(start, start)
    scheduler.tick(start, datetime(2026, 6, 2, 2, 59, tzinfo=UTC))
    assert server.jobs == []
    scheduler.tick(start, datetime(2026, 6, 9, 8, tzinfo=UTC))
    assert server.jobs == ["job-20260609T0300Z"]
    last = slots.last_decision(datetime(2026, 6, 9, 8, tzinfo=UTC))
    assert last is not None
    assert last[1]["missed"] == 7
    server.known_ids.clear()  # a new cluster
    for restarted in (
        scheduler,
        Scheduler(ScheduleSlots(memory, "study"), Cron("0 3 * * *", UTC), "job", server),
    ):
        restarted.tick(start, datetime(2026, 6, 9, 9, tzinfo=UTC))
        restarted.tick(start, datetime(2026, 6, 9, 2, 58, tzinfo=UTC))  # a clock that differs
    assert len(server.jobs) == 1


@pytest.mark.parametrize("jump", [timedelta(hours=7, minutes=20), timedelta(days=365)])
def test_slots_run_although_a_clock_jumped_ahead_and_back(
    memory: Path, jump: timedelta, capsys: pytest.CaptureFixture[str]
) -> None:
    """The slots up to the wrong time counted as missed: 0 of 240 were submitted, without a word."""
    server = Server(random.Random(0))
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    slots = ScheduleSlots(memory, "study")
    cron = Cron("0 * * * *", UTC)
    Scheduler(slots, cron, "job", server).tick(start, start + jump)
    (ahead,) = server.jobs
    scheduler = Scheduler(slots, cron, "job", server)
    for minutes in range(0, 240 * 60, 10):
        scheduler.tick(start, start + timedelta(minutes=minutes))
    names = [f"job-{start + timedelta(hours=n, minutes=30):%Y%m%dT%H%MZ}" for n in range(240)]
    assert sorted({*server.jobs, ahead}) == sorted({*names, ahead})
    assert len(server.jobs) == len(set(server.jobs))
    assert capsys.readouterr().err.count("was decided by a clock ahead of this one") == 1


def test_slots_run_after_a_clock_was_ahead_for_more_slots_than_are_retained(
    memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The retained decisions were those ahead, so each due slot was decided, forgotten and missed again:
    0 of 30 were submitted."""
    server = Server(random.Random(0))
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    scheduler = Scheduler(ScheduleSlots(memory, "study"), Cron("* * * * *", UTC), "job", server)
    for minutes in range(30):
        scheduler.tick(start, start + timedelta(days=365, minutes=minutes))
    server.jobs.clear()
    capsys.readouterr()
    for minutes in range(60):
        scheduler.tick(start, start + timedelta(minutes=minutes))
    assert len(server.jobs) == len(set(server.jobs)) == 59
    shown = capsys.readouterr().err
    assert "missed" not in shown
    assert shown.count("was decided by a clock ahead of this one") == 1
    # decisions of the past are still removed
    names = [path.name for path in (memory / "_schedules/study").glob("20260601*.json")]
    assert len(names) == 20


def test_slots_since_1970_are_not_enumerated(memory: Path) -> None:
    """A computer that starts without the time would count 29 million missed slots, for minutes and in
    gigabytes. The last of a rare schedule is found nevertheless."""
    now = datetime(2026, 6, 1, 0, 30, 30, tzinfo=UTC)
    began = datetime(1970, 1, 1, tzinfo=UTC)
    due = Cron("* * * * *", UTC).due(began, now)
    assert (due[-1], len(due)) == (datetime(2026, 6, 1, 0, 30, tzinfo=UTC), 366 * 24 * 60)
    assert Cron("0 0 29 2 *", UTC).due(began, now)[-1] == datetime(2024, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize("year", ["0001", "9999"])
def test_impossible_times_in_its_folder_do_not_stop_a_schedule(memory: Path, year: str) -> None:
    """A time zone moves them out of Python's range: OverflowError, for ever."""
    server = Server(random.Random(0))
    slots = ScheduleSlots(memory, "study")
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    owner = {"keeps": "one", "host": "here", "pid": 1}
    slots.begin(owner, start)
    folder = memory / "_schedules" / "study"
    (folder / "schedule.json").write_text(json.dumps({**owner, "since": f"{year}-01-01T00:00:00+14:00"}))
    (folder / f"{year}0101T0000Z.json").write_text('{"submit": false}')
    assert slots.begin(owner, start) == start
    cron = Cron("0 * * * *", ZoneInfo("America/New_York"))
    Scheduler(slots, cron, "job", server).tick(start, start + timedelta(hours=1))
    assert server.jobs == ["job-20260601T0100Z"]


def test_a_schedule_that_was_started_by_a_wrong_clock_starts_now(memory: Path) -> None:
    """It would wait until the time at which it was started, a year later."""
    now = datetime(2026, 6, 1, tzinfo=UTC)
    owner = {"keeps": "one", "host": "here", "pid": 1}
    ScheduleSlots(memory, "study").begin(owner, now + timedelta(days=365))
    assert ScheduleSlots(memory, "study").begin(owner, now) == now
    assert ScheduleSlots(memory, "study").begin(owner, now + timedelta(days=1)) == now


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"submit": 1}', None])
def test_strange_files_in_its_folder_do_not_stop_a_schedule(
    memory: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`notes.json`, or a decision that is damaged (or a folder), ended the scheduler."""
    server = Server(random.Random(0))
    slots = ScheduleSlots(memory, "study")
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    slots.begin({"keeps": "one", "host": "here", "pid": 1}, start)
    folder = memory / "_schedules" / "study"
    for name in ("notes.json", "zzz.json", "20261399T9999Z.json", "20260601T0100Z.json"):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
    scheduler = Scheduler(slots, Cron("0 * * * *", UTC), "job", server)
    for hours in (1, 2, 30):
        scheduler.tick(start, start + timedelta(hours=hours))
    # the slot with the damaged decision may have been submitted, and is not submitted again
    assert server.jobs == ["job-20260601T0200Z", "job-20260602T0600Z"]
    (folder / "schedule.json").write_bytes(content or b"{")
    monkeypatch.setattr("storage.store.schedule_slots.HEARTBEAT_SECONDS", 0.1)
    slots.begin({"keeps": "one", "host": "here", "pid": 1}, start)


def test_a_slot_is_skipped_while_the_sweep_is_still_running(
    memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(random.Random(0))
    scheduler = Scheduler(ScheduleSlots(memory, "study"), Cron("0 * * * *", UTC), "job", server)
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    scheduler.tick(start, start + timedelta(hours=1))
    server.running_job = server.jobs[0]
    scheduler.tick(start, start + timedelta(hours=2))
    assert "skipped, job-20260601T0100Z is still running" in capsys.readouterr().err
    server.running_job = None
    scheduler.tick(start, start + timedelta(hours=2, minutes=5))
    scheduler.tick(start, start + timedelta(hours=3))
    assert server.jobs == ["job-20260601T0100Z", "job-20260601T0300Z"]


def test_an_unreachable_cluster_delays_a_slot_but_does_not_lose_it(memory: Path) -> None:
    server = Server(random.Random(0))
    scheduler = Scheduler(ScheduleSlots(memory, "study"), Cron("0 * * * *", UTC), "job", server)
    start = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)
    server.kill_probability = 1.0
    with pytest.raises(Killed):
        scheduler.tick(start, start + timedelta(hours=1))
    server.kill_probability = 0.0
    scheduler.tick(start, start + timedelta(hours=1, minutes=10))
    assert server.jobs == ["job-20260601T0100Z"]


def test_two_active_schedules_of_one_name_are_rejected(memory: Path) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    first = ScheduleSlots(memory, "study")
    assert first.begin({"keeps": "one", "host": "here", "pid": 1}, now) == now
    later = now + timedelta(days=1)
    assert ScheduleSlots(memory, "study").begin({"keeps": "one", "host": "here", "pid": 2}, later) == now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.store.schedule_slots.HEARTBEAT_SECONDS", 0.2)
        patch.setattr("storage.store.lease.time.sleep", lambda _: first.heartbeat())
        with pytest.raises(
            UserError, match="another schedule named 'study' is already run by process 2 on host here"
        ):
            ScheduleSlots(memory, "study").begin({"keeps": "two", "host": "here", "pid": 3}, later)
        patch.setattr("storage.store.lease.time.sleep", lambda _: None)
        assert (
            ScheduleSlots(memory, "study").begin({"keeps": "two", "host": "here", "pid": 3}, later)
            == now
        )


def test_weekdays_are_numbered_as_in_cron() -> None:
    """A job may run on the wrong day: 0 and 7 are Sunday, and two day fields mean either, unless one is
    a star."""
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
    ("line", "message"),
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
def test_a_line_that_never_fires_is_rejected(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cron(line)


def test_a_time_zone_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_time_zone("Europe/Berlin") == BERLIN
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert find_time_zone(None) == BERLIN
    for name in ("Nowhere/City", "../etc/passwd"):
        with pytest.raises(UserError, match="unknown time zone"):
            find_time_zone(name)
