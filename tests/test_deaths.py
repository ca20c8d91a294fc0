"""Nothing may be lost or given twice when an actor, a replica or a node dies in the middle."""

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

from cluster.activations.pipeline import Pipeline
from cluster.models.weights import Weights
from tests.planted import (
    CPU,
    LAYERS,
    POOLINGS,
    SETTINGS,
    check_every_activation,
    queue_of,
    sentences,
    work_units,
)

_SECONDS = 120


def test_killed_actors_replicas_and_nodes_lose_and_double_nothing(
    weights: Weights, tmp_path: Path
) -> None:
    """An actor is killed, then all actors of a replica, then the node under one, and a node comes."""
    given = sentences(1_200)
    units = work_units(given, 20)
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
    started: list[Pipeline] = []

    def start() -> Pipeline:
        started.append(Pipeline(weights, SETTINGS, 2, CPU))
        return started[-1]

    def kill(shards: list[Any]) -> None:
        for process in ray.get([shard.__ray_call__.remote(lambda _: os.getpid()) for shard in shards]):
            os.kill(process, signal.SIGKILL)

    def node_of(pipeline: Pipeline) -> str | None:
        """Where the first shard of a replica stands; None for one that does not live."""
        ask = pipeline._shards[0].__ray_call__
        asked = ask.remote(lambda _: ray.get_runtime_context().get_node_id())
        try:
            return str(ray.get(asked, timeout=_SECONDS))
        except (RayActorError, GetTimeoutError):
            return None

    def ask_again_and_again(pipeline: Pipeline) -> None:
        """A process of a node that is lost may answer for some moments."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            ray.get(pipeline._shards[0].offers_nccl.remote())
            time.sleep(0.1)

    def lose_the_node_of_a_replica() -> None:
        replica, place = next((each, place) for each in started if (place := node_of(each)))
        (node,) = (each for each in cluster.list_all_nodes() if each.node_id == place)
        cluster.remove_node(node, allow_graceful=False)
        with pytest.raises(RayActorError):
            ask_again_and_again(replica)

    faults: dict[int, Callable[[], Any]] = {
        5: lambda: kill(started[0]._shards[1:]),
        20: lambda: kill(started[-1]._shards),
        35: lose_the_node_of_a_replica,
        45: lambda: cluster.add_node(num_cpus=2),
    }
    done = []
    try:
        for unit, receipt in queue_of(start, tmp_path, slow=0.2).run(units, 2, wait_seconds=60):
            done.append(unit.number)
            assert len(receipt.files) == LAYERS * len(POOLINGS) + 2 * LAYERS
            if len(done) in faults:
                faults[len(done)]()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sorted(done) == list(range(len(units)))
    # each of the three hit a replica, whose place a new one took
    assert len(started) == 2 + 3
    check_every_activation(tmp_path, given, len(units))
