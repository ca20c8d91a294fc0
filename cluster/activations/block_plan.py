"""Blocks: runs of layers whose weights and pooled values of all sentences fit a device together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from cluster.activations.pooling_shard import STATE_POOLINGS, ActivationSettings
from cluster.models.architecture import find_layers
from cluster.models.divisible import find_division_problem
from cluster.models.model_config import read_config
from cluster.models.sites import build_without_memory, find_sites_from_config
from storage.errors import UserError

_HIDDEN_TENSORS, _UNIT_TENSORS = 8, 4
"""Tensors of a batch that a layer holds at once, as wide as the residual stream or as the widest site:
attention and its projections, norms in float32; gate, up, their product and what is pooled of it."""

_UNKNOWN_MEMORY = 1 << 62
_FREE_SHARE = 0.9
"""Share of the free memory that is planned with: allocators lose some to fragments."""


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of a layer's weights, and of its pooled values of one sentence."""

    weights: int
    pooled: int


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a model's layers, of the other weights of the first block (the embeddings), and of the
    working memory of a batch's token."""

    layers: Sequence[LayerBytes]
    embeddings: int
    token: int


def plan_blocks(
    model: ModelBytes, sentences: int, budget: int, memory: int, consumer_bytes: int = 0
) -> list[range]:
    """The fewest blocks that fit `memory` bytes, of nearly equal numbers of layers if possible.

    Beside a block there is room for a batch of `budget` tokens and, once it is read, for the
    `consumer_bytes` of what uses its values, unless a layer alone leaves none.

    Raises UserError if a layer does not fit.
    """
    available = int(memory * _FREE_SHARE) - max(budget * model.token, consumer_bytes)

    def size(layers: range) -> int:
        total = sum(
            model.layers[layer].weights + model.layers[layer].pooled * sentences for layer in layers
        )
        return total + (model.embeddings if layers.start == 0 else 0)

    blocks: list[range] = []
    for layer in range(len(model.layers)):
        if (needed := size(range(layer, layer + 1))) > memory:
            raise UserError(
                f"layer {layer}: its weights and its pooled values of {sentences:,} sentences need "
                f"{needed / 1e9:.1f} GB, but {memory / 1e9:.1f} GB are free; use fewer poolings, fewer "
                "sentences or a larger device"
            )
        if blocks and size(range(blocks[-1].start, layer + 1)) <= available:
            blocks[-1] = range(blocks[-1].start, layer + 1)
        else:
            blocks.append(range(layer, layer + 1))
    even = split_evenly(range(len(model.layers)), len(blocks))
    return even if all(size(block) <= available for block in even) else blocks


def split_evenly(layers: range, n_blocks: int) -> list[range]:
    """Contiguous blocks of nearly equal numbers of layers."""
    edges = [layers.start + len(layers) * block // n_blocks for block in range(n_blocks + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def measure_model(folder: Path, settings: ActivationSettings) -> ModelBytes:
    """The bytes of a model, from its configuration alone. Raises UserError if it cannot be read."""
    config = read_config(folder, settings.trust_remote_code)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    text_model, layers = find_layers(build_without_memory(config, settings.trust_remote_code))
    layer_weights = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
    others = sum(weight.numel() for weight in text_model.parameters()) - sum(layer_weights)
    hidden_size: int = config.get_text_config().hidden_size
    units = [0] * len(layers)
    if (autoencoder := settings.sparse_autoencoder) is not None:
        units[autoencoder.layer] = autoencoder.validate()
    else:
        selection = settings.sites
        for site in find_sites_from_config(config, selection, settings.trust_remote_code).sites:
            units[site.layer] += site.width
    states = hidden_size * len(STATE_POOLINGS) * 4 if settings.include_hidden_states else 0
    return ModelBytes(
        [
            LayerBytes(weights * dtype.itemsize, width * len(settings.poolings) * 2 + states)
            for weights, width in zip(layer_weights, units, strict=True)
        ],
        embeddings=others * dtype.itemsize,
        token=(_HIDDEN_TENSORS * hidden_size + _UNIT_TENSORS * max(units)) * dtype.itemsize,
    )


def plan_model(
    folder: Path,
    settings: ActivationSettings,
    sentences: int,
    budget: int,
    memory: int,
    consumer_bytes: int,
) -> list[range]:
    """Blocks of a model, as `plan_blocks`. Also raises UserError if it needs several and cannot be
    divided."""
    model = measure_model(folder, settings)
    blocks = plan_blocks(model, sentences, budget, memory, consumer_bytes)
    problem = find_division_problem(read_config(folder, settings.trust_remote_code))
    if len(blocks) > 1 and problem:
        raise UserError(
            f"{folder}: its weights and its pooled values of {sentences:,} sentences do not fit "
            f"{memory / 1e9:.1f} GB, and it cannot be divided into blocks of layers{problem}; use fewer "
            "poolings, fewer sentences or a larger device"
        )
    return blocks


def is_divisible(folder: Path, settings: ActivationSettings) -> bool:
    """Whether a model can be divided into blocks."""
    return find_division_problem(read_config(folder, settings.trust_remote_code)) is None


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    path = Path("/proc/meminfo")
    if not path.is_file():
        return _UNKNOWN_MEMORY
    fields = dict(line.split(":") for line in path.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
