"""Where neurons are read: the sites of a layer, by preset or by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from cluster.models.partial_model import find_layers
from storage.errors import UserError
from storage.store.activation_files import MLP_HIDDEN

Side = Literal["input", "output"]
Place = tuple[int, str, Side]

_PROBE = (3, 2)
"""Sentences and tokens that a model is tried on."""


@dataclass(frozen=True)
class Site:
    """One place in one layer: what goes into, or comes out of, the module at a path of the layer."""

    layer: int
    name: str
    module: str
    side: Side
    width: int

    def __str__(self) -> str:
        return f"L{self.layer:02d}.{self.name}"


def find_sites(
    model: nn.Module, layers: Mapping[int, nn.Module], wanted: str | Sequence[str]
) -> list[Site]:
    """The sites of a model's layers, given by their numbers.

    `wanted` is `mlp`, the hidden neurons of the MLP: the input of its down projection, which is the
    last linear module outside the attention that is as wide as the residual stream; `linears`, the
    outputs of all linear modules (the units of the papers); or regular expressions that are to match
    the whole name of a module in a layer, each followed by `:input` or `:output` (the default).

    Raises UserError when a layer has no such site, and when a module that an expression names has no
    values for each token there.
    """
    if wanted == "mlp":
        hidden_size = _hidden_size(model)
        return [
            _mlp_hidden(number, _linears(layer), hidden_size, type(model).__name__)
            for number, layer in layers.items()
        ]
    if wanted == "linears":
        return [
            Site(number, name, name, "output", _widths(module)[1])
            for number, layer in layers.items()
            for name, module in _linears(layer).items()
        ]
    places = [place for pattern in wanted for place in _matching(layers, pattern)]
    return [
        Site(number, f"{name}.{side}", name, side, width)
        for (number, name, side), width in _measure(model, layers, places).items()
    ]


def describe(
    config: PretrainedConfig, wanted: str | Sequence[str], remote_code: bool = False
) -> tuple[list[Site], int]:
    """Sites and width of the residual stream of a model that is not loaded: it is built from its
    configuration without memory."""
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=remote_code)
    return find_sites(model, dict(enumerate(find_layers(model))), wanted), _hidden_size(model)


def body_size(config: PretrainedConfig) -> int:
    """Weights of a model's layers: those that each token is multiplied with."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return sum(weights.numel() for weights in find_layers(model).parameters())


def hidden_values(given: Any) -> torch.Tensor | None:
    """The hidden state in what goes into a module by position, or comes out of it."""
    if isinstance(given, tuple | list):
        given = given[0] if given else None
    return given if isinstance(given, torch.Tensor) else None


def with_hidden(
    hidden: torch.Tensor, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What goes into a layer, with another hidden state."""
    if inputs:
        return (hidden, *inputs[1:]), named
    return inputs, {**named, "hidden_states": hidden}


def _hidden_size(model: nn.Module) -> int:
    size: int = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    return size


def _linears(layer: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }


def _mlp_hidden(
    number: int, linears: Mapping[str, nn.Module], hidden_size: int, architecture: str
) -> Site:
    found = [
        (name, module)
        for name, module in linears.items()
        if "attn" not in name and "attention" not in name and _widths(module)[1] == hidden_size
    ]
    if not found:
        raise UserError(
            f"layer {number} of {architecture} has no linear module that ends its MLP (a mixture of "
            "experts with fused weights has none); name its sites by regular expressions instead, such "
            "as 'mlp:output'"
        )
    name, module = found[-1]
    return Site(number, MLP_HIDDEN, name, "input", _widths(module)[0])


def _matching(layers: Mapping[int, nn.Module], pattern: str) -> list[Place]:
    expression, _, given = pattern.rpartition(":")
    side: Side = "input" if given == "input" else "output"
    try:
        matches = re.compile(expression if given in ("input", "output") else pattern).fullmatch
    except re.error as error:
        raise UserError(f"sites: {pattern!r} is no regular expression: {error}") from error
    places: list[Place] = [
        (number, name, side)
        for number, layer in layers.items()
        for name, _ in layer.named_modules()
        if name and matches(name)
    ]
    if not places:
        known = ", ".join(name for name, _ in next(iter(layers.values())).named_modules() if name)
        raise UserError(f"sites: {pattern!r} matches no module; a layer has {known}")
    return places


def _measure(
    model: nn.Module, layers: Mapping[int, nn.Module], places: Sequence[Place]
) -> dict[Place, int]:
    """Width of each place, seen on a few tokens that are run through the model."""
    shapes: dict[Place, torch.Size] = {}

    def see(place: Place, given: Any) -> None:
        values = hidden_values(given)
        if values is not None:
            shapes[place] = values.shape

    hooks = []
    for place in places:
        number, name, side = place
        module = layers[number].get_submodule(name)
        if side == "input":
            hooks.append(module.register_forward_pre_hook(lambda _, given, at=place: see(at, given)))
        else:
            hooks.append(module.register_forward_hook(lambda _, __, given, at=place: see(at, given)))
    _try_out(model)
    for hook in hooks:
        hook.remove()
    for number, name, side in places:
        shape = shapes.get((number, name, side), torch.Size())
        if shape[:-1] not in (_PROBE, (math.prod(_PROBE),)):
            raise UserError(
                f"sites: the {side} of {name} in layer {number} of {type(model).__name__} is not one "
                "row of values for each token; name another module, or its other side"
            )
    return {place: shapes[place][-1] for place in places}


def _try_out(model: nn.Module) -> None:
    """Run a few tokens through a model, which may be without memory."""
    weights = next(model.parameters())
    tokens = torch.zeros(*_PROBE, _hidden_size(model), dtype=weights.dtype, device=weights.device)
    given = {"inputs_embeds": tokens, "use_cache": False}
    sentences, length = _PROBE
    mask = torch.zeros(sentences, 1, length, length, dtype=torch.bool, device=weights.device)
    with torch.inference_mode():
        if weights.is_meta:
            # making a mask looks at values, which there are none of; few models refuse a made one
            with suppress(ValueError, RuntimeError):
                model(**given, attention_mask=mask)
                return
        model(**given)


def _widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.nf
    raise TypeError(f"{type(module).__name__} is no linear module")
