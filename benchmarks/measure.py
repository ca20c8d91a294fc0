"""Timing two implementations in alternation and recording the figures."""

from __future__ import annotations

import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.store.manifest import software_versions

FOLDER = Path("results/bench")


def seconds(call: Callable[[], Any]) -> float:
    """Duration of one call in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def side_by_side(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    rounds: int = 5,
    clean_up: Callable[[], Any] = lambda: None,
) -> tuple[float, float]:
    """Median seconds of both over alternating rounds, after one warm-up round.

    `clean_up` runs after each call and is not timed.
    """

    def timed(call: Callable[[], Any]) -> float:
        duration = seconds(call)
        clean_up()
        return duration

    timed(ours), timed(theirs)
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def empty(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path)


def run_process(command: list[str], cwd: Path | None = None) -> tuple[float, float]:
    """Run a command; return its CPU seconds and its peak memory in MB."""
    before, kilobytes = _children_seconds(), 0
    with subprocess.Popen(command, cwd=cwd) as process:  # noqa: S603
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if match := re.search(r"VmHWM:\s*(\d+) kB", status):
                kilobytes = int(match[1])
            time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return _children_seconds() - before, kilobytes / 1e3


def _children_seconds() -> float:
    """CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def record(name: str, ours: float, theirs: float, unit: str, target: str) -> None:
    """Print a benchmark's figures and write them to results/bench/NAME.json."""
    figures = {
        "name": name,
        "ours": ours,
        "theirs": theirs,
        "ratio": ours / theirs,
        "unit": unit,
        "target": target,
        "versions": software_versions(),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{name:16} ours {ours:.4g} {unit}, theirs {theirs:.4g} {unit}, ratio {ours / theirs:.4g}")
    print(f"{'':16} target: {target}")
