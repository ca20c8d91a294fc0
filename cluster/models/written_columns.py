"""The columns of weights by which a module multiplies the neurons of a site."""

from __future__ import annotations

import torch
from torch import nn

from cluster.models.experts import expert_columns
from cluster.models.mlp import linear_modules
from cluster.models.sites import Site


def written_columns(layer: nn.Module, site: Site, units: torch.Tensor) -> torch.Tensor | None:
    """The columns of some units of a site in float64, (units, outputs).

    None for units that no matrix of their module multiplies: outputs of a module, or the input of one
    that is not linear.
    """
    if site.part == "experts":
        columns = expert_columns(layer.get_submodule(site.module), units)
    elif site.part == "input" and site.module in (linears := linear_modules(layer)):
        module = linears[site.module]
        weight = module.weight
        columns = weight.T[units] if isinstance(module, nn.Linear) else weight[units]
    else:
        return None
    return columns.detach().double()
