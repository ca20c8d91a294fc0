"""Types and sizes of the values in a config.json, checked before a model is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.errors import UserError, excerpt

_LAYERS = "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers"
_EXPERTS = "num_experts num_local_experts n_routed_experts n_shared_experts"
_WIDTHS = (
    "hidden_size n_embd d_model word_embed_proj_dim intermediate_size moe_intermediate_size ffn_dim "
    "n_inner head_dim num_attention_heads num_key_value_heads n_head decoder_attention_heads"
)
_ROWS = "vocab_size max_position_embeddings n_positions"
_LARGEST = {
    **dict.fromkeys(_LAYERS.split(), 10_000),
    **dict.fromkeys(_EXPERTS.split(), 100_000),
    **dict.fromkeys(_WIDTHS.split(), 10_000_000),
    **dict.fromkeys(_ROWS.split(), 1_000_000_000),
}
"""Values beyond those of any model: it would take days to build one with more."""

_POSITIVE = ("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "vocab_size")
_TYPES: dict[str, tuple[type, str]] = {
    "model_type": (str, "text"),
    "architectures": (list, "a list"),
    **dict.fromkeys(("auto_map", "quantization_config", "text_config"), (dict, "a mapping")),
}


def check_values(where: str, config: Mapping[str, Any]) -> None:
    """Raise UserError, naming the key, for a value of the wrong type or size in a config.json.

    Only values that are read before the model is built are checked, here and in the nested text_config.
    """
    for key, (expected, name) in _TYPES.items():
        if not isinstance(config.get(key), expected | None):
            raise _value_error(where, key, config[key], name)
    names = [("architectures", name) for name in config.get("architectures") or []]
    names += [("auto_map", name) for name in (config.get("auto_map") or {}).values()]
    for key, name in names:
        if not isinstance(name, str) and not (key == "auto_map" and isinstance(name, list | None)):
            raise _value_error(where, key, name, "the name of a class")
    for key in _LARGEST.keys() & config.keys():
        values = config[key] if isinstance(config[key], list) else [config[key]]
        smallest, largest = int(key in _POSITIVE), _LARGEST[key]
        for value in values:
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (is_whole and smallest <= value <= largest):
                raise _value_error(where, key, value, f"a number from {smallest} to {largest:,}")
    if config.get("text_config"):
        check_values(f"{where}: text_config", config["text_config"])


def _value_error(where: str, key: str, value: Any, expected: str) -> UserError:
    return UserError(f"{where}: {key}: {excerpt(str(value))}: expected {expected}")
