"""Where neurons are read: the sites of a layer, by preset or by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from cluster.partial import find_layers
from storage.activation_files import MLP_HIDDEN
from storage.errors import UserError

Side = Literal["input", "output"]


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
    layers: Mapping[int, nn.Module], hidden_size: int, wanted: str | Sequence[str]
) -> list[Site]:
    """The sites of layers, given by their numbers.

    `wanted` is `mlp`, the hidden neurons of the MLP: the input of its down projection, which is the
    last linear module outside the attention that is as wide as the residual stream; `linears`, the
    outputs of all linear modules (the units of the papers); or regular expressions that are to match
    the whole name of a linear module in a layer, each followed by `:input` or `:output` (the default).

    Raises UserError when a layer has no such site.
    """
    sites = []
    for number, layer in layers.items():
        linears = _linears(layer)
        if wanted == "mlp":
            sites.append(_mlp_hidden(number, linears, hidden_size))
        elif wanted == "linears":
            sites += [
                Site(number, name, name, "output", _widths(module)[1])
                for name, module in linears.items()
            ]
        else:
            sites += [site for pattern in wanted for site in _matching(number, linears, pattern)]
    for pattern in [] if isinstance(wanted, str) else wanted:
        if not any(_matching(number, _linears(layer), pattern) for number, layer in layers.items()):
            known = ", ".join(_linears(next(iter(layers.values()))))
            raise UserError(f"sites: {pattern!r} matches no linear module; a layer has {known}")
    return sites


def describe(config: PretrainedConfig, wanted: str | Sequence[str]) -> tuple[list[Site], int]:
    """Sites and width of the residual stream of a model that is not loaded: it is built from its
    configuration without memory."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    hidden_size = config.get_text_config().hidden_size
    return find_sites(dict(enumerate(find_layers(model))), hidden_size, wanted), hidden_size


def _linears(layer: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }


def _mlp_hidden(number: int, linears: Mapping[str, nn.Module], hidden_size: int) -> Site:
    found = [
        (name, module)
        for name, module in linears.items()
        if "attn" not in name and "attention" not in name and _widths(module)[1] == hidden_size
    ]
    if not found:
        raise UserError(
            f"layer {number} has no linear module that ends its MLP (a mixture of experts with fused "
            "weights has none); name its sites by regular expressions instead"
        )
    name, module = found[-1]
    return Site(number, MLP_HIDDEN, name, "input", _widths(module)[0])


def _matching(number: int, linears: Mapping[str, nn.Module], pattern: str) -> list[Site]:
    expression, _, given = pattern.rpartition(":")
    side: Side = "input" if given == "input" else "output"
    try:
        matches = re.compile(expression if given in ("input", "output") else pattern).fullmatch
    except re.error as error:
        raise UserError(f"sites: {pattern!r} is no regular expression: {error}") from error
    return [
        Site(number, f"{name}.{side}", name, side, _widths(module)[side == "output"])
        for name, module in linears.items()
        if matches(name)
    ]


def _widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.nf
    raise TypeError(f"{type(module).__name__} is no linear module")
