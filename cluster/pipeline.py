"""A pipeline: the shards of one replica of a model, each on its own device, seen from the driver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.shard import Settings
from cluster.shard_actor import STEPS, ShardActor, WorkUnit
from cluster.weights import Weights

COMMIT = "commit"
"""Commits of a shard run beside its steps, one after another."""


class Pipeline:
    """A chain of shard actors in one placement group: packed on a node where they fit."""

    def __init__(
        self, weights: Weights, settings: Settings, shards: int, resources: dict[str, float]
    ) -> None:
        self._group = placement_group([resources] * shards, strategy="PACK")
        self._shards: list[Any] = [
            ray.remote(concurrency_groups={COMMIT: 1})(ShardActor)  # type: ignore[call-overload]
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, number),
            )
            .remote(weights, settings, number, shards)
            for number in range(shards)
        ]

    def ready(self) -> Any:
        """A reference that is there as soon as every shard is placed."""
        return self._group.ready()

    def submit(self, unit: WorkUnit, folder: Path, words: Sequence[str]) -> Any:
        """Send a unit through all shards; the reference of its receipt."""
        given = ray.put(unit)
        last: list[Any] = [None] * len(self._shards)
        for piece in range(STEPS):
            hidden = None
            for number, shard in enumerate(self._shards):
                hidden = last[number] = shard.step.remote(given, piece, hidden)
        receipt = None
        for number, shard in enumerate(self._shards):
            receipt = shard.commit.options(concurrency_group=COMMIT).remote(
                given, folder, words if number == 0 else (), receipt, last[number]
            )
        return receipt

    def stop(self) -> None:
        """Kill the actors and give their resources back."""
        for shard in self._shards:
            ray.kill(shard)
        remove_placement_group(self._group)
