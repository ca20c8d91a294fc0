"""Chooses the number of shards and replicas of a model, and the resources of each shard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import ray

from cluster.models.divisible import check_shards
from cluster.models.weights import Weights, load_config
from cluster.runtime import session
from storage.errors import UserError

_HEADROOM = 1.5
"""Memory of a device relative to its weights, so that activations fit too."""

_BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Placement:
    """Number of replicas, shards per replica, and Ray resources per shard."""

    shards: int
    replicas: int
    resources: dict[str, float]


def plan_placement(
    weights: Weights,
    dtype: str,
    shards: int | Literal["auto"],
    gpus_per_shard: float,
) -> Placement:
    """Place as many replicas of a model as fit the cluster's GPUs or, without GPUs, one CPU core per
    shard.

    A shard on a GPU requests no CPU, so that expert scoring on all CPUs never delays it. `auto` means as
    few shards as the weights fit into (one on CPUs).

    Raises UserError if the cluster is too small.
    """
    on_gpus = session.cluster_gpus() > 0 and gpus_per_shard > 0
    resources = {"GPU": gpus_per_shard} if on_gpus else {"CPU": 1.0}
    if shards == "auto":
        shards = _shards_for_gpus(weights, dtype, gpus_per_shard) if on_gpus else 1
    try:
        check_shards(load_config(weights), shards)
    except UserError as error:
        raise UserError(f"model {weights.label}: {error}") from error
    slots = session.cluster_gpus() / gpus_per_shard if on_gpus else session.cluster_cpus()
    replicas = int(slots // shards)
    if replicas == 0:
        raise UserError(
            f"model {weights.label}: {shards} shards x {session.format_resources(resources)} do not fit "
            f"the cluster, which has {session.describe_cluster()}"
        )
    return Placement(shards, replicas, resources)


def _shards_for_gpus(weights: Weights, dtype: str, gpus_per_shard: float) -> int:
    measure = ray.remote(_measure_model_and_gpu).options(num_gpus=gpus_per_shard)
    model_bytes, gpu_bytes = session.get_result(measure.remote(weights, dtype))
    return count_shards(model_bytes, gpu_bytes * gpus_per_shard)


def count_shards(model_bytes: int, device_bytes: float) -> int:
    """Smallest number of shards that fit on one device each."""
    return max(1, math.ceil(model_bytes * _HEADROOM / device_bytes))


def _measure_model_and_gpu(weights: Weights, dtype: str) -> tuple[int, int]:
    import torch

    from cluster.models.sites import build_without_memory

    model = build_without_memory(load_config(weights), weights.trust_remote_code)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 1 << 62)
    return parameters * _BYTES_PER_WEIGHT[dtype], total
