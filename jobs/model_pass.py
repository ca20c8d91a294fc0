"""A pass of a sentence set through a model on the cluster, and a search for tokens in some of its
sentences, with retries and progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.models.weights import Weights
from jobs.config.models import Model
from jobs.device_params import runs_on_gpus
from jobs.engine.progress import Advance, progress
from storage.store import layout
from storage.store.lease import update_lease
from storage.store.manifest import read_work_units

if TYPE_CHECKING:
    from cluster.activations.pass_actor import PassWorker
    from cluster.activations.pass_request import PassRequest
    from cluster.activations.pooling_shard import ActivationSettings
    from cluster.activations.token_rows import TokenRequest

_UNIT = "sentences x layers"
_SECONDS_BETWEEN_COUNTS = 2.0


def run_pass(
    name: str,
    weights: Weights,
    model: Model,
    settings: ActivationSettings,
    request: PassRequest,
    units: Sequence[str],
) -> None:
    """Run the layers that are not recorded yet, of all `units`, for the stage with this display name.

    Raises:
        WorkFailed: if a value is not finite, or the actors fail repeatedly.
    """
    update_lease(request.folder / layout.RUNNING, units=len(units))
    n_recorded = len(read_work_units(request.folder).keys() & units)
    if n_recorded == len(units):
        return
    n_sentences = len(request.texts)
    n_items, n_done = len(units) * n_sentences, n_recorded * n_sentences
    with (
        progress(name, n_items, _UNIT, n_done) as advance,
        _counted(advance, n_items - n_done) as workers,
    ):
        _run_on_workers(name, weights, model, settings, request, workers)


def find_tokens(
    name: str,
    weights: Weights,
    model: Model,
    settings: ActivationSettings,
    request: TokenRequest,
    n_items: int,
) -> None:
    """Record the layers of a request that are not recorded yet, on one device, for the stage with this
    display name; `n_items` are the sentences times layers to read.

    Raises:
        WorkFailed: if the actor fails repeatedly.
    """
    from cluster.runtime.placement import plan_placement
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect

    with progress(name, n_items, _UNIT) as advance, _counted(advance, n_items) as workers:
        connect()
        placement = plan_placement(weights, settings.dtype, 1, model.gpus_per_shard)
        queue: WorkQueue[TokenRequest, None] = WorkQueue(
            _starter(workers, weights, settings, 1, placement.resources),
            lambda worker, unit: worker.find_tokens(unit),
            lambda _: name,
            lambda unit: unit.halve_batches(),
        )
        list(queue.run([request], 1, model.wait_seconds))


def _run_on_workers(
    name: str,
    weights: Weights,
    model: Model,
    settings: ActivationSettings,
    request: PassRequest,
    workers: list[PassWorker],
) -> None:
    """Run a request; the last of the `workers` is the one at work."""
    from cluster.activations.pass_placement import place_pass
    from cluster.activations.shard_choice import PassSize
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect

    connect()
    working_bytes = request.consumer.working_bytes("cuda")
    size = PassSize(len(request.texts), request.budget, working_bytes)
    placement = place_pass(
        weights,
        settings,
        size,
        model.shards,
        model.gpus_per_shard,
        model.cpus_per_shard,
        runs_on_gpus(model),
    )
    request = replace(request, notes=placement.notes)
    queue: WorkQueue[PassRequest, None] = WorkQueue(
        _starter(workers, weights, settings, placement.shards, placement.resources),
        lambda worker, unit: worker.run(unit),
        lambda _: name,
        lambda unit: unit.leave_more_memory(),
        lambda unit: unit.halve_blocks(),
    )
    list(queue.run([request], 1, model.wait_seconds))


def _starter(
    workers: list[PassWorker],
    weights: Weights,
    settings: ActivationSettings,
    shards: int,
    resources: dict[str, float],
) -> Callable[[], PassWorker]:
    """Starts a worker and appends it to `workers`."""
    from cluster.activations.pass_actor import PassWorker

    def start() -> PassWorker:
        workers.append(PassWorker(weights, settings, shards, resources))
        return workers[-1]

    return start


@contextmanager
def _counted(advance: Advance, total: int) -> Iterator[list[PassWorker]]:
    """A list of workers: what the last of them has done is reported every few seconds, and the rest of
    the `total` at the end."""
    workers: list[PassWorker] = []
    is_finished, reported = threading.Event(), 0

    def count() -> None:
        nonlocal reported
        while not is_finished.wait(_SECONDS_BETWEEN_COUNTS):
            done = workers[-1].count_done() if workers else 0
            # A later worker begins again at its first layer.
            if done > reported:
                advance(done - reported)
                reported = done

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield workers
    finally:
        is_finished.set()
        thread.join()
    if reported < total:
        advance(total - reported)
