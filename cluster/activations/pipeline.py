"""A pipeline of shards that pools activations, as seen from the driver."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.experimental.collective import create_collective_group

from cluster.activations.actor import STEPS, ShardActor, WorkUnit
from cluster.runtime.shard_group import ShardGroup

COMMIT = "commit"
"""Concurrency group of a shard's commits: parallel to its steps, one after another."""


class ActivationPipeline(ShardGroup):
    """Sends work units through the shards of one replica. Hidden states pass between them by NCCL if
    each has a whole GPU and Ray supports it there."""

    default_transport: str | None = None
    """Ray's tensor transport elsewhere; None for the object store."""

    actor_class = ray.remote(  # type: ignore[call-overload]
        concurrency_groups={COMMIT: 1}, enable_tensor_transport=True
    )(ShardActor)

    def submit(self, unit: WorkUnit, folder: Path, words: Sequence[str]) -> Any:
        """Send a unit through all shards, which must be placed; the reference of its `UnitResult`."""
        unit_ref = ray.put(unit)
        last_steps: list[Any] = [None] * len(self._shards)
        for step in range(STEPS):
            hidden = None
            for index, shard in enumerate(self._shards):
                is_last = index == len(self._shards) - 1
                options = {} if is_last else {"tensor_transport": self._transport}
                hidden = last_steps[index] = shard.step.options(**options).remote(
                    unit_ref, step, hidden, self._transport is not None
                )
        result = None
        with warnings.catch_warnings():
            # A commit depends on its shard's last step but does not use its tensors.
            warnings.filterwarnings("ignore", ".*is being passed back to the actor that created it")
            for index, shard in enumerate(self._shards):
                result = shard.commit.options(concurrency_group=COMMIT).remote(
                    unit_ref, folder, words if index == 0 else (), result, last_steps[index]
                )
        return result

    @cached_property
    def _transport(self) -> str | None:
        # Connects the shards, which must be placed.
        transport, has_whole_gpus = self.default_transport, self._resources.get("GPU", 0) >= 1
        if len(self._shards) == 1:
            return transport
        if has_whole_gpus and all(ray.get([shard.supports_nccl.remote() for shard in self._shards])):
            transport = "nccl"
        if transport is not None:
            create_collective_group(self._shards, backend=transport)
        return transport
