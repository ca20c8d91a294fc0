"""Failures could lose work units, yield them twice or make the queue hang."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.runtime.queue import Worker, WorkQueue
from storage.errors import UserError, WorkFailed


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Actor:
    """Squares numbers; dies or raises as requested, once or always."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def work(self, number: int, fault: str) -> int:
        marker = self.folder / f"{fault}-{number}"
        is_first_attempt = not marker.exists()
        marker.touch()
        if fault == "die always" or (fault == "die once" and is_first_attempt):
            os._exit(1)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise always" or (fault == "raise once" and is_first_attempt):
            raise RuntimeError(f"unit {number} is poisoned")
        if fault == "memory":
            raise RuntimeError("CUDA out of memory.")
        if fault == "user":
            raise UserError("fix your input")
        return number * number


def make_queue(
    folder: Path,
    faults: dict[int, str],
    cpus: float = 1,
    shrink_after_loss: Callable[[int], int] = lambda unit: unit,
) -> WorkQueue[int, int]:
    return WorkQueue(
        lambda: Worker(ray.remote(Actor), [(folder,)], {"CPU": cpus}),
        lambda worker, unit: worker.actors[0].work.remote(abs(unit), faults.get(unit, "")),
        lambda unit: f"unit {unit}",
        lambda unit: -unit,
        shrink_after_loss,
    )


def run_queue(
    folder: Path,
    faults: dict[int, str],
    n_units: int = 6,
    cpus: float = 1,
    wait_seconds: float = 60,
    shrink_after_loss: Callable[[int], int] = lambda unit: unit,
) -> Any:
    queue = make_queue(folder, faults, cpus, shrink_after_loss)
    return queue.run(range(n_units), 2, wait_seconds=wait_seconds)


@pytest.mark.parametrize("faults", [{}, {0: "die once", 3: "die once"}, {2: "raise once"}])
def test_every_unit_completes_exactly_once(tmp_path: Path, faults: dict[int, str]) -> None:
    """A retry could lose or repeat a result."""
    assert sorted(run_queue(tmp_path, faults)) == [(number, number * number) for number in range(6)]


def test_units_that_are_added_to_a_running_queue_complete(tmp_path: Path) -> None:
    """A unit that follows from the last result could come too late, or be lost with its worker."""
    queue = make_queue(tmp_path, {12: "die once"})
    done = []
    for unit, result in queue.run(range(3), 2):
        done.append((unit, result))
        if unit < 10:
            queue.add(unit + 10)
    assert sorted(done) == [(unit, unit * unit) for unit in (0, 1, 2, 10, 11, 12)]


def test_a_failing_unit_is_reported_and_the_others_complete(tmp_path: Path) -> None:
    """One bad unit could stop the others, or be retried forever."""
    done: dict[int, int] = {}
    with pytest.raises(WorkFailed) as caught:
        _collect(run_queue(tmp_path, {1: "raise always"}), done)
    assert caught.value.failures == ["unit 1: RuntimeError: unit 1 is poisoned (3 attempts)"]
    assert sorted(done) == [0, 2, 3, 4, 5]


def _collect(results: Any, done: dict[int, int]) -> None:
    """Collect the results that precede an error."""
    for unit, result in results:
        done[unit] = result


def test_a_unit_that_kills_its_worker_is_the_only_one_that_fails(tmp_path: Path) -> None:
    """Units queued behind it on the same worker could be blamed."""
    done: dict[int, int] = {}
    with pytest.raises(WorkFailed) as caught:
        _collect(run_queue(tmp_path, {0: "die always"}, n_units=3), done)
    assert [failure.partition(":")[0] for failure in caught.value.failures] == ["unit 0"]
    assert sorted(done) == [1, 2]


def test_a_unit_that_runs_out_of_memory_is_retried_smaller(tmp_path: Path) -> None:
    """A retry of the same size would fail again. Here, shrinking a unit flips its sign."""
    assert sorted(run_queue(tmp_path, {4: "memory"}))[0] == (-4, 16)


def test_a_unit_whose_worker_is_killed_is_retried_smaller(tmp_path: Path) -> None:
    """The kernel kills a worker for memory: the same unit would be tried three times, and fail."""
    done = run_queue(tmp_path, {4: "killed"}, shrink_after_loss=lambda unit: -unit)
    assert sorted(done)[0] == (-4, 16)


def test_a_user_error_stops_the_queue(tmp_path: Path) -> None:
    """Retrying invalid input would only delay the message."""
    with pytest.raises(UserError, match="fix your input"):
        list(run_queue(tmp_path, {0: "user"}))


def test_unavailable_resources_are_reported(tmp_path: Path) -> None:
    """A request that the cluster cannot satisfy would wait forever."""
    with pytest.raises(UserError, match="after 3 s waiting for 1 x 64 CPU: the cluster has 2 CPUs"):
        list(run_queue(tmp_path, {}, cpus=64, wait_seconds=3))
