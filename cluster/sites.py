"""Where neurons are read: the layers of a model and the sites in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from storage.activation_files import MLP_HIDDEN
from storage.errors import UserError


@dataclass(frozen=True)
class Site:
    """One place in one layer. `module` is the path of the module whose input is read, from the layer."""

    layer: int
    name: str
    module: str
    width: int

    def __str__(self) -> str:
        return f"L{self.layer:02d}.{self.name}"


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a language model's layers: the module list as long as its configuration says.

    Raises UserError when no list, or more than one, fits.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(model).__name__}: found {len(found)} lists of {config.num_hidden_layers} layers; "
            "expected one"
        )
    return found[0]


def mlp_sites(model: nn.Module) -> list[Site]:
    """The hidden neurons of every layer's MLP: the input of its down projection.

    That projection is the last linear module of the layer outside its attention whose output is as
    wide as the residual stream.
    """
    hidden_size = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    sites = []
    for number, layer in enumerate(find_layers(model)):
        name, module = _down_projection(layer, hidden_size)
        if name is None or module is None:
            raise UserError(
                f"{type(model).__name__}: layer {number} has no linear module that ends its MLP "
                "(a mixture of experts with fused weights has none)"
            )
        sites.append(Site(number, MLP_HIDDEN, name, _widths(module)[0]))
    return sites


def describe(config: PretrainedConfig) -> tuple[list[Site], int]:
    """Sites and width of the residual stream of a model that is not loaded: it is built from its
    configuration without memory."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return mlp_sites(model), config.get_text_config().hidden_size


def _down_projection(layer: nn.Module, hidden_size: int) -> tuple[str | None, nn.Module | None]:
    found: tuple[str | None, nn.Module | None] = (None, None)
    for name, module in layer.named_modules():
        if "attn" in name or "attention" in name:
            continue
        if isinstance(module, nn.Linear | Conv1D) and _widths(module)[1] == hidden_size:
            found = (name, module)
    return found


def _widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.nf
    raise TypeError(f"{type(module).__name__} is no linear module")
