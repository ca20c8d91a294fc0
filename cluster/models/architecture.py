"""The parts of a causal language model: its class, its text model and the list of its layers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from storage.errors import UserError

LAYER_LISTS = ("layers", "layer", "h", "blocks")
"""Names of the lists of layers in transformers' text models."""

_REMOTE_CLASS = "AutoModelForCausalLM"

_UNSUPPORTED = {
    "kosmos-2.5": "its language model cannot run by itself",
    "paligemma": "it reads a prompt with attention in both directions",
    "shieldgemma2": "it classifies images",
    "xlnet": "it predicts tokens in a permuted order",
}
"""Reasons why a type of model that transformers can build is not read."""


def model_class(config: Any, trust_remote_code: bool = False, code: Any = None) -> tuple[Any, Any]:
    """The class that a checkpoint was saved with, and its configuration: a causal language model, or a
    model of text and images that contains one.

    `code` is the folder or Hub id with the model's own code, if that may run.

    Raises UserError if transformers has no such class, or it is not supported.
    """
    if reason := _UNSUPPORTED.get(config.model_type):
        raise UserError(f"models of type {config.model_type} are not supported: {reason}")
    auto_map = getattr(config, "auto_map", None) or {}
    if trust_remote_code and _REMOTE_CLASS in auto_map:
        return get_class_from_dynamic_module(auto_map[_REMOTE_CLASS], code), config
    candidates: list[Any] = []
    mappings = [MODEL_FOR_CAUSAL_LM_MAPPING]
    if not config.is_encoder_decoder:
        mappings.append(MODEL_FOR_MULTIMODAL_LM_MAPPING)
    for mapping in mappings:
        if type(config) in mapping:
            classes = mapping[type(config)]
            candidates += classes if isinstance(classes, tuple | list) else [classes]
    if not candidates:
        raise UserError(
            f"{type(config).__name__} has no causal language model ({_REMOTE_CLASS}) to load"
        )
    saved = (getattr(config, "architectures", None) or [""])[0]
    chosen = next((candidate for candidate in candidates if candidate.__name__ == saved), candidates[0])
    if chosen.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    if getattr(config, "chunk_size_feed_forward", 0):
        # An MLP that runs on chunks of tokens, to the same result, has no one value per site.
        config.chunk_size_feed_forward = 0
    return chosen, config


def find_layers(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """Find the text model of a causal language model, and the list of its layers.

    Raises UserError unless exactly one list has as many layers as the configuration says.
    """
    decoder = _decoder(model)
    n_layers = count_layers(decoder.config)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    matches = [
        ".".join(filter(None, (prefix, name)))
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and name.rpartition(".")[2] in LAYER_LISTS
        and len(module) == n_layers
    ]
    if len(matches) != 1:
        raise UserError(
            f"{type(model).__name__}: expected one list of {n_layers} layers, got "
            f"{', '.join(matches) or 'none'}; this architecture is not supported"
        )
    owner = matches[0]
    while owner and not isinstance(model.get_submodule(owner), PreTrainedModel):
        owner = owner.rpartition(".")[0]
    layers: Any = model.get_submodule(matches[0])
    return model.get_submodule(owner), layers


def count_layers(config: Any) -> int:
    """Number of a language model's layers. Raises UserError if the configuration does not say it."""
    text_config = config.get_text_config()
    for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers"):
        if isinstance(number := getattr(text_config, name, None), int):
            return number
    raise UserError(f"{type(config).__name__} does not say how many layers its language model has")


def _decoder(model: Any) -> Any:
    """The part of a model that generates text; the model itself if it does not say."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else model
    return decoder if isinstance(decoder, PreTrainedModel) else model
