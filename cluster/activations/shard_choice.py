"""On how many devices a pass runs: one that holds the model, a pipeline, or one that takes blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from cluster.activations.block_plan import ModelBytes, plan_blocks, split_evenly
from cluster.models.shard import MAX_TOKENS
from storage.errors import UserError


@dataclass(frozen=True)
class PassSize:
    """What a pass needs of a device beside the model: pooled values of so many `sentences` of at most
    `longest` tokens, batches of `budget` tokens, and the `consumer_bytes` of what uses the values."""

    sentences: int
    budget: int
    consumer_bytes: int = 0
    longest: int = MAX_TOKENS


class ShardChoice(NamedTuple):
    """A number of shards, and the reason, a sentence."""

    shards: int
    reason: str


def choose_shards(
    model: ModelBytes, size: PassSize, memory: int, devices: int, is_divisible: bool = True
) -> ShardChoice:
    """The shards of a model on up to `devices` with `memory` bytes each.

    One if the device holds the weights and all pooled values; else the fewest that do together; else
    one, which takes blocks of layers in turn.

    Raises UserError if a layer does not fit a device.
    """
    layers = range(len(model.layers))
    needed = f"weights and pooled values ({_block_bytes(model, layers, size) / 1e9:.1f} GB)"
    device = f"a device with {memory / 1e9:.1f} GB"
    n_blocks = count_blocks(model, layers, size, memory)
    if n_blocks == 1:
        return ShardChoice(1, f"{needed} fit {device}")
    for shards in range(2, min(devices, len(layers)) + 1 if is_divisible else 0):
        parts = split_evenly(layers, shards)
        if all(count_blocks(model, part, size, memory) == 1 for part in parts):
            return ShardChoice(shards, f"{needed} do not fit {device}, but fit a pipeline of {shards}")
    which = device if devices == 1 else f"{devices} devices with {memory / 1e9:.1f} GB each"
    return ShardChoice(
        1, f"{needed} do not fit {which}: one device takes {n_blocks} blocks of layers in turn"
    )


def count_blocks(model: ModelBytes, layers: range, size: PassSize, memory: int) -> int:
    """The fewest blocks in which some of a model's layers fit `memory` bytes.

    Raises UserError if a layer does not fit.
    """
    embeddings = model.embeddings if layers.start == 0 else 0
    part = replace(model, layers=model.layers[layers.start : layers.stop], embeddings=embeddings)
    return len(plan_blocks(part, size.sentences, size.budget, memory, size.consumer_bytes, size.longest))


def check_shard(model: ModelBytes, layers: range, size: PassSize, memory: int) -> None:
    """Raise UserError if a shard of a pipeline does not fit `memory` bytes."""
    if count_blocks(model, layers, size, memory) > 1:
        raise UserError(
            f"the shard with layers {layers.start} to {layers.stop - 1}: its weights and its pooled "
            f"values of {size.sentences:,} sentences ({_block_bytes(model, layers, size) / 1e9:.1f} GB) "
            f"do not fit {memory / 1e9:.1f} GB; use more shards, or shards: 1, which takes blocks of "
            "layers in turn"
        )


def _block_bytes(model: ModelBytes, layers: range, size: PassSize) -> int:
    parts = [model.layers[layer] for layer in layers]
    total = sum(part.weights + part.pooled * size.sentences for part in parts)
    return total + (model.embeddings if layers.start == 0 else 0)
