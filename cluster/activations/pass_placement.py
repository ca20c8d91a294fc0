"""Places a pass on a cluster: the number of its shards, and the resources of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import ray

from cluster.activations.block_plan import measure_config
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.shard_choice import PassSize, ShardChoice, choose_shards
from cluster.models.divisible import check_shards, find_division_problem
from cluster.models.weights import Weights, load_config
from cluster.runtime import session
from storage.errors import UserError

CPU_REASON = "the CPUs of a machine share its memory"


@dataclass(frozen=True)
class PassPlacement:
    """Number of shards, the reason for it, and the Ray resources of each."""

    shards: int
    reason: str
    resources: dict[str, float]

    @property
    def notes(self) -> tuple[str, ...]:
        """The number of shards and the reason, unless it is the only choice."""
        if self.shards == 1 and "GPU" not in self.resources:
            return ()
        return (f"{self.shards} shard{'s'[: self.shards > 1]}: {self.reason}",)


def place_pass(
    weights: Weights,
    settings: ActivationSettings,
    size: PassSize,
    shards: int | Literal["auto"],
    gpus_per_shard: float,
    cpus_per_shard: int | Literal["auto"],
    needs_gpus: bool = False,
) -> PassPlacement:
    """Place a pass on the cluster's GPUs or, without GPUs, on its CPUs, unless it `needs_gpus`, as its
    dtype and batches are those of GPUs.

    `auto` shards: see `choose_shards`. `auto` CPUs: as many as fit; on GPUs, shards run one thread that
    requests no CPU, so that work on all CPUs never delays it.

    Raises UserError if the cluster is too small, or the model cannot be divided.
    """
    n_gpus = session.cluster_gpus() if gpus_per_shard else 0
    if needs_gpus and not n_gpus:
        raise UserError(
            f"model {weights.label}: gpus_per_shard is {gpus_per_shard:g}, but the cluster has "
            f"{session.describe_cluster()}; set gpus_per_shard: 0 to use CPUs"
        )
    choice = ShardChoice(1, CPU_REASON)
    if shards != "auto":
        choice = ShardChoice(shards, "set by `shards`")
    elif n_gpus:
        memory = _measure_gpu(weights, gpus_per_shard)
        choice = choose_for(weights, settings, size, memory, int(n_gpus / gpus_per_shard))
    try:
        check_shards(load_config(weights), choice.shards)
    except UserError as error:
        raise UserError(f"model {weights.label}: {error}") from error
    resources: dict[str, float] = {"GPU": gpus_per_shard} if n_gpus else {}
    if cpus_per_shard != "auto":
        resources["CPU"] = cpus_per_shard
    elif not n_gpus:
        resources["CPU"] = divide_cpus(session.node_cpus(), choice.shards) or 1
    has_gpus = choice.shards * resources.get("GPU", 0) <= n_gpus
    if not has_gpus or not _fit_cpus(session.node_cpus(), choice.shards, int(resources.get("CPU", 0))):
        raise UserError(
            f"model {weights.label}: {choice.shards} shards x {session.format_resources(resources)} do "
            f"not fit the cluster, which has {session.describe_cluster()}"
        )
    return PassPlacement(choice.shards, choice.reason, resources)


def choose_for(
    weights: Weights, settings: ActivationSettings, size: PassSize, memory: int, devices: int
) -> ShardChoice:
    """The shards of a model by its configuration, for devices with `memory` bytes each.

    Raises UserError if a layer does not fit a device.
    """
    config = load_config(weights)
    is_divisible = find_division_problem(config) is None
    try:
        return choose_shards(measure_config(config, settings), size, memory, devices, is_divisible)
    except UserError as error:
        raise UserError(f"model {weights.label}: {error}") from error


def divide_cpus(node_cpus: Sequence[int], shards: int) -> int:
    """The most CPUs that each shard can have on nodes with so many; 0 if the shards do not fit."""
    for cpus in range(max(node_cpus, default=0), 0, -1):
        if _fit_cpus(node_cpus, shards, cpus):
            return cpus
    return 0


def _fit_cpus(node_cpus: Sequence[int], shards: int, cpus: int) -> bool:
    return cpus == 0 or sum(n_cpus // cpus for n_cpus in node_cpus) >= shards


def _measure_gpu(weights: Weights, gpus_per_shard: float) -> int:
    """Memory of a shard on a GPU of the cluster."""
    measure = ray.remote(gpu_bytes).options(num_gpus=min(1, gpus_per_shard), num_cpus=0)
    total = session.get_result(measure.remote())
    if total is None:
        raise UserError(
            f"model {weights.label}: torch cannot use the GPU of a node of the cluster; install a build "
            "of torch for its driver, or set gpus_per_shard: 0"
        )
    return int(total * min(1, gpus_per_shard))


def gpu_bytes() -> int | None:
    """Memory of this process's GPU; None if torch cannot use it."""
    import torch

    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
