"""What is told of a store must be true from the store alone: also when what worked there is gone."""

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

from jobs.commands.status import read_states
from jobs.engine.stage import Outcome, Stage, ensure, run_missing_units
from storage.store import layout, manifest
from storage.store.lease import held
from tests.commands import neuralign


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

    began: list[float] = []

    def look(number: int) -> None:
        began.append(time.monotonic())
        time.sleep(0.05)
        if number == 6:
            (state,) = (each for each in read_states(store) if each.label == "running")
            assert state.state == "running"
            assert state.detail.startswith("6 of 10 units done, ")
            rate = float(state.detail.split(", ")[1].removesuffix("/s"))
            # five units were recorded after the first, each between two of these moments
            assert 5 / (began[6] - began[0]) * 0.9 < rate < 5 / (began[5] - began[1]) * 1.1

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


def test_a_stage_that_ends_while_it_is_looked_at_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is given back and its units are all there, as if it had been stopped."""
    store = layout.create(tmp_path / "store")
    stage = _stage("first", lambda _: None)
    stage.folder(store).mkdir(parents=True)
    read_units = manifest.read_units

    def then_ended(folder: Path) -> Any:
        monkeypatch.undo()
        ensure(stage, store)
        return read_units(folder)

    monkeypatch.setattr(manifest, "read_units", then_ended)
    assert [each.state for each in read_states(store)] == ["done"]


def test_a_watch_shows_what_changes_until_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = layout.create(tmp_path / "store")
    ensure(_stage("first", lambda _: None), store)

    def pause(_: float) -> None:
        if len(read_states(store)) == 2:
            raise KeyboardInterrupt
        ensure(_stage("second", lambda _: None), store)

    monkeypatch.setattr("jobs.commands.status.time", SimpleNamespace(sleep=pause))
    done = neuralign("status", store, "--watch")
    assert done.returncode == 130
    assert "first" in done.stdout
    assert "second" in done.stdout
