"""Nothing may be misrouted between sentences, layers, units and files, and memory may not grow."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import RayTaskError

from cluster.activations.pipeline import Pipeline
from cluster.activations.tokens import Text
from cluster.models.weights import Weights
from cluster.runtime.placement import Placement, place, shards_for
from cluster.runtime.session import raised
from storage.errors import UserError
from tests.planted import CPU, SETTINGS, check_every_activation, queue_of, sentences, work_units


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """GPUs that are only counted are enough to see who is given which."""
    ray.init(address="local", num_cpus=6, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_model_is_cut_into_as_many_shards_as_its_weights_need(weights: Weights) -> None:
    """With too few, a device runs out of memory in the middle; what cannot be is said at once."""
    assert [shards_for(model, 80 * 10**9) for model in (10**8, 16 * 10**9, 140 * 10**9)] == [1, 1, 3]
    assert place(weights, "float32", "auto", "auto", 0.5) == Placement(1, 8, {"GPU": 0.5})
    assert place(weights, "float32", 3, "auto", 0).replicas == 2
    with pytest.raises(UserError, match=r"@main: has 3 layers, too few for 4 shards"):
        place(weights, "float32", 4, "auto", 1)
    with pytest.raises(UserError, match=r"2 shards x 3 replicas of .* has 6 CPUs and 4 GPUs"):
        place(weights, "float32", 2, 3, 1)


def test_each_shard_sees_its_own_device_and_no_other(weights: Weights) -> None:
    """A shard that saw the GPU of another would run there, and both might run out of memory."""
    whole = Pipeline(weights, SETTINGS, 2, CPU | {"GPU": 1.0})
    halves = Pipeline(weights, SETTINGS, 2, CPU | {"GPU": 0.5})
    none = Pipeline(weights, SETTINGS, 1, CPU)
    seen = [
        ray.get([shard.__ray_call__.remote(_visible) for shard in pipeline._shards])
        for pipeline in (whole, halves, none)
    ]
    for pipeline in (whole, halves, none):
        pipeline.stop()
    assert len(set(seen[0])) == 2
    assert set(seen[0]).isdisjoint(seen[1])
    assert {len(device) for device in seen[0] + seen[1]} == {1}
    assert seen[2] == [""]


def test_memory_is_flat_and_tensors_go_straight_from_shard_to_shard(
    weights: Weights, tmp_path: Path
) -> None:
    """10,000 sentences; Ray's transport between CPUs stands for that between GPUs."""
    given = sentences(10_000)
    units = work_units(given, 250)
    queue = queue_of(lambda: Pipeline(weights, SETTINGS, 2, CPU, transport="gloo"), tmp_path)
    memory: list[list[int]] = []
    for _ in queue.run(units, 1, wait_seconds=60):
        actors = processes_named("ray::ShardActor")
        memory.append(sorted(process.memory_info().rss for process in actors))
    check_every_activation(tmp_path, given, len(units))
    assert {len(sizes) for sizes in memory} == {2}
    early, late = np.median(memory[8:16], axis=0), np.median(memory[-8:], axis=0)
    assert (late < early * 1.03).all(), (early, late)


@pytest.mark.parametrize(("shards", "faulty"), [(1, 0), (2, 0), (2, 1)])
def test_a_unit_of_which_a_piece_failed_is_not_committed(
    weights: Weights, tmp_path: Path, shards: int, faulty: int
) -> None:
    """Its last piece may be fine: what stands in the place of the one that failed is memory of a unit
    before. And the user must see the first error, not what later pieces lack."""
    given = sentences(300)
    units = work_units(given, 100)
    unreadable = replace(units[0], texts=[*units[0].texts[1:], Text("", [])])
    pipeline = Pipeline(weights, SETTINGS, shards, CPU)
    try:
        ray.get(pipeline.ready())
        told = failure_of(pipeline.submit(unreadable, tmp_path, []))
        assert isinstance(told, UserError)
        assert "the sentence '' has no token" in str(told)
        for unit in units:
            ray.get(pipeline._shards[faulty].__ray_call__.remote(_fail_at, 2))
            told = failure_of(pipeline.submit(unit, tmp_path, []))
            assert str(told) == "CUDA out of memory."
            ray.get(pipeline.submit(unit, tmp_path, []))
    finally:
        pipeline.stop()
    check_every_activation(tmp_path, given, len(units))


def failure_of(reference: Any) -> BaseException:
    with pytest.raises(RayTaskError) as caught:
        ray.get(reference)
    return raised(caught.value)


def _fail_at(actor: Any, number: int) -> None:
    """Let memory run out in the step of this number from now on, once."""
    step = type(actor._shard).step.__get__(actor._shard)
    left = itertools.count(1 - number)

    def failing(*given: Any) -> Any:
        if next(left) == 0:
            raise RuntimeError("CUDA out of memory.")
        return step(*given)

    actor._shard.step = failing


def _visible(_: object) -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def processes_named(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(name):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
