"""A private Ray session may die under a run: a process is killed, or the machine runs out of memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.commands import neuralign, rows
from tests.faults import in_one_process

_SECONDS = 600
_ROOT = Path(__file__).parent.parent

_RUN = """
import os, signal, sys, time
from pathlib import Path
import psutil
from cluster.runtime import queue
from jobs.commands.main import main

dispatch, [victim, times, counts] = queue.WorkQueue._dispatch, sys.argv[2:]
killed = []

def kill_and_dispatch(self):
    dispatch(self)
    # in a file, because a run that is started again is another process
    if Path(counts).read_text().count("killed") < int(times):
        for process in psutil.Process().children(recursive=True):
            if victim in " ".join(process.cmdline()):
                killed.append(process)
                process.kill()
                with Path(counts).open("a") as file:
                    file.write("killed")
        psutil.wait_procs(killed)
        time.sleep(2)  # the raylet ends after its agent

queue.WorkQueue._dispatch = kill_and_dispatch
sys.argv = ["neuralign", "run", sys.argv[1]]
main()
"""


def _run_and_kill(file: Path, victim: str, times: int) -> subprocess.CompletedProcess[str]:
    counts = file.parent / "counts"
    counts.touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", _RUN, str(file), victim, str(times), str(counts)],
        env={**environment, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def _write_sweep(folder: Path, model: Path) -> Path:
    return tiny.write_sweep(folder, str(model), "resamples: 100\nname: lost\nstore: store\n")


@pytest.mark.parametrize("victim", ["ray::DashboardAgent", "ray/gcs/gcs_server"])
def test_a_run_goes_on_after_its_session_died(tmp_path: Path, tiny_model: Path, victim: str) -> None:
    """The run waited for a minute, then failed with "the cluster has 0 CPUs and 0 GPUs"."""
    done = _run_and_kill(_write_sweep(tmp_path / "killed", tiny_model), victim, 1)
    assert done.returncode == 0, done.stderr
    assert "Ray on this machine ended: its " in done.stderr
    assert "starting Ray again to go on" in done.stderr
    with in_one_process():
        here = neuralign("run", _write_sweep(tmp_path / "here", tiny_model))
    assert here.returncode == 0, here.stderr
    assert rows(tmp_path / "killed/store") == rows(tmp_path / "here/store")


def test_a_session_that_always_dies_ends_the_run_with_one_line(tmp_path: Path, tiny_model: Path) -> None:
    """Ray would be started again forever."""
    done = _run_and_kill(_write_sweep(tmp_path, tiny_model), "raylet/raylet", 99)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("starting Ray again to go on") == 2
    line = done.stderr.strip().splitlines()[-1]
    reason = r"its raylet (was killed by signal 9|exited with code \d+)"
    advice = r"\(memory may have run out\); run the same command to resume"
    assert re.fullmatch(rf"neuralign: Ray on this machine ended: {reason} {advice}", line)
