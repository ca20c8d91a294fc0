"""Nothing may be lost or given twice when an actor, a replica or a node dies in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.pipeline import Pipeline
from cluster.weights import Weights
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


def test_killed_actors_replicas_and_nodes_lose_and_double_nothing(
    weights: Weights, tmp_path: Path
) -> None:
    """An actor is killed, then all actors of a replica, then a node, and a node comes."""
    given = sentences(1_200)
    units = work_units(given, 20)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False},
    )
    doomed = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    started: list[Pipeline] = []

    def start() -> Pipeline:
        started.append(Pipeline(weights, SETTINGS, 2, CPU))
        return started[-1]

    def kill(shards: list[Any]) -> None:
        for process in ray.get([shard.__ray_call__.remote(lambda _: os.getpid()) for shard in shards]):
            os.kill(process, signal.SIGKILL)

    faults: dict[int, Callable[[], Any]] = {
        5: lambda: kill(started[0]._shards[1:]),
        20: lambda: kill(started[-1]._shards),
        35: lambda: cluster.remove_node(doomed, allow_graceful=False),
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
    # the node may die before the replica that takes a killed one's place is on it
    assert len(started) >= 4
    check_every_activation(tmp_path, given, len(units))
