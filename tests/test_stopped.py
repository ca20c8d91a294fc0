"""An interrupted sweep must resume where it stopped and give the same rows."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import tiny
from tests.commands import neuralign, python_m, rows
from tests.faults import in_one_process

pytestmark = pytest.mark.slow

_SECONDS = 400


def _many_sentences(folder: Path, model: Path) -> Path:
    """A sweep with ten work units, so that it can be killed between them."""
    shutil.copytree(model, folder / "model")
    file = tiny.write_sweep(folder)
    lines = (folder / "concepts.csv").read_text().splitlines()
    more = [line[:-2] + f' {number}."' for number in range(17) for line in lines[1:]]
    (folder / "concepts.csv").write_text("\n".join([lines[0], *more]) + "\n")
    return file


_PAUSES = """
import sys, time
from jobs.commands.main import run_stage
from storage.store import manifest
last, write_work_unit = sys.argv.pop(1), manifest.write_work_unit
def pausing(folder, unit, *more):
    write_work_unit(folder, unit, *more)
    if unit == last:
        time.sleep(600)
manifest.write_work_unit = pausing
run_stage()
"""
"""A sweep that pauses after a certain unit, so that it cannot finish before it is stopped."""


def _start(file: Path, last: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _PAUSES, last, str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not list(folder.rglob(pattern)):
        assert process.poll() is None, "ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_interrupted_sweep_resumes_and_gives_the_same_rows(
    tmp_path: Path, tiny_model: Path, started: list[psutil.Process]
) -> None:
    """By Ctrl-C or by SIGKILL, in the middle of activations or of experts."""
    undisturbed = _many_sentences(tmp_path / "undisturbed", tiny_model)
    with in_one_process():
        assert neuralign("run", undisturbed).returncode == 0
    file = _many_sentences(tmp_path / "stopped", tiny_model)
    store = tmp_path / "stopped/results/sweep"
    for kind, unit, with_signal, code in (
        ("activations", "L01", signal.SIGKILL, -9),
        ("experts", "max.L01.mlp.hidden", signal.SIGINT, 130),
    ):
        process = _start(file, unit)
        _wait_for(tmp_path / "stopped", f"{kind}/*/_units/{unit}.json", process)
        started += psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, with_signal)
        assert process.wait(timeout=_SECONDS) == code
        assert not list(store.glob("report/*/_SUCCESS.json"))
        if with_signal == signal.SIGINT:
            assert "stopped" in neuralign("status", store).stdout
    status = neuralign("status", store).stdout
    assert "units done" in status
    finished = python_m("jobs.sweep", file)
    assert finished.returncode == 0, finished.stderr
    assert rows(store) == rows(tmp_path / "undisturbed/results/sweep")
