"""Activations could be misrouted between sentences, layers, units and files, and memory could grow."""

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

from cluster.activations.pipeline import ActivationPipeline
from cluster.models.tokenizer import Text
from cluster.models.weights import Weights
from cluster.runtime.placement import Placement, count_shards, plan_placement
from cluster.runtime.session import root_cause
from storage.errors import UserError
from tests.planted import (
    CPU,
    SETTINGS,
    assert_every_activation,
    make_queue,
    make_sentences,
    make_work_units,
)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """Logical GPUs are enough to test their assignment."""
    ray.init(address="local", num_cpus=6, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_number_of_shards_fits_the_weights(weights: Weights) -> None:
    """Too few shards, which run out of memory late; impossible placements that are not reported."""
    assert [count_shards(model, 80 * 10**9) for model in (10**8, 16 * 10**9, 140 * 10**9)] == [1, 1, 3]
    assert plan_placement(weights, "float32", "auto", "auto", 0.5) == Placement(1, 8, {"GPU": 0.5})
    assert plan_placement(weights, "float32", 3, "auto", 0).replicas == 2
    with pytest.raises(UserError, match=r"@main: has 3 layers, too few for 4 shards"):
        plan_placement(weights, "float32", 4, "auto", 1)
    with pytest.raises(
        UserError, match=r"2 shards x 3 replicas x 1 GPU do not fit .* has 6 CPUs and 4 GPUs"
    ):
        plan_placement(weights, "float32", 2, 3, 1)


def test_each_shard_sees_only_its_device(weights: Weights) -> None:
    """Two shards on one GPU, which might run out of memory."""
    whole_gpus = ActivationPipeline(weights, SETTINGS, 2, CPU | {"GPU": 1.0})
    half_gpus = ActivationPipeline(weights, SETTINGS, 2, CPU | {"GPU": 0.5})
    no_gpus = ActivationPipeline(weights, SETTINGS, 1, CPU)
    visible = [
        ray.get([shard.__ray_call__.remote(_visible_gpus) for shard in pipeline._shards])
        for pipeline in (whole_gpus, half_gpus, no_gpus)
    ]
    for pipeline in (whole_gpus, half_gpus, no_gpus):
        pipeline.stop()
    assert len(set(visible[0])) == 2
    assert set(visible[0]).isdisjoint(visible[1])
    assert {len(device) for device in visible[0] + visible[1]} == {1}
    assert visible[2] == [""]


class GlooPipeline(ActivationPipeline):
    default_transport = "gloo"


def test_memory_is_constant_with_direct_tensor_transfers(weights: Weights, tmp_path: Path) -> None:
    """A leak, over 10,000 sentences; Ray's CPU transport represents that of GPUs."""
    sentences = make_sentences(10_000)
    units = make_work_units(sentences, 250)
    queue = make_queue(lambda: GlooPipeline(weights, SETTINGS, 2, CPU), tmp_path)
    memory: list[list[int]] = []
    for _ in queue.run(units, 1, wait_seconds=60):
        actors = list_processes("ray::ShardActor")
        memory.append(sorted(process.memory_info().rss for process in actors))
    assert_every_activation(tmp_path, sentences, len(units))
    assert {len(sizes) for sizes in memory} == {2}
    early, late = np.median(memory[8:16], axis=0), np.median(memory[-8:], axis=0)
    assert (late < early * 1.03).all(), (early, late)


@pytest.mark.parametrize(("shards", "faulty"), [(1, 0), (2, 0), (2, 1)])
def test_a_unit_with_a_failed_step_is_not_committed(
    weights: Weights, tmp_path: Path, shards: int, faulty: int
) -> None:
    """Stale memory committed for the failed step, after a last step that succeeded; or an error of a
    later step reported instead of the first."""
    sentences = make_sentences(300)
    units = make_work_units(sentences, 100)
    unreadable = replace(units[0], texts=[*units[0].texts[1:], Text("", [])])
    pipeline = ActivationPipeline(weights, SETTINGS, shards, CPU)
    try:
        ray.get(pipeline.placed)
        error = error_of(pipeline.submit(unreadable, tmp_path, []))
        assert isinstance(error, UserError)
        assert "the sentence '' has no tokens" in str(error)
        for unit in units:
            ray.get(pipeline._shards[faulty].__ray_call__.remote(_fail_at, 2))
            error = error_of(pipeline.submit(unit, tmp_path, []))
            assert str(error) == "CUDA out of memory."
            ray.get(pipeline.submit(unit, tmp_path, []))
    finally:
        pipeline.stop()
    assert_every_activation(tmp_path, sentences, len(units))


def error_of(reference: Any) -> BaseException:
    with pytest.raises(RayTaskError) as caught:
        ray.get(reference)
    return root_cause(caught.value)


def _fail_at(actor: Any, number: int) -> None:
    """Make the shard's next step number `number` fail as if memory ran out."""
    step = type(actor._shard).step.__get__(actor._shard)
    countdown = itertools.count(1 - number)

    def fail_once(*args: Any) -> Any:
        if next(countdown) == 0:
            raise RuntimeError("CUDA out of memory.")
        return step(*args)

    actor._shard.step = fail_once


def _visible_gpus(_: object) -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def list_processes(name: str) -> list[psutil.Process]:
    processes = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(name):
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    return processes
