"""No request may be lost or returned twice when an actor, a worker or a node dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import GetTimeoutError, RayActorError

from cluster.activations.pass_actor import PassWorker
from cluster.models.weights import Weights
from tests.planted import (
    CPU,
    SETTINGS,
    assert_every_activation,
    make_queue,
    make_request,
    make_sentences,
)

pytestmark = pytest.mark.slow

_SECONDS = 120


def test_every_request_is_done_once_when_actors_workers_and_nodes_die(
    weights: Weights, tmp_path: Path
) -> None:
    """An actor is killed, then all actors of a worker, then a worker's node, and a node joins."""
    sentences = make_sentences(1_200)
    parts = [sentences[first : first + 20] for first in range(0, len(sentences), 20)]
    requests = [make_request(part, tmp_path / str(number)) for number, part in enumerate(parts)]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 4},
        },
    )
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    started: list[PassWorker] = []

    def start() -> PassWorker:
        started.append(PassWorker(weights, SETTINGS, 2, CPU))
        return started[-1]

    def kill(actors: list[Any]) -> None:
        for process in ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors]):
            os.kill(process, signal.SIGKILL)

    def node_of(worker: PassWorker) -> str | None:
        """The node of a worker's first actor; None if it is dead."""
        ask = worker.actors[0].__ray_call__
        asked = ask.remote(lambda _: ray.get_runtime_context().get_node_id())
        try:
            return str(ray.get(asked, timeout=_SECONDS))
        except (RayActorError, GetTimeoutError):
            return None

    def call_until_error(worker: PassWorker) -> None:
        """A process on a lost node may respond for a moment."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            ray.get(worker.actors[0].__ray_call__.remote(lambda _: None))
            time.sleep(0.1)

    def lose_the_node_of_a_worker() -> None:
        worker, node_id = next((group, node) for group in started if (node := node_of(group)))
        (node,) = (node for node in cluster.list_all_nodes() if node.node_id == node_id)
        cluster.remove_node(node, allow_graceful=False)
        with pytest.raises(RayActorError):
            call_until_error(worker)

    faults: dict[int, Callable[[], Any]] = {
        5: lambda: kill(started[0].actors[1:]),
        20: lambda: kill(started[-1].actors),
        35: lose_the_node_of_a_worker,
        45: lambda: cluster.add_node(num_cpus=2),
    }
    done = []
    try:
        for request, _ in make_queue(start, delay_seconds=0.2).run(requests, 2, wait_seconds=60):
            done.append(request.folder)
            if len(done) in faults:
                faults[len(done)]()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sorted(done) == sorted(request.folder for request in requests)
    # each of the three faults hit a worker, which was replaced
    assert len(started) == 2 + 3
    for part, request in zip(parts, requests, strict=True):
        assert_every_activation(request.folder, part)
