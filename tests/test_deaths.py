"""No unit may be lost or returned twice when an actor, a replica or a node dies."""

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

from cluster.activations.pipeline import ActivationPipeline
from cluster.models.weights import Weights
from tests.planted import (
    CPU,
    LAYERS,
    POOLINGS,
    SETTINGS,
    assert_every_activation,
    make_queue,
    make_sentences,
    make_work_units,
)

pytestmark = pytest.mark.slow

_SECONDS = 120


def test_every_unit_is_done_once_when_actors_replicas_and_nodes_die(
    weights: Weights, tmp_path: Path
) -> None:
    """An actor is killed, then all actors of a replica, then a replica's node, and a node joins."""
    texts = make_sentences(1_200)
    units = make_work_units(texts, 20)
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
    started: list[ActivationPipeline] = []

    def start() -> ActivationPipeline:
        started.append(ActivationPipeline(weights, SETTINGS, 2, CPU))
        return started[-1]

    def kill(shards: list[Any]) -> None:
        for process in ray.get([shard.__ray_call__.remote(lambda _: os.getpid()) for shard in shards]):
            os.kill(process, signal.SIGKILL)

    def node_of(pipeline: ActivationPipeline) -> str | None:
        """The node of a replica's first shard; None if it is dead."""
        ask = pipeline._shards[0].__ray_call__
        asked = ask.remote(lambda _: ray.get_runtime_context().get_node_id())
        try:
            return str(ray.get(asked, timeout=_SECONDS))
        except (RayActorError, GetTimeoutError):
            return None

    def call_until_error(pipeline: ActivationPipeline) -> None:
        """A process on a lost node may respond for a moment."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            ray.get(pipeline._shards[0].supports_nccl.remote())
            time.sleep(0.1)

    def lose_the_node_of_a_replica() -> None:
        replica, node_id = next((group, node) for group in started if (node := node_of(group)))
        (node,) = (node for node in cluster.list_all_nodes() if node.node_id == node_id)
        cluster.remove_node(node, allow_graceful=False)
        with pytest.raises(RayActorError):
            call_until_error(replica)

    faults: dict[int, Callable[[], Any]] = {
        5: lambda: kill(started[0]._shards[1:]),
        20: lambda: kill(started[-1]._shards),
        35: lose_the_node_of_a_replica,
        45: lambda: cluster.add_node(num_cpus=2),
    }
    done = []
    try:
        for unit, receipt in make_queue(start, tmp_path, delay_seconds=0.2).run(
            units, 2, wait_seconds=60
        ):
            done.append(unit.number)
            assert len(receipt.files) == LAYERS * len(POOLINGS) + 2 * LAYERS
            if len(done) in faults:
                faults[len(done)]()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sorted(done) == list(range(len(units)))
    # each of the three faults hit a replica, which was replaced
    assert len(started) == 2 + 3
    assert_every_activation(tmp_path, texts, len(units))
