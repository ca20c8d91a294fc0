"""The benchmark of GPUs must run when a GPU can be had: without one, it runs a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_COMPARISONS = {
    "start",
    "mfu",
    "capture",
    "states",
    "scores",
    "permutations",
    "blocks",
    "limited",
    "files",
    "shards",
}


def test_the_benchmark_of_gpus_runs_on_cpus(tmp_path: Path) -> None:
    """A change of what it calls would be found only on a rented GPU."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "tiny: 4 layers" in process.stdout
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.rglob("gpu_*.json")}
    expected = {f"gpu_{name}_tiny" for name in _COMPARISONS}
    assert files.keys() == expected | {f"gpu_scoring_48x6x32_permutations_{n}" for n in (0, 19)}
    for figures in files.values():
        assert figures["ratio"] == figures["ours"] / figures["theirs"] > 0


def test_an_unknown_benchmark_is_named() -> None:
    """A typing error would run all benchmarks for an hour, or none."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks", "captur"],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 2
    assert "captur: unknown benchmark; choose from capture, fused," in process.stderr
