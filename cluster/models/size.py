"""A model's sites and size, where possible from config.json alone, so that planning takes seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from cluster.models.weights import Weights, available_config, load_config
from storage.errors import UserError
from storage.store.activation_files import MLP_HIDDEN

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LLAMA_LIKE = "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text olmo2 phi3 smollm3"
_MLPS = {
    **dict.fromkeys(_LLAMA_LIKE.split(), ("intermediate_size", "mlp.down_proj")),
    "gpt_neox": ("intermediate_size", "mlp.dense_4h_to_h"),
    "opt": ("ffn_dim", "fc2"),
    "phi": ("intermediate_size", "mlp.fc2"),
}
"""Name of the setting with the MLP's width, and path of its down projection, by type of model."""


@dataclass(frozen=True)
class SiteGroup:
    """A site with the same module and width in `n_layers` layers; `part` is what is read of the module:
    input, output, experts or logits."""

    name: str
    module: str
    part: str
    width: int
    n_layers: int

    def __str__(self) -> str:
        layers = "1 layer" if self.n_layers == 1 else f"{self.n_layers} layers"
        return f"{self.name} = {self.module} ({self.part}), {layers}, {self.width:,} units"


@dataclass(frozen=True)
class ModelSize:
    """Number of layers, width of the residual stream, the selected sites, and notes on what has none."""

    layers: int
    hidden_size: int
    sites: tuple[SiteGroup, ...]
    notes: tuple[str, ...] = ()

    @property
    def neurons(self) -> int:
        """Number of neurons over all layers and sites."""
        return sum(group.width * group.n_layers for group in self.sites)


def model_size(weights: Weights, sites: str | Sequence[str]) -> ModelSize:
    """Compute the size of a model. Raises UserError, naming the model, for sites that it lacks."""
    return _model_size(weights, sites if isinstance(sites, str) else tuple(sites))


@cache
def _model_size(weights: Weights, sites: str | tuple[str, ...]) -> ModelSize:
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
    counts = Counter((site.name, site.module, site.part, site.width) for site in found.sites)
    groups = tuple(SiteGroup(*kind, n_layers) for kind, n_layers in counts.items())
    return ModelSize(found.n_layers, found.hidden_size, groups, tuple(found.notes))


def _size_from_config(config: dict[str, Any]) -> ModelSize | None:
    width_key, module = _MLPS.get(config.get("model_type", ""), ("", ""))
    values: list[Any] = [config.get(key) for key in ("num_hidden_layers", width_key, "hidden_size")]
    if not all(isinstance(value, int) for value in values):
        return None
    layers, width, hidden_size = values
    return ModelSize(layers, hidden_size, (SiteGroup(MLP_HIDDEN, module, "input", width, layers),))
