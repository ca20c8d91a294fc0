"""Finds the sites of a model at which activations are recorded, by preset or by regular expression."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModel, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from cluster.models.partial_model import find_layers
from storage.errors import UserError
from storage.store.activation_files import MLP_HIDDEN

Side = Literal["input", "output"]
_HookPoint = tuple[int, str, Side]
"""Layer number, path of a module in the layer, and side of the module."""
_Linear = nn.Linear | Conv1D

_PROBE_SHAPE = (3, 2)
"""Sentences and tokens of the dummy input that widths are measured with."""


@dataclass(frozen=True)
class Site:
    """Input or output of one module in one layer; `module` is its path in the layer."""

    layer: int
    name: str
    module: str
    side: Side
    width: int

    def __str__(self) -> str:
        return f"L{self.layer:02d}.{self.name}"


def find_sites(
    model: nn.Module, layers: Mapping[int, nn.Module], selection: str | Sequence[str]
) -> list[Site]:
    """Find the selected sites of a model's layers, which are keyed by layer number.

    `selection` is one of
    - `mlp`: hidden neurons of the MLP, i.e. the input of its down projection, which is the last linear
      module outside the attention whose output is as wide as the residual stream
    - `linears`: outputs of all linear modules (the units of the papers)
    - regular expressions that match the full path of a module in a layer, each optionally followed by
      `:input` or `:output` (the default)

    Raises:
        UserError: if a layer has no such site, or a matched module does not give one vector per token.
    """
    if selection == "mlp":
        hidden_size = _hidden_size(model)
        return [
            _find_mlp_hidden(number, _linear_modules(layer), hidden_size, type(model).__name__)
            for number, layer in layers.items()
        ]
    if selection == "linears":
        return [
            Site(number, name, name, "output", _in_out_features(module)[1])
            for number, layer in layers.items()
            for name, module in _linear_modules(layer).items()
        ]
    points = [point for pattern in selection for point in _match_modules(layers, pattern)]
    return [
        Site(number, f"{name}.{side}", name, side, width)
        for (number, name, side), width in _measure_widths(model, layers, points).items()
    ]


def find_sites_from_config(
    config: PretrainedConfig, selection: str | Sequence[str], trust_remote_code: bool = False
) -> tuple[list[Site], int]:
    """Find the sites of a model that is not loaded; also return the width of its residual stream."""
    model = build_without_memory(config, trust_remote_code)
    return find_sites(model, dict(enumerate(find_layers(model))), selection), _hidden_size(model)


def count_layer_weights(config: PretrainedConfig) -> int:
    """Number of weights in a model's layers, by which every token is multiplied."""
    layers = find_layers(build_without_memory(config))
    return sum(weights.numel() for weights in layers.parameters())


def build_without_memory(config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """Build a model's body from its configuration on the meta device."""
    with torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def add_hook(module: nn.Module, side: Side, function: Callable[[Any], Any]) -> RemovableHandle:
    """Call a function with each input or output of a module; a result other than None replaces it."""
    register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
    # The last argument of a hook is the module's input or output.
    return register(lambda *arguments: function(arguments[-1]))


def extract_hidden_state(values: Any) -> torch.Tensor | None:
    """Hidden state in the positional inputs or the output of a module; None if there is none."""
    if isinstance(values, tuple | list):
        values = values[0] if values else None
    return values if isinstance(values, torch.Tensor) else None


def replace_hidden_state(
    hidden: torch.Tensor, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a layer with its hidden state replaced."""
    if inputs:
        return (hidden, *inputs[1:]), keywords
    return inputs, {**keywords, "hidden_states": hidden}


def _hidden_size(model: nn.Module) -> int:
    size: int = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    return size


def _linear_modules(layer: nn.Module) -> dict[str, _Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, _Linear)}


def _find_mlp_hidden(
    number: int, linears: Mapping[str, _Linear], hidden_size: int, architecture: str
) -> Site:
    candidates = [
        (name, module)
        for name, module in linears.items()
        if "attn" not in name and "attention" not in name and _in_out_features(module)[1] == hidden_size
    ]
    if not candidates:
        raise UserError(
            f"layer {number} of {architecture} has no linear down projection in its MLP (as in a "
            "mixture of experts with fused weights); select sites by regular expressions such as "
            "'mlp:output'"
        )
    name, module = candidates[-1]
    return Site(number, MLP_HIDDEN, name, "input", _in_out_features(module)[0])


def _match_modules(layers: Mapping[int, nn.Module], pattern: str) -> list[_HookPoint]:
    expression, _, suffix = pattern.rpartition(":")
    side: Side = "input" if suffix == "input" else "output"
    try:
        matches = re.compile(expression if suffix in ("input", "output") else pattern).fullmatch
    except re.error as error:
        raise UserError(f"sites: {pattern!r} is not a valid regular expression: {error}") from error
    points: list[_HookPoint] = [
        (number, name, side)
        for number, layer in layers.items()
        for name, _ in layer.named_modules()
        if name and matches(name)
    ]
    if not points:
        module_names = ", ".join(name for name, _ in next(iter(layers.values())).named_modules() if name)
        raise UserError(f"sites: {pattern!r} matches no module; a layer has {module_names}")
    return points


def _measure_widths(
    model: nn.Module, layers: Mapping[int, nn.Module], points: Sequence[_HookPoint]
) -> dict[_HookPoint, int]:
    """Measure the width at each hook point by running a few tokens through the model."""
    shapes: dict[_HookPoint, torch.Size] = {}

    def record(point: _HookPoint, values: Any) -> None:
        hidden = extract_hidden_state(values)
        if hidden is not None:
            shapes[point] = hidden.shape

    hooks = []
    for point in points:
        number, name, side = point
        hooks.append(add_hook(layers[number].get_submodule(name), side, partial(record, point)))
    _run_probe(model)
    for hook in hooks:
        hook.remove()
    for number, name, side in points:
        shape = shapes.get((number, name, side), torch.Size())
        if shape[:-1] not in (_PROBE_SHAPE, (math.prod(_PROBE_SHAPE),)):
            raise UserError(
                f"sites: the {side} of {name} in layer {number} of {type(model).__name__} is not one "
                "vector per token; choose another module or its other side"
            )
    return {point: shapes[point][-1] for point in points}


def _run_probe(model: nn.Module) -> None:
    """Run a few tokens through a model, which may be on the meta device."""
    weights = next(model.parameters())
    tokens = torch.zeros(*_PROBE_SHAPE, _hidden_size(model), dtype=weights.dtype, device=weights.device)
    inputs = {"inputs_embeds": tokens, "use_cache": False}
    sentences, length = _PROBE_SHAPE
    mask = torch.zeros(sentences, 1, length, length, dtype=torch.bool, device=weights.device)
    with torch.inference_mode():
        if weights.is_meta:
            # Models build their mask from values, which meta tensors lack; most accept a ready-made one.
            with suppress(ValueError, RuntimeError):
                model(**inputs, attention_mask=mask)
                return
        model(**inputs)


def _in_out_features(module: _Linear) -> tuple[int, int]:
    """Input and output width of a linear module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.nf
