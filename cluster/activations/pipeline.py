"""A pipeline: the shards of one replica of a model, each on its own device, seen from the driver."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.experimental.collective import create_collective_group
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.activations.actor import STEPS, ShardActor, WorkUnit
from cluster.activations.shard import Settings
from cluster.models.weights import Weights

COMMIT = "commit"
"""Commits of a shard run beside its steps, one after another."""


class Chain:
    """The shards of one replica as actors in one placement group: packed on a node where they fit."""

    def __init__(
        self, actor: Any, weights: Weights, settings: Settings, shards: int, resources: dict[str, float]
    ) -> None:
        self.asks = f"{shards} shards of {resources}"
        self._group = placement_group([resources] * shards, strategy="PACK")
        self._shards: list[Any] = [
            actor.options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, number),
            ).remote(weights, settings, number, shards)
            for number in range(shards)
        ]

    def ready(self) -> Any:
        """A reference that is there as soon as every shard is placed."""
        return self._group.ready()

    def stop(self) -> None:
        """Kill the actors and give their resources back."""
        for shard in self._shards:
            ray.kill(shard)
        remove_placement_group(self._group)


class Pipeline(Chain):
    """A chain that reads activations.

    Hidden states go from shard to shard through `transport`, one of Ray's tensor transports: by default
    from device to device with NCCL where each shard has a whole GPU and Ray offers it there, and through
    the object store elsewhere.
    """

    def __init__(
        self,
        weights: Weights,
        settings: Settings,
        shards: int,
        resources: dict[str, float],
        transport: str | None = None,
    ) -> None:
        actor = ray.remote(  # type: ignore[call-overload]
            concurrency_groups={COMMIT: 1}, enable_tensor_transport=True
        )(ShardActor)
        super().__init__(actor, weights, settings, shards, resources)
        self._whole_gpus = resources.get("GPU", 0) >= 1
        self._transport = transport
        self._connected = False

    def submit(self, unit: WorkUnit, folder: Path, words: Sequence[str]) -> Any:
        """Send a unit through all shards, which must be placed; the reference of its receipt."""
        self._connect()
        given = ray.put(unit)
        last: list[Any] = [None] * len(self._shards)
        *inner, _ = self._shards
        for piece in range(STEPS):
            hidden = None
            for number, shard in enumerate(self._shards):
                passes_on = {"tensor_transport": self._transport} if number < len(inner) else {}
                step = shard.step.options(**passes_on)
                hidden = last[number] = step.remote(given, piece, hidden, self._transport is not None)
        receipt = None
        with warnings.catch_warnings():
            # a commit is given its own shard's last step, but only to wait for it
            warnings.filterwarnings("ignore", ".*is being passed back to the actor that created it")
            for number, shard in enumerate(self._shards):
                receipt = shard.commit.options(concurrency_group=COMMIT).remote(
                    given, folder, words if number == 0 else (), receipt, last[number]
                )
        return receipt

    def _connect(self) -> None:
        """Let the shards know each other, where tensors go straight from one to the next."""
        if self._connected or len(self._shards) == 1:
            return
        if self._whole_gpus and all(ray.get([shard.offers_nccl.remote() for shard in self._shards])):
            self._transport = "nccl"
        if self._transport is not None:
            create_collective_group(self._shards, backend=self._transport)
        self._connected = True
