"""Activations could be misrouted between sentences, layers, shards and files."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from safetensors.torch import load_file, save_file

from cluster.activations.block_shard import BlockShard
from cluster.activations.layer_recorder import LayerRecorder
from cluster.activations.pass_actor import PassWorker
from cluster.activations.pass_placement import CPU_REASON, PassPlacement, place_pass
from cluster.activations.pass_request import PassRequest
from cluster.activations.shard_choice import PassSize
from cluster.memory_errors import is_out_of_memory
from cluster.models.tokenizer import Text
from cluster.models.weights import Weights
from cluster.runtime import session
from cluster.runtime.placement import Placement, count_shards, plan_placement
from cluster.runtime.queue import WorkQueue
from cluster.runtime.session import root_cause
from storage.errors import NeuralignError, UserError
from storage.store.layout import WORK_UNITS
from storage.store.manifest import read_work_units
from tests.planted import (
    CPU,
    LAYERS,
    SETTINGS,
    assert_every_activation,
    make_request,
    make_sentences,
)

SENTENCES = make_sentences(300)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """Logical GPUs are enough to test their assignment."""
    ray.init(address="local", num_cpus=6, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_number_of_shards_fits_the_weights(weights: Weights) -> None:
    """Too few shards, which run out of memory late; impossible placements that are not reported."""
    assert [count_shards(model, 80 * 10**9) for model in (10**8, 16 * 10**9, 140 * 10**9)] == [1, 1, 3]
    assert plan_placement(weights, "float32", 3, 0) == Placement(3, 2, {"CPU": 1})
    with pytest.raises(UserError, match=r"@main: has 3 layers, too few for 4 shards"):
        plan_placement(weights, "float32", 4, 1)
    with pytest.raises(UserError, match=r"3 shards x 2 GPU do not fit .* has 6 CPUs and 4 GPUs"):
        plan_placement(weights, "float32", 3, 2)


def test_a_pass_gets_the_devices_and_cores_that_it_may_use(weights: Weights) -> None:
    """Cores that idle, or a pass that waits for resources that the cluster has not."""
    size = PassSize(1000, 1024)

    def place(shards: Any, gpus: float, cpus: Any) -> PassPlacement:
        return place_pass(weights, SETTINGS, size, shards, gpus, cpus)

    assert place("auto", 0, "auto") == PassPlacement(1, CPU_REASON, {"CPU": 6})
    assert place("auto", 0, 2).resources == {"CPU": 2}
    assert place(3, 0, "auto").resources == {"CPU": 2}
    assert place(2, 0.5, "auto").resources == {"GPU": 0.5}
    assert place(2, 1, 2).resources == {"GPU": 1, "CPU": 2}
    assert place("auto", 0, "auto").notes == ()
    assert place(2, 1, "auto").notes == ("2 shards: set by `shards`",)
    for arguments, message in [
        ((4, 0, "auto"), "has 3 layers, too few for 4 shards"),
        ((3, 2, "auto"), "3 shards x 2 GPU do not fit the cluster, which has 6 CPUs and 4 GPUs"),
        ((1, 0, 7), "1 shards x 7 CPU do not fit the cluster, which has 6 CPUs and 4 GPUs"),
        (("auto", 1, "auto"), "torch cannot use the GPU of a node of the cluster"),
    ]:
        with pytest.raises(UserError, match=message):
            place(*arguments)


def test_a_pass_that_was_planned_for_gpus_is_refused_without_them(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours on CPUs with a GPU's dtype and batches, without a word."""

    def place(needs_gpus: bool) -> PassPlacement:
        return place_pass(weights, SETTINGS, PassSize(1000, 1024), 1, 0.5, "auto", needs_gpus)

    monkeypatch.setattr(session, "cluster_gpus", lambda: 0)
    with pytest.raises(UserError) as caught:
        place(needs_gpus=True)
    assert re.search(
        r"^model .*@main: gpus_per_shard is 0\.5, but the cluster has 6 CPUs and 0 GPUs; set "
        r"gpus_per_shard: 0 to use CPUs$",
        str(caught.value),
    )
    assert place(needs_gpus=False).resources == {"CPU": 6}


def test_each_shard_sees_only_its_device(weights: Weights) -> None:
    """Two shards on one GPU, which might run out of memory."""
    whole_gpus = PassWorker(weights, SETTINGS, 2, CPU | {"GPU": 1.0})
    half_gpus = PassWorker(weights, SETTINGS, 2, CPU | {"GPU": 0.5})
    no_gpus = PassWorker(weights, SETTINGS, 1, CPU)
    visible = [
        ray.get([actor.__ray_call__.remote(_visible_gpus) for actor in worker.actors])
        for worker in (whole_gpus, half_gpus, no_gpus)
    ]
    for worker in (whole_gpus, half_gpus, no_gpus):
        worker.stop()
    assert len(set(visible[0])) == 2
    assert set(visible[0]).isdisjoint(visible[1])
    assert {len(device) for device in visible[0] + visible[1]} == {1}
    assert visible[2] == [""]


@pytest.mark.parametrize(("shards", "faulty"), [(1, 0), (2, 0), (2, 1)])
def test_values_of_a_failed_batch_are_not_committed(
    weights: Weights, tmp_path: Path, shards: int, faulty: int
) -> None:
    """Stale memory committed for the failed batch; or an error of another shard reported instead of
    its."""
    sentences = make_sentences(100)
    request = make_request(sentences, tmp_path)
    worker = PassWorker(weights, SETTINGS, shards, CPU)
    try:
        ray.get(worker.placed)
        unreadable = replace(request, texts=[*request.texts, Text("", [])])
        error = error_of(worker.run(unreadable))
        assert isinstance(error, UserError)
        assert "the sentence '' has no tokens" in str(error)
        assert not list(tmp_path.iterdir())
        ray.get(worker.actors[faulty].__ray_call__.remote(_fail_once_at, 3))
        assert str(error_of(worker.run(request))) == "the device has failed"
        assert not list(tmp_path.glob("_units/*") if shards == 1 else tmp_path.glob("_units/L02.json"))
        ray.get(worker.run(request))
    finally:
        worker.stop()
    assert_every_activation(tmp_path, sentences)


@pytest.fixture(scope="module")
def whole(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one shard commits."""
    folder = tmp_path_factory.mktemp("whole")
    run(PassWorker(weights, SETTINGS, 1, CPU), make_request(SENTENCES, folder))
    return folder


def run(worker: PassWorker, request: PassRequest) -> None:
    try:
        ray.get(worker.run(request))
    finally:
        worker.stop()


def read_files(folder: Path) -> dict[str, list[Any]]:
    """The rows of all files, which also say where they are."""
    return {
        str(path.relative_to(folder)): pq.read_table(path).to_pylist()
        for path in folder.rglob("*.parquet")
    }


def read_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What is recorded of each layer beside its files."""
    return {unit: facts for unit, (_, facts) in read_work_units(folder).items()}


class GlooWorker(PassWorker):
    """Ray's CPU transport represents that of GPUs."""

    default_transport = "gloo"


@pytest.mark.parametrize(
    ("worker_class", "shards", "threads"),
    [(PassWorker, 2, 1), (PassWorker, 3, 2), (GlooWorker, 2, 1)],
)
def test_a_pipeline_commits_the_bytes_of_one_shard(
    weights: Weights, tmp_path: Path, whole: Path, worker_class: Any, shards: int, threads: int
) -> None:
    """Hidden states of another step, or values that depend on the shards."""
    folder = tmp_path / "shards"
    worker = worker_class(weights, SETTINGS, shards, {"CPU": threads})
    run(worker, make_request(SENTENCES, folder))
    assert len(read_files(whole)) > LAYERS
    assert read_files(folder) == read_files(whole)
    assert_every_activation(folder, SENTENCES)
    assert read_facts(folder) == read_facts(whole)


def test_a_rerun_reads_only_layers_up_to_the_last_missing_one(weights: Weights, tmp_path: Path) -> None:
    """A pipeline that reads everything again after one of its actors was killed."""
    request = make_request(SENTENCES, tmp_path)
    expected: dict[str, list[Any]] = {}
    for lost, counts in [("", [1, 1, 1]), ("L01", [0, 1, 0]), ("L02", [0, 0, 1])]:
        if lost:
            (tmp_path / WORK_UNITS / f"{lost}.json").unlink()
        worker = PassWorker(weights, SETTINGS, 3, CPU)
        try:
            ray.get(worker.run(request))
            read = ray.get([actor.count_done.remote() for actor in worker.actors])
            assert read == [count * len(SENTENCES) for count in counts]
            assert worker.count_done() == sum(read)
        finally:
            worker.stop()
        expected = expected or read_files(tmp_path)
        assert read_files(tmp_path) == expected
    assert len(read_work_units(tmp_path)) == LAYERS


def test_no_shard_is_far_ahead_of_the_last_one(weights: Weights, tmp_path: Path) -> None:
    """Hidden states of all sentences in the object store, because the last device is slow."""
    sentences = make_sentences(2000)
    worker = PassWorker(weights, SETTINGS, 2, CPU)
    try:
        ray.get(worker.placed)
        ray.get(
            [actor.__ray_call__.remote(_slow_down, 0.02 * n) for n, actor in enumerate(worker.actors)]
        )
        done = worker.run(make_request(sentences, tmp_path))
        ahead = []
        while not ray.wait([done], timeout=0.2)[0]:
            first, last = ray.get(
                [
                    actor.count_done.options(concurrency_group="progress").remote()
                    for actor in worker.actors
                ]
            )
            ahead.append(first - last)
        ray.get(done)
    finally:
        worker.stop()
    # Of 2,000, in batches of about 4 sentences.
    assert 0 < max(ahead) < 200


def test_memory_that_runs_out_in_a_pipeline_is_said_and_blocks_are_tried(
    weights: Weights, tmp_path: Path, whole: Path
) -> None:
    """A shard that runs with other batches without a word, or the same failure three times."""
    folder, request = tmp_path / "again", make_request(SENTENCES, tmp_path / "again")
    worker = PassWorker(weights, SETTINGS, 2, CPU)
    try:
        ray.get(worker.placed)
        ray.get(worker.actors[1].__ray_call__.remote(_fail_once_at, 3, "CUDA out of memory."))
        error = error_of(worker.run(request))
        assert is_out_of_memory(error)
        assert not read_work_units(folder)
        ray.get(worker.run(request.leave_more_memory()))
    finally:
        worker.stop()
    assert read_files(folder) == read_files(whole)
    note = "memory ran out in a pipeline of 2 shards; one of them read all layers, in blocks"
    assert [facts["notes"] for facts in read_facts(folder).values()] == [[note]] * LAYERS


@pytest.mark.parametrize(
    ("shards", "killed", "call", "recorded"),
    [
        (2, 0, "batch", []),
        (2, 1, "batch", []),
        # The first shard has the layers 0.
        (2, 1, "record", ["L00"]),
        (1, 0, "record", []),
    ],
)
def test_a_worker_that_is_killed_loses_only_the_blocks_in_work(
    weights: Weights,
    tmp_path: Path,
    whole: Path,
    shards: int,
    killed: int,
    call: str,
    recorded: list[str],
) -> None:
    """Other values, a pipeline that waits forever, or layers that are read and written again."""
    request = make_request(SENTENCES, tmp_path)
    started: list[PassWorker] = []

    def start() -> PassWorker:
        started.append(PassWorker(weights, SETTINGS, shards, CPU))
        if len(started) == 1:
            actor = started[0].actors[killed]
            ray.get(actor.__ray_call__.remote(_kill_in, call, tmp_path, recorded))
        return started[-1]

    written: list[float] = []

    def submit(worker: PassWorker, unit: PassRequest) -> Any:
        if len(started) == 2:
            assert sorted(read_work_units(tmp_path)) == recorded
            written.extend((tmp_path / WORK_UNITS / f"{name}.json").stat().st_mtime for name in recorded)
        return worker.run(unit)

    queue: WorkQueue[PassRequest, None] = WorkQueue(
        start, submit, lambda _: "pass", lambda unit: unit, lambda unit: unit.halve_blocks()
    )
    assert len(list(queue.run([request], 1))) == 1
    assert len(started) == 2
    assert read_files(tmp_path) == read_files(whole)
    assert [(tmp_path / WORK_UNITS / f"{name}.json").stat().st_mtime for name in recorded] == written
    notes = [facts["notes"] for unit, facts in read_facts(tmp_path).items() if unit not in recorded]
    note = (
        "a worker was lost, perhaps for lack of memory; the remaining layers were read in blocks of 1/2 "
        "of the planned size, or of one layer"
    )
    # A pipeline is started again as it was.
    assert notes == [[note] if shards == 1 else []] * len(notes)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_layer_of_the_first_value_that_is_not_finite_is_named(
    weights: Weights, tmp_path: Path, shards: int
) -> None:
    """The name of a later layer, which depends on the shards."""
    shutil.copytree(weights.model, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    tensors = load_file(file)
    for layer in (1, 2):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] *= 1e9
    save_file(tensors, file, {"format": "pt"})
    broken = replace(weights, model=str(tmp_path / "model"), location=str(tmp_path / "model"))
    worker = PassWorker(broken, SETTINGS, shards, CPU)
    try:
        error = error_of(worker.run(make_request(SENTENCES, tmp_path)))
    finally:
        worker.stop()
    assert isinstance(error, NeuralignError)
    assert re.search(
        r"model@main: L01\.mlp\.hidden, pooling max, sentence '.*': an activation is NaN", str(error)
    )


def test_a_gpu_that_torch_cannot_use_is_refused(weights: Weights, tmp_path: Path) -> None:
    """Hours on one core in its place, without a word."""
    for shards in (1, 2):
        worker = PassWorker(weights, SETTINGS, shards, {"GPU": 1})
        try:
            error = error_of(worker.actors[0].run.remote(make_request(SENTENCES, tmp_path)))
        finally:
            worker.stop()
        assert isinstance(error, UserError)
        assert re.match(
            r"model .*@main: .* has a GPU for Ray, but torch .* cannot use it; .*", str(error)
        )


def test_an_actor_whose_device_is_lost_is_replaced_and_its_error_reported(
    weights: Weights, tmp_path: Path
) -> None:
    """An error of the cleaning up in place of the device's, or an actor that fails every attempt."""
    worker = PassWorker(weights, SETTINGS, 1, CPU)
    try:
        ray.get(worker.placed)
        ray.get(worker.actors[0].__ray_call__.remote(_lose_device))
        request = make_request(SENTENCES, tmp_path)
        assert str(error_of(worker.run(request))) == "CUDA error: an illegal memory access"
        with pytest.raises(RayActorError):
            ray.get(worker.run(request))
    finally:
        worker.stop()


def error_of(reference: Any) -> BaseException:
    with pytest.raises(RayTaskError) as caught:
        ray.get(reference)
    return root_cause(caught.value)


def _fail_once_at(_: Any, number: int, message: str = "the device has failed") -> None:
    """Make a batch, counted from 1, fail in this process."""
    run, countdown = BlockShard.run, itertools.count(1 - number)

    def fail_once(*arguments: Any) -> Any:
        if next(countdown) == 0:
            raise RuntimeError(message)
        return run(*arguments)

    setattr(BlockShard, "run", fail_once)  # noqa: B010


def _kill_in(_: Any, call: str, folder: Path, recorded: list[str]) -> None:
    """Kill this process in its third batch, or when it records its layers, once those of other shards
    are recorded."""
    run, countdown = BlockShard.run, itertools.count(-2)

    def kill_in_batch(*arguments: Any) -> Any:
        if next(countdown) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(*arguments)

    def kill_in_record(*arguments: Any) -> None:
        while not set(recorded) <= set(read_work_units(folder)):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    if call == "batch":
        setattr(BlockShard, "run", kill_in_batch)  # noqa: B010
    else:
        setattr(LayerRecorder, "record", kill_in_record)  # noqa: B010


def _slow_down(_: Any, seconds: float) -> None:
    run = BlockShard.run

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return run(*arguments)

    setattr(BlockShard, "run", slow)  # noqa: B010


def _lose_device(actor: Any) -> None:
    """Make all calls of CUDA fail in this process."""
    _fail_once_at(actor, 2, "CUDA error: an illegal memory access")

    def fail() -> None:
        raise RuntimeError("CUDA error: in another call")

    torch.cuda.empty_cache = fail


def _visible_gpus(_: object) -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]
