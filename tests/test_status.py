"""What is told of a store must be true from the store alone: also when what worked there is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.stage import Outcome, Stage, ensure, run_missing_units
from jobs.status import read_states
from storage import layout
from storage.lease import held


def _stage(label: str, unit: Any) -> Stage:
    """A stage of ten units, each as long as `unit` takes."""

    def run(stage: Stage, store: Path) -> Outcome:
        def work(missing: Any) -> Iterator[Any]:
            for number in missing:
                unit(number)
                yield f"{number:05d}", [], {}

        units = {f"{number:05d}": number for number in range(10)}
        run_missing_units(stage.folder(store), units, work)
        return Outcome([])

    return Stage("experts", label, {"label": label}, run)


def test_stages_are_shown_with_units_rates_errors_and_what_was_killed(tmp_path: Path) -> None:
    store = layout.create(tmp_path / "store")
    ensure(_stage("done", lambda _: None), store)

    def fails(number: int) -> None:
        if number == 4:
            raise ValueError("nonsense")

    with pytest.raises(ValueError, match="nonsense"):
        ensure(_stage("failed", fails), store)

    def look(number: int) -> None:
        time.sleep(0.05)
        if number == 6:
            (state,) = (each for each in read_states(store) if each.label == "running")
            assert state.state == "running"
            assert state.detail.startswith("6 of 10 units done, ")
            rate = float(state.detail.split(", ")[1].removesuffix("/s"))
            assert 5 < rate < 21

    ensure(_stage("running", look), store)
    killed = _stage("killed", lambda _: None).folder(store)
    with held(killed / layout.RUNNING, {"kind": "experts", "label": "killed"}, lambda _: None):
        mark = json.loads((killed / layout.RUNNING).read_text())
    # its process is gone, or it is that of another machine and silent
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for host, pid, ago in ((socket.gethostname(), gone.pid, 0), ("elsewhere", 1, 60)):
        (killed / layout.RUNNING).write_text(json.dumps({**mark, "host": host, "pid": pid}))
        os.utime(killed / layout.RUNNING, (time.time() - ago, time.time() - ago))
        states = {each.label: each for each in read_states(store)}
        assert {name: each.state for name, each in states.items()} == {
            **{"done": "done", "running": "done", "failed": "failed", "killed": "stopped"}
        }
    assert states["failed"].detail == "ValueError: nonsense; 4 units done"


def test_a_watch_goes_on_until_it_is_interrupted(tmp_path: Path) -> None:
    store = layout.create(tmp_path / "store")
    ensure(_stage("done", lambda _: None), store)
    watch = subprocess.Popen(
        [sys.executable, "-c", "from jobs.cli import main; main()", "status", str(store), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        watch.wait(timeout=4)
    watch.send_signal(signal.SIGINT)
    output, _ = watch.communicate(timeout=30)
    assert watch.returncode == 130
    assert "experts" in output
