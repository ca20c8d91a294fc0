"""No unit may be lost or given twice, and nothing may hang, whatever dies on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.runtime.queue import WorkQueue
from storage.errors import UserError, WorkFailed


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Actor:
    """Squares numbers; dies or raises where it is told to, once or always."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ready(self) -> bool:
        return True

    def work(self, number: int, fault: str) -> int:
        mark = self.folder / f"{fault}-{number}"
        first_time = not mark.exists()
        mark.touch()
        if fault == "die always" or (fault == "die once" and first_time):
            os._exit(1)
        if fault == "raise always" or (fault == "raise once" and first_time):
            raise RuntimeError(f"unit {number} is poisoned")
        if fault == "memory":
            raise RuntimeError("CUDA out of memory.")
        if fault == "user":
            raise UserError("mend your input")
        return number * number


class Worker:
    """What the queue sees of an actor."""

    def __init__(self, folder: Path, cpus: float) -> None:
        self.asks = f"an actor of {cpus} CPUs"
        self.actor: Any = ray.remote(Actor).options(num_cpus=cpus).remote(folder)

    def ready(self) -> Any:
        return self.actor.ready.remote()

    def stop(self) -> None:
        ray.kill(self.actor)


def results(
    folder: Path, faults: dict[int, str], n_units: int = 6, cpus: float = 1, wait: float = 60
) -> Any:
    queue: WorkQueue[int, int] = WorkQueue(
        lambda: Worker(folder, cpus),
        lambda worker, unit: worker.actor.work.remote(abs(unit), faults.get(unit, "")),
        lambda unit: f"unit {unit}",
        lambda unit: -unit,
    )
    return queue.run(range(n_units), 2, wait_seconds=wait)


@pytest.mark.parametrize("faults", [{}, {0: "die once", 3: "die once"}, {2: "raise once"}])
def test_every_unit_is_given_once(tmp_path: Path, faults: dict[int, str]) -> None:
    found = list(results(tmp_path, faults))
    assert sorted(found) == [(number, number * number) for number in range(6)]


def test_a_poisoned_unit_is_set_aside_and_the_rest_is_done(tmp_path: Path) -> None:
    done: dict[int, int] = {}
    with pytest.raises(WorkFailed) as caught:
        done.update(_kept(results(tmp_path, {1: "raise always"}), done))
    assert caught.value.failures == ["unit 1: RuntimeError: unit 1 is poisoned (tried 3 times)"]
    assert sorted(done) == [0, 2, 3, 4, 5]


def _kept(given: Any, done: dict[int, int]) -> dict[int, int]:
    """Keep what is given before an error comes."""
    for unit, result in given:
        done[unit] = result
    return done


def test_a_unit_that_kills_its_worker_takes_no_other_with_it(tmp_path: Path) -> None:
    done: dict[int, int] = {}
    with pytest.raises(WorkFailed) as caught:
        _kept(results(tmp_path, {0: "die always"}, n_units=3), done)
    assert [failure.partition(":")[0] for failure in caught.value.failures] == ["unit 0"]
    assert sorted(done) == [1, 2]


def test_a_unit_for_which_memory_ran_out_is_tried_smaller(tmp_path: Path) -> None:
    """Here a smaller unit is the one of the opposite sign."""
    assert sorted(results(tmp_path, {4: "memory"}))[0] == (-4, 16)


def test_what_the_user_must_mend_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mend your input"):
        list(results(tmp_path, {0: "user"}))


def test_resources_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="within 3 s for an actor of 64 CPUs: the cluster has 2 CPUs"):
        list(results(tmp_path, {}, cpus=64, wait=3))
