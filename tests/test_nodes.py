"""A sweep of several models must give the same rows whichever part of its cluster dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign, rows
from tests.faults import in_one_process
from tests.zoo import make_models

_ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

_SECONDS = 900


@contextmanager
def _cluster(workers: int) -> Iterator[Cluster]:
    """A head without CPUs and workers with one CPU each; dead nodes are detected within seconds."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 4},
        },
    )
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def _driver(file: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a separate process, killed at the end if it is still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.sweep", str(file)],
        env={**os.environ, "PYTHONPATH": str(_ROOT), "RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def _wait_for(store: Path, pattern: str, count: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _SECONDS
    while len(list(store.glob(pattern))) < count:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, pattern
        time.sleep(0.1)


def test_rows_are_the_same_after_nodes_drivers_and_a_head_die(tmp_path: Path) -> None:
    """Six tiny models. A node dies and another joins, the driver is killed and restarted, the head is
    killed and replaced by a new cluster."""
    names = make_models(tmp_path / "models")
    models = ", ".join(
        f"{{id: {name}, dtype: float32, revisions: [main, random-init]}}" for name in names
    )
    files = {}
    for name in ("undisturbed", "disturbed"):
        file = tiny.write_sweep(tmp_path / name, extra="resamples: 100\nbaselines: [input-embedding]\n")
        text = file.read_text().replace("[max, concept, context]", "[max]")
        text = text.replace("[{id: model, dtype: float32}]", f"[{models}]")
        file.write_text(f"{text}models_in: {tmp_path / 'models'}\n")
        files[name] = file
    store = tmp_path / "disturbed/results/sweep"
    with _cluster(2) as cluster:
        with _driver(files["disturbed"], cluster.address) as driver:
            _wait_for(store, "experts/*/_SUCCESS.json", 1, driver)
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
            cluster.add_node(num_cpus=1)
            _wait_for(store, "experts/*/_SUCCESS.json", 2, driver)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        modified = {path: path.stat().st_mtime_ns for path in store.glob("*/*/_SUCCESS.json")}
        with _driver(files["disturbed"], cluster.address) as driver:
            _wait_for(store, "experts/*/_SUCCESS.json", 4, driver)
    assert driver.returncode == -signal.SIGKILL
    with _cluster(2) as cluster, _driver(files["disturbed"], cluster.address) as driver:
        _, errors = driver.communicate(timeout=_SECONDS)
        assert driver.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in modified} == modified
    assert not list(verify(store))
    with in_one_process():
        done = neuralign("run", files["undisturbed"])
    assert done.returncode == 0, done.stderr
    assert rows(store) == rows(tmp_path / "undisturbed/results/sweep")
    shutil.rmtree(tmp_path)


def _may_mount() -> bool:
    unshare = shutil.which("unshare")
    command = [unshare or "", "--mount", "true"]
    return bool(unshare) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _may_mount(), reason="needs permission to mount a file system")
def test_a_store_not_visible_to_workers_is_reported_before_any_work(
    tmp_path: Path, tiny_model: Path
) -> None:
    """The driver has mounted a disk over the folder that the workers see."""
    file = tiny.write_sweep(tmp_path, model=str(tiny_model))
    results = tmp_path / "results"
    results.mkdir()
    with _cluster(1) as cluster:
        done = subprocess.run(
            [
                *("unshare", "--mount", "sh", "-c"),
                f'mount -t tmpfs none {results} && exec {sys.executable} -m jobs.sweep "{file}"',
            ],
            env={**os.environ, "PYTHONPATH": str(_ROOT), "RAY_ADDRESS": cluster.address},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert "not visible from every node (" in done.stderr
    assert "use a folder that all nodes mount" in done.stderr
    assert not list(results.iterdir())
