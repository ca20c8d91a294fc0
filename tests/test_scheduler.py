"""The scheduler must run stages of different models concurrently, but never two on one resource. A
failed model must not stop the others, but an error that affects all must."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from ray.exceptions import RayTaskError

from jobs import activations, sweep
from jobs.config.loader import read_sweep
from jobs.engine.scheduler import StageResult, run_concurrently
from jobs.engine.stage import Resource, Stage, StageOutput
from jobs.planner import plan_sweep
from storage.errors import StoreError, UserError, WorkFailed
from storage.store import layout
from storage.store.layout import RUNNING
from tests import tiny

_SECONDS = 60


@pytest.fixture(autouse=True)
def gpus() -> Iterator[None]:
    """A cluster with a GPU; these stages do not use it."""
    with (
        patch("cluster.runtime.session.connect"),
        patch("cluster.runtime.session.cluster_gpus", lambda: 1),
    ):
        yield


class Recorder:
    """Records the order of stages, and which ran concurrently."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: list[tuple[str, Resource]] = []
        self.concurrent: set[frozenset[str]] = set()
        self.order: list[str] = []

    def stage(
        self,
        label: str,
        resource: Resource,
        inputs: dict[str, Stage],
        work: Callable[[str], Any],
    ) -> Stage:
        def run(stage: Stage, store: Path) -> StageOutput:
            with self.lock:
                assert resource not in [busy for _, busy in self.running], (label, self.running)
                self.running.append((label, resource))
                self.order.append(label)
                self.concurrent |= {frozenset([label, other]) for other, _ in self.running}
            try:
                work(label)
            finally:
                with self.lock:
                    self.running.remove((label, resource))
            return StageOutput([])

        return Stage("report", label, {"label": label}, run, inputs, resource)


def _models(recorder: Recorder, count: int, work: Callable[[str], Any]) -> list[Stage]:
    stages = []
    for number in range(count):
        activations = recorder.stage(f"activations {number}", Resource.GPUS, {}, work)
        experts = recorder.stage(f"experts {number}", Resource.CPUS, {"activations": activations}, work)
        stages += [
            activations,
            experts,
            recorder.stage(f"similarity {number}", Resource.DRIVER, {"experts": experts}, work),
        ]
    return stages


def test_stages_of_different_models_run_concurrently(tmp_path: Path) -> None:
    """Run one after another, GPUs would idle while a model is scored on the CPUs."""
    recorder = Recorder()
    pairs = [
        ("experts 0", "activations 1"),
        ("similarity 0", "activations 2"),
        ("similarity 0", "experts 1"),
    ]
    expected = {frozenset(pair) for pair in pairs}

    def work(label: str) -> None:
        """Run until every stage that should run concurrently with this one did."""
        deadline = time.monotonic() + _SECONDS
        while {pair for pair in expected if label in pair} - recorder.concurrent:
            assert time.monotonic() < deadline, label
            time.sleep(0.01)

    stages = _models(recorder, 4, work)
    store = layout.create_store(tmp_path / "store")
    ended = [result.stage.label for result in run_concurrently(stages, store)]
    assert sorted(ended) == sorted(stage.label for stage in stages)
    assert expected <= recorder.concurrent
    rerun = list(run_concurrently(stages, store))
    assert not any(result.ran for result in rerun)
    assert len(rerun) == len(stages)


def test_without_gpus_forward_passes_and_scoring_take_turns_on_the_cpus(tmp_path: Path) -> None:
    """Run concurrently, each would wait for CPUs that the other holds, and time out."""
    recorder = Recorder()
    stages = _models(recorder, 3, lambda _: time.sleep(0.05))
    store = layout.create_store(tmp_path / "store")
    with patch("cluster.runtime.session.cluster_gpus", lambda: 0):
        list(run_concurrently(stages, store))
    kinds = {frozenset(label.split()[0] for label in pair) for pair in recorder.concurrent}
    assert frozenset(["activations", "experts"]) not in kinds
    assert recorder.order.index("experts 0") < recorder.order.index("activations 1")


def test_a_failed_model_does_not_stop_the_others(tmp_path: Path) -> None:
    """One bad checkpoint would cost the results of all models."""

    def work(label: str) -> None:
        if label == "activations 1":
            raise WorkFailed("1 of 1 units failed", ["unit 0: nonsense"])
        if label == "experts 2":
            raise UserError("does not fit")

    recorder = Recorder()
    stages = _models(recorder, 4, work)
    store = layout.create_store(tmp_path / "store")
    results = list(run_concurrently(stages, store))
    assert {result.stage.label for result in results if result.error} == {"activations 1", "experts 2"}
    assert {result.stage.label for result in results if result.ran} == {
        *(
            "activations 0",
            "experts 0",
            "similarity 0",
            "activations 2",
            "activations 3",
            "experts 3",
            "similarity 3",
        )
    }


@pytest.mark.parametrize("error", [StoreError("full"), ZeroDivisionError("a bug")])
def test_a_store_failure_or_a_bug_stops_all_models_and_leaves_no_lease(
    tmp_path: Path, error: Exception
) -> None:
    """A lease that is left makes the next run wait; a thread that is left keeps computing."""

    def work(label: str) -> None:
        if label == "experts 0":
            time.sleep(0.3)
            raise error
        if label == "activations 1":
            while True:
                time.sleep(0.05)

    stages = _models(Recorder(), 3, work)
    store = layout.create_store(tmp_path / "store")
    started = time.monotonic()
    with pytest.raises(type(error), match=str(error)):
        list(run_concurrently(stages, store))
    assert time.monotonic() - started < _SECONDS
    assert not list(store.rglob(RUNNING))
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {stage.name for stage in stages}


def test_a_deadlock_is_an_error(tmp_path: Path) -> None:
    """A stage whose input is never made would make the run wait forever."""
    _, *without_input = _models(Recorder(), 1, lambda _: None)
    store = layout.create_store(tmp_path / "store")
    with pytest.raises(RuntimeError, match="deadlock: report experts 0 cannot start"):
        list(run_concurrently(without_input, store))


def test_an_unexpected_error_in_a_task_is_listed_in_one_line(tmp_path: Path, tiny_model: Path) -> None:
    """The list of failed models would contain a traceback for each of them."""
    file = tiny.write_sweep(tmp_path, model=str(tiny_model))
    shutil.copytree(tiny_model, tmp_path / "other")
    models = f"{{id: {tiny_model}, dtype: float32}}"
    file.write_text(file.read_text().replace(models, f"{models}, {{id: other, dtype: float32}}"))
    cause = RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA.")
    error = RayTaskError("measure", "Traceback:\n  a frame\n", cause, "measure", 1, "127.0.0.1")

    def run_nothing(stages: list[Stage], *_: Any) -> Iterator[StageResult]:
        for stage in stages:
            if stage.kind == activations.KIND:
                yield StageResult(stage, ran=False, error=error)

    with patch("jobs.sweep.run_concurrently", run_nothing), pytest.raises(WorkFailed) as caught:
        sweep.run(plan_sweep(read_sweep(file)))
    assert len(caught.value.failures) == 2
    for failure in caught.value.failures:
        assert failure.endswith(": RuntimeError: CUDA error: out of memory")
