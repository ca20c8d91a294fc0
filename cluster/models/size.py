"""How many neurons a model has, from its config.json alone where its architecture is known, so that
thousands of models are planned in seconds; else from the model, built without memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.models.weights import Weights, known_config, load_config
from storage.errors import UserError

_OF_LLAMA = ("num_hidden_layers", "intermediate_size", "hidden_size")
_KEYS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _OF_LLAMA),
    **dict.fromkeys(("gpt_neox", "olmo2", "phi", "phi3", "smollm3"), _OF_LLAMA),
    "opt": ("num_hidden_layers", "ffn_dim", "hidden_size"),
}


@dataclass(frozen=True)
class Size:
    """Layers, neurons over all sites and layers, and the width of the residual stream."""

    layers: int
    neurons: int
    hidden: int


def size_of(weights: Weights, sites: str | Sequence[str]) -> Size:
    """The size of a model. Raises UserError, naming it, for sites that it does not have."""
    found = _from_keys(known_config(weights)) if sites == "mlp" else None
    if found is not None:
        return found
    from cluster.models.sites import describe

    try:
        described, hidden = describe(load_config(weights), sites, weights.remote_code)
    except UserError as error:
        raise UserError(f"model {weights.label}: {error}") from error
    neurons = sum(site.width for site in described)
    return Size(len({site.layer for site in described}), neurons, hidden)


def _from_keys(config: dict[str, Any]) -> Size | None:
    keys = _KEYS.get(config.get("model_type", ""))
    values = [config.get(key) for key in keys or ()]
    if not values or not all(isinstance(value, int) for value in values):
        return None
    layers, width, hidden = (int(value) for value in values if value is not None)
    return Size(layers, layers * width, hidden)
