"""Counts a model's neurons, where possible from config.json alone, so that planning takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.models.weights import Weights, available_config, load_config
from storage.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LLAMA_LIKE = "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text gpt_neox olmo2 phi phi3 smollm3"
_MLP_WIDTH_KEYS = {**dict.fromkeys(_LLAMA_LIKE.split(), "intermediate_size"), "opt": "ffn_dim"}


@dataclass(frozen=True)
class ModelSize:
    """Number of layers, number of neurons over all layers and sites, and residual stream width."""

    layers: int
    neurons: int
    hidden_size: int


def model_size(weights: Weights, sites: str | Sequence[str]) -> ModelSize:
    """Compute the size of a model. Raises UserError, naming the model, for sites that it lacks."""
    if sites == "mlp" and (size := _size_from_config(available_config(weights))):
        return size
    try:
        return measure_size(load_config(weights), sites, weights.trust_remote_code)
    except UserError as error:
        raise UserError(f"model {weights.label}: {error}") from error


def measure_size(
    config: PretrainedConfig, sites: str | Sequence[str], trust_remote_code: bool = False
) -> ModelSize:
    """Compute the size of a model from its configuration, by building it without memory."""
    from cluster.models.sites import find_sites_from_config

    found = find_sites_from_config(config, sites, trust_remote_code)
    return ModelSize(found.n_layers, sum(site.width for site in found.sites), found.hidden_size)


def _size_from_config(config: dict[str, Any]) -> ModelSize | None:
    width_key = _MLP_WIDTH_KEYS.get(config.get("model_type", ""), "")
    values: list[Any] = [config.get(key) for key in ("num_hidden_layers", width_key, "hidden_size")]
    if not all(isinstance(value, int) for value in values):
        return None
    layers, width, hidden_size = values
    return ModelSize(layers, layers * width, hidden_size)
