"""The status of a store must be correct from the store alone, even if its writer has exited."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.actions.status import read_states
from jobs.engine.stage import Stage, StageOutput, run_if_needed, run_missing_units
from storage.store import layout, manifest
from storage.store.commit import put_if_absent
from storage.store.lease import acquire_lease
from tests.commands import neuralign
from tests.faults import heartbeats


def _stage(label: str, unit: Any) -> Stage:
    """A stage of ten units; `unit` is called once per unit."""

    def run(stage: Stage, store: Path) -> StageOutput:
        def work(missing: Any) -> Iterator[Any]:
            for number in missing:
                unit(number)
                yield f"{number:05d}", [], {}

        units = {f"{number:05d}": number for number in range(10)}
        run_missing_units(stage.folder(store), units, work)
        return StageOutput([])

    return Stage("experts", label, {"label": label}, run)


def test_states_include_units_rates_errors_and_killed_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = layout.create_store(tmp_path / "store")
    run_if_needed(_stage("done", lambda _: None), store)

    def fails(number: int) -> None:
        if number == 4:
            raise ValueError("nonsense")

    with pytest.raises(ValueError, match="nonsense"):
        run_if_needed(_stage("failed", fails), store)

    start_times: list[float] = []

    def check_state(number: int) -> None:
        start_times.append(time.monotonic())
        time.sleep(0.05)
        if number == 6:
            (state,) = (state for state in read_states(store) if state.label == "running")
            assert state.state == "running"
            assert state.detail.startswith("6 of 10 units done, ")
            rate = float(state.detail.split(", ")[1].removesuffix("/s"))
            # five units were recorded after the first, between consecutive start times
            slowest = 5 / (start_times[6] - start_times[0])
            assert slowest * 0.9 < rate < 5 / (start_times[5] - start_times[1]) * 1.1

    run_if_needed(_stage("running", check_state), store)
    killed = _stage("killed", lambda _: None).folder(store)
    with acquire_lease(killed / layout.RUNNING, {"kind": "experts", "label": "killed"}, lambda _: None):
        lease = json.loads((killed / layout.RUNNING).read_text())
    # its process has exited, or runs on another machine without a heartbeat
    exited = subprocess.Popen([sys.executable, "-c", ""])
    exited.wait()
    monkeypatch.setattr("jobs.actions.status.HEARTBEAT_SECONDS", 0.1)
    for host, pid, age in ((socket.gethostname(), exited.pid, 0), ("elsewhere", 1, 60)):
        (killed / layout.RUNNING).write_text(json.dumps({**lease, "host": host, "pid": pid}))
        os.utime(killed / layout.RUNNING, (time.time() - age, time.time() - age))
        states = {state.label: state for state in read_states(store)}
        assert {label: state.state for label, state in states.items()} == {
            **{"done": "done", "running": "done", "failed": "failed", "killed": "stopped"}
        }
    assert states["failed"].detail == "ValueError: nonsense; 4 units done"


DAMAGED_RECORDS = [
    *(b"", b"[]", b"{}", b"null", b"5", b"\xff\xfe", b"[" * 50_000),
    b'{"label": 1, "pid": "x", "host": 2, "error": [3], "units": "x", "token": 4, "concept_set": {}}',
]


@pytest.mark.parametrize("content", DAMAGED_RECORDS)
@pytest.mark.parametrize("name", [layout.FAILED, layout.RUNNING])
def test_a_damaged_record_of_a_stage_does_not_hide_the_others(
    tmp_path: Path, name: str, content: bytes
) -> None:
    """One damaged record would be a traceback instead of the status of the store."""
    store = layout.create_store(tmp_path / "store")
    run_if_needed(_stage("done", lambda _: None), store)
    folder = _stage("Killed", lambda _: None).folder(store)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    state = "failed" if name == layout.FAILED else "running"
    assert {state.label: state.state for state in read_states(store)} == {
        "done": "done",
        "killed": state,
    }
    shown = neuralign("status", store)
    assert shown.returncode == 0, shown.stderr
    assert "0 units done" in shown.stdout


@pytest.mark.parametrize("pid", ["x", None, 1.5, -1, 10**20])
def test_a_damaged_process_id_in_a_lease_is_that_of_an_unknown_holder(tmp_path: Path, pid: Any) -> None:
    """The operating system refuses such a process id: OverflowError."""
    store = layout.create_store(tmp_path / "store")
    path = _stage("killed", lambda _: None).folder(store) / layout.RUNNING
    with acquire_lease(path, {}, lambda _: None):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps({**holder, "pid": pid, "token": "theirs", "units": 10**400}))
    (state,) = read_states(store)
    assert (state.state, state.detail) == ("running", "0 units done")


def test_a_run_on_a_disk_whose_clock_is_ahead_is_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live run on another host would be shown as stopped, and its folder deleted."""
    monkeypatch.setattr("storage.store.lease._POLL_SECONDS", 0.02)
    monkeypatch.setattr("jobs.actions.status.HEARTBEAT_SECONDS", 0.2)
    store = layout.create_store(tmp_path / "store")
    path = _stage("far", lambda _: None).folder(store) / layout.RUNNING
    put_if_absent(path.parent, path.name, b'{"token": "theirs", "host": "elsewhere", "pid": 1}')
    with heartbeats(path, clock_difference=60):
        assert [state.state for state in read_states(store)] == ["running"]
    assert [state.state for state in read_states(store)] == ["stopped"]


def test_a_stage_that_finishes_while_its_state_is_read_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two reads, a finished stage looks stopped: no lease, and complete units."""
    store = layout.create_store(tmp_path / "store")
    stage = _stage("first", lambda _: None)
    stage.folder(store).mkdir(parents=True)
    read_units = manifest.read_work_units

    def finish_then_read(folder: Path) -> Any:
        monkeypatch.undo()
        run_if_needed(stage, store)
        return read_units(folder)

    monkeypatch.setattr(manifest, "read_work_units", finish_then_read)
    assert [state.state for state in read_states(store)] == ["done"]


def test_watch_refreshes_until_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = layout.create_store(tmp_path / "store")
    run_if_needed(_stage("first", lambda _: None), store)

    def pause(_: float) -> None:
        if len(read_states(store)) == 2:
            raise KeyboardInterrupt
        run_if_needed(_stage("second", lambda _: None), store)

    monkeypatch.setattr("jobs.actions.status.time", SimpleNamespace(sleep=pause))
    done = neuralign("status", store, "--watch")
    assert done.returncode == 130
    assert "first" in done.stdout
    assert "second" in done.stdout
