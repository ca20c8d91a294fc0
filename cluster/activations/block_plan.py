"""Blocks: runs of layers whose weights and pooled values of all sentences fit a device together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.activations.column_order import REORDERED_BYTES
from cluster.activations.pooling_shard import ActivationSettings
from cluster.host_memory import free_host_memory
from cluster.models.architecture import find_layers
from cluster.models.divisible import find_division_problem
from cluster.models.model_config import read_config
from cluster.models.shard import MAX_TOKENS
from cluster.models.sites import build_without_memory, find_sites_from_config
from storage.errors import UserError
from storage.store.activation_files import STATE_POOLINGS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HIDDEN_TENSORS, _UNIT_TENSORS = 8, 4
"""Tensors of a batch that a layer holds at once, as wide as the residual stream or as its widest site or
projection: attention and its projections, norms in float32; gate, up, their product and what is pooled
of it."""

_LATENT_BYTES = 4 * 4
"""The same of a sparse autoencoder's latent, which is in float32."""

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
    working memory of a batch's token, and of the attention of a token to another; and of one pooling's
    values of one sentence at the widest site."""

    layers: Sequence[LayerBytes]
    embeddings: int
    token: int
    attention: int = 0
    site: int = 0

    def batch_bytes(self, tokens: int, longest: int) -> int:
        """Working memory of padded batches of so many tokens, in sentences of at most `longest`."""
        return max(tokens, longest) * (self.token + longest * self.attention)


def plan_blocks(
    model: ModelBytes,
    sentences: int,
    budget: int,
    memory: int,
    consumer_bytes: int = 0,
    longest: int = MAX_TOKENS,
) -> list[range]:
    """The fewest blocks that fit `memory` bytes, of nearly equal numbers of layers if possible.

    Beside a block there is room for batches of `budget` tokens, in sentences of at most `longest`; and
    once it is read, for reordering its values and for the `consumer_bytes` of what uses them; unless a
    layer alone leaves none.

    Raises UserError if a layer does not fit.
    """
    reordered = min(REORDERED_BYTES, sentences * sum(layer.pooled for layer in model.layers))
    reordered = max(reordered, sentences * model.site)
    batches = model.batch_bytes(budget, longest)
    available = int(memory * _FREE_SHARE) - max(batches, reordered, consumer_bytes)

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
    """The bytes of a model in a folder. Raises UserError if its configuration cannot be read."""
    return measure_config(read_config(folder, settings.trust_remote_code), settings)


def measure_config(config: PretrainedConfig, settings: ActivationSettings) -> ModelBytes:
    """The bytes of a model, from its configuration alone."""
    dtype: torch.dtype = getattr(torch, settings.dtype)
    text_model, layers = find_layers(build_without_memory(config, settings.trust_remote_code))
    layer_weights = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
    # Those of experts are stacked.
    projections = [max(weight.shape[-2:]) for layer in layers for weight in layer.parameters()]
    others = sum(weight.numel() for weight in text_model.parameters()) - sum(layer_weights)
    text_config = config.get_text_config()
    hidden_size: int = text_config.hidden_size
    units, encoders, latents = [0] * len(layers), [0] * len(layers), 0
    widest_site = 0
    if (autoencoder := settings.sparse_autoencoder) is not None:
        widest_site = latents = units[autoencoder.layer] = autoencoder.validate()
        encoders[autoencoder.layer] = autoencoder.count_weights() * torch.float32.itemsize
    else:
        selection = settings.sites
        for site in find_sites_from_config(config, selection, settings.trust_remote_code).sites:
            units[site.layer] += site.width
            widest_site = max(widest_site, site.width)
    widest = max(*projections, 0 if latents else max(units))
    states = hidden_size * len(STATE_POOLINGS) * 4 if settings.include_hidden_states else 0
    return ModelBytes(
        [
            LayerBytes(weights * dtype.itemsize + encoder, width * len(settings.poolings) * 2 + states)
            for weights, encoder, width in zip(layer_weights, encoders, units, strict=True)
        ],
        embeddings=others * dtype.itemsize,
        token=(_HIDDEN_TENSORS * hidden_size + _UNIT_TENSORS * widest) * dtype.itemsize
        + _LATENT_BYTES * latents,
        # Scores, and their softmax in float32.
        attention=_count_heads(text_config) * (2 * dtype.itemsize + torch.float32.itemsize),
        site=max(2 * widest_site, 4 * hidden_size if states else 0),
    )


def _count_heads(config: Any) -> int:
    """The most attention heads of a layer; 0 if the configuration names none."""
    heads = getattr(config, "num_attention_heads", None) or 0
    return max(heads) if isinstance(heads, list) else int(heads)


def plan_model(
    folder: Path,
    settings: ActivationSettings,
    sentences: int,
    budget: int,
    memory: int,
    consumer_bytes: int,
    longest: int = MAX_TOKENS,
    measured: ModelBytes | None = None,
) -> list[range]:
    """Blocks of a model, as `plan_blocks`; its bytes are measured unless they are given. Also raises
    UserError if it needs several and cannot be divided."""
    blocks = plan_blocks(
        measured or measure_model(folder, settings), sentences, budget, memory, consumer_bytes, longest
    )
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
    return free_host_memory()
