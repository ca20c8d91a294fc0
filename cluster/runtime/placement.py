"""How many shards and replicas of a model run, and what each shard asks of Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import ray

from cluster.models.weights import Weights, load_config
from cluster.runtime.session import cpus, gpus, result
from storage.errors import UserError

_HEADROOM = 1.5
"""A device holds a shard's weights and, beside them, its activations."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Placement:
    """So many replicas of so many shards; each shard is given `resources`."""

    shards: int
    replicas: int
    resources: dict[str, float]


def place(
    weights: Weights,
    dtype: str,
    shards: int | Literal["auto"],
    replicas: int | Literal["auto"],
    gpus_per_shard: float,
) -> Placement:
    """Where a model goes: on GPUs where the cluster has any, else one CPU core a shard. A shard on a GPU
    asks for no CPU, so that experts that are scored on all CPUs never keep it waiting.

    Left to itself, a model is cut into as many shards as its weights need on such GPUs, and into one on
    CPUs; and there are as many replicas as fit. Raises UserError for more than the cluster has.
    """
    on_gpus = gpus() > 0 and gpus_per_shard > 0
    resources = {"GPU": gpus_per_shard} if on_gpus else {"CPU": 1.0}
    if shards == "auto":
        shards = _needed(weights, dtype, gpus_per_shard) if on_gpus else 1
    layers = load_config(weights).get_text_config().num_hidden_layers
    if shards > layers:
        raise UserError(f"model {weights.label}: has {layers} layers, too few for {shards} shards")
    room = gpus() / gpus_per_shard if on_gpus else cpus()
    fit = int(room // shards)
    if fit < (1 if replicas == "auto" else replicas):
        asked = f"{shards} shards" + ("" if replicas == "auto" else f" x {replicas} replicas")
        raise UserError(
            f"model {weights.label}: {asked} of {resources} each do not fit the cluster, which has "
            f"{cpus()} CPUs and {gpus()} GPUs"
        )
    return Placement(shards, fit if replicas == "auto" else replicas, resources)


def _needed(weights: Weights, dtype: str, gpus_per_shard: float) -> int:
    measure = ray.remote(_bytes_of_model_and_gpu).options(num_gpus=gpus_per_shard)
    model, gpu = result(measure.remote(weights, dtype))
    return shards_for(model, gpu * gpus_per_shard)


def shards_for(model: int, device: float) -> int:
    """Shards of a model of so many bytes on devices of so many bytes each."""
    return max(1, math.ceil(model * _HEADROOM / device))


def _bytes_of_model_and_gpu(weights: Weights, dtype: str) -> tuple[int, int]:
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(load_config(weights), trust_remote_code=weights.remote_code)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 1 << 62)
    return parameters * _BYTES[dtype], total
